"""Predictions of repeat buying: against the published figures, 40-digit references, lifetimes, and simulated people."""

from importlib.util import find_spec

import mpmath as mp
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memtag_research.core import ParameterError
from memtag_research.models import predictions
from memtag_research.models.predictions import (
    MODELS,
    expected_purchases,
    expected_purchases_new,
    expected_spend,
    p_alive,
    p_zero,
    pmf_future,
    pmf_new,
)

# CDNOW, weeks (Fader, Hardie and Lee 2005); donors, years (Fader, Hardie and Shang 2010)
BG = dict(r=0.2426, alpha=4.4136, a=0.7929, b=2.4259)
MBG = dict(r=0.5248, alpha=6.1830, a=0.8914, b=1.6140)
PARETO = dict(r=0.5533, alpha=10.578, s=0.6062, beta=11.669)
DONORS = dict(alpha=1.2035, beta=0.7497, gamma=0.6567, delta=2.7835)
CDNOW = dict(bgnbd=BG, mbgnbd=MBG, pareto_nbd=PARETO)
EVERY = CDNOW | dict(bgbb=DONORS)
EXACT = 1e-10  # where only rounding parts us from the reference


# ---- published figures ----


def test_published_figures_of_single_members():
    assert expected_purchases("bgnbd", BG, 39, 2, 30.43, 38.86) == pytest.approx(1.226, abs=5e-4)
    assert expected_purchases("pareto_nbd", PARETO, [52, 39], 26, 30.86, 31) == pytest.approx([25.46, 20.12], abs=5e-3)
    assert p_alive("pareto_nbd", PARETO, 26, 30.86, 31) == pytest.approx(0.9979, abs=5e-5)


def test_where_the_published_form_of_bgnbd_has_no_value():
    assert expected_purchases("bgnbd", dict(r=0.11, alpha=2.24, a=0.31, b=0.5), 30, 0, 0, 1) == pytest.approx(0.56459, abs=5e-6)


# ---- against 60 digits: likelihoods in closed form, from which the rest follows ----


def likelihood_60(model, p, x, t_x, T):
    "The likelihood of a history, and the part of it in which the member is alive at T."
    t_x, T = mp.mpf(t_x), mp.mpf(T)
    if model == "bgbb":
        alpha, beta, gamma, delta = p
        at = lambda i: mp.beta(alpha + x, beta + i - x) / mp.beta(alpha, beta)
        here = at(T) * mp.beta(gamma, delta + T) / mp.beta(gamma, delta)
        return here + sum(at(i) * mp.beta(gamma + 1, delta + i) / mp.beta(gamma, delta) for i in range(int(t_x), int(T))), here
    r, alpha = p[:2]
    buying = lambda until: mp.rf(r, x) * alpha**r / (alpha + until) ** (r + x)
    if model == "pareto_nbd":
        s, beta = p[2:]
        (high, low, second) = (alpha, beta, s + 1) if alpha >= beta else (beta, alpha, r + x)
        n, c = r + s + x, mp.rf(r, x) * alpha**r * beta**s
        part = lambda t: mp.hyp2f1(n, second, n + 1, (high - low) / (high + t)) / (high + t) ** n
        here = c / (alpha + T) ** (r + x) / (beta + T) ** s
        return here + (c * s / n * (part(t_x) - part(T)) if T > t_x else 0), here
    a, b = p[2:]
    first = model == "mbgnbd"  # one more chance to leave
    here = mp.beta(a, b + x + first) / mp.beta(a, b) * buying(T)
    return here + (mp.beta(a + 1, b + x - 1 + first) / mp.beta(a, b) * buying(t_x) if x or first else 0), here


def expected_if_alive_60(model, p, t):
    "The published forms of E[X(t)] of somebody new who is alive."
    t = mp.mpf(t)
    if model == "bgbb":
        alpha, beta, gamma, delta = p
        return alpha / (alpha + beta) * sum(mp.beta(gamma, delta + i) / mp.beta(gamma, delta) for i in range(1, int(t) + 1))
    r, alpha, a, b = p
    if model == "pareto_nbd":
        a += (a == 1) * mp.mpf(10) ** -25
        return r * b / alpha / (a - 1) * (1 - (b / (b + t)) ** (a - 1))
    a += (a in (1, 1 - b)) * mp.mpf(10) ** -25
    return (a + b - 1) / (a - 1) * (1 - (alpha / (alpha + t)) ** r * mp.hyp2f1(r, b, a + b - 1, t / (alpha + t)))


