"""Churn: panels know nothing of what comes after a cut-off; measures, reasons and profit against independent computations;
probabilities against the planted truth; columns that have seen the future; files."""

from dataclasses import replace
from datetime import date, timedelta
from itertools import permutations

import duckdb
import numpy as np
import pandas as pd
import pytest
import tag_world
from click.testing import CliRunner
from scipy.stats import spearmanr

from memtag_research.cli import main
from memtag_research.commands.reports import _stands_on
from memtag_research.core import DefinitionError, EvidenceError, NotComputable, ParameterError
from memtag_research.data.engine import to_frame
from memtag_research.data.simulate import make_programme
from memtag_research.data.workspace import open_workspace
from memtag_research.insight.catalogue import workspace_catalogue
from memtag_research.models import churn, churn_checks, churn_scores, cutoffs
from memtag_research.models.btyd import btyd_summary
from memtag_research.models.clv import value_at_stake
from memtag_research.models.fits import fit_bgnbd
from memtag_research.models.forecasts import fit_clv
from memtag_research.tags.catalogues import make_catalogue
from memtag_research.tags.definition import Metric

HORIZON, AS_OF = 60, date(2024, 5, 2)


@pytest.fixture(scope="module")
def world(tmp_path_factory): return make_programme(2_500, "2022-07-01", "2024-07-01", seed=17, directory=tmp_path_factory.mktemp("churn") / "ws")


@pytest.fixture(scope="module")
def ws(world): return world.workspace


@pytest.fixture(scope="module")
def panel(ws): return cutoffs.churn_panel(ws, [*cutoffs.cutoffs_before(AS_OF, HORIZON, ws.log_start), AS_OF], HORIZON)


@pytest.fixture(scope="module")
def model(panel): return churn.train_on(panel, AS_OF)


# ---- time

@pytest.mark.parametrize("spoil", [tag_world.cut, tag_world.poison])
def test_features_know_nothing_of_what_comes_after(tmp_path, spoil):
    world = tag_world.tables()
    whole, spoilt = (open_workspace(tag_world.as_workspace(w, tmp_path / n)) for n, w in (("whole", world), ("spoilt", spoil(world, tag_world.AS_OF))))
    one, other = (cutoffs.churn_panel(w, [tag_world.AS_OF], 30, eligible="purchase_days_all >= 1") for w in (whole, spoilt))
    columns = ["member_id", *one.features, "p_zero", "not_alive"]
    pd.testing.assert_frame_equal(one.rows[columns], other.rows[columns])
    assert len(one.rows) > 100 and one.features == other.features and len(one.features) > 18


def test_the_label_ends_with_its_window(ws):
    "By SQL over the raw lines, cancellations inside the window apart, which the grain knows."
    panel = cutoffs.churn_panel(ws, ["2024-03-01"], 45)
    sold = duckdb.from_arrow(ws.table("orders").to_pyarrow()).query("o", """SELECT DISTINCT member_id FROM o WHERE local_date >= DATE '2024-03-01'
        AND local_date < DATE '2024-04-15' AND (cancelled_date IS NULL OR cancelled_date >= DATE '2024-04-15')""").df().member_id
    assert set(panel.rows.member_id[panel.rows.churned == 0]) == set(sold) & set(panel.rows.member_id)


def test_labels_after_the_date_do_not_train(panel, model):
    later = panel.rows.cutoff > pd.Timestamp(AS_OF - timedelta(days=HORIZON))
    spoilt = replace(panel, rows=panel.rows.assign(churned=panel.rows.churned.mask(later, 1 - panel.rows.churned)))
    np.testing.assert_array_equal(churn.train_on(spoilt, AS_OF).predict(panel), model.predict(panel))
    first = panel.rows.cutoff == panel.rows.cutoff.min()
    learned = replace(panel, rows=panel.rows.assign(churned=panel.rows.churned.mask(first, 1 - panel.rows.churned)))
    assert (churn.train_on(learned, AS_OF).predict(panel) != model.predict(panel)).any(), "labels before the date do train"


def test_who_is_asked(ws):
    "By SQL: whoever has a standing purchase in the 365 days before, and an account that is neither closed nor merged."
    asked = set(cutoffs.churn_panel(ws, ["2024-03-01"], 45).rows.member_id)
    bought = duckdb.from_arrow(ws.table("orders").to_pyarrow()).query("o", """SELECT DISTINCT member_id FROM o WHERE local_date >= DATE '2023-03-02'
        AND local_date < DATE '2024-03-01' AND (cancelled_date IS NULL OR cancelled_date >= DATE '2024-03-01')""").df().member_id
    members = to_frame(ws.table("members")).query("not closed_date < '2024-03-01'").member_id
    merged = to_frame(ws.table("member_merges")).query("local_date < '2024-03-01'").from_id
    assert asked == set(bought) & set(members) - set(merged) and len(asked) > 500


