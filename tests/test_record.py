"""The record of processing says what is there, held against the files themselves, and what nobody declared."""

import json
import re
from datetime import date

import duckdb
import pandas as pd
import pytest
import yaml
from click.testing import CliRunner

from memtag_research.cli import main
from memtag_research.core import ParameterError
from memtag_research.data.contracts import contracts
from memtag_research.data.privacy import forget
from memtag_research.data.retention import purge
from memtag_research.data.simulate import make_programme
from memtag_research.data.workspace import GRAINS, open_workspace
from memtag_research.insight import access
from memtag_research.insight.access import member_export
from memtag_research.insight.catalogue import workspace_catalogue
from memtag_research.insight.record import record_of_processing
from memtag_research.tags.export import export_segment
from memtag_research.tags.given import put_scores
from memtag_research.tags.runs import take_snapshot

TODAY = "2024-01-02"


def section(record, key): return next(s for s in record.sections if s.key == key)


@pytest.fixture(scope="module")
def lived(tmp_path_factory):
    "A programme that was used: tags, a score, a report, exports, a request, somebody forgotten, a purge."
    ws = make_programme(120, "2022-07-01", "2024-01-01", seed=11, directory=tmp_path_factory.mktemp("record") / "ws").workspace
    with (ws.root / "memtag.yaml").open("a") as f: f.write("retention_days: {events: 300, order_lines: 1000}\nk: 2\n")
    ws = open_workspace(ws.root)
    catalogue = workspace_catalogue(ws)
    take_snapshot(ws, catalogue, "2023-12-01", ["lifecycle", "do_not_contact", "minor", "no_profiling", "tier"])
    who = sorted(ws.table("orders").member_id.execute().dropna())
    put_scores(ws, pd.DataFrame({"member_id": [who[0]], "score": [.25]}), "propensity", "1", "2023-12-01")
    export_segment(ws, catalogue, "lifecycle != 'lost' or lifecycle == 'lost'", "2023-12-01", ws.root.parent / "all.csv", channel="sms")
    member_export(ws, who[-1], TODAY).save(ws.root.parent / "one.json")
    forget(ws.root, who[0])
    purge(ws.root, TODAY, yes=True)
    served = ws.root / "reports/segment/2023-11/.versions/en-1"
    served.mkdir(parents=True)
    (served / "manifest.json").write_text(json.dumps({"finished": "2023-12-05T10:00:00Z", "files": {}}))
    (served.parent.parent / "en").symlink_to(".versions/en-1")
    return open_workspace(ws.root), who


def test_tables_rows_and_days_are_those_of_the_files(lived):
    ws, _ = lived
    rows = {r[0]: r for r in section(record_of_processing(ws, TODAY, "en"), "record_data").rows}
    assert len(rows) == len([n for n in ws.tables() if n not in GRAINS])
    for name, title in (("order_lines", "Purchases"), ("events", "Visits and clicks"), ("products", "Products")):
        day = "min(local_date), max(local_date), count(DISTINCT member_id)" if name != "products" else "NULL, NULL, NULL"
        n, first, last, people = duckdb.sql(f"SELECT count(*), {day} FROM '{ws.folder}/{name}.parquet'").fetchone()
        assert rows[title][1] == f"{n:,}" and rows[title][2] == (f"{first} – {last}" if first else "")
        assert rows[title][3] == (f"{people:,}" if people else "")
    assert (rows["Visits and clicks"][4], rows["Purchases"][4], rows["Points"][4], rows["Products"][4]) == (300, 1000, "–", "")


def test_every_column_about_people_is_listed_with_its_class(lived):
    ws, _ = lived
    listed = {(t, c): p for t, c, p in section(record_of_processing(ws, TODAY, "en"), "record_columns").rows}
    text = yaml.safe_load((access.files("memtag_research.data") / "contracts.yaml").read_text())
    for name in [n for n in ws.tables() if n in contracts()]:
        for c in ws.table(name).columns:
            said = text[name]["columns"][c].get("privacy", "public")
            assert ((access.table_title(name, "en"), c) in listed) == (said != "public"), (name, c)


def test_who_got_what_and_who_asked(lived):
    ws, who = lived
    record = record_of_processing(ws, TODAY, "en")
    (sent,), (asked,) = section(record, "record_exports").rows, section(record, "record_access").rows
    assert sent[2] == "all.csv" and sent[4:6] == ("marketing", "sms") and sent[6] > 0 and asked[2] == "one.json"
    assert section(record, "record_recipients").rows == (("sms", "marketing"),)
    assert section(record, "record_reports").rows == (("segment", "2023-11", "2023-12-05"),)
    deleted = section(record, "record_deleted").rows
    assert [r[1] for r in deleted] == ["memtag forget", "memtag purge"] and "events rows" in deleted[1][2]
    models = dict(section(record, "record_models").rows)
    assert any(name.startswith("propensity") for name in models) or who[0] not in str(models)
    for text in (record.markdown, record.html, str(record_of_processing(ws, TODAY, "zh"))):
        assert [i for i in {*who} if i in text] == []


def test_tags_stand_under_their_purpose(lived):
    ws, _ = lived
    rows = section(record_of_processing(ws, TODAY, "en"), "record_tags").rows
    catalogue, by = workspace_catalogue(ws), {r[1]: r for r in rows}
    active = [t for t in catalogue.tags.values() if t.status == "active"]
    assert len(rows) == len(active)
    for t in active:
        row = by[t.title["en"]]
        assert (row[0] == "(none declared)") == (not t.purpose) and row[3] == t.basis
    assert by[catalogue.tags["lifecycle"].title["en"]][5] == date(2023, 12, 1) and by[catalogue.tags["do_not_contact"].title["en"]][0] == "compliance"


