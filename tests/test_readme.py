"""The Python of the README runs, and gives the published number of customers; its links lead somewhere."""

import importlib
import re
from pathlib import Path

import pytest

from memtag_research.data.simulate import make_programme

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / name for name in ("README.md", "README.zh.md", "CONTRIBUTING.md", "CHANGELOG.md", "data/README.md", "docs/architecture.md", "docs/mapping.md", "docs/lifetimes.md")]


def test_the_python_of_the_readme_runs(online_retail, monkeypatch, capsys):
    monkeypatch.chdir(online_retail.parent)
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S)
    names: dict = {}
    code = code.replace('as_of="2011-12-01"', 'as_of="2011-12-10"').replace('"shop"', f'"{online_retail.name}"')
    exec(code, names)
    assert len(names["members"]) == 4338  # customers with a sale, as published
    assert "champions" in capsys.readouterr().out


def test_the_page_for_users_of_lifetimes(tmp_path, monkeypatch, capsys):
    "Its Python runs on an invented programme, and every function that it names is there."
    page = (ROOT / "docs/lifetimes.md").read_text("utf-8")
    make_programme(1500, "2023-01-01", "2025-01-01", directory=tmp_path / "invented")
    monkeypatch.chdir(tmp_path)
    [code] = re.findall(r"```python\n(.*?)```", page, re.S)
    names: dict = {}
    exec(code, names)
    assert "same_rate" in capsys.readouterr().out and names["theirs"].params_["r"] == names["buying"].parameters["r"]
    assert len(names["members"]) == len(names["theirs"].data) > 1000
    there = {n for m in ("btyd", "fits", "bayes", "predictions", "clv", "holdout", "forecasts") for n in dir(importlib.import_module(f"memtag_research.models.{m}"))}
    there |= set(dir(importlib.import_module("memtag_research.data.simulate")))
    ours = [cells.split("|")[2] for cells in page.splitlines() if cells.startswith("| ") and not cells.startswith("| lifetimes")]
    named = {n.split("(")[0].split(".")[-1] for cell in ours for n in re.findall(r"`([^`]+)`", cell)} - {"x", "t_x"}
    assert named - there == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text("utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []
