"""Rows known at a date, and what they add up to: against pandas, against cut and poisoned tables, and against themselves."""

import json
from datetime import date, datetime, timedelta
from functools import cache

import ibis
import numpy as np
import pandas as pd
import pytest
import tag_world as world
from pandas.testing import assert_frame_equal

from memtag_research.core import DefinitionError, NotComputable
from memtag_research.data.engine import connect, to_frame
from memtag_research.tags import rows
from memtag_research.tags.definition import Metric, Source
from memtag_research.tags.rows import Known, metric_columns

AS_OF = world.AS_OF
SOURCES = {
    s.name: s
    for s in [
        Source(name="orders", table="orders", where="is_null(cancelled_date)"),
        Source(name="days", table="member_days", where="is_null(cancelled_date)"),
        Source(name="lines", table="order_lines", join={"products": "product_id", "stores": "store_id"}, derive={"margin": "net_cents - cost_cents"}),
        Source(name="sales", table="order_lines", where="line_kind == 'sale'"),
        Source(name="events", table="events"),
        Source(name="paid", table="payments", key="orders.member_id", join={"orders": "order_id"}, where="is_null(orders.cancelled_date)"),
        Source(name="points", table="points_ledger"),
        Source(name="tiers", table="tier_history"),
        Source(name="people", table="members"),
    ]
}
# source, aggregate, of, where, days, offset
SPECS = {
    "orders_all": ("orders", "count", "", "", "all", 0),
    "orders_90d": ("orders", "count", "", "", 90, 0),
    "orders_before": ("orders", "count", "", "", 90, 90),
    "orders_180d": ("orders", "count", "", "", 180, 0),
    "recency": ("orders", "days_since_last", "", "", "all", 0),
    "first": ("orders", "days_since_first", "", "", 365, 0),
    "days_bought": ("days", "sum", "purchase_days", "", "all", 0),
    "net": ("lines", "sum", "net_cents", "", "all", 0),
    "net_90d": ("lines", "sum", "net_cents", "", 90, 0),
    "promo": ("lines", "sum", "net_cents", "discount_cents > 0", 180, 30),
    "margin": ("lines", "sum", "margin", "", 200, 0),
    "margin_mean": ("lines", "mean", "margin", "", "all", 0),
    "tenth": ("lines", "sum", "net_cents * 0.1", "", "all", 0),
    "units": ("sales", "sum", "quantity", "", "all", 0),
    "largest": ("sales", "max", "net_cents", "", 120, 0),
    "smallest_units": ("sales", "min", "quantity", "", "all", 0),
    "categories": ("lines", "count_distinct", "products.category", "", 365, 0),
    "first_brand": ("lines", "first", "products.brand", "", "all", 0),
    "last_kind": ("lines", "last", "stores.kind", "net_cents > 0", "all", 0),
    "late_kinds": ("lines", "count", "discount_cents", "local_hour >= 18", "all", 0),
    "views": ("events", "count", "", "event == 'view_item'", 30, 0),
    "last_topic": ("events", "last", "topic", "", "all", 0),
    "cash": ("paid", "sum", "cents", "tender == 'cash'", 365, 0),
    "points": ("points", "sum", "points", "", "all", 0),
    "tiers": ("tiers", "count_distinct", "tier", "", "all", 0),
    "tenure": ("people", "days_since_first", "", "", "all", 0),
}
METRICS = [Metric(name=n, source=s, agg=a, of=o, where=w, days=d, offset=off) for n, (s, a, o, w, d, off) in SPECS.items()]


@cache
def engine_tables():
    return world.in_engine(world.tables())


@pytest.fixture(scope="module")
def tables():
    return engine_tables()


def computed(tables, as_of=AS_OF, metrics=METRICS, **how) -> pd.DataFrame:
    "A row a member, by member."
    frame = to_frame(metric_columns(Known(tables, as_of, **how), metrics, SOURCES))
    return frame.sort_values("member_id").set_index("member_id")


def assert_same(a, b):
    assert_frame_equal(a.reindex(columns=b.columns), b, check_exact=True)


# --- another implementation -------------------------------------------------------------------------------------------


@cache
def raw(name):
    "A table, or a grain, in pandas."
    return to_frame(engine_tables()[name])


def past(name, as_of):
    "Rows in pandas before a date, ends that had not come taken away."
    frame = raw(name).copy()
    if name == "tier_history":
        frame["local_date"] = frame.valid_from
    cut = pd.Timestamp(as_of)
    if name != "payments":
        frame = frame[frame.local_date.isna() | (frame.local_date < cut)] if name == "members" else frame[frame.local_date < cut]
    for end in ("cancelled_date", "closed_date", "expires_date", "valid_to"):
        if end in frame:
            frame[end] = frame[end].where(frame[end] < cut)
    return frame


