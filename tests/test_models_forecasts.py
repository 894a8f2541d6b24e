"Fits and predictions of a workspace: what lies after the date, what is kept, what becomes a tag, and the commands."

import json
from datetime import date

import pandas as pd
import pytest
import tag_world as world
from click.testing import CliRunner

from memtag_research.cli import main
from memtag_research.core import NotComputable, ParameterError
from memtag_research.data.engine import to_frame
from memtag_research.data.simulate import make_programme
from memtag_research.data.workspace import open_workspace
from memtag_research.models.btyd import btyd_summary
from memtag_research.models.clv import predict_members
from memtag_research.models.forecasts import fit_clv, predict_clv, read_clv
from memtag_research.tags.catalogues import read_catalogue
from memtag_research.tags.compile import compile_tags
from memtag_research.tags.given import all_tables

AS_OF = "2023-07-01"


@pytest.fixture(scope="module")
def ws(tmp_path_factory):
    "A year and a half of 1,200 members, with a fit."
    made = make_programme(1200, "2022-01-01", "2023-09-01", seed=8, directory=tmp_path_factory.mktemp("clv") / "ws").workspace
    fit_clv(made, AS_OF)
    return made


@pytest.mark.parametrize("change", [world.cut, world.poison])
def test_what_lies_after_the_date_changes_nothing(tmp_path, change):
    "Raw tables cut at the date, or poisoned after it, give the same fits, the same holdout and the same members."
    whole, found = world.tables(people=500), []
    for name, tables in (("whole", whole), ("changed", change(whole, world.AS_OF))):
        made = open_workspace(world.as_workspace(tables, tmp_path / name))
        fit = fit_clv(made, world.AS_OF, first_from=made.log_start)
        found.append((fit.buying.parameters, fit.spend and fit.spend.parameters, fit.holdout.to_dict(), fit.by_frequency.to_dict(),
                      to_frame(predict_clv(made, fitted=fit)).sort_values("member_id", ignore_index=True)))
    (*first, members), (*second, same) = found
    assert json.dumps(first, default=str) == json.dumps(second, default=str)
    pd.testing.assert_frame_equal(members, same)


def test_the_parts_put_together_by_hand(ws):
    kept = read_clv(ws)
    summary = to_frame(btyd_summary(ws.table("member_days"), AS_OF))
    by_hand = predict_members(summary, kept.buying, kept.spend, 90, 0.2, 0.4).sort_values("member_id", ignore_index=True)
    pd.testing.assert_frame_equal(to_frame(predict_clv(ws, None, 90, 0.2, 0.4)).sort_values("member_id", ignore_index=True), by_hand, check_dtype=False)
    assert kept.holdout_days == 182 and kept.holdout.actual.nunique() == 1 and kept.fingerprint == ws.fingerprint
    later = to_frame(predict_clv(ws, "2023-08-15"))
    assert len(later) >= len(by_hand) and later["T"].max() > by_hand["T"].max()


def test_nothing_of_a_member_is_kept_with_the_fit(ws):
    text = (ws.root / "models/clv" / f"{AS_OF}.json").read_text()
    ids = ws.table("members").member_id.execute()
    assert not any(i in text for i in ids) and "member_id" not in text
    assert (ws.root / "models/clv").stat().st_mode & 0o777 == 0o700