def test_windows_of_the_training_end_before_the_calibration(ws):
    weekly = cutoffs.churn_panel(ws, [AS_OF - timedelta(days=7 * i) for i in range(30)], HORIZON)
    made = churn.train_on(weekly, AS_OF, "logistic")
    assert AS_OF - timedelta(days=HORIZON + 7) < made.cutoffs[-1] <= AS_OF - timedelta(days=HORIZON)
    assert all(c + timedelta(days=HORIZON) <= made.cutoffs[-1] for c in made.cutoffs[:-1]) and len(made.cutoffs) > 8


def test_horizon_is_the_length_weighted_quantile(ws):
    days = to_frame(ws.table("member_days")).query("purchase_days > 0")
    days = days[~(days.cancelled_date < "2024-05-02") & (days.local_date < "2024-05-02") & (days.local_date >= "2022-05-03")]
    gaps = days.sort_values("local_date").groupby("member_id").local_date.diff().dt.days.dropna()
    within = lambda h: gaps[gaps <= h].sum() / gaps.sum()
    horizon = cutoffs.churn_horizon(ws.table("member_days"), AS_OF)
    assert horizon % 7 == 0 and within(horizon) >= .9 > within(horizon - 7)


# ---- truth

def test_probabilities_meet_the_planted_truth(world, panel, model):
    "The simulated member's own probability of silence, from parameters that no model sees."
    truth = world.truth.p_no_purchase(str(AS_OF), HORIZON).set_index("member_id").p_no_purchase
    asked = panel.at(AS_OF)
    told, true = model.predict(asked), truth.reindex(asked.member_id).to_numpy()
    known = ~np.isnan(true)
    assert known.mean() > .9 and spearmanr(told[known], true[known]).statistic > .7
    fifths = pd.DataFrame({"told": told[known], "true": true[known]}).groupby(pd.qcut(told[known], 5, labels=False)).mean()
    assert (fifths.told - fifths.true).abs().max() < .09


def test_lifetime_baseline_is_the_published_formula(ws, panel):
    "p_zero = (1 - p_alive) + p_alive ((α+T)/(α+T+h))^(r+x), and p_alive of Fader, Hardie and Lee (2008)."
    summary = to_frame(btyd_summary(ws.table("member_days"), AS_OF)).set_index("member_id")
    r, alpha, a, b = (fit_bgnbd(summary.reset_index()).parameters[p] for p in ("r", "alpha", "a", "b"))
    s, h = summary, HORIZON / 7
    alive = np.where(s.x == 0, 1, 1 / (1 + a / (b + (s.x - 1).clip(lower=0)) * ((alpha + s["T"]) / (alpha + s.t_x)) ** (r + s.x)))
    p_zero = (1 - alive) + alive * ((alpha + s["T"]) / (alpha + s["T"] + h)) ** (r + s.x)
    asked = panel.at(AS_OF).set_index("member_id")
    np.testing.assert_allclose(asked.p_zero, pd.Series(p_zero, s.index)[asked.index], rtol=1e-6)
    np.testing.assert_allclose(asked.not_alive, 1 - pd.Series(alive, s.index)[asked.index], rtol=1e-6, atol=1e-9)


# ---- what has seen the future

def test_a_column_of_today_in_an_old_panel_is_caught(tmp_path):
    "A member's `household_size` that somebody overwrote with purchases of the window: no date tells."
    world = make_programme(1_500, "2022-07-01", "2024-07-01", seed=3, directory=tmp_path / "ws").workspace
    bought = to_frame(world.table("member_days")).query("purchase_days > 0 and '2024-03-03' <= local_date < '2024-07-01'").groupby("member_id").size()
    path = world.root / "data" / "current" / "members.parquet"
    members = pd.read_parquet(path)
    members["household_size"] = members.member_id.map(bought).fillna(0).astype("int64")
    members.to_parquet(path, index=False)
    seen = make_catalogue(Metric(name="household", source="people", agg="max", of="household_size", days="all"),
                          over=workspace_catalogue(world))
    features = {**cutoffs.FEATURES, "household": ["household"]}
    with pytest.raises(EvidenceError, match="household alone tells who will churn"):
        churn.train_churn(open_workspace(world.root), AS_OF, HORIZON, features, catalogue=seen)
    assert churn.train_churn(open_workspace(world.root), AS_OF, HORIZON).churned > 100