@cache
def source_rows(name, as_of):
    "The rows of each source above, said in pandas."
    if name in ("orders", "days"):
        frame = past({"orders": "orders", "days": "member_days"}[name], as_of)
        return frame[frame.cancelled_date.isna()]
    if name in ("lines", "sales"):
        lines = past("order_lines", as_of)
        if name == "sales":
            return lines[lines.line_kind == "sale"]
        products, stores = (raw(t).add_prefix(f"{t}.") for t in ("products", "stores"))
        lines = lines.merge(products, "left", left_on="product_id", right_on="products.product_id")
        lines = lines.merge(stores, "left", left_on="store_id", right_on="stores.store_id")
        return lines.assign(margin=lines.net_cents - lines.cost_cents)
    if name == "paid":
        orders = past("orders", as_of)
        orders = orders[orders.cancelled_date.isna()]
        return raw("payments").merge(orders[["order_id", "member_id", "local_date"]], "inner", "order_id")
    return past({"events": "events", "points": "points_ledger", "tiers": "tier_history", "people": "members"}[name], as_of)


WHERE = {
    "": lambda f: f.index == f.index,
    "discount_cents > 0": lambda f: f.discount_cents > 0,
    "net_cents > 0": lambda f: f.net_cents > 0,
    "local_hour >= 18": lambda f: f.local_hour >= 18,
    "event == 'view_item'": lambda f: f.event == "view_item",
    "tender == 'cash'": lambda f: f.tender == "cash",
}


def in_pandas(spec, as_of=AS_OF) -> dict:
    "member → value, for members with rows."
    source, agg, of, where, days, offset = spec
    frame = source_rows(source, as_of)
    frame = frame[frame.member_id.notna() & WHERE[where](frame)]
    end = pd.Timestamp(as_of) - pd.Timedelta(days=offset)
    if days != "all":
        frame = frame[(frame.local_date >= end - pd.Timedelta(days=days)) & (frame.local_date < end)]
    elif offset:
        frame = frame[frame.local_date < end]
    if agg.startswith("days_since"):
        frame = frame.assign(value=frame.local_date)
    elif of:
        frame = frame.assign(value=frame.net_cents / 10 if of == "net_cents * 0.1" else frame[of].astype(float) if of == "quantity" else frame[of])
    out, last = {}, pd.Timestamp(as_of) - pd.Timedelta(days=1)
    frame = frame[[c for c in ("member_id", "ts", "local_date", "value") if c in frame]]
    for member, mine in frame.groupby("member_id"):
        if not of and agg == "count":
            out[member] = len(mine)
            continue
        values = mine[mine.value.notna()].sort_values(["ts" if "ts" in mine else "local_date", "value"]).value
        if agg in ("count", "sum", "count_distinct"):
            out[member] = {"count": len, "sum": sum, "count_distinct": lambda v: v.nunique()}[agg](values)
        elif len(values):
            out[member] = {
                "mean": lambda v: v.sum() / len(v), "min": min, "max": max,
                "first": lambda v: v.iloc[0], "last": lambda v: v.iloc[-1],
                "days_since_first": lambda v: (last - v.min()).days, "days_since_last": lambda v: (last - v.max()).days,
            }[agg](values)  # fmt: skip
    return out


@pytest.mark.parametrize("as_of", [AS_OF, date(2023, 4, 2)])
def test_metrics_equal_pandas(tables, as_of):
    got = computed(tables, as_of)
    for name, spec in SPECS.items():
        want = pd.Series(in_pandas(spec, as_of), dtype=object).reindex(got.index)
        if spec[1] in ("count", "sum", "count_distinct"):
            want = want.fillna(0)
        assert want.notna().sum() > 2, name
        if got[name].dtype == object or str(got[name].dtype).startswith("str"):
            assert got[name].fillna("").tolist() == want.fillna("").tolist(), name
        else:
            np.testing.assert_allclose(got[name].astype(float), want.astype(float), rtol=1e-12, atol=1e-9, err_msg=name)


def test_members_are_those_of_the_lifecycle(tables):
    from memtag_research.measures.lifecycle import lifecycle_status

    status = lifecycle_status(tables["member_days"], AS_OF, 30, 60, members=tables["members"], merges=tables["member_merges"])
    mine = to_frame(Known(tables, AS_OF).members())
    assert sorted(mine.member_id) == sorted(status.member_id)
    assert len(mine) < len(to_frame(tables["members"]))


def members_at(tables, as_of): return set(to_frame(Known(tables, as_of).members()).member_id)


def merge_of(card, to, day, name="f"):
    "The table of merges with one more."
    more = f"SELECT * FROM t UNION ALL BY NAME SELECT '{card}' AS from_id, '{to}' AS to_id, TIMESTAMP '{day} 10:00:00' AS merged_at, DATE '{day}' AS local_date"
    merges = world.tables()["member_merges"]
    return {**world.tables(), "member_merges": world._sql(more, t=merges).cast(merges.schema)}


