"""Probes of what differs between engines: each function of `data.engine`, on DuckDB and on PySpark, on data with nulls."""

from datetime import date, datetime

import ibis
import pandas as pd
import pytest

from memtag_research.core import ParameterError
from memtag_research.data.engine import as_table, connect, cut_points, days_between, known, squeezed, to_frame, to_local, to_utc, total


@pytest.fixture(params=["duckdb", "pyspark"])
def con(request):
    return connect() if request.param == "duckdb" else request.getfixturevalue("spark")


def test_nullable_integers_and_texts_survive(con):
    frame = pd.DataFrame({"a": pd.array([1, None, 3], dtype="Int64"), "s": ["x", None, ""]})
    t = as_table(frame, con)
    got = to_frame(t.aggregate(sum=t.a.sum(), nulls=t.a.isnull().sum(), texts=t.s.count(), empty=(t.s == "").sum()))
    assert got.iloc[0].tolist() == [4, 1, 2, 1]


def test_session_is_utc_and_times_are_microseconds(con):
    moment = datetime(2017, 3, 12, 7, 30, 15, 123456)
    t = as_table(pd.DataFrame({"ts": [moment, None]}), con)
    assert to_frame(t.filter(t.ts.notnull())).ts.iloc[0] == pd.Timestamp(moment)
    assert to_frame(t.select(hour=t.ts.hour())).hour.iloc[0] == 7


@pytest.mark.parametrize("zone, utc, clock", [
    ("America/New_York", datetime(2017, 7, 1, 3, 30), datetime(2017, 6, 30, 23, 30)),   # summer time
    ("America/New_York", datetime(2018, 1, 1, 4, 59), datetime(2017, 12, 31, 23, 59)),  # winter time
    ("Asia/Shanghai", datetime(2017, 12, 31, 16, 0), datetime(2018, 1, 1, 0, 0)),
])
def test_zones_agree_with_the_standard_library(con, zone, utc, clock):
    from zoneinfo import ZoneInfo
    assert utc.replace(tzinfo=ZoneInfo("UTC")).astimezone(ZoneInfo(zone)).replace(tzinfo=None) == clock
    t = as_table(pd.DataFrame({"ts": [utc]}), con)
    local = t.select(ts=to_local(t.ts, zone, con.name))
    assert to_frame(local).ts.iloc[0] == pd.Timestamp(clock)
    assert to_frame(local.select(ts=to_utc(local.ts, zone, con.name))).ts.iloc[0] == pd.Timestamp(utc)


def test_days_between_are_calendar_days(con):
    pairs = [(date(2016, 2, 28), date(2016, 3, 1)), (date(2017, 12, 31), date(2018, 1, 1)), (date(1969, 12, 30), date(1970, 1, 2)), (None, date(2018, 1, 1))]
    t = as_table(pd.DataFrame(pairs, columns=["a", "b"]), con)
    got = to_frame(t.filter(t.a.notnull()).select(t.a, d=days_between(t.b, t.a)).order_by("a")).d.tolist()
    assert got == sorted((b - a).days for a, b in pairs if a) or got == [(b - a).days for a, b in sorted(p for p in pairs if p[0])]
    assert to_frame(t.filter(t.a.isnull()).select(d=days_between(t.b, t.a))).d.isna().all()


def test_known_hides_the_future(con):
    frame = pd.DataFrame({"local_date": [date(2017, 1, 1), date(2017, 1, 2), date(2017, 1, 3)],
                          "cancelled_date": [date(2017, 1, 2), date(2017, 1, 3), None]})
    got = to_frame(known(as_table(frame, con), "2017-01-03").order_by("local_date"))
    assert got.local_date.dt.day.tolist() == [1, 2]
    assert got.cancelled_date.notna().tolist() == [True, False]


def test_sums_of_whole_numbers_are_exact(con):
    t = as_table(pd.DataFrame({"c": [2**53, 1, None]}, dtype="Int64"), con)
    assert to_frame(t.aggregate(s=total(t.c))).s.iloc[0] == 2**53 + 1


def test_cut_points_are_values_of_the_data_whatever_the_order(con):
    values = [3, 1, 2, 2, 2, 5, 9, 9, 4, None]
    t = as_table(pd.DataFrame({"v": pd.array(values, dtype="Int64")}), con)
    assert [int(v) for v in cut_points(t.v, 5)] == [2, 2, 4, 9]   # by hand: 1 2 2 2 3 4 5 9 9, counts 1 4 5 6 7 9 of 9


def test_division_by_nullif_is_null(con):
    t = as_table(pd.DataFrame({"a": [1], "b": [0]}), con)
    assert to_frame(t.select(r=t.a / t.b.nullif(0))).r.isna().all()


def test_spaces_go_and_letters_stay(con):
    texts = ["f", "v", " fv ", "\tx y", "\u3000", "", None]
    t = as_table(pd.DataFrame({"t": pd.array(texts, dtype="string")}), con)
    got = to_frame(t.select("t", s=squeezed(t.t), padded=t.t.re_search(r"^\s|\s$")))
    assert got.s.fillna("null").tolist() == ["f", "v", "fv", "xy", "", "", "null"]
    assert got.padded.fillna(False).tolist()[:4] == [False, False, True, True]


def test_unknown_engine_has_a_hint():
    with pytest.raises(ParameterError, match="Did you mean 'pyspark'"): connect("spark")


def test_as_table_refuses_what_is_no_table():
    with pytest.raises(ParameterError, match="not list"): as_table([1, 2])
    assert isinstance(as_table(pd.DataFrame({"a": [1]})), ibis.Table)
