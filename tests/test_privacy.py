"""Forgetting: nothing in the workspace names the member any more, every total is what it was, and nobody comes back."""

import gzip
import hashlib
import io
import json
import os
import zipfile
from pathlib import Path

import openpyxl
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from memtag_research.core import MemtagError, ParameterError
from memtag_research.data import privacy
from memtag_research.data.ingest import check_workspace, ingest
from memtag_research.data.privacy import KeyMap, forget
from memtag_research.data.simulate import make_programme
from memtag_research.data.workspace import open_workspace
from memtag_research.tags.catalogues import read_catalogue
from memtag_research.tags.given import assign, assign_many, put_scores
from memtag_research.tags.runs import take_snapshot
from memtag_research.tags.store import Store

CATALOGUE = read_catalogue("""
sources: {orders: {table: orders}}
metrics: {orders_all: {source: orders, agg: count, days: all}}
tags:
  bought: {class: behaviour, kind: flag, when: orders_all > 0}
  orders: {class: behaviour, kind: number, metric: orders_all}
  vip: {class: value, kind: assigned, channels: [manual, import], precedence: [manual, import], values: [gold, black]}
""")


def contents(path: Path):
    "(what, bytes) of everything in a file: as it is, unpacked, and every value of Parquet as text."
    raw = path.read_bytes()
    yield "raw", raw
    if raw[:2] == b"\x1f\x8b": yield "gzip", gzip.decompress(raw)
    if zipfile.is_zipfile(io.BytesIO(raw)):
        with zipfile.ZipFile(io.BytesIO(raw)) as z:
            for name in z.namelist(): yield name, z.read(name)
    if path.suffix == ".parquet":
        for name, column in zip(pq.read_schema(path).names, pq.read_table(path).columns):
            yield name, "\n".join(map(str, column.to_pylist())).encode()


def found(root: Path, texts, keys=()) -> list:
    "Where any of the texts stands; keys may stand as numbers in snapshots, and nowhere else."
    hits = []
    for path in (p for p in root.rglob("*") if p.is_file() and not p.is_symlink()):
        snapshot = path.name == "tags.parquet"
        for what, raw in contents(path):
            for text in [*texts, *([] if snapshot else map(str, keys))]:
                if str(text).encode() in raw: hits.append((path.relative_to(root).as_posix(), what, text))
    return hits


@pytest.fixture
def programme(tmp_path):
    "A simulated programme with snapshots, assigned tags, scores, reports and exports, and the member who wants to go."
    ws = make_programme(120, "2023-01-01", "2024-01-01", seed=11, directory=tmp_path / "ws").workspace
    merges, lines = ws.table("member_merges").execute(), ws.table("order_lines").execute()
    bought = lines.member_id.value_counts()
    who = next((i for i in merges.to_id if i in bought.index), bought.index[0])
    cards = [who, *merges.from_id[merges.to_id == who]]
    phones = ws.table("identities").filter(lambda t: t.member_id.isin(cards)).channel_id.to_pyarrow().to_pylist()
    take_snapshot(ws, CATALOGUE, "2023-07-01", ["bought", "orders"])
    others = [i for i in bought.index if i not in cards][:3]
    assign_many(ws, CATALOGUE, pd.DataFrame({"member_id": [who, *others], "value": "gold", "reason": [f"called {phones[0]}", f"friend of {who}", None, None]}), tag="vip", by=who)
    assign(ws, CATALOGUE, "vip", who, "black", by="Anna")
    put_scores(ws, pd.DataFrame({"member_id": [who, *others], "score": .5}), "churn", "1", "2023-07-01")
    take_snapshot(ws, CATALOGUE, "2023-10-01")
    keys = KeyMap(ws.root).keys_for(cards).tolist()
    litter(ws.root, who, keys[0], phones[0], others[0])
    return ws.root, who, cards, phones, keys


