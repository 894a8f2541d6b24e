"""Retention: what is too old is in no file any more, what holds still holds, and a purge that was killed is finished by the next one."""

import hashlib
import json
import shutil
from datetime import date, timedelta

import pandas as pd
import pyarrow.parquet as pq
import pytest

from memtag_research.core import DefinitionError, MemtagError, NotComputable, ParameterError
from memtag_research.data import retention
from memtag_research.data.engine import connect
from memtag_research.data.ingest import check_workspace, ingest
from memtag_research.data.privacy import KeyMap, forget
from memtag_research.data.retention import drop_expired, purge
from memtag_research.data.simulate import make_programme
from memtag_research.data.workspace import AGEING, Config, open_workspace
from memtag_research.tags.catalogues import read_catalogue
from memtag_research.tags.export import consent_reasons
from memtag_research.tags.given import all_tables, assign, assign_many, put_scores, revoke
from memtag_research.tags.runs import take_snapshot
from memtag_research.tags.store import Store

TODAY = date(2025, 1, 1)
CATALOGUE = read_catalogue("""
sources: {orders: {table: orders}}
metrics: {orders_all: {source: orders, agg: count, days: all}}
tags:
  bought: {class: behaviour, kind: flag, when: orders_all > 0}
  vip: {class: value, kind: assigned, channels: [manual], precedence: [manual], values: [gold, black]}
""")


def programme(folder, limits, people=120, seed=7):
    "An invented programme of three years with limits."
    ws = make_programme(people, "2022-01-01", "2025-01-01", seed=seed, directory=folder).workspace
    with (ws.root / "memtag.yaml").open("a") as f: f.write(f"retention_days: {json.dumps(limits)}\n")
    return open_workspace(ws.root)


def frames(ws): return {n: ws.table(n).to_pyarrow().to_pandas() for n in ws.tables()}


@pytest.fixture(scope="module")
def one_year(tmp_path_factory):
    "(tables before, tables after, what was done, the workspace) of a purge to 365 days of everything but members."
    ws = programme(tmp_path_factory.mktemp("year") / "ws", {n: 365 for n in AGEING if n != "members"})
    before = frames(ws)
    assert not check_workspace(ws)
    done = purge(ws.root, TODAY, yes=True)
    after = open_workspace(ws.root)
    return before, frames(after), done, after


FIRST = TODAY - timedelta(365)


def young(frame, columns):
    "Rows of which any of these dates lies on the first day or later."
    kept = pd.Series(False, frame.index)
    for c in columns: kept |= pd.to_datetime(frame[c]) >= pd.Timestamp(FIRST)
    return frame[kept]


@pytest.mark.parametrize("name, columns", [
    ("order_lines", ["local_date"]), ("events", ["local_date"]), ("exposures", ["local_date"]), ("feedback", ["local_date"]),
    ("redemptions", ["local_date"]), ("benefit_uses", ["local_date"]), ("scores", ["as_of", "valid_until"])])  # fmt: skip
def test_rows_go_by_their_day(one_year, name, columns):
    before, after, done, _ = one_year
    kept = young(before[name], columns)
    assert 0 < len(kept) < len(before[name])
    pd.testing.assert_frame_equal(after[name], kept.reset_index(drop=True))
    assert done.tables[name] == len(before[name]) - len(kept)


def test_a_row_of_exactly_the_limit_stays_and_one_a_day_older_goes(tmp_path):
    data, config = of_members(tmp_path, {"order_lines": 365})
    dropped = drop_expired(connect(), data, config, date(2024, 2, 1) + timedelta(365))   # `buys` bought on 1 February 2024
    assert dropped == {"order_lines": 2}
    assert drop_expired(connect(), data, config, date(2024, 2, 1) + timedelta(366)) == {"order_lines": 1}


def test_what_holds_still_stays(one_year):
    before, after, *_ = one_year
    tiers = before["tier_history"]
    kept = tiers[tiers.valid_to.isna() | (pd.to_datetime(tiers.valid_to) >= pd.Timestamp(FIRST)) | (pd.to_datetime(tiers.valid_from) >= pd.Timestamp(FIRST))]
    pd.testing.assert_frame_equal(after["tier_history"], kept.reset_index(drop=True))
    open_ = lambda f: f[f.expires_date.isna() & f.revoked_date.isna()].sort_values(["member_id", "tag", "ts"]).reset_index(drop=True)
    pd.testing.assert_frame_equal(open_(after["assigned_tags"]), open_(before["assigned_tags"]))
    assert len(after["assigned_tags"]) < len(before["assigned_tags"])


