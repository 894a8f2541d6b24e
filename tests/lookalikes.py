"""Exports as tills, member systems and market places write them, in Chinese and English, of purchases that are known.

`invent()` makes order lines; each `write_*` writes them into a folder as one kind of system does, with that system's dirt, and returns an
`Export`: the files, what a person has to answer, and what must come out of ingest. None of the files was looked at when `data.draft` was
written: their columns follow what such systems are known to export.
"""

import random
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import openpyxl
import pandas as pd

NOBODY = None
SURNAMES, GIVEN = list("王李张刘陈杨赵黄周吴"), list("芳娜敏静丽强磊军洋勇")


@dataclass
class Line:
    "One line of a receipt, in cents."
    order: int
    store: int
    at: datetime
    member: int | None
    sku: str
    quantity: int
    list_cents: int
    net_cents: int
    returned: int | None = None   # the order that it returns


@dataclass
class Export:
    "Files as a system writes them, and what they must become."
    files: list
    lines: list                                   # Line: what ingest must keep
    dropped: dict = field(default_factory=dict)   # reason → rows
    answers: dict = field(default_factory=dict)   # to accept(), where something must be open
    members: int | None = None                    # rows of the table of members
    settings: dict = field(default_factory=dict)  # to draft()


def invent(orders=60, seed=1, returns=True) -> list:
    "Order lines from March to May 2024; one order in five is nobody's, one in twelve comes back."
    pick, lines = random.Random(seed), []
    for order in range(1, orders + 1):
        at = datetime(2024, 3, 1, 9) + timedelta(minutes=pick.randrange(90 * 24 * 60))
        at = at.replace(hour=9 + at.hour % 12, second=pick.randrange(60))
        member, store = (None if pick.random() < .2 else pick.randrange(1, 31)), pick.randrange(3)
        for _ in range(pick.choice((1, 1, 2, 3))):
            quantity, price = pick.choice((1, 1, 2, 3)), pick.randrange(100, 30_000)
            listed = quantity * price
            lines.append(Line(order, store, at, member, f"SKU{pick.randrange(20):03}", quantity, listed, listed - pick.choice((0, 0, listed // 10))))
    sold = [line for line in lines if line.order % 12 == 0] if returns else []
    for n, line in enumerate(sold):
        at = line.at + timedelta(days=3)
        lines.append(Line(10_000 + n, line.store, at, line.member, line.sku, -line.quantity, -line.list_cents, -line.net_cents, line.order))
    return lines


def yuan(cents, sign="", groups=False): return f"{'-' * (cents < 0)}{sign}{abs(cents) // 100:{',' if groups else ''}}.{abs(cents) % 100:02}"


def phone(member): return f"138{member:08}"


def by_month(lines):
    months = {}
    for line in sorted(lines, key=lambda line: line.at): months.setdefault(f"{line.at:%Y-%m}", []).append(line)
    return months


def csv_text(rows, delimiter=",", end="\r\n"):
    def cell(value):
        text = "" if value is None else str(value)
        return '"' + text.replace('"', '""') + '"' if any(c in text for c in (delimiter, '"', "\n")) else text
    return "".join(delimiter.join(map(cell, row)) + end for row in rows)


# Chinese

def zh_till(folder: Path) -> Export:
    "收银系统: a GB18030 CSV a month with titles above, totals below, unpaid receipts and a column more from May on; members in a workbook."
    lines, unpaid, files = invent(seed=2), 0, []
    for month, rows in by_month(lines).items():
        extra = month >= "2024-05"
        head = ["门店编号", "小票号", "会员卡号", "付款时间", "商品编码", "商品名称", "数量", "吊牌金额", "优惠金额", "实付金额", "业务类型", "订单状态", *["收银员"] * extra]
        out = [[f"{month} 销售明细报表"], [], head]
        for x in rows:
            kind, card = ("退货" if x.returned else "销售"), "散客" if x.member is None else f"{x.member:06}"
            cells = [f"S{x.store}", f"R{x.order}", card, f"{x.at:%Y/%m/%d %H:%M}", x.sku, "羊毛衫", x.quantity, yuan(x.list_cents), yuan(x.list_cents - x.net_cents),
                     yuan(x.net_cents, "￥", True), kind]
            out.append([*cells, "已完成", *["王芳"] * extra])
            if x.order % 17 == 0 and not x.returned: out.append([*cells[:1], f"R{x.order}U", *cells[2:], "待付款", *["王芳"] * extra]); unpaid += 1
        out.append(["合计", *[""] * 8, yuan(sum(x.net_cents for x in rows)), "", "", *[""] * extra])
        files.append(folder / f"订单_{int(month[-2:])}月.csv")
        files[-1].write_bytes(csv_text(out).encode("gb18030"))
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.append(["会员信息", None, None, "个人资料", None, None])
    sheet.append(["会员卡号", "姓名", "入会时间", "生日", "手机号", "入会渠道"])
    for m in range(1, 31): sheet.append([f"{m:06}", SURNAMES[m % 10] + GIVEN[m % 7], datetime(2023, 1, 1 + m % 28), "1990-01-01", phone(m), "门店"])
    sheet.append(["合计", 30])
    book.save(folder / "会员.xlsx")
    return Export([str(folder / "订单_*.csv"), folder / "会员.xlsx"], lines, {"totals": 3, "never paid": unpaid}, members=30)


def zh_market(folder: Path) -> Export:
    "天猫: numbers for Excel, masked buyers, one row an order, orders that were closed."
    lines, closed = [x for x in invent(seed=3, returns=False)], 0
    rows = [["订单编号", "买家昵称", "收货人姓名", "联系手机", "订单创建时间", "订单付款时间", "宝贝总数量", "商品总额", "优惠合计", "买家实付", "订单状态"]]
    orders = {}
    for x in lines: orders.setdefault(x.order, []).append(x)
    kept = []
    for number, group in orders.items():
        net, listed, units, at = sum(x.net_cents for x in group), sum(x.list_cents for x in group), sum(x.quantity for x in group), group[0].at
        kept.append(Line(number, 0, at, None, "", units, listed, net))
        row = [f'="32456789012345{number:05}"', "t**1", "张**", "138****0001", f"{at - timedelta(minutes=9):%Y-%m-%d %H:%M:%S}", f"{at:%Y-%m-%d %H:%M:%S}", units,
               yuan(listed), yuan(listed - net), yuan(net)]
        rows.append([*row, "交易成功"])
        if number % 9 == 0: rows.append([f'="32456789012346{number:05}"', *row[1:], "交易关闭"]); closed += 1
    (folder / "天猫订单.csv").write_bytes(csv_text(rows).encode("gb18030"))
    return Export([folder / "天猫订单.csv"], kept, {"never paid": closed})


def zh_phones(folder: Path) -> Export:
    "小程序商城: the phone is the member, written in several ways; refunds are positive and told by their type; a workbook of each."
    lines = invent(seed=4)
    ways = (lambda p: p, lambda p: f"+86 {p}", lambda p: f"86-{p}", lambda p: f"{p[:3]} {p[3:7]} {p[7:]}")
    rows = [[f"{x.order:08}", ways[i % 4](phone(x.member)) if x.member is not None else "", f"{x.at:%Y-%m-%d %H:%M:%S}", x.sku, abs(x.quantity), yuan(abs(x.net_cents)),
             "退款" if x.returned else "普通订单", "小程序"] for i, x in enumerate(lines)]
    pd.DataFrame(rows, columns=["订单号", "会员手机号", "支付时间", "SKU编码", "件数", "实收金额(元)", "交易类型", "渠道"]).to_excel(folder / "商城订单.xlsx", index=False)
    people = [[phone(m), SURNAMES[m % 10] + GIVEN[m % 7], f"2023年{1 + m % 12}月{1 + m % 28}日", "女"] for m in range(1, 31)]
    pd.DataFrame(people, columns=["手机号", "姓名", "注册时间", "性别"]).to_excel(folder / "会员列表.xlsx", index=False)
    return Export([folder], lines, members=30)


def zh_daily_tickets(folder: Path) -> Export:
    "老式收银机: ticket numbers start again every day in each shop, the day and the time of day apart, amounts in 分, tabs."
    lines, seen, tickets = invent(seed=5, returns=False), {}, {}
    rows = [["店号", "小票号", "销售日期", "时间", "会员号", "货号", "数量", "销售金额(分)"]]
    for x in sorted(lines, key=lambda x: (x.at, x.order)):
        if x.order not in tickets: tickets[x.order] = seen[x.store, x.at.date()] = seen.get((x.store, x.at.date()), 0) + 1
        rows.append([f"{x.store:03}", f"{tickets[x.order]:04}", f"{x.at:%Y%m%d}", f"{x.at:%H:%M}", "" if x.member is None else f"0000{x.member:02}", x.sku, x.quantity, x.net_cents])
    (folder / "pos.txt").write_bytes(csv_text(rows, "\t").encode("utf-16"))
    return Export([folder / "pos.txt"], lines)


def zh_whole_order(folder: Path) -> Export:
    "ERP: the amount paid for the order stands on each of its lines."
    lines = invent(seed=6, returns=False)
    paid = {}
    for x in lines: paid[x.order] = paid.get(x.order, 0) + x.net_cents
    rows = [["订单编号", "行号", "会员编号", "交易时间", "商品编码", "数量", "商品金额", "实付金额"]]
    rows += [[f"E{x.order}", i, "" if x.member is None else f"V{x.member:05}", f"{x.at:%Y-%m-%d %H:%M:%S}", x.sku, x.quantity, yuan(x.list_cents), yuan(paid[x.order])]
             for i, x in enumerate(lines)]
    (folder / "erp.csv").write_text(csv_text(rows), encoding="utf-8-sig", newline="")
    return Export([folder / "erp.csv"], lines)


# English

def en_till(folder: Path) -> Export:
    "A till: day first, pounds, refunds by sign, a walk-in, a grand total; members beside it."
    lines = invent(seed=7)
    rows = [["Receipt No", "Store", "Loyalty Number", "Paid At", "SKU", "Qty", "Gross Amount", "Discount", "Net Amount"]]
    rows += [[x.order, f"St{x.store}", "guest" if x.member is None else f"L{x.member:04}", f"{x.at:%d/%m/%Y %H:%M}", x.sku, x.quantity, yuan(x.list_cents, "£", True),
              yuan(x.list_cents - x.net_cents, "£"), yuan(x.net_cents, "£", True)] for x in lines]
    rows.append(["Grand Total", *[""] * 7, yuan(sum(x.net_cents for x in lines), "£", True)])
    (folder / "sales.csv").write_text(csv_text(rows), encoding="utf-8-sig", newline="")
    people = [["Loyalty Number", "First Name", "E-mail", "Joined", "Date of Birth"]] + [[f"L{m:04}", "Ann", f"ann{m}@example.com", f"2023-01-{1 + m % 28:02}", "1990-01-01"] for m in range(1, 31)]
    (folder / "members.csv").write_text(csv_text(people), encoding="utf-8", newline="")
    return Export([folder / "sales.csv", folder / "members.csv"], lines, {"totals": 1}, members=30)


def en_euro(folder: Path) -> Export:
    "A shop on the continent: semicolons, a comma in amounts, 31.12.2024, Windows-1252."
    lines = invent(seed=8)
    def euro(cents): return yuan(cents, groups=True).translate(str.maketrans(",.", ".,"))
    rows = [["order number", "customer number", "order date", "article", "description", "quantity", "line total"]]
    rows += [[f"B-{x.order}", "" if x.member is None else f"K{x.member:04}", f"{x.at:%d.%m.%Y}", x.sku, "Kännchen, groß", x.quantity, euro(x.net_cents)] for x in lines]
    (folder / "orders.csv").write_bytes(csv_text(rows, ";").encode("cp1252"))
    return Export([folder / "orders.csv"], lines, settings={"currency": "EUR"})


def en_invoices(folder: Path) -> Export:
    "A wholesaler: no amount, a price and a quantity; twelve-hour clock, month first."
    lines = [x for x in invent(seed=9) if x.list_cents % x.quantity == 0]
    for x in lines: x.net_cents = x.list_cents
    rows = [["InvoiceNo", "StockCode", "Quantity", "InvoiceDate", "UnitPrice", "CustomerID"]]
    rows += [[x.order, x.sku, x.quantity, f"{x.at:%m/%d/%Y %I:%M %p}", yuan(x.list_cents // x.quantity, "$"), "" if x.member is None else 17_000 + x.member] for x in lines]
    (folder / "invoices.csv").write_text(csv_text(rows), encoding="utf-8", newline="")
    return Export([folder / "invoices.csv"], lines)


def en_api(folder: Path) -> Export:
    "A web shop's API as a zip of CSVs: milliseconds since 1970, amounts in cents, e-mails as ids, cancelled orders."
    import zipfile
    lines, cancelled = invent(seed=10, returns=False), 0
    with zipfile.ZipFile(folder / "export.zip", "w") as archive:
        for month, group in by_month(lines).items():
            rows = [["order_id", "customer_email", "created_at", "product_id", "quantity", "amount_cents", "status"]]
            for x in group:
                millis = int((x.at - datetime(1970, 1, 1)).total_seconds() * 1000)
                row = [f"w{x.order}", "" if x.member is None else f"Ann{x.member}@Example.com", millis, x.sku, x.quantity, x.net_cents]
                rows.append([*row, "completed"])
                if x.order % 15 == 0: rows.append([f"w{x.order}c", *row[1:], "cancelled"]); cancelled += 1
            archive.writestr(f"orders_{month}.csv", csv_text(rows))
    return Export([folder / "export.zip"], lines, {"never paid": cancelled}, settings={"zone": "UTC", "currency": "GBP"})


def en_offsets(folder: Path) -> Export:
    "A payment provider: times with their own zone, line ids, states."
    lines = invent(seed=11)
    rows = [["Transaction ID", "Line ID", "Customer ID", "Transaction Time", "Item Code", "Units", "Net Sales", "Transaction Type", "Sales Channel"]]
    rows += [[f"T{x.order}", i, "" if x.member is None else f"c_{x.member}", f"{x.at:%Y-%m-%dT%H:%M:%S}+00:00", x.sku, x.quantity, yuan(x.net_cents),
              "Refund" if x.returned else "Sale", "store"] for i, x in enumerate(lines)]
    (folder / "payments.tsv").write_text(csv_text(rows, "\t"), encoding="utf-8", newline="")
    return Export([folder / "payments.tsv"], lines, settings={"zone": "UTC"})


def en_ambiguous(folder: Path) -> Export:
    "Days of the first twelve of each month only: nobody can say which number is the month."
    lines = [x for x in invent(300, seed=12, returns=False) if x.at.day <= 12]
    rows = [["order id", "member id", "date", "sku", "qty", "total"]]
    rows += [[x.order, "" if x.member is None else f"m{x.member}", f"{x.at:%d/%m/%Y}", x.sku, x.quantity, yuan(x.net_cents)] for x in lines]
    (folder / "orders.csv").write_text(csv_text(rows), encoding="utf-8", newline="")
    return Export([folder / "orders.csv"], lines, answers={"orders": {"ts": {"from": "date", "format": "%d/%m/%Y"}}})


SYSTEMS = (zh_till, zh_market, zh_phones, zh_daily_tickets, zh_whole_order, en_till, en_euro, en_invoices, en_api, en_offsets, en_ambiguous)
