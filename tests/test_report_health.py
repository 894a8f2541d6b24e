"""The model-health report: its figures against plain recounts and scikit-learn, its rules, its reach in time, both languages."""

import re
from copy import copy
from datetime import date, timedelta

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import brier_score_loss, roc_auc_score
from test_segment import equal, text_of, workspace
from test_segment_risk import MAPPING, lines_of, poisoned

from memtag_research.core import NotComputable, ParameterError
from memtag_research.models.churn_checks import calibration_table, forward_predictions
from memtag_research.reports import health, health_numbers
from memtag_research.reports.health_numbers import RULES, findings, forward, holdout, in_use, judged, load_health, parameters, verdict
from memtag_research.reports.page import Html
from memtag_research.reports.parameters import report_parameters

PERIOD, HORIZON = "2024-04", 56
SECTIONS = [f for name, f in vars(health).items() if name.startswith("show_")]


@pytest.fixture(scope="module")
def lines(): return lines_of()


@pytest.fixture(scope="module")
def roots(lines, tmp_path_factory):
    home = tmp_path_factory.mktemp("health")
    return {name: workspace(home / name, {"lines": frame}, MAPPING) for name, frame in (("whole", lines), ("poisoned", poisoned(lines)))}


@pytest.fixture(scope="module")
def reports(roots):
    made = {}
    def report(name="whole", lang="en", period=PERIOD):
        if (name, period) not in made: made[name, period] = load_health(roots[name], period, horizon_days=HORIZON)
        again = copy(made[name, period])
        again.lang, again.tables = lang, {}
        return again
    return report


@pytest.fixture
def undrawn(monkeypatch):
    monkeypatch.setattr(health, "figure", lambda draw, alt, *a, **kw: Html(f"<figure>{alt}</figure>"))


def page_of(report): return "".join(str(show(report)) for show in SECTIONS)


# Figures

def test_the_holdout_is_counted_from_the_lines(reports, lines):
    found, end = holdout(reports()), date(2024, 5, 1)
    old = set(lines.card[lines.day < found["held"]])
    came = lines[(lines.day >= found["held"]) & (lines.day < end) & lines.card.isin(old)].drop_duplicates(["card", "day"])
    assert (found["errors"].actual == len(came)).all() and found["members"] == len(old)
    assert (end - found["held"]).days == 162      # a third of 486 days
    by = found["by_frequency"]
    assert by.actual @ by.members == pytest.approx(len(came))
    assert abs(found["errors"].bias.iloc[0]) < .15       # members follow the model


def test_forward_measures_are_those_of_scikit_learn(reports, roots):
    made = forward(reports())
    told = forward_predictions(reports().ws, made["dates"], HORIZON, until=date(2024, 5, 1))
    for cutoff, some in told.groupby("cutoff"):
        row = made["measures"].loc[f"{cutoff:%Y-%m-%d}", "boosting"]
        assert row.auc == pytest.approx(roc_auc_score(some.churned, some.boosting))
        assert row.brier == pytest.approx(brier_score_loss(some.churned, some.boosting))
    assert made["churned"] == told.churned.sum() and max(made["dates"]) + timedelta(HORIZON) == date(2024, 5, 1)


def test_labels_are_counted_from_the_lines(reports, lines):
    "Who stayed away after the last test date, without the package."
    made = forward(reports())
    day = made["dates"][-1]
    asked = set(lines.card[(lines.day < day) & (lines.day >= day - timedelta(365))])
    came = set(lines.card[(lines.day >= day) & (lines.day < day + timedelta(HORIZON))])
    row = made["measures"].loc[str(day), "base_rate"]
    assert row.members == len(asked) and row.churned == pytest.approx(len(asked - came) / len(asked))


def test_classes_of_few_go_together():
    rng = np.random.default_rng(1)
    p = rng.beta(.3, 2, 3000)
    table = calibration_table(rng.random(3000) < p, p)
    joined = health_numbers.together(table, 25)
    churned = (joined.came * joined.members).round()
    assert (churned >= 25).all() and (joined.members - churned >= 25).all() and len(joined) < len(table)
    assert joined.members.sum() == 3000 and joined.told @ joined.members == pytest.approx(table.told @ table.members)
    assert health_numbers.together(table, 1).iloc[-1].tolist() == pytest.approx(table.iloc[-1].tolist())


# The verdict

@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.name)
def test_limits_are_in_order(rule):
    assert rule.half in ("clv", "churn") and (rule.refuse is None or rule.watch <= rule.refuse)
    assert judged(rule, 0).level == "ok" and judged(rule, rule.watch).level in ("warn", "fail")
    assert rule.refuse is None or judged(rule, rule.refuse).level == "fail"