@pytest.mark.parametrize(("days", "member"), [(-1, False), (0, True), (1, True)])
def test_a_merged_card_is_a_member_until_its_merge_is_known(tables, days, member):
    "The merge lies on the day before as_of, on as_of, and after it: the card, and nobody else, goes in the first case."
    before = members_at(tables, AS_OF)
    card, other = sorted(before & set(raw("member_days").member_id))[:2]
    planted = world.in_engine(merge_of(card, other, AS_OF + timedelta(days)))
    assert members_at(planted, AS_OF) == (before if member else before - {card})
    assert members_at(planted, AS_OF + timedelta(days + 1)) == members_at(tables, AS_OF + timedelta(days + 1)) - {card}


def test_members_add_up_to_valid_members(tables):
    "The KPI counts those with a day of joining; beside these there are members whose day nobody knows, and who bought before it."
    from memtag_research.measures.metrics import Book, valid_members
    from memtag_research.measures.periods import parse_period

    counted = 0
    for period in ("2023-06", "2023-12", "2024-02", "2024-05"):
        end = parse_period(period).end
        gone = past("members", end)[lambda f: f.closed_date.notna()].member_id, past("member_merges", end).from_id
        joined = raw("members")[lambda f, end=end: f.local_date < pd.Timestamp(end)].member_id
        unknown = (set(past("members", end).member_id) | set(past("member_days", end).member_id)) - {*joined} - {*gone[0]} - {*gone[1]}
        kpi = valid_members(Book(**{n: tables[n] for n in ("members", "member_merges", "order_lines", "orders")}), period)
        assert len(members_at(tables, end)) == kpi + len(unknown), period
        counted += len(gone[1])
    assert counted > 3   # else no merge had come


def test_members_are_the_valid_members_where_all_joined_before_they_bought():
    "Equality of the base of tags with the KPI, member for member in number, at dates around every merge."
    from memtag_research.measures.metrics import Book, valid_members

    joined = world._sql("SELECT * REPLACE (coalesce(least(local_date, first), local_date, first, DATE '2023-01-01') AS local_date) FROM t LEFT JOIN "
                        "(SELECT member_id, min(local_date) AS first FROM lines GROUP BY member_id) USING (member_id)",
                        t=world.tables()["members"], lines=world.tables()["order_lines"]).select(world.tables()["members"].column_names)
    known = world.in_engine({**world.tables(), "members": joined})
    book = Book(**{n: known[n] for n in ("members", "member_merges", "order_lines", "orders")})
    for day in sorted({d + timedelta(k) for d in raw("member_merges").local_date.dt.date for k in (0, 1)}):
        assert len(members_at(known, day)) == valid_members(book, f"2023-01-01..{day - timedelta(1)}"), day


# --- nothing of the future ---------------------------------------------------------------------------------------------


def cut_tables(which):
    return world.in_engine({"cut": world.cut, "poison": world.poison}[which](world.tables(), AS_OF))


@pytest.mark.parametrize("which", ["cut", "poison"])
def test_the_future_changes_nothing(tables, which, monkeypatch):
    changed, before = cut_tables(which), computed(tables)
    assert_same(computed(changed), before)
    monkeypatch.setattr(rows, "known", lambda table, as_of: table)
    leaked, other = computed(tables), computed(changed)
    differing = [n for n in SPECS if not leaked[n].reindex(other.index).equals(other[n])]
    bounded = {"orders_before", "promo"}  # their windows end before as_of
    past = {"first_brand", "last_kind", "last_topic", "smallest_units"}  # of a future that says the same again, a thousandfold
    assert set(SPECS) - set(differing) <= (bounded if which == "cut" else past)


def test_moments_beside_ends_are_hidden_too(tables):
    orders = to_frame(Known(tables, AS_OF).table("orders"))
    assert (orders.cancelled_at.isna() == orders.cancelled_date.isna()).all()
    assert orders.cancelled_at.notna().any()
    assert orders.cancelled_at.max() < pd.Timestamp(AS_OF) + pd.Timedelta(days=1)


def test_what_was_recorded_late_was_not_known():
    late, without = world.learn_late(world.tables(), AS_OF)
    assert_same(computed(world.in_engine(late), knowledge_time=True), computed(world.in_engine(without)))
    assert not computed(world.in_engine(late)).equals(computed(world.in_engine(without)))


