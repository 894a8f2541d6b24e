"""Runs a proof when its hash has changed, keeps its figures when it passes, says that it stands otherwise."""

import json
import os
import platform
from datetime import UTC, datetime

import ledger
import pytest

HASH, FIGURES = pytest.StashKey[str](), pytest.StashKey[dict]()


def pytest_itemcollected(item):
    "A proof is never part of `make test`."
    if item.get_closest_marker("proof"):
        item.add_marker("prove")


def pytest_runtest_setup(item):
    "Skip a proof that stands."
    if not (mark := item.get_closest_marker("proof")):
        return
    item.stash[HASH] = ledger.proof_hash(item.path, mark.kwargs["covers"], mark.kwargs.get("data", []))
    if (entry := ledger.proofs().get(mark.kwargs["name"])) and entry["hash"] == item.stash[HASH]:
        pytest.skip(f"stands: {mark.kwargs['name']}, proved on {entry['proved_on']} in {entry['seconds']:.0f} s")


@pytest.fixture
def record_proof(request):
    "Call with the figures (a flat dict of numbers and strings); they are written if the proof passes."

    def record(figures: dict) -> None:
        json.dumps(figures)  # an unwritable figure fails here, in the proof
        request.node.stash[FIGURES] = figures

    return record


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    mark = item.get_closest_marker("proof")
    if not mark or call.when != "call" or not report.passed:
        return report
    if FIGURES not in item.stash:
        report.outcome, report.longrepr = "failed", "The proof passed without calling record_proof: no figures to keep."
        return report
    try:
        ledger.write(mark.kwargs["name"], entry_of(item, mark, call.duration))
    except OSError as error:
        report.sections.append(("proof", f"{mark.kwargs['name']} holds; its figures could not be written: {error}"))
        print(report.sections[-1][1])
    return report


def entry_of(item, mark, seconds: float) -> dict:
    "What docs/proofs/<name>.json holds."
    return {
        "test": f"{item.path.name}::{item.originalname}",
        "hash": item.stash[HASH],
        "covers": mark.kwargs["covers"],
        "data": mark.kwargs.get("data", []),
        "proved_on": datetime.now(UTC).date().isoformat(),
        "seconds": round(seconds, 1),
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}, {platform.machine()}",
        "figures": item.stash[FIGURES],
    }
