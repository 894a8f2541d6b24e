"Calibrated parameters, against numpy, the repurchase cycle, cut and poisoned worlds and planted heaps."
import sys
from datetime import date, timedelta
from functools import cache
from random import Random

import ibis
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tag_world import AS_OF, cut, in_engine, poison, tables

import memtag_research.tags.calibrate as calibrate
import memtag_research.tags.rows as rows_module
from memtag_research.core import DefinitionError, NotComputable, ParameterError
from memtag_research.data.engine import as_table, connect, cut_points, to_frame
from memtag_research.measures.metrics import repurchase_cycle
from memtag_research.tags.calibrate import Calibrated, cluster_expression, fit_centres, freeze_date, gap_counts, resolve_parameters
from memtag_research.tags.definition import Catalogue, ClusterTag, Metric, Parameter, QuantileTag, Source
from memtag_research.tags.rows import Known, metric_columns

SOURCES = {s.name: s for s in [Source(name="orders", table="orders", where="is_null(cancelled_date)"), Source(name="events", table="events")]}
METRICS = {m.name: m for m in [
    Metric(name="spend", source="orders", agg="sum", of="net_cents", days=365), Metric(name="orders_n", source="orders", agg="count", days=365),
    Metric(name="mean_cents", source="orders", agg="mean", of="net_cents", days="all"), Metric(name="recency", source="orders", agg="days_since_last", days="all"),
    Metric(name="clicks", source="events", agg="count", days=90)]}
GAPS = dict(calibrate="gap_quantile", of="orders", min_n=20)
PARAMETERS = {p.name: p for p in [
    Parameter(name="G50", q=.5, **GAPS), Parameter(name="D1", q=.9, **GAPS), Parameter(name="G37", q=.37, freeze="never", days=100, **GAPS),
    Parameter(name="D2", expr="2 * D1"), Parameter(name="most", expr="max(D2, D1 + 5) + K"), Parameter(name="K", value=4),
    Parameter(name="rich", calibrate="quantile", of="spend", q=.8, among="orders_n > 0", min_n=20),
    Parameter(name="usual", calibrate="mean", of="mean_cents", min_n=20, freeze="monthly"),
    Parameter(name="quick", calibrate="quantile", of="recency", q=.25, among="recency <= D1", min_n=10, freeze="yearly"),
    Parameter(name="G90_clickers", q=.9, among="clicks > 0 and orders_n > K", **GAPS)]}
TAGS = {t.name: t for t in [
    QuantileTag(name="level", metric="spend", values=["low", "mid", "high"], shares=[.5, .8], among="orders_n > 0", freeze="quarterly"),
    QuantileTag(name="each", metric="spend / orders_n", values=["a", "b", "c", "d"], freeze="monthly"),
    QuantileTag(name="moving", metric="spend", values=["low", "high"]),
    ClusterTag(name="kind", metrics=["orders_n", "mean_cents / 100"], values=["rare", "some", "often"], among="orders_n > 0")]}
CATALOGUE = Catalogue(sources=SOURCES, metrics=METRICS, parameters=PARAMETERS, tags=TAGS)


@cache
def world(which):
    raw = tables()
    start = freeze_date(AS_OF, "quarterly")
    made = {"whole": lambda: raw, "cut": lambda: cut(raw, AS_OF), "poison": lambda: poison(raw, AS_OF),
            "cut at the start": lambda: cut(raw, start), "poison at the start": lambda: poison(raw, start)}
    return in_engine(made[which]())


def metrics_of(tables_, catalogue=CATALOGUE, calls=None):
    def table(names, day):
        if calls is not None: calls.append((tuple(names), day))
        return metric_columns(Known(tables_, day), [catalogue.metrics[n] for n in names], catalogue.sources)
    return table


def resolved(tables_, as_of=AS_OF, catalogue=CATALOGUE, **more):
    return resolve_parameters(catalogue, tables_, as_of, metrics_of(tables_, catalogue), **more)


def frame_at(day, tables_=None):
    "Metrics at a date, in pandas."
    return to_frame(metrics_of(tables_ or world("whole"))(list(METRICS), day)).set_index("member_id")


