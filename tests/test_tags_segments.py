"""Segments against pandas and plain Python, on a simulated programme with holes; draws against what they promise."""

import json
import math
import re
from dataclasses import replace

import duckdb
import ibis
import numpy as np
import pandas as pd
import pytest
import tag_world as world
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memtag_research.cli import main
from memtag_research.core import DefinitionError, MemtagError, NotComputable, ParameterError
from memtag_research.data.engine import as_table, connect
from memtag_research.data.privacy import KeyMap
from memtag_research.data.workspace import open_workspace
from memtag_research.tags.catalogues import read_catalogue, write_catalogue
from memtag_research.tags.definition import Catalogue, Segment
from memtag_research.tags.draws import count_interval, is_drawn
from memtag_research.tags.export import consent_reasons
from memtag_research.tags.expression import evaluate, parse
from memtag_research.tags.rules import from_logic, register_segment, rule, segment_parts, tag, to_logic
from memtag_research.tags.runs import take_snapshot
from memtag_research.tags.segment_files import save_segment, with_members
from memtag_research.tags.segments import Audience, eligible, estimate_size, evaluate_segment, explain_member, hold_out, overlap

AS_OF = world.AS_OF
CATALOGUE = """
sources:
  orders: {table: orders, where: is_null(cancelled_date)}
  people: {table: members}
  lines: {table: order_lines, join: {products: product_id}}
metrics:
  orders_90d: {source: orders, agg: count, days: 90}
  orders_all: {source: orders, agg: count, days: all}
  spend_365d: {source: orders, agg: sum, of: net_cents, days: 365}
  recency_days: {source: orders, agg: days_since_last, days: all}
  age_years: {source: people, agg: max, of: "years(as_of, birth_date)", days: all}
tags:
  frequent: {class: behaviour, kind: flag, title: {en: Frequent, zh: 高频}, when: orders_90d >= 2}
  minor: {class: compliance, kind: flag, title: {en: Minor, zh: 未成年}, when: age_years < 14}
  adult: {class: basic, kind: flag, title: {en: Adult, zh: 成年}, when: age_years >= 18, support: not is_null(age_years)}
  band: {class: basic, kind: column, title: {en: Band, zh: 年龄段}, from: members.age_band}
  stage:
    class: lifecycle
    kind: rules
    title: {en: Stage, zh: 阶段}
    values: {prospect: orders_all == 0, lost: recency_days > 120, buying: else}
    labels: {lost: {en: Gone, zh: 流失}}
  level:
    {class: consumption, kind: quantile, title: {en: Level, zh: 层级}, metric: spend_365d, values: [low, mid, high], among: orders_all > 0}
segments:
  quiet: {where: stage == 'lost' or stage == 'prospect'}
  target: {where: "frequent and level in ('mid', 'high')", minus: [minor, quiet]}
  wide: {where: target or not quiet}
"""


TEXTS = """  likes:
    {class: interest, kind: affinity, title: {en: Likes, zh: 偏好}, source: lines, by: products.category, days: all, min_tgi: 100, min_rows: 2, top: 3}
"""


@pytest.fixture(scope="module")
def catalogue(): return read_catalogue(CATALOGUE)


@pytest.fixture(scope="module")
def ws(tmp_path_factory): return open_workspace(world.as_workspace(world.tables(), tmp_path_factory.mktemp("segments") / "ws"))


@pytest.fixture(scope="module")
def all_of(ws, catalogue):
    "An audience whose table holds every tag and metric, computed once."
    every = " and ".join(f"(is_null({m}) or {m} >= 0)" for m in catalogue.metrics)
    return evaluate_segment(ws, catalogue, every, AS_OF, also=list(catalogue.tags))


@pytest.fixture(scope="module")
def values(all_of, catalogue):
    "Every tag and metric of every member, as plain rows."
    frame = all_of.values(*catalogue.tags, *catalogue.metrics).astype(object)
    return {r["member_id"]: r for r in frame.where(frame.notna(), None).to_dict("records")}


@pytest.fixture(scope="module")
def quick(all_of, catalogue):
    "Segment → ids, over the table of `all_of` as it was computed once."
    names = ["member_id", *catalogue.tags, *catalogue.metrics]
    table = as_table(all_of.base.table.select(names).to_pandas(), connect(threads=1))

    def members(segment):
        made, segment = register_segment(catalogue, segment)
        return Audience(segment, AS_OF, made, {}, all_of.base._replace(table=table)).members().member_id.tolist()
    return members


