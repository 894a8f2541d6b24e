"""The machinery of tests/proofs: a proof runs once, stands while nothing changed, and keeps no failure."""

import json
import shutil
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]
HERE = Path(__file__).parent / "proofs"
PROOF = """
import pytest
from pathlib import Path
@pytest.mark.proof(name="square", covers=["code/*.py"], data=["package:pytest"])
def test_square(record_proof):
    side = int((Path(__file__).parents[2] / "code/side.py").read_text())
    assert side > 0
    RECORD
"""


@pytest.fixture
def project(pytester, monkeypatch):
    "A repository with one proof, which squares the number in code/side.py."
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # twice as fast
    (pytester.path / "tests/proofs").mkdir(parents=True)
    (pytester.path / "code").mkdir()
    (pytester.path / "code/side.py").write_text("7")
    for name in ("ledger.py", "conftest.py", "test_ledger.py"):
        shutil.copy(HERE / name, pytester.path / "tests/proofs" / name)
    pytester.makepyprojecttoml('[tool.pytest.ini_options]\nmarkers = ["prove", "proof"]\naddopts = \'-m "not prove"\'')
    proof(pytester.path, "record_proof({'area': side ** 2})")
    return pytester


def proof(root: Path, record: str) -> None:
    (root / "tests/proofs/test_square.py").write_text(PROOF.replace("RECORD", record))


def prove(project):
    return project.runpytest_subprocess("tests/proofs", "-m", "", "-rs")


def kept(project) -> dict:
    return json.loads((project.path / "docs/proofs/square.json").read_text())


def test_a_proof_runs_once_and_then_stands_until_its_code_changes(project):
    prove(project).assert_outcomes(passed=4)
    assert kept(project)["figures"] == {"area": 49}
    again = prove(project)
    again.assert_outcomes(passed=3, skipped=1)
    again.stdout.fnmatch_lines(["*stands: square, proved on *"])
    (project.path / "code/side.py").write_text("8")
    prove(project).assert_outcomes(passed=4)
    assert kept(project)["figures"] == {"area": 64}
    assert "area: 64" in (project.path / "docs/proofs/README.md").read_text()


def test_make_test_never_runs_a_proof(project):
    project.runpytest_subprocess("tests/proofs").assert_outcomes(passed=3, deselected=1)


def test_a_failed_proof_leaves_the_old_figures(project):
    prove(project)
    (project.path / "code/side.py").write_text("-1")
    prove(project).assert_outcomes(passed=3, failed=1)
    assert kept(project)["figures"] == {"area": 49}


def test_a_proof_without_figures_or_over_nothing_fails(project):
    proof(project.path, "pass")
    result = prove(project)
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(["*without calling record_proof*"])
    shutil.rmtree(project.path / "code")
    result = prove(project)
    result.assert_outcomes(passed=3, errors=1)
    result.stdout.fnmatch_lines(["*covers 'code/?.py', and no file has that name*"])


def test_a_proof_holds_where_nothing_can_be_written(project):
    (project.path / "docs").write_text("a file where the folder should be")
    prove(project).assert_outcomes(passed=4)


def test_a_proof_file_without_its_test_is_found(project):
    prove(project)
    (project.path / "tests/proofs/test_square.py").unlink()
    result = prove(project)
    assert result.parseoutcomes()["failed"] == 1
    result.stdout.fnmatch_lines(["*no such proof is marked*"])
