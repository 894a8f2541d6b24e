"""Contracts: survival, hazard ratios and projections against published figures, plain loops, and planted truth.

Published: remission times of Freireich and others (1963) in the textbooks of Kleinbaum and Klein and of Collett; recidivism of Rossi,
Berk and Lenihan (1980) in Fox's appendix on Cox regression, with its test of proportional hazards; Fader and Hardie (2007)."""

import subprocess
import sys
from datetime import date, timedelta

import numpy as np
import pandas as pd
import pytest
import tag_world as world
from hypothesis import given, settings
from hypothesis import strategies as st
from lifetime_worlds import contracts
from scipy.optimize import minimize
from scipy.special import betaln
from simulated_truth import as_often

from memtag_research.core import ConvergenceError, NotComputable, ParameterError
from memtag_research.data.engine import as_table, connect, to_frame
from memtag_research.models import retention
from memtag_research.models.retention import (
    compare_survival,
    cox_model,
    kaplan_meier,
    median_days,
    membership_spells,
    plot_survival,
    sbg_projection,
    tier_spells,
)

few = settings(max_examples=25, deadline=None, derandomize=True)
TREATED, RUNNING = [6, 6, 6, 7, 10, 13, 16, 22, 23], [6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35]
PLACEBO = [1, 1, 2, 2, 3, 4, 4, 5, 5, 8, 8, 8, 8, 11, 11, 12, 12, 15, 17, 22, 23]
WEEKS = pd.DataFrame({"days": TREATED + RUNNING + PLACEBO, "ended": [True] * 9 + [False] * 12 + [True] * 21,
                      "group": ["6-MP"] * 21 + ["placebo"] * 21})