def ids(ws, catalogue, segment, **more): return evaluate_segment(ws, catalogue, segment, AS_OF, **more).members().member_id.tolist()


def by_hand(values, text):
    "Members for whom a rule is true, by the plain evaluator."
    return sorted(m for m, row in values.items() if evaluate(parse(text), row, AS_OF) is True)


def test_the_metrics_are_those_of_pandas(ws, values):
    "So that what follows rests on something: two metrics and a tag from the raw tables."
    orders = ws.table("orders").execute()
    cancelled = pd.to_datetime(orders.cancelled_date) < pd.Timestamp(AS_OF)
    orders = orders[(pd.to_datetime(orders.local_date) < pd.Timestamp(AS_OF)) & ~cancelled & orders.member_id.notna()]
    days = (pd.Timestamp(AS_OF) - pd.to_datetime(orders.local_date)).dt.days
    n90, n_all = (orders[days <= w].groupby("member_id").size() for w in (90, 10**6))
    for member, row in values.items():
        assert row["orders_90d"] == n90.get(member, 0) and row["frequent"] == (n90.get(member, 0) >= 2)
        assert (row["stage"] == "prospect") == (n_all.get(member, 0) == 0)
    assert {row["stage"] for row in values.values()} == {"prospect", "lost", "buying"} and None in {row["adult"] for row in values.values()}


def test_segments_of_the_catalogue(ws, catalogue, values):
    quiet = {m for m, r in values.items() if r["stage"] in ("lost", "prospect")}
    target = {m for m, r in values.items() if r["frequent"] and r["level"] in ("mid", "high") and r["minor"] is not True} - quiet
    assert ids(ws, catalogue, "quiet") == sorted(quiet) and ids(ws, catalogue, "target") == sorted(target)
    assert ids(ws, catalogue, "wide") == sorted(target | (values.keys() - quiet))
    assert target and quiet and len(target | quiet) < len(values)


RULES = st.sampled_from([
    tag("frequent"), tag("adult"), tag("minor"), tag("stage") == "lost", tag("stage") != "lost", tag("level").isin(["mid", "high"]),
    tag("band").isin(["25-34", "35-44"]), tag("adult").is_null(), tag("recency_days") > 60, tag("spend_365d") / tag("orders_90d") > 5_000,
    tag("orders_90d") < tag("orders_all"), tag("age_years") >= 30, tag("quiet"), rule("30 < recency_days <= 200")])
TREES = st.recursive(RULES, lambda inner: st.one_of(st.tuples(inner, inner).map(lambda p: p[0] & p[1]),
                                                    st.tuples(inner, inner).map(lambda p: p[0] | p[1]), inner.map(lambda r: ~r)), max_leaves=5)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TREES, TREES)
def test_rules_are_kleene_logic_over_members(quick, values, one, two):
    "Against the plain evaluator; De Morgan; every member true, false or unknown, exactly one of these."
    rows = {m: row | {"quiet": row["stage"] in ("lost", "prospect")} for m, row in values.items()}
    text = (one & two).text
    assert quick(one & two) == by_hand(rows, text)
    assert quick(~(one & two)) == quick(~one | ~two)
    parts = [set(quick(r)) for r in (one, ~one, rule(f"is_null({one.text})"))]
    assert sum(map(len, parts)) == len(values) and set.union(*parts) == set(values)


def test_set_operations_are_those_of_sets(ws, catalogue):
    a, b = (evaluate_segment(ws, catalogue, r, AS_OF) for r in ("target", "adult"))
    one, two = (set(x.members().member_id) for x in (a, b))
    assert set((a | b).members().member_id) == one | two and set((a & b).members().member_id) == one & two
    assert set((a - b).members().member_id) == one - two and set(((a | b) - (a & b)).members().member_id) == one ^ two
    with pytest.raises(ParameterError, match="one workspace and date"): a | evaluate_segment(ws, catalogue, "adult", "2024-01-01")


def test_time_is_filtered(ws, catalogue, tmp_path):
    "What comes after `as_of` changes nobody's segment, where the compiler's filter does its work."
    for made in (world.cut(world.tables(), AS_OF), world.poison(world.tables(), AS_OF)):
        other = world.in_engine(made)
        for segment in ("target", "wide", "adult or recency_days > 90"): assert ids(other, catalogue, segment) == ids(ws, catalogue, segment)


