"Stages, the bridge and the funnel against a member-by-member account, at every date, cut and poisoned."
from functools import lru_cache

import pandas as pd
import pytest
from histories import (
    MEMBERS,
    Order,
    Tables,
    closings,
    dates,
    engine,
    histories,
    lines_of,
    members_table,
    on,
    online_retail,
    poisoned,
    tables_of,
)
from hypothesis import Phase, given, settings

from memtag_research.core import ParameterError
from memtag_research.data.engine import as_table
from memtag_research.measures import lifecycle
from memtag_research.measures.lifecycle import (
    STAGES,
    bridge_members,
    dormant_funnel,
    lifecycle_by_value,
    lifecycle_status,
    membership_bridge,
    plot_bridge,
    status_migration,
)

D1, D2, K = 10, 25, 3
few = settings(max_examples=5, deadline=None, phases=[Phase.generate])   # a seed does not shrink


def stage_of(history, closed, member, as_of):
    "The rule, for one member, as a person would apply it."
    if closed.get(member) is not None and closed[member] < as_of: return "closed"
    days = {o.day for o in history if o.member == member and o.stands(as_of)}
    if not days: return "prospect"
    recency = as_of - 1 - max(days)
    if recency > D2: return "lost"
    if recency > D1: return "dormant"
    return "intro" if len(days) == 1 else "growth" if len(days) < K else "mature"


def stages_of(history, closed, as_of): return {m: stage_of(history, closed, m, as_of) for m in MEMBERS}


@few
@given(histories, closings, dates)
def test_stages_as_a_person_would_give_them(history, closed, span):
    tables, as_of = tables_of(history), span[1]
    got = lifecycle_status(tables.member_days, on(as_of), D1, D2, K, members_table(closed))
    expected = {m: s for m, s in stages_of(history, closed, as_of).items() if s != "closed"}
    assert got.set_index("member_id").stage.to_dict() == expected
    assert set(got.stage) <= set(STAGES)
    for row in got.itertuples():
        days = {o.day for o in history if o.member == row.member_id and o.stands(as_of)}
        assert row.purchase_days == len(days)
        assert pd.isna(row.recency_days) if not days else row.recency_days == as_of - 1 - max(days)


def test_limits_belong_to_the_better_stage():
    "Recency D1 is active, D1 + 1 dormant, D2 dormant, D2 + 1 lost; the K-th purchase day makes a member mature."
    ago = {"a": [D1], "b": [D1 + 1], "c": [D2], "d": [D2 + 1], "e": [0, 1], "f": [0, 1, 2]}
    days = _days(*(_day(m, 80 - r) for m, recencies in ago.items() for r in recencies))
    status = lifecycle_status(days, on(81), D1, D2, K)
    assert status.stage.tolist() == ["intro", "dormant", "dormant", "lost", "growth", "mature"]
    assert status.recency_days.tolist() == [D1, D1 + 1, D2, D2 + 1, 0, 0]


def moves_of(history, closed, start, end):
    "member → entered, left; by hand."
    active = {"intro", "growth", "mature"}
    moves = {}
    for m in MEMBERS:
        was, now = stage_of(history, closed, m, start), stage_of(history, closed, m, end)
        standing = {o.day for o in history if o.member == m and o.stands(end)}
        entered = None
        if was == "prospect" and standing: entered = "new"
        if was in ("dormant", "lost") and any(d >= start for d in standing): entered = "reactivated"
        left = None if now in active or not (was in active or entered) else now.replace("prospect", "cancelled")
        moves[m] = entered, left
    return moves


