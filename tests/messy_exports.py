"""Exports as people are really given, drawn by hypothesis, each with the truth that it was written from.

`exports()` draws a small shop (orders, members, money to the cent, moments to the second), a way of writing it (encoding, delimiter,
container, how ids, money and times look), and dirt with its number of rows by reason. `write` makes the file and the mapping that declares it.
What comes out of ingest must be `Export.lines`, and what was dropped `Export.dropped`."""

import io
import zipfile
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

import yaml
from hypothesis import strategies as st

ZONE = ZoneInfo("Asia/Shanghai")
HEADERS = {"zh": ("小票号", "会员卡号", "付款时间", "数量", "实付金额", "类型", "状态", "导出时间"),
           "en": ("receipt", "card", "paid at", "qty", "paid", "type", "status", "exported at")}
KINDS = {"zh": {"销售": "sale", "退货": "return", "运费": "shipping"}, "en": {"sale": "sale", "refund": "return", "freight": "shipping"}}
UNPAID, TOTAL, NOBODY = {"zh": "待付款", "en": "unpaid"}, {"zh": "合计", "en": "TOTAL"}, {"zh": "散客", "en": "walk-in"}
TIMES = {"%Y-%m-%d %H:%M:%S": None, "%Y/%m/%d %H:%M:%S": "%Y/%m/%d %H:%M:%S", "%d.%m.%Y %H:%M:%S": "%d.%m.%Y %H:%M:%S",
         "%Y年%m月%d日 %H:%M:%S": "%Y年%m月%d日 %H:%M:%S", "epoch_s": "epoch_s", "epoch_ms": "epoch_ms"}
FULL_WIDTH = str.maketrans("0123456789", "０１２３４５６７８９")


@dataclass(frozen=True)
class Line:
    order: str
    member: str | None
    ts: datetime          # local, to the second
    quantity: Decimal
    cents: int
    kind: str             # canonical


@dataclass(frozen=True)
class Export:
    lines: tuple                                    # the truth
    lang: str
    encoding: str
    delimiter: str
    container: str                                  # csv, zip or xlsx
    time: str                                       # key of TIMES
    money: str                                      # plain, signed (￥1,234.50) or comma (1.234,50)
    ids: str                                        # plain, formula (="…"), quote ('…), tab, wide
    titles: int = 0                                 # lines above the header
    unpaid: int = 0                                 # further rows that are dirt: never paid,
    totals: int = 0                                 # lines of totals,
    copies: int = 0                                 # rows exported twice,
    corrected: tuple = field(default=())            # line numbers that an earlier export had with another amount

    @property
    def dropped(self) -> dict:
        "Rows that ingest must drop, by reason."
        counts = {"never paid": self.unpaid, "totals": self.totals, "exact copy": self.copies, "superseded": len(self.corrected)}
        return {reason: n for reason, n in counts.items() if n}


@st.composite
def orders(draw):
    "Lines of a few orders; ids of nineteen digits or with zeros in front, members of both kinds."
    lines = []
    for number in draw(st.lists(st.integers(0, 10**6), min_size=1, max_size=8, unique=True)):
        order = draw(st.sampled_from((f"{number:08}", f"32456789012{number:08}", f"A-{number}")))
        member = draw(st.sampled_from((None, f"00{number % 5}", f"88{number % 7:09}", f"VIP{number % 3}")))
        ts = datetime(2024, 1, 1) + timedelta(seconds=draw(st.integers(0, 200 * 86400)))
        for _ in range(draw(st.integers(1, 3))):
            kind = draw(st.sampled_from(("sale", "sale", "return", "shipping")))
            cents = draw(st.integers(0, 10**7)) * (-1 if kind == "return" else 1)
            lines.append(Line(order, member, ts, draw(st.sampled_from(("1", "2", "0.352", "12"))), cents, kind))
    return tuple(lines)


@st.composite
def exports(draw):
    lines, lang = draw(orders()), draw(st.sampled_from(("zh", "en")))
    container = draw(st.sampled_from(("csv", "csv", "zip", "xlsx")))
    time, money = draw(st.sampled_from(list(TIMES))), draw(st.sampled_from(("plain", "signed", "comma")))
    delimiter = draw(st.sampled_from((",", ";", "\t")))
    corrected = draw(st.sets(st.integers(0, len(lines) - 1), max_size=3))
    return Export(lines, lang, draw(st.sampled_from(("utf-8", "utf-8-sig", "gb18030", "utf-16"))), delimiter, container, time, money,
                  draw(st.sampled_from(("plain", "formula", "quote", "tab", "wide"))), titles=draw(st.integers(0, 2)),
                  unpaid=draw(st.integers(0, 3)), totals=draw(st.integers(0, 1)), copies=draw(st.integers(0, 2)), corrected=tuple(sorted(corrected)))


def _id(text, export):
    if text is None: return NOBODY[export.lang]
    if export.ids == "wide": return text.translate(FULL_WIDTH)
    return {"formula": f'="{text}"', "quote": f"'{text}", "tab": f"\t{text}\t"}.get(export.ids, text)


