"Second purchases and cohorts against a member-by-member account, and against published figures."
from datetime import timedelta
from functools import lru_cache

import pandas as pd
import pytest
from histories import Order, Tables, dates, engine, histories, lines_of, on, online_retail, poisoned, tables_of
from hypothesis import Phase, given, settings

from memtag_research.core import ParameterError
from memtag_research.measures import cohorts
from memtag_research.measures.cohorts import (
    cohort_triangle,
    plot_cohorts,
    repurchase_by_month,
    second_purchase,
    second_purchase_by_source,
)

few = settings(max_examples=5, deadline=None, phases=[Phase.generate])   # a seed does not shrink
PUBLISHED = 5e-4      # the figures of docs/metrics.md have one decimal of a per cent


def days_of(history, as_of):
    "member → day numbers of purchases that stand, sorted."
    out = {}
    for o in history:
        if o.member and o.stands(as_of): out.setdefault(o.member, set()).add(o.day)
    return {m: sorted(d) for m, d in out.items()}


@few
@given(histories, dates)
def test_second_purchases_as_a_person_would_count_them(history, span):
    tables, (start, as_of), horizons = tables_of(history), span, (5, 20, 45)
    args = on(start // 2), on(as_of + 9), on(as_of), horizons
    got = second_purchase(tables.member_days, on(start // 2), on(as_of + 9), on(as_of), horizons).set_index("days")
    mine = {m: d for m, d in days_of(history, as_of).items() if d[0] >= start // 2}
    for n in horizons:
        followed = {m: d for m, d in mine.items() if as_of - 1 - d[0] >= n}
        second = [m for m, d in followed.items() if len(d) > 1 and d[1] - d[0] <= n]
        assert got.loc[n, ["members", "followed", "second"]].tolist() == [len(mine), len(followed), len(second)]
        assert pd.isna(got.rate[n]) if not followed else got.rate[n] == len(second) / len(followed)
    by_source = second_purchase_by_source(tables.member_days, tables.orders, *args[:3], days=horizons)
    sums = by_source.groupby("days")[["members", "followed", "second"]].sum()
    assert (sums.empty and not mine) or (sums == got[["members", "followed", "second"]]).all(axis=None)


@few
@given(histories, dates)
def test_triangle_as_a_person_would_count_it(history, span):
    as_of = span[1]
    tables, mine = tables_of(history), days_of(history, as_of)
    month = lambda day: on(day).month
    got = cohort_triangle(tables.member_days, on(as_of))
    for cell in got.itertuples():
        cohort, period = int(cell.cohort[-2:]), int(cell.period[-2:])
        members = [d for d in mine.values() if month(d[0]) == cohort]
        assert (cell.members, cell.age) == (len(members), period - cohort)
        assert cell.active == sum(any(month(day) == period for day in d) for d in members)
        assert cell.complete == ((on(as_of) - timedelta(days=1)).month > period or on(as_of).day == 1)
    assert got[got.age == 0].members.sum() == len(mine)
    monthly = repurchase_by_month(tables.member_days, on(as_of)).set_index("period")
    assert got.groupby("period").active.sum().to_dict() == monthly.buyers.to_dict()
    for name, row in monthly.iterrows():
        here = {m: [x for x in d if month(x) == int(name[-2:])] for m, d in mine.items()}
        before = {m for m, d in mine.items() if any(month(x) == int(name[-2:]) - 1 for x in d)}
        assert row.repeat_buyers == sum(len(d) > 1 for d in here.values())
        if not pd.isna(row.previous_buyers):
            assert (row.previous_buyers, row.returning) == (len(before), sum(bool(here[m]) for m in before))


def test_second_purchases_of_online_retail():
    second = second_purchase(online_retail().member_days, "2010-12-01", "2011-09-10", "2011-12-10")
    assert second.followed.tolist() == [3370] * 3
    assert second.rate.tolist() == pytest.approx([.188, .350, .455], abs=PUBLISHED)


def test_second_purchases_by_country_of_online_retail():
    tables = online_retail()
    rows = second_purchase_by_source(tables.member_days, tables.orders, "2010-12-01", "2011-09-10", "2011-12-10")
    assert rows.groupby("days").second.sum().tolist() == [635, 1179, 1533]
    assert rows.source.iloc[0] == "United Kingdom"


def test_triangle_of_online_retail():
    triangle = cohort_triangle(online_retail().member_days, "2011-12-10")
    first = triangle[triangle.cohort == "2010-12"].set_index("age")
    assert first.members[0] == 885
    assert first.share[[1, 11]].tolist() == pytest.approx([.3661, .5028], abs=5e-5)
    assert triangle[~triangle.complete].period.unique().tolist() == ["2011-12"]
    assert triangle[triangle.age == 0].members.sum() == 4338


def test_repurchase_of_online_retail():
    november = repurchase_by_month(online_retail().member_days, "2011-12-01").set_index("period").loc["2011-11"]
    assert november[["buyers", "repeat_buyers", "previous_buyers", "returning"]].tolist() == [1664, 443, 1364, 622]
    assert [november.repeat_rate, november.repurchase_rate] == pytest.approx([.266, .456], abs=PUBLISHED)


LOG = [Order(m, d, 100 + d, "shop" if d % 2 else "app", after, 1.)
       for m, days in {"a": (3, 20, 41, 60), "b": (5, 9), "c": (40,), "d": (2, 58), "e": (30, 31, 50)}.items()
       for d, after in zip(days, (None, 30, None, 2), strict=False)]
MEASURES = {
    "second": lambda t, as_of: second_purchase(t.member_days, on(0), on(90), as_of, (10, 30)),
    "source": lambda t, as_of: second_purchase_by_source(t.member_days, t.orders, on(0), on(90), as_of, days=(10,)),
    "triangle": lambda t, as_of: cohort_triangle(t.member_days, as_of, "week"),
    "monthly": lambda t, as_of: repurchase_by_month(t.member_days, as_of)}


@lru_cache
def _variants(day):
    "The log whole, cut at a day, and poisoned from it on."
    lines = lines_of(LOG)
    return [Tables(t, engine()) for t in (lines, lines[lines.local_date < on(day)], poisoned(lines, on(day)))]


def _same(measure, day):
    full, *others = (MEASURES[measure](t, on(day)) for t in _variants(day))
    return all(full.equals(o) for o in others)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("day", [41, 61])
def test_the_future_is_not_known(measure, day): assert _same(measure, day)


@pytest.mark.parametrize("measure", MEASURES)
def test_and_these_tests_see_it_where_the_filter_is_gone(measure, monkeypatch):
    monkeypatch.setattr(cohorts, "known", lambda table, as_of, ends=None: table)
    assert not _same(measure, 41)


def test_weeks_start_on_monday_and_years_follow_iso():
    days = tables_of([Order("a", 0, 100, "app", None, 0.), Order("a", 1, 100, "app", None, 0.)]).member_days
    weeks = cohort_triangle(days, "2017-01-10", "week")    # 2017-01-01 is the Sunday of 2016's last week
    assert weeks.cohort.unique().tolist() == ["2016W52"]
    assert weeks[["period", "active", "complete"]].values.tolist() == [
        ["2016W52", 1, True], ["2017W01", 1, True], ["2017W02", 0, False]]


def test_left_censored_members_leave_the_rates():
    days = tables_of(LOG).member_days
    assert second_purchase(days, on(0), on(60), on(80), (10,), washout_end=on(3)).members.tolist() == [4]   # d began on day 2
    triangle = cohort_triangle(days, on(80), washout_end=on(15))
    assert triangle.groupby("cohort").left_censored.first().to_dict() == {"2017-01": True, "2017-02": False}


@pytest.mark.parametrize("change, rule", [(dict(by="shop"), "by must be one of"), (dict(days=(0,)), "days must be whole"),
                                          (dict(end="2017-01-01", start="2017-02-01"), "end after it starts")])
def test_wrong_questions(change, rule):
    tables = tables_of(LOG)
    usual = dict(member_days=tables.member_days, orders=tables.orders, start=on(0), end=on(60), as_of=on(80))
    with pytest.raises(ParameterError, match=rule): second_purchase_by_source(**usual | change)


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.filterwarnings("error:Glyph")
def test_cohorts_are_drawn(lang, tmp_path):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    triangle = cohort_triangle(tables_of(LOG).member_days, on(80))
    ax = plot_cohorts(triangle, lang)
    ax.figure.savefig(tmp_path / "cohorts.png")
    assert len(ax.texts) == len(triangle)
    plot_cohorts(cohort_triangle(tables_of(LOG[:1]).member_days, on(5), "quarter"), lang).figure.savefig(tmp_path / "one.png")