def test_names_in_python_and_text_are_one_rule():
    built = (tag("vip") & ~tag("minor")) | (tag("lifecycle") == "lost") & tag("spend").isin([1, 2.5]) & (tag("a") - 1 <= tag("b") * 2)
    assert built.text == parse("vip and not minor or lifecycle == 'lost' and spend in (1, 2.5) and a - 1 <= b * 2").text
    assert (tag("x") == "it's \"so\"").text == parse("x == 'it\\'s \"so\"'").text
    assert (tag("x") == np.int64(3)).text == "x == 3" and (True & tag("x")).text == parse("True and x").text
    for wrong in (lambda: bool(tag("a")), lambda: 1 < tag("a") < 3, lambda: tag("A b"), lambda: tag("a").isin([]), lambda: tag("a") == {}):
        with pytest.raises(ParameterError): wrong()


# ---- estimates


@pytest.mark.parametrize("population, n, x", [(10, 5, 0), (10, 5, 5), (40, 12, 3), (200, 20, 20), (1_000, 100, 1), (300, 40, 20), (7, 7, 3)])
def test_interval_is_that_of_the_hypergeometric(population, n, x):
    "Against exact fractions: the lowest and highest number of members that an observation does not refute."
    def probability(members, test):
        ways = [math.comb(members, k) * math.comb(population - members, n - k) for k in range(n + 1) if test(k)]
        return sum(ways) / math.comb(population, n)
    fits = [m for m in range(x, population - n + x + 1)
            if probability(m, lambda k: k >= x) > .025 and probability(m, lambda k: k <= x) > .025]
    assert count_interval(population, n, x) == (fits[0], fits[-1])


@pytest.mark.parametrize("segment, fraction", [("stage == 'lost'", .3), ("frequent", .2), ("level == 'high'", .4), ("target", .5)])
def test_estimates_cover_the_truth(ws, catalogue, segment, fraction):
    "The true size lies in the interval for at least 95 of 100 samples, within what chance allows; the mean estimate is unbiased."
    audience = evaluate_segment(ws, catalogue, segment, AS_OF)
    flags, truth = audience.values(), audience.size()
    hits, sizes = 0, []
    for salt in range(400):
        drawn = flags[is_drawn(flags.member_id, fraction, salt)]
        low, high = count_interval(len(flags), len(drawn), int(drawn.belongs.sum()))
        hits, sizes = hits + (low <= truth <= high), [*sizes, drawn.belongs.mean() * len(flags)]
    assert hits >= 400 * .95 - 3 * math.sqrt(400 * .95 * .05)
    assert abs(np.mean(sizes) - truth) < 4 * np.std(sizes) / math.sqrt(400)


def test_an_estimate_asks_the_members_drawn_only(ws, catalogue):
    "Equal to the whole audience filtered afterwards; rows of others are not even there, unless a tag compares members."
    for segment, alone in (("stage == 'lost'", True), ("target", False)):
        audience = evaluate_segment(ws, catalogue, segment, AS_OF)
        flags = audience.values()
        drawn = flags[is_drawn(flags.member_id, .25, "s")]
        got = estimate_size(audience, .25, "s")
        assert (got.asked, got.belong, got.population) == (len(drawn), drawn.belongs.sum(), len(flags))
        from memtag_research.tags.segments import _sampled
        assert (_sampled(audience, .25, "s").base_size() < len(flags)) == alone
    assert estimate_size(audience, 1.)[:3] == (audience.size(),) * 3
    for wrong in (0, -1, 2, "a", True):
        with pytest.raises(ParameterError): estimate_size(audience, wrong)


# ---- holdout


def test_draws_are_uniform_and_independent():
    many = [f"M{i:07}" for i in range(20_000)]
    shares = np.array([[is_drawn(many[i::20], .1, salt).mean() for i in range(20)] for salt in range(10)])
    chi2 = ((shares - .1) ** 2 / (.09 / 1_000)).sum()                         # 200 cells of 1,000 members each
    assert abs(chi2 - 200) < 5 * math.sqrt(2 * 200)
    a, b = is_drawn(many, .3, "a"), is_drawn(many, .3, "b")
    assert abs((a & b).mean() - .09) < 5 * math.sqrt(.09 * .91 / 20_000)      # two salts: independent
    assert not (is_drawn(many, .1, "a") & ~a).any()                           # one salt: nested