# 432 released prisoners: week of arrest (+: none in 52 weeks), financial aid (f or n) and age, earlier convictions
ROSSI = """
20/n27/3 17/n18/8 25/n19/13 52+/f23/1 52+/n19/3 52+/n24/2 23/n25/0 52+/f21/4 52+/n22/6 52+/n20/0 52+/f26/3 52+/n40/2 37/n17/5 52+/n37/2 25/n20/3
46/f22/2 28/n19/7 52+/n20/2 52+/n25/12 52+/n24/1 52+/n23/4 52+/f44/0 24/f29/2 52+/f28/1 52+/f21/0 52+/f19/2 52+/n33/1 52+/n19/2 52+/f19/3 52+/f23/9
52+/f23/3 52+/f19/1 52+/f42/0 52+/n23/2 52+/n24/3 50/f20/2 52+/n22/5 52+/n27/2 52+/f19/4 52+/n28/3 52+/f33/9 52+/n24/1 10/n21/14 52+/n22/2 52+/f19/2
52+/f22/2 52+/f22/15 20/f23/5 52+/n32/2 52+/f27/0 52+/f36/0 52+/f22/1 52+/f32/1 50/f19/10 52+/n28/1 52+/n32/3 52+/n33/1 52+/n26/1 52+/f20/0 52+/f42/9
6/n19/6 52+/n22/2 52+/n22/5 52+/n36/11 52/n23/2 52+/f27/3 52+/f21/1 52+/f22/2 49/n35/3 52+/n21/4 52+/f25/5 52+/n18/0 52+/f26/2 52+/n30/4 52+/n20/2
52+/f43/1 43/n23/4 52+/n42/2 52+/n21/2 5/n19/3 27/n29/4 52+/n30/3 52+/f21/10 52+/n20/7 22/f19/10 52+/f22/1 52+/n25/3 18/n22/4 52+/f22/4 52+/f24/2
52+/n39/4 52+/n21/1 52+/f20/2 52+/f24/1 52+/n25/2 24/f21/4 52+/f20/1 52+/f19/3 52+/f24/2 52+/f24/1 2/n44/2 26/n32/2 52+/n23/3 49/f19/1 52+/n20/1
21/n27/0 48/n19/6 52+/f21/1 52+/n20/1 52+/n25/3 52+/n20/6 52+/f23/3 52+/n20/2 52+/f30/1 52+/n25/0 52+/n22/1 52+/n24/3 52+/f18/4 8/f40/1 52+/n22/1
52+/f23/6 49/n21/1 52+/f24/2 52+/f24/14 52+/n38/2 52+/n26/3 52+/f29/1 52+/n21/8 52+/f21/2 52+/n22/4 8/n23/5 52+/n27/2 52+/f18/2 13/n23/5 52+/f24/2
52+/f21/3 52+/f20/4 52+/f27/4 8/f20/11 52+/f29/5 33/n19/10 52+/n20/8 52+/f18/0 11/f19/2 52+/f24/1 52+/n28/4 52+/f26/4 52+/f17/0 52+/n21/3 37/n34/2
52+/f26/1 52+/f43/2 52+/n20/0 44/n20/1 52+/n32/1 52/n25/1 52+/f22/1 52+/f31/1 52+/f42/4 52+/f32/10 52+/f20/8 52+/n20/1 52+/f36/8 52+/f34/2 52+/f28/3
52+/f21/2 52+/n18/6 52+/f20/4 52+/n17/3 52+/f44/3 52+/f30/5 52+/f22/11 9/f30/3 17/n23/8 52+/f20/2 52+/n19/10 52+/f21/1 52+/f22/6 52+/f19/2 52+/f21/10
16/n38/3 52+/f24/7 52+/f39/2 3/n30/3 52+/n37/0 52+/f23/2 52+/n21/1 52+/f31/1 52+/f24/13 52+/n31/3 52+/n24/2 52+/f24/1 52+/f21/1 52+/f22/2 45/n20/5
52+/f21/0 52+/f24/2 52+/n25/1 52+/n19/1 52+/n20/2 52+/n20/4 28/n24/1 52+/f18/4 16/f28/5 15/f19/4 52+/n19/1 52+/n25/0 52+/f19/1 52+/f25/2 14/n24/0
52+/f20/1 52+/f30/1 52+/n29/4 52+/n28/4 52+/f36/1 52+/f23/7 52+/f23/2 52+/n24/4 52+/n29/1 52+/n26/2 52+/n39/3 52+/f20/1 52+/n23/3 52+/f21/2 52+/f21/1
7/f20/2 52+/f20/3 52+/f27/2 43/n18/3 46/f25/1 40/f20/6 52+/f20/5 14/n20/7 52+/n24/11 52+/f23/1 8/n28/4 52+/n21/2 52+/n25/1 52+/n24/1 52+/n29/3
52+/n22/2 25/n28/18 52+/n19/1 52+/n20/1 17/n20/5 37/f22/1 52+/n20/8 52+/f21/2 52+/f21/1 32/n19/3 52+/n26/1 52+/n23/2 52+/f22/4 52+/f24/8 52+/f40/5
52+/f32/2 52+/n38/0 52+/n26/1 12/f27/0 52+/n29/3 18/n20/4 52+/n22/1 52+/n22/5 14/f19/12 52+/n22/1 52+/n19/3 52+/f32/1 52+/f25/2 38/n21/2 52+/f36/1
24/n40/2 20/f20/1 32/f19/0 52+/n18/4 52+/f28/0 52+/f22/2 52+/f25/1 52+/f28/2 52+/f25/2 52+/f20/4 52+/f24/5 52+/n24/0 52+/f36/2 52+/f34/1 31/n19/5
20/f23/1 40/n19/3 52+/f40/2 52+/f31/2 52+/n23/0 52+/n42/2 42/f26/1 52+/n20/9 26/n27/1 52+/f24/5 52+/n25/2 52+/f22/3 52+/f20/2 52+/f20/2 47/n22/3
52+/n18/1 52+/n20/2 40/n20/1 52+/n22/2 52+/f30/2 52+/n36/1 52+/n25/5 21/n29/3 52+/n19/3 52+/f24/2 52+/f21/0 52+/f35/6 52+/f19/4 1/n20/0 43/n22/3
24/n23/1 11/n19/18 52+/n18/3 52+/f38/2 52+/f18/6 52+/n22/1 33/n21/3 52+/n21/1 46/f21/5 36/f17/3 52+/f22/1 52+/f23/0 18/f19/4 52+/f21/1 52+/f35/5
50/n23/8 52+/f22/2 34/f25/11 52+/f20/4 35/f19/1 52+/n20/1 52+/f41/3 39/n23/4 9/f26/0 52+/n26/2 52+/f38/1 52+/n27/1 34/f19/3 52+/n25/1 52+/f30/2
52+/f42/1 44/n20/2 52+/f23/1 52+/n21/3 35/f20/3 30/n17/1 39/f26/5 52+/f24/1 52+/n37/1 52+/n28/1 52+/n33/0 19/f22/4 52+/n25/2 43/n20/10 52+/n20/1
48/f24/4 37/f26/11 20/f26/1 52+/n25/1 52+/n26/1 36/f23/3 52+/f28/4 52+/n27/0 52+/f23/3 52+/n17/7 52+/n20/4 52+/f20/5 52+/f20/9 30/f22/2 52+/n31/1
52+/n43/1 52+/n29/1 52+/f21/0 52+/n24/2 52+/f30/3 52+/n22/0 52+/f26/1 42/f20/0 52+/n23/6 52+/n25/5 52+/f40/2 52+/f30/0 26/n22/2 40/n18/2 52+/n18/0
52+/n24/2 52+/f25/2 35/f19/2 52+/n24/2 46/n24/2 52+/n18/3 49/f18/0 52+/n23/0 52+/n20/2 49/f18/1 52+/n23/2 52+/f20/1 52+/n23/5 52+/n23/1 52+/n23/2
35/n20/4 52+/f26/4 52+/f30/1 52+/f36/4 52+/f43/4 27/n20/1 52+/f24/1 52+/n22/1 52+/f20/1 52/n21/0 45/f18/5 4/n18/1 52/n33/2 36/f19/2 52+/f21/1
52+/f21/1 8/f21/4 15/f22/3 52+/n18/3 19/n18/2 52+/n24/2 12/f22/2 52+/f31/3 52+/n20/1 52+/f20/1 52+/n29/3 52+/f24/1
"""