def litter(root, who, key, phone, other):
    "Files in which a workspace comes to hold a member: a report, a notebook that failed, exports, a list."
    served = root / "reports/segment/2023-07/.versions/en-1"
    served.mkdir(parents=True)
    files = {"index.html": f"<p>{who} bought 3</p>", "tables/n.csv": f"member_id,spend\n{who},100\n{other},200\n"}
    for name, text in files.items():
        (served / name).parent.mkdir(exist_ok=True)
        (served / name).write_text(text)
    told = {name: {"bytes": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()} for name, text in files.items()}
    (served / "manifest.json").write_text(json.dumps({"files": told}))
    (served.parent.parent / "en").symlink_to(".versions/en-1")
    failed = root / "reports/_failed/segment/2023-07/en-1"
    failed.mkdir(parents=True)
    (failed / "report.ipynb").write_text(json.dumps({"cells": [{"source": f"look at {who}"}]}))
    exports, book = root / "exports", openpyxl.Workbook()
    exports.mkdir()
    for row in (["member_id", "member_key", "tag"], [who, str(key), "vip"], [other, "1", "vip"]): book.active.append(row)
    book.save(exports / "audience.xlsx")
    (exports / "audience.json").write_text(json.dumps({"members": [who, other], "keys": [key, 1]}))
    (exports / "wecom.csv.gz").write_bytes(gzip.compress(f"会员号,标签\n{who},vip\n".encode("gb18030")))
    (exports / "log.txt").write_text(f"sent to {phone} at noon")
    pq.write_table(pa.table({"member_key": pa.array([key, 1]), "who": [who, other], "n": [1, 2]}), exports / "audience.parquet")
    (root / "catalogue").mkdir()
    (root / "catalogue/own.yaml").write_text(f"segments:\n  friends: {{where: bought, include: [{key}, 12]}}\n")


def totals(root):
    "What has to stay: rows and sums of the tables, members, sums of the snapshots."
    ws, out = open_workspace(root), {}
    for name in ws.tables():
        table, hidden = ws.table(name), ("identities", "consents")
        numbers = [c for c, t in table.schema().items() if t.is_integer()]
        out[name] = table.aggregate(**{"rows_": table.count(), **{c: table[c].sum() for c in numbers}}).execute().iloc[0].tolist() if name not in hidden else 0
    out["members of lines"] = ws.table("order_lines").member_id.nunique().execute()
    for day in Store(ws).dates(): out[f"{day}"] = Store(ws).snapshot(day).table().aggregate(n=lambda t: t.count(), s=lambda t: t.orders.sum()).execute().values.tolist()
    return out


def test_after_forget_nothing_names_the_member_and_every_total_stands(programme):
    root, who, cards, phones, keys = programme
    before, texts = totals(root), [*cards, *phones]
    assert {h[0].split("/")[0] for h in found(root, texts, keys)} >= {"data", "tags", "reports", "exports", "truth", "catalogue"}
    done = forget(root, who)
    assert found(root, texts, keys) == []
    assert done.people == len(cards) and done.sources == () and done.look_at == []
    assert totals(root) == before
    assert check_workspace(open_workspace(root)) == [] and Store(open_workspace(root)).check() == []
    stones = json.loads((root / "data/tombstones.json").read_text())
    assert [(s["ids"], s["keys"]) for s in stones] == [(len(cards), len(keys))]
    assert not (root / "data/.forgetting.json").exists() and len(list((root / "data").glob("v-*"))) == 1


