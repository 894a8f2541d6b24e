"""Whatever an export looks like, what comes out of ingest is what it was written from, and what was dropped is counted by reason."""

import tempfile
from pathlib import Path

import messy_exports as messy
from hypothesis import HealthCheck, Phase, given, settings

from memtag_research.data.ingest import ingest
from memtag_research.data.workspace import open_workspace

UTC = messy.ZoneInfo("UTC")


def expected(export: messy.Export) -> list[tuple]:
    utc = lambda ts: ts.replace(tzinfo=messy.ZONE).astimezone(UTC).replace(tzinfo=None)
    return sorted((str(n), line.order, line.member or "", utc(line.ts), str(line.ts.date()), float(line.quantity), line.cents, line.kind)
                  for n, line in enumerate(export.lines))


def ingested(root: Path) -> list[tuple]:
    rows = open_workspace(root).table("order_lines").execute()
    return sorted((r.line_id, r.order_id, r.member_id if isinstance(r.member_id, str) else "", r.ts.to_pydatetime(), str(r.local_date)[:10],
                   float(r.quantity), r.net_cents, r.line_kind) for r in rows.itertuples())


@settings(max_examples=40, deadline=None, derandomize=True, phases=[Phase.generate], suppress_health_check=[HealthCheck.too_slow])
@given(messy.exports())
def test_what_comes_out_is_what_was_written(export):
    with tempfile.TemporaryDirectory() as folder:
        report = ingest(messy.write(export, Path(folder) / "ws")).tables["order_lines"]
        assert ingested(Path(folder) / "ws") == expected(export)
        assert report.dropped == export.dropped
        assert report.read == report.rows + sum(report.dropped.values())
