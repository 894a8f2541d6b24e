"""Ingest of good and of bad files: what is wrong is named, counted and masked, and the old version stays as it was."""

import errno
import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from memtag_research.core import ContractError, DefinitionError, MemtagError
from memtag_research.data import workspace as workspace_module
from memtag_research.data.ingest import check_workspace, ingest
from memtag_research.data.workspace import open_workspace

MAPPING = """
name: Corner shop
currency: CNY
zone: Asia/Shanghai
sources:
  order_lines:
    files: [orders.csv]
    columns:
      line_id: line
      order_id: order
      member_id: phone
      ts: paid_at
      net_cents: amount
      quantity: pieces
      line_kind: {value: sale}
"""
HEADER = "line,order,phone,paid_at,amount,pieces"
GOOD = ["1,A1,13812345678,2017-07-01 10:00:00,12.50,1", "2,A1,13812345678,2017-07-01 10:00:00,1.05,2",
        "3,A2,,2017-07-01 23:59:59,3.00,0.352"]


@pytest.fixture
def shop(tmp_path):
    "A workspace that was ingested once."
    (tmp_path / "memtag.yaml").write_text(MAPPING)
    put(tmp_path, GOOD)
    ingest(tmp_path)
    return tmp_path


def put(root, rows, header=HEADER):
    (root / "orders.csv").write_text("\n".join([header, *rows]) + "\n")


def served(root):
    return open_workspace(root).table("order_lines").execute()


def refused(root, error=ContractError):
    "The message of an ingest that must fail and change nothing."
    before, version = served(root), os.readlink(root / "data/current")
    with pytest.raises(error) as caught: ingest(root)
    assert os.readlink(root / "data/current") == version
    pd.testing.assert_frame_equal(served(root), before)
    assert not list((root / "data").glob(".new-*"))
    assert "13812345678" not in str(caught.value) and "13999990000" not in str(caught.value)
    return str(caught.value)


def test_what_is_read(shop):
    lines = served(shop)
    assert lines.net_cents.tolist() == [1250, 105, 300]
    assert lines.member_id.tolist()[:2] == ["13812345678"] * 2 and pd.isna(lines.member_id[2])
    assert [str(t) for t in lines.ts] == ["2017-07-01 02:00:00", "2017-07-01 02:00:00", "2017-07-01 15:59:59"]
    assert lines.local_hour.tolist() == [10, 10, 23]
    assert float(lines.quantity.sum()) == 3.352
    assert check_workspace(open_workspace(shop)) == []
    assert (shop / "data").stat().st_mode & 0o777 == 0o700


def test_the_same_again_does_nothing_and_a_change_does(shop):
    assert ingest(shop).unchanged
    before = open_workspace(shop).fingerprint
    put(shop, [*GOOD, "4,A3,0007,2017-07-02 10:00:00,1,1"])
    assert not ingest(shop).unchanged
    assert "0007" in served(shop).member_id.tolist()
    assert open_workspace(shop).fingerprint != before


def test_60002_members_stay_60002(shop):
    "inputs.md: a sniffed number column merges 0100005 with 100005."
    ids = [str(100000 + i) for i in range(60_000)] + ["0100005", "00100006"]
    put(shop, [f"{n},O{n},{i},2017-07-01 10:00:00,1,1" for n, i in enumerate(ids)])
    ingest(shop)
    assert served(shop).member_id.nunique() == 60_002


def test_business_day_starts_at_four(shop):
    (shop / "memtag.yaml").write_text(MAPPING.replace("zone: Asia", "day_starts_at: '04:00'\nzone: Asia"))
    put(shop, ["1,A1,,2017-07-02 03:59:00,1,1", "2,A2,,2017-07-02 04:00:00,1,1"])
    ingest(shop)
    assert [str(d)[:10] for d in served(shop).local_date] == ["2017-07-01", "2017-07-02"]
    assert served(shop).local_hour.tolist() == [3, 4]


