"BG/BB and sBG against mpmath, lifetimes, published fits, finite differences, and the sum of all that can happen."
from importlib.resources import files
from math import comb

import mpmath as mp
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from memtag_research.core import NotComputable, ParameterError
from memtag_research.models import discrete
from memtag_research.models.discrete import (
    BGBB_PARAMETERS,
    SBG_PARAMETERS,
    bgbb,
    prepare_bgbb,
    prepare_sbg,
    sbg,
    sbg_retention,
    sbg_rows,
    sbg_survival,
    start_bgbb,
    start_sbg,
)

VALUE = dict(rtol=1e-10, atol=1e-14)        # of a log-likelihood; a probability within 1e-14 of 1 has no more digits
DERIVATIVE = dict(rtol=1e-8, atol=1e-11)    # of its derivatives; sums of terms of size 1 to 1000, which may cancel
DIFFERENCE = dict(rtol=1e-6, atol=1e-6)     # of central differences with a step of 1e-5

many = settings(max_examples=50, deadline=None, derandomize=True)
logs_of = lambda k: st.lists(st.floats(-8, 8), min_size=k, max_size=k)


@st.composite
def histories(draw, longest=400):
    n = draw(st.integers(0, longest))
    t_x = draw(st.integers(0, n))
    return (draw(st.integers(1, t_x)) if t_x else 0, t_x, n)


def bgbb_by_hand(logs, x, t_x, n):
    "Equation 5 of Fader, Hardie and Shang (2010), to 60 digits."
    a, b, c, d = (mp.exp(log) for log in logs)
    alive = mp.beta(a + x, b + n - x) * mp.beta(c, d + n)
    left = mp.fsum(mp.beta(a + x, b + t_x - x + i) * mp.beta(c + 1, d + t_x + i) for i in range(n - t_x))
    return mp.log((alive + left) / mp.beta(a, b) / mp.beta(c, d))


def sbg_by_hand(logs, period, lost):
    a, b = (mp.exp(log) for log in logs)
    return mp.log((mp.beta(a + 1, b + period - 1) if lost else mp.beta(a, b + period)) / mp.beta(a, b))


def derivatives_by_hand(likelihood, logs, *row):
    "Gradient and Hessian by differences in 60 digits, whose own error is 1e-30."
    k, step, unit = len(logs), mp.mpf(10)**-15, np.eye(len(logs), dtype=int)
    at = lambda *shifts: likelihood([mp.mpf(log) + step * int(s) for log, s in zip(logs, sum(shifts))], *row)
    first = [float((at(unit[i]) - at(-unit[i])) / (2 * step)) for i in range(k)]
    mixed = lambda a, b: float((at(a, b) - at(a, -b) - at(-a, b) + at(-a, -b)) / (4 * step**2))
    return np.array(first), np.array([[mixed(unit[i], unit[j]) for j in range(k)] for i in range(k)])


def assert_terms_agree(found, expected, where=""):
    for name, a, b in zip(found._fields, found, expected):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12, err_msg=f"{name} {where}")


def assert_differences_agree(likelihood, logs, data):
    "Gradient and Hessian against differences of value and gradient."
    terms, step = likelihood(logs, data), 1e-5
    for i in range(len(logs)):
        shift = step * np.eye(len(logs))[i]
        up, down = likelihood(logs + shift, data), likelihood(logs - shift, data)
        np.testing.assert_allclose(terms.gradient[i], (up.value - down.value) / (2 * step), **DIFFERENCE)
        np.testing.assert_allclose(terms.hessian[i], (up.gradient - down.gradient) / (2 * step), **DIFFERENCE)


def maximum(likelihood, start, data, weights):
    "Parameters and log-likelihood at the maximum, from the module's own start."
    def negative(logs):
        terms = likelihood(logs, data)
        return -terms.value @ weights, -terms.gradient @ weights
    found = minimize(negative, start(data, weights), jac=True, method="L-BFGS-B", options={"maxiter": 500, "ftol": 1e-14, "gtol": 1e-6})
    assert np.abs(found.jac).max() < 1e-4 * max(1, weights.sum()), found.message
    return np.exp(found.x), -found.fun


@pytest.fixture(autouse=True)
def sixty_digits():
    with mp.workdps(60): yield


