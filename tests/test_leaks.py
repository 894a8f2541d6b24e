"""Nothing that is printed or published shows a person whole: 200 phones, names and e-mails stand in every table, and are looked for.

What a column may hold is broken in turn (`tests/proofs/test_leaks_everywhere.py` breaks every column in every way); then all that prints or
writes is run. Files that are *for* members, such as an exported segment, name them and are left out of the search."""

import shutil
from pathlib import Path

import leak_world as world
import pytest
import yaml
from click.testing import CliRunner

from memtag_research.cli import main
from memtag_research.core import MemtagError
from memtag_research.data.ingest import ingest


def said_of(root: Path) -> str:
    "Everything that reading a workspace says, in both languages; an error that is not ours is a failure of the test."
    from memtag_research.translate import error_text
    try: report = ingest(root)
    except MemtagError as error: return "\n".join([str(error), error_text(error, "zh"), repr(error), *map(repr, getattr(error, "failures", ()))])
    return "\n".join([str(report), repr(report), report._repr_html_(), (root / "data/current/manifest.json").read_text("utf-8")])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return world.write_files(tmp_path_factory.mktemp("leaks") / "made")


def columns(made):
    sources = yaml.safe_load((made / "memtag.yaml").read_text("utf-8"))["sources"]
    return [(table, column) for table, spec in sources.items() for column in spec["columns"]]


def test_planted_texts_are_found():
    phone, name = world.people()[5].phone, world.people()[150].name
    assert world.found(f"x{phone}y {name}") == sorted([phone, name]) and not world.found(f"{phone[:3]}****{phone[-4:]} {name[:1]}***")


def test_a_column_that_shifted_does_not_show_people(made, tmp_path):
    "Each column of order_lines and members filled with phones, names and e-mails; a sixth of those of other tables."
    some = [pair for i, pair in enumerate(columns(made)) if pair[0] in ("order_lines", "members") or i % 6 == 0]
    assert len(some) > 45
    for i, (table, column) in enumerate(some):
        text = said_of(world.break_column(tmp_path / str(i), made, table, column, "moved"))
        assert not world.found(text), f"{table}.{column}: {world.found(text)}"


COMMANDS = """ingest --force | check | metrics --period 2024-02 | metrics --period 2024-02 --lang zh | rfm --as-of 2024-03-01 --out {out}/rfm.csv
tag list | tag check | tag run --as-of 2024-02-01 | tag run --as-of 2024-03-01 | tag diff 2024-02-01 2024-03-01 | tag history {member}
tag explain lifecycle {member} --as-of 2024-03-01 | tag explain {member} lifecycle | tag explain lifecycle {other} | tag history {other}
tag show lifecycle | tag assign {member} vip | segment list | segment size win_back --as-of 2024-03-01
segment explain win_back --member {member} --as-of 2024-03-01 | segment explain {member} --member win_back
segment size {member} | segment sql win_back --as-of 2024-03-01 | segment export win_back --purpose marketing --out {out}/seg.csv --as-of 2024-03-01
clv fit --as-of 2024-03-01 | clv predict --out {out}/clv.csv | churn train --as-of 2024-01-01 --horizon-days 30
churn evaluate | churn score --reasons 2 --out {out}/churn.csv | privacy record --out {out}/record.md | member export {member} --out {out}/member.html
purge | forget {member} | forget {other} | metrics --period {member} | rfm --as-of {member} --out {out}/x.csv | forget {member} --yes | ingest""".replace("\n", " | ")


def test_no_command_shows_people(made, tmp_path):
    root, out = tmp_path / "ws", tmp_path / "out"
    shutil.copytree(made, root)
    out.mkdir()
    assert CliRunner().invoke(main, ["ingest", "-w", str(root)]).exit_code == 0
    codes = {}
    for command in COMMANDS.split(" | "):
        words = command.format(out=out, member=world.people()[3].phone, other="13999999999").split()
        result = CliRunner().invoke(main, [*words, "-w", str(root)])
        codes[command] = result.exit_code
        assert result.exit_code in (0, 2), f"{command}: {result.output}"
        assert not world.found(result.output), f"{command}: {[line for line in result.output.splitlines() if world.found(line)]}"
    assert sum(code == 0 for code in codes.values()) >= 25, codes


def test_no_page_notebook_or_log_shows_people(made, tmp_path):
    "A report that is published, and one that fails halfway with its notebook kept."
    root, out = tmp_path / "ws", tmp_path / "reports"
    shutil.copytree(made, root)
    run = lambda *words: CliRunner().invoke(main, [*words, "-w", str(root)])
    assert run("ingest").exit_code == 0
    published = run("report", "run", "segment", "--period", "2024-02", "--lang", "zh", "--out", str(out))
    assert published.exit_code == 0, published.output
    days = root / "data/current/member_days.parquet"
    days.write_bytes((root / "data/current/products.parquet").read_bytes())   # a table of another shape: a traceback in the middle
    failed = run("report", "run", "segment", "--period", "2024-01", "--out", str(out))
    assert failed.exit_code in (1, 2)
    pages = [p for p in out.rglob("*") if p.is_file() and not p.is_symlink()]
    assert {".html", ".ipynb", ".json"} <= {p.suffix for p in pages} and any("_failed" in p.parts for p in pages)
    shown = {p.relative_to(out): world.found(p.read_bytes().decode("utf-8", errors="ignore")) for p in pages}
    assert not {p: texts for p, texts in shown.items() if texts}
    assert not world.found(published.output + failed.output)