def gaps_by_hand(day, days=730, members=None):
    "Days between consecutive purchase days, by pandas from the orders."
    rows = world("whole")["orders"].to_pyarrow().to_pandas(date_as_object=True)
    rows = rows[rows.member_id.notna() & (rows.local_date < day) & (rows.local_date >= day - timedelta(days))]
    rows = rows[rows.cancelled_date.isna() | (rows.cancelled_date.map(lambda d: d is not None and d >= day))]
    if members is not None: rows = rows[rows.member_id.isin(members)]
    days_ = rows[["member_id", "local_date"]].drop_duplicates().sort_values(["member_id", "local_date"])
    gaps = pd.to_datetime(days_.local_date).groupby(days_.member_id).diff().dropna()
    return gaps.dt.days.to_numpy()


def discrete(values, q): return np.quantile(np.asarray(values), q, method="inverted_cdf")


# Dates

@given(st.dates(date(1999, 1, 1), date(2040, 12, 31)))
@settings(max_examples=200, deadline=None)
def test_freeze_dates_are_starts_of_periods(day):
    for freeze, period in (("monthly", "M"), ("quarterly", "Q"), ("yearly", "Y")):
        assert freeze_date(day, freeze) == pd.Period(day, period).start_time.date()
    assert freeze_date(day, "never") == day


def test_a_freeze_that_nobody_knows():
    with pytest.raises(ParameterError, match="Did you mean 'monthly'"): freeze_date(AS_OF, "montly")


# Numbers

def test_gaps_give_the_repurchase_cycle():
    "The same three numbers as the measure of that name, at several dates."
    for day in (date(2023, 9, 1), AS_OF, date(2024, 7, 1)):
        cycle = repurchase_cycle(world("whole")["orders"], day, min_gaps=10)
        found = {q: resolved(world("whole"), day, Catalogue(sources=SOURCES, parameters={"p": Parameter(name="p", q=q, freeze="never", **GAPS)}))["p"]
                 for q in (.5, .8, .9)}
        assert [c.value for c in found.values()] == [cycle.g50, cycle.g80, cycle.g90]
        assert {c.n for c in found.values()} == {cycle.gaps}


def test_online_retail_has_its_published_rhythm(online_retail):
    from memtag_research.data.workspace import open_workspace
    ws = open_workspace(online_retail)
    one = Catalogue(sources=SOURCES, parameters={f"g{q}": Parameter(name=f"g{q}", calibrate="gap_quantile", of="orders", q=q / 100, freeze="never")
                                                 for q in (50, 80, 90)})
    assert [c.value for c in resolve_parameters(one, ws, "2011-12-10", None).values()] == [28, 70, 110]


def test_every_parameter_equals_numpy():
    found, start, month, year = resolved(world("whole")), date(2024, 1, 1), date(2024, 3, 1), date(2024, 1, 1)
    at, by_month, by_year = frame_at(start), frame_at(month), frame_at(year)
    d1 = discrete(gaps_by_hand(start), .9)
    buyers = at[at.orders_n > 0]
    clickers = at.index[(at.clicks > 0) & (at.orders_n > 4)]
    each = (by_month.spend / by_month.orders_n.replace(0, np.nan)).dropna()
    want = {"G50": discrete(gaps_by_hand(start), .5), "D1": d1, "G37": discrete(gaps_by_hand(AS_OF, 100), .37), "D2": 2 * d1, "K": 4,
            "most": max(2 * d1, d1 + 5) + 4, "rich": discrete(buyers.spend, .8), "usual": by_month.mean_cents.mean(),
            "quick": discrete(by_year.recency[by_year.recency <= d1], .25), "G90_clickers": discrete(gaps_by_hand(start, members=clickers), .9)}
    for name, value in want.items(): assert found[name].value == pytest.approx(value, rel=1e-12), name
    assert found["level.cuts"].value == [discrete(buyers.spend, q) for q in (.5, .8)]
    assert found["each.cuts"].value == pytest.approx([discrete(each, q) for q in (.25, .5, .75)], rel=0)
    assert "moving.cuts" not in found and set(found) == {*PARAMETERS, "level.cuts", "each.cuts", "kind.centres"}
    assert (found["D1"].at, found["usual"].at, found["G37"].at, found["K"].at) == (start, month, AS_OF, None)
    assert (found["rich"].n, found["D1"].n) == (len(buyers), len(gaps_by_hand(start))) and not any(c.note for c in found.values())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-5, 5), min_size=1, max_size=30), st.sampled_from([.1, .2, .3, .5, .7, .9, .99, 1 / 3]))
