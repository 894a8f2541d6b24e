"Gamma-Gamma against mpmath, lifetimes, the published fit, finite differences, and a density that integrates to one."

import mpmath as mp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lifetime_worlds import cdnow_summary
from scipy.integrate import quad
from scipy.optimize import minimize

from memtag_research.core import NotComputable, ParameterError
from memtag_research.models import spend
from memtag_research.models.spend import (
    GAMMA_GAMMA_PARAMETERS,
    gamma_gamma,
    gamma_gamma_sums,
    gamma_quotient,
    prepare_gamma_gamma,
    start_gamma_gamma,
)

VALUE = dict(rtol=1e-10, atol=1e-13)
DIFFERENCE = dict(rtol=1e-6, atol=1e-6)     # of central differences with a step of 1e-5

many = settings(max_examples=100, deadline=None, derandomize=True)
logs_of_three = st.lists(st.floats(-8, 8), min_size=3, max_size=3)
members = st.lists(st.tuples(st.integers(1, 5000) | st.integers(1, 3), st.floats(1e-3, 1e6)), min_size=1, max_size=8)


def by_hand(logs, x, m):
    "Equation 1a of the note, to 60 digits."
    p, q, v = (mp.exp(log) for log in logs)
    m = mp.mpf(m)
    return (mp.loggamma(p * x + q) - mp.loggamma(p * x) - mp.loggamma(q) + q * mp.log(v) + (p * x - 1) * mp.log(m)
            + p * x * mp.log(x) - (p * x + q) * mp.log(x * m + v))


def derivatives_by_hand(logs, *row):
    "Gradient and Hessian by differences in 60 digits, whose own error is 1e-30."
    step, unit = mp.mpf(10)**-15, np.eye(3, dtype=int)
    at = lambda *shifts: by_hand([mp.mpf(log) + step * int(s) for log, s in zip(logs, sum(shifts))], *row)
    first = [float((at(unit[i]) - at(-unit[i])) / (2 * step)) for i in range(3)]
    mixed = lambda a, b: float((at(a, b) - at(a, -b) - at(-a, b) + at(-a, -b)) / (4 * step**2))
    return np.array(first), np.array([[mixed(unit[i], unit[j]) for j in range(3)] for i in range(3)])


@pytest.fixture(autouse=True)
def sixty_digits():
    with mp.workdps(60): yield


ROWS = [(1, 1.), (1, 1e-3), (1, 1e6), (2, 35.5), (12, 20.), (400, 3.), (5000, 1e-3), (5000, 1e6), (100_000, 49.9)]
CORNERS = [[0.] * 3, [1.83, 1.32, 2.74], [8] * 3, [-8] * 3, [8, -8, 0], [-8, 8, 0], [8, 8, -8], [-8, -8, 8], [8, -8, -8], [-8, 8, 8],
           [1, -8, 3], [-3, 8, 8]]  # fmt: skip


@pytest.mark.parametrize("logs", CORNERS, ids=str)
def test_the_published_formula(logs):
    found = gamma_gamma(logs, prepare_gamma_gamma(*zip(*ROWS)))
    np.testing.assert_allclose(found.value, [float(by_hand(logs, *row)) for row in ROWS], **VALUE)
    for i, row in enumerate(ROWS):
        gradient, hessian = derivatives_by_hand(logs, *row)
        np.testing.assert_allclose(found.gradient[:, i], gradient, rtol=1e-8, atol=1e-10, err_msg=str(row))
        np.testing.assert_allclose(found.hessian[..., i], hessian, rtol=1e-8, atol=1e-10 , err_msg=str(row))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(logs_of_three, members)
def test_the_published_formula_anywhere(logs, rows):
    found = gamma_gamma(logs, prepare_gamma_gamma(*zip(*rows)))
    np.testing.assert_allclose(found.value, [float(by_hand(logs, *row)) for row in rows], **VALUE)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.floats(-16, 22), st.floats(-8, 8))
def test_quotients_of_gamma_functions(log_a, log_b):
    a, b = float(np.exp(log_a)), float(np.exp(log_b))
    value, first, second = gamma_quotient(a, b)
    assert value == pytest.approx(float(mp.loggamma(mp.mpf(a) + b) - mp.loggamma(a)), rel=1e-11, abs=2e-14)
    assert first == pytest.approx(float(mp.digamma(mp.mpf(a) + b) - mp.digamma(a)), rel=1e-10, abs=0)
    assert second == pytest.approx(float(mp.polygamma(1, mp.mpf(a) + b) - mp.polygamma(1, a)), rel=1e-10, abs=0)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.floats(30, 1e9), st.floats(-8, 8))
def test_quotients_keep_twelve_digits_where_the_series_is_used(a, log_b):
    b = float(np.exp(log_b))
    functions = mp.loggamma, mp.digamma, lambda z: mp.polygamma(1, z)
    for found, f in zip(gamma_quotient(np.nextafter(a, np.inf), b), functions):
        a_ = mp.mpf(float(np.nextafter(a, np.inf)))
        assert found == pytest.approx(float(f(a_ + b) - f(a_)), rel=2e-12, abs=0)