def test_honest_features_are_not_caught(panel):
    churn.check_future(panel, AS_OF)
    recency = replace(panel, groups={"recency": ("recency_days",), "money": ("spend_h1",)})
    churn.check_future(recency, AS_OF)


def test_the_error_of_an_auc_is_that_of_a_bootstrap(panel):
    rows = panel.at(AS_OF)
    rng, draws = np.random.default_rng(0), []
    for _ in range(300):
        some = rows.iloc[rng.integers(0, len(rows), len(rows))]
        draws.append(churn._auc(some.churned, some.recency_days))
    assert churn._auc_error(churn._auc(rows.churned, rows.recency_days), rows.churned) == pytest.approx(np.std(draws), rel=.25)


# ---- reasons

def test_reasons_are_shapley_values(panel, model):
    "The mean over all orders of what a group adds, by brute force."
    small = replace(model, groups={g: model.groups[g] for g in ("recency", "frequency", "money", "history")})
    whole = replace(panel, groups=small.groups)
    small = churn.train_on(whole, AS_OF)
    rows = panel.at(AS_OF).head(4)
    shares = churn.group_shares(small, rows)
    added = pd.DataFrame(0.0, index=rows.index, columns=shares.columns)
    orders = list(permutations(small.groups))
    for order in orders:
        now = rows.assign(**small.typical)
        before = small.log_odds(now)
        for g in order:
            now = now.assign(**{n: rows[n] for n in small.groups[g]})
            after = small.log_odds(now)
            added[g] += (after - before) / len(orders)
            before = after
    pd.testing.assert_frame_equal(shares, added, rtol=1e-9, atol=1e-9)


def test_reasons_read_in_both_languages(panel, model):
    risky = panel.at(AS_OF).assign(p=lambda r: model.predict(r)).nlargest(30, "p")
    reasons = churn.churn_reasons(model, risky, 2)
    assert (reasons.log_odds > 0).all() and reasons["rank"].max() <= 2
    en, zh = (churn.reason_texts(model, reasons, lang) for lang in ("en", "zh"))
    assert en.str.contains("typical").all() and not zh.str.contains("typical|days").any() and zh.str.contains("一般").all()
    assert churn.feature_title(model, "purchase_days_h05") == "Purchase days in 30 days"
    assert churn.feature_title(model, "purchase_days_h3", "zh") == "近180天消费天数"


def test_importance_of_a_copy_of_chance_is_nothing(panel):
    dice = replace(panel, rows=panel.rows.assign(dice=np.random.default_rng(0).random(len(panel.rows))),
                   groups={**panel.groups, "dice": ("dice",)}, titles={**panel.titles, "dice": {"en": "dice", "zh": "dice"}})
    table = churn.churn_importance(churn.train_on(dice, AS_OF, "logistic"), dice).set_index(["group", "feature"]).auc_drop
    assert abs(table["dice", ""]) < .02 < table[table.index.get_level_values(0) != "dice"].max()


# ---- measures

def test_calibration_and_lift_by_hand():
    told, came = [.1] * 10 + [.9] * 10, [1] + [0] * 9 + [1] * 9 + [0]
    table = churn_checks.calibration_table(came, told, 2)
    assert table[["members", "told", "came"]].to_numpy().tolist() == [[10, pytest.approx(.1), .1], [10, pytest.approx(.9), .9]]
    assert table.ci_lower[0] == pytest.approx(.0179, abs=1e-4) and table.ci_upper[0] == pytest.approx(.4042, abs=1e-4)   # Wilson, 1 of 10
    lift = churn_checks.lift_table(came, told, 2)
    assert lift.gain.tolist() == [.9, 1] and lift.lift.tolist() == [1.8, 1]
    assert churn_checks.lift_table(came[::-1], told[::-1], 4).gain.tolist() == pytest.approx([.45, .9, .95, 1])
    assert churn_checks.churn_measures(came, told)["ece"] == pytest.approx(0)


def test_profit_by_hand():
    table = churn_checks.churn_profit([1, 0], [.8, .1], 1_000, contact_cents=10, offer_cents=100, saved_share=.5, taken_share=.2, n=2)
    assert table.expected_cents.tolist() == pytest.approx([.8 * .5 * 900 - .2 * .2 * 100 - 10, (.8 + .1) * .5 * 900 - (.2 + .9) * .2 * 100 - 20])
    assert table.realised_cents.tolist() == pytest.approx([.5 * 900 - 10, .5 * 900 - .2 * 100 - 20])
    with pytest.raises(ParameterError, match="saved_share"): churn_checks.churn_profit([1, 0], [.8, .1], 1, 1, saved_share=2)


