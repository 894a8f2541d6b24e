"""Differences of snapshots: the parts add up to the whole, and each planted cause is found in its own part."""

import json
import unicodedata
from datetime import date

import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memtag_research.core import NotComputable, ParameterError
from memtag_research.data.simulate import make_programme
from memtag_research.data.workspace import open_workspace
from memtag_research.tags import changes
from memtag_research.tags.catalogues import read_catalogue
from memtag_research.tags.changes import PARTS, diff, split
from memtag_research.tags.given import assign
from memtag_research.tags.runs import refresh, take_snapshot
from memtag_research.tags.store import Store

VALUE = st.sampled_from([None, "a", "b", "c"])
MEMBER = st.tuples(st.booleans(), st.booleans(), *[VALUE] * len(changes._COLUMNS)).filter(lambda m: m[0] or m[1])


def as_rows(members):
    frame = pd.DataFrame(members, columns=["before", "after", *changes._COLUMNS])
    for c in changes._COLUMNS: frame[c] = frame[c].astype(object)
    frame = frame.assign(members=1).groupby(["before", "after", *changes._COLUMNS], dropna=False, as_index=False).members.sum()
    return frame


@settings(max_examples=150, deadline=None)
@given(st.lists(MEMBER, min_size=1, max_size=25))
def test_parts_add_up_to_the_whole_and_moves_to_the_parts(members):
    "Against counting member by member. Who is in one snapshot only has no value in the other."
    first, last = 2, 1 + len(changes._COLUMNS)
    members = [(b, a, *(v if b and a else v if (i == 0 and b) or (i == last - 2 and a) else None for i, v in enumerate(vs))) for b, a, *vs in members]
    values, moves = split(as_rows(members))
    called = lambda v: "unknown" if v is None else v
    for value in ("a", "b", "c", "unknown"):
        old = {i for i, m in enumerate(members) if m[0] and called(m[first]) == value}
        new = {i for i, m in enumerate(members) if m[1] and called(m[last]) == value}
        row = values[values.value == value]
        if row.empty:
            assert not old and not new
            continue
        row = row.iloc[0]
        assert (row.before, row.after, row.entered, row.left) == (len(old), len(new), len(new - old), len(old - new))
        assert row.net == row.after - row.before == row.entered - row.left == sum(row[p] for p in PARTS)
    changed = sum(m[0] != m[1] or called(m[first]) != called(m[last]) for m in members)
    assert moves.members.sum() == changed
    for _, a, *vs in (m for m in members if m[0] and m[1] and called(m[first]) != called(m[last])):
        assert a and any(called(v) != called(vs[0]) for v in vs)
    assert set(moves.part) <= set(PARTS)


TEXT = """
sources: {{orders: {{table: orders}}}}
metrics:
  orders_all: {{source: orders, agg: count, days: all}}
  recency: {{source: orders, agg: days_since_last, days: all}}
parameters: {{half: {{calibrate: quantile, of: recency, q: 0.5, min_n: 5, freeze: quarterly}}}}
tags:
  bought: {{class: behaviour, kind: flag, when: orders_all >= {least}}}
  orders: {{class: behaviour, kind: number, metric: orders_all}}
  fresh: {{class: behaviour, kind: flag, when: recency <= half}}
  slow: {{class: behaviour, kind: number, metric: orders_all, refresh: static, valid_for: 200d}}
  short: {{class: behaviour, kind: flag, when: orders_all > 0, refresh: static, valid_for: 45d}}
  card: {{class: value, kind: assigned, channels: [manual], precedence: [manual], values: [gold], valid_for: 30d}}
"""
OLD, NEW = read_catalogue(TEXT.format(least=2)), read_catalogue(TEXT.format(least=1))
T0, T1 = date(2023, 6, 1), date(2023, 8, 1)


@pytest.fixture
def ws(tmp_path): return make_programme(120, "2023-01-01", "2024-01-01", seed=5, directory=tmp_path / "ws").workspace


def change_orders(ws, keep=None, copy_from=None):
    "A new version of the data: some orders gone, or some more that came late."
    orders = ws.table("orders").execute()
    rows = orders if keep is None else orders[keep(orders)]
    if copy_from is not None: rows = pd.concat([rows, copy_from(orders)])
    schema = pq.read_schema(ws.folder / "orders.parquet")
    pq.write_table(pq.read_table(ws.folder / "orders.parquet").schema.empty_table() if rows.empty else
                   __import__("pyarrow").Table.from_pandas(rows, schema, preserve_index=False, safe=False), ws.folder / "orders.parquet")
    manifest = json.loads((ws.folder / "manifest.json").read_text())
    (ws.folder / "manifest.json").write_text(json.dumps({**manifest, "sha256": "9" * 64}))
    return open_workspace(ws.root)


def row(made, tag, value): return made.values.set_index(["tag", "value"]).loc[(tag, value)]


def adds_up(made):
    assert (made.values.net == made.values[list(PARTS)].sum(axis=1)).all()
    assert (made.values.net == made.values.entered - made.values.left).all()
    return made