def test_quantiles_are_those_of_numpy(values, q):
    got = calibrate._quantile(np.sort(np.array(values)), q)
    assert got == discrete(values, q) or q * len(values) % 1 < 1e-9     # there numpy's own float decides; the next test has the fractions
    assert got in values and sum(v <= got for v in values) >= q * len(values) - 1e-9 and sum(v < got for v in values) < q * len(values) + 1e-9


def test_cut_points_are_those_of_the_engine():
    x = np.array([Random(3).choice([1, 2, 2, 3, 9, 10, 40]) for _ in range(97)])
    t = as_table(pd.DataFrame({"x": x}))
    for shares in ([.1, .3, .7], [.2, .4, .6, .8], [.05, .95]):
        assert [calibrate._quantile(np.sort(x), s) for s in shares] == cut_points(t.x, shares=shares)


# Time

def plain(found): return {n: (c.value, c.n) for n, c in found.items()}


def test_what_is_frozen_stays_for_its_period():
    first = resolved(world("whole"), date(2024, 1, 1))
    for day in (date(2024, 2, 29), date(2024, 3, 31)):
        later = resolved(world("whole"), day)
        for name in ("D1", "D2", "rich", "level.cuts", "kind.centres", "quick", "G90_clickers"):
            assert later[name].value == first[name].value and later[name].at == first[name].at, name
        assert later["usual"].at == day.replace(day=1)
    assert resolved(world("whole"), date(2024, 4, 1))["D1"].at == date(2024, 4, 1)
    assert resolved(world("whole"), date(2024, 4, 1))["rich"].value != first["rich"].value


def test_cut_and_poisoned_worlds_calibrate_alike(monkeypatch):
    whole = plain(resolved(world("whole")))
    assert whole == plain(resolved(world("cut"))) == plain(resolved(world("poison")))
    quarterly = ("G50", "D1", "D2", "rich", "quick", "G90_clickers", "level.cuts", "kind.centres")
    for which in ("cut at the start", "poison at the start"):       # what comes after the freeze does not matter either
        assert {n: v for n, v in plain(resolved(world(which))).items() if n in quarterly} == {n: whole[n] for n in quarterly}
    monkeypatch.setattr(rows_module, "known", lambda table, as_of, ends=None: table)
    without = {which: plain(resolved(world(which))) for which in ("whole", "cut", "poison")}
    for name in ("D1", "rich", "usual", "level.cuts", "kind.centres", "G37"):
        assert without["poison"][name] != whole[name] and without["whole"][name] != whole[name], name


def test_order_of_rows_and_threads_do_not_matter():
    con, shuffled = connect(threads=1), {}
    for name in ("orders", "events", "members", "member_days"):
        frame = world("whole")[name].to_pyarrow()
        order = list(range(frame.num_rows))
        Random(name).shuffle(order)
        shuffled[name] = con.create_table(f"shuffled_{name}", frame.take(order))
    assert plain(resolved(shuffled)) == plain(resolved({n: world("whole")[n] for n in shuffled}))


# Too few, missing, given

def one(**parameter): return Catalogue(sources=SOURCES, metrics=METRICS, parameters={"p": Parameter(name="p", **parameter)})


def test_too_few_values_are_taken_at_as_of_or_fall_back():
    asked = dict(calibrate="quantile", of="spend", among="orders_n > 0", q=.5)
    early = date(2023, 1, 20)                       # on 1 January 2023 nobody had bought
    found = resolved(world("whole"), early, one(min_n=5, **asked))["p"]
    assert found.at == early and found.n >= 5 and found.note == f"0 values at 2023-01-01, and 5 are needed; taken at {early} instead"
    found = resolved(world("whole"), early, one(min_n=5000, fallback=777, **asked))["p"]
    assert (found.value, found.fallback, found.at) == (777, True, None) and "the fallback is taken" in found.note
    found = resolved(world("whole"), early, one(min_n=5000, **asked))["p"]
    assert found.value is None and "there is no fallback" in found.note
    gaps = resolved(world("whole"), early, one(min_n=5000, calibrate="gap_quantile", of="orders", q=.9, fallback=60))["p"]
    assert gaps.value == 60 and gaps.fallback and "5,000 are needed" in gaps.note


