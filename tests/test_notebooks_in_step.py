"""The gate `make in-sync` sees what it should, and text edited through .pct comes back exactly."""

import importlib.util
import json
import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("notebooks", ROOT / "scripts/notebooks.py")
notebooks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(notebooks)

LIBRARY = """# %%
#| default_exp measures.area

# %% [markdown]
# # Area
# > Areas of squares, in square metres

# %%
#| export
def area(
    side: float,  # metres
) -> float:       # square metres
    "The area of a square."
    return side ** 2

# %%
assert area(3) == 9
"""
REPORT = """# %% tags=["parameters"]
side: float = 3.0  # metres

# %%
print(side)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "A small project in step: one library notebook, one report."
    tmp_path = tmp_path_factory.mktemp("project")
    for name in ("pyproject.toml", "settings.ini"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "memtag_research").mkdir()
    shutil.copy(ROOT / "memtag_research/__init__.py", tmp_path / "memtag_research/__init__.py")
    (tmp_path / "nbs").mkdir()
    for name, text in {"measures/01_area": LIBRARY, "reports/area": REPORT}.items():
        path, _ = notebooks.pair(name, tmp_path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    notebooks.sync(["measures/01_area", "reports/area"], tmp_path)
    return tmp_path


@pytest.fixture
def project(made, tmp_path):
    "A copy of it to break."
    return shutil.copytree(made, tmp_path / "project")


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def cell_ids(notebook: str) -> list[str]:
    return [cell["id"] for cell in json.loads(notebook)["cells"]]


def test_a_new_notebook_is_exported_cleaned_tested_and_in_step(project):
    assert notebooks.check(project) == []
    assert "return side ** 2" in (project / "memtag_research/measures/area.py").read_text()
    assert "Areas of squares" in (project / "memtag_research/measures/area.py").read_text()
    assert "area.area" in (project / "memtag_research/_modidx.py").read_text()


def test_the_gate_changes_nothing_and_names_each_file(project):
    module, index = project / "memtag_research/measures/area.py", project / "memtag_research/_modidx.py"
    change(module, "side ** 2", "side * 2")
    change(index, "area.area", "area.acre")
    (project / "memtag_research/orphan.py").write_text("x = 1\n")
    before = notebooks.texts(project)
    assert notebooks.check(project) == [
        "memtag_research/_modidx.py: differs from its notebook",
        "memtag_research/measures/area.py: differs from its notebook",
        "memtag_research/orphan.py: no notebook exports it; write it in a notebook, or delete it",
    ]
    assert notebooks.texts(project) == before


def test_the_gate_finds_an_unclean_notebook_and_a_lost_parameters_tag(project):
    path = project / "nbs/reports/area.ipynb"
    notebook = json.loads(path.read_text())
    notebook["cells"][1]["execution_count"] = 7
    del notebook["cells"][0]["metadata"]["tags"]
    path.write_text(json.dumps(notebook, indent=1) + "\n")
    assert notebooks.check(project) == [
        "nbs/reports/area.ipynb: not clean",
        "nbs/reports/area.ipynb: its first code cell, and no other, needs the tag `parameters`",
    ]


def test_the_gate_compares_versions(project):
    change(project / "settings.ini", "version = ", "version = 9.")
    [line] = notebooks.check(project)
    assert line.startswith("settings.ini says version 9.")


def test_text_comes_back_exactly_and_an_edit_reaches_the_module(project):
    before = notebooks.texts(project)
    notebooks.edit(["measures/01_area", "reports/area"], project)
    notebooks.sync(["measures/01_area", "reports/area"], project)
    assert notebooks.texts(project) == before

    text, notebook = notebooks.pair("measures/01_area", project)
    change(text, "The area of a square.", "Area of a square.")
    os.utime(text, (notebook.stat().st_mtime + 1,) * 2)
    notebooks.sync([], project)
    assert "Area of a square." in (project / "memtag_research/measures/area.py").read_text()
    assert cell_ids(before["nbs/measures/01_area.ipynb"]) == cell_ids(notebook.read_text())


def test_an_edit_that_breaks_the_notebook_is_refused(project):
    text, _ = notebooks.pair("measures/01_area", project)
    change(text, "side ** 2", "side * 2")
    with pytest.raises(Exception, match="nbdev-test"):
        notebooks.sync(["measures/01_area"], project)


def test_text_with_edits_is_not_overwritten(project):
    text, notebook = notebooks.pair("measures/01_area", project)
    os.utime(text, (notebook.stat().st_mtime + 1,) * 2)
    with pytest.raises(SystemExit, match="make sync"):
        notebooks.edit(["measures/01_area"], project)