AHEAD_60 = dict(
    bgnbd=lambda r, alpha, a, b, x, T: (r + x, alpha + T, a, b + x),
    mbgnbd=lambda r, alpha, a, b, x, T: (r + x, alpha + T, a, b + x + 1),
    pareto_nbd=lambda r, alpha, s, beta, x, T: (r + x, alpha + T, s, beta + T),
    bgbb=lambda alpha, beta, gamma, delta, x, T: (alpha + x, beta + T - x, gamma, delta + T))  # fmt: skip

EXTREME_ROWS = [(0, 0, 0), (0, 0, 1e-3), (0, 0, 38.86), (0, 0, 1e5), (1, 0.5, 1e5), (2, 30.43, 38.86), (26, 30.86, 31), (5, 31, 31),
                (132, 200, 200), (300, 150, 200), (3000, 690, 700), (3000, 700, 700), (8000, 1e5 - 1, 1e5), (2, 5e-4, 1e-3)]  # fmt: skip
EXTREME_GIFTS = [(0, 0, 0), (0, 0, 1), (0, 0, 40), (1, 1, 1), (1, 1, 40), (3, 20, 40), (40, 40, 40), (12, 12, 120), (150, 150, 160)]
EXTREME_PARAMETERS = {
    "nbd": [(0.2426, 4.4136, 0.7929, 2.4259), (0.11, 2.24, 0.31, 0.5), (0.5, 10, 1, 2), (0.5, 10, 1 + 1e-9, 2), (0.5, 10, 0.5, 0.5), (0.01, 300, 0.02, 0.03),
            (50, 0.02, 30, 0.01), (300, 300, 20, 300), (0.001, 0.01, 300, 1), (2, 1, 0.01, 300)],
    "bgbb": [(1.2035, 0.7497, 0.6567, 2.7835), (1, 1, 1, 1), (0.3, 2, 1 - 1e-9, 5), (0.01, 0.02, 0.03, 0.01), (300, 20, 0.01, 300), (5, 300, 300, 40)]}  # fmt: skip


def extremes(model):
    return (EXTREME_PARAMETERS["bgbb"], EXTREME_GIFTS, (1, 7, 30)) if model == "bgbb" else (EXTREME_PARAMETERS["nbd"], EXTREME_ROWS, (1e-4, 1, 52, 2e4))


@pytest.mark.parametrize("model, case", [(m, i) for m in MODELS for i in range(len(extremes(m)[0]))])
def test_extremes_against_60_digits(model, case):
    parameters, rows, horizons = extremes(model)[0][case], *extremes(model)[1:]
    named, columns = dict(zip(MODELS[model], parameters)), np.transpose(rows).astype(float)
    with mp.workdps(60):
        p = [mp.mpf(v) for v in parameters]
        now = [likelihood_60(model, p, *row) for row in rows]
        alive = [here / all_ for all_, here in now]
        ahead = [AHEAD_60[model](*p, x, mp.mpf(T)) for x, _, T in rows]
        expected = [[float(a * expected_if_alive_60(model, q, t)) for a, q in zip(alive, ahead)] for t in horizons]
        later = [[float(likelihood_60(model, p, x, t_x, mp.mpf(T) + t)[0] / all_) for (x, t_x, T), (all_, _) in zip(rows, now)] for t in horizons]
    assert p_alive(model, named, *columns) == pytest.approx([float(a) for a in alive], rel=EXACT, abs=1e-200)
    assert expected_purchases(model, named, horizons, *columns) == pytest.approx(np.array(expected), rel=EXACT, abs=1e-200)
    assert p_zero(model, named, horizons, *columns) == pytest.approx(np.array(later), rel=0, abs=EXACT)


def test_p_alive_of_pareto_keeps_its_digits_with_thousands_of_purchases():
    "It comes from odds, not from a difference of log-likelihoods of tens of thousands."
    rows = [(3000, 699.9, 700), (3000, 699, 700), (3000, 695, 700), (5000, 199.99, 200), (20_000, 1000, 1000.1)]
    with mp.workdps(60):
        now = [likelihood_60("pareto_nbd", [mp.mpf(v) for v in PARETO.values()], *row) for row in rows]
        theirs = [float(here / all_) for all_, here in now]
    assert p_alive("pareto_nbd", PARETO, *np.transpose(rows).astype(float)) == pytest.approx(theirs, rel=2e-14)


