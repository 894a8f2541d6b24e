"""Fits over many seeds: planted parameters lie in their 95 % intervals as often as that promises, for all six models.

Bounds are two-sided and exact (binomial) at `DOUBT`; the file has fewer than fifty of them. Members are drawn purchase by purchase
(tests/lifetime_worlds.py), not from a likelihood. A truth that was planted otherwise must show."""

import lifetime_worlds as worlds
import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from simulated_truth import as_often, for_each

from memtag_research.models import fits
from memtag_research.models.clv import predict_members
from memtag_research.models.predictions import expected_purchases, expected_spend

DOUBT, SEEDS, Z95 = 2e-5, 400, norm.ppf(0.975)
MISTAKEN = 1.3   # every parameter so much larger: most intervals must miss it


def estimates(model, seed):
    "Logarithms of the estimates and their errors: (k, 2)."
    fit = {"gamma_gamma": lambda: fits.fit_gamma_gamma(worlds.spend_world(2_000, seed)), "sbg": lambda: fits.fit_sbg(worlds.contracts(2_000, seed)),
           "bgbb": lambda: fits.fit_bgbb(worlds.opportunities(3_000, seed))}.get(
        model, lambda: getattr(fits, f"fit_{model}")(worlds.repeat_world(model, 3_000, seed)))()
    return np.column_stack([np.log(list(fit.parameters.values())), np.sqrt(np.diag(fit.covariance))])


def bgnbd(seed): return estimates("bgnbd", seed)
def mbgnbd(seed): return estimates("mbgnbd", seed)
def pareto_nbd(seed): return estimates("pareto_nbd", seed)
def bgbb(seed): return estimates("bgbb", seed)
def gamma_gamma(seed): return estimates("gamma_gamma", seed)
def sbg(seed): return estimates("sbg", seed)


@pytest.mark.proof(name="lifetime_fits", covers=["tests/lifetime_worlds.py", "memtag_research/models/fits.py", "memtag_research/models/terms.py",
                                                 "memtag_research/models/repeat.py", "memtag_research/models/pareto.py",
                                                 "memtag_research/models/discrete.py", "memtag_research/models/spend.py"])
def test_planted_parameters_are_in_their_intervals(record_proof):
    "400 seeds of 2,000 to 3,000 members a model."
    figures = {"seeds": SEEDS}
    for one in (bgnbd, mbgnbd, pareto_nbd, bgbb, gamma_gamma, sbg):
        model, found = one.__name__, for_each(one, range(SEEDS))
        planted = np.array([worlds.PLANTED[model][p] for p in fits.MODELS[model].parameters])
        hits, wrong = (_covered(found, planted * by) for by in (1, MISTAKEN))
        assert all(as_often(hit, SEEDS, 0.95, DOUBT) for hit in hits.tolist()), (model, hits)
        assert not any(as_often(hit, SEEDS, 0.95, DOUBT) for hit in wrong.tolist()), (model, wrong)
        for name, hit, miss in zip(fits.MODELS[model].parameters, hits, wrong, strict=True):
            figures[f"{model} {name}"] = f"{hit / SEEDS:.3f} (of a value {MISTAKEN} times as large: {miss / SEEDS:.2f})"
    record_proof(figures)


def _covered(found, planted): return (np.abs(found[..., 0] - np.log(planted)) <= Z95 * found[..., 1]).sum(axis=0)


# ---- predictions

HISTORIES = [(0, 0.0, 40.0), (1, 3.0, 60.0), (4, 30.0, 52.0), (12, 70.0, 72.0)]   # x, t_x, T in weeks
HORIZON = 273


def intervals(model, seed):
    "Of each history, by the fit of one world: 90 % (low, high) of purchases expected, and of value; shape (4, 2, 2)."
    buying = getattr(fits, f"fit_{model}")(worlds.repeat_world(model, 3_000, seed))
    spend = fits.fit_gamma_gamma(worlds.spend_world(2_000, seed))
    made = predict_members(histories(), buying, spend, HORIZON, draws=200)
    return made[["purchases_low", "purchases_high", "clv_low_cents", "clv_high_cents"]].to_numpy().reshape(-1, 2, 2)


def histories():
    return pd.DataFrame(HISTORIES, columns=["x", "t_x", "T"]).assign(member_id=list("abcd"), repeat_mean_cents=[np.nan, 900.0, 1_500.0, 700.0])


def bgnbd_intervals(seed): return intervals("bgnbd", seed)
def mbgnbd_intervals(seed): return intervals("mbgnbd", seed)
def pareto_nbd_intervals(seed): return intervals("pareto_nbd", seed)


def promised(model):
    "Purchases and value that the planted parameters promise each history: (4, 2)."
    planted, world = worlds.PLANTED[model], histories()
    edges = np.linspace(0, HORIZON, -(-HORIZON // 31) + 1)
    steps = np.diff([np.zeros(4), *(expected_purchases(model, planted, e / 7, world.x, world.t_x, world["T"]) for e in edges[1:])], axis=0)
    worth = 1.1 ** -((edges[1:] + edges[:-1]) / 2 / 365.25)
    one = 100 * expected_spend(worlds.PLANTED["gamma_gamma"], world.x, world.repeat_mean_cents.fillna(0) / 100)
    return np.column_stack([steps.sum(axis=0), worth @ steps * one])


@pytest.mark.proof(name="lifetime_predictions", covers=["tests/lifetime_worlds.py", "memtag_research/models/fits.py", "memtag_research/models/clv.py",
                                                        "memtag_research/models/predictions.py"])
def test_what_planted_parameters_promise_is_in_the_intervals(record_proof):
    "400 seeds a model, four histories, purchases and discounted value; a fifth more must be missed far more often."
    figures = {"seeds": SEEDS}
    for one in (bgnbd_intervals, mbgnbd_intervals, pareto_nbd_intervals):
        model, found = one.__name__.removesuffix("_intervals"), for_each(one, range(SEEDS))
        truth = promised(model)
        hits, wrong = (((found[..., 0] <= value) & (value <= found[..., 1])).sum(axis=0) for value in (truth, truth * 1.2))
        assert all(as_often(hit, SEEDS, 0.9, DOUBT) for hit in hits.ravel().tolist()), (model, hits)
        assert not any(as_often(hit, SEEDS, 0.9, DOUBT) for hit in wrong.ravel().tolist()), (model, wrong)
        for what, some in zip(("purchases", "value"), hits.T, strict=True):
            figures[f"{model} {what}"] = ", ".join(f"{hit / SEEDS:.3f}" for hit in some)
    record_proof(figures)
