"""Every messy input of real member files, each with the rows that go counted by their reason, and the rows that stay worked out by hand."""

import hmac
import sqlite3
import stat
from datetime import date

import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from memtag_research.core import ContractError, DefinitionError, MemtagError
from memtag_research.data.ingest import check_workspace, ingest
from memtag_research.data.values import read_secret
from memtag_research.data.workspace import open_workspace

COLUMNS = {"order_id": "单号", "member_id": "会员", "ts": {"from": "付款时间", "format": "%Y-%m-%d %H:%M"}, "quantity": {"value": 1}, "net_cents": "实付",
           "line_kind": {"value": "sale"}}
HEADER = "单号,会员,付款时间,实付"


def workspace(root, files, sources, **config):
    "A workspace of these CSV files (name → lines) and sources."
    for name, lines in files.items(): (root / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    given = {"name": "x", "currency": "CNY", "zone": "Asia/Shanghai", **config, "sources": sources}
    (root / "memtag.yaml").write_text(yaml.safe_dump(given, allow_unicode=True, sort_keys=False), encoding="utf-8")
    return root


def orders(root, lines, header=HEADER, columns=None, config=None, **source):
    "A workspace of one file of order lines, ingested; (report of the table, its rows, the whole report)."
    made = {**COLUMNS, **(columns or {})}
    spec = {"files": "o.csv", "columns": {k: v for k, v in made.items() if v is not None}, **source}
    report = ingest(workspace(root, {"o.csv": [header, *lines]}, {"order_lines": spec}, **(config or {})), force=True)
    return report.tables["order_lines"], served(root), report


def served(root, table="order_lines"): return open_workspace(root).table(table).execute()


def texts(column): return [None if pd.isna(x) else x for x in column]


# ids

def test_what_spreadsheets_put_around_ids_goes_and_is_counted(tmp_path):
    report, rows, whole = orders(tmp_path, ['"=""3245678901234567890""",007,2024-03-01 10:00,1', "'1002,'13800138000,2024-03-01 10:00,1", "１００３,\t9,2024-03-01 10:00,1"])
    assert rows.order_id.tolist() == ["3245678901234567890", "1002", "1003"] and rows.member_id.tolist() == ["007", "13800138000", "9"]
    assert report.cleaned == {'order_id: ="…" stripped': 1, "order_id: leading ' stripped": 1, "order_id: full-width characters made plain": 1,
                              "member_id: leading ' stripped": 1, "member_id: tabs stripped": 1}
    assert 'made plain: order_id: ="…" stripped' in str(whole) and "made plain" in whole._repr_html_()


@pytest.mark.parametrize("number", ["3.24568E+18", "3.245678901234568e+18"])
def test_order_numbers_that_excel_rounded_are_refused_with_advice(tmp_path, number):
    with pytest.raises(ContractError, match=r"order_id: cannot be read as an id \(1 row\).*export the column as text"):
        orders(tmp_path, [f"{number},7,2024-03-01 10:00,1"])


def test_nineteen_digits_stay_apart(tmp_path):
    _, rows, _ = orders(tmp_path, ["3245678901234567890,7,2024-03-01 10:00,1", "3245678901234567891,8,2024-03-01 10:00,1"])
    assert rows.order_id.nunique() == 2


def test_60002_members_stay_60002_keyed_or_not(tmp_path):
    ids = [str(100000 + i) for i in range(60_000)] + ["0100005", "00100006"]
    lines = [f"O{n},{i},2024-03-01 10:00,1" for n, i in enumerate(ids)]
    for keyed in (False, True):
        _, rows, _ = orders(tmp_path, lines, columns={"member_id": {"from": "会员", "keyed": keyed}})
        assert rows.member_id.nunique() == 60_002


def test_a_masked_phone_is_nobodys_id(tmp_path):
    lines = ["A,138****8000,2024-03-01 10:00,1", "B,138****8000,2024-03-01 10:00,2", "C,7,2024-03-01 10:00,4"]
    with pytest.raises(ContractError, match=r"member_id: cannot be read as an id \(2 rows\).*nobody's id") as refused: orders(tmp_path, lines)
    assert "138****8000" in str(refused.value)
    report, rows, _ = orders(tmp_path, lines, columns={"member_id": {"from": "会员", "on_error": "empty"}})
    assert texts(rows.member_id) == [None, None, "7"] and report.cleaned == {"member_id: unreadable, emptied": 2}
    report, rows, _ = orders(tmp_path, lines, columns={"member_id": {"from": "会员", "on_error": "drop"}})
    assert report.dropped == {"unreadable member_id": 2} and len(rows) == 1


PHONE = "13812345678"


def test_a_keyed_phone_stands_nowhere(tmp_path):
    "One phone in three dresses is one member in both tables; no file that ingest writes holds it; the secret is its owner's."
    source = {"order_lines": {"files": "o.csv", "columns": {**COLUMNS, "member_id": {"from": "会员", "keyed": True}}},
              "members": {"files": "m.csv", "columns": {"member_id": {"from": "手机", "keyed": True}}}}
    workspace(tmp_path, {"o.csv": [HEADER, f"A,{PHONE},2024-03-01 10:00,1", f"B,+86 {PHONE[:3]}-{PHONE[3:7]}-{PHONE[7:]},2024-03-01 10:00,1"],
                         "m.csv": ["手机", f"86{PHONE}"]}, source)
    ingest(tmp_path)
    key = hmac.new(read_secret(tmp_path), PHONE.encode(), "sha256").hexdigest()[:32]
    assert set(served(tmp_path).member_id) == set(served(tmp_path, "members").member_id) == {key}
    for path in (tmp_path / "data").rglob("*"):
        assert not path.is_file() or PHONE.encode() not in path.read_bytes()
    assert stat.S_IMODE((tmp_path / "data" / ".ids.secret").stat().st_mode) == 0o600


def test_another_secret_is_refused(tmp_path):
    given = {"member_id": {"from": "会员", "keyed": True}}
    orders(tmp_path, [f"A,{PHONE},2024-03-01 10:00,1"], columns=given)
    (tmp_path / "data" / ".ids.secret").unlink()
    with pytest.raises(MemtagError, match="from a backup"): orders(tmp_path, [f"A,{PHONE},2024-03-01 10:00,1"], columns=given)


def test_a_bad_keyed_value_is_masked(tmp_path):
    with pytest.raises(ContractError) as refused: orders(tmp_path, [f"A,7,{PHONE},1"], columns={"member_id": {"from": "付款时间", "keyed": True}})
    assert PHONE not in str(refused.value)


@pytest.mark.parametrize("keyed", [False, True])
def test_numbers_that_are_nobody_are_told_and_kept(tmp_path, keyed):
    "0 and 13800000000 by what they are; a cashier's own card by 30 of 130 orders; the others have one each."
    lines = [f"M{i},{2000 + i},2024-03-01 10:00,1" for i in range(98)] + [f"T{i},88001,2024-03-01 10:00,1" for i in range(30)]
    _, rows, report = orders(tmp_path, [*lines, "Z1,0,2024-03-01 10:00,1", "Z2,13800000000,2024-03-01 10:00,1"], columns={"member_id": {"from": "会员", "keyed": keyed}})
    note, = (n for n in report.notes if "probably no members" in n)
    assert note.startswith("3 member ids") and "138****0000 (1 orders)" in note and "(30 orders)" in note and "88001" not in note and "0 (1 orders)" in note
    assert len(rows) == 130 and rows.member_id.notna().all()


def test_a_house_of_non_members(tmp_path):
    "散客 is a sale without a member: in totals, not among members."
    _, rows, _ = orders(tmp_path, ["A,散客,2024-03-01 10:00,10", "B,,2024-03-01 10:00,5", "C,7,2024-03-01 10:00,1"], columns={"member_id": {"from": "会员", "empty": ["散客"]}})
    assert texts(rows.member_id) == [None, None, "7"] and rows.net_cents.sum() == 1600
    assert served(tmp_path, "member_days").net_cents.sum() == 100


# times

def test_times_as_tills_write_them(tmp_path):
    texts_ = ["2024/3/1 8:05", "2024年3月1日 下午3:05", "2024年3月1日", "20240301", "1709251200", "1709251200000"]
    lines = [f"O{i},7,{t},1" for i, t in enumerate(texts_)]
    _, rows, _ = orders(tmp_path, lines, columns={"ts": {"from": "付款时间", "format": ["zh", "ymd", "epoch_s", "epoch_ms"]}})
    assert [str(t) for t in rows.ts] == ["2024-03-01 00:05:00", "2024-03-01 07:05:00", "2024-02-29 16:00:00", "2024-02-29 16:00:00", *["2024-03-01 00:00:00"] * 2]
    assert {str(d)[:10] for d in rows.local_date} == {"2024-03-01"}


def test_excel_serials(tmp_path):
    _, rows, _ = orders(tmp_path, ["A,7,45352.337,1", "B,7,45352,1"], columns={"ts": {"from": "付款时间", "format": "excel"}})
    assert [str(t) for t in rows.ts] == ["2024-03-01 00:05:17", "2024-02-29 16:00:00"]


def test_an_ambiguous_date_is_asked_for(tmp_path):
    with pytest.raises(ContractError, match=r"ts: cannot be read as a time \(1 row\); first values: '02/03/2024'.*Give their `format`"): orders(tmp_path, ["A,7,02/03/2024,1"])


def test_the_business_day_ends_at_four(tmp_path):
    _, rows, _ = orders(tmp_path, ["A,7,2024-03-02 03:59,1", "B,7,2024-03-02 04:00,1"], config={"day_starts_at": "04:00"})
    assert [str(d)[:10] for d in rows.local_date] == ["2024-03-01", "2024-03-02"]


# status and kinds

def test_orders_that_were_never_paid_and_lines_of_totals_go_by_rule(tmp_path):
    lines = ["A,7,2024-03-01 10:00,10,交易成功", "B,7,,10,待付款", "C,7,2024-03-01 10:00,10,交易关闭", "D,7,2024-03-01 10:00,1,测试单", "合计,,,31,"]
    rules = [{"reason": "never paid", "where": "状态 IN ('待付款', '交易关闭')"}, {"reason": "tests", "where": "状态 LIKE '测试%'"},
             {"reason": "totals", "where": "单号 IN ('合计', '小计')"}]
    report, rows, _ = orders(tmp_path, lines, HEADER + ",状态", drop=rules)
    assert report.dropped == {"never paid": 2, "tests": 1, "totals": 1} and report.read == 5 and rows.order_id.tolist() == ["A"]


def test_a_deposit_and_the_rest_are_one_order_with_two_payments(tmp_path):
    "预售: 定金 and 尾款 are lines of one order; the money is counted once, in payments twice."
    spec = {"order_lines": {"files": "o.csv", "columns": COLUMNS},
            "payments": {"files": "p.csv", "columns": {"order_id": "单号", "cents": "金额", "tender": {"from": "方式", "values": {"微信": "wechat"}}}}}
    workspace(tmp_path, {"o.csv": [HEADER, "A,7,2024-03-01 10:00,100"], "p.csv": ["单号,阶段,方式,金额", "A,定金,微信,30", "A,尾款,微信,70"]}, spec)
    assert ingest(tmp_path).tables["payments"].unmapped == ("阶段",)
    assert served(tmp_path, "payments").cents.tolist() == [3000, 7000] and served(tmp_path, "orders").net_cents.tolist() == [10000]


KINDS = {"销售": "sale", "退货": "return", "换货": "exchange", "赠品": "gift", "运费": "shipping", "储值": "topup", "购卡": "giftcard_sale", "包装": "service"}


def test_topups_gift_cards_and_freight_are_no_sales(tmp_path):
    lines = [f"{i},7,2024-03-01 10:00,{10 ** i},{kind}" for i, kind in enumerate(["销售", "储值", "购卡", "运费", "包装"])]
    _, rows, _ = orders(tmp_path, lines, HEADER + ",类型", columns={"line_kind": {"from": "类型", "values": KINDS}})
    assert rows.net_cents.sum() == 1111100
    assert served(tmp_path, "orders").net_cents.sum() == served(tmp_path, "member_days").net_cents.sum() == 100 + 1000000


def test_an_unknown_status_code_is_refused(tmp_path):
    with pytest.raises(ContractError, match=r"line_kind: cannot be read as one of its codes \(1 row\); first values: .*Map the code"):
        orders(tmp_path, ["A,7,2024-03-01 10:00,1,补差"], HEADER + ",类型", columns={"line_kind": {"from": "类型", "values": KINDS}})


def test_refunds(tmp_path):
    "Partial, whole, in another shop, and of an order that is not in the data."
    lines = ["A,7,2024-03-01 10:00,100,销售,,S1", "B,7,2024-03-01 11:00,50,销售,,S1", "RA,7,2024-05-01 10:00,-40,退货,A,S2", "RB,7,2024-05-02 10:00,-50,退货,B,S1",
             "RX,8,2024-05-03 10:00,-5,退货,X9,S1", "RN,8,2024-05-03 10:00,-6,退货,,S1"]
    more = {"line_kind": {"from": "类型", "values": KINDS}, "original_order_id": "原单", "store_id": "门店"}
    _, rows, report = orders(tmp_path, lines, HEADER + ",类型,原单,门店", columns=more)
    assert rows.net_cents.sum() == 4900 and rows[rows.order_id == "RA"].store_id.tolist() == ["S2"]
    made = served(tmp_path, "orders").set_index("order_id")
    assert str(made.cancelled_date["B"])[:10] == "2024-05-02" and pd.isna(made.cancelled_date["A"])
    assert [n[:59] for n in report.notes] == ["1 returns refer to an order that is not there: they reduce mo"[:59]]


# money

def test_money_in_every_dress(tmp_path):
    _, rows, _ = orders(tmp_path, ["A,7,2024-03-01 10:00,￥59.90", 'B,7,2024-03-01 10:00,"1,299.00"', "C,7,2024-03-01 10:00,(3.00)", "D,7,2024-03-01 10:00,１２．５元"])
    assert rows.net_cents.tolist() == [5990, 129900, -300, 1250]


def test_a_comma_is_not_guessed(tmp_path):
    line = ['A,7,2024-03-01 10:00,"12,50"']
    with pytest.raises(ContractError, match="decimal: \",\""): orders(tmp_path, line)
    assert orders(tmp_path, line, columns={"net_cents": {"from": "实付", "decimal": ","}})[1].net_cents.tolist() == [1250]


def test_parts_of_money_keep_their_names(tmp_path):
    parts = {"list_cents": "吊牌", "discount_cents": "折扣", "coupon_cents": "券", "coupon_funded_by": {"from": "出资", "values": {"平台": "platform"}}, "points_cents": "积分抵"}
    _, rows, _ = orders(tmp_path, ["A,7,2024-03-01 10:00,70,100,10,15,平台,5"], HEADER + ",吊牌,折扣,券,出资,积分抵", columns=parts)
    row = rows.iloc[0]
    assert row.list_cents - row.discount_cents - row.coupon_cents - row.points_cents == row.net_cents == 7000 and row.coupon_funded_by == "platform"


def test_an_amount_of_the_whole_order_is_spread_over_its_lines(tmp_path):
    "满减 10.00 over 3.33, 3.33, 3.34 and a gift; a paid total of 0.10 over three equal lines."
    lines = ["A,7,2024-03-01 10:00,10.00,3.33", "A,7,2024-03-01 10:00,10.00,3.33", "A,7,2024-03-01 10:00,10.00,3.34", "A,7,2024-03-01 10:00,10.00,0",
             "B,8,2024-03-01 10:00,0.10,5", "B,8,2024-03-01 10:00,0.10,5", "B,8,2024-03-01 10:00,0.10,5"]
    more = {"list_cents": "原价", "net_cents": {"from": "实付", "allocate": {"over": "order_id", "by": "list_cents"}}}
    _, rows, _ = orders(tmp_path, lines, HEADER + ",原价", columns=more)
    assert rows.sort_values("line_id").net_cents.tolist() == [333, 333, 334, 0, 4, 3, 3]


def test_cents_left_over_go_to_the_largest_remainders(tmp_path):
    "1.00 by 1 to 2 to 4: 14.28…, 28.57…, 57.14…; the cent that is left goes to the second line. A refund likewise."
    lines = [f"{order},7,2024-03-01 10:00,{paid},{w}" for order, paid in (("A", "1.00"), ("R", "-1.00")) for w in (1, 2, 4)]
    more = {"list_cents": "原价", "net_cents": {"from": "实付", "allocate": {"over": "order_id", "by": "list_cents"}}}
    _, rows, _ = orders(tmp_path, lines, HEADER + ",原价", columns=more)
    assert rows.sort_values("line_id").net_cents.tolist() == [14, 29, 57, -14, -29, -57]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(-10**7, 10**7), st.lists(st.integers(0, 10**6), min_size=1, max_size=6)), min_size=1, max_size=6))