@pytest.mark.parametrize("model", MODELS)
def test_numbers_of_purchases_against_60_digits(model):
    "P(j) from stories: by Poisson purchases until a known moment, integrated over rates and moments in closed form or by mpmath's quad."
    for parameters in extremes(model)[0][:2] + extremes(model)[0][6:8]:
        for x, T, t in ((0, 0, 7), (30, 50, 20)):
            with mp.workdps(30):
                ahead = AHEAD_60[model](*(mp.mpf(v) for v in parameters), x, mp.mpf(T))
                chances = [float(pmf_60(model, ahead, mp.mpf(t), j)) for j in (0, 1, 2, 9)]
            ours = predictions._PMF[model](*(np.array([float(v)]) for v in ahead), t, 9)[[0, 1, 2, 9], 0]
            assert ours == pytest.approx(chances, rel=1e-9, abs=1e-16), (parameters, x)


def pmf_60(model, p, t, j):
    "Probability of j purchases until t of somebody new who is alive."
    if model == "bgbb":
        alpha, beta, gamma, delta = p
        gave = lambda i: mp.binomial(i, j) * mp.beta(alpha + j, beta + i - j) / mp.beta(alpha, beta) if i >= j else 0
        last = lambda i: mp.beta(gamma + (i < t), delta + i) / mp.beta(gamma, delta)
        return sum(gave(i) * last(i) for i in range(int(t) + 1))
    r, alpha, a, b = p
    bought = lambda i, u: mp.rf(r, i) / mp.factorial(i) * (alpha / (alpha + u)) ** r * (u / (alpha + u)) ** i
    if model == "pareto_nbd":
        peaks = sorted({mp.mpf(0), t, *(u for k in (j + mp.mpf(1) / 9, j / 2, 2 * j + 1) if (u := alpha * k / r) < t), *(t * mp.mpf(10) ** -k for k in (1, 2, 4))})
        return (b / (b + t)) ** a * bought(j, t) + mp.quad(lambda u: a / b * (b / (b + u)) ** (a + 1) * bought(j, u), peaks)
    left = mp.beta(a + 1, b + j - 1) / mp.beta(a, b) * (1 - sum(bought(i, t) for i in range(j))) if j else 0
    return mp.beta(a, b + j) / mp.beta(a, b) * bought(j, t) + left


# ---- against lifetimes ----


@pytest.fixture(scope="module")
def lifetimes_models():
    if not find_spec("lifetimes"): pytest.skip("lifetimes is not installed")
    import lifetimes

    def with_parameters(fitter, parameters):
        fitter.params_ = pd.Series(parameters)
        return fitter

    return dict(bgnbd=with_parameters(lifetimes.BetaGeoFitter(), BG), mbgnbd=with_parameters(lifetimes.ModifiedBetaGeoFitter(), MBG),
                pareto_nbd=with_parameters(lifetimes.ParetoNBDFitter(), PARETO), bgbb=with_parameters(lifetimes.BetaGeoBetaBinomFitter(), DONORS),
                spend=with_parameters(lifetimes.GammaGammaFitter(), dict(p=6.25, q=3.744, v=15.447)))  # fmt: skip


def histories(seed, n=400, most=25, age=60):
    rng = np.random.default_rng(seed)
    x, T = rng.integers(0, most, n), rng.uniform(1, age, n)
    return x, np.where(x > 0, T * rng.uniform(0.05, 1, n), 0), T


def donations():
    x, t_x, n = (c.ravel() for c in np.meshgrid(np.arange(8), np.arange(8), np.arange(1, 8)))
    real = (x <= t_x) & (t_x <= n) & ((x > 0) == (t_x > 0))
    return x[real], t_x[real], n[real]


