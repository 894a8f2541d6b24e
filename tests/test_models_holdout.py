"The holdout against plain pandas, published figures, planted truth, the other engine and the future that a fit must not see."

from datetime import date, timedelta

import numpy as np
import pandas as pd
import pytest
from histories import engine, history_of, lines_of, on, poisoned
from lifetime_worlds import cdnow_log, repeat_world

from memtag_research.core import NotComputable, ParameterError
from memtag_research.data.engine import as_table, to_frame
from memtag_research.data.grains import member_days_grain
from memtag_research.models.btyd import btyd_summary
from memtag_research.models.fits import fit_bgnbd, fit_mbgnbd, fit_pareto_nbd
from memtag_research.models.holdout import (
    evaluate_holdout,
    holdout_by_decile,
    holdout_by_frequency,
    spend_and_frequency,
    track_purchases,
)
from memtag_research.models.predictions import expected_purchases, expected_purchases_new


@pytest.fixture(scope="module")
def days():
    log = cdnow_log()
    return log.groupby(["member_id", "local_date"], as_index=False).net_cents.sum().assign(purchase_days=1, cancelled_date=None)


@pytest.fixture(scope="module")
def summary(days): return to_frame(btyd_summary(days, "1997-10-01", holdout_until="1998-07-01"))


@pytest.fixture(scope="module")
def fit(summary): return fit_bgnbd(summary)


def test_errors_are_those_of_every_member(summary, fit):
    "Groups with counts give what a row a member gives."
    held = evaluate_holdout(summary, fit)
    predicted = expected_purchases("bgnbd", fit.parameters, 39, summary.x, summary.t_x, summary["T"])
    gap = summary.x_holdout - predicted
    wanted = {"actual": 1882, "predicted": predicted.sum(), "bias": predicted.sum() / 1882 - 1, "mae": gap.abs().mean(), "rmse": (gap**2).mean() ** 0.5,
              "correlation": np.corrcoef(summary.x_holdout, predicted)[0, 1], "log_likelihood": fit.log_likelihood, "aic": 8 - 2 * fit.log_likelihood}
    assert held.loc["bgnbd"].to_dict() == pytest.approx(wanted, rel=1e-9)
    rate = summary.x / summary["T"].clip(lower=1) * 39
    assert held.predicted["same_rate"] == pytest.approx(rate.sum()) and held.mae["same_rate"] == pytest.approx((summary.x_holdout - rate).abs().mean())
    assert held.predicted["everybody_equal"] == pytest.approx(39 * summary.x.sum() / summary["T"].sum() * len(summary))
    assert held.mae["nobody"] == pytest.approx(1882 / 2357)


def test_classes_add_up_to_the_whole(summary, fit):
    whole = evaluate_holdout(summary, fit).loc["bgnbd"]
    for table, name in ((holdout_by_frequency(summary, fit, most=4), "bgnbd"), (holdout_by_decile(summary, fit), "predicted"), (holdout_by_decile(summary, fit, 4), "predicted")):
        assert table.members.sum() == 2357
        assert (table.actual @ table.members, table[name] @ table.members) == pytest.approx((1882, whole.predicted))
    deciles = holdout_by_decile(summary, fit)
    assert deciles.predicted.is_monotonic_increasing and deciles.actual.iloc[-1] > 5 * deciles.actual.iloc[0]
    by_hand = summary.groupby(summary.x.clip(upper=4)).x_holdout.agg(["size", "mean"])
    assert holdout_by_frequency(summary, fit, most=4)[["members", "actual"]].to_numpy() == pytest.approx(by_hand.to_numpy())


def test_equal_predictions_are_in_one_class_whatever_came(summary, fit):
    "Members who have not come back are hundreds of equal histories: those of them who bought later must not fill the next class."
    frame = summary.assign(predicted=expected_purchases("bgnbd", fit.parameters, 39, summary.x, summary.t_x, summary["T"])).sort_values("predicted")
    middle = (frame.predicted.rank(method="average") - 0.5) / len(frame)
    by_hand = frame.groupby(np.minimum((middle * 10).astype(int) + 1, 10)).x_holdout.agg(["size", "mean"])
    deciles = holdout_by_decile(summary, fit)
    assert deciles[["members", "actual"]].to_numpy() == pytest.approx(by_hand.to_numpy())