@few
@given(histories, closings, dates)
def test_bridge_adds_up_to_the_member(history, closed, span):
    start, end = span
    tables, members = tables_of(history), members_table(closed)
    args = tables.member_days, on(start), on(end), D1, D2, members
    bridge, who = membership_bridge(*args).set_index("movement"), bridge_members(*args).set_index("member_id")
    active = [sum(stage_of(history, closed, m, d) in ("intro", "growth", "mature") for m in MEMBERS) for d in span]
    assert [bridge.members.opening, bridge.members.closing] == active
    assert bridge.members.opening + bridge.change.sum() == bridge.members.closing
    for member, (entered, left) in moves_of(history, closed, start, end).items():
        row = who.loc[member]
        assert (None if pd.isna(row.entered) else row.entered, None if pd.isna(row.left) else row.left) == (entered, left)
    for name in ("new", "reactivated"): assert bridge.members[name] == (who.entered == name).sum()
    for name in ("dormant", "lost", "closed", "cancelled"):
        assert bridge.members[name] == (who.left == name).sum()
        assert bridge.entered[name] == ((who.left == name) & who.entered.notna()).sum()


@few
@given(histories, closings, dates)
def test_funnel_and_migration_agree_with_the_bridge(history, closed, span):
    start, end = span
    tables, members = tables_of(history), members_table(closed)
    funnel = dormant_funnel(tables.member_days, on(start), on(end), D1, D2, members).set_index("step")
    bridge = membership_bridge(tables.member_days, on(start), on(end), D1, D2, members).set_index("movement")
    quiet = [m for m, s in stages_of(history, closed, start).items() if s in ("dormant", "lost")]
    bought = {m: {o.day for o in history if o.member == m and start <= o.day and o.stands(end)} for m in quiet}
    assert funnel.members["base"] == len(quiet)
    assert funnel.members["ordered"] == sum(bool(d) for d in bought.values()) == bridge.members.reactivated
    assert funnel.members["again"] == sum(len(d) > 1 for d in bought.values())
    before, after = (lifecycle_status(tables.member_days, on(d), D1, D2, K, members) for d in span)
    moved = status_migration(before, after)
    assert moved.to_numpy().sum() == len({*before.member_id, *after.member_id})
    assert moved.sum(axis=1).drop("none", errors="ignore").to_dict() == before.stage.value_counts().to_dict()


HISTORY = [(m, d, a) for m, days in {"a": (3, 20, 41, 60), "b": (5, 9), "c": (40,), "d": (2, 58), "e": (30, 31, 50)}.items()
           for d, a in zip(days, (None, 30, None, 2))]


def _long_history():
    return [Order(m, d, 100 + d, "shop" if d % 2 else "app", after, 1.) for m, d, after in HISTORY]


MEASURES = {
    "status": lambda t, as_of: lifecycle_status(t.member_days, as_of, D1, D2, K),
    "bridge": lambda t, as_of: membership_bridge(t.member_days, on(20), as_of, D1, D2),
    "who": lambda t, as_of: bridge_members(t.member_days, on(20), as_of, D1, D2),
    "funnel": lambda t, as_of: dormant_funnel(t.member_days, on(30), as_of, D1, D2)}


@lru_cache
def _variants(day):
    "The log whole, cut at a day, and poisoned from it on."
    lines = lines_of(_long_history())
    return [Tables(t, engine()) for t in (lines, lines[lines.local_date < on(day)], poisoned(lines, on(day)))]


def _same(measure, day):
    full, *others = (MEASURES[measure](t, on(day)) for t in _variants(day))
    return all(full.equals(o) for o in others)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("day", [41, 62])     # on both, refunds and orders of members seen before still lie ahead
def test_the_future_is_not_known(measure, day): assert _same(measure, day)


@pytest.mark.parametrize("measure", MEASURES)
def test_and_these_tests_see_it_where_the_filter_is_gone(measure, monkeypatch):
    monkeypatch.setattr(lifecycle, "known", lambda table, as_of, ends=None: table)
    assert not _same(measure, 41)


def test_row_order_is_irrelevant():
    lines = lines_of(_long_history())
    other = lines.sample(frac=1, random_state=1)
    a, b = (lifecycle_status(Tables(t, engine()).member_days, on(55), D1, D2, K) for t in (lines, other))
    assert a.equals(b)


