"""Messy files: what ingest makes of them is what was written, and every line of dirt is dropped by its name."""

import re
from pathlib import Path

import numpy as np
import openpyxl
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from memtag_research.core import ParameterError
from memtag_research.data.ingest import ingest
from memtag_research.data.simulate import make_programme
from memtag_research.world.files import ROWS_A_BOOK, _clock, _whole_orders, write_messy
from memtag_research.world.parameters import Faults, Spend

ENCODINGS = {"en": "utf-8-sig", "zh": "gb18030"}
PLACES = {"en": ("GBP", "Europe/London"), "zh": ("CNY", "Asia/Shanghai")}
KEPT = ["line_id", "store_id", "order_id", "member_id", "ts", "product_id", "quantity", "list_cents", "discount_cents", "coupon_cents",
        "points_cents", "net_cents", "line_kind", "original_order_id", "channel", "status", "local_date", "local_hour"]


@pytest.fixture(scope="module", params=["en", "zh"])
def messy(request, tmp_path_factory):
    "(locale, canonical folder, folder of files, counts); Chinese files in GB18030."
    root = tmp_path_factory.mktemp(request.param)
    faults = Faults(duplicate_lines=.02, returns_without_sale=.1, points_abuse=.1)
    made = make_programme(400, "2023-06-01", "2024-06-01", 3, directory=root / "made", locale=request.param, faults=faults,
                          spend=Spend(v=400.0))   # amounts beyond a thousand
    folder, (currency, zone) = made.workspace.root / "data/current", PLACES[request.param]
    return request.param, folder, root / "files", write_messy(folder, root / "files", request.param, currency, zone)


def ids_in_order(frame): return frame.sort_values("line_id").reset_index(drop=True)


@pytest.fixture(scope="module")
def ingested(messy):
    report = ingest(messy[2])
    return report, pd.read_parquet(messy[2] / "data/current/order_lines.parquet")


def canonical(messy): return pd.read_parquet(messy[1] / "order_lines.parquet")


def test_ingest_gives_back_what_was_written(messy, ingested):
    before = canonical(messy)
    before = before[before.channel != "marketplace"]
    assert len(before) == messy[3]["lines"] > 2_000 and before.member_id.isna().any()
    pd.testing.assert_frame_equal(ids_in_order(ingested[1])[KEPT], ids_in_order(before)[KEPT], check_dtype=False)
    net = lambda lines: lines.groupby("order_id").net_cents.sum().sort_index()
    pd.testing.assert_series_equal(net(ingested[1]), net(before))


def test_every_line_of_dirt_is_dropped_by_its_name(messy, ingested):
    counts, table = messy[3], ingested[0].tables["order_lines"]
    assert table.dropped == {name: counts[name] for name in ("never paid", "test receipts", "totals")}
    assert counts["totals"] == 12 and counts["never paid"] > 10 and counts["test receipts"] > 10
    assert table.read == table.rows + sum(table.dropped.values())


def test_one_file_a_month_with_a_column_more_from_the_middle_on(messy):
    files = sorted(p for p in messy[2].glob("*_20*.csv"))
    assert [p.stem.split("_")[1] for p in files] == [str(m) for m in pd.period_range("2023-06", "2024-05", freq="M")]
    widths = [len(p.read_text(ENCODINGS[messy[0]]).splitlines()[0].split(";" if messy[0] == "en" else ",")) for p in files]
    assert sorted(widths) == widths and set(widths) == {17, 18}
    for path in files: assert re.search(rb"[^\r]\n", path.read_bytes()) is None     # lines end as on Windows


def test_totals_at_the_end_are_those_of_the_lines(messy):
    before = canonical(messy)
    before = before[before.channel != "marketplace"]
    month = before.local_date.astype(str).str[:7]
    for path in messy[2].glob("*_20*.csv"):
        last = path.read_text(ENCODINGS[messy[0]]).splitlines()[-1]
        amount = re.search(r'"(-?)[£￥]([\d,]+)\.(\d\d)"', last)
        cents = int(amount[2].replace(",", "") + amount[3]) * (-1 if amount[1] else 1)
        assert cents == before.net_cents[month == path.stem.split("_")[1]].sum()


def test_the_market_place_tells_orders_with_masked_buyers(messy):
    lines = canonical(messy)
    lines = lines[lines.channel == "marketplace"]
    name, refunds = {"en": ("marketplace_orders.csv", "marketplace_refunds.csv"), "zh": ("天猫订单.csv", "天猫退款.csv")}[messy[0]]
    orders, back = (pd.read_csv(messy[2] / file, dtype=str, encoding=ENCODINGS[messy[0]]) for file in (name, refunds))
    assert len(orders) == messy[3]["market orders"] and len(back) == messy[3]["market refunds"] > 0
    assert orders.iloc[:, 0].str.fullmatch(r'="\d{19}"').all() and orders.iloc[:, 0].is_unique
    assert not orders.iloc[:, 1].str.contains("M0").any() and orders.iloc[:, 1].nunique() < 102
    cents = lambda texts: texts.str.replace(r"[^\d-]", "", regex=True).astype(int)
    number = lambda ids: '="3' + ids.str[1:].str.zfill(18) + '"'
    sold, gone = lines[lines.line_kind != "return"], lines[lines.line_kind == "return"]
    expected = sold.groupby(number(sold.order_id)).net_cents.sum()
    assert dict(zip(orders.iloc[:, 0], cents(orders.iloc[:, 6]))) == expected.to_dict()
    assert (cents(orders.iloc[:, 4]) - cents(orders.iloc[:, 5]) == cents(orders.iloc[:, 6])).all()
    assert cents(back.iloc[:, 3]).sum() == -gone.net_cents.sum()
    assert set(back.iloc[:, 1]) == set(number(gone.original_order_id))


