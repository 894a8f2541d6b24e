"""Baskets: what must add up adds up to the cent, in every world; and the planted tastes are found again."""

from dataclasses import replace
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, nbinom, poisson

from memtag_research.data.contracts import check_table
from memtag_research.data.engine import as_table, connect
from memtag_research.data.grains import orders_grain
from memtag_research.world.baskets import NEW_DAYS, SLOTS, basket_lines, make_assortment, make_products, make_stores
from memtag_research.world.parameters import NONE, Coded, Contacts, Numbered, Spend, Tastes, World
from memtag_research.world.people import DAY
from memtag_research.world.purchases import make_calendar

CON = connect()
RARE = 1e-4   # probability with which a right world would miss a bound
TINY = World(n_members=300, start="2024-01-01", end="2024-06-30", seed=3)


def invented(world, n_people, n, seed, low=1, high=50_000, most_orders_paid_with_points=.2):
    "People and orders of block 2 in the form of the contract, wilder than those of `world.purchases`."
    rng = np.random.default_rng(seed)
    n = n if n_people else 0
    people = {"interest": rng.integers(0, 10, n_people).astype(np.int8), "promo": rng.beta(1.5, 3, n_people),
              "newness": rng.beta(1, 3, n_people), "price_tier": rng.random(n_people)}
    people["second_interest"] = ((people["interest"] + rng.integers(1, 10, n_people)) % 10).astype(np.int8)
    person = np.sort(rng.integers(0, max(n_people, 1), n))
    ts = world.first_day * DAY + (rng.random(n) * world.days * DAY).astype(np.int64)
    ts[:2] = [world.first_day * DAY, world.last_day * DAY - 1][:n]      # the first and the last moment there is
    ts = ts[np.lexsort((ts, person))]
    value = np.exp(rng.uniform(np.log(low), np.log(high), n)).astype(np.int64).clip(1)
    channel = rng.choice(4, n, p=[.5, .25, .1, .15]).astype(np.int8)
    refund_ts = ts + rng.integers(0, 30 * DAY, n)
    back = (rng.random(n) < .3) & (refund_ts < world.last_day * DAY)
    refund = np.where(rng.random(n) < .5, value, rng.integers(1, value + 1)) if n else value
    orders = {"number": 30_000_000 + np.arange(n), "person": person, "card": person + n_people * (channel == 3), "ts": ts,
              "value_cents": value, "channel": channel, "store": np.where(channel == 0, rng.integers(0, 20, n), -1),
              "coupon": np.where(rng.random(n) < .2, 1, -1), "refund_ts": np.where(back, refund_ts, NONE),
              "refund_cents": np.where(back, refund, 0)}
    points = np.where(rng.random(n) < most_orders_paid_with_points, value * 3 // 10, 0)
    return people, orders, points


def plain(column):
    if isinstance(column, Coded): return pd.array(np.array([*column.values, None], object)[column.codes], "string")
    if isinstance(column, Numbered):
        return pd.array([None if n == NONE else f"{column.prefix}{n:0{column.width}}" for n in column.numbers], "string")
    return column


def frame(table): return pd.DataFrame({name: plain(column) for name, column in table.items()})


def basket(world, people, orders, points, block=2):
    tables, truth = basket_lines(world, block, make_assortment(world), people, orders, points)
    return frame(tables["order_lines"]), frame(tables["payments"]), truth


def product_rows(lines): return lines.product_id.str[1:].astype(int).to_numpy() - 1


@pytest.fixture(scope="module")
def big():
    "A block with many lines, its people, orders and tables; values around the middle of the price grid."
    people, orders, points = invented(TINY, 400, 30_000, 1, low=4_000, high=40_000)
    return people, orders, points, *basket(TINY, people, orders, points)


def within(count, n, p):
    low, high = binom.interval(1 - RARE, n, p)
    return low <= count <= high


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 40), st.integers(0, 200), st.integers(0, 10**6), st.sampled_from(["en", "zh"]), st.sampled_from([1., 3., 30.]),
       st.sampled_from([5, 50_000, 10**9]), st.sampled_from([0, .25, .9]))
