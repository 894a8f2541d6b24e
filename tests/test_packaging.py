"""What other teams get: a wheel that works outside the checkout, plain or with `[reports]`."""

import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(*command, cwd: Path, **kwargs) -> str:
    "Output of a command in a clean environment: nothing of this checkout, its venv or the user's settings."
    env = {k: v for k, v in os.environ.items() if not re.match(r"PYTHON|VIRTUAL_ENV|MEMTAG|JUPYTER|IN_TEST", k)}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=env, capture_output=True, text=True, **kwargs)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    "The wheel, built from a copy of the tracked and new files."
    copy, dist = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    listed = run("git", "-c", "core.quotepath=off", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines()
    for name in (n for n in listed if os.path.lexists(ROOT / n)):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name, follow_symlinks=False)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", dist, cwd=copy)
    [built] = dist.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def plain(wheel, tmp_path_factory) -> Path:
    "The bin folder of an empty environment in which only the wheel was installed, by the constraints."
    home = tmp_path_factory.mktemp("plain")
    venv.create(home)
    install(home / "bin", wheel)
    return home / "bin"


def pip(bin_folder: Path) -> list:
    "Our own pip, at work in another environment."
    return [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", bin_folder / "python"]


def install(bin_folder: Path, requirement) -> None:
    options = ["--quiet", "--no-compile", "-c", ROOT / "constraints.txt"]
    run(*pip(bin_folder), "install", *options, requirement, cwd=bin_folder)


def installed(bin_folder: Path) -> set[str]:
    listed = json.loads(run(*pip(bin_folder), "list", "--format=json", cwd=bin_folder))
    return {package["name"].lower().replace("_", "-") for package in listed}


def test_wheel_carries_reports_glossary_data_and_template_and_no_tests(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    reports = {f"memtag_research/reports/notebooks/{p.name}" for p in (ROOT / "nbs/reports").glob("*.ipynb")}
    assert "memtag_research/reports/notebooks/segment.ipynb" in reports
    shipped = ROOT / "data/shipped"
    data = {f"memtag_research/data/shipped/{p.relative_to(shipped).as_posix()}" for p in shipped.rglob("*") if p.is_file()}
    assert "memtag_research/data/shipped/own_files/zh/会员.xlsx" in data
    files = {p.relative_to(ROOT).as_posix() for p in (ROOT / "memtag_research").rglob("*")
             if p.is_file() and "__pycache__" not in p.parts}  # fmt: skip
    assert {"memtag_research/glossary.yaml", "memtag_research/reports/page.html"} <= files
    assert reports | data | files <= names
    assert [n for n in names if not re.match(r"memtag_research(/|-[\d.]+\.dist-info/)", n) or "test" in n] == []


def test_plain_install_has_no_notebook_stack_and_computes_rfm(plain, tmp_path):
    packages = installed(plain)
    unwanted = {"jupyterlab", "papermill", "nbconvert", "ipykernel", "pyspark", "nbdev", "scikit-learn", "lifetimes"}
    assert "memtag-research" in packages and packages & unwanted == set()
    script = (
        "import memtag_research.measures.rfm as m, pandas as pd, datetime as d;"
        "days = pd.DataFrame({'member_id': ['a'], 'local_date': [d.date(2017, 11, 30)],"
        " 'cancelled_date': pd.array([pd.NaT], dtype='datetime64[us]'), 'orders': [2], 'purchase_days': [1],"
        " 'first_ts': [pd.Timestamp('2017-11-30 09:00')], 'last_ts': [pd.Timestamp('2017-11-30 17:00')],"
        " 'units': [3.0], 'gross_cents': [1250], 'net_cents': [1250]});"
        "r = m.rfm_summary(days, '2018-01-01'); r = r if isinstance(r, pd.DataFrame) else r.execute();"
        "print(m.__file__, *r[['orders', 'recency_days', 'spend_cents']].iloc[0])"
    )
    file, *figures = run(plain / "python", "-c", script, cwd=tmp_path).split()
    assert str(ROOT) not in file and figures == ["2", "31", "1250"]


def test_installed_with_reports_it_publishes_one_outside_the_checkout(plain, wheel, tmp_path):
    install(plain, f"{wheel}[reports]")
    assert installed(plain) & {"jupyterlab", "pyspark", "nbdev"} == set()
    memtag = plain / "memtag"
    assert "segment" in run(memtag, "report", "list", cwd=tmp_path)
    run(memtag, "init", "shop", "--dataset", "online-retail", cwd=tmp_path)
    run(memtag, "ingest", "-w", "shop", cwd=tmp_path)
    run(memtag, "report", "run", "segment", "--period", "2011-11", "-w", "shop", "--out", "out", cwd=tmp_path)
    [manifest] = (tmp_path / "out/segment/2011-11").glob("*/manifest.json")
    page = (manifest.parent / "index.html").read_text("utf-8")
    assert "1,664" in page  # member buyers of November 2011 (docs: figures to check)
    assert "<script src=" not in page and "http-equiv" not in page