# Online Retail, counted by one SQL statement that knows nothing of this package but the grain's days.
_SQL = """
WITH days AS (SELECT DISTINCT CustomerID AS m, InvoiceDate::DATE AS d FROM read_parquet('{path}')
              WHERE CustomerID IS NOT NULL AND Quantity > 0 AND UnitPrice > 0 AND InvoiceNo[1] NOT IN ('C', 'A')),
s AS (SELECT m, max(d) FILTER (d < DATE '2011-11-01') AS a, max(d) FILTER (d < DATE '2011-12-01') AS b,
      min(d) FILTER (d < DATE '2011-12-01') AS f FROM days GROUP BY m)
SELECT count(*) FILTER (DATE '2011-10-31' - a <= 110), count(*) FILTER (DATE '2011-11-30' - b <= 110),
       count(*) FILTER (f >= DATE '2011-11-01'), count(*) FILTER (DATE '2011-10-31' - a > 110 AND b >= DATE '2011-11-01')
FROM s"""


def test_bridge_of_online_retail():
    import duckdb
    from histories import ROOT
    tables = online_retail()
    bridge = membership_bridge(tables.member_days, "2011-11-01", "2011-12-01", 110, 220).set_index("movement")
    path = ROOT / "data" / "shipped" / "online_retail.parquet"
    assert duckdb.sql(_SQL.format(path=path)).fetchone() == tuple(
        bridge.members[["opening", "closing", "new", "reactivated"]])
    assert bridge.members.to_dict() == dict(opening=2652, new=323, reactivated=231, dormant=198, lost=0, closed=0,
                                            cancelled=0, closing=3008)


def test_three_roads_to_recency_and_reactivation():
    metrics, rfm = pytest.importorskip("memtag_research.measures.metrics"), pytest.importorskip("memtag_research.measures.rfm")
    from memtag_research.data.engine import to_frame
    tables = online_retail()
    assert metrics.repurchase_cycle(tables.member_days, "2011-12-10")[:3] == (28, 70, 110)
    status = lifecycle_status(tables.member_days, "2011-12-01", 110, 220).set_index("member_id").sort_index()
    summary = to_frame(rfm.rfm_summary(tables.member_days, "2011-12-01")).set_index("member_id").sort_index()
    assert status.recency_days.tolist() == summary.recency_days.tolist()
    assert status.purchase_days.tolist() == summary.purchase_days.tolist()
    book = metrics.Book(order_lines=tables.order_lines, orders=tables.orders, dormant_days=60, lost_days=120)
    bridge = membership_bridge(tables.member_days, "2011-11-01", "2011-12-01", 60, 120).set_index("movement")
    funnel = dormant_funnel(tables.member_days, "2011-11-01", "2011-12-01", 60, 120).set_index("step")
    assert metrics.reactivation_rate(book, "2011-11") == pytest.approx(funnel.share_of_base["ordered"], abs=1e-12)
    assert bridge.members.new == metrics.new_customers(book, "2011-11")
    stayed = bridge.members.opening - sum(bridge.members[m] - bridge.entered[m] for m in ("dormant", "lost", "closed", "cancelled"))
    assert metrics.member_churn_rate(book, "2011-11") == pytest.approx(1 - stayed / bridge.members.opening, abs=1e-12)


def _day(member, day): return dict(member_id=member, local_date=on(day), orders=1, purchase_days=1, cancelled_date=None,
                                   first_ts=pd.Timestamp(on(day)) + pd.Timedelta(hours=10))


def _days(*rows):
    "Rows of `member_days`; a column of nothing but None has no type of its own."
    table = as_table(pd.DataFrame(rows), engine())
    return table.mutate(cancelled_date=table.cancelled_date.cast("date"))