def test_everything_adds_up(n_people, n, seed, locale, lines_mean, high, share):
    world = replace(TINY, locale=locale, seed=seed, tastes=Tastes(lines_mean=lines_mean), contacts=Contacts(non_member_share=share))
    people, orders, points = invented(world, n_people, n, seed, high=high)
    lines, payments, truth = basket(world, people, orders, points)
    n = len(orders["ts"])
    goods = lines[lines.line_kind.isin(["sale", "gift", "service"])].groupby("order_id")
    number = goods.sum(numeric_only=True).index.str[1:].astype(int)
    assert len(number) == n + truth["visitor_orders"] and (number == np.arange(30_000_000, 30_000_000 + len(number))).all()
    assert (goods.net_cents.sum().to_numpy()[:n] == orders["value_cents"]).all()
    assert (goods.points_cents.sum().to_numpy()[:n] == points * world.points.cents_per_point).all()
    assert ((goods.coupon_cents.sum().to_numpy()[:n] > 0) == (orders["coupon"] >= 0)).all()
    assert (lines.list_cents == lines.net_cents + lines.discount_cents + lines.coupon_cents + lines.points_cents).all()
    assert (lines[lines.line_kind == "sale"].net_cents > 0).all() and (lines.quantity != 0).all()
    assert (lines.coupon_funded_by.notna() == (lines.coupon_cents != 0)).all()
    paid, owed = payments.groupby("order_id").cents.sum(), (lines.net_cents + lines.points_cents).groupby(lines.order_id).sum()
    assert paid.to_dict() == owed[owed != 0].to_dict()
    assert lines.line_id.is_unique
    for column in ("member_id", "ts", "store_id", "channel"): assert (lines.groupby("order_id")[column].nunique(dropna=False) <= 1).all()
    assert len(lines) == sum(count for name, count in truth.items() if name.endswith("_lines"))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([5, 50_000]))
def test_returns_and_exchanges_refer_to_earlier_sales(seed, high):
    people, orders, points = invented(TINY, 30, 300, seed, high=high)
    world = replace(TINY, seed=seed)
    lines, _, truth = basket(world, people, orders, points)
    back, sold = lines[lines.line_kind == "return"], lines[lines.line_kind == "sale"]
    returned = back.groupby("original_order_id")
    refunds = pd.Series(orders["refund_cents"], "O" + pd.Series(orders["number"]).astype(str).str.zfill(13))
    mine = returned.net_cents.sum()[lambda sums: sums.index.isin(refunds.index)]
    assert (-mine).to_dict() == refunds[refunds > 0].to_dict() and truth["returns"] == back.order_id.nunique() >= len(mine)
    first = sold.groupby("order_id").agg(ts=("ts", "first"), member_id=("member_id", "first"), net=("net_cents", "sum"))
    for rows in (back, lines[lines.line_kind == "exchange"]):
        sale = first.loc[rows.original_order_id]
        assert (rows.ts.to_numpy() >= sale.ts.to_numpy()).all()
        assert (rows.member_id.fillna("").to_numpy() == sale.member_id.fillna("").to_numpy()).all()
    assert (returned.net_cents.sum() + first.net.reindex(returned.ngroup().groupby(back.original_order_id).first().index) >= 0).all()
    left = pd.concat([sold.assign(key=sold.order_id), back.assign(key=back.original_order_id)]).groupby(["key", "product_id"])
    assert (left[["quantity", "cost_cents", "discount_cents", "coupon_cents", "points_cents"]].sum() >= 0).all().all()
    whole = refunds.index[orders["refund_cents"] == orders["value_cents"]]
    gone = left[["quantity", "cost_cents", "list_cents", "points_cents", "tax_cents"]].sum()
    assert (gone[gone.index.get_level_values(0).isin(whole)] == 0).all().all()
    changed = lines[lines.line_kind == "exchange"].groupby("order_id")
    assert (changed[["net_cents", "quantity", "tax_cents"]].sum() == 0).all().all() and (changed.size() == 2).all()