def test_lines_add_up_to_the_paid_order_to_the_cent(tmp_path_factory, drawn):
    "Against the exact shares: each line within a cent of its own, the sum exact."
    lines = [f"O{n},7,2024-03-01 10:00,{paid / 100:.2f},{w / 100:.2f}" for n, (paid, weights) in enumerate(drawn) for w in weights]
    more = {"list_cents": "原价", "net_cents": {"from": "实付", "allocate": {"over": "order_id", "by": "list_cents"}}, "quantity": {"value": 1}}
    _, rows, _ = orders(tmp_path_factory.mktemp("w"), lines, HEADER + ",原价", columns=more)
    for n, (paid, weights) in enumerate(drawn):
        mine, total = rows[rows.order_id == f"O{n}"], sum(weights)
        assert mine.net_cents.sum() == paid
        for got, w in zip(mine.net_cents, mine.list_cents):
            assert abs(got - (paid * w / total if total else paid / len(weights))) < 1


def test_amounts_that_are_not_of_the_order_are_not_spread(tmp_path):
    more = {"list_cents": "原价", "net_cents": {"from": "实付", "allocate": {"over": "order_id", "by": "list_cents"}}}
    with pytest.raises(ContractError, match="must be the same on every row of one order_id to be spread"):
        orders(tmp_path, ["A,7,2024-03-01 10:00,6,3", "A,7,2024-03-01 10:00,7,3"], HEADER + ",原价", columns=more)


