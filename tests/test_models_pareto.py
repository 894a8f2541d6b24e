"Pareto/NBD against 2F1 in many digits, members one by one, finite differences, lifetimes, and the published fit."

import mpmath as mp
import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lifetime_worlds import cdnow_summary
from scipy.special import gammaln
from scipy.stats import gamma

from memtag_research.core import NotComputable, ParameterError
from memtag_research.models import pareto
from memtag_research.models.pareto import PARAMETERS, log_left_odds, pareto_nbd, prepare_pareto_nbd, start_pareto_nbd

VALUE = dict(rtol=1e-13, atol=3e-11)        # lnΓ of thousands has 5e-12 to lose, in double precision
DERIVATIVE = dict(rtol=1e-9, atol=1e-12)    # times the largest of a row, where its terms cancel
ROADS = dict(rtol=1e-9, atol=1e-9)          # between quadrature and days, whose covariances lose more
CDNOW = np.log([.5533, 10.578, .6062, 11.669])
many = settings(max_examples=200, deadline=None, derandomize=True)


# ---- the closed form, in 60 digits

def by_2f1(logs, x, t_x, T):
    "Equations 16 to 20 of Fader and Hardie's note, with 2F1."
    r, alpha, s, beta = (mp.exp(v) for v in logs)
    t_x, T, n = mp.mpf(t_x), mp.mpf(T), r + s + x
    high, low, second = (alpha, beta, s + 1) if alpha >= beta else (beta, alpha, r + x)
    part = lambda t: mp.hyp2f1(n, second, n + 1, (high - low) / (high + t)) / (high + t) ** n
    bracket = (alpha + T) ** -(r + x) * (beta + T) ** -s + s / n * (part(t_x) - part(T) if T > t_x else 0)
    return mp.loggamma(r + x) - mp.loggamma(r) + r * mp.log(alpha) + s * mp.log(beta) + mp.log(bracket)


def derivatives_by_2f1(logs, *row, step=mp.mpf(10) ** -13):
    "Gradient and Hessian by differences in 60 digits: good to 1e-26."
    unit, logs = np.eye(4, dtype=int), [mp.mpf(float(v)) for v in logs]
    f = lambda shift: by_2f1([v + step * int(d) for v, d in zip(logs, shift)], *row)
    gradient = [float((f(e) - f(-e)) / (2 * step)) for e in unit]
    second = lambda a, b: (f(a + b) - f(a - b) - f(b - a) + f(-a - b)) / (4 * step**2)
    return np.array(gradient), np.array([[float(second(a, b)) for a in unit] for b in unit])


def terms_of(logs, *row):
    "Terms of one row by quadrature."
    return pareto_nbd(logs, prepare_pareto_nbd(*([v] for v in row)))


EXTREME_ROWS = [(0, 0, 0), (0, 0, 1e-3), (0, 0, 38.86), (0, 0, 1e5), (1, .5, 1e5), (2, 30.43, 38.86), (26, 30.86, 31), (5, 31, 31),
                (132, 200, 200), (300, 150, 200), (3000, 100, 700), (3000, 700, 700), (8000, 1e5 - 1, 1e5), (2, 5e-4, 1e-3)]
EXTREME_LOGS = [CDNOW, [-8] * 4, [8] * 4, [-8, 8, -8, 8], [8, -8, 8, -8], [-8, 8, 8, -8], [8, -8, -8, 8], [-8, -8, 8, 8],
                [8, 8, -8, -8], [0, -8, 0, 8], [-1, 2, 3, 2 + 1e-9]]


@pytest.mark.parametrize("logs", EXTREME_LOGS, ids=str)
def test_values_are_those_of_2f1(logs):
    with mp.workdps(60): theirs = [float(by_2f1([mp.mpf(float(v)) for v in logs], *row)) for row in EXTREME_ROWS]
    np.testing.assert_allclose(pareto_nbd(logs, prepare_pareto_nbd(*np.transpose(EXTREME_ROWS))).value, theirs, **VALUE)


RANDOM = np.random.default_rng(6)