# --- BG/BB

ROWS = [(0, 0, 0), (0, 0, 1), (1, 1, 1), (0, 0, 6), (1, 6, 6), (6, 6, 6), (1, 1, 6), (3, 5, 8), (1, 1, 60), (60, 60, 60), (30, 45, 60),
        (0, 0, 400), (400, 400, 400), (1, 1, 400), (1, 400, 400), (200, 200, 400), (7, 390, 400)]  # fmt: skip
CORNERS = [[0.] * 4, [.185, -.288, -.4206, 1.0237], [8.] * 4, [-8.] * 4, [-8, 8, -8, 8], [8, -8, 8, -8], [-8, 8, 8, -8], [8, -8, -8, 8],
           [-8, -8, 8, 8], [8, 8, -8, -8], [3, 7, -2, 1]]  # fmt: skip


@pytest.mark.parametrize("logs", CORNERS, ids=str)
def test_bgbb_is_the_published_formula(logs):
    found = bgbb(logs, prepare_bgbb(*zip(*ROWS)))
    np.testing.assert_allclose(found.value, [float(bgbb_by_hand(logs, *row)) for row in ROWS], **VALUE)


@pytest.mark.parametrize("logs", CORNERS, ids=str)
def test_bgbb_derivatives_are_those_of_the_formula(logs):
    rows = [(0, 0, 0), (0, 0, 6), (6, 6, 6), (3, 5, 8), (2, 3, 9)]
    found = bgbb(logs, prepare_bgbb(*zip(*rows)))
    for i, row in enumerate(rows):
        gradient, hessian = derivatives_by_hand(bgbb_by_hand, logs, *row)
        np.testing.assert_allclose(found.gradient[:, i], gradient, **DERIVATIVE, err_msg=str(row))
        np.testing.assert_allclose(found.hessian[..., i], hessian, **DERIVATIVE, err_msg=str(row))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(logs_of(4), histories())
def test_bgbb_is_the_published_formula_anywhere(logs, row):
    np.testing.assert_allclose(bgbb(logs, prepare_bgbb(*([v] for v in row))).value[0], float(bgbb_by_hand(logs, *row)), **VALUE)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.floats(-3, 3), min_size=4, max_size=4), st.lists(histories(60), min_size=1, max_size=8))
def test_bgbb_derivatives_by_differences(logs, rows):
    assert_differences_agree(bgbb, np.array(logs), prepare_bgbb(*zip(*rows)))


@many
@given(logs_of(4), st.lists(histories(500), min_size=1, max_size=6))
def test_bgbb_is_finite_and_a_probability(logs, rows):
    terms = bgbb(logs, prepare_bgbb(*zip(*rows)))
    assert all(np.isfinite(part).all() for part in terms)
    assert (terms.value <= 1e-12).all()
    assert (terms.hessian == terms.hessian.swapaxes(0, 1)).all()


@pytest.mark.parametrize("logs", CORNERS, ids=str)
@pytest.mark.parametrize("n", [1, 2, 5, 40])
def test_all_histories_of_bgbb_sum_to_one(logs, n):
    "The last of x purchases at t_x leaves C(t_x - 1, x - 1) ways for the others. Derivatives of one are nothing."
    rows = [(0, 0, n), *((x, t, n) for t in range(1, n + 1) for x in range(1, t + 1))]
    ways = np.array([1., *(float(comb(t - 1, x - 1)) for x, t, _ in rows[1:])])
    terms = bgbb(logs, prepare_bgbb(*zip(*rows)))
    chance = ways * np.exp(terms.value)
    assert chance.sum() == pytest.approx(1, abs=1e-11)
    np.testing.assert_allclose(terms.gradient @ chance, 0, atol=1e-9)
    outer = terms.gradient[:, None] * terms.gradient
    np.testing.assert_allclose((terms.hessian + outer) @ chance, 0, atol=1e-7)     # the information equality