def test_drift_is_the_textbook_sum(panel, model):
    rows = panel.at(AS_OF)
    found = churn_checks.churn_drift(model, rows).set_index("feature")
    edges, shares, missing = model.reference["spend_h1"]
    bins = [-np.inf, *edges, np.inf]
    now = np.maximum([*(pd.cut(rows.spend_h1, bins).value_counts(sort=False) / len(rows)), rows.spend_h1.isna().mean()], 1e-3)
    then = np.maximum([*(shares * (1 - missing)), missing], 1e-3)
    assert found.psi["spend_h1"] == pytest.approx(((now - then) * np.log(now / then)).sum())
    assert churn_checks.churn_drift(model, rows.assign(spend_h1=rows.spend_h1 + 100_000)).feature[0] in ("spend_h1", "p_churn")


# ---- wrong questions

def test_wrong_questions_say_what_to_do(ws, panel):
    with pytest.raises(NotComputable, match="needs 1,?200 days of log|needs 1200 days"): cutoffs.cutoffs_before(AS_OF, 400, ws.log_start)
    with pytest.raises(NotComputable, match="train.*has|training of a churn model"): churn.train_on(
        replace(panel, rows=panel.rows.assign(churned=0.0)), AS_OF)
    with pytest.raises(DefinitionError, match="recency_days"): cutoffs.churn_panel(ws, [AS_OF], 60, eligible="recensy_days < 3")
    with pytest.raises(ParameterError, match="has no predict_proba"): churn.train_on(panel, AS_OF, object())
    with pytest.raises(NotComputable, match="ends on"): churn.train_churn(ws, "2025-01-01")
    with pytest.raises(NotComputable, match="tested on"): churn_checks.cutoffs_to_test(ws, 300)
    with pytest.raises(ParameterError, match="up to 10 groups"): churn.group_shares(
        replace(churn.train_on(panel, AS_OF, "logistic"), groups={str(i): (n,) for i, n in enumerate(panel.features)}), panel.at(AS_OF).head(2))


def test_wrong_arrays_say_which(ws):
    for measure in (churn_checks.churn_measures, churn_checks.calibration_table, churn_checks.lift_table):
        for churned, p, why in (([1, 0], [.5], "one value a member"), ([], [], "one value a member"), ([1, 2], [.5, .6], "must be 1 or 0"),
                                ([1, 0], [.5, 1.2], "from 0 to 1"), ([1, 0], [.5, np.nan], "from 0 to 1")):
            with pytest.raises(ParameterError, match=why): measure(churned, p)
    with pytest.raises(ParameterError, match="n must be"): churn_checks.lift_table([1, 0], [.5, .6], 0)
    with pytest.raises(ParameterError, match="value_cents"): churn_checks.churn_profit([1, 0], [.5, .6], [5, np.nan], 1)
    with pytest.raises(ParameterError, match="eligible must be a rule"): cutoffs.churn_panel(ws, [AS_OF], 60, eligible="")
    with pytest.raises(ParameterError, match="horizon_days must be"): churn.train_churn(ws, AS_OF, 0)
    with pytest.raises(ParameterError, match="Did you mean 'eligible'"): churn_scores.fit_churn(ws, AS_OF, 60, elegible="x")
    with pytest.raises(ParameterError, match="tests must be"): churn_scores.fit_churn(ws, AS_OF, 60, tests=0)


def test_an_order_that_turns_over_is_refused(panel):
    "Labels of the calibration cut-off turned round: what was learned no longer holds."
    last = panel.rows.cutoff == pd.Timestamp(AS_OF - timedelta(days=HORIZON))
    turned = replace(panel, rows=panel.rows.assign(churned=panel.rows.churned.mask(last, 1 - panel.rows.churned)))
    with pytest.raises(EvidenceError, match="upside down"): churn.train_on(turned, AS_OF)


# ---- kept

def test_kept_and_read_again(tmp_path):
    ws = make_programme(1_200, "2022-07-01", "2024-07-01", seed=8, directory=tmp_path / "ws").workspace
    before = _stands_on(ws)
    made = churn_scores.fit_churn(ws, "2024-05-01", HORIZON, tests=1)
    assert _stands_on(ws) not in (before, ws.fingerprint), "a report would be skipped though it would ask another model"
    again, panel = churn_scores.read_churn(ws), cutoffs.churn_panel(ws, ["2024-06-01"], HORIZON)
    np.testing.assert_array_equal(again.model.predict(panel), made.model.predict(panel))
    pd.testing.assert_frame_equal(again.model.importance, made.model.importance)
    assert again.notes == made.notes and {p.stat().st_mode & 0o077 for p in (ws.root / "models").rglob("*") if p.is_dir()} == {0}
    path = ws.root / "models/churn/2024-05-01.json"
    text = path.read_text()
    path.write_text(text.replace('"horizon_days": 60', '"horizon_days": 90'))
    with pytest.raises(ParameterError, match="is not what was written"): churn_scores.read_churn(ws)
    path.write_text(text)
    assert not any(m in text for m in panel.rows.member_id), "a member in the file of a model"
    churn_scores.fit_churn(ws, "2024-05-01", HORIZON, "logistic", tests=1)
    assert len(list((ws.root / "models/churn").glob("*.skops"))) == 1 and churn_scores.read_churn(ws).model.estimator_name == "logistic"


