"""Exports of systems that were not looked at become a mapping, and the mapping gives back what was planted, to the cent."""

import os
import stat
from pathlib import Path

import pandas as pd
import pytest
import yaml
from lookalikes import SYSTEMS, en_ambiguous, phone, zh_phones, zh_till

from memtag_research.core import DefinitionError, ParameterError
from memtag_research.data.draft import as_yaml, draft, write_draft
from memtag_research.data.ingest import ingest
from memtag_research.data.workspace import open_workspace


@pytest.fixture(scope="module", params=SYSTEMS, ids=lambda system: system.__name__)
def read(request, tmp_path_factory):
    "(export, draft, ingest's report, workspace) of one system."
    folder = tmp_path_factory.mktemp("files")
    export = request.param(folder)
    made = draft(tmp_path_factory.mktemp("w") / "shop", export.files, **export.settings)
    root = made.accept(**export.answers)
    return export, made, ingest(root), open_workspace(root)


def lines_of(ws): return ws.table("order_lines").execute()


def test_what_comes_out_is_what_was_planted(read):
    export, _, _, ws = read
    out = lines_of(ws)
    assert len(out) == len(export.lines)
    assert out.net_cents.sum() == sum(x.net_cents for x in export.lines)
    assert out.order_id.nunique() == len({x.order for x in export.lines})
    assert float(out.quantity.abs().sum()) == sum(abs(x.quantity) for x in export.lines)


def test_members_are_the_members(read):
    export, _, report, ws = read
    out = lines_of(ws)
    assert out.member_id.nunique() == len({x.member for x in export.lines} - {None})
    assert out.member_id.isna().sum() == sum(x.member is None for x in export.lines)
    if export.members is None: return
    people = ws.table("members").execute()
    assert len(people) == people.member_id.nunique() == export.members == report.tables["members"].rows
    assert set(out.member_id.dropna()) <= set(people.member_id)


def test_days_and_kinds_are_right(read):
    export, _, _, ws = read
    out = lines_of(ws)
    assert sorted(map(str, pd.to_datetime(out.local_date).dt.date)) == sorted(str(x.at.date()) for x in export.lines)
    assert (out.line_kind == "return").sum() == sum(x.returned is not None for x in export.lines)
    assert (out[out.line_kind == "return"].net_cents <= 0).all()


def test_every_row_that_was_dropped_has_its_reason(read):
    export, _, report, _ = read
    table = report.tables["order_lines"]
    assert {k: n for k, n in table.dropped.items() if n} == export.dropped
    assert table.read == table.rows + sum(table.dropped.values())


def test_only_what_nobody_can_know_was_asked(read):
    export, made, _, _ = read
    assert bool(made.open_questions) == bool(export.answers)


def test_the_page_shows_nobody(read):
    _, made, _, _ = read
    shown = str(made) + made._repr_html_() + as_yaml(made)
    for secret in (*(phone(m) for m in range(1, 31)), "王芳王", "ann1@example.com", "Ann1@Example.com"): assert secret not in shown


def test_nothing_personal_is_mapped_unasked(read):
    _, _, _, ws = read
    if not ws.has("members"): return
    assert set(ws.table("members").columns) <= {"member_id", "joined_at", "local_date", "join_channel", "closed_at", "closed_date"}


# The mapping

def test_the_mapping_of_a_till(tmp_path):
    export = zh_till(tmp_path)
    made = draft(tmp_path / "my", export.files)
    written = yaml.safe_load((made.accept() / "memtag.yaml").read_text("utf-8"))
    lines = written["sources"]["order_lines"]
    assert lines["files"] == ["../订单_*.csv"] and lines["header"] == 3 and lines["encoding"] == "gb18030"    # next month's file too
    assert lines["columns"]["net_cents"] == "实付金额"
    assert [rule["reason"] for rule in lines["drop"]] == ["totals", "never paid"]
    assert made.tables[0].unmapped == ["商品名称", "收银员"]
    assert written["sources"]["members"]["header"] == [1, 2] and made.tables[1].personal == ["姓名", "生日", "手机号"]


