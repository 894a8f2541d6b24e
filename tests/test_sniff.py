"""How files want to be read, and which column is which: against files written with a known answer, and Python's own codecs and strptime."""

import csv
import gzip
import io
import random
import zipfile
from datetime import datetime

import ibis
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memtag_research.core import ContractError
from memtag_research.data.contracts import contract
from memtag_research.data.guess import CORE, aliases, by_name, guess_columns, guess_tables, plain_name, profiles, read_as_times
from memtag_research.data.sniff import sniff, sniff_delimiter, sniff_encoding, sniff_header

ZH = "会员卡号 付款时间 实付金额 门店 上海 宁波 李雷 韩梅梅 微信 支付宝 已完成 羊毛衫 茶叶 牛奶 退货 销售 北京 广州 深圳 王芳".split()
TW = "會員編號 付款時間 實付金額 門市 臺北 高雄 陳小姐 張先生 現金 已完成 茶葉 牛奶 退貨 銷售 桃園 臺中 新竹 禮品 優惠券".split()
EU = "Müller José Málaga Köln Zürich Françoise Ångström señora café élan Straße".split()


def text_of(words, rows=30, seed=0):
    pick = random.Random(seed)
    return "".join(f"{i:05},{pick.choice(words)},{pick.choice(words)},{pick.random() * 100:.2f}\r\n" for i in range(rows))


def encoding_of(data, size=1000):
    return sniff_encoding(lambda: (data[i : i + size] for i in range(0, len(data), size)))


# Encoding

@pytest.mark.parametrize("words, encoding, found", [
    (ZH, "utf-8", "utf-8"), (ZH, "utf-8-sig", "utf-8"), (ZH, "utf-16", "utf-16"), (ZH, "utf-16-le", "utf-16-le"), (ZH, "utf-16-be", "utf-16-be"),
    (ZH, "gb18030", "gb18030"), (TW, "big5", "big5"), (EU, "cp1252", "cp1252"), (EU, "utf-8", "utf-8"), (TW, "utf-8", "utf-8")])  # fmt: skip
@pytest.mark.parametrize("rows", [2, 30, 400])
@pytest.mark.parametrize("seed", range(5))
def test_the_encoding_that_wrote_it(words, encoding, found, rows, seed):
    text = text_of(words, rows, seed)
    if encoding.startswith("utf-16-"): text = "id,name\r\n" * 20 + text
    assert encoding_of(text.encode(encoding)) == found


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from(ZH), min_size=3, max_size=60), st.integers(1, 9))
def test_gb18030_is_found_wherever_the_pieces_are_cut(words, size):
    data = "\n".join(words).encode("gb18030")
    assert encoding_of(data, size) == "gb18030"


def test_one_late_byte_decides():
    plain = b"card,name\n" + b"0012,Lee\n" * 200_000    # more than a piece
    assert encoding_of(plain, 1 << 20) == "utf-8"
    assert encoding_of(plain + "0013,李雷\n".encode("gb18030"), 1 << 20) == "gb18030"
    assert encoding_of(plain + "0013,李雷\n".encode(), 1 << 20) == "utf-8"


# Delimiter and header

@pytest.mark.parametrize("delimiter", list(",\t;|；"))
def test_the_delimiter_that_wrote_it(delimiter):
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerow(["receipt", "paid at", "amount", "note"])
    for i in range(50): writer.writerow([i, "2024-03-01 08:05", f"{i},50", "tea, milk; bread"])
    assert sniff_delimiter(out.getvalue().splitlines()) == delimiter


HEAD, ROW = ["小票号", "付款时间", "实付金额", "门店"], ["0001", "2024/3/1 8:05", "59.90", "上海"]


@pytest.mark.parametrize("above", range(4))
def test_titles_above_the_header(above):
    titles = [["销售明细报表"], [], ["导出人：王芳", "2024-04-01"], ["期间", "3月"]][:above]
    assert sniff_header([*titles, HEAD, ROW, ROW]) == [above + 1]


def test_two_lines_of_header_and_data_that_are_all_words():
    assert sniff_header([["订单信息", "", "", "门店信息"], HEAD, ROW]) == [1, 2]
    assert sniff_header([["name", "city"], ["Lee", "Leeds"], ["Ann", "York"]]) == [1]
    assert sniff_header([ROW, ROW]) == []


def test_files_within_files(tmp_path):
    text = "小票号;付款时间;实付金额\n1;2024/3/1 8:05;59,90\n"
    with gzip.open(tmp_path / "a.csv.gz", "wb") as f: f.write(text.encode("gb18030"))
    assert [s.options for s in sniff(tmp_path / "a.csv.gz")] == [{"encoding": "gb18030", "delimiter": ";"}]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as z:
        z.writestr("orders.csv", text.encode("gb18030"))
        z.writestr("members.csv", "卡号,入会时间\n1,2024-01-01\n")
    assert [(s.name, s.options.get("encoding")) for s in sniff(tmp_path / "a.zip")] == [("a.zip/orders.csv", "gb18030"), ("a.zip/members.csv", None)]


def test_what_is_no_table_is_refused_with_advice(tmp_path):
    (tmp_path / "a.xls").write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1")
    with pytest.raises(ContractError, match="save it as .xlsx"): sniff(tmp_path / "a.xls")


# Times

