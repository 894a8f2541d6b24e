"""A small made-up programme in which every metric can be computed, as DataFrames, with ways to cut and to poison it."""

from datetime import date, timedelta

import numpy as np
import pandas as pd

DAY0, DAYS, MEMBERS = date(2019, 1, 1), 1095, 200
STRINGS = ("order_id", "line_id", "member_id", "line_kind", "product_id", "channel", "store_id", "original_order_id", "campaign_id",
           "coupon_id", "entry_id", "kind", "from_id", "to_id", "region", "city", "join_channel")
INTEGERS = ("net_cents", "list_cents", "cost_cents", "tax_cents", "points")
DATES = ("local_date", "closed_date", "ends_date")


def typed(frame: pd.DataFrame) -> pd.DataFrame:
    "Columns in the types of the contract, also where a column is all null."
    kinds = {**dict.fromkeys(STRINGS, "string"), **dict.fromkeys(INTEGERS, "Int64")}
    frame = frame.astype({c: t for c, t in kinds.items() if c in frame})
    for column in frame.columns.intersection(DATES): frame[column] = frame[column].astype("date32[pyarrow]")
    if "ts" in frame: frame["ts"] = pd.to_datetime(frame.ts).astype("datetime64[us]")
    return frame.reset_index(drop=True)


def at(day, hour=10): return pd.Timestamp(day) + pd.Timedelta(hours=hour)


