"""Invented worlds over many seeds: every planted number is found again, as often as a 95 % interval promises.

Every bound is two-sided at `DOUBT`, and exact where something is counted (binomial, Poisson). The proofs of this file together
have fewer than fifty bounds: all of them hold, unless by chance, for more than 999 choices of seeds in a thousand.
Each is asked of a wrong truth too, and has to fail there. The likelihoods are held against `lifetimes` in test_world_purchases."""

from dataclasses import replace

import numpy as np
import pytest
import simulated_truth as truth
from scipy.stats import norm
from simulated_truth import BGNBD, BUSY, IDLE, LOTS, SPEND, STILL, for_each, walk

from memtag_research.world.parameters import Contacts, Purchases, Tastes, World

DOUBT = 2e-5
MISTAKEN = np.array([1.2, 1.2, 1.2, 1.2, 1.5, 1.5, 1.5])  # planted otherwise by so much, it has to show
FAR_OUT = norm.isf(DOUBT / 2)


def shares(names, hits, n):
    return {name: f"{hit / n:.3f}" for name, hit in zip(names, hits.tolist())}


def covers(hits, n):
    return [truth.as_often(hit, n, 0.95, DOUBT) for hit in hits.tolist()]


@pytest.mark.proof(name="simulated_lifetimes", covers=["tests/simulated_truth.py", "memtag_research/world/parameters.py", "memtag_research/world/calendar.py",
                                                       "memtag_research/world/people.py", "memtag_research/world/purchases.py",
                                                       "memtag_research/world/programme.py"])
def test_planted_lifetimes_and_spend_are_in_their_intervals(record_proof):
    "BG/NBD and Gamma-Gamma, 400 seeds; Pareto/NBD, 60 seeds."
    seeds, few = 400, 60
    found, planted = for_each(truth.lifetime_estimates, range(seeds)), truth.planted_lifetime()
    hits, wrong = truth.covered(found, planted), truth.covered(found, planted * MISTAKEN)
    assert covers(hits, seeds) == [True] * 7, hits
    assert covers(wrong, seeds) == [False] * 7, wrong  # a world of another value would be seen, whichever it is
    other, there = for_each(truth.pareto_estimates, range(few)), truth.planted_pareto()
    pareto, wrong_pareto = truth.covered(other, there), truth.covered(other, there * [1.2, 1.2, 2.0, 2.0])
    assert covers(pareto, few) == [True] * 4, pareto
    assert covers(wrong_pareto, few) == [False] * 4, wrong_pareto
    names = [f"{group} {name}" for group, names in (("BG/NBD", BGNBD), ("Gamma-Gamma", SPEND)) for name in names]
    record_proof({"seeds": seeds, **shares(names, hits, seeds), "the same, had 1.2 (spend: 1.5) times as much been planted": ", ".join(f"{h / seeds:.2f}" for h in wrong),
                  "Pareto/NBD seeds": few, **shares([f"Pareto/NBD {name}" for name in ("r", "alpha", "s", "beta")], pareto, few)})


@pytest.mark.proof(name="simulated_lots", covers=["tests/simulated_truth.py", "memtag_research/world/parameters.py", "memtag_research/world/calendar.py",
                                                  "memtag_research/world/people.py", "memtag_research/world/purchases.py",
                                                  "memtag_research/world/programme.py"])
def test_planted_effects_of_lots_are_in_their_intervals(record_proof):
    "A campaign with arms of .2, .5 and .3 among all other causes, twelve that do nothing; a tier's threshold; chosen membership."
    seeds = 200
    found = for_each(truth.lot_estimates, range(seeds))
    hits = truth.hit(found)
    assert covers(hits[:4], seeds) == [True] * 4, hits
    zero = truth.hit(found * [1, 1, 0])
    assert covers(zero[:4], seeds) == [False] * 4, zero
    z = (found[:, 4:, 0] / found[:, 4:, 1]).ravel()
    positive = int((z > truth.Z95).sum())
    assert truth.as_often(positive, seeds * IDLE, 0.025, DOUBT), positive
    assert not truth.as_often(int((z > norm.isf(0.05)).sum()), seeds * IDLE, 0.025, DOUBT)  # at 5 % it would be seen
    jumps = for_each(truth.threshold_estimate, range(seeds))
    jumped, flat = truth.hit(jumps), truth.hit(jumps * [1, 1, 0])
    assert truth.as_often(jumped, seeds, 0.95, DOUBT) and not truth.as_often(flat, seeds, 0.95, DOUBT), (jumped, flat)
    chosen = for_each(truth.naive_enrolment, range(50))
    naive = chosen[:, 0] / chosen[:, 1]
    assert naive.mean() > 3
    record_proof({"seeds": seeds, **shares(("coupon", "coupon and gift", "slope of coupon", "slope of coupon and gift"), hits[:4], seeds),
                  "the same, had nothing been planted": ", ".join(f"{h / seeds:.2f}" for h in zero[:4]),
                  "do-nothing campaigns": seeds * IDLE, "significantly positive": f"{positive / seeds / IDLE:.4f}",
                  "gold threshold": f"{jumped / seeds:.3f}", "gold threshold against zero": f"{flat / seeds:.3f}",
                  "naive difference of a membership without effect": f"{chosen[:, 0].mean():.2f} orders, z {naive.mean():.1f} on average"})