def _money(cents, export):
    sign, whole, part = "-" * (cents < 0), abs(cents) // 100, abs(cents) % 100
    if export.money == "signed": return f"{sign}{'￥' if export.lang == 'zh' else '£'}{whole:,}.{part:02}"
    if export.money == "comma": return f"{sign}{whole:,}".replace(",", ".") + f",{part:02}"
    return f"{sign}{whole}.{part:02}"


def _time(ts, export):
    if export.time in ("epoch_s", "epoch_ms"):
        return str(int(ts.replace(tzinfo=ZONE).timestamp()) * (1000 if export.time == "epoch_ms" else 1))
    return ts.strftime(export.time)


def _rows(export):
    "All rows of the file, dirt among them."
    said = {v: k for k, v in KINDS[export.lang].items()}
    row = lambda n, line, cents, status, day: [_id(line.order, export), _id(line.member, export), _time(line.ts, export), str(line.quantity),
                                               _money(cents, export), said[line.kind], status, f"2024-08-{day:02} {n // 60:02}:{n % 60:02}:00"]
    last = [row(n, line, line.cents, "ok", 2) for n, line in enumerate(export.lines)]
    earlier = [row(n, export.lines[n], export.lines[n].cents + (-100 if export.lines[n].cents < 0 else 100), "ok", 1) for n in export.corrected]
    unpaid = [row(n, export.lines[0], 999, UNPAID[export.lang], 2) for n in range(100, 100 + export.unpaid)]
    copies = [last[n % len(last)] for n in range(export.copies)]
    totals = [[TOTAL[export.lang], "", "", "", _money(sum(line.cents for line in export.lines), export), "", "", ""]] * export.totals
    return [*earlier, *last, *unpaid, *copies, *totals]


def _table(export):
    "Header and rows with a number of the line, which is what a corrected export has in common with the first."
    header, rows, number = [*HEADERS[export.lang], "no"], [], len(export.lines)
    places = [*export.corrected, *range(number), *range(100, 100 + export.unpaid), *(n % number for n in range(export.copies)), *["T"] * export.totals]
    for place, row in zip(places, _rows(export), strict=True): rows.append([*row, str(place)])
    return header, rows


def write(export: Export, root: Path) -> Path:
    "The workspace: the file and a `memtag.yaml` that declares it; returns the folder."
    root.mkdir(parents=True, exist_ok=True)
    header, rows = _table(export)
    titles = [["报表 / report"] + [""] * (len(header) - 1)] * export.titles
    name = "orders." + export.container
    if export.container == "xlsx": _workbook(root / name, [*titles, header, *rows])
    else: _text(root / name, export, [*titles, header, *rows])
    (root / "memtag.yaml").write_text(yaml.safe_dump(mapping(export, name), allow_unicode=True, sort_keys=False), encoding="utf-8")
    return root


def _text(path, export, rows):
    quoted = lambda cell: '"' + cell.replace('"', '""') + '"' if any(c in cell for c in (export.delimiter, '"', "\t")) else cell
    raw = "".join(export.delimiter.join(map(quoted, row)) + "\r\n" for row in rows).encode(export.encoding)
    if export.container == "csv": path.write_bytes(raw)
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z: z.writestr("导出/orders.csv", raw)


def _workbook(path, rows):
    from openpyxl import Workbook
    book = Workbook()
    for row in rows:
        book.active.append(row)
        for cell in book.active[book.active.max_row]: cell.data_type = "s"   # ="3…" is text here, as where somebody typed it
    sink = io.BytesIO()
    book.save(sink)
    path.write_bytes(sink.getvalue())


def mapping(export: Export, name: str) -> dict:
    "What a person would declare, seeing the file."
    order, member, ts, quantity, paid, kind, status, exported = HEADERS[export.lang]
    money = {"from": paid} | ({"decimal": ","} if export.money == "comma" else {})
    moment = {"from": ts} | ({"format": TIMES[export.time]} if TIMES[export.time] else {})
    source = {"files": name, "exact_copies": "drop", "keep": {"latest": "recorded_at"},
              "columns": {"line_id": "no", "order_id": order, "member_id": {"from": member, "empty": [NOBODY[export.lang]]}, "ts": moment,
                          "quantity": quantity, "net_cents": money, "line_kind": {"from": kind, "values": KINDS[export.lang]},
                          "recorded_at": exported},
              "drop": [{"reason": "totals", "where": f'"{order}" = \'{TOTAL[export.lang]}\''},
                       {"reason": "never paid", "where": f'"{status}" = \'{UNPAID[export.lang]}\''}]}
    if export.titles: source["header"] = export.titles + 1
    if export.container != "xlsx": source |= {"encoding": export.encoding, "delimiter": export.delimiter}
    return {"name": "Drawn", "currency": "CNY", "zone": ZONE.key, "first_order_washout_days": 0, "sources": {"order_lines": source}}
