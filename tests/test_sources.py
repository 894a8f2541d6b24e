"""Files as they really come: encodings, separators, headers, footers, archives. Truth is what was written; nothing of a row is ever said."""

import csv
import gzip
import io
import zipfile
from dataclasses import replace

import ibis
import openpyxl
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memtag_research.core import ContractError, DefinitionError
from memtag_research.data import sources as sources_module
from memtag_research.data.engine import connect
from memtag_research.data.sources import check_twice, find_files, read_source, reading

ROWS = [["会员号", "姓名", "金额"], ["0012", "李㛃", "59.90"], ["0013", "𠮷田", "1,299.00"]]
PHONE = "13812345678"


def text_of(rows, delimiter=",", end="\r\n"):
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter, lineterminator=end).writerows(rows)
    return out.getvalue()


def rows_of(parts):
    "Header and rows of the only part, as text."
    part, = parts
    frame = part.table.order_by("_row").drop("_row", "_file").execute()
    return [list(frame), *[[None if v is None or v != v else v for v in row] for row in frame.itertuples(index=False)]]


def read(path, **options):
    return rows_of(read_source(connect(), path, options))


def refused(path, error=ContractError, **options):
    "The message of a file that must not be read."
    with pytest.raises(error) as caught:
        parts = read_source(connect(), path, options)
        with reading(parts):
            for part in parts:
                part.table.execute()
    assert PHONE not in str(caught.value)
    return str(caught.value)


ENCODINGS = {"utf-8": {}, "utf-8-sig": {}, "gb18030": {"encoding": "gb18030"}, "gb18030 as gbk": {"encoding": "GBK"}, "gb18030 as GB2312": {"encoding": "gb2312"},
             "utf-16": {}, "utf-16-le": {"encoding": "utf-16-le"}, "utf-16-be": {"encoding": "utf-16-be"}, "utf-32": {}}  # fmt: skip


@pytest.mark.parametrize("case", ENCODINGS)
def test_encodings(tmp_path, case):
    (tmp_path / "a.csv").write_bytes(text_of(ROWS).encode(case.split()[0]))
    assert read(tmp_path / "a.csv", **ENCODINGS[case]) == ROWS


def test_big5_with_the_names_that_only_its_extension_has(tmp_path):
    rows = [["會員", "姓名"], ["007", "恒碁"]]
    (tmp_path / "a.csv").write_bytes(text_of(rows).encode("cp950"))
    assert read(tmp_path / "a.csv", encoding="big5") == rows


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_believed_before_the_mapping(tmp_path, encoding):
    "One of twelve monthly files was saved by another program."
    (tmp_path / "a.csv").write_bytes(text_of(ROWS).encode(encoding))
    assert read(tmp_path / "a.csv", encoding="gb18030") == ROWS


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030", "utf-16"])
def test_of_several_encodings_the_first_that_fits_the_whole_file(tmp_path, encoding):
    rows = [ROWS[0], *[["0012", "ascii only, for a long while", "1"]] * 3_000, ROWS[1]]
    (tmp_path / "a.csv").write_bytes(text_of(rows).encode(encoding))
    assert read(tmp_path / "a.csv", encoding=["utf-8", "GBK"]) == rows


def test_utf8_declared_as_gb18030_is_no_mojibake(tmp_path):
    (tmp_path / "a.csv").write_text(text_of(ROWS), encoding="utf-8")
    assert "a.csv is UTF-8 text" in refused(tmp_path / "a.csv", DefinitionError, encoding="gb18030")


