"Purchase histories for tests: random ones with a member-by-member account in plain Python, and Online Retail."
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from random import Random

import ibis
import pandas as pd
from hypothesis import strategies as st

from memtag_research.data.engine import as_table, connect
from memtag_research.data.grains import member_days_grain, orders_grain

ROOT = Path(__file__).parents[1]
DAY0 = date(2017, 1, 1)
SPAN = 90                     # days of a random log
MEMBERS = "abcdefghijklmnop"  # p never buys


def on(day: int) -> date:
    "Day number → date."
    return DAY0 + timedelta(days=day)


@dataclass(frozen=True)
class Order:
    "One order line, and its refund if it has one."
    member: str | None
    day: int
    cents: int
    channel: str
    refund_after: int | None   # days after the order
    refund_share: float        # 1 cancels the order

    @property
    def refund_day(self): return None if self.refund_after is None else self.day + self.refund_after

    def stands(self, as_of: int) -> bool:
        cancelled = self.refund_after is not None and self.refund_share >= 1 and self.refund_day < as_of
        return self.cents > 0 and self.day < as_of and not cancelled


def history_of(seed: int, size: int) -> list[Order]:
    "A random log: members who come often and seldom, refunds in part and whole, zero baskets, sales without a member."
    draw = Random(seed)
    return [Order(member=draw.choice([*MEMBERS[:-1], *MEMBERS[:4], None]), day=draw.randrange(SPAN),
                  cents=draw.randrange(900) * (draw.random() > .05), channel=draw.choice(["app", "shop"]),
                  refund_after=draw.choice([None, None, None, draw.randrange(40)]), refund_share=draw.choice([.4, 1, 1]))
            for _ in range(size)]


histories = st.builds(history_of, seed=st.integers(0, 10**6), size=st.integers(20, 120))   # rich from the first example on
dates = st.tuples(st.integers(1, SPAN), st.integers(1, SPAN)).filter(lambda d: d[0] != d[1]).map(sorted)
closings = st.dictionaries(st.sampled_from(MEMBERS), st.integers(0, SPAN), max_size=5)


def lines_of(history) -> pd.DataFrame:
    "Order lines of a history, refunds as lines of their own day."
    rows = []
    for i, o in enumerate(history):
        place = dict(member_id=o.member, channel=o.channel, store_id=f"s-{o.channel}")
        rows.append(dict(order_id=f"o{i}", local_date=on(o.day), line_kind="sale", net_cents=o.cents, quantity=1 + i % 3,
                         original_order_id=None, **place))
        if o.refund_after is not None and int(o.cents * o.refund_share):
            rows.append(dict(order_id=f"r{i}", local_date=on(o.refund_day), line_kind="return", quantity=1,
                             net_cents=-int(o.cents * o.refund_share), original_order_id=f"o{i}", **place))
    lines = pd.DataFrame(rows)
    lines["line_id"] = [f"l{i}" for i in range(len(lines))]
    lines["ts"] = [datetime.combine(d, datetime.min.time()) + timedelta(hours=10) for d in lines.local_date]
    return lines.astype({"original_order_id": "string", "member_id": "string"})


def members_of(closed: dict) -> pd.DataFrame:
    "Everybody joined before the log, some of whom close their account on a day."
    return pd.DataFrame({"member_id": list(MEMBERS), "local_date": date(2016, 1, 1),
                         "closed_date": pd.Series([(closed.get(m) is not None and on(closed[m])) or None for m in MEMBERS],
                                                  dtype="object")}).assign(
        closed_date=lambda t: pd.to_datetime(t.closed_date).astype("datetime64[us]"))


class Tables:
    "Lines of a history and its grains in one engine."
    def __init__(self, lines, con):
        self.order_lines = as_table(lines, con)
        self.orders = orders_grain(self.order_lines).cache()
        self.member_days = member_days_grain(self.order_lines).cache()


@lru_cache(maxsize=1)
def engine(): return connect(threads=1)


def tables_of(history) -> Tables: return Tables(lines_of(history), engine())


def members_table(closed: dict):
    "The table `members`, its dates as dates."
    table = as_table(members_of(closed), engine())
    return table.mutate(closed_date=table.closed_date.cast("date"))


def poisoned(lines: pd.DataFrame, as_of: date) -> pd.DataFrame:
    "The same past; after it new members, absurd money, and the refund of everything that was ever sold."
    past = lines[lines.local_date < as_of]
    sold = past[past.line_kind == "sale"]
    later = [dict(order_id=f"x{i}", member_id=m, local_date=as_of + timedelta(days=i % 3), line_kind="sale", net_cents=10**9,
                  quantity=99, channel="poison", store_id="s-poison", original_order_id=None)
             for i, m in enumerate(["a", "b", "c", "d", "e", "z", None])]
    back = [dict(order_id=f"y{i}", member_id=r.member_id, local_date=as_of, line_kind="return", net_cents=-r.net_cents,
                 quantity=1, channel=r.channel, store_id=r.store_id, original_order_id=r.order_id)
            for i, r in enumerate(sold.itertuples())]
    future = pd.DataFrame(later + back)
    future["line_id"] = [f"p{i}" for i in range(len(future))]
    future["ts"] = [datetime.combine(d, datetime.min.time()) + timedelta(hours=10) for d in future.local_date]
    return pd.concat([past, future.astype({"original_order_id": "string", "member_id": "string"})], ignore_index=True)


@lru_cache(maxsize=1)
def online_retail() -> Tables:
    "Online Retail's sale lines, with and without a customer, by the rule of docs/metrics.md."
    con = connect(threads=2)
    source = con.read_parquet(ROOT / "data" / "shipped" / "online_retail.parquet")
    sale = (~source.InvoiceNo.startswith("C") & ~source.InvoiceNo.startswith("A")
            & (source.Quantity > 0) & (source.UnitPrice > 0))
    rows = source.filter(sale)
    lines = rows.select(
        line_id=rows.InvoiceNo + "-" + rows.StockCode, order_id=rows.InvoiceNo, member_id=rows.CustomerID.cast("string"),
        ts=rows.InvoiceDate, local_date=rows.InvoiceDate.date(), line_kind=ibis.literal("sale"), quantity=rows.Quantity,
        net_cents=(rows.Quantity * rows.UnitPrice * 100).round().cast("int64"), channel=rows.Country)
    tables = Tables.__new__(Tables)
    tables.order_lines = lines.cache()
    tables.orders = orders_grain(tables.order_lines).cache()
    tables.member_days = member_days_grain(tables.order_lines).cache()
    return tables
