"""What has to be found again in an invented world; tests ask a few seeds, proofs hundreds.

Everything here is counted from what `make_purchases` gives out and from the planted numbers, never from its inner state."""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.special import betaln, gammaln
from scipy.stats import binom, chi2, gamma, norm, poisson

from memtag_research.data.simulate import Truth
from memtag_research.world.parameters import (
    NONE,
    Arm,
    Campaign,
    Causes,
    Contacts,
    Enrolment,
    Launch,
    Purchases,
    Tastes,
    TierEffect,
    TierPolicy,
    World,
)
from memtag_research.world.people import DAY, make_cards, make_people
from memtag_research.world.programme import naive_tiers
from memtag_research.world.purchases import Calendar, Purchased, make_calendar, make_purchases

SOUND = Contacts(incident=())  # a broken checkout destroys orders, so planted rates of orders hold without one
STILL = Causes().without_effects()
Z95 = norm.ppf(0.975)


class Walk(NamedTuple):
    "A block that has been walked through."

    world: World
    calendar: Calendar
    who: dict
    cards: dict
    bought: Purchased


def walk(world, block=0, calendar=None) -> Walk:
    calendar = calendar or make_calendar(world)
    who = make_people(world, block)
    cards = make_cards(world, block, who)
    return Walk(world, calendar, who, cards, make_purchases(world, calendar, block, who, cards))


def for_each(function, seeds, processes=2) -> np.ndarray:
    "Results of a function of this module for every seed."
    if processes == 1:
        return np.array([function(seed) for seed in seeds])
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        return np.array(list(pool.map(function, seeds, chunksize=5)))


def as_often(hits, n, share, doubt) -> bool:
    "Whether so many hits are what chance allows (exact, two-sided)."
    return bool(binom.cdf(hits, n, share) > doubt / 2 and binom.sf(hits - 1, n, share) > doubt / 2)


def as_many(count, mean, doubt) -> bool:
    "The same for a count with a planted mean."
    return bool(poisson.cdf(count, mean) > doubt / 2 and poisson.sf(count - 1, mean) > doubt / 2)


# --- lifetimes and spend

BGNBD, SPEND = ("r", "alpha", "a", "b"), ("p", "q", "v")
CALM = World(n_members=2_000, causes=STILL)
PARETO = replace(CALM, n_members=4_000, purchases=Purchases("pareto_nbd", s=1.0, beta=30.0))


def raw_truth(world):
    "x, t_x, T and mean repeat order of the buyers, and nothing that a cause could have touched."
    latent = walk(world).bought.latent
    bought = np.isfinite(latent["T"])
    return [latent[name][bought] for name in ("x", "t_x", "T", "repeat_mean")]


def fitted(log_likelihood, start, columns):
    "Logarithm of each estimate and its standard error: (parameters, 2)."

    def loss(logs):
        return -log_likelihood(*np.exp(logs), *columns).sum()

    best = minimize(loss, np.log(start), method="BFGS", options={"gtol": 1e-2}).x
    step = 0.02 * np.eye(len(start))
    curved = [[loss(best + a + b) - loss(best + a - b) - loss(best - a + b) + loss(best - a - b) for a in step] for b in step]
    return np.column_stack([best, np.sqrt(np.diag(np.linalg.inv(np.array(curved) / (4 * 0.02**2))))])


def bgnbd_log_likelihood(r, alpha, a, b, x, t_x, T):
    "Each person's: alive with x repeat purchases survived, or dead after the last of them."
    shared = gammaln(r + x) - gammaln(r) + r * np.log(alpha)
    alive = betaln(a, b + x) - betaln(a, b) - (r + x) * np.log(alpha + T)
    dead = np.where(x > 0, betaln(a + 1, b + np.maximum(x, 1) - 1) - betaln(a, b) - (r + x) * np.log(alpha + t_x), -np.inf)
    return shared + np.logaddexp(alive, dead)


def spend_log_likelihood(p, q, v, x, mean):
    "Gamma-Gamma, each person's; x orders with that mean."
    return (gammaln(p * x + q) - gammaln(p * x) - gammaln(q) + q * np.log(v) + (p * x - 1) * np.log(mean) + p * x * np.log(x)
            - (p * x + q) * np.log(v + x * mean))


def lifetime_estimates(seed, world=CALM):
    "Logarithm of the estimates of r, alpha, a, b, p, q, v and their standard errors: (7, 2)."
    x, t_x, T, mean = raw_truth(replace(world, seed=seed))
    again, planted = x > 0, planted_lifetime(world)
    return np.concatenate([fitted(bgnbd_log_likelihood, planted[:4], (x, t_x, T)), fitted(spend_log_likelihood, planted[4:], (x[again], mean[again]))])