def test_a_model_that_members_no_longer_follow_is_not_to_be_used(lines, tmp_path):
    "From January 2024 on everybody buys three times as often: the holdout is missed by far more than a fifth."
    late = lines[lines.day >= date(2023, 12, 1)]
    more = [late.assign(order=late.order + s, line=late.line + s, day=[d + timedelta(n) for d in late.day],
                        paid_at=[f"{d + timedelta(n)} 11:00:00" for d in late.day]) for n, s in ((2, "x"), (5, "y"))]
    frame = pd.concat([lines, *more])
    report = load_health(workspace(tmp_path / "more", {"lines": frame[frame.day < date(2024, 5, 1)]}, MAPPING), PERIOD, lang="en")
    assert holdout(report)["errors"].bias.iloc[0] < -.2 and verdict(report, "clv") == "fail"
    head = health.page_head(report)
    assert head["badge"]["status"] == "fail" and "Lifetime value: do not use" in head["badge"]["text"]


def test_a_kept_model_is_the_one_judged(roots, reports):
    from memtag_research.models.churn_scores import fit_churn
    report = load_health(roots["poisoned"], "2024-03", lang="en", horizon_days=HORIZON)
    assert in_use(report)["source"] == "trained"
    fit_churn(report.ws, "2024-02-01", 42, tests=1)
    again = load_health(roots["poisoned"], "2024-03", lang="en")
    found = in_use(again)
    assert (found["source"], found["as_of"], found["age_days"], found["horizon_days"]) == ("kept", date(2024, 2, 1), 60, 42)
    import shutil
    shutil.rmtree(report.ws.root / "models")


# Reach in time, words, files

def test_no_number_knows_what_came_later(reports):
    for number in (holdout, parameters, health_numbers.independence, forward, in_use, findings):
        a, b = (number(reports(name)) for name in ("whole", "poisoned"))
        assert equal(a, b) or str(a) == str(b), number.__name__


def test_a_young_log_shows_the_lifetime_half(roots, undrawn):
    report = load_health(roots["whole"], "2023-09", lang="en", horizon_days=HORIZON + 28)
    with pytest.raises(NotComputable): forward(report)
    page = text_of(page_of(report))
    assert "Churn: cannot be judged" in page and "days of log" in page and "Holdout: RMSE over" in page
    assert health.page_head(report)["badge"]["status"] in ("ok", "warn", "fail")


def test_a_log_of_weeks_has_neither_half(roots, undrawn):
    report = load_health(roots["whole"], "2023-02", lang="zh")
    page = text_of(page_of(report))
    assert page.count("无法判断") == 2 and health.page_head(report)["badge"]["status"] == "fail"
    assert re.findall(r"[A-Za-z]{2,}(?: [A-Za-z]{2,}){3,}", page) == []


def test_a_chinese_page_has_no_english_sentence(reports, undrawn):
    page = text_of(page_of(reports(lang="zh"))) + str(health.page_head(reports(lang="zh")))
    assert re.findall(r"[A-Za-z]{2,}(?: [A-Za-z]{2,}){3,}", page) == [] and "CARD-" not in page


def test_sentences_carry_the_numbers(reports, undrawn):
    report = reports()
    page, mean = text_of(page_of(report)), forward(report)["measures"].loc["all"]
    for said in (f"{mean.auc.boosting:.3f}", f"{mean.brier.base_rate:.4f}", f"{holdout(report)['errors'].actual.iloc[0]:,.0f}"): assert said in page
    assert {"rules", "holdout", "parameters", "forward_test", "drift"} <= set(report.tables)


def test_pictures_are_drawn(reports):
    pages = [str(show(reports())) for show in (health.show_clv, health.show_churn)]
    assert [p.count("<figure") for p in pages] == [2, 3] and "Not computable" not in "".join(pages)


@pytest.mark.parametrize("asked, said", [(dict(period="2024-09"), "runs from"), (dict(lang="fr"), "one of en, zh"), (dict(period="now"), "is no period")])
def test_a_wrong_question_is_refused_early(roots, asked, said):
    with pytest.raises(ParameterError, match=said): load_health(roots["whole"], **{"period": PERIOD, **asked})


def test_the_notebook_declares_its_parameters():
    assert [p.name for p in report_parameters("model_health")] == ["workspace", "period", "lang", "k", "horizon_days", "output_dir"]


def test_a_programme_of_thirty_has_both_reports(tmp_path):
    "No cohort, store or model reaches k members: every section says so, none fails."
    from memtag_research.data.simulate import make_programme
    from memtag_research.reports import segment
    from memtag_research.reports.segment_numbers import load_segment
    root = make_programme(30, "2023-01-01", "2025-01-01", seed=3, directory=tmp_path / "ws").workspace.root
    small = load_segment(str(root), "2024-12", output_dir=str(tmp_path / "segment"))
    for show in (f for name, f in vars(segment).items() if name.startswith("show_")): assert show(small)
    judged_ = load_health(str(root), "2024-12", output_dir=str(tmp_path / "health"))
    for show in SECTIONS: assert show(judged_)
    assert {verdict(judged_, half) for half in ("clv", "churn")} <= {"none", "ok", "warn", "fail"}