def test_the_last_word_on_consent_is_the_same(one_year, tmp_path):
    before, after, _, _ws = one_year
    assert len(after["consents"]) < len(before["consents"])
    old, new = tmp_path / "old.parquet", tmp_path / "new.parquet"
    said = {}
    for path, frame in ((old, before["consents"]), (new, after["consents"])):
        frame.to_parquet(path, coerce_timestamps="us", allow_truncated_timestamps=True)
        table = connect().read_parquet(path).mutate(local_date=lambda t: t.local_date.cast("date"), expires_date=lambda t: t.expires_date.cast("date"))
        for purpose in ("marketing", "profiling"):
            for channel in (None, "sms", "wecom"):
                rows = consent_reasons({"consents": table}, purpose, channel, TODAY).sort_values("member_id").reset_index(drop=True)
                said.setdefault((purpose, channel), []).append(rows)
    for a, b in said.values(): pd.testing.assert_frame_equal(a, b)
    assert "consent_refused" in set(said["marketing", None][0].reason)


def test_points_keep_every_members_balance(one_year):
    before, after, done, _ = one_year
    balance = lambda f: f.groupby("member_id").points.sum().loc[lambda s: s != 0].sort_index()
    pd.testing.assert_series_equal(balance(after["points_ledger"]), balance(before["points_ledger"]))
    own = after["points_ledger"][~after["points_ledger"].entry_id.str.startswith("carried-")]
    assert set(own.entry_id) == set(young(before["points_ledger"], ["local_date", "expires_date"]).entry_id)
    assert after["points_ledger"].entry_id.is_unique and done.tables["points_ledger"] > 0
    later = purge(one_year[3].root, TODAY + timedelta(200))     # a preview: carried entries are not counted as old again
    assert later.tables["points_ledger"] < len(own)


def test_payments_go_with_their_orders_and_only_with_them(one_year):
    before, after, *_ = one_year
    gone = set(before["order_lines"].order_id) - set(after["order_lines"].order_id)
    kept = before["payments"][~before["payments"].order_id.isin(gone)]
    assert 0 < len(kept) < len(before["payments"])
    pd.testing.assert_frame_equal(after["payments"], kept.reset_index(drop=True))


def test_grains_log_and_manifest_say_so(one_year):
    before, after, done, ws = one_year
    assert not check_workspace(ws)
    orders = before["orders"][pd.to_datetime(before["orders"].local_date) >= pd.Timestamp(FIRST)]
    assert sorted(after["orders"].order_id) == sorted(orders.order_id)
    days = before["member_days"][pd.to_datetime(before["member_days"].local_date) >= pd.Timestamp(FIRST)]
    assert after["member_days"].net_cents.sum() == days.net_cents.sum() and after["member_days"].orders.sum() == days.orders.sum()
    assert ws.log_start == before["order_lines"].local_date[pd.to_datetime(before["order_lines"].local_date) >= pd.Timestamp(FIRST)].min()
    assert any(f"the log starts on {ws.log_start}" in n for n in ws.manifest["notes"])
    told = ws.manifest["tables"]
    assert told["order_lines"]["dropped"] == {"older than retention_days": done.tables["order_lines"]}
    for name, about in told.items(): assert about["rows"] == len(after[name]) == about["read"] - sum(about["dropped"].values()), name


def test_tables_about_things_are_left_alone(one_year):
    before, after, *_ = one_year
    for name in ("products", "stores", "campaigns", "rewards", "benefits", "targets", "members", "identities", "member_merges"):
        pd.testing.assert_frame_equal(after[name], before[name])


def test_no_file_holds_an_older_row(one_year):
    *_, ws = one_year
    assert [p.name for p in (ws.root / "data").glob("v-*")] == [(ws.root / "data/current").resolve().name]
    for path in (ws.root / "data").rglob("*.parquet"):
        if path.stem in ("order_lines", "orders", "member_days", "events"):
            assert min(pq.read_table(path)["local_date"].to_pylist()) >= FIRST