def rossi():
    rows = [one.split("/") for one in ROSSI.split()]
    return pd.DataFrame([(int(w.rstrip("+")), not w.endswith("+"), int(a[0] == "f"), int(a[1:]), int(p)) for w, a, p in rows],
                        columns=["days", "ended", "fin", "age", "prio"])


# --- published

def test_published_survival():
    curve = kaplan_meier(WEEKS, "group")
    ends = curve[(curve.by == "6-MP") & (curve.ended > 0)]
    assert ends.days.tolist() == [6, 7, 10, 13, 16, 22, 23] and ends.at_risk.tolist() == [21, 17, 15, 12, 11, 7, 6]
    np.testing.assert_allclose(ends.survival, [0.8571, 0.8067, 0.7529, 0.6902, 0.6275, 0.5378, 0.4482], atol=5e-5)
    error = np.array([0.0764, 0.0869, 0.0963, 0.1068, 0.1141, 0.1282, 0.1346])     # Greenwood, as printed; carried to ln(-ln S)
    width = 1.959964 * error / (ends.survival * -np.log(ends.survival))
    np.testing.assert_allclose(ends.ci_lower, ends.survival ** np.exp(width), atol=5e-4)
    np.testing.assert_allclose(ends.ci_upper, ends.survival ** np.exp(-width), atol=5e-4)
    medians = median_days(curve)
    assert medians.days.to_dict() == {"6-MP": 23, "placebo": 8}
    assert medians.loc["placebo"].tolist() == [8, 4, 11] and medians.ci_lower["6-MP"] == 13 and np.isnan(medians.ci_upper["6-MP"])


def test_published_log_rank():
    found = compare_survival(WEEKS, "group")
    assert round(found["chi2"], 2) == 16.79 and found["df"] == 1 and found["p_value"] == pytest.approx(4.17e-5, rel=5e-3)
    assert found["table"].expected.round(2).tolist() == [19.25, 10.75] and found["table"].ended.tolist() == [9, 21]


def test_published_hazard_ratios():
    row = cox_model(WEEKS, {"group": "6-MP"}).table.loc["group=placebo"]
    assert (round(row.coefficient, 3), round(row.se, 3), round(row.hazard_ratio, 2)) == (1.572, 0.412, 4.82)
    found = cox_model(rossi(), ["fin", "age", "prio"])
    np.testing.assert_allclose(found.table.coefficient, [-0.34695, -0.06711, 0.09689], atol=6e-6)
    np.testing.assert_allclose(found.table.se, [0.19025, 0.02085, 0.02725], atol=6e-6)
    assert (found.members, found.ended) == (432, 114)


def test_published_check_of_proportional_hazards():
    "Fox, table of cox.zph: rho, chi-square, p."
    checks = cox_model(rossi(), ["fin", "age", "prio"]).checks
    np.testing.assert_allclose(checks.correlation[:3], [-0.00657, -0.20976, -0.08004], atol=6e-6)
    np.testing.assert_allclose(checks.chi2, [0.00507, 6.54147, 0.77288, 7.13046], atol=6e-6)
    np.testing.assert_allclose(checks.p_value, [0.9433, 0.0105, 0.3793, 0.0679], atol=6e-5)
    said = cox_model(rossi(), ["fin", "age", "prio"]).text
    assert "age falls with time" in said[-1] and "fin falls" not in said[-1] and len(said) == 4


PAPER = {"Regular": ([1000, 631, 468, 382, 326, 289, 262, 241, 223, 207, 194, 183, 173], 0.704, 1.182),
         "High End": ([1000, 869, 743, 653, 593, 551, 517, 491, 468, 445, 427, 409, 394], 0.668, 3.806)}


@pytest.mark.parametrize("segment", PAPER)
def test_published_projection(segment):
    survivors, alpha, beta = PAPER[segment]
    made = sbg_projection(survivors, holdout_periods=5)
    assert [round(v, 3) for v in made.fit.parameters.values()] == [alpha, beta]
    t = np.arange(13)
    np.testing.assert_allclose(made.table.model, np.exp(betaln(alpha, beta + t) - betaln(alpha, beta)), atol=2e-4)
    np.testing.assert_allclose(made.table.model_retention[1:], (beta + t[1:] - 1) / (alpha + beta + t[1:] - 1), atol=2e-4)
    held = made.table[made.table.holdout]
    assert held.index.tolist() == [8, 9, 10, 11, 12] and (held.share - held.projected).abs().max() < 0.015
    assert ((held.projected_low <= held.share) & (held.share <= held.projected_high)).all()
    assert (held.share - held.constant).min() > 0.02          # one rate forgets that who likes to leave has left
    np.testing.assert_allclose(held.projected, survivors[7] / 1000 * held.model / made.table.model[7])