@many
@given(logs_of_three, members)
def test_finite_and_symmetric(logs, rows):
    terms = gamma_gamma(logs, prepare_gamma_gamma(*zip(*rows)))
    assert all(np.isfinite(part).all() for part in terms)
    assert (terms.hessian == terms.hessian.swapaxes(0, 1)).all()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.floats(-3, 3), min_size=3, max_size=3), st.lists(st.tuples(st.integers(1, 40), st.floats(.1, 500)), min_size=1, max_size=8))
def test_derivatives_by_differences(logs, rows):
    data, logs, step = prepare_gamma_gamma(*zip(*rows)), np.array(logs), 1e-5
    terms = gamma_gamma(logs, data)
    for i in range(3):
        up, down = (gamma_gamma(logs + s * step * np.eye(3)[i], data) for s in (1, -1))
        np.testing.assert_allclose(terms.gradient[i], (up.value - down.value) / (2 * step), **DIFFERENCE)
        np.testing.assert_allclose(terms.hessian[i], (up.gradient - down.gradient) / (2 * step), **DIFFERENCE)


@pytest.mark.parametrize("logs", [[0., 0., 0.], [1.83, 1.32, 2.74], [-.5, 1, 3], [1, -.5, -2]], ids=str)
@pytest.mark.parametrize("x", [1, 4])
def test_the_density_of_the_mean_integrates_to_one(logs, x):
    density = lambda log_m: np.exp(gamma_gamma(logs, prepare_gamma_gamma([x], [np.exp(log_m)])).value[0] + log_m)
    assert quad(density, -60, 60, limit=500, points=[logs[2]])[0] == pytest.approx(1, abs=1e-7)


@many
@given(logs_of_three, members, st.data())
def test_sums_are_the_rows_added_up(logs, rows, data):
    prepared = prepare_gamma_gamma(*zip(*rows))
    weights = np.array(data.draw(st.lists(st.integers(0, 1000), min_size=len(rows), max_size=len(rows))), float)
    terms = gamma_gamma(logs, prepared)
    for found, each in zip(gamma_gamma_sums(logs, prepared, weights), terms):
        np.testing.assert_allclose(found, each @ weights, rtol=1e-11, atol=1e-11 * np.abs(each @ np.diag(weights)).sum())


def simulated(rng, size, p, q, v):
    "Repeat purchases and their mean, money drawn purchase by purchase."
    x, rate = rng.geometric(.3, size), rng.gamma(q, 1 / v, size)
    member = np.repeat(np.arange(size), x)
    return x, np.bincount(member, rng.gamma(p, 1 / rate[member])) / x


def test_sums_over_several_pieces_and_repeated_members():
    rng = np.random.default_rng(8)
    x, mean = simulated(rng, 20_000, 6.25, 3.744, 15.447)
    weights = rng.integers(0, 3, x.size)
    data, logs = prepare_gamma_gamma(x, mean), [1.5, 1., 3.]
    repeated = prepare_gamma_gamma(np.repeat(x, weights), np.repeat(mean, weights))
    assert x.size > 2 * spend._PIECE
    terms = gamma_gamma(logs, repeated)
    for grouped, single, by_row in zip(gamma_gamma_sums(logs, data, weights), gamma_gamma_sums(logs, repeated, np.ones(weights.sum())), terms):
        np.testing.assert_allclose(grouped, single, rtol=1e-11)
        np.testing.assert_allclose(grouped, by_row.sum(axis=-1), rtol=1e-11)
    np.testing.assert_allclose(start_gamma_gamma(data, weights), start_gamma_gamma(repeated, np.ones(weights.sum())), rtol=1e-12)


def test_parameters_by_row():
    rng = np.random.default_rng(1)
    data = prepare_gamma_gamma(*simulated(rng, 30, 2., 3., 10.))
    logs = rng.normal(size=(3, 30))
    by_row = gamma_gamma(logs, data)
    for i in range(30):
        for alone, together in zip(gamma_gamma(logs[:, i], data), by_row):
            np.testing.assert_allclose(alone[..., i], together[..., i], rtol=1e-11, atol=1e-12)
    for which in range(3):
        mixed = [np.full(30, log) if i == which else log for i, log in enumerate(logs[:, 0])]
        for alone, together in zip(gamma_gamma(logs[:, 0], data), gamma_gamma(mixed, data)):
            np.testing.assert_allclose(alone, together, rtol=1e-12, atol=1e-13)