def planted_lifetime(world=CALM):
    return np.array([getattr(world.purchases, name) for name in BGNBD] + [getattr(world.spend, name) for name in SPEND])


NODES, NODE_WEIGHTS = np.polynomial.legendre.leggauss(32)


def pareto_log_likelihood(r, alpha, s, beta, x, t_x, T):
    """Each person's, by quadrature over the moment of death.

    P(x, t_x | T) is Γ(r+x) α^r / Γ(r) times (α+T)^-(r+x) (β/(β+T))^s for those who live, plus the integral of
    (α+τ)^-(r+x) s β^s (β+τ)^-(s+1) over death at τ in [t_x, T]; with W = (α+τ)^-(r+s+x) the integrand is smooth."""
    k = r + s + x
    low = np.exp(k * np.log((alpha + t_x) / (alpha + T)))  # W at T, where W at t_x is 1
    w = low[:, None] + (1 - low)[:, None] * (NODES + 1) / 2
    tau = (alpha + t_x)[:, None] * w ** (-1 / k)[:, None] - alpha
    inner = (((alpha + tau) / (beta + tau)) ** (s + 1)) @ NODE_WEIGHTS / 2 * (1 - low)
    dead = np.log(s / k) + s * np.log(beta) - k * np.log(alpha + t_x) + np.log(np.maximum(inner, 1e-300))
    alive = -(r + x) * np.log(alpha + T) + s * np.log(beta / (beta + T))
    return gammaln(r + x) - gammaln(r) + r * np.log(alpha) + np.logaddexp(alive, dead)


def pareto_estimates(seed, world=PARETO):
    "Logarithm of the estimates of r, alpha, s, beta and their standard errors: (4, 2)."
    return fitted(pareto_log_likelihood, planted_pareto(world), raw_truth(replace(world, seed=seed))[:3])


def planted_pareto(world=PARETO):
    how = world.purchases
    return np.array([how.r, how.alpha, how.s, how.beta])


def covered(estimates, planted):
    "How many 95 % intervals hold the planted value, for each parameter: estimates (seeds, parameters, 2), on the logarithm's scale."
    return (np.abs(estimates[..., 0] - np.log(planted)) <= Z95 * estimates[..., 1]).sum(axis=0)


# --- lots

ARMS = (Arm("control", 0.2), Arm("coupon", 0.5, 0.3), Arm("coupon_and_gift", 0.3, 0.6))
MESSAGE = (Arm("control", 0.5), Arm("message", 0.5))
IDLE = 12  # do-nothing campaigns a world: the lots are independent, so each is a test of its own
LOTS = World(n_members=4_096, contacts=SOUND, causes=replace(
    Causes(), campaigns=(Campaign("C-COUPON", "middle", arms=ARMS),
                         *(Campaign(f"C-NOTHING-{i}", "first", arms=MESSAGE, kind="message") for i in range(IDLE)))))


def counted(made: Walk, start, end):
    "Orders of each person on the days from start to end."
    orders = made.bought.orders
    inside = (orders["day"] >= start) & (orders["day"] < end)
    return np.bincount(orders["person"][inside], minlength=len(made.who["person"]))


def drawn(made: Walk, campaign):
    "Outcome, arm, weight, share of the days lived, promotion sensitivity of all who were drawn into a campaign."
    lots, (start, end) = made.bought.lots, made.calendar.campaigns[campaign]
    mine = lots["campaign"] == campaign
    person = lots["person"][mine]
    lived = lots["alive_days"][mine] / made.world.causes.campaigns[campaign].days
    return counted(made, start, end)[person], lots["arm"][mine], lots["weight"][mine], lived, made.who["promo"][person]


def difference(y, treated, control):
    "Difference of means and its standard error."
    a, b = y[treated], y[control]
    return a.mean() - b.mean(), np.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b))


def regression(columns, y, weights=None):
    "Coefficients and heteroscedasticity-robust standard errors."
    X = np.column_stack(columns)
    root = np.ones(len(y)) if weights is None else np.sqrt(weights)
    X, y = X * root[:, None], y * root
    bread = np.linalg.inv(X.T @ X)
    coef = bread @ X.T @ y
    meat = X * (y - X @ coef)[:, None]
    return coef, np.sqrt(np.diag(bread @ meat.T @ meat @ bread) * len(y) / (len(y) - len(coef)))