def test_what_is_left_is_whole(programme):
    root, who, cards, *_ = programme
    forget(root, who)
    ws = open_workspace(root)
    gone = ws.table("members").filter(lambda t: t.member_id.startswith("forgotten-")).execute()
    assert len(gone) == len(cards) and gone.closed_date.notna().all()
    assert gone[["birth_date", "age_band", "gender", "city", "household_id"]].isna().all().all()
    consents = ws.table("consents").filter(lambda t: t.member_id.startswith("forgotten-")).execute()
    last = consents.sort_values("ts").groupby(["member_id", "purpose"]).granted.last()
    assert len(last) and not last.any()                     # an opt-out, whatever was granted before
    assert not ws.table("identities").filter(lambda t: t.member_id.startswith("forgotten-")).count().execute()
    served = root / "reports/segment/2023-07/.versions/en-1"
    told = json.loads((served / "manifest.json").read_text())["files"]
    for name, f in told.items():
        raw = (served / name).read_bytes()
        assert (len(raw), hashlib.sha256(raw).hexdigest()) == (f["bytes"], f["sha256"])
    assert pd.read_csv(served / "tables/n.csv").spend.sum() == 300
    assert not (root / "reports/_failed/segment/2023-07/en-1/report.ipynb").exists()
    rows = [[c.value for c in row] for row in openpyxl.load_workbook(root / "exports/audience.xlsx").active.iter_rows()]
    assert len(rows) == 3 and rows[1][0] == "forgotten"
    assert json.loads((root / "exports/audience.json").read_text())["keys"] == [0, 1]
    assert "include: [0, 12]" in (root / "catalogue/own.yaml").read_text()
    log = pd.concat(pd.read_parquet(p) for p in (root / "tags/assigned").glob("*.parquet"))
    assert len(log) == 3 and set(log.assigned_by) == {"forgotten"} and "friend of forgotten" in set(log.reason)
    assert set(KeyMap(root).read()["member_id"].to_pylist()).isdisjoint(cards)
    assert oct((root / "tags/keys.parquet").stat().st_mode)[-3:] == "600"


def test_later_snapshots_and_forgetting_go_on(programme):
    root, who, *_ = programme
    forget(root, who)
    ws = open_workspace(root)
    made = take_snapshot(ws, CATALOGUE, "2023-10-01", ["bought", "orders"])
    assert made.rows == Store(ws).snapshot("2023-10-01", Store(ws).runs("2023-10-01")[0]).rows
    with pytest.raises(ParameterError, match=r"1 of the members is not in this workspace, such as M\*\*\*\*"): forget(root, who)
    with pytest.raises(ParameterError, match="name the members to forget"): forget(root)
    nobody = ws.table("members").filter(lambda t: t.member_id.startswith("forgotten-")).member_id.min().execute()
    assert forget(root, nobody).people >= 1     # a pseudonym is an id like any other


class Killed(BaseException):
    "Stands for SIGKILL: nothing that is written for exceptions catches it."