def test_the_spreadsheet_has_ids_as_text_two_header_lines_and_a_total(messy):
    members = pd.read_parquet(messy[1] / "members.parquet")
    path = messy[2] / {"en": "members.xlsx", "zh": "会员.xlsx"}[messy[0]]
    book = openpyxl.load_workbook(path)
    sheet = book.worksheets[0]
    rows = list(sheet.iter_rows(values_only=True))
    assert len(book.worksheets) == 2 and book.worksheets[1].sheet_state == "hidden"
    assert {str(r) for r in sheet.merged_cells.ranges} == {"A1:C1", "D1:H1"} and len(rows) == len(members) + 3
    assert [row[0] for row in rows[2:-1]] == members.member_id.tolist() and rows[-1][:2] == ({"en": "TOTAL", "zh": "合计"}[messy[0]], len(members))
    ids = pd.read_parquet(messy[1] / "identities.parquet")
    phones = ids[ids.channel == "phone"].set_index("member_id").channel_id.reindex(members.member_id)
    assert [row[6] for row in rows[2:-1]] == [None if pd.isna(p) else p for p in phones] and phones.notna().mean() > .9
    zone = PLACES[messy[0]][1]
    joined = members.joined_at.dt.tz_localize("UTC").dt.tz_convert(zone).dt.strftime("%Y-%m-%d %H:%M")
    assert [row[1] for row in rows[2:-1]] == joined.tolist()


def test_chinese_files_are_gb18030(messy):
    if messy[0] == "en": pytest.skip("Chinese files only")
    assert "encoding: gb18030" in (messy[2] / "memtag.yaml").read_text("utf-8")
    with pytest.raises(UnicodeDecodeError): (messy[2] / "天猫订单.csv").read_bytes().decode("utf-8")


def test_files_do_not_depend_on_row_groups(messy, tmp_path):
    other = tmp_path / "canonical"
    other.mkdir()
    for name in ("members", "products", "identities"): (other / f"{name}.parquet").write_bytes((messy[1] / f"{name}.parquet").read_bytes())
    pq.write_table(pq.read_table(messy[1] / "order_lines.parquet"), other / "order_lines.parquet", row_group_size=777)
    currency, zone = PLACES[messy[0]]
    assert write_messy(other, tmp_path / "files", messy[0], currency, zone) == messy[3]
    for path in (tmp_path / "files").glob("*.csv"): assert path.read_bytes() == (messy[2] / path.name).read_bytes(), path.name


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 100])
def test_no_batch_cuts_an_order(tmp_path, rows):
    orders = np.repeat(np.arange(40), np.random.default_rng(0).integers(1, 6, 40))
    table = pa.table({"order_id": [f"O{n:04}" for n in orders], "n": np.arange(len(orders))})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=11)
    batches = list(_whole_orders(tmp_path / "t.parquet", ["order_id", "n"], rows))
    assert pa.concat_tables(batches)["n"].to_pylist() == list(range(len(orders)))
    owners = [set(b["order_id"].to_pylist()) for b in batches]
    assert sum(map(len, owners)) == 40


def test_many_members_are_split_over_spreadsheets(messy, tmp_path, monkeypatch):
    monkeypatch.setattr("memtag_research.world.files.ROWS_A_BOOK", 150)
    counts = write_messy(messy[1], tmp_path, messy[0], *PLACES[messy[0]])
    books = sorted(tmp_path.glob("*.xlsx"), key=lambda p: p.stem)
    sizes = [openpyxl.load_workbook(p).worksheets[0].max_row - 3 for p in books]
    assert ROWS_A_BOOK == 250_000 and sizes[:-1] == [150] * (len(sizes) - 1) and sum(sizes) == counts["members"]


def test_other_locales_are_refused(tmp_path):
    with pytest.raises(ParameterError, match="en or zh"): write_messy(Path("."), tmp_path, "fr")


def test_moments_within_a_second_are_cut():
    assert _clock(pa.array([1_710_000_000_500_000], pa.timestamp("us")), "Asia/Shanghai", "%H:%M:%S").to_pylist() == ["00:00:00"]


def test_the_tills_write_what_makes_files_messy(messy):
    "Read by Python's own reader, not by ours."
    zh = messy[0] == "zh"
    names = ("会员卡号", "小票号", "状态", "门店编号", "实付金额", "吊牌金额") if zh else ("card", "receipt", "status", "store", "paid", "list amount")
    files = [pd.read_csv(p, sep="," if zh else ";", dtype=str, encoding=ENCODINGS[messy[0]]) for p in messy[2].glob("*_20*.csv")]
    rows = pd.concat(files, ignore_index=True)
    card, receipt, status, store, paid, listed = (rows[name] for name in names)
    assert (card == ("散客" if zh else "walk-in")).mean() > .1
    amounts = listed.dropna()
    assert amounts.str.fullmatch(r"-?[￥£]\d{1,3}(,\d{3})*\.\d\d").all() and amounts.str.contains(",").any() and paid.str.startswith("-").any()
    unpaid, tests = receipt[status == ("待付款" if zh else "not paid")], receipt[store == "TEST"]
    assert unpaid.str.fullmatch(r"O\d{11}13U").all() and tests.str.fullmatch(r"O\d{11}77T").all() and len(unpaid) and len(tests)
    assert unpaid.str[:-1].isin(receipt).all() and len(rows) == sum(messy[3][k] for k in ("lines", "never paid", "test receipts", "totals"))