# --- plain loops

spells_drawn = st.lists(st.tuples(st.integers(0, 12), st.booleans(), st.integers(0, 12), st.sampled_from("ab")), min_size=4, max_size=40)


def frame_of(drawn):
    return pd.DataFrame([(d, e, min(entry, d), g) for d, e, entry, g in drawn], columns=["days", "ended", "entry_days", "group"])


@few
@given(spells_drawn)
def test_survival_day_by_day(drawn):
    spells = frame_of(drawn)
    try: curve = kaplan_meier(spells)
    except NotComputable: return     # all at risk left while others were still to come
    here, share = curve.set_index("days"), 1.0
    for day in range(int(spells.days.max()) + 1):
        risk = [i for i, s in spells.iterrows() if s.entry_days <= day <= s.days]
        gone = [i for i in risk if spells.ended[i] and spells.days[i] == day]
        share *= 1 - len(gone) / len(risk) if risk else 1
        if day in here.index:
            assert here.at_risk[day] == len(risk) and here.ended[day] == len(gone)
            assert here.survival[day] == pytest.approx(share, abs=1e-9)
    assert curve.ended.sum() == spells.ended.sum() and curve.running.sum() == (~spells.ended).sum()


@few
@given(spells_drawn)
def test_log_rank_day_by_day(drawn):
    spells, gap, variance = frame_of(drawn), 0.0, 0.0
    for day in sorted(spells.days[spells.ended].unique()):
        risk = spells[(spells.entry_days <= day) & (spells.days >= day)]
        n, d = len(risk), (risk.ended & (risk.days == day)).sum()
        a = (risk.group == "a").sum()
        gap += (risk.ended & (risk.days == day) & (risk.group == "a")).sum() - d * a / n
        if n > 1: variance += d * a / n * (1 - a / n) * (n - d) / (n - 1)
    if variance < 1e-9:
        with pytest.raises(NotComputable): compare_survival(spells, "group")
    else: assert compare_survival(spells, "group")["chi2"] == pytest.approx(gap**2 / variance, rel=1e-9, abs=1e-12)


def late_spells(seed, n=80, hazard=(0.5, -0.4)):
    "Whole days, many ties, late entries; z1 is a number, z2 true or false."
    rng = np.random.default_rng(seed)
    z = np.column_stack([rng.normal(size=n * 3), rng.random(n * 3) < 0.4])
    days = np.floor(rng.exponential(12 / np.exp(z @ hazard)))
    entry, until = rng.integers(0, 8, n * 3) * (rng.random(n * 3) < 0.5), rng.integers(5, 40, n * 3)
    keep = np.flatnonzero((days >= entry) & (until >= entry))[:n]
    return pd.DataFrame({"days": np.minimum(days, until), "ended": days <= until, "entry_days": entry, "z1": z[:, 0], "z2": z[:, 1]}).iloc[keep]


def efron(beta, spells):
    "Partial log-likelihood with Efron's ties, by its definition."
    z, total = spells[["z1", "z2"]].to_numpy(), 0.0
    days, ended, entry = (spells[c].to_numpy() for c in ("days", "ended", "entry_days"))
    weight = np.exp(z @ beta)
    for day in np.unique(days[ended]):
        risk, gone = weight[(entry <= day) & (days >= day)].sum(), ended & (days == day)
        total += (z[gone] @ beta).sum() - sum(np.log(risk - j / gone.sum() * weight[gone].sum()) for j in range(gone.sum()))
    return total


@pytest.mark.parametrize("seed", range(3))
def test_hazard_ratios_by_definition(seed):
    spells = late_spells(seed)
    found = cox_model(spells, {"z1": None, "z2": None})
    best = minimize(lambda b: -efron(b, spells), [0, 0], method="BFGS", options={"gtol": 1e-8})
    np.testing.assert_allclose(found.table.coefficient, best.x, atol=1e-5)
    assert found.log_likelihood == pytest.approx(-best.fun, abs=1e-6)
    step, hessian = 1e-4, np.zeros((2, 2))
    for i in range(2):
        for j in range(2):
            e, f = np.eye(2)[i] * step, np.eye(2)[j] * step
            hessian[i, j] = -(efron(best.x + e + f, spells) - efron(best.x + e - f, spells) - efron(best.x - e + f, spells)
                              + efron(best.x - e - f, spells)) / (4 * step**2)
    np.testing.assert_allclose(found.covariance, np.linalg.inv(hessian), rtol=1e-3)