def test_tenders_across_become_rows(tmp_path):
    spec = {"order_lines": {"files": "o.csv", "columns": COLUMNS},
            "payments": {"files": "o.csv", "columns": {"order_id": "单号", "tender": "tender", "cents": "cents"},
                         "unpivot": {"into": "tender", "value": "cents", "columns": {"微信": "wechat", "现金": "cash", "储值卡": "stored_value"}}}}
    workspace(tmp_path, {"o.csv": [HEADER + ",微信,现金,储值卡", "A,7,2024-03-01 10:00,10,4,6,0.00", "B,7,2024-03-01 10:00,5,,,5"]}, spec)
    report = ingest(tmp_path)
    paid = served(tmp_path, "payments").sort_values(["order_id", "tender"])
    assert paid.values.tolist() == [["A", "cash", 600], ["A", "wechat", 400], ["B", "stored_value", 500]]
    assert paid.cents.sum() == served(tmp_path).net_cents.sum() and report.tables["payments"].unmapped == ("会员", "付款时间", "实付")


def test_a_topup_is_no_sale_and_spending_it_is(tmp_path):
    lines = ["T,7,2024-03-01 10:00,500,储值", "A,7,2024-03-02 10:00,80,销售"]
    orders(tmp_path, lines, HEADER + ",类型", columns={"line_kind": {"from": "类型", "values": KINDS}})
    assert served(tmp_path, "orders").net_cents.tolist() == [8000]