def lot_estimates(seed, world=LOTS):
    "(estimate, standard error, truth): two arms, the slope on promotion sensitivity in both, each do-nothing campaign: (4 + IDLE, 3)."
    made = walk(replace(world, seed=seed))
    y, arm, weight, lived, promo = drawn(made, 0)
    rows, slopes = [], []
    for a in (1, 2):
        effect = world.causes.campaigns[0].arms[a].effect_orders
        rows.append((*difference(y, arm == a, arm == 0), effect * (weight * lived).mean()))
        both, one = np.isin(arm, (0, a)), np.ones(len(y))
        treated = (arm == a).astype(float)
        coef, error = regression([c[both] for c in (one, promo, treated, treated * promo)], y[both])
        slopes.append((coef[3], error[3], effect * regression([one, promo], weight * lived)[0][1]))
    for i in range(1, len(world.causes.campaigns)):
        y, arm, *_ = drawn(made, i)
        rows.append((*difference(y, arm == 1, arm == 0), 0.0))
    return np.array([*rows[:2], *slopes, *rows[2:]])


def hit(rows):
    "How many 95 % intervals hold the truth: (seeds, quantities, 3)."
    return (np.abs(rows[..., 0] - rows[..., 2]) <= Z95 * rows[..., 1]).sum(axis=0)


# --- a tier's threshold

GOLD, BAND = 400_00, 250_00
LADDER = replace(CALM, n_members=4_096, contacts=SOUND, tiers=TierPolicy(thresholds_cents=(0, 150_00, GOLD, 4_000_00), evaluations=("07-01",)),
                 causes=replace(STILL, tier=TierEffect((0.0, 0.0, 1.0, 1.0), (1.0,) * 4)))


def threshold_estimate(seed, world=LADDER):
    """(estimate, standard error, truth) of the jump in orders at the gold threshold, from one evaluation to the next.

    Below gold before, so that nobody keeps what he had; local linear in growth on both sides, triangular weights."""
    made = walk(replace(world, seed=seed))
    looked, day = made.bought.evaluations, world.day("2024-07-01")
    near = (looked["day"] == day) & (looked["before"] < 2) & (np.abs(looked["growth_cents"] - GOLD) < BAND)
    near &= looked["card"] < len(made.who["person"])
    distance = (looked["growth_cents"][near] - GOLD) / BAND
    above, weights, one = (distance >= 0).astype(float), 1 - np.abs(distance), np.ones(near.sum())
    y = counted(made, day, world.last_day)[looked["card"][near]]
    coef, error = regression([one, distance, above, above * distance], y, weights)
    lived = regression([one, distance], looked["alive_days"][near], weights)[0][0]
    return coef[2], error[2], np.diff(np.broadcast_to(world.causes.tier.orders_30d, 4))[1] * lived / 30


# --- counts by cause

BUSY = World(n_members=4_096, contacts=SOUND, tastes=Tastes(household_share=0.8, second_card_share=0.0, closed_share=0.0), causes=Causes(
    (Campaign("C-COUPON", "middle", arms=(Arm("control", 0.4), Arm("coupon", 0.3, 0.4, attrition=0.4, basket=1.2),
                                          Arm("gift", 0.3, 0.6, attrition=2.5, basket=0.8, dropout=0.2)), spillover=0.5),),
    TierEffect((0.0, 0.1, 0.3, 0.5), (1.0, 0.7, 0.5, 0.3), (1.0, 1.1, 1.2, 1.3)),
    Launch(("first", "middle", "2024-09-15", "", ""), 0.3, 2.0, 1.1), Enrolment("first", -3.0, 1.0, 90, 0.4)))


def without_dropout(world):
    return replace(world, causes=replace(world.causes, campaigns=tuple(
        replace(c, arms=tuple(replace(a, dropout=0.0) for a in c.arms)) for c in world.causes.campaigns)))


def moments(made: Walk):
    "First purchase and leaving (or the end) of each person, in days: by the clock, or out of the log by the lots."
    kind = 2 * made.who["lover"].astype(int) + made.who["weekend"]
    days, latent = made.world.first_day + np.arange(made.calendar.edges.shape[1]), made.bought.latent
    died = np.array([np.interp(c, made.calendar.edges[k], days) for c, k in zip(latent["died_clock"] * 7, kind)])
    first = np.where(made.who["first"] == NONE, np.inf, made.who["first"] / DAY)
    return first, np.minimum(np.where(np.isnan(died), np.inf, died), made.world.last_day)