@pytest.mark.parametrize("model", CDNOW)
def test_lifetimes_says_the_same_of_people_who_buy_at_any_time(model, lifetimes_models):
    theirs, people = lifetimes_models[model], histories(1)
    tolerance = 1e-6 if model == "pareto_nbd" else 1e-9  # differences of 2F1 lose digits there
    assert p_alive(model, CDNOW[model], *people) == pytest.approx(np.asarray(theirs.conditional_probability_alive(*people)), rel=tolerance)
    for t in (0.5, 13, 104):
        expected = theirs.conditional_expected_number_of_purchases_up_to_time(t, *people)
        assert expected_purchases(model, CDNOW[model], t, *people) == pytest.approx(np.asarray(expected), rel=tolerance)
        assert expected_purchases_new(model, CDNOW[model], t) == pytest.approx(theirs.expected_number_of_purchases_up_to_time(t), rel=1e-9)


def test_lifetimes_says_the_same_of_donors(lifetimes_models):
    theirs, (x, t_x, n) = lifetimes_models["bgbb"], donations()
    assert p_alive("bgbb", DONORS, x, t_x, n) == pytest.approx(theirs.conditional_probability_alive(0, x, t_x, n), rel=1e-9)
    for t in (1, 5, 40):
        expected = theirs.conditional_expected_number_of_purchases_up_to_time(t, x, t_x, n)
        assert expected_purchases("bgbb", DONORS, t, x, t_x, n) == pytest.approx(expected, rel=1e-9)
    theirs.data = pd.DataFrame({"frequency": np.arange(7), "weights": np.arange(7) == 0})
    assert pmf_new("bgbb", DONORS, 6, 5) == pytest.approx(theirs.expected_number_of_transactions_in_first_n_periods(6).model[:6].to_numpy(), rel=1e-9)


@pytest.mark.parametrize("model", ["bgnbd", "mbgnbd"])
def test_lifetimes_has_the_same_distribution_for_new_people(model, lifetimes_models):
    expected = [lifetimes_models[model].probability_of_n_purchases_up_to_time(39, n) for n in range(30)]
    assert pmf_new(model, CDNOW[model], 39, 29) == pytest.approx(expected, rel=1e-8)


def test_lifetimes_has_the_same_distribution_under_pareto(lifetimes_models):
    for x, t_x, T in [(0, 0, 20), (2, 30.43, 38.86), (9, 12, 14)]:
        expected = [float(lifetimes_models["pareto_nbd"].conditional_probability_of_n_purchases_up_to_time(n, 26, x, t_x, T)) for n in range(12)]
        assert pmf_future("pareto_nbd", PARETO, 26, x, t_x, T, 11) == pytest.approx(expected, abs=1e-9)


def test_lifetimes_expects_the_same_order_values(lifetimes_models):
    x, spend = np.array([0, 1, 2, 7, 300]), np.array([0, 3.5, 22.35, 400, 36])
    expected = lifetimes_models["spend"].conditional_expected_average_profit(x, spend)
    assert expected_spend(dict(p=6.25, q=3.744, v=15.447), x, spend) == pytest.approx(expected, rel=1e-12)


# ---- against simulated people: the stories themselves, no formula ----

N, T0, AHEAD = 300_000, 40.0, 30.0
PLANTED = dict(bgnbd=dict(r=0.6, alpha=5.0, a=0.8, b=2.5), mbgnbd=dict(r=0.6, alpha=5.0, a=0.8, b=2.5),
               pareto_nbd=dict(r=0.6, alpha=6.0, s=0.7, beta=12.0), bgbb=dict(alpha=1.2, beta=0.75, gamma=0.65, delta=2.8))  # fmt: skip


def simulated(model, seed=3):
    "x, t_x, T and what N people did in the horizon after T."
    rng, p = np.random.default_rng(seed), PLANTED[model]
    if model == "bgbb":
        return simulated_donors(rng, **p)
    rate = rng.gamma(p["r"], 1 / p["alpha"], N)
    if model == "pareto_nbd":
        leaves = rng.exponential(1 / rng.gamma(p["s"], 1 / p["beta"], N))
        until, after = np.minimum(leaves, T0), np.clip(leaves - T0, 0, AHEAD)
        x = rng.poisson(rate * until)
        return x, np.where(x > 0, until * rng.uniform(size=N) ** (1 / np.maximum(x, 1)), 0), T0, rng.poisson(rate * after)
    chance = rng.beta(p["a"], p["b"], N)
    stays = np.floor(np.log(rng.uniform(size=N)) / np.log1p(-chance))  # purchases survived before the one after which they leave
    allowed = stays + (model == "bgnbd")  # with MBG, the first purchase is already a chance to leave
    would, wants = rng.poisson(rate * T0), rng.poisson(rate * AHEAD)
    x = np.minimum(would, allowed)
    t_x = np.where(x > 0, T0 * rng.beta(np.maximum(x, 1), would + 1 - np.minimum(x, would)), 0)
    return x, t_x, T0, np.minimum(wants, allowed - x)