def test_who_is_held_out_does_not_depend_on_who_else_is_there(ws, catalogue):
    wide, narrow = (evaluate_segment(ws, catalogue, Segment(name="camp", where=w), AS_OF) for w in ("orders_all >= 0", "orders_90d >= 1"))
    one, two = (hold_out(a, .4).set_index("member_id").held_out for a in (wide, narrow))
    assert len(two) < len(one) and (one[two.index] == two).all() and 0 < two.sum() < len(two)
    other = evaluate_segment(ws, catalogue, Segment(name="other", where="orders_all >= 0"), AS_OF)
    assert (hold_out(other, .4).held_out != hold_out(wide, .4).held_out).any()
    assert hold_out(other, .4, "spring").equals(hold_out(wide, .4, "spring"))   # a shared seed: the same members
    assert not hold_out(wide).held_out.any()
    with pytest.raises(ParameterError, match="less than 1"): hold_out(wide, 1.)


# ---- explain, eligible, overlap


def test_every_member_is_explained(ws, catalogue, values):
    audience = evaluate_segment(ws, catalogue, "target", AS_OF)
    belong = set(audience.members().member_id)
    for member in sorted(values)[::23]:
        why = explain_member(audience, member, behind=False)
        assert why.belongs == (member in belong) and member not in str(why) + why._repr_html_()
        leaves = {c.text: c.value for c in why.clauses if c.op == "rule"}
        assert leaves["frequent"] == values[member]["frequent"]
        assert leaves["level in ('mid', 'high')"] == (None if values[member]["level"] is None else values[member]["level"] in ("mid", "high"))
        assert why.minus == {"minor": values[member]["minor"] is True, "quiet": values[member]["stage"] in ("lost", "prospect")}
        if not why.belongs and not any(why.minus.values()): assert why.reason == "rule" and why.clauses[0].value is not True
    with pytest.raises(ParameterError, match="is no member at 2024-03-10"): explain_member(audience, "nobody at all")
    with pytest.raises(ParameterError, match="is a text"): explain_member(audience, 13812345678)


def test_eligible_keeps_order_and_says_why(ws, catalogue, values):
    audience = evaluate_segment(ws, catalogue, "target", AS_OF)
    inside = audience.members().member_id[0]
    minor = next((m for m, r in values.items() if r["minor"]), None)
    lost = next(m for m, r in values.items() if r["stage"] == "lost")
    asked = [lost, "ghost", inside, lost]
    frame = eligible(audience, asked)
    assert frame.member_id.tolist() == asked and frame.belongs.tolist() == [False, False, True, False]
    assert frame.reason.tolist() == ["minus quiet", "not_a_member", "rule", "minus quiet"] and minor is not None
    assert len(eligible(audience, [])) == 0 and eligible(audience, inside).belongs.tolist() == [True]
    with pytest.raises(ParameterError, match="2 of 3 are not"): eligible(audience, ["a", 1, None])