def random_row():
    "One of the shapes that rows have, at a random scale."
    x, T = int(RANDOM.choice([0, 1, 4, 30, 300, 3000])), float(RANDOM.choice([1e-3, 1, 40, 1000, 1e5]))
    return x, T * float(RANDOM.choice([1e-3, .3, .9, 1 - 1e-6, 1])) if x else 0., T


@pytest.mark.parametrize("logs, row", [(RANDOM.uniform(-8, 8, 4), random_row()) for _ in range(60)])
def test_values_of_random_rows_are_those_of_2f1(logs, row):
    with mp.workdps(60): theirs = float(by_2f1([mp.mpf(float(v)) for v in logs], *row))
    np.testing.assert_allclose(terms_of(logs, *row).value[0], theirs, **VALUE)


@pytest.mark.parametrize("logs, row", [
    (CDNOW, (2, 30.43, 38.86)), (CDNOW, (26, 30.86, 31)), (CDNOW, (132, 200, 200)), (CDNOW, (0, 0, 38.86)), (CDNOW, (300, 150, 200)),
    ([-8, -8, 8, 8], (4, .3, 1)), ([2, -8, 1, 2], (0, 0, 1e5)), ([-2, -8, 1, 8], (0, 0, 1e5)), ([8, 8, -8, 8], (30, 100, 1000)),
    ([-1, 5, 4, -3], (300, 100, 700)), ([3, 2, .5, 2 + 1e-6], (5, 1, 40)), ([.2, 7, 3, -7], (1, 5e-4, 1e-3)),
    *[(RANDOM.uniform(-6, 6, 4), random_row()) for _ in range(6)]])
def test_derivatives_are_those_of_2f1(logs, row):
    ours = terms_of(logs, *row)
    with mp.workdps(60): gradient, hessian = derivatives_by_2f1(logs, *row)
    assert_close_up_to_its_largest(ours.gradient[:, 0], gradient)
    assert_close_up_to_its_largest(ours.hessian[:, :, 0], hessian)


def assert_close_up_to_its_largest(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=DERIVATIVE["rtol"], atol=DERIVATIVE["atol"] * max(1, np.abs(theirs).max()))


# ---- what the formula means

@pytest.mark.parametrize("x, t_x, T", [(0, 0, 5), (1, 2, 5), (4, 4.5, 5), (3, 5, 5)])
def test_a_row_is_the_mean_over_members_with_rates_of_their_own(x, t_x, T):
    "Of given rates: x purchases, then either still there at T, or gone at some moment after t_x."
    r, alpha, s, beta = 1.3, 2.1, 1.7, 3.4
    la, mu = np.meshgrid(rates := np.exp(np.linspace(-40, 6, 700)), rates)         # trapezes in logarithms converge fast
    alive = np.exp(-(la + mu) * T)
    gone = mu / (la + mu) * (np.exp(-(la + mu) * t_x) - alive)
    density = la * gamma.pdf(la, r, scale=1 / alpha) * mu * gamma.pdf(mu, s, scale=1 / beta)
    mean = (la**x * (alive + gone) * density).sum() * (46 / 699) ** 2
    np.testing.assert_allclose(np.exp(terms_of(np.log([r, alpha, s, beta]), x, t_x, T).value[0]), mean, rtol=1e-10)


def test_what_can_happen_until_the_first_repeat_purchase_adds_up():
    "Nobody bought, or the first came at t: the densities of t and what is left sum to 1 (one purchase, seen until it)."
    logs, T = np.log([.8, 3, .6, 5]), 12.
    node, weight = np.polynomial.legendre.leggauss(60)
    t = (node + 1) / 2 * T
    one = pareto_nbd(logs, prepare_pareto_nbd(np.ones(60), t, t))
    none = terms_of(logs, 0, 0, T)
    np.testing.assert_allclose(np.exp(none.value[0]) + np.exp(one.value) @ weight * T / 2, 1, rtol=1e-13)


