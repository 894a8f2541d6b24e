"""The store: snapshots whole or not at all, nothing overwritten, damage named; refresh, history and logs against plain Python."""

import errno
import json
import multiprocessing
import os
import shutil
import subprocess
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from memtag_research.core import MemtagError, NotComputable, ParameterError
from memtag_research.data.privacy import KeyMap, writing_tags
from memtag_research.data.simulate import make_programme
from memtag_research.data.workspace import open_workspace
from memtag_research.insight.catalogue import shipped_catalogue
from memtag_research.tags import given as log_module
from memtag_research.tags import runs, snapshots
from memtag_research.tags.catalogues import read_catalogue
from memtag_research.tags.compile import compile_tags
from memtag_research.tags.given import all_tables, assign, assign_many, open_entries, put_scores, revoke
from memtag_research.tags.runs import backfill, refresh, take_snapshot
from memtag_research.tags.store import Store

TEXT = """
sources:
  orders: {table: orders}
  lines: {table: order_lines, join: {products: product_id}}
metrics:
  orders_all: {source: orders, agg: count, days: all}
  recency: {source: orders, agg: days_since_last, days: all}
  spend: {source: orders, agg: sum, of: net_cents, days: all}
parameters:
  gap: {calibrate: quantile, of: recency, q: 0.5, min_n: 20, freeze: quarterly}
tags:
  bought: {class: behaviour, kind: flag, when: orders_all > 0}
  orders: {class: behaviour, kind: number, metric: orders_all}
  rhythm: {class: behaviour, kind: rules, refresh: monthly, valid_for: 40d, values: {fresh: recency <= gap, old: recency > gap}}
  weekly: {class: behaviour, kind: number, metric: orders_all, refresh: weekly, valid_while: recency <= 30}
  fixed: {class: behaviour, kind: number, metric: recency, refresh: static}
  level: {class: consumption, kind: quantile, metric: spend, values: [low, mid, high], refresh: quarterly, freeze: quarterly}
  taste: {class: interest, kind: affinity, source: lines, by: products.category, days: all, min_tgi: 100, min_rows: 1, top: 3}
  vip: {class: value, kind: assigned, channels: [manual, import], precedence: [manual, import], values: [gold, black]}
  known: {class: value, kind: assigned, channels: [manual, guide], precedence: [manual, guide]}
  risk: {class: lifecycle, kind: score, model: churn, values: {high: 0.5, low: 0}}
"""
CATALOGUE = read_catalogue(TEXT)
DAY = date(2023, 9, 1)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_programme(120, "2023-01-01", "2024-01-01", seed=5, directory=tmp_path_factory.mktemp("made") / "ws").workspace.root


@pytest.fixture
def ws(made, tmp_path):
    shutil.copytree(made, tmp_path / "ws", symlinks=True)
    return open_workspace(tmp_path / "ws")


def by_id(ws, table):
    "A snapshot's table by member id, in pandas."
    frame = table.execute()
    return frame.assign(member_id=KeyMap(ws.root).ids_for(frame.member_key)).drop(columns="member_key").set_index("member_id").sort_index()


def plain(column):
    "A column as Python values; lists as lists, null as None."
    return [list(v) if isinstance(v, (list, np.ndarray)) else None if pd.isna(v) else v for v in column.astype(object)]


def everything(root):
    "Every file under tags and what it holds, locks apart."
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in (root / "tags").rglob("*") if p.is_file() and p.name != ".lock"}


# --- a snapshot

def test_a_snapshot_holds_what_was_compiled_under_keys(ws):
    got = take_snapshot(ws, CATALOGUE, DAY)
    want = compile_tags(CATALOGUE, ws, DAY).to_frame().set_index("member_id").sort_index()
    have = by_id(ws, got.table(ws.con))
    for tag in got.tags:
        assert plain(have[tag]) == plain(want[tag]), tag
    assert list(have.index) == list(want.index) and got.rows == len(want)
    keys = got.table().member_key.execute()
    assert keys.is_monotonic_increasing and keys.is_unique
    assert got.tags["bought"]["values"] == {str(v).lower(): n for v, n in want.bought.value_counts().items()}
    assert got.tags["taste"]["type"] == "list" and got.tags["orders"]["type"] == "number" and got.tags["bought"]["type"] == "boolean"
    assert (got.counts().groupby("tag").members.sum()[["bought", "rhythm", "level"]] == got.rows).all()
    assert not any(i in str(everything(ws.root)[f"tags/as_of={DAY}/run={got.run}/manifest.json"]) for i in want.index[:5])


def test_private_and_append_only(ws):
    first = take_snapshot(ws, CATALOGUE, DAY)
    before = everything(ws.root)
    second = take_snapshot(ws, CATALOGUE, DAY, force=True)
    assert second.run > first.run and Store(ws).runs(DAY) == [first.run, second.run] and Store(ws).snapshot().run == second.run
    after = everything(ws.root)
    changed = [name for name, raw in before.items() if after[name] != raw]
    assert changed == [f"tags/as_of={DAY}/current"]
    for path in (ws.root / "tags").rglob("*"):
        if path.name != ".lock": assert path.stat().st_mode & 0o077 == 0, path