STEPS = ["_suppress", "_new_version", "_clean_logs", "_clean_parquet", "_clean_texts", "_tombstone", "_names"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("late", [False, True])
def test_killed_between_two_steps_it_is_completed_by_the_next_run(programme, monkeypatch, step, late):
    root, who, cards, phones, keys = programme
    before, real = totals(root), getattr(privacy, step)

    def dies(*args):
        made = real(*args)
        if late and made is not None and not isinstance(made, bool): list(made)
        raise Killed

    monkeypatch.setattr(privacy, step, dies)
    if step == "_names": (root / "memtag.yaml").write_text((root / "memtag.yaml").read_text() + f"# {who}\n")
    with pytest.raises(Killed): forget(root, who)
    monkeypatch.undo()
    (root / "memtag.yaml").write_text((root / "memtag.yaml").read_text().replace(f"# {who}\n", ""))
    done = forget(root)
    assert done.people == len(cards) and found(root, [*cards, *phones], keys) == [] and totals(root) == before
    assert len(json.loads((root / "data/tombstones.json").read_text())) == 1


def test_a_full_disk_says_how_to_go_on(programme, monkeypatch):
    root, who, cards, phones, keys = programme
    def full(*args): raise OSError(28, "No space left on device")
    monkeypatch.setattr(privacy, "_reseal", full)
    with pytest.raises(MemtagError, match="No space left on device.*run memtag forget -w .* again"): forget(root, who)
    monkeypatch.undo()
    forget(root)
    assert found(root, [*cards, *phones], keys) == []


# --- sources: what ingest brings

LINES = """line,receipt,customer,when,amount,till
1,R1,304,2024-01-02 10:00:00,10.00,304
2,R2,304,2024-01-03 10:00:00,5.50,1
3,R3,305,2024-01-03 11:00:00,7.00,304
"""
MEMBERS = "customer,joined,name,phone,level\n304,2023-12-01 10:00:00,王小明,13800138000,gold\n305,2023-12-02 10:00:00,李雷,13900139000,gold\n"
MAPPING = """name: shop
currency: CNY
zone: Asia/Shanghai
sources:
  order_lines:
    files: ../sources/lines.csv
    columns: {line_id: line, order_id: receipt, member_id: customer, ts: when, net_cents: amount, quantity: {value: 1}, line_kind: {value: sale}, store_id: till}
  members:
    files: ../sources/members.csv
    columns: {member_id: customer, joined_at: joined, full_name: {from: name, type: string}, phone: {from: phone, type: string}, level: {from: level, type: string}}
"""


@pytest.fixture
def shop(tmp_path):
    "A shop whose customers have short numbers, names and phones; its sources lie outside the workspace."
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources/lines.csv").write_text(LINES)
    (tmp_path / "sources/members.csv").write_text(MEMBERS)
    root = tmp_path / "ws"
    root.mkdir()
    (root / "memtag.yaml").write_text(MAPPING)
    ingest(root)
    return root


def test_a_member_whose_phone_became_a_key_is_found_by_the_phone(shop):
    "The phone itself stands nowhere in the tables, but it is what people know of themselves."
    root, text = shop, (shop / "memtag.yaml").read_text()
    (root.parent / "sources/lines.csv").write_text(LINES.replace(",304,2024", ",138 0013-8000,2024").replace(",305,2024", ",13900139000,2024"))
    keyed = text.replace("member_id: customer, ts", "member_id: {from: customer, keyed: true}, ts").replace("member_id: customer, joined_at", "member_id: {from: phone, keyed: true}, joined_at").replace(", phone: {from: phone, type: string}", "")
    (root / "memtag.yaml").write_text(keyed)
    ingest(root)
    (root / "note.txt").write_text("call +86 13800138000")
    ids = open_workspace(root).table("order_lines").member_id.execute()
    assert {len(i) for i in ids} == {32} and ids.nunique() == 2
    assert privacy.held_ids(root, ["13800138000", "+86 138-0013-8000", ids[0]]) == [ids[0]] * 3
    done = forget(root, "13800138000")
    assert done.people == 1 and "13800138000" not in (root / "note.txt").read_text() and found(root, [ids[0]]) == []
    with pytest.raises(ParameterError, match=r"such as 138\*\*\*\*8001"): forget(root, "13800138001")
    ingest(root, force=True)
    assert ids[0] not in set(open_workspace(root).table("order_lines").member_id.execute())


def test_ingest_does_not_bring_a_forgotten_member_back(shop):
    (shop / "notes.txt").write_text("Call 王小明 at 13800138000 about receipt 304.")
    (shop / "list.csv").write_text("customer,n\n304,304\n305,1\n")
    done = forget(shop, "304")
    assert sorted(Path(p).name for p in done.sources) == ["lines.csv", "members.csv"]
    assert (shop / "list.csv").read_text() == "customer,n\nforgotten,304\n305,1\n"     # the number 304 stays
    assert (shop / "notes.txt").read_text() == "Call forgotten at forgotten about receipt 304."
    assert sorted(done.look_at) == [("list.csv", "look at it", 1), ("notes.txt", "look at it", 1)]
    for force in (False, True, True):
        ws = open_workspace(shop)
        lines = ws.table("order_lines").execute()
        assert lines.net_cents.sum() == 2250 and sorted(lines.store_id) == ["1", "304", "304"]   # a till is no member
        assert sorted(i[:10] for i in lines.member_id) == ["305", "forgotten-", "forgotten-"] and lines.member_id.nunique() == 2
        members = ws.table("members").execute().set_index("member_id")
        gone = members[members.index != "305"]
        assert gone[["full_name", "phone", "level"]].isna().all().all() and gone.closed_date.notna().all()
        assert members.loc["305", "full_name"] == "李雷"
        assert ws.table("orders").execute().member_id.nunique() == 2 and check_workspace(ws) == []
        assert found(shop, ["王小明", "13800138000"]) == []
        pseudonym = gone.index[0]
        report = ingest(shop, force=force)
        assert report.unchanged is False                  # the list of the forgotten is part of what names a version
        assert pseudonym not in open_workspace(shop).table("members").member_id.execute().tolist()   # a fresh one each time
    assert ingest(shop).unchanged
    listed = json.loads((shop / "data/forgotten.json").read_text())["digests"]
    assert len(listed) == 1 and all(len(d) == 64 for d in listed) and hashlib.sha256(b"304").hexdigest() not in listed
    assert oct((shop / "data/.forgotten.secret").stat().st_mode)[-3:] == "600" == oct((shop / "data/forgotten.json").stat().st_mode)[-3:]


def test_a_short_number_in_a_page_is_listed_not_replaced(shop):
    (shop / "page.html").write_text("<td>304</td>")
    done = forget(shop, ["304"])
    assert (shop / "page.html").read_text() == "<td>304</td>" and done.look_at == [("page.html", "look at it", 1)]
    assert "page.html: look at it" in str(done) and "王小明" not in str(done) and "13800138000" not in done._repr_html_()


def test_keys_say_nothing_and_stay(tmp_path):
    keys = KeyMap(tmp_path)
    ids = [f"M{i:05}" for i in range(5000)]
    first = keys.keys_for(ids)
    assert first.is_unique and first.between(1, 2**63 - 1).all()
    assert keys.keys_for(reversed(ids)).tolist() == first[::-1].tolist()
    order = pd.Series(range(5000)).corr(first.rank(), method="spearman")
    assert abs(order) < .06                                 # 4 standard errors of no relation
    stored = pq.read_table(keys.path)
    assert stored["member_key"].to_pylist() == sorted(first)  # not even the order of the file tells who came first
    assert os.stat(keys.path).st_mode & 0o077 == 0


def test_files_exported_before_are_listed(programme):
    "The record names no members: every file that was written, and is not empty, may hold them."
    root, who = programme[:2]
    entry = {"when": "2023-11-02T10:00:00Z", "segment": "lost", "purpose": "marketing", "shape": "csv", "file": "lost.csv", "rows": 1200}
    lines = [json.dumps({**entry, **more}) for more in ({}, {"file": "full.csv"}, {"file": "full.csv", "failed": "No space left"}, {"file": "empty.csv", "rows": 0},
                                                       {"file": "one.xlsx", "rows": 1, "purpose": "service"})]
    (root / "tags/exports.jsonl").write_text("\n".join([*lines, '{"when": "2023']))
    done = forget(root, who)
    assert done.exports == ("2023-11-02  lost.csv (1,200 rows, marketing, segment lost)", "2023-11-02  one.xlsx (1 row, service, segment lost)")
    assert "and delete them:" in str(done) and "  2023-11-02  lost.csv" in str(done) and "full.csv" not in str(done) and "empty.csv" not in str(done)


def test_a_refusal_of_today_does_not_stretch_the_log(programme):
    "Forgetting refuses every purpose, today; what is said of the end of the data is as before."
    from memtag_research.tags.compile import compile_tags
    root, who = programme[:2]
    catalogue = read_catalogue("""
sources: {orders: {table: orders}, consents: {table: consents}}
metrics: {orders_all: {source: orders, agg: count, days: all}, asked: {source: consents, agg: count, days: all}}
tags: {bought: {class: behaviour, kind: flag, when: orders_all + asked > 0}}
""")
    before = compile_tags(catalogue, open_workspace(root), "2024-06-01").warnings
    forget(root, who)
    assert before and "days after the last row" in before[0] and compile_tags(catalogue, open_workspace(root), "2024-06-01").warnings == before
