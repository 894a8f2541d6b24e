"""Workbooks as text: against openpyxl, which wrote them, and against what Excel shows; traps of inputs.md by name."""

import datetime as dt
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import openpyxl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memtag_research.core import ContractError, DefinitionError
from memtag_research.data import sheets as sheets_module
from memtag_research.data.engine import connect
from memtag_research.data.sheets import (
    SheetInfo,
    cell_text,
    choose_sheets,
    column_names,
    find_sheets,
    first_rows,
    read_sheet,
)

OWN_FILES = Path(__file__).resolve().parents[1] / "data/shipped/own_files"
NAMESPACES = "".join(f' xmlns:{n}="urn:oasis:names:tc:opendocument:xmlns:{n}:1.0"' for n in ("office", "table", "text"))


def workbook(path, **sheets):
    "A workbook of openpyxl: sheets by name, rows of values."
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    book.save(path)
    return path


def read(path, name="s", header=None):
    return read_sheet(connect(), path, name, header).order_by("_row").drop("_row").execute()


def columns_of(frame):
    return {c: [None if v is None or v != v else v for v in frame[c]] for c in frame}


def test_cells_come_out_as_they_are_shown(tmp_path):
    rows = [["a", "b", "c"], [17850.0, dt.date(2024, 3, 1), True], [59.9, dt.datetime(2024, 3, 1, 20, 5, 9), False],
            ["007", dt.time(8, 5), " x\ny "], [-0.352, dt.timedelta(hours=30), None]]  # fmt: skip
    frame = columns_of(read(workbook(tmp_path / "x.xlsx", s=rows)))
    assert frame == {"a": ["17850", "59.9", "007", "-0.352"], "b": ["2024-03-01", "2024-03-01 20:05:09", "08:05:00", "30:00:00"],
                     "c": ["true", "false", " x\ny ", None]}  # fmt: skip


def test_every_second_of_a_year_survives_the_serial_number_of_excel(tmp_path):
    random.seed(3)
    start = dt.datetime(2023, 12, 31, 23, 59, 59)
    given = [start + dt.timedelta(seconds=random.randrange(1, 400 * 86_400)) for _ in range(5_000)]
    rows = [["t"], *([t] for t in given)]
    seen = read(workbook(tmp_path / "x.xlsx", s=rows))["t"].tolist()
    assert seen == [str(t) if t.time() != dt.time() else str(t.date()) for t in given]


@pytest.mark.parametrize("digits", [14, 15, 16, 17, 19])
def test_an_order_number_beyond_excels_15_digits_does_not_look_like_one(tmp_path, digits):
    "inputs.md: …890 and …891 both come back as …168, so neither may be an id."
    first, second = int("3245678901234567890"[:digits]), int("3245678901234567891"[:digits])
    text = read(workbook(tmp_path / "x.xlsx", s=[["id", "typed"], [first, str(first)], [second, str(second)]]))
    assert text["typed"].tolist() == [str(first), str(second)]
    assert text["id"].tolist() == [str(first), str(second)] if digits <= 15 else all("e+" in t for t in text["id"])


@pytest.mark.parametrize("value, text", [(0.1 + 0.2, "0.3"), (19.9 * 3, "59.7"), (1e-7, "0.0000001"), (1e14, "100000000000000"), (2e15, "2e+15"),
                                         (-3e18, "-3e+18"), (1234567.891, "1234567.891"), (-0.0, "0"), (5, "5")])  # fmt: skip
def test_numbers(value, text):
    assert cell_text(value) == text


def test_a_header_of_two_lines(tmp_path):
    rows = [["会员信息", None, "本月消费", None, "累计", None], ["会员号", "姓名", "金额", "笔数", "金额", "笔数"], ["007", "李", 1, 2, 3, 4]]
    path = workbook(tmp_path / "x.xlsx", s=rows)
    book = openpyxl.load_workbook(path)
    for cells in ("A1:B1", "C1:D1", "E1:F1"):
        book["s"].merge_cells(cells)
    book.save(path)
    assert list(read(path, header=[1, 2])) == ["会员号", "姓名", "本月消费/金额", "本月消费/笔数", "累计/金额", "累计/笔数"]
    assert list(read(path, header=2)) == ["会员号", "姓名", "金额", "笔数", "金额_2", "笔数_2"]