def test_overlap_is_that_of_sets(ws, catalogue):
    audiences = [evaluate_segment(ws, catalogue, s, AS_OF) for s in ("target", "adult", "quiet")]
    sets = [set(a.members().member_id) for a in audiences]
    got = overlap(*audiences)
    assert [(p.both, p.either) for p in got.pairs.itertuples()] == [
        (len(sets[i] & sets[j]), len(sets[i] | sets[j])) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert np.diag(got.counts).tolist() == [len(s) for s in sets] and (got.counts.to_numpy() == got.counts.to_numpy().T).all()
    empty = evaluate_segment(ws, catalogue, "orders_90d < 0", AS_OF)
    assert math.isnan(overlap(empty, empty).pairs.jaccard[0])
    with pytest.raises(ParameterError): overlap(audiences[0])


# ---- lists


def test_lists_hold_keys_and_decide(ws, catalogue):
    "Exclusion is stronger than inclusion, which is stronger than `minus`; the file, the SQL and the text name nobody."
    target = evaluate_segment(ws, catalogue, "target", AS_OF)
    inside, outside = target.members().member_id.tolist(), [m for m in target.values().member_id[~target.values().belongs]]
    listed = with_members(ws, catalogue.segments["target"], include=[outside[0], outside[1], "gone"], exclude=[inside[0], outside[1]])
    audience = evaluate_segment(ws, catalogue, listed, AS_OF)
    assert audience.members().member_id.tolist() == sorted([*inside[1:], outside[0]])
    assert eligible(audience, [outside[0], outside[1], inside[0]]).reason.tolist() == ["include", "exclude", "exclude"]
    assert explain_member(audience, outside[0], False).reason == "include"
    told = audience.sql() + write_catalogue(Catalogue(segments={"target": listed})) + repr(listed)
    assert not [m for m in (outside[0], outside[1], inside[0], "gone") if m in told]
    assert KeyMap(ws.root).ids_for(listed.exclude).tolist() == sorted([inside[0], outside[1]], key=lambda m: listed.exclude.index(
        KeyMap(ws.root).keys_for([m])[0]))
    assert estimate_size(audience, 1.).members == audience.size()
    with pytest.raises(NotComputable, match="key map"): evaluate_segment(world.in_engine(world.tables()), catalogue, listed, AS_OF).size()


# ---- engines


SPARK = [  # rules of every sort: null conditions, lists of constants, lists of the member's, differences, numbers, other segments
    "target", "wide", "adult", "not adult", "is_null(adult) or adult", "stage in ('lost', 'prospect')", "level not in ('low',)", "'beauty' in likes",
    "not ('beauty' in likes)", "spend_365d / orders_all > 5000 or age_years >= 40", "band in ('30-34', '40-49') or recency_days < 60"]


def test_duckdb_and_spark_name_the_same_members(tmp_path, spark):
    """Rules, differences, lists by key and lists of values, in one pass of each engine; who may be written to follows from both.
    The workspace is one folder, opened by two engines."""
    text = CATALOGUE.replace("segments:", TEXTS + "segments:") + "".join(
        f"  s{i}: {{where: \"{w}\", minus: [{'minor, quiet' if i % 3 == 0 else ''}]}}\n" for i, w in enumerate(SPARK))
    shop = read_catalogue(text)
    here = open_workspace(world.as_workspace(world.tables(), tmp_path / "ws"))
    base = evaluate_segment(here, shop, "frequent", AS_OF).values()
    inside, outside = (base.member_id[base.belongs == b].tolist() for b in (True, False))
    listed = with_members(here, Segment(name="listed", where="frequent or target", minus=["minor", *(f"s{i}" for i in (1, 5))]), [outside[0], inside[1]], [inside[0], "gone"])
    every = " or ".join(["listed", *(f"s{i}" for i in range(len(SPARK)))])
    shop = replace(shop, segments={**shop.segments, "listed": listed, "every": Segment(name="every", where=every)})
    there = replace(here, con=spark)
    ours, theirs = (evaluate_segment(ws, shop, "every", AS_OF, snapshots=False) for ws in (here, there))
    names = ["listed", *(f"s{i}" for i in range(len(SPARK)))]
    one, two = ours.values(*names), theirs.values(*names)
    assert one.astype({n: bool for n in [*names, "belongs"]}).equals(two.astype({n: bool for n in [*names, "belongs"]}))
    sizes = one[names].astype(bool).sum()
    assert ((0 < sizes) & (sizes < len(one))).sum() >= len(names) - 1, sizes      # nearly every rule tells members apart
    assert one.set_index("member_id").listed[[outside[0], inside[1], inside[0]]].tolist() == [True, True, False]
    asked = [inside[0], outside[0], inside[1], "nobody"]
    assert eligible(ours, asked).equals(eligible(theirs, asked))
    for purpose in ("marketing", "profiling"):
        says = [consent_reasons(ws, purpose, None, AS_OF).sort_values("member_id", ignore_index=True) for ws in (here, there)]
        assert says[0].equals(says[1]) and len(says[0])


# ---- JSON


@pytest.mark.parametrize("text", ["quiet", "target", "stage in ('lost', 'buying') and not (age_years < 30 or is_null(adult))", "30 < recency_days <= 200"])
def test_json_logic_there_and_back(ws, catalogue, text):
    segment = catalogue.segments.get(text, Segment(where=text))
    logic = json.loads(json.dumps(to_logic(segment)))
    back = from_logic(logic, "back")
    assert to_logic(back) == logic and ids(ws, catalogue, back) == ids(ws, catalogue, segment)
    with pytest.raises(DefinitionError, match="list of members"): to_logic(Segment(name="a", include=[1]))


# ---- the store


def test_a_snapshot_is_used_where_definitions_are_equal(ws, catalogue):
    live = evaluate_segment(ws, catalogue, "target", AS_OF)
    assert live.source == "compiled from the tables"
    take_snapshot(ws, catalogue, AS_OF)
    stored = evaluate_segment(ws, catalogue, "target", AS_OF)
    assert stored.source.startswith(f"snapshot of {AS_OF}, run ") and stored.members().equals(live.members())
    assert stored.definition_hash and explain_member(stored, stored.members().member_id[0], False).belongs
    assert estimate_size(stored, 1.).members == live.size() and stored.sql() != live.sql()
    changed = read_catalogue(CATALOGUE.replace("orders_90d >= 2", "orders_90d >= 3"))
    assert evaluate_segment(ws, changed, "target", AS_OF).source == "compiled from the tables"
    retitled = read_catalogue(CATALOGUE.replace("en: Frequent", "en: Often"))
    assert evaluate_segment(ws, retitled, "target", AS_OF).source.startswith("snapshot")
    for other in ("recency_days > 3", "quiet and orders_90d > 0"): assert evaluate_segment(ws, catalogue, other, AS_OF).source.startswith("compiled")
    assert evaluate_segment(ws, catalogue, "target", "2024-03-11").source.startswith("compiled")
    assert evaluate_segment(ws, catalogue, "target", AS_OF, snapshots=False).source.startswith("compiled")


# ---- wrong definitions


@pytest.mark.parametrize("segment, says", [
    ("frequant", "frequent"), ("orders_90d + 1", "must be true or false"), ("stage", "must be true or false"), ("stage > 3", "text"),
    (Segment(name="a", where="frequent", minus=["stage"]), "'stage' is a text"), (Segment(name="a", where="frequent", minus=["minour"]), "minor"),
    (Segment(name="a", where="frequent", minus=["recency_days"]), "must be a tag or segment"), (Segment(name="a", where="a or frequent"), "a → a"),
    (Segment(name="a"), "neither a rule"), (Segment(name="a", where="frequent", holdout=1), "less than 1"),
    ("stage == 'lsot'", "the rule: stage has no value 'lsot'; it has prospect, lost, buying. Did you mean 'lost'?"),
    (tag("level").isin(["hgh", "mid"]), "level has no value 'hgh'; it has low, mid, high. Did you mean 'high'?"),
    (Segment(name="a", where="not ('流失' == stage)"), "segment a: stage has no value '流失'; it has prospect, lost, buying. '流失' is the title of 'lost'"),
    (Segment(name="a", where="frequent", minus=["a"]), "a → a"), ("__import__('os')", "__import__"), (3, "is a name, a Segment or a rule")])
def test_wrong_segments_are_refused_before_anything_is_computed(ws, catalogue, segment, says):
    with pytest.raises(MemtagError, match=re.escape(says)): evaluate_segment(ws, catalogue, segment, AS_OF)


def test_what_a_workspace_cannot_give_is_said(catalogue):
    bare = {"orders": world.in_engine({k: v for k, v in world.tables().items() if k == "order_lines"})["orders"]}
    with pytest.raises(NotComputable, match="adult: .*members"): evaluate_segment(bare, catalogue, "adult and frequent", AS_OF)
    audience = evaluate_segment(bare, catalogue, Segment(name="s", where="frequent", minus=["minor"]), AS_OF)
    assert "nobody is taken out by minor" in audience.warnings[0] and audience.size() > 0
    with pytest.raises(NotComputable, match="adult"): evaluate_segment(bare, catalogue, Segment(name="s", where="frequent", minus=["adult"]), AS_OF)


# ---- the file

FILES = ["", "segments:\n  a: {where: frequent}\n", "segments:\n    a:\n        where: frequent   # why\n    # for b\n    b: {where: adult}\n\n# end\n",
         "# head\ntags:\n  x: {class: basic, kind: flag, title: {en: X, zh: 某}, when: orders_90d > 3}\nsegments:\n  target:\n    where: frequent\n"
         "  # a note\n\n  b: {where: x}\nmetrics:\n  m: {source: orders, agg: count, days: 3}\n", "segments: {a: {where: frequent}, b: {where: adult}}\n",
         "segments: {}\n", "segments:\n", "# only a comment\n", "segments:\n  a:\n    where: >-\n      frequent\n      and adult\n  zz: {where: frequent}"]


@pytest.mark.parametrize("name", ["target", "a", "zz", "new"])
@pytest.mark.parametrize("before", FILES)
def test_saving_changes_one_entry_and_nothing_else(tmp_path, ws, catalogue, before, name):
    from types import SimpleNamespace
    here = SimpleNamespace(root=tmp_path)
    path = tmp_path / "catalogue/segments.yaml"
    path.parent.mkdir()
    path.write_text(before, encoding="utf-8")
    segment = Segment(name=name, where="adult and not frequent", minus=["minor"], include=[2**62 + 1], title={"en": "New: #1", "zh": "新"})
    read = lambda: read_catalogue(path) if path.read_text().strip() and "only a comment" != path.read_text().strip("# \n") else Catalogue()
    old = read()
    save_segment(here, catalogue, segment)
    new = read_catalogue(path)
    assert new.segments == {**old.segments, name: segment} and new.tags == old.tags and new.metrics == old.metrics
    comments = [c for c in re.findall(r"#.*", before) if c != "# why" or name != "a"]
    assert all(c in path.read_text() for c in comments) or before.startswith("segments: {")
    first = path.read_text()
    save_segment(here, catalogue, segment)
    assert path.read_text() == first and path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in path.parent.iterdir() if not p.name.startswith(".lock")] == ["segments.yaml"]