def test_funnel_with_contacts_and_a_holdout():
    "Six quiet since day 0; the campaign keeps two out, reaches three, one of them after the order; nobody asks the sixth."
    days = _days(*(_day(m, 0) for m in "abcdef"), *(_day(m, d) for m, d in (("a", 42), ("a", 44), ("c", 45), ("d", 43), ("f", 41))))
    sent = pd.DataFrame([("a", 41, "treated"), ("b", 41, "treated"), ("c", 46, "treated"), ("d", 41, "holdout"), ("e", 41, "control")],
                        columns=["member_id", "day", "arm"])
    sent["local_date"] = [on(d) for d in sent.day]
    sent["ts"] = pd.to_datetime(sent.local_date) + pd.Timedelta(hours=9)
    seen = pd.DataFrame({"member_id": ["a", "a", "b", "z"], "event": ["view_item", "like", "like", "search"],
                         "local_date": [on(41)] * 4, "ts": [pd.Timestamp(on(41))] * 4})
    said = pd.DataFrame([("a", "sms", True, 0, None), ("b", "sms", True, 0, 30), ("c", "sms", True, 0, 60),
                         ("d", "sms", True, 0, None), ("d", "sms", False, 5, None), ("d", "app", True, 0, None),
                         ("e", "sms", True, 50, None), ("c", "sms", False, -5, None), ("e", "app", True, 0, None),
                         ("e", "app", False, 5, None)], columns=["member_id", "channel", "granted", "day", "until"])
    said = said.assign(purpose="marketing", local_date=[on(d) for d in said.day],
                       ts=[pd.Timestamp(on(d)) for d in said.day])
    consents = as_table(said.assign(expires_date=[None if pd.isna(u) else on(int(u)) for u in said.until]), engine())
    funnel = dormant_funnel(days, on(40), on(50), D1, D2, consents=consents, exposures=sent, events=seen)
    table = funnel.pivot(index="path", columns="step", values="members")[["base", "reachable", "reached", "visited", "ordered", "again"]]
    assert table.loc["all"].tolist() == [6, 3, 2, 1, 4, 1]          # a, c, d; b's ran out, e's was withdrawn or came late
    assert table.loc["contacted"].tolist() == [2, 1, 2, 1, 1, 1]    # a and b
    assert table.loc["natural"].tolist() == [2, 1, 0, 0, 2, 0]      # c was reached after the order; f
    assert table.loc["holdout"].tolist() == [2, 1, 0, 0, 1, 0]      # d and e
    assert (table.drop("all").sum() == table.loc["all"]).all()
    assert set(funnel.missing) == {""}


def test_first_orders_before_the_log_is_believed():
    days = _days(_day("a", 1), _day("b", 20), _day("c", 1), _day("c", 20))
    status = lifecycle_status(days, on(25), 30, 60, washout_end=on(10)).set_index("member_id")
    assert status.left_censored.to_dict() == {"a": True, "b": False, "c": True}
    bridge = membership_bridge(days, on(0), on(25), 30, 60, washout_end=on(10)).set_index("movement")
    assert (bridge.members.new, bridge.left_censored.new) == (3, 2)


def test_structure_adds_up():
    status = lifecycle_status(tables_of(_long_history()).member_days, on(62), D1, D2, K)
    table = lifecycle_by_value(status, pd.DataFrame({"member_id": ["a", "c"], "rfm_class": ["important_value", "general_keep"]}))
    assert table.to_numpy().sum() == len(status)
    assert table["none"].sum() == len(status) - 2
    assert status_migration(status, status).to_numpy().trace() == len(status)


@pytest.mark.parametrize("args, rule", [((on(5), on(5), D1, D2), "end after it starts"), ((on(5), on(9), 20, 10), "dormant_days"),
                                        (("2017", on(9), D1, D2), "as_of must be a date")])
def test_wrong_questions(args, rule):
    with pytest.raises(ParameterError, match=rule): membership_bridge(tables_of(_long_history()).member_days, *args)


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.filterwarnings("error:Glyph")
def test_bridge_is_drawn(lang, tmp_path):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    bridge = membership_bridge(tables_of(_long_history()).member_days, on(20), on(60), D1, D2)
    ax = plot_bridge(bridge, lang)
    ax.figure.savefig(tmp_path / "bridge.png")
    tops = [p.get_y() + p.get_height() for p in ax.patches]
    assert tops[-1] == bridge.members.iloc[-1] and tops[-2] == bridge.members.iloc[-1]   # the last movement ends at the total