def test_nothing_before_the_start_or_from_the_end_on(big):
    lines = big[3]
    start, end = TINY.first_day * DAY, TINY.last_day * DAY
    assert lines.ts.min() >= start and lines.recorded_at.max() < end and (lines.recorded_at >= lines.ts).all()
    assert {"sale", "gift", "service", "shipping", "return", "exchange", "topup", "giftcard_sale"} == set(lines.line_kind)


@pytest.mark.parametrize("n_people, n", [(0, 0), (1, 0), (1, 1), (5, 2)])
def test_small_blocks(n_people, n):
    for world in (TINY, replace(TINY, contacts=Contacts(non_member_share=0, refund_rate=0))):
        lines, payments, truth = basket(world, *invented(world, n_people, n, 0))
        assert truth["orders"] == n and (n > 0) == (len(lines) > 0) == (len(payments) > 0)


def test_same_world_same_lines_and_members_do_not_see_the_others():
    made = invented(TINY, 50, 500, 0)
    lines, _, _ = basket(TINY, *made)
    pd.testing.assert_frame_equal(lines, basket(TINY, *made)[0])
    alone, _, _ = basket(replace(TINY, contacts=Contacts(non_member_share=0)), *made)
    kinds = ["sale", "gift", "service", "shipping"]
    of_members = lambda table: table[table.line_kind.isin(kinds) & table.member_id.notna()].reset_index(drop=True)
    pd.testing.assert_frame_equal(of_members(lines), of_members(alone))
    other = basket(replace(TINY, seed=4), *made)[0]
    assert len(other) != len(lines) or (other.net_cents != lines.net_cents).any()


def moments(table):
    "Seconds become microsecond timestamps, with the business date; -1 and NONE are null already."
    times = {name: pd.to_datetime(table[name], unit="s").astype("datetime64[us]")
             for name in ("ts", "recorded_at", "first_sold_at", "opened_at") if name in table}
    dated = {"local_date": times["ts"].dt.date.astype("date32[pyarrow]")} if "ts" in times else {}
    if "quantity" in table:
        dated["quantity"] = pd.array([Decimal(int(q)).scaleb(-3) for q in table.quantity], pd.ArrowDtype(pa.decimal128(18, 3)))
    return table.assign(**times, **dated)


@pytest.mark.parametrize("locale", ["en", "zh"])
def test_tables_fit_their_contracts(locale):
    world = replace(TINY, locale=locale)
    lines, payments, _ = basket(world, *invented(world, 50, 500, 0))
    tables = {"order_lines": lines, "payments": payments, "products": frame(make_products(world)), "stores": frame(make_stores(world))}
    for name, table in tables.items(): assert check_table(as_table(moments(table), CON), name) == []
    assert set(lines.product_id.dropna()) <= set(tables["products"].product_id)
    assert set(lines.store_id.dropna()) <= set(tables["stores"].store_id)


def test_the_grain_of_orders_sees_the_planted_values_and_whole_returns():
    people, orders, points = invented(TINY, 50, 500, 0)
    lines, _, truth = basket(TINY, people, orders, points)
    seen = orders_grain(as_table(moments(lines), CON)).execute().sort_values("order_id")
    assert len(seen) == len(orders["ts"]) + truth["visitor_orders"]
    mine = seen[seen.member_id.notna()]
    assert (mine.net_cents.to_numpy() == orders["value_cents"]).all()
    assert (mine.cancelled_date.notna().to_numpy() == (orders["refund_cents"] == orders["value_cents"])).all()