def test_fractional_quantities(tmp_path):
    _, rows, _ = orders(tmp_path, ["A,7,2024-03-01 10:00,9.90,0.352"], HEADER + ",数量", columns={"quantity": "数量"})
    assert float(rows.quantity[0]) == 0.352


# files that drift, copies, corrections

def test_monthly_files_drift(tmp_path):
    "March calls the card 会员号, April 会员卡号 and has no channel; 备注 is nobody's."
    files = {"o_03.csv": ["单号,会员号,付款时间,实付,渠道", "A,7,2024-03-01 10:00,1,门店"], "o_04.csv": ["备注,单号,会员卡号,付款时间,实付", "x,B,7,2024-04-01 10:00,2"]}
    columns = {**COLUMNS, "member_id": {"from": ["会员号", "会员卡号"]}, "channel": {"from": "渠道", "if_missing": "empty"}}
    workspace(tmp_path, files, {"order_lines": {"files": "o_*.csv", "columns": columns}})
    report = ingest(tmp_path).tables["order_lines"]
    assert report.unmapped == ("备注",) and served(tmp_path).member_id.tolist() == ["7", "7"]
    assert texts(served(tmp_path).sort_values("order_id").channel) == ["门店", None]
    columns["channel"] = "渠道"
    workspace(tmp_path, files, {"order_lines": {"files": "o_*.csv", "columns": columns}})
    with pytest.raises(DefinitionError, match="no column '渠道'"): ingest(tmp_path)