def test_fits_that_are_not_there_or_not_whole(ws, tmp_path):
    for ask, said in ((lambda: read_clv(ws, "2023-06-01"), "there is no fit at 2023-06-01; there are fits at 2023-07-01"),
                      (lambda: predict_clv(ws, "2023-01-01"), "there is no fit at 2023-01-01")):
        with pytest.raises(NotComputable, match=said): ask()
    with pytest.raises(ParameterError, match="up to a year before. Run fit_clv at 2024-08-01"): predict_clv(ws, "2024-08-01")
    with pytest.raises(ParameterError, match="holdout_days must be from 7 to"): fit_clv(ws, AS_OF, holdout_days=5)
    path = ws.root / "models/clv" / f"{AS_OF}.json"
    whole = path.read_text()
    try:
        for broken in (whole[: len(whole) // 2], "{}", "[]"):
            path.write_text(broken)
            with pytest.raises(ParameterError, match="is damaged. Delete it and run fit_clv again"): read_clv(ws)
    finally: path.write_text(whole)


def memtag(*words):
    result = CliRunner().invoke(main, [str(w) for w in words])
    return result.exit_code, result.output + (result.stderr if result.stderr_bytes else "")


def test_commands(ws, tmp_path):
    code, text = memtag("clv", "fit", "-w", ws.root, "--as-of", AS_OF, "--model", "pareto_nbd", "--holdout-days", 90)
    assert code == 0 and "pareto_nbd at 2023-07-01" in text and "same_rate" in text and "beta" in text
    assert read_clv(ws).buying.model == "pareto_nbd" and read_clv(ws).holdout_days == 90
    out = tmp_path / "clv.parquet"
    code, text = memtag("clv", "predict", "-w", ws.root, "--out", out, "--horizon-days", 180, "--margin", 0.5, "--scores", "--draws", 20)
    assert code == 0 and "purchases expected in 180 days, worth" in text and "until 2023-08-30" in text
    frame = pd.read_parquet(out)
    assert {"clv_low_cents", "purchases_high"} <= set(frame) and out.stat().st_mode & 0o777 == 0o600
    fit_clv(ws, AS_OF)


def test_scores_become_a_tag_until_they_end(ws, tmp_path):
    memtag("clv", "predict", "-w", ws.root, "--out", tmp_path / "clv.csv", "--scores")
    frame = pd.read_csv(tmp_path / "clv.csv", dtype={"member_id": str}).set_index("member_id")
    catalogue = read_catalogue("tags: {lapsing: {class: risk, kind: score, title: {en: Lapsing, zh: 流失}, model: clv_p_zero, values: {high: 0.8, low: 0}}}")
    tagged = compile_tags(catalogue, all_tables(ws), date(2023, 7, 2)).to_frame().set_index("member_id").lapsing
    wanted = frame.p_zero.map(lambda p: "high" if p >= 0.8 else "low")
    assert tagged.dropna().to_dict() == wanted[wanted.index.isin(tagged.index)].to_dict() and tagged.dropna().nunique() == 2
    assert compile_tags(catalogue, all_tables(ws), date(2023, 8, 30)).to_frame().lapsing.isna().all()


@pytest.mark.parametrize(("words", "says"), [
    (["predict"], "--out FILE, --scores, or both"), (["predict", "--out", "x.txt"], "--out must end in .csv"),
    (["predict", "--out", "x.csv", "--margin", "30"], "margin must be a share"), (["predict", "--scores", "--valid-days", "0"], "--valid-days must be 1"),
    (["predict", "--out", "x.csv", "--as-of", "2021-01-01"], "there is no fit at 2021-01-01"),
    (["fit", "--as-of", AS_OF, "--model", "bgnb"], "Did you mean 'bgnbd'?"), (["fit", "--as-of", "2021-12-01"], "before the first order|holdout_days"),
    (["fit", "--as-of", AS_OF, "--period-days", "0"], "period_days must be a whole number")])
def test_mistakes_end_in_2(ws, words, says, tmp_path, monkeypatch):
    import re
    monkeypatch.chdir(tmp_path)
    code, text = memtag("clv", words[0], "-w", ws.root, *words[1:])
    assert code == 2 and re.search(says, text), text
    assert not list(tmp_path.iterdir())


def test_a_workspace_without_a_fit(tmp_path):
    made = make_programme(100, "2022-01-01", "2022-12-01", seed=8, directory=tmp_path / "ws").workspace
    code, text = memtag("clv", "predict", "-w", made.root, "--scores")
    assert code == 2 and "has no fit of lifetime values yet" in text and "memtag clv fit" in text
