"""Tiers, points and benefits of an invented programme: the machine against the plain loop, and what must hold of any ledger."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from memtag_research.world import programme
from memtag_research.world.parameters import NONE, Coded, PointsPolicy, Tastes, TierPolicy, World
from memtag_research.world.people import DAY, make_people
from memtag_research.world.people import make_cards as their_cards
from memtag_research.world.programme import (
    BENEFITS,
    Wishes,
    assign_tier,
    benefit_uses,
    benefits,
    draw_wishes,
    naive_ledger,
    naive_tiers,
    points_ledger,
    rewards,
    tier_history,
)
from memtag_research.world.purchases import make_calendar, make_purchases

YEAR = World(start="2023-01-01", end="2024-01-01", points=PointsPolicy(expire_days=60, redeem_rate=0.5, reward_rate=0.5))


# --- inputs that bring together everything that can happen to a card


def invented(seed, world=YEAR, n_cards=40, n_orders=300, days=None, moments=3):
    """Cards and orders with closures, merges, late joiners and refunds; few moments a day, so that much happens in one second.

    Orders come before joining, after closing and after merges too, refunds in the second of the sale, and after closing."""
    random = np.random.default_rng(seed)
    days = world.days if days is None else days

    def some(n, share=1.0):
        moment = (world.first_day + random.integers(0, days, n)) * DAY + random.integers(0, moments, n) * (DAY // max(moments, 1))
        return np.where(random.random(n) < share, moment, NONE)

    merges = (np.arange(n_cards) >= n_cards - n_cards // 4) if n_cards > 1 else np.zeros(n_cards, bool)
    target = random.integers(0, max(n_cards - n_cards // 4, 1), n_cards)
    joined = some(n_cards)
    joined = np.where(random.random(n_cards) < 0.6, world.first_day * DAY + (joined - world.first_day * DAY) // DAY // 8 * DAY, joined)
    closed = some(n_cards, 0.2)
    cards = {
        "joined": joined,
        "merged_into": np.where(merges, target, -1),
        "merged": np.where(merges, some(n_cards, 0.8), NONE),
        "closed": closed,
        "person": np.arange(n_cards),
    }
    value = random.integers(1, 60_000, n_orders) * random.integers(1, 3, n_orders)
    ts = some(n_orders)
    later = ts + random.integers(0, 40, n_orders) * DAY * random.integers(0, 2, n_orders)
    back = (random.random(n_orders) < 0.4) & (later < world.last_day * DAY)
    part = np.where(random.random(n_orders) < 0.6, value, random.integers(1, value + 1))
    orders = {
        "number": 10_000_000 + np.arange(n_orders),
        "card": random.integers(0, n_cards, n_orders),
        "ts": ts,
        "value_cents": value,
        "tier": random.integers(0, len(world.tiers.names), n_orders).astype(np.int8),
        "refund_ts": np.where(back, later, NONE),
        "refund_cents": np.where(back, part, 0),
        "channel": random.integers(0, 4, n_orders).astype(np.int8),
    }
    n_wishes = n_cards * 4
    wishes = Wishes(random.random(n_orders) < 0.5, random.integers(0, n_cards, n_wishes), some(n_wishes), random.random(n_wishes))
    return cards, orders, wishes


def texts(column):
    return [None if code < 0 else column.values[code] for code in column.codes.tolist()]


def plain(ledger, block=0):
    "The ledger as tuples in the form of `naive_ledger`."
    empty = [None if n == NONE else n for n in ledger["order_id"].numbers.tolist()]
    expires = [None if n == NONE else n for n in ledger["expires_at"].tolist()]
    card = (ledger["member_id"].numbers - block * 10_000).tolist()
    return list(zip(card, ledger["ts"].tolist(), texts(ledger["kind"]), ledger["points"].tolist(), texts(ledger["reason"]), empty, expires))


def assert_same(world, cards, orders, wishes):
    ledger, used = points_ledger(world, 0, cards, orders, wishes)
    expected, expected_used = naive_ledger(world, cards, orders, wishes)
    assert used.tolist() == expected_used
    for ours, truth in zip(plain(ledger), expected):
        assert ours == truth
    assert len(ledger["ts"]) == len(expected)
    return ledger, expected


# --- tiers


def plain_tier(growth, tier, policy):
    "The rule in words."
    earned = max([k for k, threshold in enumerate(policy.thresholds_cents) if growth >= threshold], default=0)
    if earned >= tier:
        return earned
    if growth * 1000 >= round(policy.keep_share * 1000) * policy.thresholds_cents[tier]:
        return tier
    return max(tier - policy.max_down, earned)


@given(
    st.lists(st.integers(1, 500_000), min_size=1, max_size=5, unique=True),
    st.integers(0, 1000),
    st.integers(1, 4),
    st.data(),
)
@settings(max_examples=150, deadline=None)
def test_tier_rule_is_the_rule_in_words(steps, keep, down, data):
    thresholds = (0, *sorted(steps))
    policy = TierPolicy(tuple(map(str, range(len(thresholds)))), thresholds, keep_share=keep / 1000, max_down=down)
    near = st.sampled_from(thresholds).flatmap(lambda t: st.integers(t - 2, t + 2))
    edge = st.sampled_from(thresholds).map(lambda t: -(-t * keep // 1000)).flatmap(lambda t: st.integers(t - 1, t + 1))
    growth = data.draw(st.lists(st.one_of(near, edge, st.integers(-1000, 600_000)), min_size=1, max_size=20))
    tier = data.draw(st.lists(st.integers(0, len(thresholds) - 1), min_size=len(growth), max_size=len(growth)))
    assert assign_tier(growth, tier, policy).tolist() == [plain_tier(g, t, policy) for g, t in zip(growth, tier)]


def test_the_evaluations_of_purchases_are_those_of_the_plain_loop():
    policy = TierPolicy(thresholds_cents=(0, 150_00, 400_00, 900_00), evaluations=("01-01", "04-01", "07-01", "10-01"))
    world = World(n_members=400, tiers=policy, tastes=Tastes(second_card_share=0.5, merged_share=0.8, closed_share=0.3))
    who = make_people(world, 0)
    cards = their_cards(world, 0, who)
    bought = make_purchases(world, make_calendar(world), 0, who, cards)
    orders, found, ended = bought.orders, bought.evaluations, bought.latent["closed"]
    assert (found["after"] > found["before"]).sum() > 50 and (found["after"] < found["before"]).sum() > 50
    first = {}
    for person, ts, cause in zip(orders["person"].tolist(), orders["ts"].tolist(), orders["cause"].tolist()):
        if cause == 0:
            first.setdefault(person, ts)
    opening = {person: ts for person, ts in first.items() if ts == who["first"][person]}
    checked = 0
    for card in range(len(cards["person"])):
        mine = orders["card"] == card
        referrals = [ts for person, ts in opening.items() if who["referrer"][person] == card]
        others = np.flatnonzero((cards["merged_into"] == card) & (cards["merged"] != NONE))
        merged = [(int(cards["merged"][o]), *move) for o in others for move in moves(orders, orders["card"] == o)]
        ends = [t for t in (ended[cards["person"][card]], cards["merged"][card]) if t != NONE and t >= cards["joined"][card]]
        expected = naive_tiers(world, cards["joined"][card], moves(orders, mine), [], referrals, merged, min(ends, default=None))
        rows = found["card"] == card
        assert list(zip(*(found[name][rows].tolist() for name in ("day", "growth_cents", "before", "after")))) == expected
        checked += len(expected)
    assert checked == len(found["card"])


def moves(orders, mine):
    back = mine & (orders["refund_ts"] != NONE)
    return [*zip(orders["ts"][mine].tolist(), orders["value_cents"][mine].tolist()),
            *zip(orders["refund_ts"][back].tolist(), (-orders["refund_cents"][back]).tolist())]  # fmt: skip


def made_up_evaluations(world, cards, seed):
    "A walk through the tiers for every card that is there."
    random, rows = np.random.default_rng(seed), []
    for card, joined in enumerate(cards["joined"].tolist()):
        tier = 0
        for day in programme._evaluation_days(world):
            if joined < day * DAY:
                after = int(random.integers(0, len(world.tiers.names)))
                rows.append((card, day, tier, after))
                tier = after
    columns = zip(*rows) if rows else [[]] * 4
    return {name: np.array(column, int) for name, column in zip(("card", "day", "before", "after"), columns)}


@pytest.mark.parametrize("seed", range(4))
def test_tier_history_has_no_gap_and_no_overlap(seed):
    world = replace(YEAR, tiers=TierPolicy(evaluations=("02-01", "04-01", "06-01", "09-01", "12-01")))
    cards, _, _ = invented(seed, n_cards=200)
    evaluations = made_up_evaluations(world, cards, seed)
    history = tier_history(world, 0, cards, evaluations)
    rows = list(zip(history["member_id"].numbers.tolist(), history["tier"].codes.tolist(), history["valid_from"].tolist(),
                    history["valid_to"].tolist(), texts(history["reason"])))  # fmt: skip
    moved = programme._merging(world, cards).tolist()
    for card in range(200):
        mine = [row[1:] for row in rows if row[0] == card]
        ends = [cards["closed"][card] // DAY + 1] if cards["closed"][card] >= cards["joined"][card] else []
        ends += [cards["merged"][card] // DAY + 1] if card in moved else []
        end = min(ends, default=world.last_day)
        assert mine[0][:2] == (0, cards["joined"][card] // DAY) and mine[0][3] == "joined"
        assert [row[2] for row in mine[:-1]] == [row[1] for row in mine[1:]]
        assert mine[-1][2] == (end if end < world.last_day else NONE) and end > mine[-1][1]
        assert all((row[3] == "upgraded") == (row[0] > before[0]) and row[0] != before[0] for before, row in zip(mine, mine[1:]))
        of = (evaluations["card"] == card) & (evaluations["day"] < end)
        for day, after in zip(evaluations["day"][of].tolist(), evaluations["after"][of].tolist()):
            then = [t for t, start, stop, _ in mine if start <= day and (stop == NONE or day < stop)]
            assert then == [after]
    assert len(rows) > 400


# --- points


@given(st.integers(0, 10**9), st.integers(0, 3), st.integers(0, 40), st.integers(0, 30), st.integers(0, 20), st.integers(1, 200))
def test_amounts_are_exact(value, tier, per_unit, factor, share, step):
    "Both machine and loop use these two formulas: here they are held against fractions."
    factors = [Fraction(factor + k, 10) for k in range(4)]
    policy = PointsPolicy(per_unit / 10, tuple(map(float, factors)), redeem_share=share / 20, redeem_step=step, cents_per_point=3)
    world = replace(YEAR, points=policy)
    assert programme.earned_points(world, [value], [tier]) == [value * Fraction(per_unit, 10) * factors[tier] // 100]
    most = programme._most_points(world, value)
    assert most % step == 0 and most * 3 <= value * Fraction(share, 20) < (most + step) * 3


@pytest.mark.parametrize("seed", range(12))
def test_machine_and_plain_loop_make_the_same_entries(seed):
    "2,400 cards with everything at once."
    ledger, _ = assert_same(YEAR, *invented(seed, n_cards=200, n_orders=1500))
    assert set(zip(texts(ledger["kind"]), texts(ledger["reason"]))) >= {
        ("adjust", "welcome"), ("adjust", "refund"), ("earn", "order"), ("redeem", "order"), ("redeem", "R-MUG"), ("redeem", "R-UMBRELLA"),
        ("reverse", "refund"), ("expire", "expired"), ("expire", "closed"), ("merge", "merge")}  # fmt: skip


@given(
    st.integers(0, 2**32),
    st.integers(1, 12),
    st.integers(0, 60),
    st.sampled_from([3, 20, 120, 365]),
    st.integers(1, 4),
    st.builds(
        PointsPolicy,
        points_per_unit=st.sampled_from([0.0, 0.3, 1.0, 7.0]),
        welcome_points=st.sampled_from([0, 1, 250]),
        expire_days=st.sampled_from([1, 2, 30, 90, 1000, 10**6]),
        cents_per_point=st.sampled_from([1, 2, 3, 700]),
        redeem_step=st.sampled_from([1, 7, 100]),
        redeem_share=st.sampled_from([0.0, 0.3, 1.0]),
    ),
)
@settings(max_examples=400, deadline=None)
def test_machine_and_plain_loop_agree_under_any_policy(seed, n_cards, n_orders, days, moments, policy):
    world = replace(YEAR, points=policy)
    assert_same(world, *invented(seed, world, n_cards, n_orders, days, moments))


def test_conservation_on_every_day_and_no_balance_below_zero():
    cards, orders, wishes = invented(5, n_cards=300, n_orders=3000)
    ledger, used = points_ledger(YEAR, 0, cards, orders, wishes)
    card, points, kind = ledger["member_id"].numbers, ledger["points"], np.array(texts(ledger["kind"]))
    running = np.cumsum(points)
    first = np.searchsorted(card, card)
    balance = running - np.r_[0, running][first]
    assert (balance >= 0).all() and points.all()
    given_, taken = np.isin(kind, ("earn", "adjust")), np.isin(kind, ("redeem", "expire", "reverse"))
    assert (points[given_] > 0).all() and (points[taken] < 0).all()
    assert points[kind == "merge"].sum() == 0 and (points[kind == "merge"] > 0).sum() > 5
    days = ledger["ts"] // DAY
    for day in range(YEAR.first_day, YEAR.last_day, 30):  # a card's lots, counted anew from what was given less what was taken
        known = days <= day
        left = np.bincount(card[known], points[known], 300)
        last = np.flatnonzero(known & np.r_[(card[1:] != card[:-1]) | ~known[1:], True])
        assert (left[card[last]] == balance[last]).all() and (left >= 0).all()
    old = ledger["ts"] + YEAR.points.expire_days * DAY < YEAR.last_day * DAY  # nothing lives longer than it may
    assert (np.bincount(card, points, 300) <= np.bincount(card[~old], np.maximum(points[~old], 0), 300)).all()
    merged = programme._merging(YEAR, cards)
    assert not np.bincount(card, points, 300)[merged].any()
    assert not np.bincount(card, points, 300)[cards["closed"] >= cards["joined"]].any()
    assert used.sum() == -points[(kind == "redeem") & (np.array(texts(ledger["reason"])) == "order")].sum()
    assert (used * YEAR.points.cents_per_point <= YEAR.points.redeem_share * orders["value_cents"]).all()


def test_entries_are_in_order_unique_and_within_the_world():
    cards, orders, wishes = invented(6, n_cards=100, n_orders=1000)
    ledger, _ = points_ledger(YEAR, 3, cards, orders, wishes)
    ids, card, ts = ledger["entry_id"].numbers, ledger["member_id"].numbers, ledger["ts"]
    assert (np.diff(ids) == 1).all() and ids[0] == 400_000_000
    assert ((card >= 30_000) & (card < 30_100)).all()
    assert ((np.diff(card) > 0) | ((np.diff(card) == 0) & (np.diff(ts) >= 0))).all()
    assert ts.min() >= YEAR.first_day * DAY and ts.max() < YEAR.last_day * DAY
    assert len(set(zip(card.tolist(), ts.tolist(), texts(ledger["kind"]), ledger["order_id"].numbers.tolist(), texts(ledger["reason"])))) > 0.98 * len(ts)
    expire = np.array(texts(ledger["reason"])) == "expired"
    assert not (ts[expire] % DAY).any() and len(set(zip(card[expire], ts[expire]))) == expire.sum()
    assert ((ledger["expires_at"] != NONE) == (ledger["points"] > 0)).all()


@pytest.mark.parametrize("n_cards, n_orders", [(1, 0), (1, 1), (3, 0), (0, 0)])
def test_little_blocks(n_cards, n_orders):
    cards, orders, wishes = invented(1, n_cards=n_cards, n_orders=n_orders)
    assert_same(YEAR, cards, orders, wishes)
    points_ledger(YEAR, 0, cards, orders)
    none = {name: np.empty(0, np.int64) for name in ("card", "day", "before", "after")}
    assert len(tier_history(YEAR, 0, cards, none)["tier"].codes) == n_cards
    benefit_uses(YEAR, 0, cards, none, orders)


def test_inputs_stay_as_they_are_and_the_same_seed_gives_the_same():
    cards, orders, _ = invented(2)
    before = [{name: column.copy() for name, column in columns.items()} for columns in (cards, orders)]
    ledger, used = points_ledger(YEAR, 0, cards, orders)
    again, used_again = points_ledger(YEAR, 0, cards, orders)
    assert plain(ledger) == plain(again) and (used == used_again).all()
    for old, new in zip(before, (cards, orders)):
        assert all((old[name] == new[name]).all() for name in old)
    assert plain(points_ledger(YEAR, 1, cards, orders)[0], 1) != plain(ledger)


def test_wishes_come_as_often_as_planted():
    world = World(points=PointsPolicy(redeem_rate=0.15, reward_rate=0.04))
    n_cards, n_orders = 4000, 20_000
    cards = {"joined": np.full(n_cards, world.first_day * DAY), "closed": np.full(n_cards, NONE),
             "merged_into": np.full(n_cards, -1), "merged": np.full(n_cards, NONE)}  # fmt: skip
    wishes = draw_wishes(world, 0, cards, {"ts": np.zeros(n_orders, np.int64)})
    low, high = binom.interval(1 - 1e-4, n_orders, 0.15)
    assert low <= wishes.pays.sum() <= high
    whole = world.days // 30
    inside = wishes.ts < (world.first_day + whole * 30) * DAY
    low, high = binom.interval(1 - 1e-4, n_cards * whole, 0.04)
    assert low <= inside.sum() <= high
    assert (wishes.ts < world.last_day * DAY).all()
    assert 7 * 3600 < (wishes.ts % DAY).min() and (wishes.ts % DAY).max() < 22 * 3600


# --- benefits


@pytest.mark.parametrize("names", [("a", "b"), ("a", "b", "c", "d", "e")])
def test_a_higher_tier_has_at_least_the_benefits_of_a_lower_one(names):
    thresholds = tuple(range(0, 100 * len(names), 100))
    world = World.__new__(World)
    object.__setattr__(world, "tiers", TierPolicy(names, thresholds))
    table = benefits(world)
    have = [{b: v for t, b, v in zip(texts(table["tier"]), texts(table["benefit"]), table["value_cents"].tolist()) if t == name} for name in names]
    for lower, higher in zip(have, have[1:]):
        assert all(higher.get(benefit, -1) >= value for benefit, value in lower.items())
    assert len(have[-1]) == len(BENEFITS) and (table["cost_cents"] <= table["value_cents"]).all()


def test_only_those_who_are_entitled_use_a_benefit():
    world = replace(World(), tiers=TierPolicy(evaluations=("02-01", "04-01", "06-01", "09-01", "12-01")))
    cards, orders, _ = invented(8, world, n_cards=400, n_orders=6000)
    evaluations = made_up_evaluations(world, cards, 8)
    history, table = tier_history(world, 0, cards, evaluations), benefits(world)
    uses = benefit_uses(world, 0, cards, evaluations, orders)
    entitled = set(zip(table["tier"].codes.tolist(), texts(table["benefit"])))
    spans = {}
    for card, tier, start, stop in zip(history["member_id"].numbers.tolist(), history["tier"].codes.tolist(),
                                       history["valid_from"].tolist(), history["valid_to"].tolist()):  # fmt: skip
        spans.setdefault(card, []).append((start, stop if stop != NONE else world.last_day, tier))
    card, ts = uses["member_id"].numbers, uses["ts"]
    for member, second, benefit in zip(card.tolist(), ts.tolist(), texts(uses["benefit"])):
        tiers = [tier for start, stop, tier in spans[member] if start <= second // DAY < stop]
        assert len(tiers) == 1 and (tiers[0], benefit) in entitled
        assert cards["joined"][member] <= second and not cards["joined"][member] <= cards["closed"][member] < second
    assert set(texts(uses["benefit"])) == {b.name for b in BENEFITS}
    assert ((np.diff(card) > 0) | ((np.diff(card) == 0) & (np.diff(ts) >= 0))).all() and ts.max() < world.last_day * DAY


def test_a_benefit_is_used_as_often_as_planted():
    world = World()
    n = 30_000
    cards = {"joined": np.full(10, world.first_day * DAY), "closed": np.full(10, NONE), "merged_into": np.full(10, -1), "merged": np.full(10, NONE)}
    orders = {"card": np.arange(n) % 10, "ts": np.full(n, (world.first_day + 5) * DAY), "channel": np.ones(n, np.int8)}
    none = {name: np.empty(0, np.int64) for name in ("card", "day", "before", "after")}
    uses = texts(benefit_uses(world, 0, cards, none, orders)["benefit"])
    low, high = binom.interval(1 - 1e-4, n, 0.5)
    assert low <= uses.count("member_price") <= high
    assert set(uses) <= {"member_price", "anniversary_gift"}


def test_rewards_rise_in_price_and_cost_less_than_the_points_are_worth():
    for cents in range(1, 2000):
        shop = rewards(World(points=PointsPolicy(cents_per_point=cents)))
        assert isinstance(shop["reward_id"], Coded) and shop["points_price"][0] > 0 and (np.diff(shop["points_price"]) > 0).all()
        assert (shop["cost_cents"] < shop["points_price"] * cents + cents).all()