def test_names_never_collide():
    assert column_names([["a", "A", "a_2", "", None, "_file"]]) == ["a", "A_3", "a_2", "column_4", "column_5", "_file_2"]
    assert column_names([["\ufeff 会员号\u3000", "订单\n号", "\t"]]) == ["会员号", "订单 号", "column_3"]


def test_a_cell_merged_over_rows_holds_in_each(tmp_path):
    "One order over three lines: only the first cell of the merged ones is stored."
    rows = [["订单号", "商品", "实付"], ["O1", "a", 10], [None, "b", None], [None, "c", None], ["O2", "d", 5], ["合计", None, 15]]
    path = workbook(tmp_path / "x.xlsx", s=rows)
    book = openpyxl.load_workbook(path)
    for cells in ("A2:A4", "A6:B6"):
        book["s"].merge_cells(cells)
    book.save(path)
    frame = columns_of(read(path))
    assert frame["订单号"] == ["O1", "O1", "O1", "O2", "合计"]
    assert frame["商品"] == ["a", "b", "c", "d", None] and frame["实付"] == ["10", None, None, "5", "15"]


def test_a_table_that_starts_in_the_middle_of_its_sheet(tmp_path):
    path = workbook(tmp_path / "x.xlsx", s=[[], [None, None, "会员名单"], [], [None, None, "id", "n", "m"], [None, None, "1", 2, 3], [], [None, None, "4", 5, 6]])
    with pytest.raises(DefinitionError, match="Write `header: 4`"):
        read(path)
    assert columns_of(read(path, header=4)) == {"id": ["1", "4"], "n": ["2", "5"], "m": ["3", "6"]}


def test_which_sheet(tmp_path):
    path = workbook(tmp_path / "x.xlsx", 说明=[["read me"]], 一月=[["a"], [1]], 二月=[["a"], [2]], 空=[])
    with pytest.raises(DefinitionError, match=r"several sheets: '说明' \(1 rows\), '一月' \(2 rows\), '二月' \(2 rows\)"):
        choose_sheets(path)
    assert choose_sheets(path, "?月")[0] == ["一月", "二月"] and choose_sheets(path, ["二月"])[0] == ["二月"]
    with pytest.raises(DefinitionError, match="has no sheet '三月'"):
        choose_sheets(path, "三月")


def test_hidden_sheets_are_left_out_and_said(tmp_path):
    path = workbook(tmp_path / "x.xlsx", s=[["a"], [1]], old=[["a"], [2]], cache=[["a"], [3]])
    book = openpyxl.load_workbook(path)
    book["old"].sheet_state, book["cache"].sheet_state = "hidden", "veryHidden"
    book.save(path)
    assert choose_sheets(path) == (["s"], ["x.xlsx: hidden sheets were not read: old, cache"])
    assert choose_sheets(path, "old")[0] == ["old"] and choose_sheets(path, "*")[0] == ["s"]
    assert [s.hidden for s in find_sheets(path)] == [False, True, True]


def test_extent_and_first_rows(tmp_path):
    path = workbook(tmp_path / "x.xlsx", s=[[], ["a", "b"], [None, 1.0]])
    assert find_sheets(path) == [SheetInfo("s", False, 3, 2)]
    assert first_rows(path, "s", 2) == [[None, None], ["a", "b"]]


def open_document(path, rows):
    "A spreadsheet as LibreOffice saves it, written by hand."
    kinds = {float: ("float", "value"), dt.date: ("date", "date-value"), bool: ("boolean", "boolean-value")}
    def cell(v):
        kind, name = kinds.get(type(v), ("string", ""))
        value = f' office:{name}="{str(v).lower()}"' if name else ""
        return f'<table:table-cell office:value-type="{kind}"{value}><text:p>{v}</text:p></table:table-cell>'
    lines = "".join(f"<table:table-row>{''.join(map(cell, row))}</table:table-row>" for row in rows)
    body = f'<office:body><office:spreadsheet><table:table table:name="s">{lines}</table:table></office:spreadsheet></office:body>'
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("mimetype", "application/vnd.oasis.opendocument.spreadsheet")
        z.writestr("META-INF/manifest.xml", f'<m:manifest xmlns:m="{NAMESPACES.split(chr(34))[1].replace("office", "manifest")}"/>')
        z.writestr("content.xml", f'<office:document-content{NAMESPACES} office:version="1.2">{body}</office:document-content>')
    return path


