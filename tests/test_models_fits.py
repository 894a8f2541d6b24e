"Fits against published figures, lifetimes, planted truth, and questions that have no answer."

import json
import warnings
from importlib.resources import files

import numpy as np
import pandas as pd
import pytest
from histories import engine
from lifetime_worlds import PLANTED, cdnow_summary, contracts, opportunities, repeat_world, spend_world
from scipy.stats import norm

from memtag_research.core import ConvergenceError, NotComputable, ParameterError
from memtag_research.data.engine import as_table
from memtag_research.models import fits
from memtag_research.models.btyd import btyd_groups
from memtag_research.models.fits import (
    MODELS,
    fit_bgbb,
    fit_bgnbd,
    fit_gamma_gamma,
    fit_mbgnbd,
    fit_pareto_nbd,
    fit_sbg,
    load_fit,
    save_fit,
    to_lifetimes,
)

REPEAT = {"bgnbd": fit_bgnbd, "mbgnbd": fit_mbgnbd, "pareto_nbd": fit_pareto_nbd}
SEEN = {"bgnbd": "BetaGeoFitter", "mbgnbd": "ModifiedBetaGeoFitter", "pareto_nbd": "ParetoNBDFitter"}
pytestmark = pytest.mark.filterwarnings("ignore:only .* members", "ignore:The 'mode.chained_assignment'", "ignore:invalid value")


@pytest.fixture(scope="module")
def cdnow():
    "x, t_x, T in weeks and mean repeat spend of the published calibration, from the summary that lifetimes ships."
    return cdnow_summary()


PUBLISHED = {  # model → estimates, standard errors, log-likelihood: Fader, Hardie and Lee (2005), clv_churn.md of the project's design
    "bgnbd": ([0.2426, 4.4136, 0.7929, 2.4259], [0.0126, 0.378, 0.186, 0.705], -9582.43),
    "mbgnbd": ([0.5248, 6.1830, 0.8914, 1.6140], None, None),
    "pareto_nbd": ([0.5533, 10.578, 0.6062, 11.669], [0.0476, 0.843, 0.187, 6.21], -9594.98)}


@pytest.mark.parametrize("model", PUBLISHED)
def test_published(cdnow, model):
    estimates, errors, value = PUBLISHED[model]
    fit = REPEAT[model](cdnow)
    np.testing.assert_allclose(list(fit.parameters.values()), estimates, rtol=2e-4)
    if errors: np.testing.assert_allclose(list(fit.errors.values()), errors, rtol=6e-3)
    if value: assert fit.log_likelihood == pytest.approx(value, abs=0.005)
    assert (fit.members, fit.groups) == (2357, 1016) and fit.slope < 1e-8


def test_published_spend_and_contracts(cdnow):
    spend = fit_gamma_gamma(cdnow)
    assert spend.members == 946 and spend.notes == ()
    np.testing.assert_allclose(list(spend.parameters.values()), [6.25, 3.744, 15.447], rtol=5e-4)
    regular, high = fit_sbg([1000, 631, 468, 382, 326, 289, 262, 241]), fit_sbg([1000, 869, 743, 653, 593, 551, 517, 491])
    assert [round(v, 3) for f in (high, regular) for v in f.parameters.values()] == [0.668, 3.806, 0.704, 1.182]
    assert [round(f.log_likelihood, 1) for f in (high, regular)] == [-1611.2, -1680.3]
    donations = pd.read_csv(files("lifetimes") / "datasets" / "donations.csv")
    donations = donations.rename(columns={"frequency": "x", "recency": "t_x", "periods": "n", "n_periods": "n", "weights": "members"})
    fit = fit_bgbb(donations[["x", "t_x", "n", "members"]])
    assert [round(v, 4) for v in fit.parameters.values()] == [1.2035, 0.7497, 0.6567, 2.7834] and fit.members == 11104
    assert fit.log_likelihood == pytest.approx(-33225.58, abs=0.005)


