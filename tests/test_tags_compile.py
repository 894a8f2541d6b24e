"""A catalogue at a date: against plain Python over the metrics, against the future, other engines, many dates at once."""

from datetime import date, timedelta
from fractions import Fraction

import pandas as pd
import pytest
import tag_world as world
from pandas.testing import assert_frame_equal
from test_tags_rows import METRICS, SOURCES, engine_tables

from memtag_research.core import DefinitionError, NotComputable, ParameterError
from memtag_research.data.engine import connect
from memtag_research.tags import rows
from memtag_research.tags.catalogues import read_catalogue, write_catalogue
from memtag_research.tags.compile import compile_many, compile_tags
from memtag_research.tags.definition import Catalogue
from memtag_research.tags.explain import explain_tag
from memtag_research.tags.expression import evaluate, parse

AS_OF = world.AS_OF
TAGS = """
sources:
  used: {table: redemptions, join: {orders: order_id}}
parameters:
  often: {value: 4}
  window: {value: 120}
  typical: {calibrate: quantile, of: net, q: 0.5, min_n: 20, freeze: quarterly}
metrics:
  per_order: {expr: net / orders_all}
  used_net: {source: used, agg: sum, of: orders.net_cents, where: is_null(orders.cancelled_date), days: all}
  share_90d: {expr: net_90d / net}
  lines_window: {source: sales, agg: count, days: window}
tags:
  frequent:    {class: behaviour, kind: flag, when: orders_180d >= often}
  falling:     {class: lifecycle, kind: flag, when: "orders_90d < orders_before and recency > 30"}
  quiet:       {class: lifecycle, kind: flag, when: recency > 90 or is_null(recency)}
  hot:         {class: lifecycle, kind: flag, when: recency <= 30}
  margins:     {class: value, kind: quantile, metric: margin_mean, values: [thin, fat], shares: [0.7]}
  rich:        {class: value, kind: flag, when: net > typical}
  basket:      {class: consumption, kind: number, metric: per_order, support: orders_all >= 3}
  recent:      {class: consumption, kind: number, metric: net_90d, valid_while: recency <= 60}
  stage:       {class: lifecycle, kind: rules, values: {prospect: orders_all == 0, lost: recency > 200, new: "first <= 60", loyal: frequent and not falling, other: else}}
  brand:       {class: preference, kind: rules, values: {alder: first_brand == 'Alder', two: "first_brand in ('Corvo', 'Juniper')"}}
  level:       {class: value, kind: quantile, metric: net, values: [low, mid, high], shares: [0.5, 0.9], among: orders_all > 0, otherwise: none}
  fifth:       {class: value, kind: quantile, metric: margin_mean, values: [a, b, c, d, e]}
  frozen:      {class: value, kind: quantile, metric: net, values: [low, high], among: orders_all > 0, freeze: quarterly}
  rfm:         {class: value, kind: rules, uses: {r: "quantile(-recency, 5)", f: "quantile(orders_all, 5)", per: net / orders_all},
                values: {champion: r >= 4 and f >= 4, at_risk: r <= 2 and f >= 3, dear: per > 5000, rest: else}}
  group:       {class: value, kind: cluster, metrics: [orders_all, net], values: [small, big], among: orders_all > 0}
  gender_of:   {class: basic, kind: column, from: members.gender, privacy: personal}
  topic:       {class: interest, kind: first_last, source: events, of: topic, days: all}
segments:
  good: {where: "level == 'high' and stage != 'lost'", minus: [quiet]}
  rest: {where: not good}
"""
CATALOGUE = read_catalogue(write_catalogue(Catalogue(sources=SOURCES, metrics={m.name: m for m in METRICS})) + "\n", TAGS)
NAMES = [n for n in CATALOGUE.metrics]


@pytest.fixture(scope="module")
def tables():
    return engine_tables()


def frame(compiled) -> pd.DataFrame:
    return compiled.to_frame().set_index("member_id")


@pytest.fixture(scope="module")
def whole(tables):
    return compile_tags(CATALOGUE, tables, AS_OF, metrics=NAMES, segments=list(CATALOGUE.segments))


@pytest.fixture(scope="module")
def members(whole):
    return frame(whole)


def assert_same(a, b):
    assert_frame_equal(a.reindex(columns=b.columns), b, check_exact=True)


def plain(value):
    "A cell as Python has it: null is None."
    return None if pd.isna(value) else value.item() if hasattr(value, "item") else value


def values(members, parameters):
    "member → what rules see."
    given = {n: c.value for n, c in parameters.items()}
    return {m: {**given, **{n: plain(v) for n, v in row.items()}} for m, row in members.to_dict("index").items()}


# --- against the evaluator and plain Python ---------------------------------------------------------------------------