def test_behaviour_and_population_only(ws):
    for day in (T0, T1): take_snapshot(ws, OLD, day, ["bought", "orders"])
    made = adds_up(diff(ws, T0, T1))
    parts = made.parts().set_index("tag")
    assert (parts[["late_data", "expiry", "definition"]] == 0).all().all() and (parts[["behaviour", "population"]] > 0).all().all()
    a, b = (Store(ws).snapshot(d).table().execute().set_index("member_key") for d in (T0, T1))
    both = a.index.intersection(b.index)
    assert parts.loc["bought", "behaviour"] == (a.bought[both] != b.bought[both]).sum()
    assert parts.loc["orders", "behaviour"] == (a.orders[both] != b.orders[both]).sum()
    assert parts.loc["bought", "population"] == len(a.index.symmetric_difference(b.index))
    matrix = made.matrix("bought")
    assert matrix.loc["false", "true"] == (~a.bought[both] & b.bought[both]).sum()


def test_a_lowered_threshold_is_definition_and_nothing_else(ws):
    take_snapshot(ws, OLD, T0, ["bought"])
    take_snapshot(ws, NEW, T1, ["bought"])
    made = adds_up(diff(ws, T0, T1, "bought"))
    old, new = (Store(ws).snapshot(d).table().execute().set_index("member_key").bought for d in (T0, T1))
    then = take_snapshot(ws, OLD, T1, ["bought"], force=True).table().execute().set_index("member_key").bought
    both = old.index.intersection(new.index)
    got = row(made, "bought", "true")
    assert got.definition == new[both].sum() - then[both].sum() > 0 and got.behaviour == then[both].sum() - old[both].sum()
    assert got.late_data == got.expiry == 0


def test_a_threshold_calibrated_anew_is_definition(ws):
    for day in (T0, T1): take_snapshot(ws, OLD, day, ["fresh"])
    values = {d: Store(ws).snapshot(d).manifest["parameters"]["half"]["value"] for d in (T0, T1)}
    made = adds_up(diff(ws, T0, T1))
    assert values[T0] != values[T1] and made.parts().definition.iloc[0] > 0


def test_rows_that_came_late_are_late_data(ws):
    take_snapshot(ws, OLD, T0, ["bought"])
    first = Store(ws).snapshot(T0).table().execute().set_index("member_key").bought
    ws = change_orders(ws, copy_from=lambda o: o[(o.local_date < pd.Timestamp("2023-05-01"))].head(40).assign(order_id=lambda f: "late" + f.order_id))
    take_snapshot(ws, OLD, T1, ["bought"])
    made = adds_up(diff(ws, T0, T1))
    today = take_snapshot(ws, OLD, T0, ["bought"], force=True).table().execute().set_index("member_key").bought
    second = Store(ws).snapshot(T1).table().execute().member_key
    both = first.index.intersection(second)
    assert row(made, "bought", "true").late_data == today[both].sum() - first[both].sum() > 0
    ws = change_orders(ws, keep=lambda o: ~o.order_id.str.startswith("late"))   # and away again: both stored snapshots are now of other data
    made = adds_up(diff(ws, T0, T1))
    assert row(made, "bought", "true").definition == 0


def test_what_ran_out_is_expiry(ws):
    who = sorted(ws.table("members").filter(lambda t: t.local_date < "2023-03-01").member_id.execute())[:4]
    for member, day in zip(who, ("2023-05-20", "2023-05-20", "2023-06-10", "2023-07-25")): assign(ws, OLD, "card", member, "gold", ts=day)
    assign(ws, OLD, "card", who[1], "gold", ts="2023-07-25")
    for day in (T0, T1): take_snapshot(ws, OLD, day, ["card", "bought"])
    made = adds_up(diff(ws, T0, T1, "card"))
    gold = row(made, "card", "gold")
    assert (gold.before, gold.after) == (2, 2)
    # given in June and run out by August, given in July and held: behaviour gives both, expiry takes one, and who[0]'s
    assert (gold.behaviour, gold.expiry, gold.definition, gold.late_data) == (2, -2, 0, 0)
    assert made.parts().set_index("tag").loc["card", ["behaviour", "expiry"]].tolist() == [1, 1]


def test_carried_values_are_compared_at_their_own_dates(ws):
    refresh(ws, OLD, T0, ["slow", "short"])
    refresh(ws, OLD, T1, ["slow", "short"])
    made = adds_up(diff(ws, T0, T1))
    parts = made.parts().set_index("tag")
    assert parts.loc["slow", ["late_data", "behaviour", "expiry", "definition"]].tolist() == [0, 0, 0, 0]     # nothing was computed since
    there = row(made, "short", "true")
    assert there.before > 0 and there.after == 0 and there.expiry == -(there.before + there.population)
    assert parts.loc["short", ["late_data", "behaviour", "definition"]].tolist() == [0, 0, 0]


