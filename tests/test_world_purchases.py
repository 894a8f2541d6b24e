"""Purchases: what was planted is found again, causes touch only what they should, and nobody buys who is not there."""

import warnings
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import simulated_truth as truth
from lifetimes import BetaGeoFitter, GammaGammaFitter, ParetoNBDFitter
from scipy.stats import norm
from simulated_truth import BUSY, CALM, LADDER, LOTS, PARETO, SOUND, STILL, walk

from memtag_research.core import ParameterError
from memtag_research.world import purchases
from memtag_research.world.parameters import (
    NONE,
    Arm,
    Campaign,
    Causes,
    Contacts,
    Enrolment,
    Launch,
    Purchases,
    Season,
    Spend,
    Tastes,
    TierEffect,
    TierPolicy,
    World,
    stream,
)
from memtag_research.world.people import DAY, MARKETPLACE
from memtag_research.world.purchases import make_calendar

DOUBT = 1e-4  # two-sided probability that a bound is missed by luck; seeds are fixed
FAR_OUT = norm.isf(DOUBT / 2)


def pooled(rows):
    "z of several seeds together: (seeds, quantities, (estimate, error, truth))."
    return ((rows[..., 0] - rows[..., 2]) / rows[..., 1]).sum(axis=0) / np.sqrt(len(rows))


def against(estimates, planted):
    return np.concatenate([estimates, np.broadcast_to(np.log(planted)[:, None], (*estimates.shape[:2], 1))], axis=2)


# --- the models are found again


def test_planted_rates_dropout_and_spend_are_found_again():
    found = truth.for_each(truth.lifetime_estimates, range(3), processes=1)
    planted = truth.planted_lifetime()
    assert (np.abs(pooled(against(found, planted))) < FAR_OUT).all()
    assert np.abs(pooled(against(found, planted * 1.5)))[[0, 1, 4, 5]].min() > FAR_OUT  # the check can fail


def test_the_likelihoods_are_those_of_lifetimes():
    x, t_x, T, mean = truth.raw_truth(CALM)
    for planted in (truth.planted_lifetime(), np.array([0.3, 12.0, 2.0, 3.0, 1.5, 8.0, 20.0])):
        r, alpha, a, b, p, q, v = planted
        with np.errstate(divide="ignore"):
            ours = truth.bgnbd_log_likelihood(r, alpha, a, b, x, t_x, T)
        theirs = BetaGeoFitter._negative_log_likelihood(np.log([r, alpha, a, b]), x, t_x, T, np.ones(len(x)), 0.0)
        assert np.isclose(-ours.mean(), theirs, rtol=1e-10)
        again = (x > 0)
        theirs = GammaGammaFitter._negative_log_likelihood(np.log([p, q, v]), x[again], mean[again], np.ones(again.sum()), 0.0)
        assert np.isclose(-truth.spend_log_likelihood(p, q, v, x[again], mean[again]).mean(), theirs, rtol=1e-10)
    x, t_x, T, _ = truth.raw_truth(PARETO)
    for planted in (truth.planted_pareto(), np.array([0.5, 10.0, 0.6, 40.0]), np.array([2.0, 20.0, 3.0, 12.0])):
        theirs = ParetoNBDFitter._conditional_log_likelihood(planted, x, t_x, T)
        assert np.abs(truth.pareto_log_likelihood(*planted, x, t_x, T) - theirs).max() < 5e-3  # 32 nodes; 200 come within 1e-5


def test_planted_pareto_nbd_is_found_again():
    found = truth.for_each(truth.pareto_estimates, range(1), processes=1)
    assert (np.abs(pooled(against(found, truth.planted_pareto()))) < FAR_OUT).all()
    assert np.abs(pooled(against(found, truth.planted_pareto() * [1.2, 1, 1, 1])))[0] > FAR_OUT


# --- what lots, tiers and launches cause


def test_a_campaign_adds_what_was_planted_and_idle_ones_nothing():
    found = truth.for_each(truth.lot_estimates, range(6), processes=1)
    assert (np.abs(pooled(found)) < FAR_OUT).all()
    nothing = found * [1, 1, 0]
    assert (pooled(nothing)[:2] > FAR_OUT).all()


def test_orders_jump_at_the_gold_threshold():
    found = truth.for_each(truth.threshold_estimate, range(4), processes=1)[:, None]
    assert np.abs(pooled(found)[0]) < FAR_OUT < pooled(found * [1, 1, 0])[0]
    none = replace(LADDER, causes=STILL)
    assert np.abs(pooled(np.array([[truth.threshold_estimate(seed, none)] for seed in range(2)]))) < FAR_OUT


