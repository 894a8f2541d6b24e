"Predictions of members against planted truth, lifetimes, the other engine, and questions that make no sense."

import warnings

import numpy as np
import pandas as pd
import pytest
from histories import engine
from lifetime_worlds import PLANTED, repeat_world, spend_world
from scipy.stats import binom, norm

from memtag_research.core import ParameterError
from memtag_research.data.engine import as_table, to_frame
from memtag_research.models.btyd import btyd_groups
from memtag_research.models.clv import outcome_interval, predict_groups, predict_members, value_at_stake
from memtag_research.models.fits import Fit, fit_bgnbd, fit_gamma_gamma, fit_mbgnbd, fit_pareto_nbd, fit_sbg, to_lifetimes

REPEAT = {"bgnbd": fit_bgnbd, "mbgnbd": fit_mbgnbd, "pareto_nbd": fit_pareto_nbd}
DOUBT = 1e-6
pytestmark = pytest.mark.filterwarnings("ignore:The 'mode.chained_assignment'")


def with_money(world, seed=0):
    spend = spend_world(len(world), seed)
    return world.assign(member_id=[f"m{i:05d}" for i in range(len(world))], repeat_mean_cents=spend.repeat_mean_cents.where(world.x > 0))


@pytest.fixture(scope="module", params=REPEAT)
def world(request):
    "30,000 members with what they did in the 26 weeks after, and a fit."
    frame = with_money(repeat_world(request.param, 30_000, seed=77, future=26.0))
    return request.param, frame, REPEAT[request.param](frame)


def in_classes(prediction, n=12):
    "Members in classes of equal size by prediction; equal predictions stay together."
    return pd.qcut(prediction, n, duplicates="drop", labels=False)


def test_planted_deaths(world):
    "In each class of p_alive as many live as it says: within chance and the error of the fit."
    _, frame, fit = world
    made = predict_members(frame, fit, horizon_days=182)
    for _, part in made.groupby(in_classes(made.p_alive)):
        gap, error = part.alive.mean() - part.p_alive.mean(), np.sqrt((part.p_alive * (1 - part.p_alive)).sum()) / len(part)
        assert abs(gap) < -norm.ppf(DOUBT) * error + 0.015
    assert frame.alive.mean() == pytest.approx(made.p_alive.mean(), abs=0.015)


def test_planted_purchases(world):
    "Purchases and empty hands of the 26 weeks after, class by class; and 1 - p_alive is not p_zero."
    _, frame, fit = world
    made = predict_members(frame, fit, horizon_days=182)
    for _, part in made.groupby(in_classes(made.expected_purchases)):
        error = part.x_future.std() / np.sqrt(len(part))
        assert abs(part.x_future.mean() - part.expected_purchases.mean()) < 5 * error + 0.04 * part.expected_purchases.mean()
    for _, part in made.groupby(in_classes(made.p_zero)):
        empty, error = (part.x_future == 0).mean(), np.sqrt((part.p_zero * (1 - part.p_zero)).sum()) / len(part)
        assert abs(empty - part.p_zero.mean()) < 5 * error + 0.015
    assert ((made.p_zero > 1 - made.p_alive - 1e-12).all()) and (made.p_zero - (1 - made.p_alive)).mean() > 0.05


def test_outcomes_are_in_their_intervals(world):
    "90 % intervals of single members hold what came for at least so many (counts are whole, so they hold for more)."
    _, frame, fit = world
    some = frame.sample(150, random_state=3)
    hits = 0
    for m in some.itertuples():
        found = outcome_interval(fit, int(m.x), m.t_x, m.T, 182, draws=30)
        hits += found["purchases_low"] <= m.x_future <= found["purchases_high"]
    assert binom.cdf(hits, len(some), 0.9) > DOUBT and hits < len(some)


def test_money_is_in_its_interval():
    "Members whose rate of spending and next orders are planted: what they spend lies in 90 % intervals nine times in ten."
    p, rng = PLANTED["gamma_gamma"], np.random.default_rng(6)
    buying, n = fit_bgnbd(repeat_world("bgnbd", 5000, 3)), 400
    spend = fit_gamma_gamma(spend_world(20_000, 5))
    x, rate = rng.geometric(0.3, n), rng.gamma(p["q"], 1 / p["v"], n)
    mean = 100 * rng.gamma(p["p"] * x, 1 / rate) / x
    chances = np.zeros(6)
    chances[5] = 1.0
    from memtag_research.models import clv
    hits = 0
    for i in range(n):     # five orders for certain, so that only spend varies
        found = clv._money(chances, spend, x[i], mean[i] / 100, 0.9, 40, seed=i)
        hits += found["spend_low_cents"] <= 100 * rng.gamma(p["p"] * 5) / rate[i] <= found["spend_high_cents"]
    assert binom.cdf(hits, n, 0.9) > 1e-4 and binom.sf(hits - 1, n, 0.9) > 1e-4
    assert set(outcome_interval(buying, 2, 10, 20, 90, spend, 500.0)) == {"expected_purchases", "purchases_low", "purchases_high", "spend_low_cents", "spend_high_cents"}