@many
@given(st.lists(st.floats(-4, 4), min_size=4, max_size=4), st.floats(.01, 100), st.integers(0, 50))
def test_the_unit_of_time_does_not_matter(logs, unit, x):
    row = (x, 4. if x else 0., 7.)
    one, other = terms_of(logs, *row), terms_of(np.add(logs, [0, np.log(unit), 0, np.log(unit)]), x, row[1] * unit, 7 * unit)
    np.testing.assert_allclose(other.value, one.value - x * np.log(unit), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(other.gradient, one.gradient, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(other.hessian, one.hessian, rtol=1e-9, atol=1e-9)


# ---- derivatives against differences

def central(f, logs, step=1e-5):
    "Central differences by each log, along a new first axis."
    return np.stack([(f(logs + step * e) - f(logs - step * e)) / (2 * step) for e in np.eye(4)])


@pytest.fixture(scope="module")
def calendar():
    "Members of two years of days, dense enough for blocks, with some whose x is rare."
    return simulated(30_000, seed=1)


def simulated(n, seed, r=.9, alpha=40., s=.6, beta=82., days=400):
    "Distinct rows of members whose rates, purchases and leaving are drawn; at most one purchase a day."
    rng = np.random.default_rng(seed)
    T = rng.integers(0, days, n)
    rate, leaving = rng.gamma(r, 1 / alpha, n), rng.gamma(s, 1 / beta, n)
    until = np.minimum(rng.exponential(1 / np.maximum(leaving, 1e-12)), T)
    member = np.repeat(np.arange(n), rng.poisson(rate * until))
    day = np.ceil(rng.random(len(member)) * until[member]).astype(int)
    member, day = np.unique(np.stack([member, day]), axis=1)
    x, t_x = np.bincount(member, minlength=n), np.zeros(n, int)
    np.maximum.at(t_x, member, day)
    return pd.DataFrame(dict(x=x, t_x=t_x, T=T)).groupby(["x", "t_x", "T"]).size().rename("members").reset_index()


def rows_of(frame, **changes):
    return prepare_pareto_nbd(frame.x, frame.t_x, frame["T"])._replace(**changes)


def quadrature_only(rows): return rows._replace(blocks=(), others=np.arange(len(rows.x)))


@pytest.mark.parametrize("logs", [np.log([.55, 78, .6, 86]), np.log([2, 30, 3, 12]), np.log([.1, 300, 5, 300])], ids=str)
@pytest.mark.parametrize("road", [lambda rows: rows, quadrature_only], ids=["days", "quadrature"])
def test_derivatives_are_limits_of_differences(calendar, logs, road):
    rows = road(rows_of(calendar))
    terms = pareto_nbd(logs, rows)
    gradient = central(lambda p: pareto_nbd(p, rows).value, logs)
    hessian = central(lambda p: pareto_nbd(p, rows).gradient, logs)
    np.testing.assert_allclose(terms.gradient, gradient, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(terms.hessian, hessian, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(terms.hessian, terms.hessian.swapaxes(0, 1))


def test_parameters_may_differ_by_row():
    rng = np.random.default_rng(3)
    logs, rows = rng.uniform(-2, 4, (4, 40)), [random_row() for _ in range(40)]
    data = prepare_pareto_nbd(*np.transpose(rows))
    together = pareto_nbd(list(logs), data)
    mixed = pareto_nbd([logs[0, 0], logs[1], .3, logs[3]], data)
    for i, row in enumerate(rows):
        alone = terms_of(logs[:, i], *row)
        half = terms_of([logs[0, 0], logs[1, i], .3, logs[3, i]], *row)
        for a, b in [(together, alone), (mixed, half)]:
            for all_rows, one in zip(a, b): np.testing.assert_allclose(all_rows[..., i], one[..., 0], rtol=1e-12, atol=1e-12)


# ---- the two roads

def assert_agree(logs, rows):
    "Days and quadrature give the same; returns how many rows the blocks answered."
    both, one = pareto_nbd(logs, rows), pareto_nbd(logs, quadrature_only(rows))
    np.testing.assert_allclose(both.value, one.value, rtol=1e-12, atol=1e-11)
    for a, b in zip(both[1:], one[1:]):
        largest = np.maximum(1, np.abs(b).reshape(-1, b.shape[-1]).max(0))
        np.testing.assert_allclose(a / largest, b / largest, **ROADS)


@pytest.mark.parametrize("logs", [*EXTREME_LOGS, np.log([.55, 74, .6, 82]), np.log([.3, .5, 2, 3]), np.log([300, 74, .6, 82])], ids=str)
def test_both_roads_agree(calendar, logs):
    rows = rows_of(calendar)
    assert len(rows.blocks) and len(rows.others)
    assert_agree(logs, rows)


@pytest.mark.parametrize("unit", [1, 7, 365.25])
def test_blocks_answer_nearly_all_rows_of_a_calendar(calendar, unit, monkeypatch):
    rows, asked = prepare_pareto_nbd(calendar.x, calendar.t_x / unit, calendar["T"] / unit), []
    quadrature = pareto._quadrature
    monkeypatch.setattr(pareto, "_quadrature", lambda aim, some, *rest: (asked.append(len(some)), quadrature(aim, some, *rest)))
    pareto_nbd(np.log([.9, 40 / unit, .6, 82 / unit]), rows)
    assert asked[0] == len(rows.others) < .05 * len(calendar)


@pytest.fixture(scope="module")
def uneven():
    "Times from a thousandth to 1e5, so that some cells fall too steeply and others are lost in sums a million times theirs."
    rng = np.random.default_rng(5)
    times = np.sort(np.concatenate([[0], np.geomspace(1e-3, 1e5, 400), 50 + np.arange(20) * 1e-6]))
    start, end = np.sort(rng.integers(1, len(times), (2, 6000)), axis=0)
    end = np.where(rng.random(6000) < .3, np.minimum(start + rng.integers(0, 3, 6000), len(times) - 1), end)
    x = rng.choice([0, 1, 3, 40], 6000)
    return prepare_pareto_nbd(x, np.where(x > 0, times[start], 0), times[end])


def test_both_roads_agree_where_cells_are_uneven(uneven):
    for logs in EXTREME_LOGS: assert_agree(logs, uneven)


@pytest.mark.parametrize("logs, least, most", [(CDNOW, 10, 300), ([-8] * 4, 1000, 2000), ([8] * 4, 5000, 6000)], ids=str)
def test_rows_of_uneven_cells_go_to_quadrature_where_days_would_lose_digits(uneven, logs, least, most, monkeypatch):
    "Few neighbours only, those before steep cells too, or all."
    asked, quadrature = [], pareto._quadrature
    monkeypatch.setattr(pareto, "_quadrature", lambda aim, some, *rest: (asked.append(len(some)), quadrature(aim, some, *rest)))
    log_left_odds(logs, uneven)
    assert len(uneven.blocks) == 1 and not len(uneven.others) and least < asked[0] < most


def test_a_calendar_of_many_values_of_x_makes_several_blocks():
    rng = np.random.default_rng(7)
    x, T = rng.integers(0, 150, 40_000), rng.integers(150, 200, 40_000)
    rows = prepare_pareto_nbd(x, np.where(x > 0, np.maximum(1, T - rng.integers(0, 100, 40_000)), 0), T)
    assert len(rows.blocks) == 3 and max(len(b.levels) for b in rows.blocks) == 64
    assert sum(len(b.rows) for b in rows.blocks) + len(rows.others) == 40_000
    assert_agree(np.log([.9, 5, .6, 82]), rows)


def test_the_order_of_rows_does_not_matter(calendar):
    order = np.random.default_rng(2).permutation(len(calendar))
    sorted_, mixed = pareto_nbd(CDNOW, rows_of(calendar)), pareto_nbd(CDNOW, rows_of(calendar.iloc[order]))
    for a, b in zip(sorted_, mixed): np.testing.assert_allclose(a[..., order], b, rtol=1e-13, atol=1e-13)


# ---- the odds of having left

ODDS = dict(rtol=1e-14, atol=1e-10)    # of their logarithm: relative 1e-10 of the odds


def log_odds_by_2f1(logs, x, t_x, T):
    "The dead part of the closed form over the alive part, in 60 digits."
    t_x, T = mp.mpf(t_x), mp.mpf(T)
    if T == t_x: return -np.inf
    r, alpha, s, beta = (mp.exp(mp.mpf(float(v))) for v in logs)
    n, k = r + s + x, r + x
    high, low, second = (alpha, beta, s + 1) if alpha >= beta else (beta, alpha, k)
    part = lambda t: mp.hyp2f1(n, second, n + 1, (high - low) / (high + t)) / (high + t) ** n
    return float(mp.log(s / n * (part(t_x) - part(T))) + k * mp.log(alpha + T) + s * mp.log(beta + T))


@pytest.mark.parametrize("logs", EXTREME_LOGS, ids=str)
def test_odds_are_those_of_2f1(logs):
    with mp.workdps(60): theirs = [log_odds_by_2f1(logs, *row) for row in EXTREME_ROWS]
    with np.errstate(all="raise", under="ignore"): ours = log_left_odds(logs, prepare_pareto_nbd(*np.transpose(EXTREME_ROWS)))
    np.testing.assert_allclose(ours, theirs, **ODDS)


@pytest.mark.parametrize("logs, row", [(RANDOM.uniform(-8, 8, 4), random_row()) for _ in range(60)])
def test_odds_of_random_rows_are_those_of_2f1(logs, row):
    with mp.workdps(60): theirs = log_odds_by_2f1(logs, *row)
    np.testing.assert_allclose(log_left_odds(logs, prepare_pareto_nbd(*([v] for v in row)))[0], theirs, **ODDS)


@pytest.mark.parametrize("logs", [CDNOW, *np.log([[.55, 74, .6, 82], [2, 30, 3, 12], [300, 74, 1e-3, 82], [.3, .5, 2, 3]])], ids=str)
def test_odds_by_days_are_those_of_2f1(calendar, logs):
    "Rows of the blocks, drawn over all lengths of silence: from a day before the end to never again."
    rows = rows_of(calendar)
    inside, silence = np.setdiff1d(np.arange(len(rows.x)), rows.others), rows.T - rows.t_x
    inside = inside[np.argsort(silence[inside], kind="stable")]
    some = np.concatenate([inside[silence[inside] == 1][:10], inside[::len(inside) // 30]])
    with mp.workdps(60): theirs = [log_odds_by_2f1(logs, int(rows.x[i]), rows.t_x[i], rows.T[i]) for i in some]
    np.testing.assert_allclose(log_left_odds(logs, rows)[some], theirs, **ODDS)


@pytest.mark.parametrize("logs", [*EXTREME_LOGS, np.log([.55, 74, .6, 82]), np.log([.3, .5, 2, 3]), np.log([300, 74, .6, 82])], ids=str)
def test_both_roads_give_the_same_odds(calendar, logs):
    rows = rows_of(calendar)
    assert len(rows.blocks) and len(rows.others)
    np.testing.assert_allclose(log_left_odds(logs, rows), log_left_odds(logs, quadrature_only(rows)), **ODDS)


@pytest.mark.parametrize("logs", EXTREME_LOGS, ids=str)
def test_both_roads_give_the_same_odds_where_cells_are_uneven(uneven, logs):
    np.testing.assert_allclose(log_left_odds(logs, uneven), log_left_odds(logs, quadrature_only(uneven)), **ODDS)


@pytest.mark.parametrize("logs", [CDNOW, np.log([.55, 74, .6, 82]), np.log([2, 30, 3, 12])], ids=str)
@pytest.mark.parametrize("road", [lambda rows: rows, quadrature_only], ids=["days", "quadrature"])
def test_odds_are_those_of_the_likelihood(calendar, logs, road):
    "L = its alive part times 1 + odds."
    rows = road(rows_of(calendar))
    r, alpha, s, beta = np.exp(logs)
    alive = gammaln(r + rows.x) - gammaln(r) + r * logs[1] + s * logs[3] - (r + rows.x) * np.log(alpha + rows.T) - s * np.log(beta + rows.T)
    np.testing.assert_allclose(alive + np.logaddexp(0, log_left_odds(logs, rows)), pareto_nbd(logs, rows).value, rtol=1e-12, atol=1e-11)


def test_odds_on_paper():
    "All parameters 1: 3/8 to 1/4; none, as just seen; 7/192 to 1/64."
    np.testing.assert_allclose(np.exp(log_left_odds(np.zeros(4), prepare_pareto_nbd([0, 1, 1], [0, 1, 1], [1, 1, 3]))), [3 / 2, 0, 7 / 3], rtol=1e-14)


def test_odds_of_parameters_that_differ_by_row():
    rng = np.random.default_rng(4)
    logs, rows = rng.uniform(-2, 4, (4, 40)), [random_row() for _ in range(40)]
    together = log_left_odds([logs[0, 0], logs[1], .3, logs[3]], prepare_pareto_nbd(*np.transpose(rows)))
    for i, row in enumerate(rows):
        alone = log_left_odds([logs[0, 0], logs[1, i], .3, logs[3, i]], prepare_pareto_nbd(*([v] for v in row)))
        np.testing.assert_allclose(together[i], alone[0], rtol=1e-13, atol=1e-13)


@many
@given(st.lists(st.floats(-8, 8), min_size=4, max_size=4), st.integers(0, 20_000), st.floats(1e-3, 1e5), st.floats(1e-9, 1))
@example([8, 8, 8, 8], 20_000, 1e5, 1e-8)
@example([8, -8, 8, -8], 20_000, 1e5, 1e-9)
def test_odds_never_overflow_and_grow_with_silence(logs, x, T, share):
    t_x = min(T, T * share) if x else 0
    odds = log_left_odds(logs, prepare_pareto_nbd([x] * 3, [t_x] * 3, [T, 2 * T, 4 * T]))
    assert np.isfinite(odds[t_x < T * np.array([1, 2, 4])]).all() and (odds[:-1] < odds[1:]).all()


# ---- extremes

@many
@given(st.lists(st.floats(-8, 8), min_size=4, max_size=4), st.integers(0, 20_000), st.floats(1e-3, 1e5), st.floats(1e-9, 1))
@example([-8, 8, 8, -8], 0, 1e5, 1.)
@example([8, 8, 8, 8], 20_000, 1e5, 1e-8)
def test_everything_is_finite(logs, x, T, share):
    for terms in (terms_of(logs, x, min(T, T * share) if x else 0, T), terms_of(logs, 0, 0, T)):
        assert all(np.isfinite(part).all() for part in terms)
    assert terms.value[0] <= 1e-12                     # no purchase: a probability
    assert terms.gradient[1, 0] >= -1e-12 and terms.gradient[0, 0] <= 1e-12     # likelier with lower rates of buying


def test_far_outside_the_tested_range_it_stays_finite():
    rows = prepare_pareto_nbd(*np.transpose(EXTREME_ROWS))
    for logs in ([-25] * 4, [25] * 4, [-25, 25, -25, 25], [-40, -25, -40, 25], [25, -25, 25, -25]):
        with np.errstate(all="raise", under="ignore"): assert all(np.isfinite(part).all() for part in pareto_nbd(logs, rows))


def test_no_time_no_information():
    terms = terms_of(CDNOW, 0, 0, 0)
    assert all((part == 0).all() for part in terms)


# ---- the published fit, and lifetimes

@pytest.fixture(scope="module")
def cdnow():
    "The CDNOW sample to 30 September 1997 in weeks, orders merged by day: 1,016 distinct rows of 2,357 customers."
    return cdnow_summary().groupby(["x", "t_x", "T"]).size().rename("members").reset_index()


def total(terms, members): return [part @ members.to_numpy() for part in terms]


def test_cdnow_has_the_published_likelihood_and_standard_errors(cdnow):
    assert (len(cdnow), cdnow.members.sum()) == (1016, 2357)
    value, gradient, hessian = total(pareto_nbd(CDNOW, rows_of(cdnow)), cdnow.members)
    assert round(value, 2) == -9594.98
    assert np.abs(gradient).max() < .1
    errors = np.sqrt(np.diag(np.linalg.inv(-hessian))) * np.exp(CDNOW)
    np.testing.assert_allclose(errors, [.0476, .843, .187, 6.21], rtol=5e-3)


@pytest.mark.parametrize("logs", [CDNOW, np.log([1, 5, 2, 40]), np.log([.2, 30, 1.5, 2])], ids=str)
def test_lifetimes_has_the_same_values_where_it_has_any(cdnow, logs):
    from lifetimes import ParetoNBDFitter
    with np.errstate(all="ignore"):
        theirs = ParetoNBDFitter._conditional_log_likelihood(np.exp(logs), *(cdnow[c].to_numpy() for c in ("x", "t_x", "T")))
    ours, finite = pareto_nbd(logs, rows_of(cdnow)).value, np.isfinite(theirs)
    assert finite.mean() > .9
    np.testing.assert_allclose(ours[finite], theirs[finite], rtol=1e-10)


def climbed(rows, members, logs, most=60):
    "The optimum by Newton's method, damped where the Hessian is not negative or the step too far."
    for step in range(most):
        value, gradient, hessian = total(pareto_nbd(logs, rows), members)
        if np.abs(gradient).max() < 1e-8 * members.sum(): return logs, value, step
        damping = 0.
        while True:
            move = np.linalg.solve(-hessian + damping * np.eye(4), gradient)
            concave = np.linalg.eigvalsh(-hessian)[0] + damping > 0
            if concave and np.abs(move).max() < 2 and pareto_nbd(logs + move, rows).value @ members.to_numpy() > value - 1e-9 * abs(value): break
            damping = 2 * damping + 1e-3 * members.sum()
        logs = logs + move
    raise AssertionError(f"no optimum in {most} steps: gradient {gradient}")


def test_from_the_start_newton_finds_the_published_fit(cdnow):
    rows = rows_of(cdnow)
    logs, value, steps = climbed(rows, cdnow.members, start_pareto_nbd(rows, cdnow.members))
    np.testing.assert_allclose(np.exp(logs), [.5533, 10.578, .6062, 11.669], rtol=2e-4)
    assert round(value, 2) == -9594.98 and steps <= 12


@pytest.mark.parametrize("r, alpha, s, beta", [(.55, 74, .6, 82), (3, 20, 1.5, 300), (.2, 10, .3, 5), (1.5, 400, 2, 100)])
def test_from_the_start_newton_finds_what_was_planted(r, alpha, s, beta):
    "20,000 members of up to 730 days, in continuous time: within four standard errors."
    rng, n = np.random.default_rng(11), 20_000
    T = rng.uniform(1, 730, n)
    until = np.minimum(rng.exponential(1 / np.maximum(rng.gamma(s, 1 / beta, n), 1e-100)), T)
    x = rng.poisson(rng.gamma(r, 1 / alpha, n) * until)
    t_x = np.where(x > 0, until * rng.random(n) ** (1 / np.maximum(x, 1)), 0)     # the greatest of x uniform moments
    rows, members = prepare_pareto_nbd(x, t_x, T), pd.Series(np.ones(n))
    assert not rows.blocks
    logs, _, steps = climbed(rows, members, start_pareto_nbd(rows, members))
    errors = np.sqrt(np.diag(np.linalg.inv(-total(pareto_nbd(logs, rows), members)[2])))
    assert steps <= 15 and (np.abs(logs - np.log([r, alpha, s, beta])) < 4 * errors).all()


# ---- where a fit begins, and what is refused

@many
@given(st.lists(st.tuples(st.integers(0, 3000), st.floats(.001, 1e5), st.integers(1, 1000)), min_size=1, max_size=5), st.floats(.01, 100))
def test_a_start_is_finite_and_moves_with_the_unit(members, unit):
    x, T, weights = map(np.array, zip(*members))
    start = lambda u: start_pareto_nbd(prepare_pareto_nbd(x, np.where(x > 0, T / 2, 0) * u, T * u), weights)
    assert np.isfinite(start(1)).all()
    np.testing.assert_allclose(start(unit) - start(1), np.log([1, unit, 1, unit]), atol=1e-9)


def test_what_cannot_be_is_refused():
    with pytest.raises(NotComputable, match="T is 0 for all members"): start_pareto_nbd(prepare_pareto_nbd([0, 0], [0, 0], [0, 0]), [1, 1])
    for row in ([1.5, 1, 2], [1, 0, 2], [-1, 1, 2], [1, 3, 2], [1, np.nan, 2], [1, 1, np.inf], [0, 1, 2]):
        with pytest.raises(ParameterError, match="1 of 1 rows"): prepare_pareto_nbd(*([v] for v in row))
    with pytest.raises(NotComputable, match="no rows"): prepare_pareto_nbd([], [], [])
    assert PARAMETERS == ("r", "alpha", "s", "beta")