def test_those_who_choose_the_membership_would_have_bought_more_anyway():
    found = truth.for_each(truth.naive_enrolment, range(2), processes=1)
    assert pooled(found[:, None])[0] > 5
    by_lot = replace(truth.CHOSEN, causes=replace(truth.CHOSEN.causes, enrolment=Enrolment("first", -2.0, 0.0, 90, 0.0)))
    assert np.abs(pooled(np.array([[truth.naive_enrolment(seed, by_lot)] for seed in range(2)]))) < FAR_OUT


@pytest.fixture(scope="module")
def busy():
    return walk(BUSY)


def test_every_cause_adds_as_many_orders_as_planted():
    made = walk(truth.without_dropout(BUSY))
    counts = truth.expected_counts(made)
    assert min(mean for _, mean in counts.values()) > 30
    assert {cause: truth.as_many(*count, DOUBT) for cause, count in counts.items()} == dict.fromkeys(counts, True)


def test_caused_orders_come_only_to_those_whom_the_cause_reaches(busy):
    orders, lots = busy.bought.orders, busy.bought.lots
    person, day, cause = (orders[name] for name in ("person", "day", "cause"))
    assert (day >= busy.calendar.launches[busy.who["region"][person]])[cause == 3].all()
    assert not np.isin(busy.who["region"][person[cause == 3]], [3, 4]).any()  # regions without a launch
    enrolled = np.full(len(busy.who["person"]), 10**9)
    enrolled[busy.bought.enrolled["person"]] = busy.bought.enrolled["day"]
    assert (day >= enrolled[person])[cause == 4].all()
    assert (orders["tier"] > 0)[cause == 2].all()
    arm = np.full(len(busy.who["person"]), -1)
    arm[lots["person"]] = lots["arm"]
    start, end = busy.calendar.campaigns[0]
    within = (day >= start) & (day < end)
    assert (within & (arm[person] > 0))[cause == 1].all()
    assert (within & (arm[person] == 0) & (arm[truth.partners(busy)[person]] > 0))[cause == 5].all() and (cause == 5).any()


def test_attrition_and_basket_factors_are_found_again(busy):
    departures = truth.departures(busy)
    assert len(departures) >= 8 and max(map(abs, departures.values())) < FAR_OUT
    ignored = truth.departures(busy, ignored=True)
    assert ignored["launched", 1] > FAR_OUT and ignored["arm", 2] > FAR_OUT
    worths = truth.worths(busy)
    assert min(p for (*_, label), p in worths.items() if label == "planted") > DOUBT
    assert max(p for (*_, label), p in worths.items() if label == "without") < DOUBT


def test_an_attrition_factor_multiplies_the_death_rate_of_pareto_nbd():
    world = replace(CALM, n_members=4_096, purchases=Purchases("pareto_nbd"), causes=replace(STILL, launch=Launch(("first",) * 5, 0.0, 3.0)))
    made = walk(world)
    latent, clocks = made.bought.latent, made.calendar.edges[2 * made.who["lover"].astype(int) + made.who["weekend"]] / 7
    launched = clocks[:, world.day("first") - world.first_day]
    until = np.where(np.isnan(latent["died_clock"]), clocks[:, world.days], latent["died_clock"])
    spent = np.nansum(latent["mu"] * np.maximum(until - np.maximum(latent["first_clock"], launched), 0))
    deaths = (latent["died_clock"] > launched).sum()
    assert truth.as_many(deaths, 3 * spent, DOUBT) and not truth.as_many(deaths, spent, DOUBT)


def test_dropout_takes_its_share_of_an_arm_out_of_the_log(busy):
    lots, closed = busy.bought.lots, busy.bought.latent["closed"]  # nobody closes for another reason in this world
    gone = closed[lots["person"]] != NONE
    dropped = lots["arm"] == 2
    assert truth.as_often(gone[dropped].sum(), dropped.sum(), 0.2, DOUBT) and not gone[~dropped].any()
    person = busy.bought.orders["person"]
    left = (closed[person] != NONE) & (busy.bought.orders["ts"] > closed[person])
    assert not left.any()
    back = busy.bought.orders["refund_ts"]
    assert not ((back != NONE) & (closed[person] != NONE) & (back > closed[person])).any() and (back != NONE).any()