def test_lifetimes_has_the_same_value():
    "Twelve months of 30 days: lifetimes discounts at the end of each month, ours in the middle; so its value is lower by half a month."
    frame = with_money(repeat_world("bgnbd", 2000, 9)).assign(T=lambda d: d["T"].clip(lower=1))
    fit, spend = fit_bgnbd(frame), fit_gamma_gamma(frame)
    ours = predict_members(frame, fit, spend, horizon_days=360, discount_rate_annual=0.1)
    theirs = to_lifetimes(fit, frame)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = to_lifetimes(spend, frame).customer_lifetime_value(theirs, frame.x, frame.t_x, frame["T"], frame.repeat_mean_cents.fillna(0) / 100,
                                                                   time=12, discount_rate=1.1 ** (30 / 365.25) - 1, freq="W")
        expected = theirs.conditional_expected_number_of_purchases_up_to_time(360 / 7, frame.x, frame.t_x, frame["T"])
    np.testing.assert_allclose(ours.expected_purchases, expected, rtol=1e-6)
    ratio = ours.clv_cents / (100 * value)
    assert ratio.between(0.97, 1.05).all()        # its months are 4 weeks and a bit, ours 30 days


def test_discounting():
    frame = with_money(repeat_world("pareto_nbd", 500, 2))
    fit = fit_pareto_nbd(frame)
    groups = btyd_groups(frame)
    none, some, short = (predict_groups(fit, groups, h, r) for h, r in ((730, 0.0), (730, 0.2), (10, 0.2)))
    np.testing.assert_allclose(none.discounted_purchases, none.expected_purchases, rtol=1e-9)
    assert (some.discounted_purchases < some.expected_purchases).all() and (some.discounted_purchases > some.expected_purchases / 1.2**2).all()
    np.testing.assert_allclose(short.discounted_purchases / short.expected_purchases, 1.2 ** (-5 / 365.25), rtol=1e-9)


def test_frames_tables_and_covariates():
    rng = np.random.default_rng(3)
    app = rng.integers(0, 2, 3000)
    frame = with_money(repeat_world("bgnbd", 3000, 4, buying=np.exp(0.8 * app))).assign(app=app)
    frame[["t_x", "T"]] = frame[["t_x", "T"]].round(2)
    fit, spend = fit_bgnbd(frame, covariates={"buying": ["app"]}), fit_gamma_gamma(frame)
    one, two = predict_members(frame, fit, spend, draws=25), to_frame(predict_members(as_table(frame, engine()), fit, spend, draws=25).order_by("member_id"))
    pd.testing.assert_frame_equal(one, two[one.columns], check_dtype=False, rtol=1e-9)
    new = one[one.x == 0].groupby("app").expected_purchases.mean()
    assert new[1] > new[0]
    assert len(one) == 3000 and one.member_id.tolist() == frame.member_id.tolist()


def test_spark_gives_the_same(spark):
    frame = with_money(repeat_world("mbgnbd", 400, 4))
    fit, spend = fit_mbgnbd(frame), fit_gamma_gamma(frame)
    here = predict_members(frame, fit, spend, draws=20)
    there = to_frame(predict_members(as_table(frame, spark), fit, spend, draws=20).order_by("member_id"))
    pd.testing.assert_frame_equal(here, there[here.columns], check_dtype=False, rtol=1e-9)


def test_intervals_narrow_with_data():
    small, large = (with_money(repeat_world("bgnbd", n, 5)) for n in (800, 12_800))
    width = [((m := predict_members(f, fit_bgnbd(f), draws=100)).purchases_high / m.purchases_low).median() - 1 for f in (small, large)]
    assert 2.5 < width[0] / width[1] < 6.5      # sixteen times the members, a quarter of the width


def test_mistakes():
    frame = with_money(repeat_world("bgnbd", 400, 1))
    fit, spend = fit_bgnbd(frame), fit_gamma_gamma(frame)
    for given, (value, said) in {"fit": (fit_sbg([100, 60, 45, 30]), "not sbg"), "horizon_days": (-5, "whole number of days"), "margin": (0, "above 0"),
                        "discount_rate_annual": ("10%", "0.1 for 10 % a year"), "spend": (fit, "not bgnbd"), "draws": (3, "from 20 on")}.items():
        with pytest.raises(ParameterError, match=said):
            predict_members(**{"summary": frame, "fit": fit, "spend": spend} | {given: value})
    with pytest.raises(ParameterError, match="level must be a share"): predict_members(frame, fit, draws=20, level=95)
    with pytest.raises(ParameterError, match="lacks repeat_mean_cents"): predict_members(frame.drop(columns="repeat_mean_cents"), fit, spend)
    assert "clv_cents" not in predict_members(frame, fit)