def test_a_phone_is_never_an_id(tmp_path):
    export = zh_phones(tmp_path)
    root = draft(tmp_path / "my", export.files).accept()
    ingest(root)
    ws = open_workspace(root)
    ids = {*ws.table("order_lines").execute().member_id.dropna(), *ws.table("members").execute().member_id}
    assert len(ids) == 30 and all(len(i) == 32 for i in ids)
    data = b"".join(p.read_bytes() for p in (root / "data").rglob("*.parquet"))
    assert not any(phone(m).encode() in data for m in range(1, 31))


def test_what_is_open_is_refused_and_named(tmp_path):
    made = draft(tmp_path / "my", en_ambiguous(tmp_path).files)
    with pytest.raises(DefinitionError, match=r"order_lines.ts.*February or in March.*%d/%m/%Y.*accept\(orders="): made.accept()
    assert not (tmp_path / "my/memtag.yaml").exists()
    assert "# OPEN: date" in write_draft(made).read_text("utf-8")


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_the_shipped_files_of_a_shop(tmp_path, lang):
    "Tills, workbook of members and market place, dropped in one folder: both exports of orders are read, to the cent of what they say."
    folder = Path(__file__).resolve().parents[1] / "data/shipped/own_files" / lang
    made = draft(tmp_path / "my", folder)
    assert [d.table for d in made.tables] == ["order_lines", "order_lines", "members"] and made.open_questions == []
    assert [q.key for q in made.questions].count("draft_ask_more") == 1
    ingest(made.accept())
    ws = open_workspace(tmp_path / "my")
    lines, till, market = lines_of(ws), *(pd.read_csv(path, dtype=str, sep=None, engine="python", encoding="gb18030" if lang == "zh" else "utf-8-sig")
                                          for path in sorted(folder.glob("*.csv"), key=lambda p: -p.stat().st_size))
    cents = lambda column: (column.str.replace(r"[^0-9.-]", "", regex=True).astype(float) * 100).round().astype(int)
    paid = cents(market.iloc[:, 6])
    assert lines[lines.channel.isna()].net_cents.tolist() == paid.tolist() and lines[lines.channel.isna()].member_id.isna().all()
    assert lines[lines.channel.notna()].net_cents.sum() == cents(till.iloc[-1:, 12]).iloc[0]     # the till's own line of totals
    assert set(lines.member_id.dropna()) <= set(ws.table("members").execute().member_id)


def test_an_export_of_the_same_orders_is_left_out(tmp_path):
    "Heads of orders beside their lines: read together, every order would count twice."
    till = Path(__file__).resolve().parents[1] / "data/shipped/own_files/zh/订单_上半年.csv"
    lines = pd.read_csv(till, dtype=str, encoding="gb18030").dropna(subset=["小票号"])
    heads = lines.groupby("小票号", as_index=False).agg({"付款时间": "first", "会员卡号": "first", "实付金额": "first"}).assign(件数="1", 备注="x", 配送="y")
    heads.rename(columns={"小票号": "订单编号", "付款时间": "支付时间", "实付金额": "订单实付"}).to_csv(tmp_path / "订单头.csv", index=False)
    made = draft(tmp_path / "my", [till, tmp_path / "订单头.csv"])
    assert [d.table for d in made.tables].count("order_lines") == 1
    assert [q.key for q in made.questions].count("draft_ask_second") == 1


def test_answers_reach_the_source_that_has_the_column(tmp_path):
    folder = Path(__file__).resolve().parents[1] / "data/shipped/own_files/zh"
    root = draft(tmp_path / "my", folder).accept(orders={"list_cents": "商品总额", "channel": None})
    first, second = yaml.safe_load((root / "memtag.yaml").read_text("utf-8"))["sources"]["order_lines"]
    assert first["columns"]["list_cents"] == "吊牌金额" and second["columns"]["list_cents"] == "商品总额" and "channel" not in first["columns"]
    made = draft(tmp_path / "other", folder)
    with pytest.raises(DefinitionError, match="Did you mean '付款时间'"): made.accept(orders={"ts": "付款时"})
    with pytest.raises(ParameterError, match="has 2 sources, and 1 answers"): made.accept(orders=[{}])
    root = made.accept(orders=[{}, {"channel": {"value": "天猫"}}])
    assert yaml.safe_load((root / "memtag.yaml").read_text("utf-8"))["sources"]["order_lines"][1]["columns"]["channel"] == {"value": "天猫"}