def expected_counts(made: Walk) -> dict:
    "Cause → (orders, expected orders), from planted rates and the days that people lived; for worlds without dropout."
    causes, bought, n = made.world.causes, made.bought, len(made.who["person"])
    first, until = moments(made)
    code = np.bincount(bought.orders["cause"], minlength=6)
    looked, lots = bought.evaluations, bought.lots
    own = looked["card"] < n
    means = {2: (np.broadcast_to(causes.tier.orders_30d, 4)[looked["after"]] * looked["alive_days"])[own].sum() / 30}
    launches = made.calendar.launches[made.who["region"]]
    means[3] = causes.launch.orders_30d / 30 * np.maximum(until - np.maximum(first, launches), 0).sum()
    chosen = bought.enrolled["person"]
    means[4] = causes.enrolment.orders_30d / 30 * np.maximum(until[chosen] - np.maximum(first[chosen], bought.enrolled["day"]), 0).sum()
    means[1] = means[5] = 0.0
    for i, c in enumerate(causes.campaigns):
        mine = lots["campaign"] == i
        effect = np.array([a.effect_orders for a in c.arms]) / c.days
        person, arm, lived = (lots[name][mine] for name in ("person", "arm", "alive_days"))
        means[1] += (effect[arm] * lots["weight"][mine] * lived).sum()
        arm_of = dict(zip(person.tolist(), arm.tolist()))
        reached = [effect[arm_of.get(partner, 0)] if a == 0 else 0.0 for a, partner in zip(arm, partners(made)[person].tolist())]
        means[5] += c.spillover * (np.array(reached) * lived).sum()
    return {cause: (int(code[cause]), float(mean)) for cause, mean in means.items()}


def partners(made: Walk):
    "Row of everybody's household partner, -1 without."
    homes, other = {}, np.full(len(made.who["person"]), -1)
    for row, home in enumerate(made.who["household"].tolist()):
        if home != NONE:
            homes.setdefault(home, []).append(row)
    for a, b in homes.values():
        other[a], other[b] = b, a
    return other


def factors(made: Walk, effect):
    "Planted factor (attrition or basket) at each order, and who made it what it is: tier, launch and arm."
    orders, causes = made.bought.orders, made.world.causes
    launched = made.calendar.launches[made.who["region"][orders["person"]]] <= orders["day"]
    arm = np.full(len(orders["day"]), -1)
    for i, (start, end) in enumerate(made.calendar.campaigns):
        arms = np.full(len(made.who["person"]), -1)
        mine = made.bought.lots["campaign"] == i
        arms[made.bought.lots["person"][mine]] = made.bought.lots["arm"][mine]
        arm = np.where((orders["day"] >= start) & (orders["day"] < end), arms[orders["person"]], arm)
    of_arm = np.array([getattr(a, effect) for a in causes.campaigns[0].arms] + [1.0])[arm]
    factor = np.array(getattr(causes.tier, effect))[orders["tier"]] * np.where(launched, getattr(causes.launch, effect), 1.0) * of_arm
    return factor, {"tier": orders["tier"], "launched": launched.astype(int), "arm": arm}


def departures(made: Walk, ignored=()):
    """z of deaths against their planted hazard, by tier, launch and arm (BG/NBD): every repeat purchase of one's own is the last with
    probability 1 - (1 - p)^factor. `ignored` names what is taken for 1, so that the check can fail."""
    orders, latent = made.bought.orders, made.bought.latent
    factor, groups = factors(made, "attrition")
    own = (orders["cause"] == 0) & (orders["ts"] > made.who["first"][orders["person"]])
    person = orders["person"][own]
    hazard = 1 - (1 - latent["p"][person]) ** (np.ones(own.sum()) if ignored else factor[own])
    last = np.isclose(orders["clock"][own], latent["died_clock"][person], rtol=0, atol=1e-8)
    return {(name, level): standard(last[at], hazard[at]) for name, levels in groups.items() for level in np.unique(levels[own])
            if (at := levels[own] == level).sum() > 50}


def standard(happened, chance): return float((happened.sum() - chance.sum()) / np.sqrt((chance * (1 - chance)).sum()))


def worths(made: Walk):
    "Two-sided p of the sum of orders' worth over their planted factor and the person's mean (an exact Gamma), by tier, launch and arm."
    orders = made.bought.orders
    factor, groups = factors(made, "basket")
    worth = orders["value_cents"] / 100 / made.who["spend_mean"][orders["person"]]
    p = made.world.spend.p
    found = {}
    for name, levels in groups.items():
        for level in np.unique(levels):
            at = levels == level
            for label, total in (("planted", (worth / factor)[at].sum()), ("without", worth[at].sum())):
                tail = gamma.cdf(total * p, at.sum() * p)
                found[name, int(level), label] = 2 * min(tail, 1 - tail)
    return found