def test_products_are_sold_after_their_launch_and_at_their_price(big):
    lines, products = big[3], make_products(TINY)
    sold = lines[lines.line_kind == "sale"]
    row = product_rows(sold)
    assert (sold.ts.to_numpy() >= products["first_sold_at"][row]).all()
    ratio = sold.list_cents / (products["list_cents"][row] * sold.quantity / 1000)
    weighed = np.isin(products["category"].codes[row], (0, 4))
    assert ((sold.quantity % 1000 == 0) | weighed).all()
    assert np.quantile(abs(ratio[weighed] - 1), .99) < .002
    assert np.quantile(abs(ratio - 1), .9) < .08


def test_cards_never_spend_more_stored_value_than_was_topped_up(big):
    lines, payments = big[3:5]
    orders = lines.groupby("order_id").agg(member_id=("member_id", "first"), ts=("ts", "first"), kind=("line_kind", "first"),
                                           net=("net_cents", "sum"))
    stored = payments[payments.tender == "stored_value"].set_index("order_id").cents
    moves = pd.concat([orders[orders.kind == "topup"].assign(cents=lambda t: t.net), orders.loc[stored.index].assign(cents=-stored)])
    balance = moves.sort_values(["ts", "cents"], ascending=[True, False]).groupby("member_id").cents.cumsum()
    assert len(stored) > 100 and balance.min() >= 0


@pytest.mark.parametrize("share", [.01, .3])
def test_gift_cards_go_to_the_next_order_of_a_non_member_that_has_none(share):
    world = replace(TINY, contacts=Contacts(non_member_share=share))
    lines, payments, _ = basket(world, *invented(world, 100, 20_000, 5, low=4_000))
    first = lines.groupby("order_id").agg(ts=("ts", "first"), kind=("line_kind", "first"), member_id=("member_id", "first"))
    visits = first[first.member_id.isna() & first.kind.isin(["sale"])].sort_index()
    taken, place = [], 0
    for moment in np.sort(first.ts[first.kind == "giftcard_sale"]):
        while place < len(visits) and visits.ts.iloc[place] < moment: place += 1
        if place < len(visits): taken.append(visits.index[place])
        place += 1
    used = payments[(payments.tender == "gift_card") & (payments.cents > 0)].set_index("order_id").cents
    assert len(taken) > 30 and list(used.index) == taken
    worth, total = lines.net_cents[lines.line_kind == "giftcard_sale"].iloc[0], lines.groupby("order_id").net_cents.sum()
    assert (used == np.minimum(total.loc[taken], worth)).all()


def members_sales(big):
    "Sale lines of members, with their person's row."
    people, orders, _, lines, *_ = big
    sold = lines[(lines.line_kind == "sale") & lines.member_id.notna()]
    person = orders["person"][sold.order_id.str[1:].astype(int).to_numpy() - 30_000_000]
    return people, sold, person


def test_promotion_sensitivity_is_found_again(big):
    people, sold, person = members_sales(big)
    planted, seen = people["promo"][person], sold.discount_cents.to_numpy() > 0
    for group in np.array_split(np.argsort(planted, kind="stable"), 10):   # sums of unequal coins stray less than of equal ones
        assert within(seen[group].sum(), len(group), planted[group].mean())
    off = (sold.discount_cents / sold.list_cents)[seen]
    for depth in (.1, .2, .3, .5): assert within((abs(off - depth) < .01).sum(), seen.sum(), .25)


def test_interests_are_found_again(big):
    people, sold, person = members_sales(big)
    category = make_products(TINY)["category"].codes[product_rows(sold)]
    top, second = TINY.tastes.top_interest, TINY.tastes.second_interest
    for column, share in (("interest", top), ("second_interest", second)):
        planted = people[column][person]
        chance = share + (1 - top - second) * np.array(TINY.tastes.categories)[planted]
        assert within((category == planted).sum(), len(sold), chance.mean())
    other = (category != people["interest"][person]) & (category != people["second_interest"][person])
    chance = (1 - top - second) * TINY.tastes.categories[0] * ((people["interest"][person] != 0) & (people["second_interest"][person] != 0))
    assert within((other & (category == 0)).sum(), len(sold), chance.mean())