def test_what_cannot_be_saved_leaves_the_file_alone(ws, catalogue):
    path = save_segment(ws, catalogue, Segment(name="fine", where="frequent"))
    before = path.read_text()
    for segment, says in ((Segment(name="stage", where="frequent"), "a name means one thing"), (Segment(where="frequent"), "needs a name"),
                          (Segment(name="bad", where="frequant"), "frequent"), (Segment(name="Bad name", where="frequent"), "small letters")):
        with pytest.raises(MemtagError, match=says): save_segment(ws, catalogue, segment)
        assert path.read_text() == before
    path.write_text("segments:\n  a: {where: [1, 2\n")
    with pytest.raises(DefinitionError, match="segments.yaml:"): save_segment(ws, catalogue, Segment(name="fine", where="frequent"))
    assert path.read_text() == "segments:\n  a: {where: [1, 2\n"
    path.write_text(before)


def test_readable_in_notebooks_without_a_script(ws, catalogue):
    evil = Segment(name="evil", where="frequent", title={"en": "<script>x</script>"})
    audience = evaluate_segment(ws, catalogue, evil, AS_OF)
    shown = [audience, audience.estimate(.5), audience.explain(audience.values().member_id[0]), audience.overlap(audience), tag("a") & tag("b")]
    for thing in shown: assert "<script" not in thing._repr_html_() and len(thing._repr_html_()) > 10
    assert register_segment(catalogue, "frequent")[1] == register_segment(catalogue, tag("frequent"))[1]
    assert [s.name for s in segment_parts(catalogue, "wide")] == ["quiet", "target", "wide"]
    assert audience.members().attrs["holds"].startswith("member ids of segment evil") and isinstance(audience.table, ibis.Table)