# --- the paid membership that people choose

CHOSEN = replace(LOTS, causes=replace(STILL, campaigns=(), enrolment=Enrolment("first", -3.0, 1.5, 90, 0.0)))


def naive_enrolment(seed, world=CHOSEN):
    "(difference, standard error, 0) of the orders of 90 days between those who enrol on a day and all who could have."
    made, day = walk(replace(world, seed=seed)), world.day("2024-01-01")
    latent, enrolled = made.bought.latent, np.full(len(made.who["person"]), np.iinfo(np.int64).max)
    enrolled[made.bought.enrolled["person"]] = made.bought.enrolled["day"]
    free = (made.who["joined"] < day * DAY) & ((latent["closed"] == NONE) | (latent["closed"] > day * DAY)) & (enrolled >= day)
    y = counted(made, day, day + 90)
    return *difference(y, free & (enrolled == day), free & (enrolled > day)), 0.0


# --- the probability of no purchase

def calibration(world, as_of="2024-01-01", horizon_days=90, blocks=1, tilt=1.0):
    "p of ten deciles of `Truth.p_no_purchase` against what happened, observed and promised shares; `tilt` spoils the promise."
    promised, silent = [], []
    for block in range(blocks):
        made = walk(world, block)
        truth = Truth(Path("nowhere"), world, {})
        vars(truth)["people"] = pd.DataFrame({"member_id": np.arange(len(made.who["person"]))} | made.bought.latent)
        said = truth.p_no_purchase(as_of, horizon_days)
        orders, day = made.bought.orders, world.day(as_of)
        within = (orders["cause"] == 0) & (orders["day"] >= day) & (orders["day"] < day + horizon_days)
        quiet = ~np.isin(said.member_id, orders["person"][within])
        assert quiet[~said.alive].all()  # the dead buy nothing
        promised.append(said.p_no_purchase.to_numpy()[said.alive])
        silent.append(quiet[said.alive])
    promised, silent = np.concatenate(promised) ** tilt, np.concatenate(silent)
    tenth = np.argsort(np.argsort(promised)) * 10 // len(promised)
    z = [standard(silent[tenth == k], promised[tenth == k]) for k in range(10)]
    return float(chi2.sf(np.square(z).sum(), 10)), [(float(silent[tenth == k].mean()), float(promised[tenth == k].mean())) for k in range(10)]


# --- tiers by the plain loop

def naive_evaluations(made: Walk) -> set:
    "(card, day, growth, before, after) of every card by `naive_tiers`."
    world, cards, orders, rows = made.world, made.cards, made.bought.orders, set()
    closed, n = made.bought.latent["closed"], len(made.who["person"])
    sales, refunds, firsts = ({} for _ in range(3))
    columns = ("card", "person", "ts", "value_cents", "refund_ts", "refund_cents")
    for card, person, ts, value, back, cents in zip(*(orders[name].tolist() for name in columns)):
        sales.setdefault(card, []).append((ts, value))
        firsts[person] = min(ts, firsts.get(person, ts))
        if back != NONE:
            refunds.setdefault(card, []).append((back, cents))
    friends = {}
    for row, by in enumerate(made.who["referrer"].tolist()):
        if by >= 0 and row in firsts:
            friends.setdefault(by, []).append(firsts[row])
    brought = {}
    for card in np.flatnonzero(cards["merged_into"] >= 0).tolist():
        moves = [*sales.get(card, []), *((ts, -cents) for ts, cents in refunds.get(card, []))]
        brought.setdefault(int(cards["merged_into"][card]), []).extend((int(cards["merged"][card]), ts, cents) for ts, cents in moves)
    for card, (person, joined, merged) in enumerate(zip(*(cards[name].tolist() for name in ("person", "joined", "merged")))):
        until = min([ts for ts in (merged, int(closed[person])) if ts != NONE and ts >= joined], default=None)
        known = (sales.get(card, ()), refunds.get(card, ()), friends.get(card, ()) if card < n else (), brought.get(card, ()))
        rows |= {(card, *row) for row in naive_tiers(world, joined, *known, until)}
    return rows


def evaluations(made: Walk) -> set:
    "The same of the machine."
    return set(zip(*(made.bought.evaluations[name].tolist() for name in ("card", "day", "growth_cents", "before", "after"))))
