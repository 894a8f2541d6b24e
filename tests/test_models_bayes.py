"""Posteriors: the density is pymc-marketing's own, draws go where fits go, and chains that do not agree are refused.

Without the extra `bayes` most of this is skipped; what a kept fit says needs none."""

import importlib.util
import json
import sys

import numpy as np
import pandas as pd
import pytest
from lifetime_worlds import PLANTED, cdnow_summary, repeat_world, spend_world

from memtag_research.core import ConvergenceError, NotComputable, ParameterError
from memtag_research.models import bayes
from memtag_research.models.bayes import BayesFit, fit_bayes, load_bayes
from memtag_research.models.clv import outcome_interval, predict_members
from memtag_research.models.fits import MODELS, fit_bgnbd, fit_gamma_gamma, load_fit, parameters_of, save_fit
from memtag_research.models.holdout import evaluate_holdout
from memtag_research.models.predictions import expected_purchases

THERE = importlib.util.find_spec("pymc_marketing") is not None
extra = pytest.mark.skipif(not THERE, reason="the extra bayes is not installed: pip install -e '.[bayes]'")
CLASSES = {"bgnbd": "BetaGeoModel", "mbgnbd": "ModifiedBetaGeoModel", "pareto_nbd": "ParetoNBDModel", "gamma_gamma": "GammaGammaModel"}
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def cdnow():
    "x, t_x, T in weeks and mean repeat spend of the published calibration, from the log that lifetimes ships."
    return cdnow_summary().reset_index()


@pytest.fixture(scope="module")
def fitted(cdnow):
    "One posterior for many tests."
    pytest.importorskip("pymc_marketing")
    return fit_bayes(cdnow, draws=500, tune=700, seed=3)


# --- what a kept fit says, without the extra

def made(seed=0, chains=2, n=400):
    drawn = np.exp(np.random.default_rng(seed).normal([-1.4, 1.5, -0.2, 0.9], [0.05, 0.08, 0.2, 0.25], (chains, n, 4)))
    every = drawn.reshape(-1, 4)
    return BayesFit("bgnbd", dict(zip(MODELS["bgnbd"].parameters, np.median(every, axis=0).tolist(), strict=True)), np.cov(np.log(every).T), -9582.5,
                    2357, 1016, 7, posterior=drawn, diagnosis={n: {"r_hat": 1.0, "ess_bulk": 900.0, "ess_tail": 900.0} for n in MODELS["bgnbd"].parameters},
                    priors={"r": "Weibull"}, notes=("a note",), data_hash="abc")


def test_kept_and_read_again(tmp_path):
    fit = made()
    path = save_fit(fit, tmp_path / "fit.json")
    again = load_bayes(path)
    assert (again.model, again.parameters, again.notes, again.priors, again.diagnosis) == (fit.model, fit.parameters, fit.notes, fit.priors, fit.diagnosis)
    np.testing.assert_array_equal(again.posterior, fit.posterior)
    pd.testing.assert_frame_equal(again.table(), fit.table())
    with pytest.raises(ParameterError, match="is no fit of this version"): load_fit(path)
    for text in ("{}", "[]", "{", json.dumps({"format": 1, "model": "bgnbd"})):
        path.write_text(text)
        with pytest.raises(ParameterError, match=r"fit\.json is no"): load_bayes(path)


def test_draws_are_of_the_posterior():
    fit = made()
    every = fit.posterior.reshape(-1, 4)
    some = fit.draws(200, seed=1)
    assert {tuple(r) for r in some} <= {tuple(r) for r in every} and len({tuple(r) for r in some}) == 200
    assert fit.draws(2000).shape == (2000, 4)
    np.testing.assert_array_equal(some, fit.draws(200, seed=1))
    np.testing.assert_allclose(fit.table(0.9)[["low", "high"]].to_numpy().T, np.quantile(every, [0.05, 0.95], axis=0))
    np.testing.assert_allclose(list(fit.errors.values()), every.std(axis=0, ddof=1))


