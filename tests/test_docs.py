"""Pages that are made from the package are current, and what docs/coverage.md claims is there."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STATES = {"here", "partly", "being built", "planned", "outside"}


def make_docs(root=ROOT):
    spec = importlib.util.spec_from_file_location("make_docs", root / "scripts/make_docs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Made pages

def test_made_pages_are_current():
    run = subprocess.run([sys.executable, "scripts/make_docs.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_a_changed_page_is_found_and_mended(tmp_path, monkeypatch, capsys):
    docs = make_docs()
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    monkeypatch.setattr(docs.stale_pages, "__defaults__", (tmp_path,))
    (tmp_path / "docs").mkdir()
    assert docs.main(["--check"]) == 1 and set(docs.stale_pages()) == set(docs.PAGES)     # missing
    assert docs.main([]) == 0 and docs.main(["--check"]) == 0                             # written
    page = tmp_path / "docs/glossary.md"
    page.write_text(page.read_text(encoding="utf-8").replace("会员", "客户", 1), encoding="utf-8")
    assert docs.main(["--check"]) == 1 and "docs/glossary.md is stale" in capsys.readouterr().err


def test_every_term_has_a_row_of_five_cells():
    from memtag_research.language import glossary
    page = (ROOT / "docs/glossary.md").read_text(encoding="utf-8")
    rows = {cells[2].strip("`"): cells for cells in table_rows(page) if cells[2] != "code"}
    assert set(rows) == set(glossary()) and {len(cells) for cells in rows.values()} == {5}
    assert rows["repurchase_rate"][:2] == ["Period-to-period repurchase", "回购率"]


# Coverage

def table_rows(text):
    "Cells of every table row but the dashes."
    rows = [line.strip().strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in cells] for cells in rows if not set("".join(cells)) <= set("- ")]


def coverage_rows(text):
    "capability, state, where: of the tables with these heads."
    return [cells for cells in table_rows(text) if len(cells) == 3 and cells[0] != "capability"]


def is_live(link):
    "A path of the repository, or a name of the package: `measures.rfm.rfm_score`."
    if "/" in link: return (ROOT / link).exists()
    module, _, name = f"memtag_research.{link}".rpartition(".")
    try: return hasattr(importlib.import_module(module), name)
    except ModuleNotFoundError: return False


def wrong_with(state, where):
    "What a row claims and is not so; empty when it holds."
    links = re.findall("`([^`]+)`", where)
    dead = [link for link in links if not is_live(link)]
    if state not in STATES: return f"state must be one of {sorted(STATES)}"
    if state == "being built": return "" if dead else "all of it is there: say here"
    if dead: return f"dead links: {dead}"
    if not where: return "says nothing"
    if state in ("here", "partly"):
        kinds = {"notebook": r"nbs/.+\.ipynb", "function": r"[\w.]+", "test": r"tests/.+\.py"}
        return ", ".join(f"no {kind}" for kind, form in kinds.items() if not any(re.fullmatch(form, k) for k in links))
    return ""


COVERAGE = coverage_rows((ROOT / "docs/coverage.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize("capability, state, where", COVERAGE, ids=[cells[0][:50] for cells in COVERAGE])
def test_coverage_claims_what_is_there(capability, state, where):
    assert wrong_with(state, where) == ""


def test_coverage_names_a_capability_once_and_leaves_no_table_unread():
    names = [cells[0] for cells in COVERAGE]
    assert len(names) == len(set(names)) > 70
    text = (ROOT / "docs/coverage.md").read_text(encoding="utf-8")
    assert all(len(cells) == 3 for cells in table_rows(text.split("## Tags")[1]))


LIVE = "`nbs/01_language.ipynb` `language.label` `tests/test_docs.py`"


@pytest.mark.parametrize("state, where, wrong", [
    ("here", LIVE, ""),
    ("here", LIVE + " `language.lable`", "dead links: ['language.lable']"),
    ("here", LIVE + " `nbs/none.ipynb`", "dead links: ['nbs/none.ipynb']"),
    ("here", LIVE + " `measures.none.rfm`", "dead links: ['measures.none.rfm']"),
    ("here", "`nbs/01_language.ipynb` `language.label`", "no test"),
    ("planned", "issue 5; `language.lable`", "dead links: ['language.lable']"),
    ("being built", "`nbs/01_language.ipynb`", "all of it is there: say here"),
    ("being built", "`nbs/01_language.ipynb` `tests/test_none.py`", ""),
    ("done", LIVE, "state must be one of ['being built', 'here', 'outside', 'partly', 'planned']"),
])
def test_the_check_itself(state, where, wrong):
    assert wrong_with(state, where) == wrong
