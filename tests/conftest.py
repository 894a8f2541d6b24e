"""Workspaces of public data, kept in .workspaces between runs. Read them; never write into them."""

import os
import shutil
from pathlib import Path

import pytest

from memtag_research.data.datasets import init_workspace
from memtag_research.data.ingest import ingest

WORKSPACES = Path(__file__).resolve().parents[1] / ".workspaces"


@pytest.fixture(scope="session")
def online_retail() -> Path:
    "The workspace of the shipped Online Retail data."
    return kept("online-retail")


@pytest.fixture(scope="session")
def complete_journey() -> Path:
    "The workspace of the Complete Journey (1,469,307 lines)."
    return kept("complete-journey")


def kept(dataset: str) -> Path:
    "The workspace, ingested anew when its mapping, its sources or the code of the data wing changed."
    root = WORKSPACES / dataset
    (root / "memtag.yaml").unlink(missing_ok=True)  # today's mapping
    ingest(init_workspace(root, dataset))
    return root


@pytest.fixture(scope="session")
def spark():
    "A local Spark session, one for the whole run; skips with the reason where there is none."
    pytest.importorskip("pyspark", reason="pyspark is not installed: pip install -e '.[spark]'")
    if not (shutil.which("java") or os.environ.get("JAVA_HOME")): pytest.skip("there is no Java on this machine")
    from memtag_research.data.engine import connect
    con = connect("pyspark", threads=2, memory_limit="1g")
    yield con
    con.disconnect()