FORMS = ["%Y-%m-%d %H:%M:%S", "%Y/%m/%d %H:%M", "%Y/%m/%d", "%d/%m/%Y %H:%M:%S", "%m/%d/%Y", "%d.%m.%Y", "%Y%m%d", "%Y.%m.%d %H:%M", "%m/%d/%Y %I:%M %p",
         "%Y年%m月%d日", "%Y年%m月%d日 %H:%M:%S", "%d/%m/%y"]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_times_are_read_as_they_were_written(form):
    "By the formats that were found, Python's strptime reads the same moment."
    days = [datetime(2024, m, d, 13, 5) for m in (1, 2, 11, 12) for d in (1, 9, 13, 28)]
    texts = [day.strftime(form) for day in days]
    read = read_as_times(texts)
    assert read.share == 1 and not read.or_else and not read.offset
    for day, text in zip(days, texts):
        assert any(_parses(text, f) == datetime.strptime(day.strftime(form), form) for f in read.formats or [form])


def _parses(text, form):
    try: return datetime.strptime(text, form)
    except ValueError: return None


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 31)), min_size=1, max_size=30))
def test_the_day_is_known_only_where_it_is_above_twelve(pairs):
    read = read_as_times([f"{d:02}/{m:02}/2024" for m, d in pairs])
    if any(d > 12 for _, d in pairs): assert read.formats == ("%d/%m/%Y",) and not read.or_else
    else: assert {read.formats, read.or_else} == {("%d/%m/%Y",), ("%m/%d/%Y",)}


# Columns

def test_the_aliases_name_columns_of_the_contracts():
    for table, columns in aliases()["tables"].items():
        declared = set(contract(table).columns) if table != "refunds" else {"refund_id", "order_id", "ts", "cents"}
        assert set(columns) <= declared, table
        assert set(CORE[table]) <= declared
    kinds = contract("order_lines").columns["line_kind"].values
    assert set(aliases()["codes"]["line_kind"]) <= set(kinds)
    assert set(aliases()["codes"]["tender"]) == set(contract("payments").columns["tender"].values)


def test_no_code_means_two_things():
    for words in aliases()["codes"].values():
        every = [plain_name(w) for group in words.values() for w in set(map(plain_name, group))]
        assert len(every) == len(set(every))


LISTS = """会员号 会员卡号 会员ID 手机号|member_id
订单号 小票号 订单编号|order_id
付款时间 支付时间 交易时间|ts
实付金额 实收 成交金额|net_cents
商品编码 SKU 货号|product_id
门店 店铺 门店编号|store_id
渠道 平台|channel"""


def test_the_names_of_the_design_are_known():
    for line in LISTS.splitlines():
        names, column = line.split("|")
        for name in names.split(): assert by_name(name, "order_lines")[0][:2] == (column, .98), name


TILL = pd.DataFrame({"receipt": [f"{i // 2:04}" for i in range(40)], "card": [f"{i % 7:05}" for i in range(40)],
                     "paid at": ["2024-03-01 08:05:00"] * 40, "sku": ["a", "b"] * 20, "qty": ["1", "0.352"] * 20, "paid": ["59.90", "1,299.00"] * 20,
                     "list amount": ["60.00", "1,300.00"] * 20, "buyer name": ["Ann Lee"] * 40})  # fmt: skip


def test_columns_by_name_whatever_their_order():
    for seed in range(10):
        shuffled = TILL.sample(frac=1, axis=1, random_state=seed)
        found = profiles(ibis.memtable(shuffled))
        assert next(iter(guess_tables(found))) == "order_lines"
        assert {g.column: g.source for g in guess_columns(found, "order_lines")} == {
            "order_id": "receipt", "member_id": "card", "ts": "paid at", "product_id": "sku", "quantity": "qty", "net_cents": "paid", "list_cents": "list amount"}


def test_values_against_the_name():
    "A masked buyer is nobody; a line number that repeats is none; a word is no amount."
    frame = TILL.assign(card="138****8000", line="1", paid="yes")
    guesses = {g.column: g for g in guess_columns(profiles(ibis.memtable(frame)), "order_lines")}
    assert not guesses["member_id"].sure if "member_id" in guesses else True
    assert "line_id" not in guesses and ("net_cents" not in guesses or not guesses["net_cents"].sure)


def test_examples_show_no_person():
    frame = TILL.assign(phone="13812345678", mail="ann.lee@example.com", odd="Ann Lee 13812345678")
    found = profiles(ibis.memtable(frame.assign(**{"buyer name": [f"Ann Lee{i}" for i in range(40)]})))
    shown = str([p.examples(hidden=False) for p in found.values()])
    assert "59.90" in shown     # what is nobody's is shown
    assert not any(secret in shown for secret in ("Ann Lee", "13812345678", "example.com"))


def test_an_archive_that_is_damaged_or_of_something_else_is_refused_with_advice(tmp_path):
    "The same words as at ingest: one function opens archives."
    (tmp_path / "cut.zip").write_bytes(b"PK\x03\x04" + bytes(200))
    with pytest.raises(ContractError, match="is not a readable zip archive.*Export or copy it again"): sniff(tmp_path / "cut.zip")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive: archive.writestr("a.jpg", b"x")
    with pytest.raises(ContractError, match="holds no CSV, Parquet or workbook"): sniff(tmp_path / "photos.zip")