def test_true_and_false_duplicates(tmp_path):
    "Without a line number two equal lines may be two equal items: kept and told; dropped where the mapping says so, over files too."
    lines = ["A,7,2024-03-01 10:00,1", "A,7,2024-03-01 10:00,1", "B,7,2024-03-01 10:00,2"]
    report, rows, whole = orders(tmp_path, lines)
    assert len(rows) == 3 and not report.dropped and whole.notes[0].startswith("1 rows of order_lines equal another row")
    (tmp_path / "p.csv").write_text("\n".join([HEADER, lines[2], "C,7,2024-03-01 10:00,4"]))
    report, rows, whole = orders(tmp_path, lines, files=["o.csv", "p.csv"], exact_copies="drop")
    assert report.dropped == {"exact copy": 2} and rows.net_cents.sum() == 700 and not whole.notes


def test_lines_with_numbers_are_told_apart(tmp_path):
    _, rows, whole = orders(tmp_path, ["A,7,2024-03-01 10:00,1,1", "A,7,2024-03-01 10:00,1,2"], HEADER + ",行号", columns={"line_id": ["单号", "行号"]})
    assert len(rows) == 2 and not whole.notes
    with pytest.raises(ContractError, match="must identify one row"):
        orders(tmp_path, ["A,7,2024-03-01 10:00,1,1", "A,7,2024-03-01 10:00,1,1"], HEADER + ",行号", columns={"line_id": ["单号", "行号"]})