def test_predictions_take_it_as_a_fit():
    "Point predictions are those of the medians; intervals are quantiles over posterior draws."
    fit, members = made(), pd.DataFrame({"member_id": list("abc"), "x": [0, 2, 9], "t_x": [0.0, 30.43, 38.0], "T": [38.86] * 3})
    told = predict_members(members, fit, horizon_days=273, draws=200, level=0.9)
    ask = lambda p: expected_purchases("bgnbd", p, 39, members.x, members.t_x, members["T"])
    np.testing.assert_allclose(told.expected_purchases, ask(fit.parameters))
    each = np.array([ask(parameters_of(fit, members, v)) for v in fit.draws(200)])
    np.testing.assert_allclose(told[["purchases_low", "purchases_high"]].to_numpy().T, np.quantile(each, [0.05, 0.95], axis=0))
    assert outcome_interval(fit, 2, 30.43, 38.86, 273)["purchases_high"] >= 3
    held = evaluate_holdout(members.drop(columns="member_id").assign(x_holdout=[0, 1, 5], T_holdout=39.0, member_id=list("abc")), {"Bayes": fit})
    assert held.loc["Bayes", "predicted"] == pytest.approx(ask(fit.parameters).sum())


def test_chains_that_do_not_agree_are_refused():
    sound = {n: {"r_hat": 1.001} for n in ("r", "alpha")}
    assert bayes._check_chains("bgnbd", sound, 0, (2, 500)) is None
    with pytest.raises(ConvergenceError, match=r"r-hat of alpha is 1\.3000 .*0 of 1,000 draws diverged.*target_accept"):
        bayes._check_chains("bgnbd", sound | {"alpha": {"r_hat": 1.3}}, 0, (2, 500))
    with pytest.raises(ConvergenceError, match="7 of 1,000 draws diverged"): bayes._check_chains("bgnbd", sound, 7, (2, 500))
    with pytest.raises(ConvergenceError): bayes._check_chains("bgnbd", sound | {"r": {"r_hat": float("nan")}}, 0, (2, 500))


@pytest.mark.parametrize(("call", "said"), [
    ({"model": "bgnb"}, "Did you mean 'bgnbd'"), ({"chains": 1}, "chains must be a whole number from 2"), ({"draws": 10}, "draws must be a whole number from 100"),
    ({"tune": 0}, "tune must be"), ({"target_accept": 1}, "target_accept must be"), ({"draws": True}, "draws must be")])
def test_mistakes_of_the_call(call, said):
    with pytest.raises(ParameterError, match=said): fit_bayes(pd.DataFrame({"x": [1]}), **call)


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pymc_marketing", None)
    with pytest.raises(NotComputable, match=r"pip install 'memtag_research\[bayes\]'"): fit_bayes(repeat_world("bgnbd", 50, 1))


# --- with the extra

def density(model, frame, own=None, period_days=7):
    "Our log posterior as a function of what is drawn, without Jacobians."
    rows, weights, _, _ = bayes._rows(frame, model, period_days)
    sums, _ = bayes._sums(model, rows, weights)
    pymc = bayes._model(model, bayes._priors(model, own or {}), own or {}, bayes._node(sums), period_days / 7)
    return pymc, pymc.compile_logp(jacobian=False)


def points(pymc, at):
    "Values of what is drawn, on the scale that PyMC works on."
    import pytensor
    found = {}
    for variable in pymc.free_RVs:
        value = pymc.rvs_to_values[variable]
        transform = pymc.rvs_to_transforms[variable]
        v = pytensor.tensor.as_tensor_variable(np.float64(at[variable.name]))
        found[value.name] = (v if transform is None else transform.forward(v, *variable.owner.inputs)).eval()
    return found