# --- what is caused leaves the rest alone

EAGER = replace(LOTS, seed=5, causes=Causes(
    (Campaign("C", "middle", arms=truth.ARMS, spillover=0.5),), TierEffect((0.0, 0.1, 0.3, 0.5), (1.0,) * 4), Launch(orders_30d=0.5), Enrolment(base=-3.0)))


def test_own_purchases_are_the_same_whatever_else_is_caused():
    with_effects, without = (walk(world).bought for world in (EAGER, replace(EAGER, causes=EAGER.causes.without_effects())))
    for name, column in without.latent.items():
        assert np.array_equal(column, with_effects.latent[name], equal_nan=column.dtype.kind == "f"), name

    def own(bought):
        base = bought.orders["cause"] == 0
        rows = [bought.orders[name][base] for name in ("person", "clock", "day", "value_cents")]
        by = np.lexsort((rows[1], rows[0]))
        return [column[by] for column in rows]

    assert all(np.array_equal(a, b) for a, b in zip(own(with_effects), own(without)))
    assert set(without.orders["cause"].tolist()) == {0} and set(with_effects.orders["cause"].tolist()) == {0, 1, 2, 3, 4, 5}


@pytest.mark.parametrize("cause, causes", [
    (1, replace(STILL, campaigns=EAGER.causes.campaigns)), (2, replace(STILL, tier=EAGER.causes.tier)),
    (3, replace(STILL, launch=EAGER.causes.launch)), (4, replace(STILL, enrolment=EAGER.causes.enrolment))])
def test_one_effect_adds_orders_of_its_own_cause_only(cause, causes):
    found = set(walk(replace(EAGER, n_members=1_500, causes=causes)).bought.orders["cause"].tolist())
    assert found == {0, cause} | ({5} if cause == 1 else set())


# --- the probability of no purchase, and tiers


@pytest.mark.parametrize("model", [Purchases(), Purchases("pareto_nbd")])
def test_the_true_probability_of_no_purchase_is_calibrated(model):
    world = replace(LOTS, n_members=4 * 4_096, causes=STILL, purchases=model)
    assert truth.calibration(world, blocks=4)[0] > DOUBT > truth.calibration(world, blocks=4, tilt=1.2)[0]


@pytest.mark.parametrize("world", [
    World(), World(tastes=Tastes(second_card_share=0.6, merged_share=0.9, closed_share=0.5, late_join_share=0.4, referred_share=0.6),
                   contacts=Contacts(refund_rate=0.5, refund_days=90.0, incident=("2023-02-01", 365, 0.2)), seed=3,
                   tiers=TierPolicy(evaluations=("02-28", "05-01", "08-15", "11-30"), window_days=120, thresholds_cents=(0, 100_00, 300_00, 900_00)))])
def test_evaluations_are_those_of_the_plain_loop(world):
    made = walk(world)
    found = truth.evaluations(made)
    assert len(found) == len(made.bought.evaluations["card"]) > 2_000
    assert found == truth.naive_evaluations(made)


# --- nobody buys who is not there

TWO = (Campaign("A", "middle", arms=(Arm("x", 0.5, 2.0), Arm("y", 0.5, dropout=1.0)), spillover=1.0),
       Campaign("B", "middle", 400, arms=(Arm("x", 0.0), Arm("y", 1.0, 1.0, 0.0, 5.0))), Campaign("D", "2022-12-01"), Campaign("E", "2023-01-01"))