def test_a_tag_that_is_new_or_gone_is_definition(ws):
    take_snapshot(ws, OLD, T0, ["bought"])
    take_snapshot(ws, OLD, T1, ["orders"])
    made = adds_up(diff(ws, T0, T1))
    parts = made.parts().set_index("tag")
    assert (parts.loc[["bought", "orders"], ["late_data", "expiry"]] == 0).all().all() and (parts.definition > 0).all()


def test_an_old_definition_whose_table_is_gone_is_said(ws):
    take_snapshot(ws, OLD, T0, ["bought"])
    take_snapshot(ws, read_catalogue(TEXT.format(least=1).replace("kind: flag, when: orders_all >= 1", "kind: column, from: members.region")), T1, ["bought"])
    manifest = json.loads((ws.folder / "manifest.json").read_text())
    kept = {n: t for n, t in manifest["tables"].items() if n not in ("orders", "order_lines")}
    (ws.folder / "manifest.json").write_text(json.dumps({**manifest, "tables": kept}))
    made = adds_up(diff(open_workspace(ws.root), T0, T1))
    assert "cannot be computed on today's data" in made.notes[0] and made.parts().definition.iloc[0] > 0


def test_how_it_reads(ws):
    for day in (T0, T1): take_snapshot(ws, OLD, day, ["bought"])
    made = diff(ws, T0, T1)
    assert "Behaviour" in str(made) and "2023-06-01 → 2023-08-01" in made.to_text()
    assert "行为变化" in made.to_html("zh") and "<table" in made._repr_html_()
    assert not any(i in made.to_html() for i in ws.table("members").member_id.execute())
    with pytest.raises(ParameterError, match="Did you mean 'bought'"): diff(ws, T0, T1, "bougt")
    with pytest.raises(NotComputable, match="no snapshot of 2023-07-01"): diff(ws, T0, "2023-07-01")
    with pytest.raises(ParameterError, match="bought"): made.matrix("bough")


LISTS = """
sources: {{lines: {{table: order_lines, join: {{products: product_id}}}}}}
tags:
  likes: {{class: interest, kind: affinity, source: lines, by: products.category, days: 365, top: 3, min_tgi: {tgi}, title: {{en: Likes, zh: 喜好}}}}
  item: {{class: interest, kind: distribution, source: lines, by: product_id, days: all, min_rows: 1, min_share: 0.01, title: {{en: Item, zh: 商品}}}}
"""


def test_lists_are_counted_value_by_value(ws):
    for day, tgi in ((T0, 100), (T1, 900)): take_snapshot(ws, read_catalogue(LISTS.format(tgi=tgi)), day, ["likes"])
    made = adds_up(diff(ws, T0, T1))
    a, b = ({k: None if v is None else set(v) for k, v in Store(ws).snapshot(d).table().execute().set_index("member_key").likes.items()} for d in (T0, T1))
    singles = {v for some in (a, b) for values in some.values() for v in values or ()}
    assert set(made.values.value) == singles | {"[]", "unknown"} and any(len(v or ()) == 3 for v in a.values())
    for value, has in [*((v, lambda s, v=v: s is not None and v in s) for v in singles), ("[]", lambda s: s == set()), ("unknown", lambda s: s is None)]:
        old, new = ({k for k, v in some.items() if has(v)} for some in (a, b))
        got = row(made, "likes", value)
        assert (got.before, got.entered, got.left, got.after) == (len(old), len(new - old), len(old - new), len(new)), value
    assert row(made, "likes", "[]").definition > 0 and "Likes" in made.to_text("en") and "Unknown" in made.to_text("en")
    changed = sum(a.get(k, 0) != b.get(k, 0) for k in a.keys() | b.keys())
    assert made.moves.members.sum() == changed       # a member who changed is counted once


def test_a_tag_of_many_values_shows_those_that_moved_most(ws):
    for day in (T0, T1): take_snapshot(ws, read_catalogue(LISTS.format(tgi=100)), day, ["item"])
    made = diff(ws, T0, T1)
    n, text = len(made.values), made.to_text("en")
    shown = made.values[made.values.value.map(lambda v: f"\n{v} " in text)]
    assert n > 30 and len(shown) <= 20 and f"{n - 20} more values" in text and f"{n - 20} more values" in made.to_html("en")
    assert (shown.entered + shown.left).min() >= made.values.drop(shown.index)[["entered", "left"]].sum(axis=1).drop(
        made.values.index[made.values.value == "unknown"], errors="ignore").max()


def columns(text): return max(sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in line) for line in text.splitlines())


def test_tables_fit_a_terminal_and_align_in_chinese(ws):
    for day in (T0, T1): take_snapshot(ws, OLD, day)
    made = diff(ws, T0, T1)
    for lang in ("en", "zh"):
        text = made.to_text(lang)
        assert columns(text) <= 100
        block = text.split("bought")[1].split("\n\n")[0].splitlines()[1:]
        assert len(block) >= 3 and len({columns(line) for line in block}) == 1     # the last column ends in one place