def test_rules_are_what_the_evaluator_says(members, whole):
    "Flags, numbers and rules worked out member by member in plain Python from the metrics."
    judge = lambda text, row: evaluate(parse(text), row, AS_OF)
    for member, row in values(members, whole.parameters).items():
        for name, tag in CATALOGUE.tags.items():
            if tag.kind == "flag":
                want = judge(tag.when, row) or False
            elif tag.kind == "number":
                want = judge(tag.metric, row)
            elif tag.kind == "rules" and not tag.uses:
                want = next((v for v, rule in tag.values.items() if rule == "else" or judge(rule, row)), None)
            else:
                continue
            if any(text and not judge(text, row) for text in (tag.support, tag.valid_while)):
                want = None
            assert row[name] == (pytest.approx(want, rel=1e-12) if isinstance(want, float) else want), (name, member)
    assert {name for name, tag in CATALOGUE.tags.items() if tag.kind == "flag" and members[name].nunique() == 2} == {"frequent", "falling", "quiet", "hot", "rich"}
    assert members.recency.isna().any()
    assert members.basket.isna().any() and members.recent.notna().any() and members.brand.isna().any()


def discrete(numbers, shares):
    "Cut points by the definition: the first value whose cumulated share reaches the share, in exact fractions."
    ordered = sorted(numbers)
    return [next(v for i, v in enumerate(ordered, 1) if Fraction(i, len(ordered)) >= s) for s in shares]


@pytest.mark.parametrize("name, metric, shares, among", [
    ("level", "net", ["0.5", "0.9"], True),
    ("margins", "margin_mean", ["0.7"], False),
    ("fifth", "margin_mean", [Fraction(i, 5) for i in range(1, 5)], False),
])  # fmt: skip
def test_classes_are_those_of_discrete_cut_points(members, name, metric, shares, among):
    tag = CATALOGUE.tags[name]
    counted = members[members.orders_all > 0] if among else members
    cuts = discrete(counted[metric].dropna(), [Fraction(s) for s in shares])
    for member, row in members.iterrows():
        if among and row.orders_all == 0:
            assert row[name] == "none"
        elif pd.isna(row[metric]):
            assert pd.isna(row[name])
        else:
            assert row[name] == tag.values[sum(c < row[metric] for c in cuts)], member
    assert members[name].nunique() == len(tag.values) + among


def test_equal_members_have_equal_classes(members):
    for metric, name in (("net", "level"), ("margin_mean", "fifth")):
        some = members[members.orders_all > 0]
        assert (some.groupby(metric)[name].nunique() <= 1).all()
    assert members.groupby(["recency", "orders_all", "net"])["rfm"].nunique().max() == 1


def test_quantiles_in_rules(members):
    "The classes of the rules, from ranks in pandas: r strictly below, n in all, class = 1 + cuts passed."
    def classes(x):
        n, below = x.notna().sum(), x.rank(method="min") - 1
        return below.map(lambda r: None if pd.isna(r) else 1 + sum(int(r) * 5 >= i * n for i in range(1, 5)))

    r, f = classes(-members.recency.astype(float)), classes(members.orders_all)
    for member, row in members.iterrows():
        a, b = r[member], f[member]
        per = row.net / row.orders_all if row.orders_all else None
        known = not pd.isna(a)
        want = "champion" if known and a >= 4 and b >= 4 else "at_risk" if known and a <= 2 and b >= 3 else "dear" if per and per > 5000 else "rest"
        assert row.rfm == want, member
    assert set(members.rfm) == {"champion", "at_risk", "dear", "rest"}


def test_frozen_cuts_are_those_of_the_quarter(tables, members):
    start = frame(compile_tags(CATALOGUE, tables, date(2024, 1, 1), [], metrics=["net", "orders_all"]))
    (cut,) = discrete(start[start.orders_all > 0].net, [Fraction(1, 2)])
    some = members[members.orders_all > 0]
    assert ((some.net > cut) == (some.frozen == "high")).all()
    assert members.frozen[members.orders_all == 0].isna().all()


def test_segments_are_never_unknown(tables, members):
    want = (members.level == "high") & (members.stage != "lost") & ~members.quiet
    assert (members.good == want).all() and (members.rest == ~want).all() and want.any()
    inside, outside = members.index[want][:2], members.index[~want][:2]
    lists = {"good": ((outside[0], outside[1]), (outside[1], inside[0]))}
    got = frame(compile_tags(CATALOGUE, tables, AS_OF, [], segments=["good"], lists=lists)).good
    assert got[outside[0]] and not got[outside[1]] and not got[inside[0]] and got[inside[1]]
    assert got.sum() == want.sum()