# ---- what is shown, and said on the command line


def test_the_sql_runs_over_the_files_of_the_workspace(tmp_path, catalogue):
    "In a DuckDB of its own, with a view a file; compiled, with lists of keys, and over a snapshot."
    here = open_workspace(world.as_workspace(world.tables(), tmp_path / "ws"))
    some = evaluate_segment(here, catalogue, "target", AS_OF).values().member_id.tolist()
    listed = with_members(here, replace(catalogue.segments["target"], name="listed"), some[:3], some[3:5])
    for step in ("compiled", "snapshot"):
        for segment in ("target", listed):
            audience = evaluate_segment(here, catalogue, segment, AS_OF)
            assert audience.source.startswith(step) and here.fingerprint[:12] not in audience.sql() and "ibis_read" not in audience.sql()
            con = duckdb.connect()
            for path in here.folder.glob("*.parquet"): con.execute(f"CREATE VIEW {path.stem} AS SELECT * FROM '{path}'")
            assert sorted(m for m, in con.execute(audience.sql()).fetchall()) == audience.members().member_id.tolist() != []
        take_snapshot(here, catalogue, AS_OF)
    assert re.search(r'FROM "?orders"?', evaluate_segment(here, catalogue, "orders_90d > 1", AS_OF).sql())


def test_a_handful_is_not_counted_out(ws, catalogue):
    "k of the workspace is 5: 1 to 4 members, and all but so few, are told as fewer than 5; zero, five and all are told."
    members = evaluate_segment(ws, catalogue, "orders_all >= 0", AS_OF).members().member_id.tolist()
    n = len(members)
    def some(k, name="some"): return evaluate_segment(ws, catalogue, with_members(ws, Segment(name=name, where="orders_all < 0"), members[:k]), AS_OF)
    for size, says in ((0, f"0 of {n}"), (4, f"fewer than 5 of {n}"), (5, f"5 of {n}"), (n - 5, f"{n - 5} of {n}"), (n - 1, f"all but fewer than 5 of {n}"), (n, f"{n} of {n}")):
        audience = some(size)
        assert audience.size() == size and says in audience.shown_size() and says in repr(audience) and says in audience._repr_html_()
    assert "不足 5 人" in some(2).shown_size("zh")
    assert "fewer than 5 of" in some(2).shown_estimate(1.) and "about 30" in some(30).shown_estimate(1.)
    shown = overlap(some(30, "a"), some(33, "b"))
    assert shown.pairs.both[0] == 30 and "30" in repr(shown) and "…" in repr(shown) and "<k" not in repr(shown)      # 3 stand in b only
    assert "0.9" not in repr(shown) and "90" not in shown._repr_html_()
    assert "33.3%" in repr(overlap(some(10, "a"), some(30, "b")))