def test_ods(tmp_path):
    path = open_document(tmp_path / "x.ods", [["会员号", "日"], ["007", dt.date(2024, 3, 1)], [12.0, True]])
    assert columns_of(read(path)) == {"会员号": ["007", "12"], "日": ["2024-03-01", "true"]}


REFUSED = {
    "old.xls": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "is an old .xls workbook. Open it in Excel or WPS and save it as .xlsx, or as CSV UTF-8"),
    "locked.xlsx": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600) + "EncryptedPackage".encode("utf-16-le"), "is protected by a password"),
    "page.xls": ("\n<html><table><tr><td>张三 13812345678".encode(), "is a web page or XML"),
    "page.xlsx": (b"\xef\xbb\xbf<?xml version='1.0'?><Workbook>", "is a web page or XML"),
    "text.xlsx": (b"id\tphone\n1\t13812345678\n", "write `format: csv`"),
    "cut.xlsx": (b"PK\x03\x04" + bytes(100), "is no workbook"),
    "empty.xlsx": (b"", "0 bytes"),
}


def test_nothing_to_read(tmp_path):
    path = workbook(tmp_path / "x.xlsx", s=[], t=[])
    with pytest.raises(ContractError, match="has no content"):
        choose_sheets(path)
    with pytest.raises(ContractError, match="has nothing in the sheet 's'"):
        read(path)
    book = openpyxl.load_workbook(path)
    book["t"].append(["a"])
    book["t"].sheet_state = "hidden"
    book.save(path)
    with pytest.raises(ContractError, match="has nothing in the sheet 's'"):
        read(path, choose_sheets(path)[0][0])


@pytest.mark.parametrize("cell", ["13812345678", "+86 138-1234-5678", "li@example.com", "(021) 6123-4567"])
def test_a_file_without_a_header_does_not_name_columns_by_its_first_member(tmp_path, cell):
    with pytest.raises(DefinitionError, match="line 1 is no header, 1 of its cells look") as caught:
        read(workbook(tmp_path / "x.xlsx", s=[["007", "李雷", cell], ["008", "韩梅梅", "x"]]))
    assert cell not in str(caught.value) and "李雷" not in str(caught.value)


def test_dates_and_codes_may_name_columns():
    line = ["20240301", "2024-03-01", "2024年3月", "SKU0012345678", "Q1", "18 - 25", "实付@门店", "+积分"]
    assert sheets_module.header_lines([line], None, "x") == [1]


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_workbook_is_refused_with_advice(tmp_path, name):
    content, says = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ContractError) as caught:
        find_sheets(tmp_path / name)
    assert says in str(caught.value) and name in str(caught.value) and "138" not in str(caught.value)


