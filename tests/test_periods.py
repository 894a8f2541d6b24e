"""Periods against the calendar and hand-worked neighbours."""

from datetime import date, timedelta

import pytest

from memtag_research.core import ParameterError
from memtag_research.measures.periods import Period, parse_period, year_earlier
from memtag_research.world.calendar import lunar_new_year


@pytest.mark.parametrize(("text", "start", "last_day", "kind"), [
    ("2017-12", "2017-12-01", "2017-12-31", "month"), ("2016-02", "2016-02-01", "2016-02-29", "month"),
    ("2017Q4", "2017-10-01", "2017-12-31", "quarter"), ("2017q1", "2017-01-01", "2017-03-31", "quarter"),
    ("2017W52", "2017-12-25", "2017-12-31", "week"), ("2015W01", "2014-12-29", "2015-01-04", "week"),
    ("2020W53", "2020-12-28", "2021-01-03", "week"), ("2017", "2017-01-01", "2017-12-31", "year"),
    (" 2017-12-01..2017-12-31 ", "2017-12-01", "2017-12-31", "days"), ("2017-12-24..2017-12-24", "2017-12-24", "2017-12-24", "days")])
def test_parse(text, start, last_day, kind):
    p = parse_period(text)
    assert (str(p.start), str(p.last_day), p.kind) == (start, last_day, kind)
    assert p.as_of == p.end == p.last_day + timedelta(1)
    assert parse_period(p.text) == p and parse_period(p) is p and str(p) == p.text


@pytest.mark.parametrize("wrong", [
    "2017-13", "2017-00", "2017-1", "2017Q0", "2017Q5", "2017W00", "2017W53", "2017W60", "last month", "", " ", "17-12", "20171",
    "2017-12-31..2017-12-01", "2017-12-01..2017-12-32", "2017-12-01...2017-12-31", "2017-12-01", "2017-02-29..2017-03-01",
    "0000", "9999", "1899", "２０１７-12x", None, 2017, 2017.5, date(2017, 12, 1), ["2017"]])
def test_parse_refuses_with_examples(wrong):
    with pytest.raises(ParameterError, match="period") as e: parse_period(wrong)
    assert "2017Q4" in str(e.value) or "earlier date first" in str(e.value)


@pytest.mark.parametrize("text", ["2017-01", "2016-03", "2017Q1", "2015W01", "2021W01", "2017", "2017-12-01..2017-12-10"])
def test_previous_ends_where_this_starts_and_back_is_a_chain(text):
    p = parse_period(text)
    assert p.previous().end == p.start and p.previous().kind == p.kind
    chain = p.back(60)
    assert chain[-1] == p and len(chain) == 60
    assert all(a.end == b.start and a.kind == p.kind for a, b in zip(chain, chain[1:], strict=False))
    assert all(parse_period(q.text) == q for q in chain)
    assert p.back(1) == [p]


@pytest.mark.parametrize(("text", "before"), [
    ("2017-12", "2016-12"), ("2017-02", "2016-02"), ("2017Q1", "2016Q1"), ("2017", "2016"), ("2017W52", "2016W52"),
    ("2020W53", "2019W52"), ("2021W53", None), ("2021W01", "2020W01"), ("2017-12-01..2017-12-31", "2016-12-01..2016-12-31"),
    ("2016-02-29..2016-02-29", "2015-02-28..2015-02-28"), ("2016-02-01..2016-02-29", "2015-02-01..2015-02-28"),
    ("2017-12-15..2018-01-14", "2016-12-15..2017-01-14")])
def test_year_before(text, before):
    if before is None:
        with pytest.raises(ParameterError): parse_period(text)
    else: assert parse_period(text).year_before().text == before


@pytest.mark.parametrize("year", range(2001, 2051))
def test_lunar_year_before_keeps_the_distance_to_new_year(year):
    feast = lunar_new_year(year)
    p = parse_period(f"{feast - timedelta(20)}..{feast + timedelta(9)}")
    before = p.year_before(lunar=True)
    assert (before.start - lunar_new_year(year - 1)).days == -20
    assert before.days == p.days == 30


def test_lunar_year_before_over_the_turn_of_the_year_and_outside_the_table():
    assert parse_period("2017-12-20..2018-02-22").year_before(lunar=True).text == "2016-12-01..2017-02-03"  # 19 days
    with pytest.raises(ParameterError, match="2000 to 2050"): parse_period("2000-01").year_before(lunar=True)
    with pytest.raises(ParameterError, match="2000 to 2050"): parse_period("2051-01").year_before(lunar=True)


def test_labels():
    assert parse_period("2017-12").label("en") == "December 2017"
    assert parse_period("2017-12").label("zh") == "2017年12月"
    assert parse_period("2017Q4").label("zh") == "2017年第4季度"
    assert parse_period("2017Q4").label() == "Q4 2017"
    assert parse_period("2017-12-01..2017-12-02").label("zh") == "2017-12-01 至 2017-12-02"
    assert "2014-12-29" in parse_period("2015W01").label()


def test_year_earlier_and_frozen():
    assert year_earlier(date(2016, 2, 29)) == date(2015, 2, 28)
    assert year_earlier(date(2017, 2, 28)) == date(2016, 2, 28)
    with pytest.raises(AttributeError): parse_period("2017").start = date(2016, 1, 1)
    assert isinstance(parse_period("2017"), Period) and parse_period("2017") in {parse_period("2017")}