@pytest.mark.parametrize("seed", range(2))
def test_residuals_by_definition(seed):
    "Schoenfeld residuals sum to the slope of the partial likelihood, and each is who left less the weighted mean at risk."
    spells, beta = late_spells(seed), np.array([0.3, -0.2])
    columns = [spells[c].to_numpy("float64") for c in ("days", "ended", "entry_days")]
    when, residuals = retention._schoenfeld(*columns, spells[["z1", "z2"]].to_numpy("float64"), beta)
    slope = [(efron(beta + e, spells) - efron(beta - e, spells)) / 2e-5 for e in np.eye(2) * 1e-5]
    np.testing.assert_allclose(residuals.sum(axis=0), slope, atol=1e-4)
    assert (np.diff(when) >= 0).all() and len(when) == spells.ended.sum()


# --- planted

def planted(seed, n=200, rate=1 / 200, ratio=2.0, back=600, followed=400):
    "Members who joined over `back` days before the log began and 200 after; who left before it is not there."
    rng = np.random.default_rng(seed)
    joined, vip = rng.integers(-back, 200, n * 6), rng.random(n * 6) < 0.5
    days = np.floor(rng.exponential(1 / (rate * np.where(vip, 1 / ratio, 1))))
    seen = np.flatnonzero(joined + days >= 0)[:n]
    last = followed - joined
    return pd.DataFrame({"days": np.minimum(days, last), "ended": days <= last, "entry_days": np.maximum(-joined, 0), "vip": vip}).iloc[seen]


def test_planted_hazards_and_survival_are_in_their_intervals():
    "Exact binomial bounds. Without the entry the curve is off."
    truth, on, seeds, hits = -np.log(2.0), 150, 40, np.zeros(3)
    for seed in range(seeds):
        spells = planted(seed)
        row = cox_model(spells, {"vip": False}).table.loc["vip=True"]
        hits[0] += abs(row.coefficient - truth) <= 1.959964 * row.se
        for i, rows in enumerate((spells, spells.assign(entry_days=0))):
            curve = kaplan_meier(rows[~rows.vip])
            at = curve[curve.days <= on].iloc[-1]
            hits[i + 1] += at.ci_lower <= np.exp(-(on + 1) / 200) <= at.ci_upper
    assert as_often(hits[0], seeds, 0.95, 1e-4) and as_often(hits[1], seeds, 0.95, 1e-4), hits
    assert hits[2] < 0.2 * seeds, hits       # who is followed from the middle of her spell cannot have left in its first half


def test_proportional_hazards_are_told_from_others():
    "Under the assumption about 5 % of checks fall below .05; a ratio that turns round is found."
    false = sum(cox_model(planted(s, n=150, back=1), ["vip"]).checks.p_value["global"] < 0.05 for s in range(60))
    assert as_often(false, 60, 0.05, 1e-4), false
    rng = np.random.default_rng(1)
    vip = rng.random(600) < 0.5
    days = np.where(vip, rng.weibull(3, 600) * 100, rng.exponential(100, 600)).round()
    found = cox_model(pd.DataFrame({"days": days, "ended": days < 250, "vip": vip}), {"vip": False})
    assert found.checks.p_value["global"] < 1e-6 and "Hazards are not proportional" in found.text[-1] and "rises with time" in found.text[-1]


def test_projections_come_true_as_often_as_they_say():
    seeds, hits = 60, 0
    for seed in range(seeds):
        row = sbg_projection(contracts(1500, seed, periods=10), holdout_periods=4).table.loc[10]
        hits += row.projected_low <= row.share <= row.projected_high
    assert as_often(hits, seeds, 0.95, 1e-4), hits


# --- spells

def naive_spells(rows, start, end, as_of, log_start):
    "member → days, ended, entry_days, in plain Python."
    found = {}
    for row in rows:
        begun, over = row[start], row[end]
        if begun is None or begun >= as_of: continue
        over = None if over is None or over >= as_of else over
        if log_start and over is not None and over < log_start: continue
        last = over or as_of - timedelta(1)
        found[row["member_id"]] = ((last - begun).days, over is not None, max((log_start - begun).days, 0) if log_start else 0)
    return found


@pytest.mark.parametrize("log_start", [None, date(2023, 6, 1)])
def test_membership_spells_by_hand(log_start):
    members = [row | ({"closed_date": row["local_date"] + timedelta(9 * i % 400)} if row["local_date"] and i % 4 == 0 else {})
               for i, row in enumerate(world.tables()["members"].to_pylist())]
    got = to_frame(membership_spells(pd.DataFrame(members), world.AS_OF, log_start=log_start)).set_index("member_id")
    want = naive_spells(members, "local_date", "closed_date", world.AS_OF, log_start)
    assert {m: (r.days, r.ended, r.entry_days) for m, r in got.iterrows()} == want and got.ended.sum() > 5
    assert (got.entry_days > 0).any() == (log_start is not None)