@pytest.mark.parametrize("model", REPEAT)
def test_lifetimes_finds_the_same_and_no_better(model):
    import lifetimes
    world = repeat_world(model, 1500, seed=11)
    ours = REPEAT[model](world, period_days=7)
    theirs = getattr(lifetimes, SEEN[model])()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.fit(world.x, world.t_x, world["T"])
    np.testing.assert_allclose(list(ours.parameters.values()), theirs.params_[list(ours.parameters)], rtol=5e-3)
    spec, groups = MODELS[model], btyd_groups(world)
    rows = spec.prepare(groups.x, groups.t_x, groups["T"])
    at_theirs = spec.likelihood(np.log(theirs.params_[list(ours.parameters)].to_numpy()), rows).value @ groups.members
    assert 0 <= ours.log_likelihood - at_theirs < 0.01
    if model != "pareto_nbd":      # lifetimes has no errors of Pareto/NBD
        np.testing.assert_allclose(list(ours.errors.values()), theirs.standard_errors_[list(ours.parameters)], rtol=2e-2)


def test_lifetimes_finds_the_same_spend():
    import lifetimes
    world = spend_world(2000, seed=3)
    ours, theirs = fit_gamma_gamma(world), lifetimes.GammaGammaFitter().fit(world.x, world.repeat_mean_cents / 100)
    np.testing.assert_allclose(list(ours.parameters.values()), theirs.params_[["p", "q", "v"]], rtol=2e-3)
    np.testing.assert_allclose(list(ours.errors.values()), theirs.standard_errors_[["p", "q", "v"]], rtol=2e-2)


# --- invariances

@pytest.mark.parametrize("model", REPEAT)
def test_members_groups_tables_and_any_order_are_one_question(model, cdnow):
    fit, groups = REPEAT[model](cdnow), btyd_groups(cdnow)
    for same in (groups, cdnow.sample(frac=1, random_state=4), as_table(cdnow[["x", "t_x", "T"]].reset_index(), engine())):
        again = REPEAT[model](same)
        assert again.parameters == pytest.approx(fit.parameters, rel=1e-9) and again.data_hash == fit.data_hash
    twice = REPEAT[model](groups.assign(members=groups.members * 2))
    assert twice.log_likelihood == pytest.approx(2 * fit.log_likelihood, rel=1e-12)
    np.testing.assert_allclose(twice.covariance, fit.covariance / 2, rtol=1e-6)


@pytest.mark.parametrize("model", REPEAT)
def test_the_unit_of_time_moves_scales_only(model, cdnow):
    weeks, days = REPEAT[model](cdnow), REPEAT[model](cdnow.assign(t_x=(cdnow.t_x * 7).round(), T=(cdnow["T"] * 7).round()), period_days=1)
    scale = {"alpha": 7, "beta": 7 if model == "pareto_nbd" else 1}
    assert days.parameters == pytest.approx({k: v * scale.get(k, 1) for k, v in weeks.parameters.items()}, rel=1e-6)
    assert days.log_likelihood == pytest.approx(weeks.log_likelihood - cdnow.x.sum() * np.log(7), rel=1e-10)


def test_many_groups_climb_from_a_part(monkeypatch):
    world = repeat_world("bgnbd", 6000, seed=5)
    whole = fit_bgnbd(world)
    monkeypatch.setattr(fits, "_MANY", 1000)
    part = fit_bgnbd(world)
    assert part.parameters == pytest.approx(whole.parameters, rel=1e-7) and part.iterations <= whole.iterations


# --- planted

CASES = {**{m: lambda seed, m=m: REPEAT[m](repeat_world(m, 3000, seed)) for m in REPEAT},
         "gamma_gamma": lambda seed: fit_gamma_gamma(spend_world(2000, seed)), "sbg": lambda seed: fit_sbg(contracts(3000, seed)),
         "bgbb": lambda seed: fit_bgbb(opportunities(4000, seed))}


@pytest.mark.parametrize("model", CASES)
def test_planted_parameters_are_near(model):
    "Within four standard errors on the logarithm, for each of three seeds; hundreds of seeds are a proof of its own."
    for seed in range(3):
        fit = CASES[model](seed)
        z = (np.log(list(fit.parameters.values())) - np.log([PLANTED[model][p] for p in fit.parameters])) / np.sqrt(np.diag(fit.covariance))
        assert (np.abs(z) < 4).all(), (seed, fit.parameters)