BAD_ROWS = {
    "unparseable date": ("4,A3,13999990000,soon,1,1", "ts: cannot be read as a time (1 row); first values: 'soon'"),
    "mixed dates": ("4,A3,13999990000,07/02/2017 10:00,1,1", "Give their `format`"),
    "zone-aware time": ("4,A3,13999990000,2017-07-02T10:00:00+08:00,1,1", "zone: offset"),
    "blank order id": ("4,  ,13999990000,2017-07-02 10:00:00,1,1", "order_lines.order_id: must not be empty (1 row)"),
    "duplicate key": ("1,A3,13999990000,2017-07-02 10:00:00,1,1", "line_id: must identify one row (2 rows); first values: '1'"),
    "non-numeric money": ("4,A3,13999990000,2017-07-02 10:00:00,12.5O,1", "net_cents: cannot be read as an amount of money (1 row); first values: '12.5O'"),
    "no money": ("4,A3,13999990000,2017-07-02 10:00:00,,1", "order_lines.net_cents: must not be empty (1 row)"),
    "two members in one order": ("4,A1,13999990000,2017-07-01 10:00:00,1,1", "lines of one order must share one member"),
    "one order on two days": ("4,A1,13812345678,2017-07-03 10:00:00,1,1", "lines of one order must share one local date"),
    "quantity in words": ("4,A3,13999990000,2017-07-02 10:00:00,1,two", "quantity: cannot be read"),
    "too few fields": ("4,A3", "orders.csv"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_rows(shop, case):
    row, says = BAD_ROWS[case]
    put(shop, [*GOOD, row])
    assert says in refused(shop)


def test_every_broken_rule_at_once(shop):
    put(shop, [*GOOD, "4,A3,x,soon,n/a,1", ",A4,x,2017-07-02 10:00:00,1,1", "1,A5,x,2017-07-02 10:00:00,1,1"])
    text = refused(shop)
    for part in ("ts: cannot be read", "net_cents: cannot be read", "line_id: must not be empty", "line_id: must identify one row"):
        assert part in text


@pytest.mark.parametrize("column", ["ts: paid_at", "quantity: pieces", "net_cents: amount"])
def test_an_id_mapped_to_the_wrong_column_stays_masked(shop, column):
    (shop / "memtag.yaml").write_text(MAPPING.replace(column, column.split(":")[0] + ": phone"))
    put(shop, [*GOOD, "4,A3,A3999990000,2017-07-02 10:00:00,1,1"])
    assert "A3999990000" not in refused(shop)


def test_an_undeclared_delimiter_shows_no_row(shop):
    (shop / "orders.csv").write_text("\n".join(r.replace(",", ";") for r in [HEADER, *GOOD, "4;A3;13999990000;2017-07-02 10:00:00;1,5;1"]))
    assert "Write `delimiter: ';'`" in refused(shop, (DefinitionError, ContractError))


def test_a_decimal_comma_is_no_encoding_fault(shop):
    put(shop, [*GOOD, "4,A3,x,2017-07-02 10:00:00,12,50,1"])
    text = refused(shop)
    assert "orders.csv, line 5: has a line of 7 fields where the header has 6" in text and "UTF-8" not in text


def test_the_same_file_twice(shop):
    shutil.copy(shop / "orders.csv", shop / "orders_again.csv")
    (shop / "memtag.yaml").write_text(MAPPING.replace("orders.csv", '"orders*.csv"'))
    assert "has the same content as orders.csv" in refused(shop)


def test_types_that_do_not_go_together_are_named(shop):
    (shop / "memtag.yaml").write_text(MAPPING.replace("{value: sale}", "{cases: [{when: 'amount < 0', is: return}], else: sale}"))
    text = refused(shop, DefinitionError)
    assert "columns.line_kind" in text and "TRY_CAST" in text


def test_returns_of_unknown_orders_are_counted(shop):
    kinds = "{cases: [{when: \"amount LIKE '-%'\", is: return}], else: sale}\n      original_order_id: {sql: \"CASE WHEN amount LIKE '-%' THEN 'A9' END\"}"
    (shop / "memtag.yaml").write_text(MAPPING.replace("{value: sale}", kinds))
    put(shop, [*GOOD, "4,R1,13812345678,2017-07-02 10:00:00,-1,1"])
    report = ingest(shop)
    assert report.notes and report.notes[0].startswith("1 returns refer to an order that is not there") and "note: 1 returns" in str(report)


def test_personal_values_are_masked(shop):
    put(shop, [*GOOD, "4,A1,13999990000,2017-07-01 10:00:00,1,1"])
    (shop / "memtag.yaml").write_text(MAPPING.replace("member_id: phone", "member_id: {from: phone, values: {'13812345678': a}}"))
    text = refused(shop)
    assert "139****0000" in text and "known: 13812345678" not in text


@pytest.mark.parametrize("change, says", [
    (("amount", "amout"), "the source has no column 'amount'. Did you mean 'amout'?"),
    (("paid_at", "time"), "the source has no column 'paid_at'."),
])
def test_missing_and_misspelt_columns(shop, change, says):
    put(shop, GOOD, HEADER.replace(*change))
    assert says in refused(shop, DefinitionError)


@pytest.mark.parametrize("old, new, says", [
    ("line_kind: {value: sale}", "line_kid: {value: sale}", "Did you mean 'line_kind'?"),
    ("files:", "file:", "Did you mean 'files'?"),
    ("order_lines:", "orderlines:", "Did you mean 'order_lines'?"),
    ("[orders.csv]", "[order.csv]", "Did you mean 'orders.csv'?"),
    ("net_cents: amount", "net_cents: {from: amount, units: minor}", "Did you mean 'unit'?"),
    ("net_cents: amount", "net_cents: {from: amount, unit: dollars}", "unit must be major or minor"),
    ("net_cents: amount", "net_cents: {sql: 'amount; drop table x'}", "must be one expression"),
    ("ts: paid_at", "ts: {from: paid_at, zone: Mars}", "not an IANA time zone"),
    ("      net_cents: amount\n", "", "order_lines.net_cents: is required and missing"),
])
def test_bad_mappings(shop, old, new, says):
    (shop / "memtag.yaml").write_text(MAPPING.replace(old, new))
    assert says in refused(shop, (DefinitionError, ContractError))


def test_dropped_rows_are_counted_by_reason(shop):
    text = MAPPING.replace("ts: paid_at", "ts: {from: paid_at, on_error: drop}")
    (shop / "memtag.yaml").write_text(text + "    drop:\n      - {reason: staff, where: \"phone = 'staff'\"}\n")
    put(shop, [*GOOD, "4,A3,staff,2017-07-02 10:00:00,1,1", "5,A4,x,soon,1,1", "6,A5,staff,soon,1,1"])
    report = ingest(shop).tables["order_lines"]
    assert (report.read, report.rows, report.dropped) == (6, 3, {"staff": 2, "unreadable ts": 1})


def test_zone_aware_times_where_declared(shop):
    (shop / "memtag.yaml").write_text(MAPPING.replace("ts: paid_at", "ts: {from: paid_at, zone: offset}"))
    put(shop, ["1,A1,,2017-07-01T10:00:00+02:00,1,1", "2,A2,,2017-07-01T16:30:00Z,1,1"])
    ingest(shop)
    assert [str(t) for t in served(shop).ts] == ["2017-07-01 08:00:00", "2017-07-01 16:30:00"]
    assert [str(d)[:10] for d in served(shop).local_date] == ["2017-07-01", "2017-07-02"]


@pytest.mark.parametrize("content, says", [(b"", "0 bytes"), ((HEADER + "\n").encode(), "has no rows"),
                                           ((HEADER + "\n1,A1,张三,x,1,1\n").encode("gb18030"), "not UTF-8")])
def test_empty_and_foreign_files(shop, content, says):
    (shop / "orders.csv").write_bytes(content)
    assert says in refused(shop)


def test_a_file_that_is_no_parquet(shop):
    (shop / "orders.parquet").write_bytes(b"PAR1 not really")
    (shop / "memtag.yaml").write_text(MAPPING.replace("orders.csv", "orders.parquet"))
    assert "orders.parquet: is not a readable Parquet file" in refused(shop)


def test_two_runs_at_once(shop):
    put(shop, [*GOOD, "4,A3,x,2017-07-02 10:00:00,1,1"])
    with open(shop / "data/.lock") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        assert "another ingest" in refused(shop, MemtagError)
    assert ingest(shop).tables["order_lines"].rows == 4


def test_full_disk(shop, monkeypatch):
    put(shop, [*GOOD, "4,A3,x,2017-07-02 10:00:00,1,1"])
    def full(*_): raise OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as m:
        m.setattr(workspace_module, "_swap", full)
        assert "No space left on device" in refused(shop, MemtagError)


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="a real full disk needs root and mount")
def test_really_full_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", disk]).returncode: pytest.skip("tmpfs cannot be mounted here")
    try:
        (disk / "memtag.yaml").write_text(MAPPING)
        put(disk, GOOD)
        ingest(disk)
        put(tmp_path, [f"{n},O{n},m{n * 7919 % 100003},2017-07-01 10:00:00,{n % 977}.{n % 89:02d},1" for n in range(60_000)])
        (disk / "memtag.yaml").write_text(MAPPING.replace("orders.csv", str(tmp_path / "orders.csv")))
        assert "Nothing was changed" in refused(disk, MemtagError)
    finally: subprocess.run(["umount", disk], check=True)


def test_read_only_target(shop):
    "Root passes over modes, so a file stands where the folder should be."
    shutil.rmtree(shop / "data")
    (shop / "data").write_text("")
    with pytest.raises(MemtagError, match="cannot write to .*Nothing was changed"): ingest(shop)


def test_killed_ingest_leaves_the_old_version(shop):
    put(shop, [f"{n},O{n},m,2017-07-01 10:00:00,1,1" for n in range(200)])
    before = served(shop)
    script = f"import os\nfrom memtag_research.data import ingest as m, workspace as w\nw._swap = lambda *a: os.kill(os.getpid(), 9)\nm.ingest({str(shop)!r})"
    assert subprocess.run([sys.executable, "-c", script]).returncode == -9
    pd.testing.assert_frame_equal(served(shop), before)
    assert ingest(shop).tables["order_lines"].rows == 200
    assert not list((shop / "data").glob(".new-*"))


def test_several_files_and_globs(shop):
    (shop / "orders.csv").rename(shop / "orders_1.csv")
    (shop / "orders_2.csv").write_text(HEADER + "\n4,A3,x,2017-07-02 10:00:00,1,1\n")
    (shop / "memtag.yaml").write_text(MAPPING.replace("orders.csv", '"orders_*.csv"').replace("      line_id: line\n", ""))
    ingest(shop)
    assert served(shop).line_id.tolist() == ["1-1", "1-2", "1-3", "2-1"]


def test_a_workspace_without_data_or_mapping(tmp_path):
    with pytest.raises(DefinitionError, match="memtag init"): open_workspace(tmp_path)
    (tmp_path / "memtag.yaml").write_text("name: x\ncurrency: EUR\nzone: UTC\n")
    with pytest.raises(MemtagError, match="memtag ingest"): open_workspace(tmp_path).table("orders")
    with pytest.raises(DefinitionError, match="neither order_lines nor members"): ingest(tmp_path)


def test_absent_and_misspelt_tables(shop):
    ws = open_workspace(shop)
    with pytest.raises(MemtagError, match="has no table points_ledger"): ws.table("points_ledger")
    with pytest.raises(DefinitionError, match="Did you mean 'order_lines'"): ws.table("order_line")
    assert Path(ws.folder).name.startswith("v-")