def naive_stays(rows, as_of):
    "(member, tier, start) → days, ended: rows of one tier that touch are one stay."
    found, mine = {}, {}
    for row in sorted(rows, key=lambda r: (r["member_id"], r["valid_from"])):
        if row["valid_from"] < as_of: mine.setdefault(row["member_id"], []).append(row)
    for member, held in mine.items():
        ends = [min((d for d in (r["valid_to"] if r["valid_to"] and r["valid_to"] < as_of else None, nxt) if d), default=None)
                for r, nxt in zip(held, [r["valid_from"] for r in held[1:]] + [None], strict=True)]
        i = 0
        while i < len(held):
            j = i
            while j + 1 < len(held) and held[j + 1]["tier"] == held[i]["tier"] and ends[j] == held[j + 1]["valid_from"]: j += 1
            start, over = held[i]["valid_from"], ends[j]
            found[member, held[i]["tier"], start] = (((over or as_of - timedelta(1)) - start).days, over is not None)
            i = j + 1
    return found


def holes(history):
    "Tier rows split in two (a renewal), some of them apart, some without their end."
    rows = []
    for i, row in enumerate(history.to_pylist()):
        until, middle = row["valid_to"] or date(2024, 7, 1), row["valid_from"] + timedelta(20)
        if i % 3 or middle >= until: rows.append(row | ({"valid_to": None} if i % 5 == 0 else {}))
        else: rows += [row | {"valid_to": None if i % 9 == 3 else middle}, row | {"valid_from": middle + timedelta(4 * (i % 4 == 0))}]
    return pd.DataFrame(rows)


def test_tier_spells_by_hand():
    history = holes(world.tables()["tier_history"])
    got = to_frame(tier_spells(history, world.AS_OF))
    want = naive_stays(history.astype(object).where(history.notna(), None).to_dict("records"), world.AS_OF)
    assert {(r.member_id, r.tier, r.start.date()): (r.days, r.ended) for r in got.itertuples()} == want
    assert 0.1 < got.ended.mean() < 0.95 and got.next_tier.notna().sum() > 20 and (got.next_tier != got.tier).sum() > 20
    assert len(to_frame(tier_spells(history, world.AS_OF, "gold"))) == (got.tier == "gold").sum() > 3


def both(tables, as_of=None, **options):
    as_of = as_of or world.AS_OF
    spells = {"members": membership_spells(tables["members"], as_of, log_start=date(2023, 3, 1), keep=["join_channel"], **options),
              "tiers": tier_spells(tables["tier_history"], as_of)}
    return {name: to_frame(t).sort_values(["member_id", "start"], ignore_index=True) for name, t in spells.items()}


@pytest.mark.parametrize("change", [world.cut, world.poison])
def test_what_lies_after_the_date_changes_nothing(change):
    whole, changed = both(world.in_engine(world.tables())), both(world.in_engine(change(world.tables(), world.AS_OF)))
    for name in whole: pd.testing.assert_frame_equal(whole[name], changed[name])


@pytest.mark.parametrize("blind", ["rows", "ends"])
def test_cut_and_poison_would_notice(monkeypatch, blind):
    rows_only = lambda t, as_of, ends=None: t.filter(t.local_date < as_of)
    monkeypatch.setattr(retention, "known", (lambda t, as_of, ends=None: t) if blind == "rows" else rows_only)
    whole, changed = (both(world.in_engine(f)) for f in (world.tables(), world.poison(world.tables(), world.AS_OF)))
    for name in whole:
        with pytest.raises(AssertionError): pd.testing.assert_frame_equal(whole[name], changed[name])


def test_spark_gives_the_same_spells(spark):
    tables = {n: t for n, t in world.tables().items() if n in ("members", "tier_history", "order_lines")}
    here, there = both(world.in_engine(tables)), both(world.in_engine(tables, spark))
    for name in here: pd.testing.assert_frame_equal(here[name], there[name], check_dtype=False)
    spells = membership_spells(as_table(tables["members"].to_pandas(), spark), world.AS_OF, keep=["join_channel"])
    for by in ("join_channel", "quarter"):
        pd.testing.assert_frame_equal(kaplan_meier(spells, by), kaplan_meier(to_frame(spells), by), check_dtype=False)