MEMBERS = [  # id, joined, closed, last purchase, last message to her, merged into; stays when 365 days are kept on 2025-01-01
    ("new", "2024-06-01", None, None, None, None, True),
    ("buys", "2020-01-01", None, "2024-02-01", None, None, True),
    ("silent", "2020-01-01", None, "2023-12-31", None, None, False),
    ("written", "2020-01-01", None, "2023-01-01", "2024-12-01", None, False),
    ("closed", "2020-01-01", "2024-03-01", None, None, None, True),
    ("never", None, None, None, None, None, False),
    ("old card", "2019-01-01", None, None, None, "buys", True),
    ("older card", "2018-01-01", None, None, None, "old card", True),
    ("lost card", "2018-01-01", None, None, None, "silent", False)]  # fmt: skip


def of_members(tmp_path, limits):
    "A workspace of the members above."
    data = tmp_path / "data/v-hand"
    data.mkdir(parents=True)
    day = lambda t: t and date.fromisoformat(t)
    moment = lambda t: t and pd.Timestamp(t)
    tables = {
        "members": [{"member_id": m, "joined_at": moment(j), "local_date": day(j), "closed_at": moment(c), "closed_date": day(c)} for m, j, c, *_ in MEMBERS],
        "order_lines": [{"line_id": m, "order_id": m, "member_id": m, "ts": moment(b), "local_date": day(b), "line_kind": "sale", "quantity": 1, "net_cents": 100}
                        for m, _, _, b, *_ in MEMBERS if b],
        "events": [{"member_id": m, "ts": moment(w), "local_date": day(w), "event": "message_sent"} for m, _, _, _, w, *_ in MEMBERS if w],
        "member_merges": [{"from_id": m, "to_id": to, "merged_at": moment("2021-01-01"), "local_date": day("2021-01-01")} for m, *_, to, _ in MEMBERS if to],
        "identities": [{"member_id": m, "channel": "sms", "channel_id": f"a-{m}"} for m, *_ in MEMBERS]}  # fmt: skip
    con = connect()
    for name, rows in tables.items():
        frame = pd.DataFrame(rows)
        frame.to_parquet(tmp_path / "raw.parquet", coerce_timestamps="us", allow_truncated_timestamps=True)
        table = con.read_parquet(tmp_path / "raw.parquet")
        casts = {c: "timestamp(6)" if c == "ts" or c.endswith("_at") else "date" for c in table.columns if c.endswith(("_at", "_date")) or c == "ts"}
        con.to_parquet(table.cast(casts | ({"quantity": "decimal(18, 3)"} if "quantity" in table.columns else {})), data / f"{name}.parquet")
    return data, Config("Hand", "EUR", "UTC", retention_days=limits)


def test_members_go_when_they_have_been_silent(tmp_path):
    data, config = of_members(tmp_path, {"members": 365})
    drop_expired(connect(), data, config, TODAY)
    ids = lambda name, c="member_id": set(pq.read_table(data / f"{name}.parquet")[c].to_pylist())
    stay = {m for m, *_, stays in MEMBERS if stays}
    assert ids("members") == ids("identities") == stay
    assert ids("member_merges", "from_id") == {"old card", "older card"} and ids("events") == set()
    assert ids("order_lines") == {"buys", "silent", "written"}    # receipts have a limit of their own, and none was given


def test_one_number_is_for_everything_about_people(tmp_path):
    data, config = of_members(tmp_path, 365)
    dropped = drop_expired(connect(), data, config, TODAY)
    assert dropped == {"order_lines": 2, "members": 4, "member_merges": 1, "identities": 4, "events": 1}
    assert drop_expired(connect(), data, config, TODAY) == {}


# --- whole workspaces