def simulated_donors(rng, alpha, beta, gamma, delta, years=8, ahead=6):
    buy, leave = rng.beta(alpha, beta, N), rng.beta(gamma, delta, N)
    alive = (rng.uniform(size=(years + ahead, N)) >= leave).cumprod(axis=0)
    gave = alive * (rng.uniform(size=(years + ahead, N)) < buy)
    past = gave[:years]
    return past.sum(0), (past * np.arange(1, years + 1)[:, None]).max(0), years, gave[years:].sum(0)


@pytest.fixture(scope="module")
def people():
    return {model: simulated(model) for model in PLANTED}


def horizon(model):
    return 6 if model == "bgbb" else AHEAD


@pytest.mark.parametrize("model", PLANTED)
def test_simulated_people_do_what_was_expected_of_them(model, people):
    "By purchases and thirds of t_x: how many came not at all, and how often all of them came; and by number of purchases."
    x, t_x, T, came = people[model]
    t = horizon(model)
    history = pd.DataFrame(dict(x=x, t_x=t_x, came=came, none=came == 0))
    history["expected"] = expected_purchases(model, PLANTED[model], t, x, t_x, T)
    history["zero"] = p_zero(model, PLANTED[model], t, x, t_x, T)
    history["third"] = np.minimum(3 * t_x // T, 2)
    history["apart"] = (history.came - history.expected) ** 2
    history["spread"] = history.zero * (1 - history.zero)
    cells = history.groupby([history.x.clip(upper=12), "third"]).agg(n=("x", "size"), **{c: (c, "sum") for c in ("came", "none", "expected", "zero", "apart", "spread")})
    cells = cells[cells.n >= 200]
    assert len(cells) > 10
    assert ((cells.none - cells.zero) / np.sqrt(cells.spread)).abs().max() < 4
    cells = cells[cells.n - cells.zero >= 50]  # of fewer, the mean is not normal
    assert len(cells) > 10
    assert ((cells.came - cells.expected) / np.sqrt(cells.apart)).abs().max() < 4


@pytest.mark.parametrize("model", PLANTED)
def test_simulated_numbers_are_distributed_as_expected(model, people):
    x, t_x, T, came = people[model]
    for chosen in (x == 0, (x == 2) & (t_x > T / 2), x >= 6):
        chances = pmf_future(model, PLANTED[model], horizon(model), x[chosen], t_x[chosen], T, 6)
        seen = (came[chosen] == np.arange(7)[:, None]).sum(1)
        spread = np.sqrt((chances * (1 - chances)).sum(1))
        assert np.abs((seen - chances.sum(1)) / np.maximum(spread, 1)).max() < 4


@pytest.mark.parametrize("model", PLANTED)
def test_simulated_people_start_as_new_people_should(model, people):
    x, _, T, _ = people[model]
    chances = pmf_new(model, PLANTED[model], T, 8)
    seen = (x == np.arange(9)[:, None]).mean(1)
    assert np.abs((seen - chances) / np.sqrt(chances * (1 - chances) / N)).max() < 4
    assert abs(x.mean() - expected_purchases_new(model, PLANTED[model], T)) < 4 * x.std() / np.sqrt(N)


# ---- what must hold anywhere ----

positive = st.floats(-7, 7).map(lambda v: float(np.exp(v)))
buyers = st.tuples(st.integers(0, 5000), st.floats(0.001, 1), st.floats(1e-3, 1e5))
horizons_of = st.lists(st.one_of(st.just(0.0), st.floats(-9, 12).map(lambda v: float(np.exp(v)))), min_size=2, max_size=4).map(sorted)


def a_case(model, parameters, people, ahead):
    named = dict(zip(MODELS[model], parameters))
    x, share, T = (np.array(c) for c in zip(*people))
    if model != "bgbb": return named, np.where(x > 0, T * share, 0), x, T, np.array(ahead)
    T = np.floor(T % 60)
    x = np.floor(np.minimum(x, T))
    return named, np.where(x > 0, x + np.floor((T - x) * share), 0), x, T, np.floor(np.minimum(ahead, 300))


@pytest.mark.parametrize("model", MODELS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.tuples(positive, positive, positive, positive), st.lists(buyers, min_size=1, max_size=4), horizons_of)
def test_predictions_are_possible_whatever_goes_in(model, parameters, people, ahead):
    named, t_x, x, T, ahead = a_case(model, parameters, people, ahead)
    alive, zero, expected = p_alive(model, named, x, t_x, T), p_zero(model, named, ahead, x, t_x, T), expected_purchases(model, named, ahead, x, t_x, T)
    assert ((alive >= 0) & (alive <= 1)).all() and ((zero >= 0) & (zero <= 1)).all() and (np.isfinite(expected) & (expected >= 0)).all()
    assert (zero >= 1 - alive - 1e-12).all() and (zero >= 1 - expected - 1e-10).all()  # Markov
    assert (np.diff(expected, axis=0) >= -1e-11 * expected[1:]).all() and (np.diff(zero, axis=0) <= 1e-11).all()
    assert (expected[ahead == 0] == 0).all() and (zero[ahead == 0] == 1).all()
    chances = pmf_future(model, named, ahead[-1], x, t_x, T, 6)
    assert ((chances >= 0) & (chances <= 1)).all() and (chances.sum(0) <= 1 + 1e-10).all()
    assert chances[0] == pytest.approx(zero[-1], abs=1e-12)
    assert ((np.arange(7)[:, None] * chances).sum(0) <= expected[-1] * (1 + 1e-9) + 1e-12).all()


@pytest.mark.parametrize("model", EVERY)
@pytest.mark.parametrize("history", [(0, 0, 0), (0, 0, 30), (4, 20, 30), (4, 30, 30), (30, 30, 30)])
def test_the_mean_of_the_numbers_is_what_is_expected(model, history):
    t, most = (12, 12) if model == "bgbb" else (20, 3000)
    chances = pmf_future(model, EVERY[model], t, *history, most)
    assert chances.sum() == pytest.approx(1, abs=1e-9)
    assert chances @ np.arange(most + 1) == pytest.approx(expected_purchases(model, EVERY[model], t, *history), rel=1e-9)
    assert chances[0] == pytest.approx(p_zero(model, EVERY[model], t, *history), abs=1e-13)


@pytest.mark.parametrize("model", CDNOW)
def test_a_horizon_may_be_cut_in_two(model):
    "Who comes not in 20 weeks comes not in the first 8, nor, with that known, in the next 12."
    x, t_x, T = histories(5)
    both = p_zero(model, CDNOW[model], 8, x, t_x, T) * p_zero(model, CDNOW[model], 12, x, t_x, T + 8)
    assert p_zero(model, CDNOW[model], 20, x, t_x, T) == pytest.approx(both, rel=1e-9)
    assert p_alive(model, CDNOW[model], x, t_x, T + 8) == pytest.approx(
        p_alive(model, CDNOW[model], x, t_x, T) * still_there_and_silent(model, x, T, 8) / p_zero(model, CDNOW[model], 8, x, t_x, T), rel=1e-8)  # fmt: skip


def still_there_and_silent(model, x, T, t):
    "Given alive at T: alive at T + t without a purchase."
    p = CDNOW[model]
    silent = ((p["alpha"] + T) / (p["alpha"] + T + t)) ** (p["r"] + x)
    return silent * ((p["beta"] + T) / (p["beta"] + T + t)) ** p["s"] if model == "pareto_nbd" else silent


@pytest.mark.parametrize("model", EVERY)
def test_expectations_pass_through_their_singular_places(model):
    "a = 1, s = 1, gamma = 1, a + b = 1: a parameter a little to the left and right gives nearly the same."
    history = (2, 4, 6) if model == "bgbb" else (2, 30.0, 40.0)
    name = {"pareto_nbd": "s", "bgbb": "gamma"}.get(model, "a")
    for at in (1.0, 1 - EVERY[model].get("b", 0.5) % 1):
        values = [expected_purchases(model, EVERY[model] | {name: at * (1 + d)}, 5, *history) for d in (-1e-7, 0, 1e-7)]
        assert values[1] == pytest.approx((values[0] + values[2]) / 2, rel=1e-12)


@pytest.mark.parametrize("model", CDNOW)
def test_the_unit_of_time_does_not_matter(model):
    x, t_x, T = histories(6)
    days = CDNOW[model] | {name: CDNOW[model][name] * 7 for name in ("alpha", "beta") if name in CDNOW[model]}
    assert p_zero(model, days, 70, x, t_x * 7, T * 7) == pytest.approx(p_zero(model, CDNOW[model], 10, x, t_x, T), rel=1e-10)
    assert expected_purchases(model, days, 70, x, t_x * 7, T * 7) == pytest.approx(expected_purchases(model, CDNOW[model], 10, x, t_x, T), rel=1e-10)


# ---- members, parameters and horizons in any shape ----


@pytest.mark.parametrize("model", EVERY)
def test_many_members_are_as_many_single_ones(model):
    x, t_x, T = donations() if model == "bgbb" else histories(7, n=60)
    x, t_x, T = (np.tile(c, 2)[::-1] for c in (x, t_x, T))
    both = [f(model, EVERY[model], *t, x, t_x, T) for f, t in ((p_alive, ()), (expected_purchases, (3,)), (p_zero, (3,)))]
    alone = [[f(model, EVERY[model], *t, *row) for row in zip(x, t_x, T)] for f, t in ((p_alive, ()), (expected_purchases, (3,)), (p_zero, (3,)))]
    assert np.array(both) == pytest.approx(np.array(alone), rel=1e-11, abs=1e-13)
    assert pmf_future(model, EVERY[model], 3, x, t_x, T, 2)[:, 5] == pytest.approx(pmf_future(model, EVERY[model], 3, x[5], t_x[5], T[5], 2), abs=1e-13)


@pytest.mark.parametrize("model", EVERY)
def test_parameters_may_differ_by_member(model):
    x, t_x, T = np.array([0, 2, 2, 5]), np.array([0, 3, 3, 6]), np.array([6, 6, 6, 6])
    two = {name: np.array([v, v, v * 1.5, v]) for name, v in EVERY[model].items()}
    one = [EVERY[model], EVERY[model], {k: v * 1.5 for k, v in EVERY[model].items()}, EVERY[model]]
    for f, t in ((p_alive, ()), (expected_purchases, (4,)), (p_zero, (4,))):
        assert f(model, two, *t, x, t_x, T) == pytest.approx([f(model, p, *t, *row) for p, *row in zip(one, x, t_x, T)], rel=1e-11)
    assert pmf_new(model, two, 4, 3)[:, 2] == pytest.approx(pmf_new(model, one[2], 4, 3), rel=1e-11)
    assert expected_purchases_new(model, two, [2, 4]).shape == (2, 4)
    mixed = EVERY[model] | {MODELS[model][0]: two[MODELS[model][0]]}  # one parameter differs, for one history
    assert p_zero(model, mixed, 4, 2, 3, 6).shape == (4,)


@pytest.mark.parametrize("model", EVERY)
def test_shapes(model):
    x, t_x, T = np.array([0, 2, 3]), np.array([0, 3, 6]), np.array([6, 6, 6])
    p, frame = EVERY[model], pd.DataFrame(dict(x=x, t_x=t_x, T=T), index=[7, 8, 9])
    for f in (expected_purchases, p_zero):
        assert [f(model, p, t, x, t_x, T).shape for t in (2, [2], [2, 3])] == [(3,), (1, 3), (2, 3)]
        assert [f(model, p, t, 2, 3, 6).shape for t in (2, [2, 3])] == [(), (2,)]
        assert f(model, p, [2, 3], [], [], []).shape == (2, 0)
        assert f(model, p, 2, frame.x, frame.t_x, frame["T"]).tolist() == f(model, p, 2, x, t_x, T).tolist()
    assert [p_alive(model, p, *h).shape for h in ((x, t_x, T), (2, 3, 6), (x[:, None], t_x[:, None], T), ([], [], []))] == [(3,), (), (3, 3), (0,)]
    assert [pmf_future(model, p, 2, *h, 4).shape for h in ((x, t_x, T), (2, 3, 6), ([], [], []))] == [(5, 3), (5,), (5, 0)]
    assert (pmf_new(model, p, 3, 4).shape, expected_purchases_new(model, p, 3).shape, expected_purchases_new(model, p, [3, 4]).shape) == ((5,), (), (2,))


def test_inputs_stay_as_they_are():
    x, t_x, T = histories(8)
    before = [c.copy() for c in (x, t_x, T)]
    for model in CDNOW:
        expected_purchases(model, CDNOW[model], [1, 2], x, t_x, T)
        pmf_future(model, CDNOW[model], 2, x, t_x, T, 3)
    assert all((a == b).all() for a, b in zip(before, (x, t_x, T)))


def test_distinct_rows_are_found_whatever_they_are():
    rng = np.random.default_rng(2)
    for columns in ([rng.integers(0, 9, 500).astype(float), rng.integers(0, 9, 500) / 7], [rng.normal(size=500)] * 3,
                    [rng.integers(0, 3, 500) * 1e12, rng.integers(0, 3, 500).astype(float), rng.integers(-3, 3, 500).astype(float)]):  # fmt: skip
        first, kind = predictions._distinct(columns, 500)
        assert all((c[first][kind] == c).all() for c in columns)
        assert len(first) == len(pd.DataFrame(dict(enumerate(columns))).drop_duplicates())


# ---- what is refused ----


@pytest.mark.parametrize("f, message", [
    (lambda: p_alive("pareto", PARETO, 0, 0, 1), "Did you mean 'pareto_nbd'?"),
    (lambda: p_alive("bgnbd", PARETO, 0, 0, 1), "bgnbd needs the parameters r, alpha, a, b; a, b is not among those given"),
    (lambda: p_zero("bgnbd", BG | dict(alpha=np.array([1, np.nan])), 1, 0, 0, 1), "alpha of bgnbd must be positive and finite, not nan"),
    (lambda: p_alive("mbgnbd", MBG, [1, 1, 2], [2, 3, 9], [3, 2, 8]), "t_x must lie between 0 and T: 2 of 3 rows break this; first values: 3, 9. `btyd_summary`"),
    (lambda: p_alive("bgnbd", BG, 0, 3, 8), "t_x must be above 0 where x is, and 0 where x is 0"),
    (lambda: p_alive("bgnbd", BG, 1.5, 3, 8), "x must be a whole number of repeat purchases"),
    (lambda: p_alive("bgnbd", BG, 1, np.nan, 8), "t_x must lie between 0 and T"),
    (lambda: p_alive("bgnbd", BG, 1, 1, np.inf), "T must be a number of periods"),
    (lambda: p_alive("bgbb", DONORS, 3, 2, 6), "x must not be larger than t_x"),
    (lambda: p_alive("bgbb", DONORS, 1, 2.5, 6), "t_x must be a whole number of opportunities"),
    (lambda: p_alive("bgbb", DONORS, 1, 2, 6.5), "T must be a whole number of opportunities"),
    (lambda: p_zero("bgnbd", BG, -1, 0, 0, 1), "t must be a horizon from 0 on"),
    (lambda: p_zero("bgnbd", BG, [[1]], 0, 0, 1), "t must be a horizon from 0 on"),
    (lambda: expected_purchases("bgbb", DONORS, 2.5, 0, 0, 1), "whole number of opportunities"),
    (lambda: pmf_future("bgnbd", BG, [1, 2], 0, 0, 1, 3), "one horizon at a time, not 2"),
    (lambda: pmf_new("bgnbd", BG, 3, -1), "most must be a whole number"),
    (lambda: expected_spend(dict(p=6, v=15), 1, 1), "gamma_gamma needs the parameters p, q, v; q is not among those given"),
    (lambda: expected_spend(dict(p=6, q=1, v=15), 1, 1), "have a mean only where q > 1. Fit again"),
    (lambda: expected_spend(dict(p=6, q=2, v=15), [1, 2, 0], [3, -1, np.nan]), "mean_spend must be positive where x is: 1 of 3 rows"),
    (lambda: expected_spend(dict(p=6, q=2, v=15), 1, np.nan), "mean_spend must be positive where x is: 1 of 1 rows"),
    (lambda: expected_spend(dict(p=6, q=2, v=15), -1, 2), "x must be a number of orders from 0 on")])  # fmt: skip
def test_refusals_say_what_to_do(f, message):
    with pytest.raises(ParameterError) as refusal: f()
    assert message in str(refusal.value)