def memtag(*words):
    done = CliRunner().invoke(main, list(map(str, words)))
    return done.exit_code, done.output


@pytest.fixture(scope="module")
def shop(tmp_path_factory, catalogue):
    root = world.as_workspace(world.tables(), tmp_path_factory.mktemp("cli") / "ws")
    (root / "catalogue").mkdir()
    (root / "catalogue/ours.yaml").write_text(
        "segments:\n  lapsed: {title: {en: Lapsed ones, zh: 沉睡人群}, where: lifecycle == 'lost'}\n", encoding="utf-8")
    return root


@pytest.mark.parametrize("words, says", [
    (["segment", "size", "--where", "lifecycle == 'lsot'"], ["the rule: lifecycle has no value 'lsot'; it has", "Did you mean 'lost'?"]),
    (["segment", "size", "--where", "'流失期' == lifecycle"], ["is the title of 'lost': write 'lost'."]),
    (["segment", "size", "--where", "Lifecycle == 'lost'"], ["'Lifecycle'", "write lifecycle"]),
    (["segment", "size", "Lapsed Ones"], ["there is no segment 'Lapsed Ones'. 'Lapsed Ones' is the title of lapsed: write lapsed."]),
    (["segment", "size", "沉睡人群"], ["is the title of lapsed: write lapsed."]),
    (["tag", "show", "生命周期"], ["is the title of lifecycle: write lifecycle."]),
    (["segment", "explain", "lapsed", "--member", "NOPE-12345678"], ["is no member at", "Ids are written as in the tables"]),
    (["segment", "export", "lapsed", "--out", "x.csv"], ["consent to marketing is given by channel here", "--channel", "sms"]),
    (["segment", "export", "lapsed", "--out", "x.csv", "--channel", "smss"], ["there is no channel 'smss'", "sms", "Did you mean 'sms'?"]),
    (["tag", "diff", "2024-03-10", "2024-01-10"], ["must lie before the second one: 2024-03-10 does not lie before 2024-01-10"]),
    (["tag", "run", "--as-of", "2024-03-10", "--dates", "2024-03-10,2024-01-10"], ["say when: --as-of DATE, --dates D1,D2 or --monthly A..B."]),
    (["tag", "run", "--monthly", "2024-03..2024-01"], ["--monthly is two months"])])
def test_slips_on_the_command_line_end_in_2_and_the_next_step(shop, words, says):
    code, said = memtag(*words, "-w", shop)
    assert code == 2 and all(s in said for s in says), said
    assert "NOPE-12345678" not in said


def test_a_folder_of_catalogues_is_checked_whole(shop, tmp_path):
    code, said = memtag("tag", "check", shop / "catalogue", "-w", shop)
    assert code == 0 and "segments" in said
    (shop / "catalogue/second.yaml").write_text("segments:\n  bad: {where: lifecycle == 'lsot'}\n", encoding="utf-8")
    code, said = memtag("tag", "check", shop / "catalogue", "-w", shop)
    (shop / "catalogue/second.yaml").unlink()
    assert code == 2 and "second.yaml:2: segments.bad.where: lifecycle has no value 'lsot'" in said
    code, said = memtag("tag", "check", tmp_path, "-w", shop)
    assert code == 2 and "has no .yaml file" in said and tmp_path.name in said