EXPORTS = {"o_1.csv": [HEADER + ",导出", "A,7,2024-03-01 10:00,10,2024-03-02", "A,7,2024-03-01 10:00,5,2024-03-02", "B,7,2024-03-01 10:00,3,2024-03-02"],
           "o_2.csv": [HEADER + ",导出", "A,7,2024-03-01 10:00,12,2024-04-02"]}


@pytest.mark.parametrize("keep", [{"latest": "recorded_at", "by": "order_id"}, {"latest": "file", "by": "order_id"}])
def test_a_corrected_export_replaces_the_order(tmp_path, keep):
    source = {"files": "o_*.csv", "columns": {**COLUMNS, "recorded_at": "导出"}, "keep": keep}
    report = ingest(workspace(tmp_path, EXPORTS, {"order_lines": source})).tables["order_lines"]
    assert report.dropped == {"superseded": 2} and sorted(served(tmp_path).net_cents) == [300, 1200]


def test_an_order_that_was_closed_later_is_gone(tmp_path):
    "The later export says 交易关闭: the earlier one is superseded, the later one dropped by rule."
    lines = ["A,7,2024-03-01 10:00,10,2024-03-02,成功", "A,7,2024-03-01 10:00,10,2024-04-02,交易关闭", "B,7,2024-03-01 10:00,3,2024-03-02,成功"]
    report, rows, _ = orders(tmp_path, lines, HEADER + ",导出,状态", columns={"recorded_at": "导出"}, keep={"latest": "recorded_at", "by": "order_id"},
                             drop=[{"reason": "closed", "where": "状态 = '交易关闭'"}])
    assert report.dropped == {"superseded": 1, "closed": 1} and rows.order_id.tolist() == ["B"]


def test_members_exported_every_month(tmp_path):
    "The latest row of each member; `one_row_per` the first, over all files."
    files = {"m_1.csv": ["card,city,at", "7,上海,2024-01-01", "8,北京,2024-01-01"], "m_2.csv": ["card,city,at", "7,广州,2024-02-01"]}
    spec = {"files": "m_*.csv", "columns": {"member_id": "card", "city": "city", "recorded_at": "at"}}
    assert ingest(workspace(tmp_path, files, {"members": {**spec, "keep": {"latest": "recorded_at"}}})).tables["members"].dropped == {"superseded": 1}
    assert dict(zip(served(tmp_path, "members").member_id, served(tmp_path, "members").city)) == {"7": "广州", "8": "北京"}
    assert ingest(workspace(tmp_path, files, {"members": {**spec, "one_row_per": "card"}})).tables["members"].dropped == {"not the first row of its card": 1}
    assert dict(zip(served(tmp_path, "members").member_id, served(tmp_path, "members").city)) == {"7": "上海", "8": "北京"}


def test_a_misspelt_key_of_keep(tmp_path):
    with pytest.raises(DefinitionError, match="Did you mean 'order_id'"): orders(tmp_path, ["A,7,2024-03-01 10:00,1"], keep={"latest": "file", "by": "orderid"})
    with pytest.raises(DefinitionError, match="line_id is not mapped"): orders(tmp_path, ["A,7,2024-03-01 10:00,1"], keep={"latest": "file"})


# people, channels, places

def test_merged_cards_and_households(tmp_path):
    spec = {"members": {"files": "m.csv", "columns": {"member_id": "卡", "household_id": {"from": "家庭", "keyed": True}, "birth_date": {"from": "生日", "empty": ["1900-01-01"]}}},
            "member_merges": {"files": "c.csv", "columns": {"from_id": "旧卡", "to_id": "新卡", "merged_at": "时间"}}}
    workspace(tmp_path, {"m.csv": ["卡,家庭,生日", f"1,{PHONE},1900-01-01", f"2,+86{PHONE},1990-02-03"], "c.csv": ["旧卡,新卡,时间", "1,2,2024-03-01"]}, spec)
    ingest(tmp_path)
    rows = served(tmp_path, "members")
    assert rows.household_id.nunique() == 1 and PHONE not in rows.household_id.tolist() and rows.birth_date.isna().tolist() == [True, False]
    assert str(served(tmp_path, "member_merges").local_date[0])[:10] == "2024-03-01"


def test_channels_and_shops_by_file(tmp_path):
    "The shop is in the name of its file; codes of channels become words."
    files = {"S01_3月.csv": [HEADER + ",平台", "A,7,2024-03-01 10:00,1,TM"], "S02_3月.csv": [HEADER + ",平台", "A,8,2024-03-01 10:00,2,POS"]}
    columns = {**COLUMNS, "order_id": {"sql": "left(_file, 3) || '-' || 单号"}, "store_id": {"sql": "left(_file, 3)"}, "channel": {"from": "平台", "values": {"TM": "天猫", "POS": "门店"}}}
    ingest(workspace(tmp_path, files, {"order_lines": {"files": "S*.csv", "columns": columns}}))
    rows = served(tmp_path).sort_values("order_id")
    assert rows[["order_id", "store_id", "channel"]].values.tolist() == [["S01-A", "S01", "天猫"], ["S02-A", "S02", "门店"]]


