"""The Python of the README runs, and gives the published number of customers; its links lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "data/README.md", "docs/architecture.md", "docs/mapping.md")]


def test_the_python_of_the_readme_runs(online_retail, monkeypatch, capsys):
    monkeypatch.chdir(online_retail.parent)
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S)
    names: dict = {}
    code = code.replace('as_of="2011-12-01"', 'as_of="2011-12-10"').replace('"shop"', f'"{online_retail.name}"')
    exec(code, names)
    assert len(names["members"]) == 4338  # customers with a sale, as published
    assert "champions" in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text("utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []
