"""Churn on Complete Journey, forward in time: the bar of a published-method prototype, the baselines, and how much rows at random flatter.

Cut-offs 2017-09-10, 10-08, 11-05; no basket in 56 days; about 2,450 households each, one in ten of them churns. The standard error of
one AUC is .012 there (Hanley and McNeil), that of the mean of three .007: a floor lies less than one of those below the bar."""

from datetime import date, timedelta

import pytest

from memtag_research.data.workspace import open_workspace
from memtag_research.models.churn import train_on
from memtag_research.models.churn_checks import churn_measures, evaluate_churn, forward_predictions, random_row_validation
from memtag_research.models.cutoffs import churn_horizon, churn_panel

CUTOFFS, HORIZON = ("2017-09-10", "2017-10-08", "2017-11-05"), 56
BAR = {"boosting": (.894, .473, .066), "logistic": (.887, .474, .068), "p_zero": (.882, .458, .068), "recency": (.853, .436, .068)}   # AUC, AP, Brier
COVERS = [f"memtag_research/models/{m}.py" for m in ("btyd", "cutoffs", "churn", "churn_checks")]


@pytest.mark.proof(name="churn_journey", covers=["tests/proofs/test_churn_journey.py", *COVERS])
def test_churn_on_complete_journey(complete_journey, record_proof):
    ws = open_workspace(complete_journey)
    assert churn_horizon(ws.table("member_days"), CUTOFFS[0]) == HORIZON
    table = evaluate_churn(forward_predictions(ws, CUTOFFS, HORIZON))
    mean, figures = table.loc["all"], {}
    for model, (auc, ap, brier) in BAR.items():
        found = mean.loc[model]
        figures[model] = f"AUC {found.auc:.4f}, AP {found.ap:.4f}, Brier {found.brier:.4f}, ECE {found.ece:.4f} (bar {auc}, {ap}, {brier})"
        assert found.auc > auc - .006 and found.ap > ap - .015 and found.brier < brier + .001, (model, figures[model])
    assert mean.auc.idxmax() == "boosting" and .875 < mean.loc["p_zero", "auc"] < .89 and mean.loc["base_rate", "auc"] == .5
    figures["not_alive"] = f"AUC {mean.loc['not_alive', 'auc']:.4f} (lifetimes' p_alive on the same summaries gives .7100; the page has .756)"
    assert abs(mean.loc["not_alive", "auc"] - .7100) < .001
    figures |= _flattered(ws)
    record_proof(figures)


def _flattered(ws):
    "An over-sized model, weekly cut-offs: rows at random against forward, on the same households."
    from sklearn.ensemble import HistGradientBoostingClassifier
    large = HistGradientBoostingClassifier(max_iter=300, max_leaf_nodes=63, learning_rate=.1, random_state=0)
    last = date.fromisoformat(CUTOFFS[1])
    panel = churn_panel(ws, [last - timedelta(days=7 * i) for i in range(24)], HORIZON)
    flattered = random_row_validation(panel, last, large)
    honest = churn_measures(panel.at(last).churned, train_on(panel, last, large).predict(panel.at(last)))
    assert flattered["ap"] > honest["ap"] + .05 and flattered["auc"] > honest["auc"] + .02
    return {f"large model at {last}, {how}": f"AUC {m['auc']:.3f}, AP {m['ap']:.3f}" for how, m in
            {"rows at random": flattered, "forward in time": honest}.items()}