def test_consents_in_words(tmp_path):
    columns = {"member_id": "卡", "purpose": {"value": "marketing"}, "granted": {"from": "同意", "values": {"是": True, "否": False}}, "ts": "时间"}
    spec = {"members": {"files": "m.csv", "columns": {"member_id": "卡"}}, "consents": {"files": "m.csv", "columns": columns}}
    ingest(workspace(tmp_path, {"m.csv": ["卡,同意,时间", "1,是,2024-03-01", "2,否,2024-03-01"]}, spec))
    assert served(tmp_path, "consents").granted.tolist() == [True, False]


# databases, retention, the report

def test_a_database_is_a_source(tmp_path):
    with sqlite3.connect(tmp_path / "shop.db") as con:
        con.execute("CREATE TABLE lines (no TEXT, card TEXT, paid TEXT, amount TEXT)")
        con.executemany("INSERT INTO lines VALUES (?, ?, ?, ?)", [("A", "007", "2024-03-01 10:00", "12.50"), ("B", None, "2024-03-02 10:00", "1")])
    columns = {**COLUMNS, "order_id": "no", "member_id": "card", "ts": {"from": "paid", "format": "%Y-%m-%d %H:%M"}, "net_cents": "amount"}
    workspace(tmp_path, {}, {"order_lines": {"url": "sqlite://shop.db", "table": "lines", "columns": columns}})
    ingest(tmp_path)
    assert served(tmp_path).sort_values("order_id").net_cents.tolist() == [1250, 100] and "007" in served(tmp_path).member_id.tolist()
    assert ingest(tmp_path).unchanged and not list((tmp_path / "data").glob(".fetched-*"))


def test_what_is_too_old_is_counted(tmp_path):
    source = {"files": "o.csv", "columns": COLUMNS}
    workspace(tmp_path, {"o.csv": [HEADER, "A,7,2020-03-01 10:00,1", "B,7,2024-03-01 10:00,2"]}, {"order_lines": source}, retention_days={"order_lines": 365})
    report = ingest(tmp_path, today=date(2024, 4, 1))
    assert report.tables["order_lines"].dropped == {"older than retention_days": 1} and str(report.log[0]) == "2024-03-01"
    assert served(tmp_path, "orders").order_id.tolist() == ["B"] and check_workspace(open_workspace(tmp_path)) == []


def test_the_report_says_what_nobody_reads(tmp_path):
    report, _, whole = orders(tmp_path, ["A,7,2024-03-01 10:00,1,x,y"], HEADER + ",备注,收货人", drop=[{"reason": "x", "where": "备注 = 'never'"}])
    assert report.unmapped == ("收货人",) and "not mapped: 收货人" in str(whole) and "<td style='text-align:left'>not mapped: 收货人" in whole._repr_html_()
    again = ingest(tmp_path)
    assert again.unchanged and again.tables["order_lines"] == report


# products that change category

PRODUCTS = ["货号,类别,起", "P1,茶,", "P1,咖啡,2024-03-10", "P2,糖,2024-01-01"]


def moved(root, lines, columns=None):
    spec = {"order_lines": {"files": "o.csv", "columns": {**COLUMNS, "product_id": "货号"}},
            "products": {"files": "p.csv", "columns": {"product_id": "货号", "category": "类别", "valid_from": "起", **(columns or {})}}}
    return ingest(workspace(root, {"o.csv": [HEADER + ",货号", "A,7,2024-03-09 10:00,1,P1", "B,7,2024-03-10 10:00,2,P1", "C,7,2024-03-10 10:00,4,P2"], "p.csv": lines}, spec))


def test_a_product_that_changes_category(tmp_path):
    "A line has the category of its own day, at every as_of; lines are not doubled."
    from memtag_research.tags.definition import Source
    from memtag_research.tags.rows import Known
    moved(tmp_path, PRODUCTS)
    known = served(tmp_path, "products").set_index("category").valid_to
    assert str(known["茶"])[:10] == "2024-03-10" and pd.isna(known["咖啡"]) and pd.isna(known["糖"])
    lines = Source(name="lines", table="order_lines", join={"products": "product_id"})
    for as_of, wanted in (("2024-03-10", {"A": "茶"}), ("2024-03-12", {"A": "茶", "B": "咖啡", "C": "糖"})):
        rows = Known(open_workspace(tmp_path), as_of).rows(lines).execute()
        assert dict(zip(rows.order_id, rows["products.category"])) == wanted and len(rows) == len(wanted)