AT = {"bgnbd": [{"r": 0.3, "alpha": 4.0, "phi_dropout": 0.25, "kappa_dropout": 3.0}, {"r": 1.1, "alpha": 9.0, "phi_dropout": 0.7, "kappa_dropout": 1.3}],
      "pareto_nbd": [{"r": 0.5, "alpha": 10.0, "s": 0.6, "beta": 11.0}, {"r": 1.2, "alpha": 5.0, "s": 1.1, "beta": 30.0}],
      "gamma_gamma": [{"p": 6.0, "q": 3.7, "v": 15.0}, {"p": 2.0, "q": 5.0, "v": 40.0}]}
AT["mbgnbd"] = AT["bgnbd"]


@extra
@pytest.mark.parametrize("model", CLASSES)
def test_the_density_is_that_of_pymc_marketing(cdnow, model):
    "Theirs on every member, ours on groups: equal up to a constant, at points far apart."
    from pymc_marketing import clv
    some = cdnow[(cdnow.x > 0) & (cdnow.repeat_mean_cents > 0)] if model == "gamma_gamma" else cdnow
    data = {"customer_id": np.arange(len(some)), "frequency": some.x.to_numpy()}
    data |= {"monetary_value": some.repeat_mean_cents.to_numpy() / 100} if model == "gamma_gamma" else {"recency": some.t_x.to_numpy(), "T": some["T"].to_numpy()}
    theirs = getattr(clv, CLASSES[model])(data=pd.DataFrame(data))
    theirs.build_model()
    ours, value = density(model, cdnow)
    their_value = theirs.model.compile_logp(jacobian=False)
    gaps = [float(value(points(ours, at)) - their_value(points(theirs.model, at))) for at in AT[model]]
    assert gaps[0] == pytest.approx(gaps[1], abs=1e-5), gaps
    if model != "gamma_gamma": assert gaps[0] == pytest.approx(0, abs=1e-5), gaps


@extra
@pytest.mark.parametrize("model", CLASSES)
def test_gradient(cdnow, model):
    "The slope that the sampler follows, against differences of the density."
    pymc, value = density(model, cdnow)
    slope, at = pymc.compile_dlogp(jacobian=False), points(pymc, AT[model][0])
    names = [pymc.rvs_to_values[v].name for v in pymc.free_RVs]
    numeric = []
    for name in names:
        up, down = (at | {name: at[name] + h} for h in (1e-5, -1e-5))
        numeric.append((value(up) - value(down)) / 2e-5)
    np.testing.assert_allclose(slope(at), numeric, rtol=1e-5, atol=1e-4)


@extra
@pytest.mark.parametrize("model", ["bgnbd", "pareto_nbd"])
def test_defaults_speak_of_weeks_whatever_the_unit(cdnow, model):
    "A summary in days has the same posterior: the densities differ by a constant."
    in_days = cdnow.assign(t_x=(cdnow.t_x * 7).round(), T=(cdnow["T"] * 7).round())
    (weeks, f), (days, g) = density(model, cdnow), density(model, in_days, period_days=1)
    gaps = [float(f(points(weeks, at)) - g(points(days, at))) for at in AT[model]]
    assert gaps[0] == pytest.approx(gaps[1], abs=1e-6) and gaps[0] == pytest.approx(cdnow.x.sum() * np.log(7), rel=1e-9)


def test_a_step_into_nowhere_is_impossible_and_no_error(cdnow):
    sums, guess = bayes._sums("bgnbd", cdnow, np.ones(len(cdnow)))
    for logs in ([-np.inf, 653.4, 65.6, -np.inf], [0.0, 29.0, -29.0, 29.0], [np.nan, 0, 0, 0]):
        value, slope = sums(np.array(logs, float))
        assert (value == -np.inf or np.isfinite(value)) and np.isfinite(slope).all()
    assert np.isfinite(sums(np.log(list(guess.values())))[0])