def test_a_missing_table_is_a_note_and_spares_the_others():
    few = {n: world("whole")[n] for n in ("orders", "members")}
    found = resolved(few)
    assert found["G90_clickers"].value is None and "events" in found["G90_clickers"].note
    assert found["rich"].value == resolved(world("whole"))["rich"].value
    dependent = Catalogue(sources=SOURCES, metrics=METRICS, parameters={
        "a": Parameter(name="a", calibrate="quantile", of="clicks", q=.5), "b": Parameter(name="b", expr="a + 1"), "c": Parameter(name="c", expr="2 * b")})
    found = resolved(few, catalogue=dependent)
    assert [found[n].value for n in "abc"] == [None] * 3 and "events" in found["c"].note


def test_given_values_are_not_touched():
    calls = []
    given_ = {"D1": Calibrated("D1", 33, date(2020, 1, 1), 7, "by hand"), "rich": 5, "level.cuts": [1, 2], "each.cuts": [1, 2, 3],
              "kind.centres": {"means": [0, 0]}, "usual": 1.5, "quick": 3, "G90_clickers": 8}
    found = resolve_parameters(CATALOGUE, world("whole"), AS_OF, metrics_of(world("whole"), calls=calls), given_)
    assert found["D1"] is given_["D1"] and [found[n].value for n in ("D2", "rich", "level.cuts")] == [66, 5, [1, 2]]
    assert calls == []                              # nothing was looked up


def test_metrics_of_a_date_are_asked_for_once():
    calls = []
    resolve_parameters(CATALOGUE, world("whole"), AS_OF, metrics_of(world("whole"), calls=calls))
    assert len(calls) == 4, calls   # two dates; D1 first for `quick`; members of one gap parameter


def test_circles_and_unknown_sources_are_refused():
    circle = Catalogue(parameters={"a": Parameter(name="a", expr="b + 1"), "b": Parameter(name="b", expr="a + 1")})
    with pytest.raises(DefinitionError, match="circle: a, b"): resolve_parameters(circle, {}, AS_OF, None)
    with pytest.raises(DefinitionError, match="Did you mean 'orders'"): resolved(world("whole"), catalogue=one(calibrate="gap_quantile", of="order", q=.5))


# Clusters

def heaps(seed=0, n=300):
    "Three heaps far apart, in units that differ a thousandfold."
    draw = np.random.default_rng(seed)
    middle = np.array([[1, 90_000], [2, 1_000], [30, 40_000]])
    which = np.arange(n) % 3
    points = middle[which] * (1 + draw.normal(0, .05, (n, 2)))
    return pd.DataFrame(points, columns=["orders", "cents"], index=[f"m{i}" for i in range(n)]), which


def test_planted_heaps_are_found_and_ordered_by_the_first_metric():
    points, which = heaps()
    centres = fit_centres(points, 3)
    table = as_table(points.reset_index(names="member_id"))
    found = to_frame(table.select("member_id", c=cluster_expression(centres, [table.orders, table.cents]))).set_index("member_id").c
    assert (found.loc[points.index].to_numpy() == which).all()
    assert [c[0] for c in centres["centres"]] == sorted(c[0] for c in centres["centres"])
    assert centres == fit_centres(points.sample(frac=1, random_state=5), 3) == fit_centres(points.rename(index=lambda m: "x" + m), 3)
    assert fit_centres(points, 3, seed=1)["means"] == centres["means"]


def test_equal_members_and_few_members():
    points = pd.DataFrame({"a": [1, 1, 2], "b": [5, 5, 5]}, index=list("xyz"))
    assert fit_centres(points, 2)["scales"][1] == 1
    with pytest.raises(NotComputable, match="at least 3 different members, and there are 2"): fit_centres(points, 3)
    assert fit_centres(points, 1)["centres"] == [[0, 0]]


def test_a_large_programme_is_sampled_by_member(monkeypatch):
    points, _ = heaps(n=400)
    monkeypatch.setattr(calibrate, "MOST_POINTS", 50)
    some = calibrate._sample(points, 50)
    assert set(some.index) == set(calibrate._sample(points.sample(frac=1, random_state=2), 50).index) and len(some) == 50


def test_without_scikit_learn_it_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(NotComputable, match=r"memtag_research\[models\]"): fit_centres(heaps()[0], 3)
    found = resolved(world("whole"))["kind.centres"]
    assert found.value is None and "scikit-learn" in found.note
    with pytest.raises(NotComputable): cluster_expression(found.value, [])


