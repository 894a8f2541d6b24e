"Fits and predictions of a workspace: what lies after the date, what is kept, what becomes a tag, and the commands."

import json
import warnings
from datetime import date, datetime
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
import tag_world as world
from click.testing import CliRunner

from memtag_research.cli import main
from memtag_research.core import NotComputable, ParameterError
from memtag_research.data.engine import to_frame
from memtag_research.data.simulate import make_programme
from memtag_research.data.workspace import open_workspace
from memtag_research.insight.catalogue import shipped_catalogue
from memtag_research.models import forecasts
from memtag_research.models.btyd import btyd_summary
from memtag_research.models.clv import predict_members
from memtag_research.models.forecasts import fit_clv, predict_clv, read_clv, refused_profiling
from memtag_research.models.holdout import spend_and_frequency
from memtag_research.tags.catalogues import read_catalogue
from memtag_research.tags.compile import compile_tags
from memtag_research.tags.given import all_tables

AS_OF = "2023-07-01"
ROOT = Path(__file__).resolve().parents[1]


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
    assert spend_and_frequency(summary)["text"] in kept.notes      # the sentence of the glossary and that of the measure are one
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
    with pytest.raises(ParameterError, match="leaves hardly anybody for the test"): fit_clv(ws, AS_OF, first_from="2023-05-01")
    with pytest.raises(ParameterError, match="bgbb stands on other rows.* use models.fits.fit_bgbb"): fit_clv(ws, AS_OF, "bgbb")
    path = ws.root / "models/clv" / f"{AS_OF}.json"
    whole = path.read_text()
    try:
        for broken in (whole[: len(whole) // 2], "{}", "[]"):
            path.write_text(broken)
            with pytest.raises(ParameterError, match="is damaged. Delete it and run fit_clv again"): read_clv(ws)
    finally: path.write_text(whole)


def test_a_date_long_after_the_log_is_refused(ws):
    "The log ends on 31 August; a year later everybody would seem to have left."
    says = "member_days ends on 2023-08-31, and .*Pass 2023-09-01"
    with pytest.raises(NotComputable, match=f"as_of 2023-10-15 is too late: {says}"): fit_clv(ws, "2023-10-15")
    with pytest.raises(NotComputable, match=f"as_of 2024-03-01 is too late: {says}"): predict_clv(ws, "2024-03-01")
    code, text = memtag("clv", "fit", "-w", ws.root, "--as-of", "2023-12-01")
    assert code == 2 and "Pass 2023-09-01" in text and not (ws.root / "models/clv/2023-12-01.json").exists()


def test_notes_in_two_languages():
    "Everything that a fit may have to say has words in both languages; numbers are the same."
    import re

    from memtag_research.language import glossary
    said = {k: v for k, v in glossary().items() if k.startswith("clv_")}
    for key, words in said.items(): assert sorted(re.findall(r"{\w+}", words["en"])) == sorted(re.findall(r"{\w+}", words["zh"])), key
    held = pd.DataFrame({"predicted": [150.0, 1], "actual": [100, 100], "bias": [0.5, -0.99], "rmse": [2.0, 1.0]}, index=["bgnbd", "nobody"])
    doubts = forecasts._doubts(held, "bgnbd")
    assert [k for k, _ in doubts] == ["clv_missed", "clv_no_better"]
    assert {"clv_spend_" + forecasts._leaning({"correlation": r, "ci_lower": r - 0.1, "ci_upper": r + 0.1}) for r in (-0.4, 0, 0.4)} <= set(said)


def test_few_members_are_said_in_chinese(tmp_path):
    made = make_programme(260, "2022-01-01", "2023-09-01", seed=8, directory=tmp_path / "ws").workspace
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)      # the notes say it, in either language
        fit = fit_clv(made, "2023-03-01")
    assert fit.notes[0] == f"only {fit.buying.members} members: intervals will be wide."
    assert fit.notes_in("zh")[0] == f"只有 {fit.buying.members} 名会员，区间会很宽。" and len(fit.notes) == len(fit.notes_in("zh"))


def refusals(ws, as_of):
    "Who refused, from the messages one by one: the last word before the date, or the last of all."
    words = to_frame(ws.table("consents")).query("purpose == 'profiling'").sort_values("ts")
    last = lambda rows: set(rows.groupby("member_id").tail(1).query("not granted").member_id)
    return last(words[words.local_date < pd.Timestamp(as_of)]) | last(words)


def test_who_refused_profiling(ws):
    for day in ("2022-06-01", AS_OF):
        found = to_frame(refused_profiling(ws, day)).member_id
        assert found.is_unique and set(found) == refusals(ws, day)
    assert 20 < len(found) < 600


def test_who_took_the_word_back_and_who_said_nothing(tmp_path):
    "Refused then and agreed since: out. Agreed then and refused since: out. Silent, or refused something else: in."
    whole = dict(world.tables(people=60))
    whole["consents"] = pa.Table.from_pylist([
        dict(member_id=m, purpose=p, granted=g, ts=datetime(*d, 12), local_date=date(*d))
        for m, p, g, d in (("changed", "profiling", False, (2024, 1, 5)), ("changed", "profiling", True, (2025, 1, 5)),
                           ("late", "profiling", True, (2024, 1, 5)), ("late", "profiling", False, (2025, 1, 5)),
                           ("back", "profiling", False, (2024, 1, 5)), ("back", "profiling", True, (2024, 1, 6)),
                           ("other", "marketing", False, (2024, 1, 5)), ("twice", "profiling", True, (2024, 1, 5)),
                           ("twice", "profiling", False, (2024, 1, 5)))])
    made = open_workspace(world.as_workspace(whole, tmp_path / "ws"))
    assert sorted(to_frame(refused_profiling(made, "2024-05-20")).member_id) == ["changed", "late", "twice"]
    without = open_workspace(world.as_workspace({k: v for k, v in whole.items() if k != "consents"}, tmp_path / "none"))
    assert to_frame(refused_profiling(without, "2024-05-20")).empty


def test_who_refused_is_in_no_list_and_no_score(ws, tmp_path):
    "In the totals, which name nobody, they count."
    code, text = memtag("clv", "predict", "-w", ws.root, "--out", tmp_path / "clv.parquet", "--scores")
    everybody, listed = to_frame(predict_clv(ws)), pd.read_parquet(tmp_path / "clv.parquet")
    out = refusals(ws, AS_OF) & set(everybody.member_id)
    assert code == 0 and len(out) > 10 and set(listed.member_id) == set(everybody.member_id) - out
    assert f"{len(everybody):,} members: " in text and f"{len(out)} members refused profiling and are left out" in text
    scored = to_frame(all_tables(ws)["scores"]).query("model in ('clv_value', 'clv_p_zero')")
    assert len(scored) and not out & set(scored.member_id)


def test_the_command_speaks_the_language_of_the_workspace(ws, tmp_path):
    import re
    zh = make_programme(400, "2022-01-01", "2023-09-01", seed=8, directory=tmp_path / "zh", locale="zh").workspace
    for words in (["fit", "--as-of", AS_OF, "-w", ws.root, "--lang", "zh"], ["predict", "--scores", "-w", ws.root, "--lang", "zh"],
                  ["fit", "--as-of", AS_OF, "-w", zh.root], ["predict", "--scores", "-w", zh.root]):
        code, text = memtag("clv", *words)
        assert code == 0 and "会员" in text
        known = r"bgnbd|[Gg]amma|same_rate|everybody_equal|nobody|clv_value|clv_p_zero|BG/NBD|alpha|US\$|GBP|\b[abpqrv]\b"
        assert not re.search("[A-Za-z]+", re.sub(known, "", text)), text
    code, text = memtag("clv", "fit", "--as-of", AS_OF, "-w", zh.root, "--lang", "en")
    assert code == 0 and not re.search("[一-龥]", text) and "rates of buying, shape" in text and "each at her own rate" in text


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


def test_the_shipped_tags_read_the_scores(ws, tmp_path):
    "The value in cents, and the outlook by p_zero: those of the file, for whom the workspace knows; nothing once they have ended."
    memtag("clv", "predict", "-w", ws.root, "--out", tmp_path / "clv.csv", "--scores")
    frame = pd.read_csv(tmp_path / "clv.csv", dtype={"member_id": str}).set_index("member_id")
    tagged = compile_tags(shipped_catalogue(), all_tables(ws), date(2023, 7, 2), tags=["clv_value", "clv_outlook"]).to_frame().set_index("member_id")
    given = tagged.dropna(subset="clv_value")
    assert set(given.index) <= set(frame.index) and len(given) > 0.9 * len(frame)
    pd.testing.assert_series_equal(given.clv_value, frame.clv_cents[given.index], check_names=False)
    outlook = pd.cut(frame.p_zero[given.index], [0, 0.3, 0.7, 1.01], right=False, labels=["likely", "open", "unlikely"])
    assert (given.clv_outlook == outlook.astype(str)).all() and given.clv_outlook.nunique() == 3
    ended = compile_tags(shipped_catalogue(), all_tables(ws), date(2023, 8, 30), tags=["clv_value", "clv_outlook"]).to_frame()
    assert ended.clv_value.isna().all() and ended.clv_outlook.isna().all()


def test_the_tutorial_says_the_same_in_both_languages():
    "Its twins assert the same numbers in the same order, and have as many cells."
    import ast
    told = []
    for name in ("04_what_members_are_worth", "04_会员值多少钱"):
        cells = json.loads((ROOT / f"nbs/tutorials/{name}.ipynb").read_text("utf-8"))["cells"]
        code = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
        told.append(([c["cell_type"] for c in cells], [ast.unparse(n) for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Assert)]))
    assert told[0] == told[1] and len(told[0][1]) > 25


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