def test_equal_inputs_are_recognised_and_others_are_not(ws):
    take = lambda **more: take_snapshot(ws, CATALOGUE, DAY, ["bought", "vip"], **more)
    first = take()
    assert take().unchanged and take().run == first.run
    somebody = ws.table("members").filter(lambda t: t.local_date < "2023-06-01").member_id.min().execute()
    assign(ws, CATALOGUE, "vip", somebody, "gold", ts="2023-07-01")
    assert not (second := take()).unchanged
    other = read_catalogue(TEXT.replace("when: orders_all > 0", "when: orders_all >= 1"))
    third = take_snapshot(ws, other, DAY, ["bought", "vip"])
    assert not third.unchanged
    assert take().run == second.run and Store(ws).snapshot().run == second.run     # it counts again, without a run


def test_what_cannot_be_computed_is_said(ws):
    (ws.folder / "manifest.json").write_text(json.dumps({**ws.manifest, "tables": {n: t for n, t in ws.manifest["tables"].items() if n != "scores"}}))
    bare = open_workspace(ws.root)
    got = take_snapshot(bare, CATALOGUE, DAY, ["bought", "risk"])
    assert list(got.tags) == ["bought"] and "scores" in got.manifest["not_computable"]["risk"] and "risk" in str(got)
    with pytest.raises(NotComputable, match="scores"): take_snapshot(bare, CATALOGUE, DAY, ["risk"])
    with pytest.raises(ParameterError, match="Did you mean 'bought'"): take_snapshot(ws, CATALOGUE, DAY, ["bougt"])


# --- damage

def cut(path): path.write_bytes(path.read_bytes()[:-7])


def turn(path):
    "Another byte in the middle; the size stays."
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(bytes(raw))


@pytest.mark.parametrize("name", ["tags.parquet", "manifest.json", "../current"])
@pytest.mark.parametrize("harm", [cut, turn, os.unlink])
def test_damage_is_named_with_what_to_do_and_mended_by_the_next_run(ws, name, harm):
    take_snapshot(ws, CATALOGUE, date(2023, 8, 1), ["bought"])
    got = take_snapshot(ws, CATALOGUE, DAY, ["bought"])
    path = (got.folder / name).resolve()
    harm(path)
    store = Store(ws)
    if name == "../current" and harm is os.unlink:      # without it there is no snapshot of the date; the run is there still
        assert store.dates() == [date(2023, 8, 1)]
    else:
        problems = store.check()
        assert any(str(path) in p or name == "../current" for p in problems) and all(f"as_of={DAY}" in p and f"memtag tag run --as-of {DAY}" in p for p in problems)
        if harm is not turn:                              # what kept its size is found by checksum only
            with pytest.raises(MemtagError, match="memtag tag run --as-of 2023-09-01"): store.snapshot(DAY).table()
    assert store.snapshot("2023-08-01").rows and store.tags_as_of("2023-08-15", ["bought"]).count().execute()
    again = take_snapshot(ws, CATALOGUE, DAY, ["bought"], force=harm is turn)
    assert store.snapshot(DAY).run == again.run and store.snapshot(DAY).table().count().execute() == again.rows


def test_a_damaged_key_map_is_named(ws):
    take_snapshot(ws, CATALOGUE, DAY, ["bought"])
    cut(ws.root / "tags/keys.parquet")
    assert "bring it back from a backup" in Store(ws).check()[0]
    with pytest.raises(MemtagError, match="only link"): take_snapshot(ws, CATALOGUE, DAY, ["bought"], force=True)


# --- a full disk, other writers, killed ones

def visible(ws): return {d: Store(ws).snapshot(d).run for d in Store(ws).dates()}