def test_bgbb_of_lifetimes():
    beta_binomial = pytest.importorskip("lifetimes", reason="lifetimes is not installed: pip install -e '.[models]'").BetaGeoBetaBinomFitter
    rows = np.array([(x, t, n) for n in (1, 6, 9) for t in range(n + 1) for x in (range(1, t + 1) if t else [0])])
    for logs in ([0.] * 4, [.185, -.288, -.4206, 1.0237], [2, -1, -2, 3]):
        theirs = beta_binomial._loglikelihood(np.exp(logs), *rows.T)
        np.testing.assert_allclose(bgbb(logs, prepare_bgbb(*rows.T)).value, theirs, rtol=1e-9)   # they add 1e-15 to the sum


def donations():
    pytest.importorskip("lifetimes", reason="lifetimes is not installed: pip install -e '.[models]'")
    return pd.read_csv(files("lifetimes") / "datasets" / "donations.csv")


def test_published_fit_of_donations():
    "Fader, Hardie and Shang (2010), table 3: 11,104 people, six years."
    table = donations()
    assert table.weights.sum() == 11_104
    data = prepare_bgbb(table.frequency, table.recency, table.periods)
    estimates, log_likelihood = maximum(bgbb, start_bgbb, data, table.weights.to_numpy(float))
    np.testing.assert_allclose(estimates, [1.2035, .7497, .6567, 2.7835], atol=6e-5)
    assert log_likelihood == pytest.approx(-33_225.58, abs=.006)


def test_counts_are_repeated_members():
    table = donations()
    members = table.loc[table.index.repeat(table.weights)].sample(frac=1, random_state=3)
    grouped = prepare_bgbb(table.frequency, table.recency, table.periods)
    single = prepare_bgbb(members.frequency, members.recency, members.periods)
    for by_group, by_member in zip(bgbb([.2, -.3, -.4, 1], grouped), bgbb([.2, -.3, -.4, 1], single)):
        np.testing.assert_allclose(by_group @ table.weights.to_numpy(float), by_member.sum(axis=-1), rtol=1e-11)
    np.testing.assert_allclose(start_bgbb(grouped, table.weights), start_bgbb(single, np.ones(len(members))), rtol=1e-12)


def simulated_histories(rng, members, opportunities, alpha, beta, gamma, delta):
    "x, t_x, n of members who toss their coins one opportunity after the other."
    buying, leaving = rng.beta(alpha, beta, members), rng.beta(gamma, delta, members)
    n, there = rng.integers(1, opportunities + 1, members), np.ones(members, bool)
    x, t_x = np.zeros(members, int), np.zeros(members, int)
    for j in range(1, opportunities + 1):
        there &= rng.random(members) >= leaving
        bought = there & (rng.random(members) < buying) & (j <= n)
        x, t_x = x + bought, np.where(bought, j, t_x)
    return x, t_x, n


@pytest.mark.parametrize("planted", [(1.2, .75, .66, 2.8), (.3, 2., .5, 8.), (3., 3., 2., 10.), (.5, 10., .2, .5)], ids=str)
def test_the_start_leads_to_the_planted_parameters(planted):
    rows = pd.DataFrame(zip(*simulated_histories(np.random.default_rng(5), 60_000, 24, *planted))).value_counts()
    data, weights = prepare_bgbb(*zip(*rows.index)), rows.to_numpy(float)
    estimates, log_likelihood = maximum(bgbb, start_bgbb, data, weights)
    terms = bgbb(np.log(estimates), data)
    errors = np.sqrt(np.diag(np.linalg.inv(-terms.hessian @ weights)))
    assert np.all(np.abs(np.log(estimates) - np.log(planted)) < 4 * errors), (estimates, errors)
    assert log_likelihood >= bgbb(np.log(planted), data).value @ weights