def test_an_estimator_of_somebody_else_is_not_kept(tmp_path, panel):
    "Types that are not of scikit-learn are neither written nor read: reading a file must not run what somebody put there."
    from sklearn.linear_model import LogisticRegression
    Odd = type("Odd", (LogisticRegression,), {"__module__": __name__})
    globals()["Odd"] = Odd
    ws = make_programme(1_200, "2022-07-01", "2024-07-01", seed=8, directory=tmp_path / "ws").workspace
    complete = {"frequency": ["purchase_days_h1", "purchase_days_h3"], "recency": ["recency_days"]}
    with pytest.raises(ParameterError, match="not of scikit-learn"):
        churn_scores.fit_churn(ws, "2024-05-01", HORIZON, Odd(max_iter=500), tests=1, features=complete)
    assert not list((ws.root / "models/churn").glob("*"))


def test_refused_members_are_not_scored(ws):
    made = churn_scores.fit_churn(ws, AS_OF, HORIZON, "logistic", tests=1)
    scores = churn_scores.score_churn(ws, AS_OF)
    said = to_frame(ws.table("consents")).query("purpose == 'profiling'").sort_values(["ts"]).groupby("member_id").granted.last()
    refused = set(said.index[~said.astype(bool)])
    assert scores.refused > 0 and not refused & set(scores.members.member_id)
    assert len(scores.members) + scores.refused == len(cutoffs.churn_panel(ws, [AS_OF], HORIZON).rows) and made.model.as_of == AS_OF


def test_own_features_and_the_dearest_first_from_the_command_line(ws, tmp_path):
    "One trains on metrics and members of her own choice, and lists those whose staying away costs most, by value_at_stake of the kept fit."
    def memtag(*words): return CliRunner().invoke(main, ["churn", *map(str, words), "-w", str(ws.root)], catch_exceptions=False).output
    for words in (["score", "--by-loss", "--out", str(tmp_path / "none.csv")], ["evaluate", "--out", str(tmp_path / "none.txt")]):
        code = CliRunner().invoke(main, ["churn", *words, "-w", str(ws.root)])
        assert code.exit_code == 2 and not list(tmp_path.iterdir())
    said = memtag("train", "--as-of", AS_OF, "--horizon-days", HORIZON, "--tests", 1, "--feature", "recency_days", "--feature",
                  "discount_depth", "--feature", "p_zero", "--eligible", "purchase_days_365d >= 3")
    assert "Days since the last purchase" in said and "Depth of discount" in said
    kept = churn_scores.read_churn(ws, AS_OF).model
    assert kept.features == ["recency_days", "discount_depth", "p_zero"] and kept.eligible == "purchase_days_365d >= 3"
    lifetime = fit_clv(ws, AS_OF)
    memtag("score", "--as-of", AS_OF, "--by-loss", "--margin", .5, "--reasons", 2, "--most", 40, "--out", tmp_path / "call.csv")
    made = pd.read_csv(tmp_path / "call.csv").set_index("member_id")
    scores = churn_scores.score_churn(ws, AS_OF)
    assert churn.reason_texts(kept, pd.DataFrame([("m", "discount_depth", .25, .1)], columns=["member_id", "feature", "value", "typical"]),
                              "en").loc["m"] == "Depth of discount: 25.0% (typical 10.0%)"
    summary = to_frame(btyd_summary(ws.table("member_days"), AS_OF, 7))
    stake = value_at_stake(summary, lifetime.buying, lifetime.spend, HORIZON).set_index("member_id").stake_cents / 2
    loss = (scores.members.set_index("member_id").p_churn * stake).dropna().sort_values(ascending=False)
    assert list(made.index) == list(loss.index[:40])
    np.testing.assert_allclose(made.loss_cents, loss[:40], atol=.51)
    np.testing.assert_allclose(made.stake_cents, stake[made.index], atol=.51)
    assert made.reasons.notna().all() and set(scores.members.member_id) >= set(made.index)