ODD = {
    "everything": World(n_members=1_000), "a person": World(n_members=1), "two": World(n_members=2, tastes=Tastes(household_share=1.0, referred_share=1.0)),
    "no campaigns": World(n_members=300, causes=Causes(campaigns=())), "90 days": World(n_members=1_000, end="2023-04-01"),
    "no incident": World(n_members=300, contacts=SOUND), "nobody buys": World(n_members=50, purchases=Purchases(never_share=1.0)),
    "all die at once": World(n_members=300, purchases=Purchases(a=50.0, b=0.01)), "nobody dies": World(n_members=300, purchases=Purchases(a=1e-4, b=1e4)),
    "pareto, short": World(n_members=300, purchases=Purchases("pareto_nbd", s=50.0, beta=1e-3)),
    "pareto, long": World(n_members=300, purchases=Purchases("pareto_nbd", s=1e-4, beta=1e6)),
    "wild shapes": World(n_members=300, purchases=Purchases(r=1e-2, alpha=1e-2, a=1e-2, b=1e-2), spend=Spend(p=0.01, q=1.01)),
    "huge rates": World(n_members=20, purchases=Purchases(r=300.0, alpha=1.0, a=1e-3)),
    "many cards": World(n_members=500, tastes=Tastes(second_card_share=1.0, merged_share=1.0, closed_share=1.0, late_join_share=1.0, shift_share=1.0),
                        contacts=Contacts(refund_rate=1.0, refund_whole=0.0, refund_days=300.0), purchases=Purchases(r=8.0, a=5.0)),
    "campaigns over each other": World(n_members=1_000, causes=Causes(TWO, launch=Launch(("2022-01-01", "2023-01-01", "2026-01-01", "middle", ""), 3.0, 0.0, 0.1))),
    "no attrition": World(n_members=300, causes=Causes(tier=TierEffect(attrition=(0.0,) * 4)), purchases=Purchases(a=5.0, b=0.01)),
    "no season": World(n_members=300, season=Season(weekdays=(1.0,) * 7, yearly=0.0, festivals={}, member_days=(), weekend_boost=1.0)),
    "other tiers": World(n_members=300, tiers=TierPolicy(window_days=1, evaluations=("12-31", "01-02"), keep_share=0.0, max_down=3)),
}