# --- nothing of the future, any order of rows, many dates --------------------------------------------------------------


@pytest.mark.parametrize("which", ["cut", "poison"])
def test_the_future_changes_no_tag(whole, members, which, monkeypatch):
    changed = world.in_engine({"cut": world.cut, "poison": world.poison}[which](world.tables(), AS_OF))
    ask = dict(metrics=NAMES, segments=list(CATALOGUE.segments))
    assert_same(frame(compile_tags(CATALOGUE, changed, AS_OF, **ask)), members)
    monkeypatch.setattr(rows, "known", lambda table, as_of: table)
    leaked, other = (frame(compile_tags(CATALOGUE, t, AS_OF, **ask)) for t in (engine_tables(), changed))
    differing = [n for n in CATALOGUE.tags if n not in leaked or n not in other or not leaked[n].reindex(other.index).equals(other[n])]
    assert len(differing) >= 12, set(CATALOGUE.tags) - set(differing)


def test_late_records_change_no_tag():
    late, without = world.learn_late(world.tables(), AS_OF)
    got = frame(compile_tags(CATALOGUE, world.in_engine(late), AS_OF, knowledge_time=True))
    assert_same(got, frame(compile_tags(CATALOGUE, world.in_engine(without), AS_OF)))
    assert not got.equals(frame(compile_tags(CATALOGUE, world.in_engine(late), AS_OF)))   # else the late rows matter to nothing


DATES = [date(2023, 6, 1), date(2023, 10, 15), AS_OF, date(2024, 6, 30)]


def test_many_dates_are_each_date(tables):
    "Cell for cell; sums by day, values of days and what cannot be added up."
    ask = dict(metrics=NAMES, segments=list(CATALOGUE.segments))
    made = list(compile_many(CATALOGUE, tables, DATES, **ask))
    assert [c.as_of for c in made] == DATES
    for compiled in made:
        assert_same(frame(compiled), frame(compile_tags(CATALOGUE, tables, compiled.as_of, **ask)))
    assert frame(made[-1]).used_net.sum() > 0 and not any("used" in n for n in made[0].kept)  # an order may be cancelled later
    assert {"lines by day", "events by day", "orders by day"} <= {n.rpartition(" ")[0] for n in made[0].kept}


def test_many_dates_read_the_lines_once(tables):
    sql = [c.sql() for c in compile_many(CATALOGUE, tables, DATES, ["frequent"], metrics=["net", "promo", "categories", "first_brand", "units"])]
    name = tables["order_lines"].get_name()
    assert not any(name in text for text in sql)
    assert name in compile_tags(CATALOGUE, tables, AS_OF, ["frequent"], metrics=["net"]).sql()


def test_a_condition_on_an_end_waits_for_its_date(tables):
    "An order cancelled between two dates counts at the first and not at the second."
    orders = tables["orders"].filter(tables["orders"].cancelled_date > tables["orders"].local_date, tables["orders"].member_id.notnull()).execute()
    ended = pd.to_datetime(orders.cancelled_date.iloc[0]).date()
    days = [ended, ended + timedelta(days=1), ended + timedelta(days=2)]
    many = [frame(c).orders_all for c in compile_many(CATALOGUE, tables, days, [], metrics=["orders_all"])]
    one = [frame(compile_tags(CATALOGUE, tables, d, [], metrics=["orders_all"])).orders_all for d in days]
    assert all(a.equals(b) for a, b in zip(many, one))
    buyer = orders.member_id.iloc[0]
    assert many[1][buyer] < many[0][buyer]


# --- engines ----------------------------------------------------------------------------------------------------------


def test_duckdb_and_spark_agree_cell_for_cell(spark, members):
    tags = [n for n in CATALOGUE.tags if n != "group"]
    got = compile_tags(CATALOGUE, world.in_engine(world.tables(), spark), AS_OF, tags, metrics=NAMES, segments=list(CATALOGUE.segments))
    got = frame(got)
    for name in got:
        a, b = got[name], members[name]
        assert a.isna().equals(b.isna()), name
        assert a.dropna().tolist() == b.dropna().tolist(), name


# --- what is not there, and what is wrong ------------------------------------------------------------------------------


def test_what_is_not_computable_is_listed_with_its_reason(tables, members):
    fewer = {n: t for n, t in tables.items() if n != "events"}
    fewer["order_lines"] = tables["order_lines"].drop("cost_cents")
    got = compile_tags(CATALOGUE, fewer, AS_OF, segments=["good"])
    assert set(got.not_computable) == {"topic", "fifth", "margins"}
    assert "no table events" in got.not_computable["topic"]
    assert "the table order_lines has no column cost_cents" in got.not_computable["fifth"]
    assert_same(frame(got), members[[*got.tags, "good"]])
    with pytest.raises(NotComputable, match="no column cost_cents"):
        compile_tags(CATALOGUE, fewer, AS_OF, ["fifth"])


