"""The commonest errors, made for real, are Chinese to the last sentence where the workspace is."""

import re

import pytest
import yaml
from click.testing import CliRunner

from memtag_research.cli import main
from memtag_research.core import MemtagError
from memtag_research.data.ingest import ingest
from memtag_research.data.workspace import open_workspace
from memtag_research.measures.rfm import rfm_summary
from memtag_research.translate import _texts, error_text

GOOD = "receipt,card,time,pieces,amount,kind\n1,C1,2024-01-05 10:00,1,12.50,sale\n2,C2,2024-01-06 11:00,2,8.00,sale\n"
COLUMNS = {"order_id": "receipt", "member_id": "card", "ts": "time", "quantity": "pieces", "net_cents": "amount", "line_kind": "kind"}
ENGLISH = re.compile(r"[A-Za-z']+(?: [a-z`']+){3,}")   # four words in a row: a sentence that nobody put into Chinese


def shop(root, text=GOOD, encoding="utf-8", drop=(), **changes):
    "A workspace of one file; `changes` are settings, `source` those of its only source."
    root.mkdir(exist_ok=True)
    (root / "orders.csv").write_bytes(text.encode(encoding))
    source = {"files": "orders.csv", "columns": COLUMNS} | changes.pop("source", {})
    config = {"name": "小店", "currency": "CNY", "zone": "Asia/Shanghai", "lang": "zh", "sources": {"order_lines": source}} | changes
    (root / "memtag.yaml").write_text(yaml.safe_dump({k: v for k, v in config.items() if k not in drop}, allow_unicode=True), encoding="utf-8")
    return root