def test_a_mapping_is_never_written_over(tmp_path):
    export = zh_till(tmp_path)
    made = draft(tmp_path / "my", export.files)
    made.accept(name="first")
    with pytest.raises(DefinitionError, match="is a workspace already"): made.accept(name="second")
    with pytest.raises(DefinitionError, match="is a workspace already"): draft(tmp_path / "my", export.files)
    assert "name: first" in (tmp_path / "my/memtag.yaml").read_text("utf-8")


def test_answers_change_the_guess(tmp_path):
    export = zh_till(tmp_path)
    made = draft(tmp_path / "my", export.files)
    root = made.accept(orders={"net_cents": "吊牌金额", "status": None}, members={"gender": None, "city": "入会渠道"})
    written = yaml.safe_load((root / "memtag.yaml").read_text("utf-8"))["sources"]
    assert written["order_lines"]["columns"]["net_cents"] == "吊牌金额" and "status" not in written["order_lines"]["columns"]
    assert written["members"]["columns"]["city"] == "入会渠道"      # personal, and asked for
    with pytest.raises(DefinitionError, match="Did you mean '付款时间'"): made.accept(orders={"ts": "付款时"})
    with pytest.raises(DefinitionError, match="Did you mean 'net_cents'"): made.accept(orders={"net_cent": "实付金额"})
    with pytest.raises(ParameterError, match="no file of payments"): made.accept(payments={"cents": "x"})


def test_months_without_a_status(tmp_path):
    (tmp_path / "o_1.csv").write_text("小票号,会员号,付款时间,实付金额\n1,a,2024-01-05,1.00\n", "utf-8")
    (tmp_path / "o_2.csv").write_text("小票号,会员号,付款时间,实付金额,订单状态\n2,b,2024-02-05,2.00,已完成\n3,b,2024-02-06,4.00,待付款\n", "utf-8")
    root = draft(tmp_path / "my", str(tmp_path / "o_*.csv")).accept()
    assert ingest(root).tables["order_lines"].dropped == {"unreadable status": 1}
    assert lines_of(open_workspace(root)).net_cents.sum() == 300


def test_months_that_several_programs_saved(tmp_path):
    for month, encoding in ((1, "gb18030"), (2, "utf-8")):
        (tmp_path / f"o_{month}.csv").write_text(f"小票号,会员号,付款时间,实付金额\n{month},张,2024-0{month}-05,1.00\n", encoding)
    root = draft(tmp_path / "my", str(tmp_path / "o_*.csv")).accept()
    assert yaml.safe_load((root / "memtag.yaml").read_text("utf-8"))["sources"]["order_lines"]["encoding"] == ["utf-8", "gb18030"]
    ingest(root)
    assert lines_of(open_workspace(root)).member_id.tolist() == ["张", "张"]


def test_frames_are_kept_for_their_owner_only(tmp_path):
    frame = pd.DataFrame({"order_id": [1, 2, 2], "card": ["a", "b", "b"], "paid_at": pd.to_datetime(["2024-03-01 08:05"] * 3), "qty": [1.0, 2.0, .352],
                          "net amount": [10.5, 2.25, 3.0]})
    root = draft(tmp_path / "my", orders=frame, currency="USD", zone="UTC").accept()
    [path] = (root / "files").glob("*.parquet")
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    ingest(root)
    assert lines_of(open_workspace(root)).net_cents.tolist() == [1050, 225, 300]


def test_months_that_renamed_a_column(tmp_path):
    (tmp_path / "o_1.csv").write_text("小票号,会员号,付款时间,实付金额,渠道\n1,a,2024-01-05,1.00,门店\n", "utf-8")
    (tmp_path / "o_2.csv").write_text("小票号,会员号,支付时间,实付金额\n2,b,2024-02-05,2.00\n", "utf-8")
    made = draft(tmp_path / "my", str(tmp_path / "o_*.csv"))
    root = made.accept()
    columns = yaml.safe_load((root / "memtag.yaml").read_text("utf-8"))["sources"]["order_lines"]["columns"]
    assert columns["ts"] == {"from": ["付款时间", "支付时间"]} and columns["channel"] == {"from": "渠道", "if_missing": "empty"}
    ingest(root)
    assert lines_of(open_workspace(root)).net_cents.sum() == 300


