"""Fits over many seeds: planted parameters lie in their 95 % intervals as often as that promises, for all six models.

Bounds are two-sided and exact (binomial) at `DOUBT`; the file has fewer than fifty of them. Members are drawn purchase by purchase
(tests/lifetime_worlds.py), not from a likelihood. A truth that was planted otherwise must show."""

import lifetime_worlds as worlds
import numpy as np
import pytest
from scipy.stats import norm
from simulated_truth import as_often, for_each

from memtag_research.models import fits

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
