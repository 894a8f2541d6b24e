"""Every column of every table, broken in five ways: no message, in English or Chinese, shows one of 600 planted texts."""

from pathlib import Path

import leak_world as world
import pytest
import yaml

from memtag_research.core import MemtagError
from memtag_research.data.ingest import ingest
from memtag_research.translate import error_text

COVERS = ["memtag_research/core.py", "memtag_research/translate.py", "memtag_research/errors_zh.yaml", "memtag_research/data/contracts.yaml",
          *(f"memtag_research/data/{m}.py" for m in ("contracts", "sources", "values", "ingest"))]


@pytest.mark.proof(name="leaks_everywhere", covers=["tests/proofs/test_leaks_everywhere.py", "tests/leak_world.py", *COVERS])
def test_no_broken_column_shows_anybody(tmp_path, record_proof):
    made = world.write_files(tmp_path / "made")
    sources = yaml.safe_load((made / "memtag.yaml").read_text("utf-8"))["sources"]
    counts, leaks = {"columns": 0, "refused": 0, "read": 0, "leaks": 0}, []
    for table, spec in sources.items():
        for column in spec["columns"]:
            counts["columns"] += 1
            for how in ("moved", "some", "twice", "gone", "empty"):
                root = world.break_column(tmp_path / f"{table}-{column}-{how}", made, table, column, how)
                text, outcome = _said(root)
                counts[outcome] += 1
                if world.found(text): leaks.append(f"{table}.{column} {how}: {world.found(text)[:3]}")
    counts["leaks"] = len(leaks)
    assert not leaks, leaks
    assert counts["refused"] > 300 and counts["read"] > 100, counts
    record_proof(counts)


def _said(root: Path) -> tuple[str, str]:
    try: report = ingest(root)
    except MemtagError as error:
        return "\n".join([str(error), error_text(error, "zh"), *map(repr, getattr(error, "failures", ()))]), "refused"
    return "\n".join([str(report), (root / "data/current/manifest.json").read_text("utf-8")]), "read"
