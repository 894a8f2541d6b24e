"""Grains against a member-by-member account in plain Python, over random histories, on both engines."""

from collections import defaultdict
from datetime import date, datetime, timedelta

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memtag_research.data.contracts import MONEY_KINDS, ORDER_KINDS, UNIT_KINDS
from memtag_research.data.engine import as_table, connect, known, to_frame
from memtag_research.data.grains import member_days_grain, orders_grain

START = date(2017, 1, 1)
CON = connect()


def line(order, member, day, cents, kind="sale", original=None, quantity=1):
    at = START + timedelta(days=day)
    return dict(order_id=order, member_id=member, line_kind=kind, ts=datetime(at.year, at.month, at.day, 10), local_date=at,
                local_hour=10, quantity=quantity, net_cents=cents, original_order_id=original)


def typed(rows):
    "Texts stay texts when all are null."
    return pd.DataFrame(rows).astype({c: "string" for c in ("order_id", "member_id", "original_order_id")})


@st.composite
def histories(draw):
    "Orders of five members and of nobody, with kinds of every sort and refunds, some whole, some under the order's own number."
    rows = []
    for i in range(draw(st.integers(1, 25))):
        member, day = draw(st.sampled_from(["a", "b", "c", "d", "e", None])), draw(st.integers(0, 6))
        kinds = draw(st.lists(st.sampled_from(["sale", "sale", "gift", "service", "shipping", "exchange", "topup"]), min_size=1, max_size=3))
        rows += [line(f"o{i}", member, day, draw(st.integers(0, 50)), k, quantity=draw(st.integers(1, 4))) for k in kinds]
        for _ in range(draw(st.integers(0, 2))):
            back, own = draw(st.integers(1, 80)), draw(st.booleans())
            rows.append(line(f"o{i}" if own else f"r{len(rows)}", member, day + draw(st.integers(0, 5)), -back, "return", None if own else f"o{i}"))
    return typed(rows)


def account(lines, as_of):
    "member → (orders, days, net, units), by the definitions of docs/architecture.md and nothing else."
    lines = [r for r in lines.to_dict("records") if r["local_date"] < as_of]
    sold, who, refunds = defaultdict(int), {}, defaultdict(int)
    for r in lines:
        if r["line_kind"] in ORDER_KINDS:
            sold[r["order_id"]] += r["net_cents"]
            who[r["order_id"]] = (r["member_id"], r["local_date"])
        if r["line_kind"] == "return": refunds[r["original_order_id"] or r["order_id"]] += r["net_cents"]
    valid = [o for o, net in sold.items() if net > 0 and net + refunds[o] > 0]
    out = {}
    for m in "abcde":
        mine = [o for o in valid if who[o][0] == m]
        money = sum(r["net_cents"] for r in lines if r["member_id"] == m and r["line_kind"] in MONEY_KINDS)
        units = sum(r["quantity"] for r in lines if r["member_id"] == m and r["line_kind"] in UNIT_KINDS)
        out[m] = (len(mine), len({who[o][1] for o in mine}), money, units)
    return out


def computed(lines, as_of):
    days = known(member_days_grain(as_table(lines, CON)), as_of)
    alive = days.cancelled_date.isnull()
    got = to_frame(days.group_by("member_id").agg(
        orders=days.orders.sum(where=alive).fill_null(0), days=days.purchase_days.sum(where=alive).fill_null(0),
        net=days.net_cents.sum(), units=days.units.sum())).set_index("member_id")
    return {m: tuple(int(v) for v in got.loc[m]) if m in got.index else (0, 0, 0, 0) for m in "abcde"}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(histories(), st.integers(1, 13))
def test_member_days_at_every_date(lines, day):
    as_of = START + timedelta(days=day)
    expected = account(lines, as_of)
    got = computed(lines, as_of)
    # a member whose units come with a day of no money and no order leaves no row: units without orders are not asked for
    assert {m: v[:3] for m, v in got.items()} == {m: v[:3] for m, v in expected.items()}
    cut = lines[lines.local_date < as_of]
    if len(cut): assert computed(cut, as_of) == got


@settings(max_examples=8, deadline=None)
@given(histories(), st.randoms())
def test_row_order_is_irrelevant(lines, random):
    shuffled = lines.sample(frac=1, random_state=random.randrange(2**31))
    same = [to_frame(orders_grain(as_table(f, CON)).order_by("order_id")) for f in (lines, shuffled)]
    pd.testing.assert_frame_equal(*same)


def grains_of(frame, con):
    lines = as_table(frame, con)
    return (to_frame(orders_grain(lines).order_by("order_id")),
            to_frame(member_days_grain(lines).order_by("member_id", "local_date", "cancelled_date")))


def test_spark_cell_for_cell(spark):
    rows = []
    for i in range(60):
        member = None if i % 7 == 0 else f"m{i % 5}"
        rows.append(line(f"o{i}", member, i % 9, 100 + i, "gift" if i % 11 == 0 else "sale", quantity=i % 3 + 1))
        if i % 4 == 0: rows.append(line(f"r{i}", member, i % 9 + 2, -(100 + i), "return", f"o{i}"))
        if i % 6 == 0: rows.append(line(f"x{i}", member, i % 9 + 1, -10, "return", None))
    frame = typed(rows).astype({"quantity": "float64"})
    for ours, theirs in zip(grains_of(frame, CON), grains_of(frame, spark), strict=True):
        assert len(ours) and ours.cancelled_date.notna().any()
        pd.testing.assert_frame_equal(ours, theirs[ours.columns], check_dtype=False)


@pytest.mark.parametrize("grain", [orders_grain, member_days_grain])
def test_written_grains_keep_whole_numbers(grain, tmp_path):
    frame = typed([line("o1", "a", 0, 500), line("o2", "a", 0, 300), line("r", "a", 3, -300, "return", "o2")])
    CON.to_parquet(grain(as_table(frame, CON)), tmp_path / "g.parquet")
    for column, kind in CON.read_parquet(tmp_path / "g.parquet").schema().items():
        assert not kind.is_floating(), f"{column} is written as {kind}"