def test_the_midnight_of_knowledge_is_that_of_the_zone():
    "At 16:00 UTC of 8 March the 9th begins in Shanghai."
    con, stamps = connect(), [datetime(2024, 3, 8, 15, 59), datetime(2024, 3, 8, 16, 1)]
    lines = pd.DataFrame({"member_id": ["a", "b"], "local_date": [date(2024, 3, 8)] * 2, "recorded_at": stamps})
    events = con.create_table("events", lines)
    seen = lambda **how: sorted(to_frame(Known({"events": events}, date(2024, 3, 9), knowledge_time=True, **how).table("events")).member_id)
    assert seen(zone="Asia/Shanghai") == ["a"]
    assert seen(zone="UTC") == ["a", "b"]


# --- against themselves -----------------------------------------------------------------------------------------------


def test_windows_are_monotone_and_add_up(tables):
    got = computed(tables)
    assert (got.orders_180d >= got.orders_90d).all()
    assert (got.orders_90d + got.orders_before == got.orders_180d).all()
    assert (got.orders_before > 0).any()
    assert (got.orders_all >= got.orders_180d).all()


def test_neither_order_of_rows_nor_threads_matter():
    base, needed = None, ("order_lines", "members", "products", "stores")
    some = [m for m in METRICS if m.source in ("orders", "lines", "sales", "people")]
    for run in range(10):
        con = connect(threads=1 + run % 3)
        shuffled = {n: t.take(np.random.default_rng(run).permutation(t.num_rows)) for n, t in world.tables().items() if n in needed}
        got = computed(world.in_engine(shuffled, con), metrics=some)
        base = got if base is None else base
        assert_same(got, base)


def scans(tables, names) -> list[dict]:
    "What DuckDB reads for some metrics: columns and filters of each scan."
    sql = str(ibis.to_sql(metric_columns(Known(tables, AS_OF), [m for m in METRICS if m.name in names], SOURCES)))
    found, nodes = [], json.loads(tables["orders"].get_backend().con.execute("EXPLAIN (FORMAT json) " + sql).fetchall()[0][1])
    while nodes:
        node = nodes.pop()
        nodes += node["children"]
        if "PARQUET" in node["name"]:
            found.append(node["extra_info"])
    return found


def test_one_scan_a_source_and_only_the_columns_used(tables):
    read = scans(tables, ("net", "net_90d", "promo"))
    lines = [set(s["Projections"]) for s in read if "net_cents" in s["Projections"]]
    assert lines == [{"member_id", "local_date", "net_cents", "discount_cents"}]
    assert len(read) == 5, "order_lines, members (twice: who joined, who left), member_merges, member_days"


def test_rows_before_every_window_are_not_read(tables):
    wanted = str(AS_OF - timedelta(days=180))
    assert any(wanted in str(s.get("Filters")) for s in scans(tables, ("orders_90d", "orders_before")))
    assert not any(wanted in str(s.get("Filters")) for s in scans(tables, ("orders_90d", "orders_all")))


# --- what is not there ------------------------------------------------------------------------------------------------


def test_what_is_missing_is_said_and_the_rest_is_computed(tables):
    fewer = {n: t for n, t in tables.items() if n not in ("events", "stores")}
    fewer["order_lines"] = tables["order_lines"].drop("discount_cents")
    gaps = {}
    got = to_frame(metric_columns(Known(fewer, AS_OF), METRICS, SOURCES, gaps)).sort_values("member_id").set_index("member_id")
    assert set(gaps) == {"views", "last_topic", "last_kind", "promo", "late_kinds"}
    assert gaps["views"] == "there is no table events" and gaps["last_kind"] == "there is no table stores"
    assert gaps["promo"] == "the table order_lines has no column discount_cents in this workspace"
    assert_same(got, computed(tables)[got.columns])
    with pytest.raises(NotComputable, match="metric views: there is no table events"):
        metric_columns(Known(fewer, AS_OF), METRICS, SOURCES)


@pytest.mark.parametrize(
    "source, words",
    [
        (Source(name="x", table="order_line"), "Did you mean 'order_lines'"),
        (Source(name="x", table="order_lines", where="net_cent > 1"), "Did you mean 'net_cents'"),
        (Source(name="x", table="order_lines", join={"benefits": "tier"}), "rows would count twice|no column tier"),
        (Source(name="x", table="orders", key="members.household_id", join={"members": "household"}), "household"),
        (Source(name="x", table="products"), "member_id"),
    ],
)
def test_wrong_sources_are_refused(tables, source, words):
    with pytest.raises((DefinitionError, NotComputable), match=words):
        Known(tables, AS_OF).rows(source)


def test_a_table_without_dates_has_no_windows(tables):
    every = Source(name="x", table="identities")
    count = lambda days: metric_columns(Known(tables, AS_OF), [Metric(name="n", source="x", agg="count", days=days)], {"x": every})
    assert to_frame(count("all")).n.sum() > 0
    with pytest.raises(DefinitionError, match="no date"):
        count(30)