def test_a_zip_that_is_no_workbook(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.xlsx", "w") as z:
        z.writestr("a.txt", "13812345678")
    with pytest.raises(ContractError, match="is not a readable workbook"):
        find_sheets(tmp_path / "x.xlsx")


def test_a_stray_cell_in_the_last_corner_does_not_end_the_process(tmp_path):
    "calamine would ask for 512 GB and abort."
    path = workbook(tmp_path / "x.xlsx", s=[["a"], [1]])
    book = openpyxl.load_workbook(path)
    book["s"]["XFD1048576"] = "x"
    book.save(path)
    with pytest.raises(ContractError, match="1,048,576 rows and 16,384 columns; the outermost cell is near XFD1048576"):
        find_sheets(path)


def test_a_formatted_corner_is_no_cell(tmp_path):
    path = workbook(tmp_path / "x.xlsx", s=[["a"], [1]])
    book = openpyxl.load_workbook(path)
    book["s"]["XFD1048576"].number_format = "0.00"
    book.save(path)
    assert find_sheets(path)[0].rows == 2


def test_a_bomb_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.xlsx", "w", zipfile.ZIP_DEFLATED) as z, z.open("xl/worksheets/sheet1.xml", "w") as f:
        for _ in range(200):
            f.write(bytes(1 << 20))
    with pytest.raises(ContractError, match="unpacks to 0.2 GB from 0.2 MB"):
        find_sheets(tmp_path / "x.xlsx")


def test_more_rows_than_a_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(sheets_module, "ROWS_A_BATCH", 7)
    path = workbook(tmp_path / "x.xlsx", s=[["n"], *([n] for n in range(50))])
    assert read(path)["n"].tolist() == [str(n) for n in range(50)]
    table = read_sheet(connect(), path, "s").execute()
    assert table._row.tolist() == list(range(1, 51))


def test_copies_are_private_and_go_with_the_connection(tmp_path):
    path, con = workbook(tmp_path / "x.xlsx", s=[["a"], [1]]), connect()
    folder = sheets_module.private_folder(con).parent
    assert folder.stat().st_mode & 0o777 == 0o700
    read_sheet(con, path, "s")
    assert list(folder.rglob("*.parquet")) and sheets_module.private_folder(con).parent == folder
    del con
    assert not folder.exists()


def test_copies_of_a_killed_process_are_removed_by_the_next_and_those_of_a_living_one_are_not():
    code = ("from memtag_research.data.engine import connect; from memtag_research.data.sheets import private_folder; import time;"
            "con = connect(); print(private_folder(con), flush=True); time.sleep(60)")
    killed, living = (subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2))
    try:
        left, used = (Path(process.stdout.readline().strip()) for process in (killed, living))
        killed.kill()
        killed.wait()
        assert left.exists() and used.exists()
        mine, con = [], connect()
        mine += [sheets_module.private_folder(con)]
        assert not left.parent.exists() and used.exists() and mine[0].exists()
    finally:
        living.kill()
        living.wait()


def shown(value):
    "What openpyxl read, by rules written once more."
    if isinstance(value, dt.datetime):
        return str(value.date()) if value.time() == dt.time() else str(value)
    return None if value is None else str(value)


@pytest.mark.parametrize("name", ["zh/会员.xlsx", "en/members.xlsx"])
def test_the_shipped_members_are_what_openpyxl_reads(name):
    "Two lines of header, a hidden sheet, a line of totals."
    path = OWN_FILES / name
    (sheet,), notes = choose_sheets(path)
    (_, *_), headers, *rows = openpyxl.load_workbook(path)[sheet].iter_rows(values_only=True)
    frame = read(path, sheet, [1, 2])
    assert list(frame) == list(headers) and "hidden sheets were not read" in notes[0] and len(frame) > 50
    assert [list(r) for r in frame.astype(object).where(frame.notna(), None).itertuples(index=False)] == [[*map(shown, row)] for row in rows]


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc", "Cn", "Co")), max_size=6).filter(lambda t: not t.startswith("=") and "_x" not in t)
NUMBERS = st.integers(-10**15 + 1, 10**15 - 1) | st.integers(-10**9, 10**9).map(lambda n: n / 100)


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(st.tuples(TEXTS, NUMBERS, st.booleans() | st.dates(dt.date(1990, 1, 1), dt.date(2099, 1, 1))), min_size=1, max_size=5))
def test_whatever_a_workbook_holds_comes_out(tmp_path_factory, rows):
    path = workbook(tmp_path_factory.mktemp("any") / "x.xlsx", s=[["a", "b", "c"], *rows])
    frame = columns_of(read(path))
    assert frame["a"] == [text or None for text, _, _ in rows]
    assert [float(t) for t in frame["b"]] == [float(n) for _, n, _ in rows] and not any("e" in t or t.endswith(".0") for t in frame["b"])
    assert frame["c"] == [str(v).lower() for _, _, v in rows]
