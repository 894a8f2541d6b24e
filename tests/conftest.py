"""Workspaces of public data, each made once for a whole run of the tests. Read them; never write into them."""

from pathlib import Path

import pytest

from memtag_research.data.datasets import init_workspace
from memtag_research.data.ingest import ingest


@pytest.fixture(scope="session")
def online_retail(tmp_path_factory) -> Path:
    "The workspace of the shipped Online Retail data."
    return made(tmp_path_factory, "online-retail")


@pytest.fixture(scope="session")
def complete_journey(tmp_path_factory) -> Path:
    "The workspace of the Complete Journey (1,469,307 lines)."
    return made(tmp_path_factory, "complete-journey")


def made(tmp_path_factory, dataset: str) -> Path:
    root = init_workspace(tmp_path_factory.mktemp("workspaces") / dataset, dataset)
    ingest(root)
    return root