@pytest.mark.parametrize("cells", [1, 40, 1000])
def test_blocks_and_parameters_by_row(monkeypatch, cells):
    "The table is cut into blocks, and a number is the same as an array that repeats it."
    rng = np.random.default_rng(2)
    n = rng.integers(0, 30, 16)
    t_x = (rng.random(16) * (n + 1)).astype(int)
    data = prepare_bgbb(np.minimum(t_x, 1 + (rng.random(16) * t_x).astype(int)), t_x, n)
    logs = rng.normal(size=(4, 16))
    whole = bgbb(logs[:, 0], data)
    monkeypatch.setattr(discrete, "_CELLS", cells)
    assert_terms_agree(bgbb(logs[:, 0], data), whole, "in blocks")
    assert_terms_agree(bgbb([logs[0, 0], np.full(16, logs[1, 0]), logs[2, 0], logs[3, 0]], data), whole, "with an array")
    by_row = bgbb(logs, data)
    for i in range(16):
        for alone, together in zip(bgbb(logs[:, i], data), by_row):
            np.testing.assert_allclose(alone[..., i], together[..., i], rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize(("rows", "message"), [
    (([3], [2], [4]), "x must not be larger than t_x: 1 of 1 rows break this; first values: 3"),
    (([1, 1], [3, 5], [2, 4]), "t_x must not be larger than n: 2 of 2 rows break this; first values: 3, 5"),
    (([0], [2], [4]), "t_x must be 0 where x is 0"),
    (([1.5], [2], [4]), "x must be a whole number from 0 on"),
    (([1], [np.nan], [4]), "t_x must be a whole number from 0 on"),
    (([1], [1], [-4]), "n must be a whole number from 0 on"),
    (([1, 2], [2], [4]), "columns of one length are needed, not of shapes x .2,., t_x .1,., n .1,."),
    (([[1]], [[2]], [[4]]), "columns of one length"),
])  # fmt: skip
def test_rows_that_bgbb_refuses(rows, message):
    with pytest.raises(ParameterError, match=message): prepare_bgbb(*rows)


def test_no_rows():
    for prepare in (lambda: prepare_bgbb([], [], []), lambda: prepare_sbg([], [])):
        with pytest.raises(NotComputable, match="no rows"): prepare()


# --- sBG

CONTRACTS = [(0, False), (1, True), (1, False), (2, True), (7, True), (7, False), (60, True), (2000, False), (5000, True)]
PAIRS = [[0., 0.], [-.351, .167], [-.403, 1.336], [8, 8], [-8, -8], [8, -8], [-8, 8]]
SEGMENTS = {"Regular": [1000, 631, 468, 382, 326, 289, 262, 241], "High End": [1000, 869, 743, 653, 593, 551, 517, 491]}


@pytest.mark.parametrize("logs", PAIRS, ids=str)
def test_sbg_is_the_published_formula(logs):
    found = sbg(logs, prepare_sbg(*zip(*CONTRACTS)))
    np.testing.assert_allclose(found.value, [float(sbg_by_hand(logs, *row)) for row in CONTRACTS], **VALUE)
    for i, row in enumerate(CONTRACTS):
        gradient, hessian = derivatives_by_hand(sbg_by_hand, logs, *row)
        np.testing.assert_allclose(found.gradient[:, i], gradient, **DERIVATIVE, err_msg=str(row))
        np.testing.assert_allclose(found.hessian[..., i], hessian, **DERIVATIVE, err_msg=str(row))


@many
@given(logs_of(2), st.lists(st.tuples(st.integers(0, 3000), st.booleans()), min_size=1, max_size=6))
def test_sbg_is_finite(logs, rows):
    terms = sbg(logs, prepare_sbg([t + lost for t, lost in rows], [lost for _, lost in rows]))
    assert all(np.isfinite(part).all() for part in terms)
    assert (terms.value <= 0).all()
    assert (terms.hessian == terms.hessian.swapaxes(0, 1)).all()


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.floats(-3, 3), min_size=2, max_size=2), st.lists(st.tuples(st.integers(1, 60), st.booleans()), min_size=1, max_size=6))
def test_sbg_derivatives_by_differences(logs, rows):
    assert_differences_agree(sbg, np.array(logs), prepare_sbg(*zip(*rows)))


@many
@given(logs_of(2), st.integers(1, 2000))
def test_whoever_is_not_lost_is_still_there(logs, periods):
    t = np.arange(1, periods + 1)
    lost, kept = np.exp(sbg(logs, prepare_sbg(t, t > 0)).value), sbg_survival(*np.exp(logs), t)
    np.testing.assert_allclose(np.cumsum(lost) + kept, 1, atol=1e-12)
    np.testing.assert_allclose(np.cumprod(sbg_retention(*np.exp(logs), t)), kept, rtol=1e-11, atol=1e-300)
    assert (np.diff(sbg_retention(*np.exp(logs), t)) >= 0).all()