def nearest(centres, rows):
    "Numbers of nearest centres by numpy; None where a metric is null."
    z = (rows - np.array(centres["means"])) / np.array(centres["scales"])
    away = ((z[:, None, :] - np.array(centres["centres"])[None]) ** 2).sum(axis=2)
    return [None if np.isnan(a).any() else int(np.argmin(a)) for a in away]


def test_clusters_on_both_engines_equal_numpy(spark):
    "Ties to the lower centre, nulls to null; and gaps are the same on Spark."
    draw = np.random.default_rng(4)
    frame = pd.DataFrame({"member_id": [f"m{i:04}" for i in range(600)], "x": draw.integers(-4, 5, 600).astype("float64"), "y": draw.integers(-4, 5, 600) / 2})
    frame.loc[::17, "x"] = np.nan
    frame.loc[::29, "y"] = np.nan
    centres = {"means": [0, 0], "scales": [2, 1], "centres": [[-1, 0], [1, 0], [1, 0], [0, 2]]}
    want = nearest(centres, frame[["x", "y"]].to_numpy())
    for con in (connect(), spark):
        t = as_table(frame, con)
        x, y = (ibis.ifelse(c.isnan(), None, c) for c in (t.x, t.y))
        got = to_frame(t.select("member_id", c=cluster_expression(centres, [x, y])).order_by("member_id")).c
        assert [None if pd.isna(c) else int(c) for c in got] == want
    assert {0, 1, 3, None} == set(want)               # the second of two equal centres takes nobody
    with pytest.raises(ParameterError, match="of 2 metrics, and 1"): cluster_expression(centres, [t.x])
    source, there = SOURCES["orders"], in_engine({n: t for n, t in cut(tables(), AS_OF).items() if n == "order_lines"}, spark)
    pd.testing.assert_frame_equal(gap_counts(Known(there, AS_OF), source), gap_counts(Known(world("cut"), AS_OF), source), check_dtype=False)


# Values given by hand

def test_values_given_by_hand_are_names_that_are_read_and_values_that_can_be():
    from memtag_research.tags.calibrate import check_given
    from memtag_research.tags.compile import compile_many, compile_tags, workings
    ways = [lambda given: compile_tags(CATALOGUE, world("whole"), AS_OF, ["level"], parameters=given),
            lambda given: list(compile_many(CATALOGUE, world("whole"), [AS_OF], ["level"], parameters=given)),
            lambda given: workings(CATALOGUE, world("whole"), AS_OF, "level", given)]
    for way in ways:
        with pytest.raises(ParameterError, match=r"there is no parameter 'richh' to give a value to\. Did you mean 'rich'\?"): way({"richh": 3})
        with pytest.raises(ParameterError, match=r"Did you mean 'level.cuts'"): way({"level.cut": [1, 2]})
    level, kind = CATALOGUE.tags["level"], CATALOGUE.tags["kind"]
    k, n = len(kind.values), len(kind.metrics)
    good = {"D1": 33, "rich": 5.5, "level.cuts": list(range(len(level.values) - 1)),
            "kind.centres": {"means": [0] * n, "scales": [1.] * n, "centres": [[0] * n] * k}, "usual": Calibrated("usual", None)}
    check_given(CATALOGUE, good)
    check_given(CATALOGUE, None)
    fitted = good["kind.centres"]
    for name, value, says in [
            ("D1", -1, "0 or more days"), ("D1", "60", "a finite number"), ("D1", True, "a finite number"), ("rich", float("nan"), "a finite number"),
            ("rich", float("inf"), "a finite number"), ("rich", None, "a finite number"), ("rich", [1], "a finite number"),
            ("level.cuts", [2, 1], "rising numbers"), ("level.cuts", [1], "rising numbers"), ("level.cuts", 3, "rising numbers"),
            ("kind.centres", {}, "means and scales"), ("kind.centres", fitted | {"scales": [0] * n}, "means and scales"),
            ("kind.centres", fitted | {"centres": [[0] * n]}, "means and scales")]:
        with pytest.raises(ParameterError, match=f"{name} must be .*{says}"): check_given(CATALOGUE, {name: value})
    some = Catalogue(parameters={p.name: p for p in (Parameter(name="word", value="a"), Parameter(name="yes", value=True))})
    check_given(some, {"word": "b", "yes": False})
    for given_ in ({"word": 1}, {"yes": 1}):
        with pytest.raises(ParameterError, match="must be (a text|true or false)"): check_given(some, given_)