def test_a_true_model_has_no_bias():
    "On a world of its own kind a fit foretells the future; one of another kind does worse."
    world = repeat_world("pareto_nbd", 20_000, 12, future=26.0, s=2.0, beta=20.0)
    held = world.assign(x_holdout=world.x_future, T_holdout=26.0)
    table = evaluate_holdout(held, {"true": fit_pareto_nbd(world), "other": fit_mbgnbd(world)})
    assert abs(table.bias["true"]) < 0.03 and table.rmse["true"] <= table.rmse["other"] and table.aic["true"] < table.aic["other"]
    deciles = holdout_by_decile(held, fit_pareto_nbd(world))
    error = np.sqrt(deciles.predicted / deciles.members) * 3
    assert ((deciles.actual - deciles.predicted).abs() < 4 * error + 0.03 * deciles.predicted).all()


@pytest.mark.parametrize("step_days", [1, 7, 30])
def test_weeks_against_every_member(days, summary, fit, step_days):
    track = track_purchases(days, "1997-10-01", "1998-07-01", fit, step_days)
    first = pd.to_datetime(days.groupby("member_id").local_date.min())
    bought = days.assign(at=pd.to_datetime(days.local_date), first=days.member_id.map(first)).query("at > first")
    begin = first.min()
    for row in track.sample(min(8, len(track)), random_state=1).itertuples():
        end = pd.Timestamp(row.end)
        before = pd.Timestamp(track.end[row.Index - 1]) if row.Index else begin
        assert row.actual == ((bought["at"] >= before) & (bought["at"] < end)).sum()
        ages = [((t - first).dt.days - 1).clip(lower=0) / 7 for t in (before, end)]
        low, high = (expected_purchases_new("bgnbd", fit.parameters, a.to_numpy()).sum() for a in ages)
        assert row.bgnbd == pytest.approx(high - low, rel=1e-9, abs=1e-9)
    assert track.end.iloc[-1] == date(1998, 7, 1) and date(1997, 10, 1) in set(track.end)
    assert track.actual[track.holdout].sum() == 1882


def test_only_who_came_before_the_cut_is_followed():
    "New members of the holdout, and what is cancelled after it, do not count."
    lines = lines_of(history_of(8, 120))
    days = member_days_grain(as_table(lines, engine()))
    fit = fit_bgnbd(repeat_world("bgnbd", 400, 1), period_days=7)
    whole = track_purchases(days, on(40), on(70), fit)
    assert whole.equals(track_purchases(member_days_grain(as_table(poisoned(lines, on(70)), engine())), on(40), on(70), fit))
    summary = to_frame(btyd_summary(days, on(40), holdout_until=on(70)))
    assert whole.actual[whole.holdout].sum() == summary.x_holdout.sum() > 5
    assert whole.end.iloc[-1] == on(70) and (whole.end.diff().dropna() <= timedelta(7)).all()


def test_order_value_and_frequency():
    rng = np.random.default_rng(2)
    x = rng.geometric(0.3, 4000)
    apart, together = (pd.DataFrame({"x": x, "repeat_mean_cents": 1000 * np.exp(rng.normal(size=4000) + b * np.log(x))}) for b in (0, -0.8))
    free, tied = spend_and_frequency(apart), spend_and_frequency(together)
    assert free["ci_lower"] < 0 < free["ci_upper"] and "independent enough" in free["text"]
    assert tied["correlation"] < -0.3 and tied["ci_upper"] < -0.2 and "overstated" in tied["text"] and tied["p_value"] < 1e-9
    with pytest.raises(NotComputable, match="3 members came back"): spend_and_frequency(apart.head(3))


def test_mistakes(days, summary, fit):
    with pytest.raises(NotComputable, match="nobody bought in the holdout"): evaluate_holdout(summary.assign(x_holdout=0), fit)
    with pytest.raises(ParameterError, match="made with holdout_until.* lacks T_holdout"): evaluate_holdout(summary.drop(columns="T_holdout"), fit)
    for wrong in ([], {}, {"a": 1}, "bgnbd"):
        with pytest.raises(ParameterError, match="name → Fit"): evaluate_holdout(summary, wrong)
    with pytest.raises(ParameterError, match="'x' is a column already"): evaluate_holdout(summary, {"x": fit})
    with pytest.raises(ParameterError, match="must be one Fit"): holdout_by_decile(summary, {"a": fit})


def test_spark_tracks_the_same(spark):
    lines = lines_of(history_of(6, 120))
    fit = fit_bgnbd(repeat_world("bgnbd", 400, 1))
    here, there = (track_purchases(member_days_grain(as_table(lines, con)), on(40), on(80), fit, first_from=on(3)) for con in (engine(), spark))
    pd.testing.assert_frame_equal(here, there)