def test_gb18030_undeclared_and_a_wrong_encoding(tmp_path):
    (tmp_path / "a.csv").write_bytes(f"id,手机\n1,{PHONE}\n".encode("gb18030"))
    assert "a.csv: is not UTF-8 text. Give its `encoding`: gb18030" in refused(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_bytes(b"id,phone\n1,13812345678\xff\n")
    assert "b.csv: is not gb18030 text" in refused(tmp_path / "b.csv", encoding="gb18030")
    assert "b.csv" in (text := refused(tmp_path / "b.csv")) and "is not UTF-8 text" in text


@pytest.mark.parametrize("name, delimiter, options", [("a.tsv", "\t", {}), ("a.csv", ";", {"delimiter": ";"}), ("a.csv", "；", {"delimiter": "；"}),
                                                      ("a.txt", "|", {"delimiter": "|"}), ("a.csv", "\t", {"delimiter": "\t", "format": "csv"})])  # fmt: skip
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_separators_and_line_ends(tmp_path, name, delimiter, options, end):
    (tmp_path / name).write_text(text_of(ROWS, delimiter, end), newline="")
    assert read(tmp_path / name, **options) == ROWS


def test_a_header_in_one_piece_names_the_separator(tmp_path):
    (tmp_path / "a.csv").write_text(f"id;phone;net\n1;{PHONE};12,50\n")
    assert "Write `delimiter: ';'`" in refused(tmp_path / "a.csv", DefinitionError)


@pytest.mark.parametrize("packed", [".csv.gz", ".tsv.gz"])
def test_gzip(tmp_path, packed):
    delimiter = "\t" if "tsv" in packed else ","
    with gzip.open(tmp_path / f"a{packed}", "wb") as f:
        f.write(text_of(ROWS, delimiter).encode("gb18030"))
    assert read(tmp_path / f"a{packed}", encoding="gb18030") == ROWS
    whole = (tmp_path / f"a{packed}").read_bytes()
    (tmp_path / f"cut{packed}").write_bytes(whole[:-12])
    assert "is not a readable gzip file" in refused(tmp_path / f"cut{packed}", encoding="gb18030")


def test_quotes_of_many_tills(tmp_path):
    (tmp_path / "a.csv").write_text('id,tail,net\n="0123","=""0456""","1,299.00"\n\'0789,5" cable,"two\nlines"\n')
    assert read(tmp_path / "a.csv")[1:] == [['="0123"', '="0456"', "1,299.00"], ["'0789", '5" cable', "two\nlines"]]


def test_a_quote_that_nothing_closes(tmp_path):
    (tmp_path / "a.csv").write_text(f'id,phone\n1,"{PHONE}\n2,x\n')
    assert "a.csv" in refused(tmp_path / "a.csv")
    assert read(tmp_path / "a.csv", quote="") == [["id", "phone"], ["1", f'"{PHONE}'], ["2", "x"]]


def test_headers(tmp_path):
    "Title lines above; two lines; blanks, marks and repetitions in the names."
    (tmp_path / "a.csv").write_text('订单明细导出\n"导出时间\n2024-03-01",\n\n会员,会员,消费\n\t编号\u3000,金额,金额\n007,1,2\n', encoding="utf-8-sig")
    assert read(tmp_path / "a.csv", header=[4, 5]) == [["编号", "会员/金额", "消费/金额"], ["007", "1", "2"]]
    assert read(tmp_path / "a.csv", header=5)[0] == ["编号", "金额", "金额_2"]
    assert "is it a title? Write `header: 4`" in refused(tmp_path / "a.csv", DefinitionError)
    assert "there is no line 99" in refused(tmp_path / "a.csv", DefinitionError, header=99)


def test_empty_lines_above_and_between(tmp_path):
    (tmp_path / "a.csv").write_text("\n\n,,\nid,phone,net\n1,a,5\n\n2,b,7\n")
    assert read(tmp_path / "a.csv") == [["id", "phone", "net"], ["1", "a", "5"], ["2", "b", "7"]]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_line_for_excel_that_names_the_separator(tmp_path, end):
    (tmp_path / "a.csv").write_text(f"sep=;{end}" + text_of(ROWS, ";", end), encoding="utf-8-sig", newline="")
    assert read(tmp_path / "a.csv") == read(tmp_path / "a.csv", header=2) == ROWS


def test_engines_ignore_case_in_names(tmp_path):
    (tmp_path / "a.csv").write_text("ID,id,_row,\n1,2,3,4\n")
    assert read(tmp_path / "a.csv") == [["ID", "id_2", "_row_2", "column_4"], ["1", "2", "3", "4"]]


def test_footers_stay_with_empty_fields_and_are_said(tmp_path):
    (tmp_path / "a.csv").write_text(f"id,phone,net\n1,{PHONE},5\n2,,7\n合计,12\n,,\n共 2 条\n\n")
    part, = read_source(connect(), tmp_path / "a.csv")
    assert rows_of([part])[1:] == [["1", PHONE, "5"], ["2", None, "7"], ["合计", "12", None], ["共 2 条", None, None]]
    assert part.notes == ("a.csv: 2 lines at the end with fewer fields than the header, kept with empty fields",)
    assert (tmp_path / "a.csv").read_text().endswith("共 2 条\n\n")   # the source itself is not touched


FOOTERS = {"Total;;12.00": True, "TOTAL": True, "2 rows": True, "导出时间：2024-03-31 10:00": True, "制表人：张三": True, "2;13812345678": False, "2;x": False}


@pytest.mark.parametrize("line", FOOTERS)
def test_what_is_a_footer_and_what_was_cut_off(tmp_path, line):
    (tmp_path / "a.csv").write_text(f"id;phone;day;net\n1;{PHONE};x;5\n{line}\n")
    if FOOTERS[line]:
        assert len(read(tmp_path / "a.csv", delimiter=";")) == 3
    else:
        assert "a.csv, line 3: has a line of 2 fields where the header has 4" in refused(tmp_path / "a.csv", delimiter=";")


def test_a_last_line_without_its_end_was_cut_off(tmp_path):
    (tmp_path / "a.csv").write_text("id,phone,net\n1,x,5\n20240301")
    assert "line 3: has a line of 1 field" in refused(tmp_path / "a.csv")


@pytest.mark.parametrize("row, fields", [(f"2,{PHONE}", 2), (f"2,{PHONE},12,50", 4)])
@pytest.mark.parametrize("encoding", ["utf-8", "gb18030", "utf-16"])
def test_a_line_of_another_length_is_named_by_its_number(tmp_path, row, fields, encoding):
    (tmp_path / "会员.csv").write_bytes(f'编号,手机,金额\n1,"a\nb",5\n{row}\n3,y,7\n'.encode(encoding))
    text = refused(tmp_path / "会员.csv", encoding=encoding)
    assert f"会员.csv, line 4: has a line of {fields} fields where the header has 3" in text


def test_a_short_line_in_another_part_is_not_blamed_on_the_first(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as z:
        z.writestr("1.csv", "a,b\n1,2\n")
        z.writestr("2.csv", "a,b\n1,2\n1,2,3\n")
    assert "a.zip/2.csv, line 3: has a line of 3 fields" in refused(tmp_path / "a.zip")


def raw_zip(path, members):
    "An archive whose names are bytes, as Windows packs them: no flag says which encoding."
    class Info(zipfile.ZipInfo):
        def _encodeFilenameFlags(self):
            return self.raw, self.flag_bits & ~0x800
    with zipfile.ZipFile(path, "w") as z:
        for raw, text in members.items():
            info = Info("x")
            info.raw = raw
            z.writestr(info, text)


@pytest.mark.parametrize("encoding", ["gbk", "utf-8"])
def test_names_of_members_are_as_they_were_typed(tmp_path, encoding):
    raw_zip(tmp_path / "a.zip", {"三月/订单.csv".encode(encoding): "id\n1\n"})
    assert [p.name for p in read_source(connect(), tmp_path / "a.zip")] == ["a.zip/三月/订单.csv"]


def test_an_archive_gives_one_part_a_file_and_stays_in_its_folder(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as z:
        for name in ("b/2024-04.csv", "b/2024-03.csv", "../../../escaped.csv", "/absolute.csv", "..\\win.csv"):
            z.writestr(name, f"id,of\n1,{name}\n")
        for name in ("__MACOSX/b/._2024-03.csv", "b/~$x.xlsx", "b/._y.csv", ".DS_Store", "b/notes.docx"):
            z.writestr(name, "?")
    con = connect()
    parts = read_source(con, tmp_path / "a.zip")
    assert [p.name for p in parts] == [f"a.zip/{n}" for n in sorted(("b/2024-04.csv", "b/2024-03.csv", "../../../escaped.csv", "/absolute.csv", "..\\win.csv"))]
    for part in parts:
        frame = part.table.execute()
        assert frame.of[0] == part.name.removeprefix("a.zip/") and frame._file[0] == part.name
    assert parts[0].notes == ("a.zip: not read: b/notes.docx",) and parts[1].notes == ()
    assert not list(tmp_path.rglob("escaped.csv")) and not list(tmp_path.parent.glob("escaped.csv"))
    only = read_source(con, tmp_path / "a.zip", {"inside": "b/*-03.csv"})
    assert [p.name for p in only] == ["a.zip/b/2024-03.csv"]
    assert "nothing in it fits" in refused(tmp_path / "a.zip", DefinitionError, inside="*.parquet")


def test_archives_that_are_refused(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("a.csv", bytes(110 << 20))
    assert "unpacks to 0.1 GB from 0.1 MB" in refused(tmp_path / "bomb.zip")
    (tmp_path / "no.zip").write_text("id\n")
    assert "is not a readable zip archive" in refused(tmp_path / "no.zip")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as z:
        z.writestr("readme.pdf", "?")
    assert "holds no CSV, Parquet or workbook, but: 'readme.pdf'" in refused(tmp_path / "other.zip")
    whole = bytearray((tmp_path / "other.zip").read_bytes())
    for offset, signature in ((6, b"PK\x03\x04"), (8, b"PK\x01\x02")):
        whole[whole.index(signature) + offset] |= 1
    (tmp_path / "locked.zip").write_bytes(whole)
    assert "is protected by a password" in refused(tmp_path / "locked.zip")


def test_a_damaged_member_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as z:
        z.writestr("b.csv", f"id,phone\n1,{PHONE}\n")
    whole = (tmp_path / "a.zip").read_bytes().replace(PHONE.encode(), b"13899999999")
    (tmp_path / "a.zip").write_bytes(whole)
    assert "holds 'b.csv', which is damaged" in refused(tmp_path / "a.zip")


def test_sheets_are_parts(tmp_path):
    book = openpyxl.Workbook()
    book.active.title = "一月"
    for sheet in (book.active, book.create_sheet("二月")):
        sheet.append(["id", "net"])
        sheet.append([f"{sheet.title}-007", 17850.0])
    book.create_sheet("old").sheet_state = "hidden"
    book["old"].append(["x"])
    book.save(tmp_path / "订单.xlsx")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as z:
        z.write(tmp_path / "订单.xlsx", "导出/订单.xlsx")
    parts = read_source(connect(), tmp_path / "a.zip", {"sheet": "*月"})
    assert [p.name for p in parts] == ["a.zip/导出/订单.xlsx/一月", "a.zip/导出/订单.xlsx/二月"]
    frame = pd.concat([p.table.execute() for p in parts])
    assert frame.values.tolist() == [["一月-007", "17850", 1, parts[0].name], ["二月-007", "17850", 1, parts[1].name]]
    assert "several sheets" in refused(tmp_path / "订单.xlsx", DefinitionError)


def test_a_full_sheet_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(sources_module, "EXCEL_ROWS", 20)
    book = openpyxl.Workbook()
    for n in range(12):
        book.active.append([f"x{n}"])
    book.save(tmp_path / "a.xlsx")
    part, = read_source(connect(), tmp_path / "a.xlsx")
    assert part.notes == ("a.xlsx/Sheet: is full, a sheet holds 20 rows: was the export cut off, or goes it on in another?",)


def test_the_same_content_twice(tmp_path):
    "In an archive and beside it; in two encodings; but not two sheets of one workbook."
    (tmp_path / "a.csv").write_bytes(text_of(ROWS, end="\n").encode("utf-8"))
    (tmp_path / "b.csv").write_bytes(text_of(ROWS).encode("gb18030"))
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as z:
        z.write(tmp_path / "a.csv", "x.csv")
    book = openpyxl.Workbook()
    book.create_sheet("2")
    for sheet in book:
        sheet.append(["a"])
    book.save(tmp_path / "d.xlsx")
    book.save(tmp_path / "e.xlsx")
    con = connect()
    parts = {n: read_source(con, tmp_path / n, {"encoding": ["utf-8", "gb18030"], "sheet": "*"}) for n in ("a.csv", "b.csv", "c.zip", "d.xlsx")}
    check_twice(parts["a.csv"] + parts["d.xlsx"])
    for one, other in (("a.csv", "b.csv"), ("a.csv", "c.zip"), ("d.xlsx", "d.xlsx")):
        with pytest.raises(ContractError, match="has the same content as"):
            check_twice([*parts[one], *(replace(p) for p in parts[other])])


def test_types_of_parts(tmp_path):
    pd.DataFrame({"id": [1, 2]}).to_parquet(tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text("id\n1\n")
    con = connect()
    for name in ("a.parquet", "a.csv"):
        part, = read_source(con, tmp_path / name)
        assert part.table.schema()["_row"] == ibis.dtype("int64") and part.table.schema()["_file"].is_string()
    assert "must be parquet, csv, xlsx or lines" in refused(tmp_path / "a.csv", DefinitionError, format="json")


def test_a_name_is_no_pattern_for_the_engine(tmp_path):
    "A browser saves a second download as `orders [1].csv`; DuckDB takes that for `orders 1.csv`."
    (tmp_path / "orders 1.csv").write_text("id\nwrong\n")
    (tmp_path / "orders [1].csv").write_text("id\nright\n")
    assert read(tmp_path / "orders [1].csv") == [["id"], ["right"]]
    pd.DataFrame({"id": ["wrong"]}).to_parquet(tmp_path / "o1.parquet")
    pd.DataFrame({"id": ["right"]}).to_parquet(tmp_path / "o[1].parquet")
    assert read(tmp_path / "o[1].parquet") == [["id"], ["right"]]


def test_patterns_leave_out_what_nobody_means(tmp_path):
    for name in ("a.csv", "~$a.csv", "._a.csv", ".a.csv"):
        (tmp_path / name).write_text("id\n1\n")
    assert [p.name for p in find_files("*.csv", tmp_path)] == ["a.csv"]
    (tmp_path / "exports").mkdir()
    with pytest.raises(DefinitionError, match=r"is a folder. Write 'exports/\*.csv'"):
        find_files("exports", tmp_path)


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\x00", exclude_categories=("Cs",)), max_size=8)


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.tuples(CELLS, CELLS, CELLS), max_size=8), end=st.sampled_from(["\n", "\r\n"]),
       encoding=st.sampled_from(["utf-8", "gb18030", "utf-16"]), delimiter=st.sampled_from([",", ";", "\t"]))  # fmt: skip
def test_whatever_is_written_is_read(tmp_path_factory, rows, end, encoding, delimiter):
    "Any text in any encoding comes back; an empty text is null."
    path = tmp_path_factory.mktemp("any") / "a.csv"
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL).writerows([["a", "b", "c"], *rows])
    path.write_bytes(out.getvalue().encode(encoding))
    found = read(path, encoding=encoding, delimiter=delimiter)[1:]
    while rows and not "".join(rows[-1]).strip(" \t\u3000\xa0"):
        rows = rows[:-1]   # empty lines at the end are no rows
    plain = [[v.replace("\r\n", "\n").replace("\r", "\n") if v else None for v in row] for row in rows]
    seen = [[v.replace("\r\n", "\n").replace("\r", "\n") if v else None for v in row] for row in found]
    assert seen == plain