@pytest.mark.parametrize(("name", "published", "log_likelihood"), [("Regular", (.704, 1.182), -1680.3), ("High End", (.668, 3.806), -1611.2)])
def test_published_fits_of_subscribers(name, published, log_likelihood):
    "Fader and Hardie (2007): seven years of two segments."
    period, lost, weights = sbg_rows(SEGMENTS[name])
    estimates, found = maximum(sbg, start_sbg, prepare_sbg(period, lost), weights)
    np.testing.assert_allclose(estimates, published, atol=5e-4)
    assert found == pytest.approx(log_likelihood, abs=.05)


def test_survivors_are_repeated_contracts():
    period, lost, weights = sbg_rows([10, 7, 7, 4, 4])
    assert (period.tolist(), lost.tolist(), weights.tolist()) == ([1, 3, 4], [True, True, False], [3, 3, 4])
    single = prepare_sbg(np.repeat(period, weights), np.repeat(lost, weights))
    grouped = prepare_sbg(period, lost)
    for by_group, by_member in zip(sbg([.1, .4], grouped), sbg([.1, .4], single)):
        np.testing.assert_allclose(by_group @ weights, by_member.sum(axis=-1), rtol=1e-12)
    np.testing.assert_allclose(start_sbg(grouped, weights), start_sbg(single, np.ones(10)), rtol=1e-12)


@pytest.mark.parametrize(("survivors", "there"), [([1000, 1000, 1000], 1), ([1000, 0], 0), ([5, 5, 4], .8)])
def test_the_start_is_finite_whoever_is_lost(survivors, there):
    period, lost, weights = sbg_rows(survivors)
    start = start_sbg(prepare_sbg(period, lost), weights)
    assert np.isfinite(start).all()
    assert sbg_survival(*np.exp(start), len(survivors) - 1) == pytest.approx(there, abs=.15)


def test_contracts_with_parameters_by_row(monkeypatch):
    rng = np.random.default_rng(4)
    data, logs = prepare_sbg(rng.integers(1, 40, 30), rng.random(30) < .5), rng.normal(size=(2, 30))
    whole, by_row = sbg(logs[:, 0], data), sbg(logs, data)
    monkeypatch.setattr(discrete, "_CELLS", 90)
    assert_terms_agree(sbg([np.full(30, logs[0, 0]), logs[1, 0]], data), whole)
    for i in range(30):
        for alone, together in zip(sbg(logs[:, i], data), by_row): np.testing.assert_allclose(alone[..., i], together[..., i], rtol=1e-11)


def test_survival_over_thousands_of_periods():
    for a, b in ((.668, 3.806), (1e-3, 2e3), (2e3, 1e-3)):
        exact = [float(mp.beta(a, b + t) / mp.beta(a, b)) for t in (0, 1, 12, 5000)]
        np.testing.assert_allclose(sbg_survival(a, b, [0, 1, 12, 5000]), exact, rtol=1e-11)
    assert sbg_survival(1, 1, 3) == pytest.approx(.25)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: prepare_sbg([0], [True]), "period of a lost contract must be 1 or more"),
    (lambda: prepare_sbg([1], [2]), "lost must be true or false"),
    (lambda: prepare_sbg([1.5], [True]), "period must be a whole number from 0 on: 1 of 1 rows break this; first values: 1.5"),
    (lambda: sbg_rows([10, 11]), "must not rise from one period to the next: 1 of 2 rows break this; first values: 11"),
    (lambda: sbg_rows([10]), "two numbers or more"),
    (lambda: sbg_survival(-1, 1, [1]), "alpha must be a positive number, not -1"),
    (lambda: sbg_survival(1, np.nan, [1]), "beta must be a positive number"),
    (lambda: sbg_survival(1, 1, [-1]), "periods must be a whole number from 0 on"),
    (lambda: sbg_retention(1, 1, [0]), "periods must be a whole number from 1 on"),
])  # fmt: skip
def test_contracts_that_are_refused(call, message):
    with pytest.raises(ParameterError, match=message): call()


def test_names_are_those_of_the_papers():
    assert (BGBB_PARAMETERS, SBG_PARAMETERS) == (("alpha", "beta", "gamma", "delta"), ("alpha", "beta"))