def test_overlapping_days_of_a_product_are_refused(tmp_path):
    lines = ["货号,类别,起,止", "P1,茶,2024-01-01,2024-03-11", "P1,咖啡,2024-03-10,"]
    with pytest.raises(ContractError, match=r"products.valid_to: must not lie after the valid_from of the next row"): moved(tmp_path, lines, {"valid_to": "止"})
    with pytest.raises(ContractError, match=r"product_id \+ valid_from: must identify one row"): moved(tmp_path, [*PRODUCTS, "P2,盐,2024-01-01"])


def test_a_table_from_two_exports_that_are_laid_out_differently(tmp_path):
    "Tills with lines and cards, a market place with one row an order and masked buyers: each has a mapping of its own."
    (tmp_path / "tills.csv").write_text("receipt,card,paid at,qty,paid\n1,C1,2024-01-05 10:00,2,12.50\n1,C1,2024-01-05 10:00,1,1.00\n,C2,,,\n")
    (tmp_path / "market.csv").write_text("订单编号;买家昵称;付款时间;件数;实付;状态\n=\"3000000000000000017\";t**1;2024/01/06 11:00;1;￥8.00;成功\n4;t**1;2024/01/06 12:00;1;￥9.00;关闭\n")
    sources = {"order_lines": [
        {"files": "tills.csv", "columns": {"order_id": "receipt", "member_id": "card", "ts": "paid at", "quantity": "qty", "net_cents": "paid",
                                           "line_kind": {"value": "sale"}}, "drop": [{"reason": "no receipt", "where": "receipt IS NULL"}]},
        {"files": "market.csv", "delimiter": ";", "drop": [{"reason": "closed", "where": "状态 = '关闭'"}],
         "columns": {"order_id": "订单编号", "member_id": {"value": None}, "ts": {"from": "付款时间", "format": "%Y/%m/%d %H:%M"}, "quantity": "件数",
                     "net_cents": "实付", "line_kind": {"value": "sale"}, "channel": {"value": "market"}}}]}
    config = {"name": "Two", "currency": "CNY", "zone": "Asia/Shanghai", "sources": sources}
    (tmp_path / "memtag.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    report = ingest(tmp_path).tables["order_lines"]
    rows = open_workspace(tmp_path).table("order_lines").execute()
    assert (report.read, report.rows, report.dropped) == (5, 3, {"no receipt": 1, "closed": 1}) and report.unmapped == ("买家昵称",)
    assert set(zip(rows.order_id, rows.net_cents)) == {("1", 1250), ("1", 100), ("3000000000000000017", 800)}
    assert rows.line_id.is_unique and rows.set_index("order_id").channel.loc["3000000000000000017"] == "market"
    assert rows.member_id.isna().sum() == 1 and ingest(tmp_path).unchanged
    (tmp_path / "again.csv").write_bytes((tmp_path / "tills.csv").read_bytes())
    sources["order_lines"][1] |= {"files": "again.csv", "delimiter": ","}
    (tmp_path / "memtag.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    with pytest.raises(MemtagError, match=r"again.csv: has the same content as tills.csv"): ingest(tmp_path)
    sources["order_lines"][1]["columns"]["tss"] = "付款时间"
    (tmp_path / "memtag.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    with pytest.raises(MemtagError, match=r"sources.order_lines\[2\].columns.tss.*Did you mean 'ts'"): ingest(tmp_path)


@pytest.mark.parametrize("rows, shown", [(6, "'换货中'"), (1, "换***")])
def test_a_code_that_is_not_listed_is_shown_where_many_rows_have_it(tmp_path, rows, shown):
    "In many rows it is a code, and the user needs it to list it; in one it could be a name."
    lines = [f"{n},C{n},2024-01-05 10:00,1,1.00,{'换货中' if n < rows else '销售'}" for n in range(8)]
    (tmp_path / "o.csv").write_text("\n".join(["receipt,card,time,qty,paid,kind", *lines]), encoding="utf-8")
    columns = {"order_id": "receipt", "member_id": "card", "ts": "time", "quantity": "qty", "net_cents": "paid",
               "line_kind": {"from": "kind", "values": {"销售": "sale"}}}
    config = {"name": "Codes", "currency": "CNY", "zone": "Asia/Shanghai", "sources": {"order_lines": {"files": "o.csv", "columns": columns}}}
    (tmp_path / "memtag.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    with pytest.raises(ContractError) as error: ingest(tmp_path)
    assert f"first values: {shown}." in str(error.value)