@cache
def odd(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return walk(ODD[name])


@pytest.mark.parametrize("name", ODD)
def test_orders_come_from_members_who_live(name):
    made = odd(name)
    check_orders(made)
    check_truth(made)


def check_orders(made):
    world, who, cards, orders = made.world, made.who, made.cards, made.bought.orders
    end, person, ts, card, n = world.last_day * DAY, orders["person"], orders["ts"], orders["card"], len(made.who["person"])
    assert len({len(column) for column in orders.values()}) == 1
    assert (ts >= who["first"][person]).all() and (ts >= world.first_day * DAY).all() and (ts < end).all() and (ts // DAY == orders["day"]).all()
    assert (who["first"][person] != NONE).all() and (ts >= who["joined"][person])[who["joined"][person] <= who["first"][person]].all()
    assert (np.diff(person) >= 0).all() and (np.diff(ts)[np.diff(person) == 0] >= 0).all()
    second = card >= n
    assert (card[~second] == person[~second]).all() and (cards["person"][card] == person).all()
    assert (orders["channel"][second] == MARKETPLACE).all() and (ts[second] >= cards["joined"][card[second]]).all()
    assert (ts < cards["merged"][card])[cards["merged"][card] != NONE].all()
    came_back, value = orders["refund_ts"] != NONE, orders["value_cents"]
    assert (value > 0).all() and (orders["refund_cents"] <= value).all() and ((orders["refund_cents"] > 0) == came_back).all()
    assert (orders["refund_ts"] > ts)[came_back].all() and (orders["refund_ts"] < end)[came_back].all()
    assert ((orders["store"] >= 0) == (orders["channel"] == 0)).all() and (orders["store"] // 4 == who["region"][person])[orders["channel"] == 0].all()
    assert np.array_equal(orders["number"], 10_000_000 + np.arange(len(ts))) and (orders["coupon"] <= len(world.causes.campaigns)).all()
    looked, latest = made.bought.evaluations, np.zeros(len(ts), np.int64)
    for day in np.unique(looked["day"]):
        tier = np.full(len(cards["person"]), -1)
        tier[looked["card"][looked["day"] == day]] = looked["after"][looked["day"] == day]
        latest = np.where((orders["day"] >= day) & (tier[card] >= 0), tier[card], latest)
    assert (orders["tier"] == latest).all()
    lost = made.bought.lost
    assert (lost["channel"] == 1).all() and (not len(lost["ts"]) or world.contacts.incident)
    if world.contacts.incident:
        start = world.day(world.contacts.incident[0])
        assert ((lost["day"] >= start) & (lost["day"] < start + world.contacts.incident[1])).all()


def check_truth(made):
    world, who, bought = made.world, made.who, made.bought
    orders, latent, lots = bought.orders, bought.latent, bought.lots
    for moment in ("died", "closed"):
        known = latent[moment][orders["person"]]
        assert (orders["ts"] <= known)[known != NONE].all(), moment
    assert (latent["closed"] >= who["joined"])[latent["closed"] != NONE].all()
    came = who["first"] != NONE
    assert np.array_equal(np.isfinite(latent["T"]), came) and (latent["x"][came] >= 0).all() and (latent["x"][~came] == NONE).all()
    assert (latent["t_x"][came] <= latent["T"][came]).all() and ((latent["t_x"] > 0) == (latent["x"] > 0))[came].all()
    died = ~np.isnan(latent["died_clock"])
    assert ((latent["died"] != NONE) == died).all() and (latent["died_clock"] <= latent["first_clock"] + latent["T"] + 1e-9)[died].all()
    if world.purchases.model == "bgnbd":
        assert np.allclose(latent["died_clock"][died], (latent["first_clock"] + latent["t_x"])[died])  # right after a purchase
    assert set(lots) == {"campaign", "person", "arm", "day", "weight", "alive_days"}
    assert (who["joined"][lots["person"]] < lots["day"] * DAY).all() and (lots["weight"] >= 0).all() and (lots["alive_days"] >= 0).all()
    assert (lots["alive_days"] <= np.array([c.days for c in world.causes.campaigns] or [0])[lots["campaign"].astype(int)]).all()
    gone = latent["closed"][lots["person"]]
    assert (gone >= lots["day"] * DAY)[gone != NONE].all()
    enrolled = bought.enrolled
    assert (who["joined"][enrolled["person"]] < enrolled["day"] * DAY).all() and (enrolled["day"] >= world.day(world.causes.enrolment.start)).all()


def test_odd_worlds_are_as_odd_as_they_should_be():
    assert not len(odd("nobody buys").bought.orders["ts"])
    assert (odd("all die at once").bought.latent["x"] <= 1).mean() > 0.9
    assert (odd("nobody dies").bought.latent["died"] == NONE).mean() > 0.98
    assert (odd("pareto, long").bought.latent["died"] == NONE).mean() > 0.98
    assert len(odd("huge rates").bought.orders["ts"]) > 100_000


def test_a_person_who_always_leaves_has_one_repeat_purchase():
    "p rounds to 1 here; a hazard without end used to be no hazard, or none to count with."
    made = walk(World(n_members=500, purchases=Purchases(r=50.0, alpha=10.0, a=50.0, b=1e-4, never_share=0.0)))
    certain = made.who["p"] == 1
    early = made.who["joined"] < made.world.day("middle") * DAY
    assert (certain & early).sum() > 50 and (made.bought.latent["x"][certain & early] == 1).all()


def test_lots_are_drawn_among_members_only():
    "Some bought long before they joined; they must not be in a campaign before they are members."
    made = walk(World(tastes=Tastes(late_join_share=1.0)))
    lots = made.bought.lots
    assert len(lots["day"]) and (made.who["joined"][lots["person"]] < lots["day"] * DAY).all()


def test_the_same_seed_gives_the_same_and_blocks_do_not_know_each_other():
    world = World(n_members=4_100, seed=2)
    large, again = walk(world), walk(replace(world, n_members=4_096))
    for ours, theirs in zip(large.bought, again.bought):
        assert all(np.array_equal(ours[name], theirs[name], equal_nan=ours[name].dtype.kind == "f") for name in ours)
    rest = walk(world, 1)
    assert len(rest.who["person"]) == 4 and (rest.bought.orders["number"] >= 20_000_000).all()
    other = walk(replace(world, seed=3)).bought.orders
    assert not np.array_equal(other["value_cents"][:100], large.bought.orders["value_cents"][:100])


def test_no_random_numbers_are_used_twice(monkeypatch):
    "Each draw has a purpose of its own; the worth of first orders is drawn for all and taken for those whose step it is."
    purposes = []
    monkeypatch.setattr(purchases, "stream", lambda world, block, purpose: purposes.append(purpose) or stream(world, block, purpose))
    walk(ODD["campaigns over each other"])
    others = [purpose for purpose in purposes if purpose != "first worth"]
    assert len(others) == len(set(others)) > 100


def test_more_orders_than_numbers_are_refused(monkeypatch):
    monkeypatch.setattr(purchases, "_step", lambda *a: ({"ts": np.zeros(4_000_001, bool), "lost": np.zeros(4_000_001, bool)}, None))
    with pytest.raises(ParameterError, match="4,000,001 orders of one block"):
        walk(World(n_members=1, start="2023-01-01", end="2023-04-01", causes=Causes(campaigns=(), launch=Launch(("",) * 5))), calendar=one_step())


def one_step():
    world = World(end="2023-04-01")
    return make_calendar(world)._replace(steps=[world.first_day, world.last_day], evaluations=set(), months=set(), campaigns=[])