def test_what_is_not_declared_is_said_first(lived, tmp_path):
    ws, _ = lived
    record = record_of_processing(ws, TODAY, "en")
    assert record.sections[0].key == "record_undeclared"
    limits = record.sections[0].lines[0]
    assert "points_ledger" in limits or "members" in limits
    assert not re.search(r"\bevents\b|\border_lines\b", limits) and "impact assessment" in record.sections[0].lines[-1]
    data = ws.folder / "members.parquet"
    before = data.read_bytes()
    try:
        duckdb.sql(f"COPY (SELECT *, 'x' AS shoe_size, 'low' AS income_band FROM '{data}') TO '{tmp_path}/m.parquet'")
        data.write_bytes((tmp_path / "m.parquet").read_bytes())
        lines = "\n".join(record_of_processing(open_workspace(ws.root), TODAY, "en").sections[0].lines)
        assert "members.shoe_size" in lines and "members.income_band" in lines
    finally: data.write_bytes(before)


def test_a_workspace_that_declares_nothing_is_told_so(tmp_path):
    ws = make_programme(40, "2023-01-01", "2023-07-01", seed=2, directory=tmp_path / "ws").workspace
    (ws.root / "memtag.yaml").write_text((ws.root / "memtag.yaml").read_text() + "consent: not_required\nconsent_reason: contract with members\nk: 1\n")
    record = record_of_processing(open_workspace(ws.root), TODAY, "en")
    assert "order_lines" in record.sections[0].lines[0] and "None on record." in record.markdown
    assert "Reason given: contract with members" in record.markdown and "k is 1: small cells are shown" in record.markdown
    assert "Nothing was purged yet." in record.markdown


def test_a_file_that_others_can_read_is_found(tmp_path):
    ws = make_programme(40, "2023-01-01", "2023-07-01", seed=2, directory=tmp_path / "ws").workspace
    take_snapshot(ws, workspace_catalogue(ws), "2023-06-01", ["lifecycle"])
    said = lambda: section(record_of_processing(ws, TODAY, "en"), "record_safeguards").lines[1]
    assert "owner only: data/, tags/" in said()
    (ws.root / "tags").chmod(0o755)
    (ws.root / "tags/keys.parquet").chmod(0o644)
    assert "can be read by others: tags, tags/keys.parquet" in said()


def test_both_languages_have_every_word(lived):
    ws, _ = lived
    known = access._words()
    assert {k: set(v) for k, v in known.items() if set(v) != {"en", "zh"}} == {}
    braces = lambda text: sorted(re.findall(r"\{(\w+)\}", text))
    assert {k for k, v in known.items() if braces(v["en"]) != braces(v["zh"])} == set()
    assert {f"table_{n}" for n in (*contracts(), *GRAINS)} <= set(known)
    zh = record_of_processing(ws, TODAY, "zh")
    assert zh.title.startswith("个人信息处理记录") and [len(s.rows) for s in zh.sections] == [len(s.rows) for s in record_of_processing(ws, TODAY, "en").sections]
    source = "".join(p.read_text("utf-8") for p in sorted((access.Path(access.__file__).parent).glob("*.py")))
    assert {k for k in known if not k.startswith(("table_", "purpose_", "privacy_", "col_", "open_", "lists_")) and not re.search(f"['\"]{k}['\"]", source)} == set()


def test_files_and_what_is_refused(lived, tmp_path):
    ws, _ = lived
    record = record_of_processing(ws, TODAY, "en")
    for name in ("record.md", "record.html"): assert oct(record.save(tmp_path / name).stat().st_mode)[-3:] == "600"
    assert "<script" not in record.html and "src=" not in record.html and "http" not in record.html
    with pytest.raises(ParameterError, match="ends in .md or .html"): record.save("record.pdf")
    with pytest.raises(ParameterError, match="today must be a date"): record_of_processing(ws, "soon")


def test_commands(lived, tmp_path):
    ws, who = lived
    run = lambda *words: CliRunner().invoke(main, [*map(str, words), "-w", str(ws.root), "--today", TODAY])
    made = run("privacy", "record", "--out", tmp_path / "r.md", "--lang", "zh")
    assert made.exit_code == 0 and "个人信息处理记录" in (tmp_path / "r.md").read_text() and "retention_days" in made.output
    told = run("member", "export", who[-1], "--out", tmp_path / "m.html")
    assert told.exit_code == 0 and who[-1] not in told.output and who[-1] in (tmp_path / "m.html").read_text()
    wrong = run("member", "export", "13800138000", "--out", tmp_path / "x.html")
    assert wrong.exit_code == 2 and "138****8000" in wrong.output and not (tmp_path / "x.html").exists()
    assert run("member", "export", who[-1], "--out", tmp_path / "x.doc").exit_code == 2
    assert "nothing is older than retention_days" in run("purge").output
    later = CliRunner().invoke(main, ["purge", "-w", str(ws.root), "--today", "2024-03-01"])
    assert later.exit_code == 2 and "would go" in later.output and "say --yes" in later.output
    assert "nothing is older" in run("purge").output