def state(root):
    "Every file of a workspace with its checksum; links too."
    return {p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(root.rglob("*"))
            if p.is_file() and p.name != ".lock"}


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    "A programme with snapshots, logs, scores, reports: half of them too old; and four members who bought last year."
    ws = programme(tmp_path_factory.mktemp("lived") / "ws", 365, people=60)
    lines = ws.table("order_lines").to_pyarrow().to_pandas()
    last = lines.groupby("member_id").local_date.max()
    active = sorted(last.index[last >= FIRST])[:4]
    for day in ("2023-06-01", "2024-06-01"): take_snapshot(ws, CATALOGUE, day)
    with_ = lambda who, since, value="gold", end=None: {"member_id": who, "tag": "vip", "value": value, "ts": since, "expires_at": end}
    assign_many(ws, CATALOGUE, pd.DataFrame([with_(active[0], "2022-05-01"), with_(active[1], "2022-05-01", end="2023-01-01"),
                                             with_(active[2], "2022-05-01"), with_(active[3], "2024-05-01")]), channel="manual")
    revoke(ws, CATALOGUE, "vip", active[2], ts="2022-07-01")
    revoke(ws, CATALOGUE, "vip", active[3], ts="2024-07-01")
    put_scores(ws, pd.DataFrame({"member_id": active[:2], "score": .5}), "churn", "1", "2022-06-01", "2022-12-01")
    put_scores(ws, pd.DataFrame({"member_id": active[:2], "score": .7}), "churn", "1", "2024-06-01")
    for year, name in ((2022, "segment/2022"), (2024, "segment/2024"), (2022, "_failed/segment/2022")):
        folder = ws.root / "reports" / name / ".versions/en-1" if "_" not in name else ws.root / "reports" / name / "en-1"
        (folder / "tables").mkdir(parents=True)
        files = {"tables/members.csv": "member_id,spend\nM1,3\n", "tables/months.csv": "month,spend\n1,3\n", "index.html": "<p>3</p>"}
        for file, text in files.items(): (folder / file).write_text(text)
        told = {"finished": f"{year}-07-01T00:00:00Z", "files": {f: {"bytes": len(t), "sha256": ""} for f, t in files.items()}}
        (folder / "manifest.json").write_text(json.dumps(told))
    (ws.root / "tags/exported").mkdir()
    for year in (2022, 2024): pd.DataFrame({"member_key": [1]}).to_parquet(ws.root / f"tags/exported/{year}0601T000000000000Z-00.parquet")
    (ws.root / "tags/exports.jsonl").write_text(json.dumps({"when": "2022-06-01T00:00:00Z", "file": "may.csv", "rows": 7, "purpose": "marketing", "segment": "vip"}) + "\n")
    return ws.root, active


@pytest.fixture
def lived_in(template, tmp_path):
    "A copy of it."
    shutil.copytree(template[0], tmp_path / "ws", symlinks=True)
    return open_workspace(tmp_path / "ws"), template[1]


def test_a_preview_counts_and_changes_nothing(lived_in):
    ws, _ = lived_in
    before = state(ws.root)
    told = purge(ws.root, TODAY)
    assert state(ws.root) == before and not told.done and "would go" in str(told)
    done = purge(ws.root, TODAY, yes=True)
    assert (done.tables, done.logs, done.snapshots, done.files) == (told.tables, told.logs, tuple(map(str, told.snapshots)), tuple(sorted(told.files)))
    assert "may.csv (7 rows, marketing, segment vip)" in str(told) and not purge(ws.root, TODAY)


def test_a_purge_goes_through_the_whole_workspace(lived_in):
    ws, active = lived_in
    everyone = set(KeyMap(ws.root).read()["member_id"].to_pylist())
    done = purge(ws.root, TODAY, yes=True)
    after = open_workspace(ws.root)
    assert not check_workspace(after) and Store(after).check() == []
    assert Store(after).dates() == [date(2024, 6, 1)] and done.snapshots == ("2023-06-01",)
    held = all_tables(after)["assigned_tags"].filter(lambda t: (t.tag == "vip")).execute().set_index("member_id")
    assert sorted(held.index) == sorted([active[0], active[3]]) and pd.isna(held.revoked_date[active[0]]) and not pd.isna(held.revoked_date[active[3]])
    scores = all_tables(after)["scores"].filter(lambda t: (t.model == "churn") & t.member_id.isin(active[:2]) & (t.model_version == "1")).execute()
    assert sorted(scores.score) == [.7, .7] and done.logs == {"assigned": 3, "scores": 2}
    tables = after.table("members").member_id.execute(), after.table("order_lines").member_id.execute().dropna()
    assert set(KeyMap(ws.root).read()["member_id"].to_pylist()) == everyone & set(pd.concat(tables))
    reports = {p.relative_to(ws.root / "reports").as_posix() for p in (ws.root / "reports").rglob("*") if p.is_file()}
    assert "segment/2022/.versions/en-1/tables/members.csv" not in reports and "segment/2022/.versions/en-1/tables/months.csv" in reports
    assert "segment/2024/.versions/en-1/tables/members.csv" in reports and not [r for r in reports if r.startswith("_failed")]
    assert [p.name[:4] for p in (ws.root / "tags/exported").iterdir()] == ["2024"]
    told = json.loads((ws.root / "reports/segment/2022/.versions/en-1/manifest.json").read_text())["files"]
    assert sorted(told) == ["index.html", "tables/months.csv"]
    stone = json.loads((ws.root / "data/tombstones.json").read_text())[-1]
    assert stone["purged_at"] == "2025-01-01" and stone["done"]["order_lines rows"] == done.tables["order_lines"] and not set(stone) & {"ids"}
    assert assign(after, CATALOGUE, "vip", active[1], "black") == 1      # the log can be added to