def test_the_likelihood_of_lifetimes():
    fitter = pytest.importorskip("lifetimes", reason="lifetimes is not installed: pip install -e '.[models]'").GammaGammaFitter
    rng = np.random.default_rng(6)
    x, mean = simulated(rng, 500, 2., 3., 10.)
    weights = rng.integers(1, 5, 500)
    for logs in ([0., 0., 0.], [1.83, 1.32, 2.74], [3, 2, -1]):
        theirs = -fitter._negative_log_likelihood(np.array(logs, float), x, mean, weights, 0) * weights.sum()
        assert gamma_gamma_sums(logs, prepare_gamma_gamma(x, mean), weights)[0] == pytest.approx(theirs, rel=1e-12)


def maximum(data, weights):
    "Parameters at the maximum, from the module's own start, and their standard errors in logs."
    negative = lambda logs: tuple(-part / weights.sum() for part in gamma_gamma_sums(logs, data, weights)[:2])
    found = minimize(negative, start_gamma_gamma(data, weights), jac=True, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-9})
    assert np.abs(found.jac).max() < 1e-6, found.message
    return np.exp(found.x), np.sqrt(np.diag(np.linalg.inv(-gamma_gamma_sums(found.x, data, weights)[2])))


def test_published_fit_of_cdnow():
    "Fader and Hardie (2013): 946 customers of the CDNOW sample with repeat purchases and spend."
    pytest.importorskip("lifetimes", reason="lifetimes is not installed: pip install -e '.[models]'")
    repeats = cdnow_summary().query("repeat_mean_cents > 0")
    assert len(repeats) == 946
    estimates, _ = maximum(prepare_gamma_gamma(repeats.x, repeats.repeat_mean_cents / 100), np.ones(946))
    np.testing.assert_allclose(estimates, [6.25, 3.744, 15.447], rtol=5e-4)


@pytest.mark.parametrize("planted", [(6.25, 3.744, 15.447), (.8, 2., 300.), (30., 8., 5e4), (1.5, 1.1, .01)], ids=str)
def test_the_start_leads_to_the_planted_parameters(planted):
    data = prepare_gamma_gamma(*simulated(np.random.default_rng(12), 40_000, *planted))
    estimates, errors = maximum(data, np.ones(40_000))
    assert np.all(np.abs(np.log(estimates) - np.log(planted)) < 4 * errors), (estimates, errors)


@pytest.mark.parametrize("unit", [1e-3, .01, 100., 1e6])
def test_the_unit_of_money_moves_v_only(unit):
    rng = np.random.default_rng(3)
    x, mean = simulated(rng, 300, 2., 3., 10.)
    logs, scaled = np.array([.7, 1.1, 2.3]), np.array([.7, 1.1, 2.3 + np.log(unit)])
    there = gamma_gamma_sums(logs, prepare_gamma_gamma(x, mean), np.ones(300))
    here = gamma_gamma_sums(scaled, prepare_gamma_gamma(x, mean * unit), np.ones(300))
    assert here[0] + 300 * np.log(unit) == pytest.approx(there[0], rel=1e-11)
    for a, b in zip(here[1:], there[1:]): np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10)
    start = [start_gamma_gamma(prepare_gamma_gamma(x, mean * u), np.ones(300)) for u in (1, unit)]
    np.testing.assert_allclose(start[1] - start[0], [0, 0, np.log(unit)], atol=1e-12)


def test_nothing_given_is_changed():
    x, mean, weights = np.array([1., 3.]), np.array([2.5, 4.]), np.array([1., 2.])
    data, logs = prepare_gamma_gamma(x, mean), np.zeros(3)
    kept = [np.copy(column) for column in data]
    gamma_gamma(logs, data), gamma_gamma_sums(logs, data, weights)
    for before, after in zip(kept, data): np.testing.assert_array_equal(before, after)
    assert (x.tolist(), mean.tolist(), weights.tolist(), logs.tolist()) == ([1, 3], [2.5, 4], [1, 2], [0, 0, 0])


@pytest.mark.parametrize(("rows", "message"), [
    (([0, 2, 0], [1., 1., 1.]), "x must be 1 or more: 2 of 3 rows break this; first values: 0, 0. Leave out members without a repeat"),
    (([np.nan], [1.]), "x must be 1 or more"),
    (([1.5], [1.]), "x must be a whole number from 1 on"),
    (([1, 1], [-3.25, 0]), "mean_spend must be more than 0: 2 of 2 rows break this; first values: -3.25, 0. .* currency units"),
    (([1], [np.nan]), "mean_spend must be more than 0"),
    (([1], [np.inf]), "mean_spend must be more than 0"),
    (([1, 2], [1.]), "x has 2 rows and mean_spend 1"),
])  # fmt: skip
def test_rows_that_are_refused(rows, message):
    with pytest.raises(ParameterError, match=message): prepare_gamma_gamma(*rows)


def test_no_rows():
    with pytest.raises(NotComputable, match="no rows"): prepare_gamma_gamma([], [])


def test_names_are_those_of_the_note():
    assert GAMMA_GAMMA_PARAMETERS == ("p", "q", "v")