def mall(folder: Path, whole: str = "each") -> Path:
    "订单实付 of the whole order on each of its lines, or on the first only; the lines' own prices stand in no column."
    rows = [["订单号", "买家手机", "支付时间", "商品", "数量", "订单实付", "退款金额"]]
    for n in range(30):
        for line in range(1 + n % 3):
            rows.append([f"W{n:04}", f"139{n % 7:08}", f"2025-0{1 + n % 6}-11 10:{n:02}:00", f"P{line}", "1",
                         f"{10 + n}.50" if whole == "each" or not line else "", "3.00" if n == 4 else "0.00"])
    path = folder / f"商城_{whole}.csv"
    path.write_text("\n".join(",".join(r) for r in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("whole", ["each", "first"])
def test_an_amount_of_the_whole_order_is_not_counted_on_every_line(tmp_path, whole):
    made = draft(tmp_path / "my", orders=mall(tmp_path, whole))
    assert {"draft_ask_spread", "draft_ask_refunds"} <= {q.key for q in made.questions}
    ingest(made.accept())
    lines = lines_of(open_workspace(tmp_path / "my"))
    assert lines.net_cents.sum() == sum(1050 + 100 * n for n in range(30)) and len(lines) == 60
    assert lines.groupby("order_id").net_cents.sum().loc["W0004"] == 1450


def test_months_of_two_layouts_under_one_glob_are_two_sources(tmp_path):
    "Ingest refuses a file that two sources name: each names its own months."
    old = "小票号,会员卡号,付款时间,数量,实付金额\nA{m}1,C1,2025-0{m}-03 10:00,1,10.00\n"
    new = "单据编号;卡号;交易时间;件数;成交金额;渠道;门店;收银员\nB{m}1;C2;2025-0{m}-04 11:00;2;20.00;门店;S1;x\n"
    for m in (1, 2): (tmp_path / f"流水_{m}.csv").write_text(old.format(m=m), encoding="utf-8")
    for m in (3, 4): (tmp_path / f"流水_{m}.csv").write_text(new.format(m=m), encoding="utf-8")
    made = draft(tmp_path / "my", orders=str(tmp_path / "流水_*.csv"))
    ingest(made.accept())
    lines = lines_of(open_workspace(tmp_path / "my"))
    assert sorted(lines.order_id) == ["A11", "A21", "B31", "B41"] and lines.net_cents.sum() == 6000


def test_ids_of_two_kinds_are_said_for_each_export(tmp_path):
    "Tills know the card, the mall the phone: whichever the members are known by, the other export finds nobody, and the page says so."
    (tmp_path / "会员.csv").write_text("会员卡号,手机号,入会时间\n" + "".join(f"{n:06},139{n:08},2024-01-01\n" for n in range(20)), encoding="utf-8")
    (tmp_path / "流水.csv").write_text("小票号,会员卡号,付款时间,数量,实付金额\n" + "".join(
        f"A{n},{n % 20:06},2025-01-03 10:{n:02}:00,1,{n}.00\n" for n in range(40)), encoding="utf-8")
    (tmp_path / "商城.csv").write_text("订单编号;手机号;支付时间;商品件数;订单金额;渠道\n" + "".join(
        f"W{n};139{n % 20:08};2025-02-03 10:{n:02}:00;1;{n}.50;小程序\n" for n in range(30)), encoding="utf-8")
    made = draft(tmp_path / "my", [tmp_path / name for name in ("会员.csv", "流水.csv", "商城.csv")])
    assert [d.table for d in made.tables].count("order_lines") == 2
    said = {q.key: q for q in made.questions if q.column == "member_id"}
    assert said["draft_ask_bridge"].rows in (30, 40) and "100%" in said["draft_ask_overlap"].text("zh")