def test_only_the_closure_is_compiled(tables):
    sql = compile_tags(CATALOGUE, tables, AS_OF, ["frequent"]).sql()
    assert tables["events"].get_name() not in sql and tables["order_lines"].get_name() not in sql


def test_a_chain_of_metrics_does_not_explode(tables):
    chain = "".join(f"  m{i}: {{expr: m{i - 1} + m{i - 1} - 1}}\n" for i in range(1, 25))
    c = read_catalogue("sources:\n  s: {table: orders}\nmetrics:\n  m0: {source: s, agg: count, days: all}\n" + chain
                       + "tags:\n  t: {class: value, kind: number, metric: m24}\n")
    got = compile_tags(c, tables, AS_OF)
    assert len(got.sql()) < 60_000
    assert frame(got).t.notna().all()


def test_warnings(tables):
    said = compile_tags(CATALOGUE, tables, date(2023, 3, 1), ["frequent"]).warnings
    assert any("orders_180d" in w and "grow" in w for w in said)
    far = compile_tags(CATALOGUE, tables, date(2024, 12, 1), ["frequent"]).warnings
    assert any("days after the last row" in w for w in far)
    assert compile_tags(CATALOGUE, tables, AS_OF, ["frequent"]).warnings == ()
    with pytest.raises(NotComputable, match="before all that is known"):
        compile_tags(CATALOGUE, tables, date(2022, 1, 1), ["frequent"])


def test_given_parameters_replace_calibration(tables):
    got = compile_tags(CATALOGUE, tables, AS_OF, ["rich", "frequent"], parameters={"typical": 10**12, "often": 0})
    cells = frame(got)
    assert not cells.rich.any() and cells.frequent.all()


def test_a_name_that_is_not_there(tables):
    with pytest.raises(DefinitionError, match="Did you mean 'frequent'"):
        compile_tags(CATALOGUE, tables, AS_OF, ["frequnt"])


def test_two_dates_may_be_joined_in_one_query():
    "Cut points stand in a WITH of their own; two expressions may not give theirs one name."
    tables = world.in_engine(world.tables(), connect())
    first, second = (compile_tags(CATALOGUE, tables, day, ["level"]).expr for day in (AS_OF - timedelta(30), AS_OF))
    both = first.join(second, "member_id").execute().set_index("member_id").sort_index()
    alone = second.execute().set_index("member_id").level
    assert both.level_right.equals(alone.loc[both.index].rename("level_right")) and both.level_right.nunique() > 1


def test_threads_do_not_matter(members):
    some = {n: t for n, t in world.tables().items() if n in ("order_lines", "members", "member_merges", "products", "stores")}
    tags = ["level", "fifth", "rfm", "stage", "group", "frozen"]
    for threads in (1, 2, 3):
        con = connect(threads=threads)
        assert_same(frame(compile_tags(CATALOGUE, world.in_engine(some, con), AS_OF, tags)), members[tags])


# --- why --------------------------------------------------------------------------------------------------------------


def test_explanations_give_the_value_and_what_it_stands_on(tables, members, whole):
    "For some members of every tag: the table's value, clauses that the evaluator confirms, numbers of the table; no id."
    rows = values(members, whole.parameters)
    for name, tag in CATALOGUE.tags.items():
        for value in list(members[name].dropna().unique())[:2]:
            member = members.index[members[name] == value][0]
            for lang in ("en", "zh"):
                why = explain_tag(CATALOGUE, tables, AS_OF, name, member, lang=lang)
                assert why.value == plain(value) and member not in why.text + why._repr_html_(), name
            assert tag.kind != "rules" or why.decided == value
            for step in why.steps:
                assert all(rows[member][n] == pytest.approx(v) for n, v in step.numbers.items() if n in rows[member] and v is not None), (name, step)
                if step.truth != "" and step.text in (tag.support, tag.valid_while, getattr(tag, "when", "")):
                    assert evaluate(parse(step.text), rows[member], AS_OF) == step.truth


def test_windows_in_explanations_are_days(tables, members):
    text = explain_tag(CATALOGUE, tables, AS_OF, "falling", members.index[0]).text
    assert "number of rows of orders, days 2023-12-11 to 2024-03-09" in text and "of orders, days 2023-09-12 to 2023-12-10" in text


def test_a_stranger_has_no_explanation_and_stays_masked(tables):
    with pytest.raises(ParameterError, match=r"M99\*\*\*\*9999 is no member"):
        explain_tag(CATALOGUE, tables, AS_OF, "frequent", "M9999999999")