def test_a_revoked_tag_of_the_workspaces_own_table_does_not_come_back(tmp_path):
    "The log's revocation is old, but the row that it ends is in a table without a limit."
    ws = programme(tmp_path / "ws", {"tags": 365}, people=60)
    own = ws.table("assigned_tags").to_pyarrow().to_pandas()
    row = own[own.revoked_date.isna() & own.expires_date.isna() & (pd.to_datetime(own.local_date) < pd.Timestamp("2023-06-01"))].iloc[0]
    catalogue = read_catalogue(f"tags:\n  {row.tag}: {{class: value, kind: assigned, channels: [{row.channel}], precedence: [{row.channel}]}}\n")
    revoke(ws, catalogue, row.tag, row.member_id, ts="2023-07-01")
    ended = lambda: all_tables(open_workspace(ws.root))["assigned_tags"].filter(
        lambda t: (t.member_id == row.member_id) & (t.tag == row.tag) & t.revoked_date.isnull() & t.expires_date.isnull()).count().execute()
    assert ended() == 0
    purge(ws.root, TODAY, yes=True)
    assert ended() == 0


def test_a_snapshot_that_a_younger_one_stands_on_stays_and_is_named(tmp_path):
    ws = programme(tmp_path / "ws", {"tags": 365}, people=60)
    slow = read_catalogue("""
sources: {orders: {table: orders}}
metrics: {orders_all: {source: orders, agg: count, days: all}}
tags:
  slow: {class: behaviour, kind: flag, when: orders_all > 0, refresh: quarterly}
  quick: {class: behaviour, kind: flag, when: orders_all > 1, refresh: daily}
""")
    for day in ("2023-10-01", "2024-01-01", "2024-02-15"): Store(ws).refresh(slow, day)
    assert Store(ws).snapshot("2024-02-15").tags["slow"]["computed_as_of"] == "2024-01-01"
    done = purge(ws.root, TODAY, yes=True)
    assert list(map(str, Store(ws).dates())) == ["2024-01-01", "2024-02-15"] and done.snapshots == ("2023-10-01",)
    assert "The snapshot of 2024-01-01 stays: a younger one carries tags over from it" in str(done) and Store(ws).check() == []
    take_snapshot(ws, slow, "2024-02-15", force=True)
    assert purge(ws.root, TODAY).snapshots == () and purge(ws.root, TODAY).carried    # the run before it still carries
    Store(ws).drop("2024-02-15", Store(ws).runs("2024-02-15")[0])
    assert purge(ws.root, TODAY, yes=True).snapshots == ("2024-01-01",)