@pytest.mark.parametrize("model", REPEAT)
def test_covariates_of_no_effect_equal_the_plain_model(model, cdnow):
    "At coefficients of 0 the likelihood is the plain one, whatever the covariate; fitted, they gain what chance gains."
    rng = np.random.default_rng(1)
    frame = cdnow.assign(coin=rng.integers(0, 2, len(cdnow)))
    plain, more = REPEAT[model](cdnow), REPEAT[model](frame, covariates={"buying": ["coin"], "leaving": ["coin"]})
    assert list(more.parameters)[4:] == ["buying.coin", "leaving.coin"]
    assert 0 <= more.log_likelihood - plain.log_likelihood < 7           # χ²(2) / 2 is below 7 in 999 of 1,000
    for name in ("buying.coin", "leaving.coin"): assert abs(more.parameters[name]) < 4 * more.errors[name]
    groups, spec = btyd_groups(frame, by=["coin"]), MODELS[model]
    rows, design = spec.prepare(groups.x, groups.t_x, groups["T"]), fits._design(spec, more.covariates, groups)
    at_zero = fits._sums(spec, rows, groups.members.to_numpy(float), design)(np.array([*plain._logs(), 0, 0]))
    assert at_zero[0] == pytest.approx(plain.log_likelihood, rel=1e-12)
    np.testing.assert_allclose(at_zero[2][:4, :4], -np.linalg.inv(plain.covariance), rtol=1e-6)


@pytest.mark.parametrize("model", REPEAT)
def test_planted_covariates_are_found(model):
    rng = np.random.default_rng(8)
    app, city = rng.integers(0, 2, 8000), rng.normal(size=8000)
    world = repeat_world(model, 8000, 21, buying=np.exp(0.6 * app - 0.3 * city), leaving=np.exp(0.5 * app)).assign(app=app, city=city.round(1))
    fit = REPEAT[model](world, covariates={"buying": ["app", "city"], "leaving": ["app"]})
    for name, planted in {"buying.app": 0.6, "buying.city": -0.3, "leaving.app": 0.5}.items():
        assert abs(fit.parameters[name] - planted) < 4 * fit.errors[name], (name, fit.table())
    assert abs(fit.parameters["buying.app"]) > 4 * fit.errors["buying.app"]


# --- what a fit tells

def test_intervals_and_draws(cdnow):
    fit = fit_bgnbd(cdnow)
    table, draws = fit.table(0.9), fit.draws(40_000, seed=2)
    assert ((table.low > 0) & (table.low < table.estimate) & (table.estimate < table.high)).all()
    inside = ((draws > table.low.to_numpy()) & (draws < table.high.to_numpy())).mean(axis=0)
    np.testing.assert_allclose(inside, 0.9, atol=0.01)
    np.testing.assert_allclose(np.cov(np.log(draws).T), fit.covariance, rtol=0.05, atol=1e-4)
    z = norm.ppf(0.95)
    assert np.log(table.high / table.estimate).to_numpy() == pytest.approx(z * np.sqrt(np.diag(fit.covariance)))


def test_saved_and_read(cdnow, tmp_path):
    fit = fit_pareto_nbd(cdnow)
    again = load_fit(save_fit(fit, tmp_path / "fit.json"))
    assert again.table().equals(fit.table()) and again.data_hash == fit.data_hash and json.loads((tmp_path / "fit.json").read_text())["format"] == 1
    (tmp_path / "fit.json").write_text("{")
    with pytest.raises(ParameterError, match="fit.json is no fit"): load_fit(tmp_path / "fit.json")
    other = fit_pareto_nbd(cdnow.iloc[1:])
    assert other.data_hash != fit.data_hash


def test_spend_does_not_know_the_order_of_rows(cdnow):
    one, two = fit_gamma_gamma(cdnow), fit_gamma_gamma(cdnow.sample(frac=1, random_state=1))
    assert one.parameters == pytest.approx(two.parameters, rel=1e-10) and one.data_hash == two.data_hash
    assert one.data_hash != fit_gamma_gamma(cdnow.assign(repeat_mean_cents=cdnow.repeat_mean_cents + 1)).data_hash


@pytest.mark.parametrize("model", REPEAT)
def test_back_to_lifetimes(model, cdnow):
    fit = REPEAT[model](cdnow)
    theirs = to_lifetimes(fit, cdnow)
    assert len(theirs.data) == 2357 and theirs.data.frequency.sum() == cdnow.x.sum()
    assert 1.1 < theirs.predict(39, 2, 30.43, 38.86) < 1.5
    assert len(theirs.generate_new_data(size=2357)) == 2357
    assert theirs.standard_errors_.to_dict() == pytest.approx(fit.errors)
    assert theirs.summary["coef"].to_dict() == pytest.approx(fit.parameters)
    assert -theirs._negative_log_likelihood_ * 2357 == pytest.approx(fit.log_likelihood)
    import matplotlib.pyplot as plt
    from lifetimes.plotting import plot_frequency_recency_matrix, plot_period_transactions, plot_probability_alive_matrix
    for plot in (plot_period_transactions, plot_frequency_recency_matrix, plot_probability_alive_matrix):
        assert plot(theirs).has_data()
        plt.close("all")