# What leaves with her

def lived(model, n, seed, ends):
    "Members at T, and their purchases until each of the times after it: the same lives, looked at again and again."
    worlds = [repeat_world(model, n, seed, future=end) for end in ends]
    assert all((w.x == worlds[0].x).all() and (w.t_x == worlds[0].t_x).all() for w in worlds)
    return worlds[0], np.stack([w.x_future for w in worlds])


@pytest.mark.parametrize("model", REPEAT)
def test_a_stake_is_the_mean_of_those_who_bought_less_that_of_those_who_did_not(model):
    "Planted members over 52 weeks: discounted purchases of those with and without one in the first 8, by x, by recency and in all."
    ends, n, rate = np.arange(2.0, 52.1, 2.0), 60_000, .5      # a rate at which time matters
    world, counts = lived(model, n, 91, ends)
    worth = (1 + rate) ** -((ends - 1) * 7 / 365.25) @ np.diff(counts, axis=0, prepend=0)
    fit, money = planted_fit(model), planted_fit("gamma_gamma")
    made = value_at_stake(world.assign(member_id=range(n), repeat_mean_cents=1000.0), fit, money, 56, 364, rate)
    one, bought = made.expected_spend_cents, counts[3] > 0
    quiet = (world["T"] - world.t_x) / world["T"]
    for part in (np.ones(n, bool), world.x == 0, world.x.between(1, 3), world.x > 6, (world.x > 1) & (quiet > .4), (world.x > 1) & (quiet < .1)):
        for name, these, chance in (("bought", bought, 1 - made.p_zero), ("not", ~bought, made.p_zero)):
            came, rows = worth[these & part], part & (chance > 1e-9)
            foretold = np.average(made[f"clv_{name}_cents"][rows] / one[rows], weights=chance[rows])
            assert abs(came.mean() - foretold) < 4.5 * came.std() / np.sqrt(len(came)) + .002 * foretold, (name, came.mean(), foretold)
    assert made.p_zero @ made.stake_cents == pytest.approx((made.clv_bought_cents - made.clv_cents).sum(), rel=1e-9)


def planted_fit(model):
    parameters = PLANTED[model]
    return Fit(model, dict(parameters), np.eye(len(parameters)) / 1e4, 0.0, 1, 1, None if model == "gamma_gamma" else 7)


@pytest.mark.parametrize("model", REPEAT)
def test_two_ways_make_one_value(model):
    "p_zero of the one and the rest of the other give the CLV; a horizon of churn_days has no later money; frames and tables agree."
    frame = with_money(repeat_world(model, 3000, 5))
    fit, money = planted_fit(model), planted_fit("gamma_gamma")
    made = value_at_stake(frame, fit, money, 56, margin=.4)
    both = made.p_zero * made.clv_not_cents + (1 - made.p_zero) * made.clv_bought_cents
    assert both.to_numpy() == pytest.approx(predict_members(frame, fit, money, margin=.4).clv_cents.to_numpy(), rel=1e-6, abs=1e-3)
    assert (made.stake_cents >= 0).all() and made.p_zero.between(0, 1).all()
    short = value_at_stake(frame, fit, money, 56, 56)
    assert (short.clv_not_cents == 0).all() and (short.p_zero == made.p_zero).all()
    table = to_frame(value_at_stake(as_table(frame.drop(columns="alive")), fit, money, 56, margin=.4)).sort_values("member_id")
    assert table.stake_cents.to_numpy() == pytest.approx(made.sort_values("member_id").stake_cents.to_numpy(), rel=1e-9)


def test_who_is_gone_has_nothing_to_lose():
    gone = pd.DataFrame({"member_id": ["a"], "x": [200], "t_x": [20.0], "T": [200.0], "repeat_mean_cents": [1000.0]})
    made = value_at_stake(gone, planted_fit("bgnbd"), planted_fit("gamma_gamma"), 56)
    assert made.p_zero[0] > 1 - 1e-9 and made.stake_cents[0] == 0 and made.clv_cents[0] < 1e-3


@pytest.mark.parametrize("churn_days, horizon, said", [(0, 365, "whole number of days"), (400, 365, "churn_days 400 or more")])
def test_stakes_of_impossible_windows(churn_days, horizon, said):
    frame = with_money(repeat_world("bgnbd", 10, 5))
    with pytest.raises(ParameterError, match=said):
        value_at_stake(frame, planted_fit("bgnbd"), planted_fit("gamma_gamma"), churn_days, horizon)