def order_lines(rng) -> pd.DataFrame:
    "Orders of members and others in two stores, some refunded whole or in part, with nulls where the contract allows them."
    rows, number = [], 0
    for m in [*range(MEMBERS), *[None] * 8]:
        day = int(rng.integers(0, 1000))
        while day < DAYS:
            number += 1
            member, store = (None if m is None else f"m{m}"), f"s{rng.integers(1, 3)}"
            place = dict(order_id=f"o{number}", member_id=member, store_id=store, channel="app" if store == "s1" else None)
            net = int(rng.integers(100, 9000))
            rows.append(dict(place, local_date=DAY0 + timedelta(day), line_kind="sale", quantity=int(rng.integers(1, 5)), net_cents=net,
                             list_cents=None if rng.random() < .1 else net + int(rng.integers(0, 900)), cost_cents=net // 2,
                             tax_cents=net // 10))
            if rng.random() < .2:
                rows.append(dict(place, local_date=DAY0 + timedelta(day), line_kind="gift", quantity=1, net_cents=0, cost_cents=50))
            if rng.random() < .2 and day + 40 < DAYS:
                back = net if rng.random() < .5 else net // 3
                rows.append(dict(place, order_id=f"r{number}", local_date=DAY0 + timedelta(day + int(rng.integers(0, 40))),
                                 line_kind="return", quantity=-1, net_cents=-back, cost_cents=-back // 2, tax_cents=-back // 10,
                                 original_order_id=None if rng.random() < .2 else f"o{number}"))
            day += 0 if rng.random() < .1 else int(rng.exponential(60)) + 1 + (250 if rng.random() < .03 else 0)
    frame = pd.DataFrame(rows)
    return typed(frame.assign(line_id=[f"l{i}" for i in range(len(frame))], product_id="p", ts=[at(d) for d in frame.local_date]))


def person(name, i, first, rng) -> dict:
    "A member: most joined up to 45 days before the first order, some after it, some never buy; one in seven closes later."
    joined = DAY0 + timedelta(int(rng.integers(0, 900))) if first is None or i % 5 == 0 else first - timedelta(int(rng.integers(0, 45)))
    closed = joined + timedelta(int(rng.integers(200, 900))) if i % 7 == 0 else None
    return dict(member_id=name, local_date=None if i % 20 == 19 else joined, closed_date=closed)


def programme(seed: int = 8) -> dict[str, pd.DataFrame]:
    "All tables that metrics read."
    rng = np.random.default_rng(seed)
    day = lambda low, high: DAY0 + timedelta(int(rng.integers(low, high)))
    lines = order_lines(rng)
    first = lines.groupby("member_id").local_date.min().to_dict()
    members = pd.DataFrame([person(f"m{i}", i, first.get(f"m{i}"), rng) for i in range(2 * MEMBERS)])
    campaigns = pd.DataFrame([dict(campaign_id=f"c{i}", local_date=DAY0 + timedelta(60 * i), ends_date=DAY0 + timedelta(60 * i + 45))
                              for i in range(18)])
    sent = pd.DataFrame([dict(campaign_id=c.campaign_id, member_id=f"m{m}", local_date=c.local_date + timedelta(int(rng.integers(0, 5))))
                         for c in campaigns.itertuples() for m in rng.choice(MEMBERS, 20)])
    used = sent.sample(frac=.3, random_state=1).assign(coupon_id=None)
    used["local_date"] = [d + timedelta(int(rng.integers(1, 30))) for d in used.local_date]
    kinds = rng.choice(["earn", "redeem", "expire", "adjust"], 600, p=[.6, .25, .1, .05])
    sign = {"earn": 1, "redeem": -1, "expire": -1, "adjust": 1}
    ledger = pd.DataFrame([dict(entry_id=f"e{i}", member_id=f"m{rng.integers(MEMBERS)}", kind=k,
                                local_date=DAY0 if i == 0 else day(0, DAYS), points=sign[k] * int(rng.integers(1, 500))) for i, k in enumerate(kinds)])
    merges = pd.DataFrame([dict(from_id=f"m{i}", to_id="m1", local_date=day(300, DAYS)) for i in range(180, 230)])
    stores = pd.DataFrame(dict(store_id=["s1", "s2"], region=["north", "south"]))
    tables = dict(order_lines=lines, members=members.assign(joined_at=pd.to_datetime(members.local_date)), campaigns=campaigns,
                  exposures=sent, redemptions=used, points_ledger=ledger, member_merges=merges, stores=stores)
    return {name: typed(table) for name, table in tables.items()}


def ends(table): return [c for c in ("closed_date", "ends_date") if c in table]


def cut(tables: dict, as_of: date) -> dict:
    "The tables as they stood at `as_of`: later rows gone, later ends unknown."
    out = {}
    for name, table in tables.items():
        if "local_date" in table: table = table[(table.local_date < as_of).fillna(True).astype(bool)]
        for column in ends(table):
            table = table.assign(**{column: table[column].where((table[column] < as_of).fillna(False).astype(bool))})
        out[name] = typed(table)
    return out


def poison(tables: dict, as_of: date) -> dict:
    "The same past and an absurd future: every order refunded, every account closed and merged, thousands of new rows."
    past = cut(tables, as_of)
    lines, members = past["order_lines"], past["members"]
    later = as_of + timedelta(1)
    sales = lines[lines.line_kind == "sale"]
    refunds = sales.assign(line_id="x" + sales.line_id, line_kind="return", original_order_id=sales.order_id, order_id="x" + sales.order_id,
                           net_cents=-sales.net_cents, local_date=as_of, quantity=-99)
    buyers = ((0, sales.member_id), (1, "m1"), (2, "zz" + sales.member_id), (5, None))
    wild = [sales.assign(line_id=f"w{d}" + sales.line_id, order_id=f"w{d}" + sales.order_id, member_id=m, net_cents=10 ** 9, list_cents=1,
                         cost_cents=-10 ** 9, local_date=as_of + timedelta(d)) for d, m in buyers]
    new = members.assign(member_id="new" + members.member_id, local_date=later, closed_date=None)
    out = {**past, "order_lines": pd.concat([lines, refunds, *wild])}
    out["members"] = pd.concat([members.assign(closed_date=members.closed_date.fillna(as_of)), new])
    out["campaigns"] = past["campaigns"].assign(ends_date=past["campaigns"].ends_date.fillna(as_of))
    out["redemptions"] = pd.concat([past["redemptions"], past["exposures"].assign(local_date=as_of, coupon_id=None)])
    sent = past["exposures"]
    out["exposures"] = pd.concat([sent, sent.assign(member_id="new" + sent.member_id, local_date=later)])
    ledger = past["points_ledger"]
    out["points_ledger"] = pd.concat([ledger, ledger.assign(entry_id="x" + ledger.entry_id, points=ledger.points * 1000, local_date=as_of)])
    out["member_merges"] = members[["member_id"]].rename(columns={"member_id": "from_id"}).assign(to_id="m1", local_date=as_of)
    out["member_merges"] = pd.concat([past["member_merges"], out["member_merges"]])
    return {name: typed(table) for name, table in out.items()}
