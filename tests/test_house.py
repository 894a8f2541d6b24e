"""The house: versions stated once, requirements bounded and met by the constraints, shipped data as published."""

import hashlib
import json
import re
from configparser import ConfigParser
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]


def requirements() -> list[Requirement]:
    "Every requirement of settings.ini, extras included."
    settings = ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    plain = settings["DEFAULT"]["requirements"].split("\n")
    extras = [need for line in settings["DEFAULT"]["extras"].split("\n") for need in line.partition(":")[2].split(";")]
    return [Requirement(text.strip()) for text in [*plain, *extras] if text.strip()]


def constraints() -> dict[str, str]:
    "Package → exact version, from constraints.txt."
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}


def unbounded(needs: list[Requirement]) -> list[str]:
    "Requirements for which pip may fall back to an ancient release."
    return [str(need) for need in needs if not {s.operator for s in need.specifier} & {"==", ">=", "~="}]


def test_every_requirement_has_a_lower_bound():
    assert unbounded(requirements()) == []
    assert unbounded([Requirement("sqlglot<30.18"), Requirement("pandas>=3")]) == ["sqlglot<30.18"]


@pytest.mark.parametrize("need", requirements(), ids=str)
def test_constraints_satisfy_the_requirement(need):
    assert need.specifier.contains(Version(constraints()[canonicalize_name(need.name)]))


def test_constraints_are_plain_exact_versions():
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.+!]*", line), line


def test_the_environment_is_the_one_that_the_constraints_name():
    pinned = constraints()
    installed = {canonicalize_name(d.metadata["Name"]): d.version for d in distributions()}
    other = {name: (installed[name], pinned[name]) for name in installed.keys() & pinned.keys()
             if installed[name] != pinned[name]}  # fmt: skip
    assert other == {}


@pytest.mark.parametrize("python", ["3.11.0", "3.12.0", "3.13.0", "3.14.0"])
def test_pinned_versions_run_on_every_python_that_is_promised(python):
    "Debian 12 has Python 3.11.2: a release that needs 3.11.5 would end `make report` there."
    named = [d for d in distributions() if canonicalize_name(d.metadata["Name"]) in constraints()]
    needs = {d.metadata["Name"]: d.metadata.get("Requires-Python", "") for d in named}
    assert [name for name, spec in needs.items() if not SpecifierSet(spec or "").contains(python)] == []


def test_shipped_data_is_the_published_file():
    digest = hashlib.sha256((ROOT / "data/shipped/online_retail.parquet").read_bytes()).hexdigest()
    assert digest in (ROOT / "data/README.md").read_text()


def test_exported_cells_stay_short_and_visible():
    for path in (ROOT / "nbs").rglob("*.ipynb"):
        if ".ipynb_checkpoints" in path.parts:
            continue
        code = [c for c in json.loads(path.read_text("utf-8"))["cells"] if c["cell_type"] == "code"]
        sources = ["".join(cell["source"]) for cell in code]
        longest = max((len(s.splitlines()) for s in sources if "#| export" in s), default=0)
        hidden = sum("#| hide" in s for s in sources)
        assert longest <= 40, f"{path.name}: an exported cell of {longest} lines"
        assert hidden <= len(sources) - hidden, f"{path.name}: {hidden} of {len(sources)} code cells are hidden"