INGEST = {
    "unreadable time": ({"text": GOOD + "3,C3,soon,1,1.00,sale\n"}, "读不成时间（1 行）"),
    "unreadable money": ({"text": GOOD + "3,C3,2024-01-07 10:00,1,abc,sale\n"}, "读不成金额"),
    "unreadable number": ({"text": GOOD + "3,C3,2024-01-07 10:00,few,1.00,sale\n"}, "读不成数字"),
    "unknown kind": ({"text": GOOD + "3,C3,2024-01-07 10:00,1,1.00,swap\n"}, "只能是以下之一"),
    "no order number": ({"text": GOOD + ",C3,2024-01-07 10:00,1,1.00,sale\n"}, "不能为空"),
    "two members in an order": ({"text": GOOD + "2,C3,2024-01-06 11:00,1,1.00,sale\n"}, "同一订单的各行必须属于同一位会员"),
    "two days in an order": ({"text": GOOD + "2,C2,2024-01-08 11:00,1,1.00,sale\n"}, "同一订单的各行必须在同一天"),
    "return with a plus": ({"text": GOOD + "3,C3,2024-01-07 10:00,1,1.00,return\n"}, "退货行的金额应为负数或零"),
    "header only": ({"text": GOOD.split("\n")[0] + "\n"}, "只有表头"),
    "no content": ({"text": ""}, "没有内容（0 字节）"),
    "GB18030 unsaid": ({"text": GOOD.replace("sale", "销售"), "encoding": "gb18030"}, "请写明 `encoding`"),
    "all dropped": ({"source": {"drop": [{"reason": "测试", "where": "card LIKE 'C%'"}]}}, "所有的行都被剔除了"),
    "key twice": ({"source": {"columns": COLUMNS | {"line_id": "kind"}}}, "作为主键必须唯一"),
    "no such file": ({"source": {"files": "order.csv"}}, "没有文件 'order.csv'。您是不是要找 'orders.csv'？"),
    "no such column": ({"source": {"columns": COLUMNS | {"ts": "tme"}}}, "没有 'tme' 这一列"),
    "no such key": ({"source": {"file": "orders.csv"}}, "没有 'file' 这个键"),
    "no such table": ({"sources": {"order_line": {"files": "orders.csv", "columns": COLUMNS}}}, "没有 'order_line' 这张标准表"),
    "no such canonical column": ({"source": {"columns": COLUMNS | {"net_cent": "amount"}}}, "没有 'net_cent' 这一列"),
    "semicolons": ({"text": GOOD.replace(",", ";")}, "表头没有拆成列"),
    "no such setting": ({"langs": "zh"}, "没有 'langs' 这项设置"),
    "setting missing": ({"drop": ("zone",)}, "必须写 zone"),
    "no such zone": ({"zone": "Beijing"}, "不是时区名"),
    "nothing mapped": ({"sources": {}}, "至少要有一个"),
    "Excel's rounded ids": ({"text": GOOD + "3.245678901234568e+18,C3,2024-01-07 10:00,1,1.00,sale\n"}, "已被四舍五入"),
    "masked phone": ({"text": GOOD + "3,138****8000,2024-01-07 10:00,1,1.00,sale\n"}, "不能当编号"),
    "comma as point": ({"text": GOOD + '3,C3,2024-01-07 10:00,1,"1,5",sale\n'}, "如果逗号是小数点"),
    "a line too long": ({"text": GOOD + "3,C3,2024-01-07 10:00,1,1,50,sale\n"}, "而表头是"),
    "old workbook": ({"text": "\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "encoding": "latin-1", "source": {"files": "orders.csv", "format": "xlsx"}}, "旧格式的 .xls"),
    "no encoding": ({"source": {"encoding": "gb2321"}}, "没有 'gb2321' 这种编码"),
    "neither files nor url": ({"source": {"url": "duckdb://x.db", "table": "t"}}, "或数据库的 url"),
    "variable not set": ({"source": {"files": "$NOBODY_SET_THIS/orders.csv"}}, "环境变量 NOBODY_SET_THIS"),
}


@pytest.mark.parametrize("case", INGEST)
def test_errors_of_ingest(tmp_path, case):
    changes, says = INGEST[case]
    with pytest.raises(MemtagError) as error: ingest(shop(tmp_path / "shop", **changes))
    text = error_text(error.value, "zh")
    assert says in text and not ENGLISH.search(text), f"{text}\n{error.value}"
    assert error_text(error.value, "en") == str(error.value)


def test_the_command_line_speaks_the_workspaces_language(tmp_path):
    def says(*words):
        result = CliRunner().invoke(main, [str(w) for w in words])
        assert result.exit_code == 2
        return result.output
    root = shop(tmp_path / "shop", GOOD + "3,C3,soon,1,1.00,sale\n")
    assert "读不成时间" in says("ingest", "-w", root)
    assert "cannot be read as a time" in says("ingest", "-w", shop(tmp_path / "shop", GOOD + "3,C3,soon,1,1.00,sale\n", lang="en"))
    assert "is no workspace" in says("ingest", "-w", tmp_path)
    ingest(shop(tmp_path / "shop"))
    assert "早于第一笔订单" in says("rfm", "--as-of", "2020-01-01", "--out", tmp_path / "x.csv", "-w", root)
    assert "应是日期" in says("rfm", "--as-of", "soon", "--out", tmp_path / "x.csv", "-w", root)
    assert "不是会员" not in says("forget", "C9", "-w", root) and "不在这个工作区里" in says("forget", "C9", "-w", root)


def test_what_code_raises_is_put_into_chinese_too(tmp_path):
    ingest(shop(tmp_path / "shop"))
    ws = open_workspace(tmp_path / "shop")
    for wrong, says in ((lambda: ws.table("ordes"), "没有 'ordes' 这张表。您是不是要找 'orders'？"), (lambda: ws.table("members"), "没有 members 表"),
                        (lambda: rfm_summary(ws.table("member_days"), "2024-01-01"), "早于第一笔订单")):
        with pytest.raises(MemtagError) as error: wrong()
        assert says in (text := error_text(error.value, "zh")) and not ENGLISH.search(text), text


def test_every_hole_of_the_chinese_is_one_of_the_english():
    for section, texts in _texts()[0].items():
        for pattern, zh in texts:
            assert set(re.findall(r"\{(\w+)\}", zh)) <= set(pattern.groupindex), (section, zh)
            assert re.search(r"[一-鿿]", zh), zh