def test_spend_back_to_lifetimes(cdnow):
    theirs = to_lifetimes(fit_gamma_gamma(cdnow), cdnow)
    assert len(theirs.data) == 946
    assert theirs.conditional_expected_average_profit(0, 0) == pytest.approx(6.25 * 15.447 / (3.744 - 1), rel=2e-3)
    with pytest.raises(ParameterError, match="lifetimes has no sbg"): to_lifetimes(fit_sbg([1000, 869, 743, 653]))


# --- what has no answer

def test_questions_without_an_answer(cdnow):
    groups = btyd_groups(cdnow)
    for fit in REPEAT.values():
        with pytest.raises(NotComputable, match="none of 2,357 members has a repeat purchase"): fit(groups.assign(x=0, t_x=0.0))
        with pytest.raises(NotComputable, match="1 members in 1 distinct rows cannot tell"): fit(cdnow[cdnow.x > 3].iloc[:1])
        with pytest.raises(ParameterError, match="T goes up to .* years. Say period_days=1"): fit(groups.assign(T=groups["T"] * 100))
        with pytest.raises(ParameterError, match="members must be counts above 0: 1 of"): fit(groups.assign(members=[-1, *groups.members[1:]]))
        with pytest.raises(ParameterError, match="lacks t_x"): fit(groups.drop(columns="t_x"))
        with pytest.raises(ParameterError, match="between 0 and T"): fit(groups.assign(t_x=groups.t_x * 3))
        with pytest.warns(UserWarning, match="if they are days, say period_days=1"):
            assert fit(groups.assign(t_x=(groups.t_x * 7).round(), T=(groups["T"] * 7).round())).notes
        with pytest.warns(UserWarning, match="if they are weeks, say period_days=7"): assert fit(cdnow, period_days=1).notes


def test_money_without_an_answer(cdnow):
    worse = cdnow.assign(repeat_mean_cents=np.where(np.arange(len(cdnow)) % 5 == 0, -cdnow.repeat_mean_cents, cdnow.repeat_mean_cents))
    fit = fit_gamma_gamma(worse)
    assert fit.members < 946 and "members with repeat purchases are left out: after refunds they brought nothing or less" in fit.notes[0]
    with pytest.raises(NotComputable, match="0 members .* cannot tell 3 parameters"): fit_gamma_gamma(cdnow.assign(repeat_mean_cents=-5.0))
    with pytest.raises(NotComputable, match="no member has a repeat purchase"): fit_gamma_gamma(cdnow.assign(x=0))


def test_a_likelihood_without_a_top_says_which_way_it_runs():
    "Members of one rate who never leave: heterogeneity and leaving go to nothing, and no number is given."
    rng = np.random.default_rng(4)
    T = rng.uniform(20, 60, 3000).round(1)
    x = rng.poisson(T * 0.3)
    t_x = np.where(x > 0, T * rng.beta(np.maximum(x, 1), 1), 0)
    frame = pd.DataFrame({"x": x, "t_x": t_x, "T": T})
    for fit in REPEAT.values():
        with pytest.raises(ConvergenceError, match="did not converge: .* towards .*Take a longer calibration"): fit(frame)
    equal = pd.DataFrame({"x": np.arange(2, 40), "repeat_mean_cents": 2000.0})
    with pytest.raises(ConvergenceError, match="gamma_gamma did not converge: .*all nearly equal"): fit_gamma_gamma(equal)


def test_data_that_do_not_tell_leaving(online_retail):
    "Online Retail, 40 weeks: nobody seems to leave for good, and every model says which parameter the data do not tell."
    from memtag_research.data.workspace import open_workspace
    from memtag_research.models.btyd import btyd_summary
    summary = btyd_summary(open_workspace(online_retail).table("member_days"), "2011-09-01").cache()
    for name, fit in REPEAT.items():
        with pytest.raises(ConvergenceError, match=f"{name} did not converge: .* towards"): fit(summary)