def test_cohorts_of_the_first_day():
    spells = pd.DataFrame({"start": pd.to_datetime(["2022-12-31", "2023-01-01", "2023-03-31", "2023-04-01"]), "days": 5, "ended": True})
    names = {unit: kaplan_meier(spells, unit).by.unique().tolist() for unit in ("month", "quarter", "year")}
    assert names == {"month": ["2022-12", "2023-01", "2023-03", "2023-04"], "quarter": ["2022Q4", "2023Q1", "2023Q2"], "year": ["2022", "2023"]}
    town = kaplan_meier(spells.assign(town=["x", None, "x", "y"]), "town")
    assert set(town.by) == {"x", "y", "unknown"}


def test_contracts_of_leap_years_end_with_their_year():
    starts = [date(2018, 3, 1) + timedelta(n) for n in range(100)]
    years = lambda day, n: day.replace(year=day.year + n)
    ends = {n: [years(s, n) for s in starts] for n in (1, 2, 3, 4)}
    rows = [(f"{s}{n}{k}", s, ends[n][i] if n < 4 else None) for i, s in enumerate(starts) for n, many in ((1, 5), (2, 2), (3, 1), (4, 3)) for k in range(many)]
    table = pd.DataFrame(rows, columns=["member_id", "local_date", "closed_date"])
    spells = membership_spells(table, "2022-12-01")
    assert sbg_projection(spells, 365, periods=4).table.survivors.tolist() == [1100, 600, 400, 300, 300]
    assert sbg_projection(spells, 365, periods=4, grace_days=0).table.survivors[2] > 400        # years of 366 days end a year later


def test_a_cohort_leaves_out_who_cannot_be_followed():
    rng = np.random.default_rng(2)
    joined = rng.integers(0, 400, 2000)
    lost = 30 * rng.geometric(rng.beta(0.7, 2.0, 2000))
    running = joined + lost > 700
    spells = pd.DataFrame({"start": pd.Timestamp("2021-01-01") + pd.to_timedelta(joined, unit="D"), "days": np.where(running, 700 - joined, lost),
                           "ended": ~running, "entry_days": 0})
    made = sbg_projection(spells, 30, 3, periods=12)
    young = joined > 700 - 12 * 30 - 3
    assert made.table.survivors[0] == (~young).sum() and f"{young.sum():,} of 2,000 spells began too late" in made.notes[0]
    assert made.table.survivors[12] == ((lost > 360) & ~young).sum() and made.table.holdout.sum() == 3
    late = sbg_projection(spells.assign(entry_days=[5] * 10 + [0] * 1990), 30, 3, periods=12)
    assert "10 of 2,000 spells began before the log" in late.notes[0]


# --- invariances, errors, pictures

