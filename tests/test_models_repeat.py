"BG/NBD and MBG/NBD against 50 digits, lifetimes, differences, and rows as extreme as a programme can have."

import mpmath as mp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memtag_research.core import NotComputable, ParameterError
from memtag_research.models.repeat import bgnbd, bgnbd_sums, check_rows, mbgnbd, mbgnbd_sums, start_repeat

MODELS = {0: (bgnbd, bgnbd_sums), 1: (mbgnbd, mbgnbd_sums)}     # m: whether the first purchase can be the last
PUBLISHED = np.log([0.2426, 4.4136, 0.7929, 2.4259])
ROWS = [(0, 0, 38.86), (0, 0, 1e-3), (0, 0, 0), (1, 0.14, 0.14), (1, 1e-3, 1e5), (2, 30.43, 38.86), (26, 30.86, 31), (132, 200, 200), (400, 3, 900),
        (5000, 700, 730), (9000, 1e5, 1e5)]
LOGS = [PUBLISHED, [-8, 8, -8, 8], [8, -8, 8, -8], [-8, -8, -8, -8], [8, 8, 8, 8], [0, 0, 0, 0], [-3, 5, 7.5, -7.5]]


def exact(logs, x, t_x, T, m):
    "ln L in 50 digits, from the two terms of the paper."
    with mp.workdps(max(mp.mp.dps, 50)):
        r, alpha, a, b = (mp.exp(mp.mpf(v)) for v in logs)
        x, t_x, T = mp.mpf(float(x)), mp.mpf(float(t_x)), mp.mpf(float(T))
        common = mp.gamma(r + x) / mp.gamma(r) * alpha**r
        alive = mp.beta(a, b + x + m) / mp.beta(a, b) / (alpha + T) ** (r + x)
        gone = mp.beta(a + 1, b + x + m - 1) / mp.beta(a, b) / (alpha + t_x) ** (r + x) if x + m > 0 else 0
        return mp.log(common * (alive + gone))


@pytest.mark.parametrize("m", MODELS)
@pytest.mark.parametrize("logs", LOGS, ids=str)
def test_fifty_digits(m, logs):
    rows = check_rows(*zip(*ROWS, strict=True))
    found = MODELS[m][0](logs, rows)
    wanted = np.array([float(exact(logs, *row, m)) for row in ROWS])
    np.testing.assert_allclose(found.value, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("m", MODELS)
def test_derivatives_in_fifty_digits(m):
    for logs in (PUBLISHED, [2, -3, 3, -2], [-4, 5, 1, 4]):
        for row in ROWS:
            found = MODELS[m][0](logs, check_rows(*([v] for v in row)))
            with mp.workdps(50):
                at = lambda *p, row=row: exact(p, *row, m)
                for i in range(4):
                    order = tuple(int(j == i) for j in range(4))
                    assert float(mp.diff(at, tuple(map(float, logs)), order)) == pytest.approx(found.gradient[i, 0], rel=1e-8, abs=1e-8)


extreme = st.tuples(st.one_of(st.just(0), st.integers(0, 60), st.integers(1000, 9000)), st.floats(1e-3, 1), st.floats(-3, 5)).map(
    lambda v: (v[0], v[1] * 10 ** v[2] if v[0] else 0.0, 10 ** v[2]))
anywhere = st.lists(st.floats(-8, 8), min_size=4, max_size=4)
many = settings(max_examples=60, deadline=None, derandomize=True)


@pytest.mark.parametrize("m", MODELS)
@many
@given(st.lists(extreme, min_size=1, max_size=5), anywhere)
def test_extremes(m, rows, logs):
    "Finite everywhere, never a likelihood above 1 where time is continuous but x is 0, and derivatives that are differences."
    rows, (each, _) = check_rows(*zip(*rows, strict=True)), MODELS[m]
    found = each(logs, rows)
    assert all(np.isfinite(part).all() for part in found)
    assert (found.value[rows.x == 0] <= 1e-12).all()            # a probability
    h = 1e-5 * np.eye(4)
    slopes = np.array([(each(logs + d, rows).value - each(logs - d, rows).value) / 2e-5 for d in h])
    curves = np.array([(each(logs + d, rows).gradient - each(logs - d, rows).gradient) / 2e-5 for d in h])
    scale = 1 + np.abs(found.value)
    np.testing.assert_allclose(found.gradient / scale, slopes / scale, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(found.hessian / scale, curves / scale, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("m", MODELS)
@many
@given(st.lists(extreme, min_size=1, max_size=6), anywhere, st.randoms(use_true_random=False))
def test_sums_are_the_terms_added_up(m, rows, logs, random):
    rows, (each, sums) = check_rows(*zip(*rows, strict=True)), MODELS[m]
    weights = np.array([random.randrange(1, 50) for _ in rows.x], float)
    for whole, part in zip(sums(logs, rows, weights), each(logs, rows), strict=True):
        np.testing.assert_allclose(whole, part @ weights, rtol=1e-8, atol=1e-7 * weights.sum())


def test_parameters_that_differ_by_row():
    "An array that is constant is the number."
    rows = check_rows(*zip(*ROWS, strict=True))
    for each, _ in MODELS.values():
        for whole, part in zip(each(PUBLISHED, rows), each([np.full(len(ROWS), v) for v in PUBLISHED], rows), strict=True):
            np.testing.assert_allclose(whole, part, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("m", "name"), [(0, "BetaGeoFitter"), (1, "ModifiedBetaGeoFitter")])
def test_lifetimes_says_the_same(m, name):
    import lifetimes
    rows = check_rows(*zip(*[r for r in ROWS if 0 < r[2] < 1000], strict=True))
    weights, scale = np.arange(1.0, len(rows.x) + 1), 1.0
    theirs = getattr(lifetimes, name)._negative_log_likelihood(PUBLISHED, rows.x, rows.t_x * scale, rows.T * scale, weights, 0)
    assert -theirs * weights.sum() == pytest.approx(MODELS[m][1](PUBLISHED, rows, weights)[0], rel=1e-12)


def test_a_start_moves_with_the_unit_of_time():
    rows, weeks = check_rows([0, 3, 9], [0, 70, 140], [70, 140, 210]), check_rows([0, 3, 9], [0, 10, 20], [10, 20, 30])
    np.testing.assert_allclose(start_repeat(rows, np.ones(3)) - start_repeat(weeks, np.ones(3)), [0, np.log(7), 0, 0], atol=1e-12)


def test_mistakes():
    for columns, said in {((-1,), (0,), (5,)): "x must be a whole number", ((2.5,), (1,), (5,)): "x must be a whole number",
                          ((float("nan"),), (1,), (5,)): "x must be a whole number", ((1,), (7,), (5,)): "between 0 and T: 1 of 1 rows",
                          ((1,), (float("nan"),), (5,)): "between 0 and T", ((1,), (2,), (float("inf"),)): "T must be a number",
                          ((1,), (0,), (5,)): "0 where x is 0", ((0,), (2,), (5,)): "0 where x is 0", ((1, 2), (1,), (5,)): "columns of one length"}.items():
        with pytest.raises(ParameterError, match=said): check_rows(*columns)
    with pytest.raises(NotComputable, match="no rows"): check_rows([], [], [])