STEPS = ["write_version", "drop_versions", "_write_logs", "_drop_snapshot", "_remove", "_stone"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_purge_that_was_killed_is_finished_by_the_next(lived_in, monkeypatch, step, when):
    ws, _active = lived_in
    class Killed(BaseException): pass
    real = getattr(retention, step)
    def dies(*given, **named):
        if when == "after": real(*given, **named)
        raise Killed
    with monkeypatch.context() as m:
        m.setattr(retention, step, dies)
        with pytest.raises(Killed): purge(ws.root, TODAY, yes=True)
    assert [w for w in Store(ws).check() if "a purge was interrupted. Finish it: memtag purge --yes" in w]
    done = purge(ws.root, TODAY, yes=True)
    after = open_workspace(ws.root)
    assert not check_workspace(after) and Store(after).check() == [] and after.log_start >= FIRST
    assert done.tables["order_lines"] > 0 and done.snapshots == ("2023-06-01",) and not purge(ws.root, TODAY)
    assert len(json.loads((ws.root / "data/tombstones.json").read_text())) == 1
    gone = set(KeyMap(ws.root).read()["member_id"].to_pylist()) - set(after.table("members").member_id.execute()) - set(after.table("order_lines").member_id.execute())
    assert gone == set() and not (ws.root / "data/.purging.json").exists() and not list(ws.root.rglob(".new-*"))
    assert all(min(pq.read_table(p)["local_date"].to_pylist()) >= FIRST for p in (ws.root / "data").rglob("order_lines.parquet"))


def test_what_is_refused(tmp_path):
    ws = make_programme(40, "2024-01-01", "2024-04-01", seed=1, directory=tmp_path / "ws").workspace
    with pytest.raises(NotComputable, match="has no retention_days: write into memtag.yaml"): purge(ws.root, TODAY)
    with pytest.raises(DefinitionError, match="Did you mean 'order_lines'"): Config("a", "EUR", "UTC", retention_days={"order_line": 3})
    with pytest.raises(DefinitionError, match="whole number of days above 0, not True"): Config("a", "EUR", "UTC", retention_days=True)
    (ws.root / "memtag.yaml").write_text((ws.root / "memtag.yaml").read_text() + "retention_days: 30\n")
    with pytest.raises(ParameterError, match="today must be a date"): purge(ws.root, "yesterday")
    (ws.root / "data/.forgetting.json").write_text("{}")
    with pytest.raises(MemtagError, match="Finish that first: memtag forget"): purge(ws.root, TODAY)


def test_when_everything_is_older_the_tables_are_empty_and_readable(tmp_path):
    ws = make_programme(40, "2024-01-01", "2024-04-01", seed=1, directory=tmp_path / "ws").workspace
    (ws.root / "memtag.yaml").write_text((ws.root / "memtag.yaml").read_text() + "retention_days: 30\n")
    purge(ws.root, "2030-01-01", yes=True)
    after = open_workspace(ws.root)
    assert {after.table(n).count().execute() for n in ("order_lines", "members", "orders", "member_days", "identities")} == {0}
    with pytest.raises(NotComputable): _ = after.log_start
    assert not purge(ws.root, "2030-01-01")


def test_ingest_keeps_the_promise_and_does_not_bring_old_rows_back(tmp_path):
    (tmp_path / "lines.csv").write_text("line,order,card,at,amount\n1,A,m1,2023-05-01 10:00:00,5.00\n2,B,m1,2024-05-01 10:00:00,7.00\n3,C,m2,2024-12-01 10:00:00,9.00\n")
    (tmp_path / "memtag.yaml").write_text("""
name: shop
currency: EUR
zone: Europe/Berlin
retention_days: {order_lines: 400}
sources:
  order_lines:
    files: lines.csv
    columns: {line_id: line, order_id: order, member_id: card, ts: at, net_cents: amount, quantity: {value: 1}, line_kind: {value: sale}}
""")
    report = ingest(tmp_path, today=TODAY)
    assert report.tables["order_lines"].dropped == {"older than retention_days": 1} and report.tables["order_lines"].rows == 2
    assert open_workspace(tmp_path).log_start == date(2024, 5, 1) and any("the log starts on 2024-05-01" in n for n in report.notes)
    later = TODAY + timedelta(300)
    assert purge(tmp_path, later, yes=True).tables == {"order_lines": 1} and open_workspace(tmp_path).log_start == date(2024, 12, 1)
    told = open_workspace(tmp_path).manifest["tables"]["order_lines"]
    assert told["dropped"] == {"older than retention_days": 2} and told["rows"] == 1
    again = ingest(tmp_path, today=later)
    assert not again.unchanged and again.tables["order_lines"].rows == 1 and ingest(tmp_path, today=later).unchanged


def test_forgetting_and_purging_go_together(lived_in):
    ws, active = lived_in
    forget(ws.root, active[0])
    purge(ws.root, TODAY, yes=True)
    assert not check_workspace(open_workspace(ws.root))
    assert not [p for p in ws.root.rglob("*.parquet") if active[0].encode() in p.read_bytes() and "truth" not in p.parts]