@pytest.mark.proof(name="simulated_causes", covers=["tests/simulated_truth.py", "memtag_research/world/parameters.py", "memtag_research/world/calendar.py",
                                                    "memtag_research/world/people.py", "memtag_research/world/purchases.py",
                                                    "memtag_research/world/programme.py"])
def test_orders_by_cause_departures_and_worth_are_as_planted(record_proof):
    "Sums over 40 worlds with everything on; tiers by the plain loop, 2,000 members and five worlds."
    worlds = 40
    found = [truth.expected_counts(walk(replace(truth.without_dropout(BUSY), seed=seed))) for seed in range(worlds)]
    counts = {cause: [sum(f[cause][i] for f in found) for i in (0, 1)] for cause in found[0]}
    assert all(truth.as_many(*count, DOUBT) for count in counts.values()), counts
    busy = [walk(replace(BUSY, seed=seed)) for seed in range(worlds)]
    departures, ignored = ([truth.departures(made, no) for made in busy] for no in ((), True))
    z = {key: float(np.sum([d[key] for d in departures if key in d]) / np.sqrt(sum(key in d for d in departures))) for key in departures[0]}
    assert max(map(abs, z.values())) < FAR_OUT, z
    assert np.mean([d["launched", 1] for d in ignored]) > FAR_OUT
    worths = [truth.worths(made) for made in busy]
    smallest = min(p for found in worths for (*_, label), p in found.items() if label == "planted")
    assert smallest > DOUBT / worlds
    wild = World(tastes=Tastes(second_card_share=0.3, closed_share=0.3, late_join_share=0.3, referred_share=0.3),
                 contacts=Contacts(refund_rate=0.3, refund_days=60.0))
    looked = 0
    for world in (World(), *(replace(wild, seed=seed) for seed in range(4))):
        made = walk(world)
        assert truth.evaluations(made) == truth.naive_evaluations(made)
        looked += len(made.bought.evaluations["card"])
    record_proof({"worlds": worlds, **{f"orders by {name}": f"{counts[code][0]} of {counts[code][1]:.0f} expected" for code, name in
                                       enumerate(("campaign", "tier", "launch", "enrolment", "spillover"), 1)},
                  "largest z of departures": f"{max(map(abs, z.values())):.2f}", "smallest p of worth": f"{smallest:.4f} of {len(worths) * len(worths[0]) // 2}",
                  "evaluations equal to the plain loop": looked})


@pytest.mark.proof(name="simulated_no_purchase", covers=["tests/simulated_truth.py", "memtag_research/world/parameters.py",
                                                         "memtag_research/world/calendar.py", "memtag_research/world/people.py",
                                                         "memtag_research/world/purchases.py", "memtag_research/world/programme.py",
                                                         "memtag_research/data/simulate.py"])
def test_the_true_probability_of_no_purchase_is_calibrated(record_proof):
    "`Truth.p_no_purchase` in tenths, 40,000 people, both models."
    figures = {}
    for model in ("bgnbd", "pareto_nbd"):
        world = replace(LOTS, n_members=40_960, causes=STILL, purchases=Purchases(model))
        p, tenths = truth.calibration(world, blocks=10)
        assert p > DOUBT > truth.calibration(world, blocks=10, tilt=1.1)[0]
        figures |= {f"{model}: p": f"{p:.3f}", f"{model}: observed / promised": "; ".join(f"{seen:.3f}/{said:.3f}" for seen, said in tenths)}
    record_proof(figures)