@pytest.mark.parametrize("where", ["to_parquet", "write_table", "fsync", "rename", "replace"])
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_full_disk_changes_nothing(ws, monkeypatch, where, nth):
    take_snapshot(ws, CATALOGUE, date(2023, 8, 1), ["bought"])
    before, calls = visible(ws), []
    holder = {"to_parquet": type(ws.con), "write_table": pq, "fsync": os, "rename": os, "replace": os}[where]
    real = getattr(holder, where)

    def full(*args, **more):
        calls.append(1)
        if len(calls) == nth: raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args, **more)

    monkeypatch.setattr(holder, where, full)
    try: take_snapshot(ws, CATALOGUE, DAY, ["bought"])
    except MemtagError as e:
        monkeypatch.undo()
        assert "No space left on device" in str(e) and visible(ws) == before
    monkeypatch.undo()
    take_snapshot(ws, CATALOGUE, DAY, ["bought"])
    assert Store(ws).check() == [] and date(2023, 9, 1) in visible(ws)
    assert not list((ws.root / "tags").rglob(".new-*"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system")
def test_a_disk_that_is_really_full(made, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "none", disk], capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    try:
        shutil.copytree(made, disk / "ws", symlinks=True)
        ws = open_workspace(disk / "ws")
        take_snapshot(ws, CATALOGUE, DAY, ["bought"])
        before, room = visible(ws), shutil.disk_usage(disk).free
        (disk / "ballast").write_bytes(bytes(max(0, room - 8192)))
        with pytest.raises(MemtagError, match="cannot write to|No space"): take_snapshot(ws, CATALOGUE, date(2023, 10, 1), list(CATALOGUE.tags))
        assert visible(ws) == before
        (disk / "ballast").unlink()
        assert take_snapshot(ws, CATALOGUE, date(2023, 10, 1)).rows and Store(ws).check() == []
    finally: subprocess.run(["umount", disk], check=True)


def hold(root, begun, done):
    with writing_tags(root):
        begun.set()
        done.wait(30)


def test_a_second_writer_is_told(ws):
    begun, done = multiprocessing.Event(), multiprocessing.Event()
    other = multiprocessing.get_context("fork").Process(target=hold, args=(ws.root, begun, done))
    other.start()
    try:
        assert begun.wait(30)
        for write in (lambda: take_snapshot(ws, CATALOGUE, DAY, ["bought"]), lambda: KeyMap(ws.root).add(["x"])):
            with pytest.raises(MemtagError, match="another writer of tags of this workspace is running"): write()
    finally: other.kill(), other.join()
    assert take_snapshot(ws, CATALOGUE, DAY, ["bought"]).rows     # the lock died with its holder


class Killed(BaseException):
    "Stands for SIGKILL."


@pytest.mark.parametrize("late", [False, True])
def test_killed_around_the_rename(ws, monkeypatch, late):
    real = os.rename
    def dies(a, b):
        if late: real(a, b)
        raise Killed
    monkeypatch.setattr(os, "rename", dies)
    if not late: monkeypatch.setattr(shutil, "rmtree", lambda *a, **k: None)      # a killed process cleans nothing up
    with pytest.raises(Killed): take_snapshot(ws, CATALOGUE, DAY, ["bought"])
    monkeypatch.undo()
    assert Store(ws).dates() == []
    got = take_snapshot(ws, CATALOGUE, DAY, ["bought"])
    assert got.unchanged is late and len(Store(ws).runs(DAY)) == 1 and not list((ws.root / "tags").rglob(".new-*"))


# --- frozen parameters

def test_a_frozen_value_is_the_first_of_its_period(ws):
    first = take_snapshot(ws, CATALOGUE, DAY, ["rhythm", "level"])
    listed = Store(ws).parameters()
    assert set(listed.name) == {"gap", "level.cuts"} and set(listed["at"]) == {"2023-07-01"}
    value = first.manifest["parameters"]["gap"]["value"]
    _lose_orders(ws)                                     # the past looks another way today
    ws = open_workspace(ws.root)
    second = take_snapshot(ws, CATALOGUE, DAY, ["rhythm", "level"])
    assert second.manifest["parameters"]["gap"]["value"] == value and not second.unchanged
    loose = compile_tags(CATALOGUE, ws, DAY, ["rhythm"]).parameters["gap"].value
    assert loose != value                                # what it would have been without the store
    third = take_snapshot(ws, CATALOGUE, date(2023, 10, 1), ["rhythm"])
    assert third.manifest["parameters"]["gap"]["at"] == "2023-10-01" and len(Store(ws).parameters()) == 3
    changed = read_catalogue(TEXT.replace("q: 0.5", "q: 0.6"))
    assert take_snapshot(ws, changed, DAY, ["rhythm"]).manifest["parameters"]["gap"]["value"] != value   # another definition


def _lose_orders(ws, before="2023-06-01"):
    "A new version of the data without the orders of spring."
    path = ws.folder / "orders.parquet"
    kept = ws.table("orders").filter(lambda t: t.local_date >= before).to_pyarrow()
    pq.write_table(kept, path)
    manifest = json.loads((ws.folder / "manifest.json").read_text())
    (ws.folder / "manifest.json").write_text(json.dumps({**manifest, "sha256": "0" * 64}))


# --- many dates, and only what is due

def test_backfill_is_the_same_as_one_by_one_and_goes_on_where_it_stopped(ws, monkeypatch):
    days, tags = [date(2023, m, 1) for m in (5, 6, 7, 8)], ["bought", "orders", "rhythm", "level"]
    real, count = runs.publish, []
    def dies(*args):
        count.append(1)
        if len(count) == 3: raise Killed
        return real(*args)
    monkeypatch.setattr(runs, "publish", dies)
    with pytest.raises(Killed): Store(ws).backfill(CATALOGUE, days, tags)
    monkeypatch.undo()
    assert Store(ws).dates() == days[:2]
    all_ = Store(ws).backfill(CATALOGUE, reversed(days), tags)
    assert [s.unchanged for s in all_] == [True, True, False, False] and [s.as_of for s in all_] == days
    for snapshot in all_:
        one = take_snapshot(ws, CATALOGUE, snapshot.as_of, tags, force=True)
        assert one.table().execute().astype(str).equals(snapshot.table().execute().astype(str))


def test_refresh_computes_what_is_due_and_carries_the_rest(ws):
    tags = ["bought", "rhythm", "weekly", "fixed", "level"]
    start = date(2023, 7, 5)
    refresh(ws, CATALOGUE, start, tags)
    last = dict.fromkeys(tags, start)
    for day in [start + timedelta(n) for n in (6, 7, 28, 100)]:
        made = refresh(ws, CATALOGUE, day, tags)
        due = {"bought": True, "fixed": False, "weekly": (day - last["weekly"]).days >= 7, "rhythm": day.month != last["rhythm"].month,
               "level": (day.month - 1) // 3 != (last["level"].month - 1) // 3}
        last = {t: day if due[t] else last[t] for t in tags}
        assert {t: a["computed_as_of"] for t, a in made.tags.items()} == {t: str(d) for t, d in last.items()}, day
        assert refresh(ws, CATALOGUE, day, tags).unchanged
        have, recency = by_id(ws, made.table(ws.con)), compile_tags(CATALOGUE, ws, day, metrics=["recency"], tags=[]).to_frame().set_index("member_id").recency
        for tag in tags:
            then = compile_tags(CATALOGUE, ws, last[tag], [tag], parameters=_frozen(ws, last[tag])).to_frame().set_index("member_id")[tag]
            want = then.reindex(have.index)
            if tag == "rhythm" and (day - last[tag]).days >= 40: want[:] = None
            if tag == "weekly": want = want.where(recency.reindex(have.index) <= 30)
            assert have[tag].astype(object).where(have[tag].notna(), None).tolist() == want.astype(object).where(want.notna(), None).tolist(), (day, tag)


def _frozen(ws, day): return runs.frozen_parameters(ws.root, CATALOGUE, day)


def test_refresh_notices_definitions_and_late_rows(ws):
    tags, day = ["fixed", "bought"], date(2023, 7, 5)
    refresh(ws, CATALOGUE, day, tags)
    changed = read_catalogue(TEXT.replace("kind: number, metric: recency, refresh: static", "kind: number, metric: recency + 1, refresh: static"))
    assert refresh(ws, changed, day + timedelta(1), tags).tags["fixed"]["why"] == "definition changed"
    assert refresh(ws, changed, day + timedelta(2), tags).tags["fixed"]["why"] == ""
    _touch(ws)                                           # the same rows under another version of the data
    ws = open_workspace(ws.root)
    assert refresh(ws, changed, day + timedelta(3), tags).tags["fixed"]["why"] == ""
    _lose_orders(ws)
    late = refresh(open_workspace(ws.root), changed, day + timedelta(4), tags).tags["fixed"]
    assert late["why"] == "late rows of orders" and late["computed_as_of"] == str(day + timedelta(4))


def _touch(ws):
    manifest = json.loads((ws.folder / "manifest.json").read_text())
    (ws.folder / "manifest.json").write_text(json.dumps({**manifest, "sha256": "1" * 64}))


# --- history

VALUES = st.sampled_from([None, None, "a", "b"])
SERIES = st.lists(st.tuples(st.integers(1, 12), st.booleans(), st.lists(st.tuples(VALUES, VALUES), min_size=3, max_size=3), st.integers(0, 9)),
                  min_size=1, max_size=5)
EMPTY = "name: test\ncurrency: CNY\nzone: Asia/Shanghai\n"


def snapshot_of(root, day, computed, frame, valid_for):
    "A snapshot by hand: tags p (with valid_for) and q, or q alone."
    def build(aside):
        frame.to_parquet(aside / "tags.parquet", index=False)
        about = {"computed_as_of": str(computed), "run": "", "valid_for": valid_for, "definition": "", "kind": "rules", "refresh": "daily",
                 "values": {}, "unknown": 0, "type": "text"}
        return {"tags": {t: {**about, "valid_for": valid_for if t == "p" else ""} for t in frame.columns[1:]}, "rows": len(frame), "seconds": 0,
                "inputs": "", "not_computable": {}, "file": snapshots.seal(aside / "tags.parquet")}
    snapshots.publish(root, day, build)


@settings(max_examples=15, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])   # shrinking would take minutes
@given(SERIES)
def test_history_and_snapshots_tell_the_same_both_ways(tmp_path_factory, series):
    root = tmp_path_factory.mktemp("history")
    (root / "memtag.yaml").write_text(EMPTY)
    ws, day, want = open_workspace(root), date(2024, 1, 1), {}
    with writing_tags(root):
        for gap, whole, values, age in series:
            day += timedelta(gap)
            frame = pd.DataFrame({"member_key": [1, 2, 3], "p": pd.Series([v[0] for v in values], dtype="str"), "q": pd.Series([v[1] for v in values], dtype="str")})
            if not whole: frame = frame[["member_key", "q"]].iloc[:2]
            snapshot_of(root, day, day - timedelta(age), frame, "10d")
            want[day] = {(k, t, v): day - timedelta(age) for t in frame.columns[1:] for k, v in zip(frame.member_key, frame[t]) if isinstance(v, str)}
    store = Store(ws)
    spans = [(r.member_key, r.tag, r.value, pd.Timestamp(r.valid_from).date(), None if pd.isna(r.valid_to) else pd.Timestamp(r.valid_to).date())
             for r in store.history().execute().itertuples()]
    day = min(want)
    while day <= max(want) + timedelta(12):              # every day, not only those of snapshots
        newest = max(d for d in want if d <= day)
        held = {key for key, computed in want[newest].items() if key[1] != "p" or day < computed + timedelta(10)}
        assert {s[:3] for s in spans if s[3] <= day and (s[4] is None or day < s[4])} == held, day
        table = store.tags_as_of(day, by="member_key").execute() if day in want or day.day % 5 == 0 else None
        if table is not None: assert {(k, t, v) for t in table.columns[1:] for k, v in zip(table.member_key, table[t]) if isinstance(v, str)} == held, day
        day += timedelta(1)
    starts = sorted((s[0], s[1], s[3], s[2], s[4]) for s in spans)
    for one, two in zip(starts, starts[1:]):             # as few intervals as possible, none over another
        if one[:2] == two[:2]: assert one[4] is not None and one[4] <= two[2] and (one[4] < two[2] or one[3] != two[3])


def test_tags_as_of_by_id(ws):
    take_snapshot(ws, CATALOGUE, DAY, ["bought", "orders"])
    table = Store(ws).tags_as_of("2023-12-01", ["orders"]).execute().set_index("member_id").orders
    want = compile_tags(CATALOGUE, ws, DAY, ["orders"]).to_frame().set_index("member_id").orders
    assert table.sort_index().to_dict() == want.sort_index().to_dict()
    with pytest.raises(NotComputable, match="no snapshot at or before 2023-08-31"): Store(ws).tags_as_of("2023-08-31")
    with pytest.raises(ParameterError, match="Did you mean 'orders'"): Store(ws).tags_as_of(DAY, ["order"])


# --- logs

def test_assigning_and_revoking_against_a_plain_model(ws):
    import random
    luck, model = random.Random(7), []
    members = sorted(ws.table("members").member_id.execute())[:4]
    own = all_tables(ws)["assigned_tags"].count().execute()
    for n in range(75):                                 # more than 64 files: they become one on the way
        who, value, channel = luck.choice(members), luck.choice(["gold", "black"]), luck.choice(["manual", "import"])
        at = pd.Timestamp("2023-01-01") + pd.Timedelta(hours=n)
        if luck.random() < .6:
            assign(ws, CATALOGUE, "vip", who, value, channel=channel, ts=at)
            model.append([who, value, channel, at, None])
        else:
            only = value if luck.random() < .5 else None
            hit = [e for e in model if e[0] == who and e[4] is None and (only is None or e[1] == only)]
            if not hit:
                with pytest.raises(ParameterError, match="could be revoked"): revoke(ws, CATALOGUE, "vip", who, only, ts=at)
            else:
                assert revoke(ws, CATALOGUE, "vip", who, only, ts=at) == len(hit)
                for e in hit: e[4] = at
    table = all_tables(ws)["assigned_tags"].filter(lambda t: t.tag == "vip").execute()
    local = lambda moment: moment.tz_localize(ws.config.zone).tz_convert("UTC").tz_localize(None)
    got = sorted((r.member_id, r.value, r.channel, r.ts, None if pd.isna(r.revoked_at) else r.revoked_at) for r in table.itertuples())
    want = sorted((e[0], e[1], e[2], local(e[3]), None if e[4] is None else local(e[4])) for e in model)
    assert [tuple(map(str, g)) for g in got] == [tuple(map(str, w)) for w in want]
    assert all_tables(ws)["assigned_tags"].count().execute() == own + len(model)
    assert len(list((ws.root / "tags/assigned").glob("*.parquet"))) <= 65


def test_a_kill_while_files_become_one_doubles_nothing(ws, monkeypatch):
    who = ws.table("members").member_id.min().execute()
    for n in range(64): assign(ws, CATALOGUE, "vip", who, "gold", ts=f"2023-02-{n % 28 + 1:02} 0{n % 10}:00")
    monkeypatch.setattr(Path, "unlink", lambda self, **k: (_ for _ in ()).throw(Killed()))
    with pytest.raises(Killed): assign(ws, CATALOGUE, "vip", who, "gold", ts="2023-03-01")
    monkeypatch.undo()
    log = log_module._log(ws, "assigned")
    assert log.count().execute() == 65 == log.entry.nunique().execute()


def test_many_at_once_and_every_mistake_at_once(ws, tmp_path):
    members = sorted(ws.table("members").member_id.execute())[:3]
    path = tmp_path / "gold.csv"
    path.write_text("member_id,value,ts,expires_at\n" + "".join(f"{m},gold,2023-05-01,2023-10-01\n" for m in members))
    assert assign_many(ws, CATALOGUE, path, tag="vip", by="Anna Schmidt") == 3
    rows = all_tables(ws)["assigned_tags"].filter(lambda t: t.tag == "vip").execute()
    assert set(rows.channel) == {"import"}
    assert set(rows.expires_at) == {pd.Timestamp("2023-10-01", tz=ws.config.zone).tz_convert("UTC").tz_localize(None)} and set(rows.assigned_by) == {"Anna Schmidt"}
    assert {str(d)[:10] for d in rows.expires_date} == {"2023-10-01"}
    wrong = pd.DataFrame({"member_id": [*members, "nobody-1"], "tag": ["vip", "bought", "vipp", "known"], "value": ["golden", None, None, "yes"],
                          "channel": ["manual", "manual", "manual", "guide"]})
    with pytest.raises(ParameterError) as e: assign_many(ws, CATALOGUE, wrong)
    said = str(e.value)
    for part in ("no value 'golden'", "bought is computed (flag)", "Did you mean 'vip'", "it is a flag", "1 of the members do not exist, such as n****1"):
        assert part in said
    assert "nobody-1" not in said and all_tables(ws)["assigned_tags"].filter(lambda t: t.tag == "vip").count().execute() == 3
    with pytest.raises(ParameterError, match="not assigned through 'guide'; its channels: manual, import"):
        assign(ws, CATALOGUE, "vip", members[0], "gold", channel="guide")
    with pytest.raises(ParameterError, match="Did you mean 'member_id'"): assign_many(ws, CATALOGUE, pd.DataFrame({"memberid": members}), tag="vip")


def test_assigned_tags_and_scores_reach_the_tags(ws):
    members = sorted(ws.table("members").filter(lambda t: t.local_date < "2023-06-01").member_id.execute())[:3]
    assign(ws, CATALOGUE, "vip", members[0], "gold", ts="2023-08-31 23:00")
    assign(ws, CATALOGUE, "vip", members[1], "gold", ts="2023-09-01 01:00")        # local dates: on the day itself, so not yet
    put_scores(ws, pd.DataFrame({"member_id": members, "score": [.9, .1, .7]}), "churn", "1", "2023-08-01")
    put_scores(ws, pd.DataFrame({"member_id": members[2:], "score": [.2]}), "churn", "1", "2023-08-01")   # put again: it wins
    frame = by_id(ws, take_snapshot(ws, CATALOGUE, DAY, ["vip", "risk"]).table(ws.con))
    assert frame.vip.dropna().to_dict() == {members[0]: "gold"}
    assert frame.risk.dropna().to_dict() == dict(zip(members, ["high", "low", "low"]))
    with pytest.raises(ParameterError, match="a member has two scores"): put_scores(ws, pd.DataFrame({"member_id": members[:1] * 2, "score": [1, 2]}), "churn", as_of=DAY)


def test_a_run_of_a_few_tags_leaves_the_others_of_its_date(tmp_path):
    "The new run carries them as they were; nothing of the date is lost, and the same run twice is one run."
    ws, shipped = make_programme(300, "2023-01-01", "2024-01-01", seed=2, directory=tmp_path / "ws").workspace, shipped_catalogue()
    first = take_snapshot(ws, shipped, "2023-12-01", tags=["lifecycle", "category_affinity"])
    second = take_snapshot(ws, shipped, "2023-12-01", tags=["main_channel"])
    assert list(second.tags) == ["lifecycle", "category_affinity", "main_channel"]
    assert second.tags["lifecycle"]["run"] == first.run and second.tags["main_channel"]["run"] == second.run
    before, after = (s.table().execute().set_index("member_key") for s in (first, second))
    assert after.lifecycle.equals(before.lifecycle.reindex(after.index)) and len(before) == len(after)
    again = take_snapshot(ws, shipped, "2023-12-01", tags=["main_channel"])
    assert again.unchanged and again.run == second.run
    both = take_snapshot(ws, shipped, "2023-12-01", tags=["lifecycle"], force=True)
    assert set(both.tags) == set(second.tags) and both.tags["main_channel"]["run"] == second.run
    backfill(ws, shipped, ["2023-12-01", "2023-11-01"], tags=["tier"])
    assert set(Store(ws).snapshot("2023-12-01").tags) == {*second.tags, "tier"} and set(Store(ws).snapshot("2023-11-01").tags) == {"tier"}


def test_history_has_lists_beside_texts(tmp_path):
    "Lists are told as JSON; a history of every shipped tag, held against the snapshots it is made of."
    ws = make_programme(300, "2023-01-01", "2024-01-01", seed=2, directory=tmp_path / "ws").workspace
    made = backfill(ws, shipped_catalogue(), ["2023-11-01", "2023-12-01"])
    spans = Store(ws).history().execute()
    for snapshot in made:
        at = spans[(spans.valid_from.dt.date <= snapshot.as_of) & ~(spans.valid_to.dt.date <= snapshot.as_of)]
        frame = snapshot.table().execute().set_index("member_key")
        for name in ("category_affinity", "lifecycle"):
            got = at[at.tag == name].set_index("member_key").value
            want = frame[name].dropna().map(lambda v: v if isinstance(v, str) else json.dumps(list(v), separators=(",", ":")))
            assert got.sort_index().equals(want.sort_index().astype(got.dtype).rename("value")), name


# --- dates outside the data, dropped dates, arguments in each other's place

@pytest.mark.parametrize("day", ["2022-12-31", "2024-05-01", "2032-09-01"])
@pytest.mark.parametrize("take", [take_snapshot, refresh, lambda ws, c, day, tags, **more: backfill(ws, c, ["2023-09-01", day], tags, **more)])
def test_a_date_outside_the_data_is_refused_even_where_no_log_is_read(ws, take, day):
    assert "orders" not in str(shipped_catalogue().tags["tier"])
    before = everything(ws.root)
    for catalogue, tag in ((CATALOGUE, "vip"), (shipped_catalogue(), "tier")):
        with pytest.raises(NotComputable, match=f"as_of {day} lies outside the data: order lines run from 2023-01-.* any_date=True"): take(ws, catalogue, day, [tag])
        with pytest.raises(NotComputable, match="lies outside"): take(ws, catalogue, day, [tag], force=True)     # another matter
    assert everything(ws.root) == before
    take(ws, CATALOGUE, day, ["vip"], any_date=True)
    assert date.fromisoformat(day) in Store(ws).dates()


def test_a_date_a_little_late_is_taken(ws):
    end = ws.log_end
    assert take_snapshot(ws, CATALOGUE, end + timedelta(32), ["bought"]).rows and take_snapshot(ws, CATALOGUE, end + timedelta(93), ["level"]).rows
    with pytest.raises(NotComputable, match="up to 31 days later"): take_snapshot(ws, CATALOGUE, end + timedelta(33), ["bought"])


def spans(ws): return Store(ws).history().execute().sort_values(["member_key", "tag", "valid_from"]).reset_index(drop=True)


def test_a_dropped_date_is_as_if_it_had_never_been_taken(ws):
    from memtag_research.tags.changes import diff
    days = [date(2023, m, 1) for m in (6, 8)]
    backfill(ws, CATALOGUE, days, ["bought", "orders"])
    history, changed, files = spans(ws), str(diff(ws, *days)), everything(ws.root)
    wrong = take_snapshot(ws, CATALOGUE, date(2023, 7, 1), ["bought", "orders"])
    assert not spans(ws).equals(history)
    assert Store(ws).drop("2023-07-01") == [wrong.run]
    assert spans(ws).equals(history) and str(diff(ws, *days)) == changed and everything(ws.root) == files
    assert not list((ws.root / "tags").rglob(".new-*"))
    with pytest.raises(NotComputable, match="no snapshot of 2023-07-01. The nearest before it is of 2023-06-01"): diff(ws, "2023-07-01", "2023-08-01")
    held = Store(ws).tags_as_of("2023-07-15", ["orders"]).execute().set_index("member_id").orders.sort_index()
    assert held.equals(Store(ws).tags_as_of("2023-06-01", ["orders"]).execute().set_index("member_id").orders.sort_index())
    with pytest.raises(ParameterError, match="no snapshot of 2023-07-01 to drop. The nearest are of 2023-06-01, 2023-08-01"): Store(ws).drop("2023-07-01")
    assert take_snapshot(ws, CATALOGUE, date(2023, 7, 1), ["bought", "orders"]).run != wrong.run       # taken anew


def test_dropping_a_run(ws):
    one, two, three = (take_snapshot(ws, CATALOGUE, DAY, ["bought"], force=True) for _ in range(3))
    store = Store(ws)
    assert store.drop(DAY, two.run) == [two.run] and store.snapshot(DAY).run == three.run      # another one counts
    assert store.drop(DAY, three.run) == [three.run] and store.snapshot(DAY).run == one.run    # the newest that is left
    with pytest.raises(ParameterError, match="no run 'yesterday' of 2023-09-01. Its runs: " + one.run): store.drop(DAY, "yesterday")
    assert store.drop(DAY, one.run) == [one.run] and store.dates() == [] and not (ws.root / f"tags/as_of={DAY}").exists()


def test_what_others_are_carried_from_stays(ws):
    first = take_snapshot(ws, CATALOGUE, DAY, ["bought"])
    second = take_snapshot(ws, CATALOGUE, DAY, ["orders"])             # carries `bought` of the first run
    with pytest.raises(ParameterError, match="of 2023-09-01 carries bought over"): Store(ws).drop(DAY, first.run)
    refresh(ws, CATALOGUE, DAY, ["fixed"])
    refresh(ws, CATALOGUE, DAY + timedelta(5), ["fixed"])
    with pytest.raises(ParameterError, match="of 2023-09-06 carries fixed over from this one, so 2023-09-01 cannot be dropped"): Store(ws).drop(DAY)
    Store(ws).drop(DAY + timedelta(5))
    assert second.run in Store(ws).drop(DAY) and Store(ws).check() == []


@pytest.mark.parametrize("late", [False, True])
def test_killed_while_dropping(ws, monkeypatch, late):
    made = [take_snapshot(ws, CATALOGUE, day, ["bought"]) for day in (date(2023, 8, 1), DAY)]
    real = os.rename
    def dies(a, b):
        if late: real(a, b)
        raise Killed
    monkeypatch.setattr(os, "rename", dies)
    with pytest.raises(Killed): Store(ws).drop(DAY)
    monkeypatch.undo()
    store = Store(ws)
    assert store.dates() == [s.as_of for s in made][: 1 if late else 2] and store.check() == []
    if not late: store.drop(DAY)
    KeyMap(ws.root).add(["one more"])                    # the next writer sweeps what was left
    assert not list((ws.root / "tags").rglob(".new-*")) and store.dates() == [date(2023, 8, 1)]


def test_unknown_is_always_counted(ws):
    "Whatever is cut from a long list of values, the members without one stay in sight."
    many = read_catalogue(TEXT.replace("values: [gold, black]", f"values: [{', '.join(f'v{n:02}' for n in range(12))}]"))
    members = sorted(ws.table("members").filter(lambda t: t.local_date < "2023-06-01").member_id.execute())[:12]
    assign_many(ws, many, pd.DataFrame({"member_id": members, "value": [f"v{n:02}" for n in range(12)], "ts": "2023-07-01"}), tag="vip")
    made = take_snapshot(ws, many, DAY, ["vip", "bought"])
    row = next(r for r in made.to_html("en").split("<tr>") if ">vip<" in r)
    assert "4 more values" in row and row.count("(") == 9 and f"nknown {made.rows - 12:,} (" in row
    assert f"未知 {made.rows - 12:,}" in made.to_html("zh") and "Unknown 0 (" in made.to_html("en")


def test_arguments_in_each_others_place(ws):
    for call in (lambda: take_snapshot(CATALOGUE, ws, DAY), lambda: refresh(CATALOGUE, ws, DAY), lambda: backfill(CATALOGUE, ws, [DAY]), lambda: Store(CATALOGUE),
                 lambda: assign(CATALOGUE, ws, "vip", "M1", "gold"), lambda: revoke(CATALOGUE, ws, "vip", "M1"), lambda: all_tables(CATALOGUE)):
        with pytest.raises(ParameterError, match="ws must be a Workspace, as open_workspace gives it, not Catalogue"): call()
    with pytest.raises(ParameterError, match="catalogue must be a Catalogue, .* not str"): take_snapshot(ws, "catalogue.yaml", DAY)


def test_one_text_is_one_name(ws):
    assert list(take_snapshot(ws, CATALOGUE, DAY, "bought").tags) == ["bought"]
    assert list(backfill(ws, CATALOGUE, "2023-08-01", "orders")[0].tags) == ["orders"]
    assert Store(ws).tags_as_of(DAY, "bought").columns == ("member_id", "bought")
    assert set(Store(ws).history("orders").tag.execute()) == {"orders"}
    assert list(refresh(ws, CATALOGUE, "2023-09-02", "fixed").tags) == ["fixed"]
    with pytest.raises(ParameterError, match=r"a list of names, not 12 \(int\)"): take_snapshot(ws, CATALOGUE, DAY, [12])
    for run in (take_snapshot, refresh, backfill):
        with pytest.raises(ParameterError, match="tags is an empty list: name at least one"): run(ws, CATALOGUE, [DAY] if run is backfill else DAY, [])


# --- what people type

def test_dates_and_ids_that_are_none_are_named_by_their_line(ws, tmp_path):
    who, path = sorted(ws.table("members").member_id.execute())[:3], tmp_path / "vip.csv"
    path.write_text(f"member_id,value,ts,expires_at\n{who[0]},gold,2023-05-01,\n\n{who[1]},gold,yesterday,01/02/2030\nM99999999,golden,2023-13-01,2030-01-01\n"
                    f"{who[2]},gold,2023-05-01,2023-04-30\n{who[2]},,now,\n")
    with pytest.raises(ParameterError) as e: assign_many(ws, CATALOGUE, path, tag="vip")
    said = str(e.value)
    for part in ("ts 'yesterday' is no date. Write 2024-01-31, or 2024-01-31 18:00 (local time). (3 such, line 4, 5, 7)", "expires_at '01/02/2030' is no date",
                 "(1 such, line 4)", "no value 'golden' (1 such, line 5)", "1 of the members do not exist, such as M****9 (line 5)", "needs a value (1 without, line 7)",
                 "expires_at 2023-04-30 has passed when it begins, so it would never hold (1 such, line 6)"):
        assert part in said, part
    assert "M99999999" not in said and not (ws.root / "tags/assigned").exists()
    path.write_text(f"member_id,value\n{who[0]},gold\n,gold\n")
    with pytest.raises(ParameterError, match=r"needs a member_id \(1 without, line 3\)"): assign_many(ws, CATALOGUE, path, tag="vip")
    path.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ParameterError, match="is no CSV file with a header"): assign_many(ws, CATALOGUE, path, tag="vip")


def test_what_has_expired_is_given_only_for_the_past(ws):
    who, today = ws.table("members").member_id.min().execute(), pd.Timestamp.now(ws.config.zone).date()
    for expires in ("2023-06-01", today, pd.Timestamp(today)):         # a date is its first moment: today has begun
        with pytest.raises(ParameterError, match="has passed when it begins, so it would never hold.* for what held once, give ts too"): assign(ws, CATALOGUE, "vip", who, "gold", expires=expires)
    assert assign(ws, CATALOGUE, "vip", who, "gold", expires=today + timedelta(1)) == 1
    assert assign(ws, CATALOGUE, "vip", who, "black", ts="2023-05-01", expires="2023-06-01") == 1
    held = [by_id(ws, take_snapshot(ws, CATALOGUE, d, ["vip"]).table()).vip.get(who) for d in ("2023-05-15", "2023-06-15")]
    assert held[0] == "black" and pd.isna(held[1])


@pytest.mark.parametrize("value", ["tomorrow", "31/12/2030", "2030-02-30", "2030", 20300101, 1.5, ["2030-01-01"]])
def test_what_is_no_date(ws, value):
    who = ws.table("members").member_id.min().execute()
    with pytest.raises(ParameterError, match="is no date. Write 2024-01-31"): assign(ws, CATALOGUE, "vip", who, "gold", expires=value)
    with pytest.raises(ParameterError, match="is no date. Write 2024-01-31"): revoke(ws, CATALOGUE, "vip", who, ts=value)


def test_ids_are_text(ws):
    for call in (lambda: assign(ws, CATALOGUE, "vip", 12, "gold"), lambda: revoke(ws, CATALOGUE, "vip", 12), lambda: put_scores(ws, pd.DataFrame({"member_id": [12], "score": [1.]}), "churn", as_of=DAY),
                 lambda: assign_many(ws, CATALOGUE, pd.DataFrame({"member_id": [12, 13], "value": "gold"}), tag="vip")):
        with pytest.raises(ParameterError, match=r"member_id must be text, such as 'M00012', not .* \(int"): call()


def test_open_entries_are_what_revoke_ends(ws):
    who = ws.table("members").member_id.min().execute()
    for value, channel, ts in (("gold", "manual", "2023-05-01 09:00"), ("black", "import", "2023-05-02"), ("gold", "import", "2023-05-03")):
        assign(ws, CATALOGUE, "vip", who, value, channel=channel, ts=ts)
    entries = open_entries(ws, "vip", who, "gold")
    assert entries[["value", "channel", "since"]].values.tolist() == [["gold", "manual", "2023-05-01 09:00"], ["gold", "import", "2023-05-03 00:00"]]
    assert revoke(ws, CATALOGUE, "vip", who, "gold") == len(entries)
    assert open_entries(ws, "vip", who).value.tolist() == ["black"] and open_entries(ws, "vip", "nobody").empty


def test_arguments_in_each_others_place_further_down(ws, tmp_path):
    from memtag_research.tags.changes import diff
    from memtag_research.tags.compile import compile_many
    from memtag_research.tags.explain import explain_tag
    from memtag_research.tags.export import export_segment
    from memtag_research.tags.segments import evaluate_segment
    for call in (lambda: compile_tags(ws, CATALOGUE, DAY), lambda: next(compile_many(ws, CATALOGUE, [DAY])), lambda: explain_tag(ws, CATALOGUE, DAY, "bought", "M1"),
                 lambda: evaluate_segment(CATALOGUE, ws, "bought", DAY), lambda: export_segment(CATALOGUE, ws, "bought", DAY, tmp_path / "out.csv"), lambda: diff(CATALOGUE, DAY, "2023-10-01")):
        with pytest.raises(ParameterError, match=r"(catalogue must be a Catalogue, .* not Workspace|(ws|tables) must be a Workspace, .* not Catalogue)"): call()
    with pytest.raises(ParameterError, match=r"member_id must be text, such as 'M00012', not .* \(int\)"): explain_tag(CATALOGUE, ws, DAY, "bought", 12)
    assert compile_tags(CATALOGUE, ws, DAY, "bought", metrics="orders_all").to_frame().columns.tolist() == ["member_id", "orders_all", "bought"]