def test_newness_is_found_again(big):
    people, sold, person = members_sales(big)
    products, row = make_products(TINY), product_rows(sold)
    category, age = products["category"].codes[row], sold.ts.to_numpy() - products["first_sold_at"][row]
    launched = np.zeros((10, TINY.days + NEW_DAYS), bool)
    for c, first in zip(products["category"].codes[10 * SLOTS:], products["first_sold_at"][10 * SLOTS:] // DAY - TINY.first_day):
        launched[c, first:first + NEW_DAYS] = True
    could = launched[category, sold.ts.to_numpy() // DAY - TINY.first_day]
    took = (row >= 10 * SLOTS) & (age < NEW_DAYS * DAY)
    assert could.mean() > .2 and not (took & ~could).any()
    planted = people["newness"][person]
    for group in np.array_split(np.flatnonzero(could)[np.argsort(planted[could], kind="stable")], 5):
        assert within(took[group].sum(), len(group), planted[group].mean())
    assert ((row >= 10 * SLOTS) & (age >= NEW_DAYS * DAY)).any()   # afterwards it is a product like others


def test_lower_price_tiers_take_more_and_cheaper_pieces(big):
    people, sold, person = members_sales(big)
    products, row = make_products(TINY), product_rows(sold)
    pieces = ~np.isin(products["category"].codes[row], (0, 4))
    tier = (people["price_tier"][person][pieces] * 4).astype(int)
    price, count = products["list_cents"][row][pieces], sold.quantity.to_numpy()[pieces]
    assert (np.diff([np.log(price[tier == t]).mean() for t in range(4)]) > .05).all()
    assert (np.diff([count[tier == t].mean() for t in range(4)]) < 0).all()


def test_number_of_lines_is_poisson_above_one(big):
    orders, lines = big[1], big[3]
    sold = (lines.line_kind == "sale").sum()
    n = lines[lines.line_kind == "sale"].order_id.nunique()
    low, high = poisson.interval(1 - RARE, n * (TINY.tastes.lines_mean - 1))
    assert low <= sold - n <= high and n >= len(orders["ts"])


@pytest.mark.parametrize("share", [.05, .25, .6])
def test_share_of_non_members(share):
    people, orders, points = invented(TINY, 100, 3_000, 0)
    world = replace(TINY, contacts=Contacts(non_member_share=share))
    _, _, truth = basket(world, people, orders, points)
    low, high = nbinom.interval(1 - RARE, 3_000, 1 - share)
    assert low <= truth["visitor_orders"] <= high


def test_non_members_buy_by_the_season_and_return_like_members():
    world = replace(TINY, contacts=Contacts(non_member_share=.8), spend=Spend())
    people, orders, points = invented(world, 100, 5_000, 0)
    lines, _, _ = basket(world, people, orders, points)
    visits = lines[lines.member_id.isna() & (lines.line_kind == "sale")].groupby("order_id").agg(ts=("ts", "first"), net=("net_cents", "sum"))
    weight = np.diff(make_calendar(world).edges[0, :world.days + 1])
    day = visits.ts.to_numpy() // DAY - world.first_day
    for heavy in (weight > np.quantile(weight, .9), weight < np.quantile(weight, .3), (world.first_day + np.arange(world.days) + 3) % 7 == 5):
        assert within(heavy[day].sum(), len(day), weight[heavy].sum() / weight.sum())
    early = visits[day < 60]                                           # nearly all refunds come within 120 days
    back = lines[lines.line_kind == "return"].groupby("original_order_id").net_cents.sum().reindex(early.index)
    assert within(back.notna().sum(), len(early), world.contacts.refund_rate)
    assert within((-back == early.net).sum(), int(back.notna().sum()), world.contacts.refund_whole)