@extra
def test_cdnow_beside_the_maximum(cdnow, fitted):
    "pymc-marketing's own sampler found means .245 4.494 .777 2.391 and deviations .012 .381 .186 .725 (2 x 1,000 draws)."
    top, every = fit_bgnbd(cdnow), fitted.posterior.reshape(-1, 4)
    deviations = np.array([0.012, 0.381, 0.186, 0.725])
    assert (np.abs(every.mean(axis=0) - [0.245, 4.494, 0.777, 2.391]) < 5 / np.sqrt(800) * deviations).all()     # 800 effective draws or so
    np.testing.assert_allclose(every.std(axis=0), deviations, rtol=0.2)
    assert all(abs(fitted.parameters[n] - v) < 0.4 * top.errors[n] for n, v in top.parameters.items())
    assert fitted.data_hash == top.data_hash and (fitted.members, fitted.groups) == (2357, 1016)
    assert 0 < top.log_likelihood - fitted.log_likelihood < 1 and fitted.divergences == 0
    assert fitted.table().r_hat.max() <= 1.01 and "Pareto" in fitted.priors["kappa_dropout"]


@extra
def test_the_seed_decides_and_members_or_groups_do_not(cdnow, fitted):
    from memtag_research.models.btyd import btyd_groups
    again = fit_bayes(btyd_groups(cdnow), draws=500, tune=700, seed=3)
    np.testing.assert_allclose(again.posterior, fitted.posterior, rtol=1e-6)


@extra
def test_own_priors_decide_where_data_are_few():
    from pymc_extras.prior import Prior
    world = repeat_world("bgnbd", 60, seed=4)
    sure = {"r": Prior("LogNormal", mu=np.log(0.8), sigma=0.02), "alpha": Prior("LogNormal", mu=np.log(5), sigma=0.02)}
    told = fit_bayes(world, draws=1000, priors=sure)
    assert told.parameters["r"] == pytest.approx(0.8, rel=0.03) and told.parameters["alpha"] == pytest.approx(5, rel=0.03)
    plain = fit_bayes(world, draws=1000)
    assert plain.errors["r"] > 3 * told.errors["r"] and "LogNormal" in told.priors["r"]
    for own, said in (({"rr": sure["r"]}, "Did you mean 'r'"), ({"a": sure["r"]}, "both a and b"), ({"s": sure["r"]}, "bgnbd has no prior 's'")):
        with pytest.raises(ParameterError, match=said): fit_bayes(world, priors=own)


@extra
def test_an_answer_where_the_likelihood_has_no_maximum():
    "Members who all leave at one rate: a and b grow together without end; a prior holds them."
    world = repeat_world("bgnbd", 40, seed=11)
    for seed in range(11, 60):
        world = repeat_world("bgnbd", 40, seed=seed)
        try: fit_bgnbd(world)
        except ConvergenceError: break
    else: pytest.skip("every one of these worlds has a maximum")
    fit = fit_bayes(world, draws=1500, seed=1, target_accept=0.97)
    assert "has no maximum" in fit.notes[0] and np.isfinite(fit.table().to_numpy(float)).all()


@extra
def test_spend_goes_into_money(fitted, cdnow):
    spend = fit_bayes(cdnow, "gamma_gamma")
    top = fit_gamma_gamma(cdnow)
    assert all(abs(spend.parameters[n] - v) < 0.6 * top.errors[n] for n, v in top.parameters.items()) and spend.members == 946
    told = predict_members(cdnow, fitted, spend, 273, draws=100)
    assert (told.clv_low_cents < told.clv_cents).all() and (told.clv_cents < told.clv_high_cents).all()
    planted = fit_bayes(spend_world(800, 3), "gamma_gamma").table(0.999)
    truth = pd.Series(PLANTED["gamma_gamma"])
    assert ((planted.low < truth) & (truth < planted.high)).all()


@extra
def test_refused_in_a_real_run(monkeypatch):
    monkeypatch.setattr(bayes, "_RHAT", 0.9)
    with pytest.raises(ConvergenceError, match="chains of bgnbd do not agree"): fit_bayes(repeat_world("bgnbd", 60, seed=4), draws=100, tune=100)