def test_what_must_not_matter():
    spells = late_spells(5)
    one = cox_model(spells, {"z1": None, "z2": None})
    for same in (spells.sample(frac=1, random_state=1), spells.assign(z1=spells.z1 * 1000 + 5e5), spells.assign(days=spells.days * 2, entry_days=spells.entry_days * 2)):
        again = cox_model(same, {"z1": None, "z2": None})
        scale = same.z1.std() / spells.z1.std()
        np.testing.assert_allclose(again.table.coefficient * [scale, 1], one.table.coefficient, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(again.checks.chi2, one.checks.chi2, rtol=1e-4)
    flipped = cox_model(spells.assign(z2=~spells.z2.astype(bool)), {"z1": None, "z2": None}).table.coefficient
    assert flipped.iloc[1] == pytest.approx(-one.table.coefficient.iloc[1], abs=1e-6) or flipped.index[1] != one.table.index[1]
    before = WEEKS.copy()
    kaplan_meier(WEEKS, "group"), cox_model(WEEKS, "group"), compare_survival(WEEKS, "group")
    pd.testing.assert_frame_equal(before, WEEKS)


def test_running_spells_alone():
    curve = kaplan_meier(WEEKS.assign(ended=False))
    assert (curve.survival == 1).all() and (curve.ci_lower == 1).all() and np.isnan(median_days(curve).days["all"])
    assert kaplan_meier(pd.DataFrame({"days": [0, 0], "ended": [True, True]})).survival.tolist() == [0]


MISTAKES = {
    "no spells": (lambda: kaplan_meier(WEEKS.head(0)), NotComputable, "there are no spells"),
    "negative": (lambda: kaplan_meier(WEEKS.assign(days=-1)), ParameterError, "42 of 42 spells break it"),
    "not ended": (lambda: kaplan_meier(WEEKS.assign(ended=2)), ParameterError, "ended must be true or false"),
    "missing": (lambda: kaplan_meier(WEEKS.assign(days=[None] * 2 + [3.0] * 40)), ParameterError, "must not be missing: 2 of 42"),
    "late": (lambda: kaplan_meier(WEEKS.assign(entry_days=99)), ParameterError, "entry_days must not be larger than days"),
    "column": (lambda: kaplan_meier(WEEKS, "grup"), ParameterError, "Did you mean 'group'"),
    "level": (lambda: kaplan_meier(WEEKS, level=95), ParameterError, "level must be a share"),
    "cohort without start": (lambda: kaplan_meier(WEEKS, "month"), ParameterError, "spells lacks start"),
    "nobody left": (lambda: compare_survival(WEEKS.assign(ended=False), "group"), NotComputable, "none of 42 spells has ended"),
    "reference": (lambda: cox_model(WEEKS, {"group": "7-MP"}), ParameterError, "group has no level '7-MP'; it has 6-MP, placebo"),
    "nothing": (lambda: cox_model(WEEKS, []), ParameterError, "at least one"),
    "constant": (lambda: cox_model(WEEKS.assign(age=3), ["age"]), ParameterError, "age has one value only"),
    "gaps": (lambda: cox_model(WEEKS.assign(age=[np.nan] * 7 + [1, 2] * 17 + [3]), ["age", "group"]), ParameterError, "age in 7 of 42"),
    "separated": (lambda: cox_model(WEEKS.assign(vip=WEEKS.days > 23), ["vip"]), ConvergenceError, "none of 5 members with vip=True has left"),
    "only these": (lambda: cox_model(WEEKS.assign(b=(WEEKS.ended & (WEEKS.days < 50)).astype(float)), ["b"]), ConvergenceError, "none of 12 members without b"),
    "in order": (lambda: cox_model(WEEKS.assign(b=WEEKS.days * 1.0), ["b"]), ConvergenceError, "b runs away"),
    "copies": (lambda: cox_model(WEEKS.assign(b=(WEEKS.group == "placebo") * 2.0), ["group", "b"]), ParameterError, "b follows from"),
    "short": (lambda: sbg_projection([100, 50, 30], holdout_periods=1), NotComputable, "leave 1: sBG needs 2"),
    "rising": (lambda: sbg_projection([100, 50, 60, 30]), ParameterError, "must not rise"),
    "period": (lambda: sbg_projection(WEEKS, 0), ParameterError, "period_days must be a number of days above 0"),
    "grace": (lambda: sbg_projection(WEEKS, 7, grace_days=7), ParameterError, "grace_days must be from 0 on"),
    "too long": (lambda: sbg_projection(WEEKS.assign(start=pd.Timestamp("2020-01-01")), 365), NotComputable, "sBG needs 2 periods"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes(case):
    ask, error, said = MISTAKES[case]
    with pytest.raises(error, match=said): ask()


def test_frames_and_tables_are_one_question():
    spells = planted(3).assign(start=lambda d: pd.Timestamp("2021-01-01") + pd.to_timedelta(d.days, unit="D"), town=lambda d: np.where(d.days % 7, "x", None))
    for by in (None, "vip", "town", "quarter"):
        pd.testing.assert_frame_equal(kaplan_meier(spells, by), kaplan_meier(as_table(spells), by), check_dtype=False)
    assert compare_survival(spells, "vip")["chi2"] == pytest.approx(compare_survival(as_table(spells), "vip")["chi2"])


def test_hundreds_of_thousands_are_counted_in_the_engine(monkeypatch):
    rng = np.random.default_rng(3)
    spells = pd.DataFrame({"days": rng.integers(0, 900, 300_000), "ended": rng.random(300_000) < 0.4, "entry_days": 0})
    table = as_table(spells, connect())
    seen = []
    monkeypatch.setattr(retention, "to_frame", lambda t: seen.append(to_frame(t)) or seen[-1])
    whole = kaplan_meier(table)
    assert len(seen) == 1 and len(seen[0]) <= 1800 and seen[0].members.sum() == 300_000
    assert whole.at_risk[0] == 300_000


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_the_picture_says_who_is_still_followed(lang):
    pytest.importorskip("matplotlib").use("Agg")
    ax = plot_survival(kaplan_meier(WEEKS, "group"), lang)
    ax.figure.canvas.draw()
    texts = [t.get_text() for t in ax.texts]
    assert texts[:2] == ["placebo", "6-MP"] and texts.count("21") == 3 and len(ax.lines) == 2
    treated = kaplan_meier(WEEKS, "group")[lambda c: c.by == "6-MP"]
    followed = [retention._at_risk_on(treated, week) for week in (0, 10, 25, 30, 35, 36)]
    assert followed == [21, 15, 5, 4, 1, 0] and {"15", "5", "4", "1"} <= set(texts)
    box = ax.figure.bbox
    assert all(box.x0 - 1 <= e.x0 and e.x1 <= box.x1 + 1 and box.y0 - 1 <= e.y0 for e in (t.get_window_extent() for t in ax.texts))
    with pytest.raises(ParameterError, match="8 curves are more than the 7"):
        plot_survival(kaplan_meier(WEEKS.assign(g=WEEKS.index % 8), "g"), lang)


def test_statsmodels_is_imported_where_it_is_used():
    code = "import sys, memtag_research.models.retention; print('statsmodels' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"
