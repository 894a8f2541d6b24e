"Kinds of tags that look at rows, against accounts in plain Python, cut and poisoned worlds, planted truths and the other engine."
import datetime as dtm
from collections import defaultdict
from dataclasses import replace
from datetime import date, timedelta
from fractions import Fraction
from functools import cache
from random import Random

import ibis
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tag_world import AS_OF, cut, end_columns, in_engine, learn_late, poison, tables

import memtag_research.tags.rows as rows_module
from memtag_research.core import DefinitionError, NotComputable
from memtag_research.data.engine import as_table, connect, to_frame
from memtag_research.tags.definition import (
    AffinityTag,
    AssignedTag,
    Catalogue,
    ColumnTag,
    DistributionTag,
    FirstLastTag,
    FlagTag,
    ScoreTag,
    SequenceTag,
    Source,
    SqlTag,
)
from memtag_research.tags.kinds import undeclared, valid_days, value_table
from memtag_research.tags.rows import Known

SOURCES = {s.name: s for s in [
    Source(name="lines", table="order_lines", where="line_kind in ('sale', 'return')", join={"products": "product_id"}),
    Source(name="orders", table="orders", where="is_null(cancelled_date)"), Source(name="events", table="events"),
    Source(name="redemptions", table="redemptions"), Source(name="points", table="points_ledger"), Source(name="uses", table="benefit_uses")]}
INTERESTS = ["baby", "beauty", "clothing", "dairy", "drinks", "electronics", "household", "meat and fish", "snacks"]   # not: fruit and vegetables
SQL = """WITH mine AS (SELECT o.member_id, count(*) AS n, sum(o.net_cents) AS cents FROM orders o JOIN members m USING (member_id)
                       WHERE o.local_date >= :as_of - INTERVAL 90 DAY AND o.cancelled_date IS NULL GROUP BY 1)
         SELECT member_id, CASE WHEN n > 2 THEN 'many' WHEN cents > 20000 THEN 'dear' END AS value FROM mine"""
TAGS = {t.name: t for t in [
    ColumnTag(name="tier", from_="tier_history.tier"), ColumnTag(name="gender", from_="members.gender"),
    AffinityTag(name="taste", source="lines", by="products.category", of="net_cents", days=180, half_life_days=60, top=3, min_rows=3),
    AffinityTag(name="brand", source="lines", by="products.brand", of="quantity", days="all", min_tgi=150, min_days=2, min_rows=2),
    AffinityTag(name="topic", source="events", by="topic", where="event in ('search', 'like', 'share')", days=365, min_tgi=110, top=2, min_rows=2),
    DistributionTag(name="place", source="orders", by="channel", days="all", min_share=.6, min_rows=2),
    DistributionTag(name="hour", source="lines", by="local_hour", of="net_cents", days=365, min_share=.25, otherwise="any", min_tgi=120),
    FirstLastTag(name="first_place", source="orders", of="channel", pick="first", days="all"),
    FirstLastTag(name="last_use", source="uses", of="benefit", days=200), FirstLastTag(name="last_cents", source="orders", of="net_cents", days=365),
    SequenceTag(name="cart_only", first={"source": "events", "where": "event == 'add_to_cart'"}, then={"source": "orders"}, days=40, never=True),
    SequenceTag(name="cart_late", first={"source": "events", "where": "event == 'add_to_cart'"}, then={"source": "orders"}, days="all",
                within_days=5, never=True),
    SequenceTag(name="seen_bought", first={"source": "events", "where": "event == 'view_item'"}, then={"source": "lines", "where": "net_cents > 0"},
                same="product_id", within_days=10, days=300),
    SequenceTag(name="redeemed_back", first={"source": "points", "where": "kind == 'redeem'"}, then={"source": "orders"}, within_days=30, days=365),
    ScoreTag(name="risk", model="vendor_churn", values={"high": .6, "mid": .3, "low": .1}), ScoreTag(name="p", model="vendor_churn", valid_for="80d"),
    AssignedTag(name="interest", channels=["self", "guide", "campaign"], precedence=["self", "guide", "campaign"], values=INTERESTS),
    AssignedTag(name="price_level", channels=["import"], precedence=["import"], values=["low", "middle", "high"], valid_for="150d"),
    AssignedTag(name="promotion_lover", channels=["manual"], precedence=["manual"]),
    SqlTag(name="busy", sql=SQL)]}
CATALOGUE = Catalogue(sources=SOURCES, tags=TAGS)
CON = connect()


def values(tag, world, as_of=AS_OF, catalogue=CATALOGUE, **more) -> dict:
    "member → value; lists as tuples, unknown left out."
    frame = to_frame(value_table(TAGS.get(tag, tag), Known(world, as_of, **more), catalogue)) if isinstance(tag, str) else to_frame(
        value_table(tag, Known(world, as_of, **more), catalogue))
    assert frame.member_id.is_unique and frame.member_id.notna().all()
    plain = lambda v: tuple(v) if hasattr(v, "__len__") and not isinstance(v, str) else v.item() if hasattr(v, "item") else v
    return {m: plain(v) for m, v in zip(frame.member_id, frame.value) if isinstance(plain(v), tuple) or not pd.isna(v)}


@cache
def world(which: str) -> dict:
    "The small programme in DuckDB: whole, cut at AS_OF, poisoned after it."
    raw = tables()
    made = {"whole": lambda: raw, "cut": lambda: cut(raw, AS_OF), "poison": lambda: other_words(poison(raw, AS_OF)), "ends": lambda: moved_ends(raw)}
    return in_engine(made[which]())


@cache
def rows(name: str) -> list[dict]:
    "Rows of the cut world, as Python has them; those of a line with its product."
    got = world("cut")[name].to_pyarrow().to_pylist()
    if name == "order_lines":
        products = {p["product_id"]: p for p in rows("products")}
        got = [r | {k: products.get(r["product_id"], {}).get(k) for k in ("category", "brand")} for r in got if r["line_kind"] in ("sale", "return")]
    if name == "orders": got = [r for r in got if r["cancelled_date"] is None]
    return [r for r in got if r.get("member_id", "") is not None]


def within(some, days): return [r for r in some if days is None or r["local_date"] >= AS_OF - timedelta(days)]


# Accounts in plain Python, one a kind, written from the definitions, without the code

def account_of_shares(some, value, amount, half_life=None, order=None, as_of=AS_OF):
    "(cells m → v → amount > 0, base v → amount, support m → orders or rows that add something, days (m, v) → days)."
    cells, support, days = defaultdict(lambda: defaultdict(Fraction)), defaultdict(set), defaultdict(set)
    for i, r in enumerate(some):
        v, a = value(r), amount(r)
        if v is None or not str(v).strip(): continue
        age = ((as_of - timedelta(1)) - r["local_date"]).days
        weight = Fraction(2 ** (-age / half_life)) if half_life else 1
        cells[r["member_id"]][str(v)] += weight * Fraction(a or 0)
        if a is not None and a > 0:
            support[r["member_id"]].add(i if order is None or order(r) is None else order(r))
            days[r["member_id"], str(v)].add(r["local_date"])
    cells = {m: {v: a for v, a in c.items() if a > 0} for m, c in cells.items()}
    base = defaultdict(Fraction)
    for c in cells.values():
        for v, a in c.items(): base[v] += a
    return cells, base, {m: len(s) for m, s in support.items()}, {k: len(d) for k, d in days.items()}


def tgi(cells, base, m, v): return 100 * (cells[m][v] / sum(cells[m].values())) / (base[v] / sum(base.values()))


def account_of_affinity(some, value, amount, min_tgi, min_rows, top=1, min_days=1, **more):
    cells, base, support, days = account_of_shares(some, value, amount, **more)
    out = {}
    for m, n in support.items():
        if n < min_rows: continue
        good = [v for v in cells[m] if tgi(cells, base, m, v) >= Fraction(str(min_tgi)) and days.get((m, v), 0) >= min_days]
        best = sorted(good, key=lambda v: (-round(tgi(cells, base, m, v), 9), -cells[m][v], v))[:top]
        out[m] = tuple(best) if top > 1 else best[0] if best else "none"
    return out


def account_of_distribution(some, value, amount, min_share, min_rows, otherwise=None, min_tgi=None, **more):
    cells, base, support, _ = account_of_shares(some, value, amount, **more)
    out = {}
    for m, n in support.items():
        if n < min_rows: continue
        v = min(cells[m], key=lambda v: (-cells[m][v], v)) if cells[m] else None
        good = v is not None and cells[m][v] >= Fraction(str(min_share)) * sum(cells[m].values()) and (
            min_tgi is None or tgi(cells, base, m, v) >= min_tgi)
        if good or otherwise: out[m] = v if good else otherwise
    return out


def account_of_first_last(some, value, last):
    by = defaultdict(list)
    for r in some: by[r["member_id"]].append(r)
    out = {}
    for m, mine in by.items():
        edge = (max if last else min)(r["ts"] for r in mine)
        seen = [value(r) for r in mine if r["ts"] == edge and value(r) is not None]
        if seen: out[m] = (max if last else min)(seen)
    return out


def account_of_sequence(members, firsts, thens, moment="ts", within_days=None, never=False, same=None):
    "Every pair of every member, one by one."
    out, by = dict.fromkeys(members, False), defaultdict(list)
    key = lambda r: (r["member_id"], r[same] if same else 0)
    for t in thens: by[key(t)].append(t)
    for f in firsts:
        if f["member_id"] not in out or (same and f[same] is None): continue
        followed = any(t[moment] > f[moment] and (within_days is None or (t["local_date"] - f["local_date"]).days <= within_days) for t in by[key(f)])
        if followed != never: out[f["member_id"]] = True
    return out


def members() -> list[str]:
    "Those of the members table and those who were seen, without closed accounts."
    closed = {r["member_id"] for r in rows("members") if r["closed_date"]} | {r["from_id"] for r in rows("member_merges")}
    seen = {r["member_id"] for r in world("cut")["member_days"].to_pyarrow().to_pylist()}
    return sorted(({r["member_id"] for r in rows("members")} | seen) - closed)


def account_of_entries(tag, channels, declared, days=None, flag=False):
    out = {}
    word = lambda v: ("true" if v is None or v == "yes" else "false") if flag else v
    for r in rows("assigned_tags"):
        r = r | {"value": word(r["value"])}
        if r["tag"] != tag or r["channel"] not in channels or r["value"] not in declared or r["revoked_date"] or r["expires_date"]: continue
        if days and (AS_OF - r["local_date"]).days >= days: continue
        mark = (channels.index(r["channel"]), -r["ts"].timestamp(), r["value"])
        out[r["member_id"]] = min(out.get(r["member_id"], (mark, r["value"])), (mark, r["value"]))
    return {m: v for m, (_, v) in out.items()}


def account(name):
    "The values of a tag of TAGS by plain Python."
    lines, orders, events = rows("order_lines"), rows("orders"), rows("events")
    cents, order, channel = (lambda r: r["net_cents"]), (lambda r: r["order_id"]), (lambda r: r["channel"])
    carts = [r for r in events if r["event"] == "add_to_cart"]
    scores = {}
    for r in rows("scores"):
        if r["as_of"] >= scores.get(r["member_id"], r)["as_of"]: scores[r["member_id"]] = r
    alive = {m: r["score"] for m, r in scores.items() if r["valid_until"] is None or r["valid_until"] > AS_OF}
    match name:
        case "tier": return {m: r["tier"] for m, r in {r["member_id"]: r for r in sorted(
            (r for r in rows("tier_history") if r["valid_to"] is None), key=lambda r: r["valid_from"])}.items()}
        case "gender": return {r["member_id"]: r["gender"] for r in rows("members") if r["gender"]}
        case "taste": return account_of_affinity(within(lines, 180), lambda r: r["category"], cents, 120, 3, 3, half_life=60, order=order)
        case "brand": return account_of_affinity(lines, lambda r: r["brand"], lambda r: r["quantity"], 150, 2, min_days=2, order=order)
        case "topic": return account_of_affinity([r for r in within(events, 365) if r["event"] in ("search", "like", "share")],
                                                 lambda r: r["topic"], lambda r: 1, 110, 2, 2)
        case "place": return account_of_distribution(orders, channel, lambda r: 1, .6, 2, order=order)
        case "hour": return account_of_distribution(within(lines, 365), lambda r: r["local_hour"], cents, .25, 3, "any", 120, order=order)
        case "first_place": return account_of_first_last(orders, channel, False)
        case "last_use": return account_of_first_last(within(rows("benefit_uses"), 200), lambda r: r["benefit"], True)
        case "last_cents": return account_of_first_last(within(orders, 365), cents, True)
        case "cart_only": return account_of_sequence(members(), within(carts, 40), orders, never=True)
        case "cart_late": return account_of_sequence(members(), carts, orders, within_days=5, never=True)
        case "seen_bought": return account_of_sequence(members(), within([r for r in events if r["event"] == "view_item"], 300),
                                                       [r for r in lines if r["net_cents"] > 0], within_days=10, same="product_id")
        case "redeemed_back": return account_of_sequence(members(), within([r for r in rows("points_ledger") if r["kind"] == "redeem"], 365),
                                                         orders, within_days=30)
        case "risk": return {m: "high" if s >= .6 else "mid" if s >= .3 else "low" for m, s in alive.items() if s >= .1}
        case "p": return {m: s for m, s in alive.items() if (AS_OF - scores[m]["as_of"]).days < 80}
        case "interest": return account_of_entries("interest", ["self", "guide", "campaign"], INTERESTS)
        case "price_level": return account_of_entries("price_level", ["import"], ["low", "middle", "high"], 150)
        case "promotion_lover": return {m: account_of_entries(name, ["manual"], ["true", "false"], flag=True).get(m) == "true" for m in members()}
        case "busy":
            known, n, total = {r["member_id"] for r in rows("members")}, defaultdict(int), defaultdict(int)
            for r in within(orders, 90):
                n[r["member_id"]] += 1
                total[r["member_id"]] += r["net_cents"]
            return {m: "many" if n[m] > 2 else "dear" for m in n if m in known and (n[m] > 2 or total[m] > 20000)}


@pytest.mark.parametrize("name", TAGS)
def test_every_kind_equals_an_account_in_plain_python(name):
    got = values(name, world("whole"))
    assert got == account(name)
    assert len(set(got.values())) > 1 and len(got) > 4     # the world has members on both sides


# Time

def other_words(raw):
    "A poisoned world whose later tiers and interests are others too."
    frames = {n: raw[n].to_pandas(date_as_object=True) for n in ("tier_history", "assigned_tags")}
    tiers, entries = frames.values()
    tiers.loc[tiers.valid_from >= AS_OF, "tier"] = "poisoned"
    entries.loc[(entries.local_date >= AS_OF) & (entries.tag == "interest"), ["value", "channel"]] = ["baby", "self"]
    return raw | {n: type(raw[n]).from_pandas(f, schema=raw[n].schema, preserve_index=False) for n, f in frames.items()}


def moved_ends(raw):
    "Ends at AS_OF or later come later still, or never."
    def moved(table, day, moment):
        frame = table.to_pandas(date_as_object=True)
        for i, d in enumerate(frame[day]):
            if d is None or pd.isna(d) or d < AS_OF: continue
            frame.loc[i, day] = None if i % 2 else d + timedelta(17)
            if moment in frame and moment != day: frame.loc[i, moment] = pd.NaT if i % 2 else frame[moment][i] + pd.Timedelta(days=17)
        return type(table).from_pandas(frame, schema=table.schema, preserve_index=False)
    out = dict(raw)
    for name, table in raw.items():
        for day, moment in end_columns(name, table): out[name] = moved(out[name], day, moment)
    return out


@pytest.mark.parametrize("name", TAGS)
def test_cut_poisoned_and_moved_ends_change_nothing(name, monkeypatch):
    whole = values(name, world("whole"))
    assert whole == values(name, world("cut")) == values(name, world("poison")) == values(name, world("ends"))
    monkeypatch.setattr(rows_module, "known", lambda table, as_of, ends=None: table)
    assert whole not in (values(name, world("whole")), values(name, world("poison")))       # the test notices when the filter is gone


def test_moved_ends_are_noticed_without_the_filter(monkeypatch):
    monkeypatch.setattr(rows_module, "known", lambda table, as_of, ends=None: table)
    assert all(values(n, world("whole")) != values(n, world("ends")) for n in ("tier", "interest"))


@cache
def late_worlds(): return [in_engine(w) for w in learn_late(tables(), AS_OF)]


@pytest.mark.parametrize("name", ["taste", "place", "cart_late", "seen_bought", "busy", "gender", "topic"])
def test_rows_recorded_late_are_left_out_on_request(name):
    late, without = late_worlds()
    assert values(name, late, knowledge_time=True) == values(name, without) != values(name, late)


def test_an_older_clock_of_expiry_is_that_of_the_older_date():
    "What is known stays; only what had run out by the older clock is back, as it was at that date."
    entries = pd.DataFrame([("ada", "t", "x", "self", date(2024, 1, 1), date(2024, 2, d)) for d in (9, 10, 11)],
                           columns=["member_id", "tag", "value", "channel", "local_date", "expires_date"])
    entries["member_id"] = ["ada", "bo", "cy"]
    entries["ts"], tag = pd.to_datetime(entries.local_date), AssignedTag(name="t", channels=["self"], precedence=["self"], values=["x"])
    given = {"assigned_tags": as_table(entries)}
    for day in range(8, 14):
        at = date(2024, 2, day)
        assert values(tag, given, at) == values(tag, given, date(2024, 3, 1), expiry_as_of=at), at
    assert values(tag, given, date(2024, 2, 10)) == {"bo": "x", "cy": "x"} and values(tag, given, date(2024, 2, 12)) == {}
    forty = AssignedTag(**{**vars(tag), "valid_for": "40d"})
    assert values(forty, given, date(2024, 2, 9)) and not values(forty, given, date(2024, 2, 10))   # 1 January + 40 days


# Neither order nor threads

def test_order_of_rows_and_threads_do_not_matter():
    con, shuffled = connect(threads=1), {}
    for name, table in world("whole").items():
        frame = table.to_pyarrow()
        order = list(range(frame.num_rows))
        Random(name).shuffle(order)
        shuffled[name] = con.create_table(f"shuffled_{name}", frame.take(order))
    for name in TAGS: assert values(name, shuffled) == values(name, world("whole")), name


# Thousands of small random members at once: these kinds look at one member at a time

def some_day(draw): return AS_OF - timedelta(draw.choice([1, 1, 2, 3, 5, 8, 13]))


def at_noon(day, draw): return dtm.datetime.combine(day, dtm.time(draw.choice([9, 9, 12])))


@cache
def random_rows(size=2500, seed=3) -> pd.DataFrame:
    "Members with a handful of rows that tie, are null, negative, or at one moment."
    draw, out = Random(seed), []
    for m in range(size):
        for _ in range(draw.randrange(7)):
            day = some_day(draw)
            out.append((f"m{m:04}", day, at_noon(day, draw), draw.choice("aab"), draw.choice(["x", "y", "z", "", None]),
                        draw.choice([-2, -1, 0, 1, 1, 2, None]), draw.choice(["p", "q", None])))
    frame = pd.DataFrame(out, columns=["member_id", "local_date", "ts", "event", "topic", "value", "product_id"])
    return frame.astype({"value": "float64"})


def as_dicts(frame): return [{k: None if v is None or v != v else v for k, v in r.items()} for r in frame.to_dict("records")]


def random_world(frame=None):
    frame = random_rows() if frame is None else frame
    everyone = pd.DataFrame({"member_id": [f"m{m:04}" for m in range(2500)]})
    return {"events": as_table(frame, CON), "members": as_table(everyone, CON)}


SIDES = dict(first={"source": "events", "where": "event == 'a'"}, then={"source": "events", "where": "event == 'b'"}, days="all")


@pytest.mark.parametrize("by_ts", [True, False])
@pytest.mark.parametrize("never", [True, False])
@pytest.mark.parametrize("same", ["", "product_id"])
@pytest.mark.parametrize("within_days", [None, 2])
def test_random_sequences(by_ts, never, same, within_days):
    frame = random_rows() if by_ts else random_rows().drop(columns="ts")
    some = as_dicts(frame)
    firsts, thens = ([r for r in some if r["event"] == e] for e in "ab")
    got = values(SequenceTag(name="s", never=never, same=same, within_days=within_days, **SIDES), random_world(frame))
    want = account_of_sequence([f"m{m:04}" for m in range(2500)], firsts, thens, "ts" if by_ts else "local_date", within_days, never, same or None)
    assert got == want and 50 < sum(want.values()) < 2450


@pytest.mark.parametrize("share", [.4, .5, .6, 1])
def test_random_distributions(share):
    got = values(DistributionTag(name="d", source="events", by="topic", of="value", days=8, min_share=share, min_rows=2, otherwise="mixed"), random_world())
    assert got == account_of_distribution(within(as_dicts(random_rows()), 8), lambda r: r["topic"], lambda r: r["value"], share, 2, "mixed")
    assert {"x", "mixed"} <= set(got.values())


@pytest.mark.parametrize("pick", ["first", "last"])
def test_random_first_and_last(pick):
    got = values(FirstLastTag(name="f", source="events", of="topic", pick=pick, days="all"), random_world())
    assert got == account_of_first_last(as_dicts(random_rows()), lambda r: r["topic"] or None, pick == "last")


def test_random_entries():
    "Precedence, revocation, expiry and a time to live, against a walk through the entries."
    draw, out = Random(8), []
    for m in range(2000):
        for _ in range(draw.randrange(5)):
            day = some_day(draw)
            ends = [draw.choice([None, None, AS_OF + timedelta(draw.choice([-2, -1, 0, 3]))]) for _ in range(2)]
            out.append((f"m{m}", draw.choice(["t", "t", "t", "u"]), draw.choice(["x", "y", "z", None]), draw.choice(["self", "guide", "import", None]),
                        day, at_noon(day, draw), *ends))
    names = ["member_id", "tag", "value", "channel", "local_date", "ts", "expires_date", "revoked_date"]
    want = {}
    for m, tag, value, channel, day, ts, expires, revoked in out:
        ended = any(e is not None and e < AS_OF for e in (expires, revoked))
        if tag != "t" or value not in ("x", "y") or channel not in ("self", "guide") or ended or (AS_OF - day).days >= 6: continue
        mark = ({"guide": 0, "self": 1}[channel], -ts.timestamp(), value)
        want[m] = min(want.get(m, mark), mark)
    tag = AssignedTag(name="t", channels=["self", "guide"], precedence=["guide", "self"], values=["x", "y"], valid_for="6d")
    world_ = {"assigned_tags": as_table(pd.DataFrame(out, columns=names))}
    assert values(tag, world_) == {m: mark[2] for m, mark in want.items()} and len(want) > 200
    assert "(" in undeclared(tag, Known(world_, AS_OF)) and "z***" in undeclared(tag, Known(world_, AS_OF))


def test_random_scores():
    draw, out = Random(9), {}
    for _ in range(4000):
        key = (f"m{draw.randrange(1500)}", draw.choice(["v1", "v2", None]), AS_OF - timedelta(draw.choice([-3, 0, 4, 9, 20])))
        out[key] = draw.choice([.05, .2, .7, .9]), draw.choice([None, AS_OF - timedelta(1), AS_OF, AS_OF + timedelta(1)])
    frame = pd.DataFrame([(m, "churn", v, s, d, u) for (m, v, d), (s, u) in out.items()],
                         columns=["member_id", "model", "model_version", "score", "as_of", "valid_until"])
    want = {}
    for (m, _, d), (s, u) in sorted(out.items(), key=lambda kv: (kv[0][2], kv[0][1] or "")):
        if d <= AS_OF: want[m] = None if (u is not None and u <= AS_OF) or (AS_OF - d).days >= 9 or s < .2 else "high" if s >= .7 else "mid"
    tag = ScoreTag(name="s", model="churn", values={"high": .7, "mid": .2}, valid_for="9d")
    assert values(tag, {"scores": as_table(frame)}) == {m: v for m, v in want.items() if v}


def baskets(seed, size) -> list[tuple]:
    "Rich from the first example on: members, values that may be null, cents that may be refunds, days."
    draw = Random(seed)
    return [(draw.choice("abcde"), draw.choice(["x", "y", "z", None]), draw.randrange(-200, 400), draw.randrange(10)) for _ in range(size)]


@settings(max_examples=40, deadline=None)
@given(st.builds(baskets, st.integers(0, 10**6), st.integers(0, 50)), st.sampled_from([80, 100, 120]), st.sampled_from([1, 2]), st.sampled_from([None, 4]))
def test_random_affinities(some, least, top, half_life):
    "TGI with refunds, ties and half-lives, in fractions."
    frame = pd.DataFrame([(m, v, c, AS_OF - timedelta(d + 1), f"{m}{d // 2}") for m, v, c, d in some] or [("a", "x", 0, AS_OF, "o")],
                         columns=["member_id", "topic", "net_cents", "local_date", "order_id"])
    tag = AffinityTag(name="t", source="s", by="topic", of="net_cents", days=8, min_tgi=least, top=top, min_rows=2, half_life_days=half_life)
    got = values(tag, {"orders": as_table(frame, CON)}, catalogue=Catalogue(sources={"s": Source(name="s", table="orders")}))
    want = account_of_affinity(within(as_dicts(frame), 8), lambda r: r["topic"], lambda r: r["net_cents"], least, 2, top,
                               half_life=half_life, order=lambda r: r["order_id"])
    assert got == want


# Planted truths

def test_a_member_made_of_one_category_turns_to_it():
    "A hundred members buy at random; ten buy nothing but tea."
    draw, out = Random(1), []
    for m in range(110):
        for d in range(1, 9): out.append((f"m{m}", AS_OF - timedelta(d), f"o{m}-{d}", "tea" if m < 10 else draw.choice(["tea", "books", "bread", "soap"]), 100))
    frame = pd.DataFrame(out, columns=["member_id", "local_date", "order_id", "channel", "net_cents"])
    world_, one = {"orders": as_table(frame)}, Catalogue(sources={"o": Source(name="o", table="orders")})
    interest = values(AffinityTag(name="a", source="o", by="channel", of="net_cents", days="all", min_tgi=200), world_, catalogue=one)
    assert {m for m in (f"m{i}" for i in range(10)) if interest[m] == "tea"} == {f"m{i}" for i in range(10)}
    most = values(DistributionTag(name="d", source="o", by="channel", days="all", min_share=.9), world_, catalogue=one)
    assert most.items() >= {f"m{i}": "tea" for i in range(10)}.items()
    sure = [values(AffinityTag(name="a", source="o", by="channel", days="all", min_tgi=0, min_rows=n), world_, catalogue=one) for n in (8, 9)]
    assert (len(sure[0]), len(sure[1])) == (110, 0)


def test_exact_tgi_and_share_pass():
    "A third of three is a third, and an exact 120 is 120, whatever floats make of them."
    frame = pd.DataFrame([(m, AS_OF - timedelta(1), c, n) for m, c, n in [("a", "x", 60), ("a", "y", 40), ("b", "x", 40), ("b", "y", 60)]],
                         columns=["member_id", "local_date", "channel", "net_cents"])
    world_, one = {"orders": as_table(frame)}, Catalogue(sources={"o": Source(name="o", table="orders")})
    tag = lambda least: AffinityTag(name="a", source="o", by="channel", of="net_cents", days="all", min_tgi=least, min_rows=1)
    assert values(tag(120), world_, catalogue=one) == {"a": "x", "b": "y"}
    assert values(tag(120.00001), world_, catalogue=one) == {"a": "none", "b": "none"}
    uneven = pd.DataFrame([("a", "x", 33), ("a", "y", 12), ("b", "y", 9)], columns=["member_id", "channel", "net_cents"]).assign(local_date=AS_OF - timedelta(1))
    uneven = {"orders": as_table(uneven)}           # 100 × 33/45 over 33/54 is 120, and 119.99999999999999 in floats
    assert values(tag(120), uneven, catalogue=one)["a"] == "x" and values(tag(120.00001), uneven, catalogue=one)["a"] == "none"
    share = lambda s: DistributionTag(name="d", source="o", by="channel", of="net_cents", days="all", min_share=s, min_rows=1)
    assert values(share(.6), world_, catalogue=one) == {"a": "x", "b": "y"} and values(share(.6000001), world_, catalogue=one) == {}


def test_ties_go_to_the_larger_total_and_then_to_the_first_name():
    frame = pd.DataFrame([(m, AS_OF - timedelta(1), c, n) for m in "ab" for c, n in [("x", 50), ("w", 50), ("y", 60)]],
                         columns=["member_id", "local_date", "channel", "net_cents"])
    tag = AffinityTag(name="a", source="o", by="channel", of="net_cents", days="all", min_tgi=100, min_rows=1, top=5)
    one = Catalogue(sources={"o": Source(name="o", table="orders")})
    assert values(tag, {"orders": as_table(frame)}, catalogue=one) == {"a": ("y", "w", "x"), "b": ("y", "w", "x")}


def test_a_whole_chain_does_not_overflow():
    "A billion in cents with weights: sums beyond 64 bits."
    frame = pd.DataFrame([(f"m{i}", AS_OF - timedelta(1), "xy"[i % 2], 8 * 10**12) for i in range(40)], columns=["member_id", "local_date", "channel", "net_cents"])
    tag = AffinityTag(name="a", source="o", by="channel", of="net_cents", days="all", min_rows=1, half_life_days=9)
    got = values(tag, {"orders": as_table(frame)}, catalogue=Catalogue(sources={"o": Source(name="o", table="orders")}))
    assert got == {f"m{i}": "xy"[i % 2] for i in range(40)}


def test_a_member_with_ten_thousand_rows_is_one_sequence():
    "Joined pair by pair this would be 25 million rows for one member; stacked, it is 10,000."
    n = 10_000
    ts = pd.Timestamp("2024-01-01") + pd.to_timedelta(range(n), unit="min")
    frame = pd.DataFrame({"member_id": "m0001", "ts": ts, "local_date": ts.date, "event": ["a"] * (n // 2) + ["b"] * (n // 2), "product_id": "p"})
    plan = value_table(SequenceTag(name="s", within_days=1, **SIDES), Known(random_world(frame), AS_OF), CATALOGUE)
    assert values(SequenceTag(name="s", within_days=1, **SIDES), random_world(frame))["m0001"]
    assert not values(SequenceTag(name="s", never=True, **SIDES), random_world(frame))["m0001"]
    assert str(ibis.to_sql(plan)).count("JOIN") == 1                     # members beside those found, and no rows beside rows


# What is missing, and what is wrong

def test_what_the_workspace_lacks_is_not_computable():
    little = {"orders": world("whole")["orders"].drop("channel")}
    for name, says in [("tier", "tier_history"), ("place", "channel"), ("risk", "scores"), ("interest", "assigned_tags"), ("taste", "order_lines"),
                       ("busy", "members"), ("cart_only", "events")]:
        with pytest.raises(NotComputable, match=says): values(name, little)
    with pytest.raises(NotComputable, match="product_id"):
        values("seen_bought", {"orders": little["orders"], "events": world("whole")["events"].drop("product_id"),
                               "order_lines": world("whole")["order_lines"]})


@pytest.mark.parametrize("tag, says", [
    (ColumnTag(name="t", from_="events.channel"), "one row a member"), (ColumnTag(name="t", from_="member.gender"), "Did you mean 'members'"),
    (ColumnTag(name="t", from_="members.birth_date"), "is a date"), (FlagTag(name="t", when="x > 1"), "expression of metrics"),
    (AffinityTag(name="t", source="line", by="channel", days=9), "Did you mean 'lines'"),
    (AffinityTag(name="t", source="orders", by="net_cents / 2", days=9), "must be texts"),
    (AffinityTag(name="t", source="orders", by="channel", days=9, top=0), "from 1 to 20"),
    (SequenceTag(name="t", first={"source": "lines"}, then={"source": "orders"}, same="product_id", days=9), "no column 'product_id'"),
    (AffinityTag(name="t", source="orders", by="channel", of="channel", days=9), "must be a number"),
    (SequenceTag(name="t", first={"source": "lines"}, then={"source": "lines"}, same="products.category", days=9), "column of the tables themselves"),
    (ScoreTag(name="t", model="m", valid_for="3 weeks"), "must be days such as 90d")])
def test_wrong_definitions_say_what_is_wrong(tag, says):
    with pytest.raises(DefinitionError, match=says): values(tag, world("whole"))


def test_valid_days():
    assert [valid_days(t) for t in ("", "1d", "90d")] == [None, 1, 90]
    for wrong in ("0d", "90", "-1d", "1.5d", "90 d", "999999d"):
        with pytest.raises(DefinitionError): valid_days(wrong, "tag")


# SQL

OF = "SELECT member_id, max(net_cents) + 0 * day(:as_of) AS value FROM "


@pytest.mark.parametrize("text, says", [
    ("SELECT member_id, 1 AS value FROM orders", "must take :as_of"), ("SELECT year(:as_of); SELECT 1", "one SELECT"), ("", "must take :as_of"),
    ("SELECT member_id, ':as_of' AS value FROM orders -- :as_of", "must take :as_of"), ("DROP TABLE orders; SELECT year(:as_of)", "one SELECT"),
    ("INSERT INTO orders SELECT year(:as_of)", "one SELECT"), ("COPY (SELECT year(:as_of)) TO '/tmp/x'", "one SELECT"),
    ("DELETE FROM orders WHERE local_date < :as_of", "one SELECT"), ("CREATE TABLE x AS SELECT year(:as_of)", "one SELECT"),
    ("EXPLAIN SELECT :as_of", "must take :as_of|one SELECT|cannot be read"), ("ATTACH 'x'; SELECT year(:as_of)", "one SELECT"),
    (OF + "'/etc/passwd'", "no table of the programme"), (OF + "read_csv('/etc/passwd')", "tables of the programme only"),
    (OF + "read_parquet(['x'])", "tables of the programme only"), (OF + "glob('*')", "tables of the programme only"),
    (OF + "query('SELECT 1')", "tables of the programme only"), (OF + "main.orders", "tables of the programme only"),
    (OF + "duckdb_settings()", "tables of the programme only"), (OF + "information_schema.tables", "tables of the programme only"),
    (OF + "orders WHERE (", "cannot be read"), (OF + "ordres GROUP BY 1", "Did you mean 'orders'"), (OF + "raw_orders", "no table of the programme"),
    (OF + "(SHOW TABLES)", "no table of the programme"), (OF + "(DESCRIBE orders)", "only read"), (OF + "unnest([1])", "may not use unnest"),
    (OF + "orders USING SAMPLE 5", "may not use tablesample"), (OF + "orders WHERE ts < now() GROUP BY 1", "may not call now"),
    (OF + "orders WHERE local_date < current_date GROUP BY 1", "may not call currentdate"), (OF + "orders WHERE random() < .5 GROUP BY 1", "may not call"),
    (OF + "orders WHERE getenv('HOME') = '' GROUP BY 1", "may not call getenv"), (OF + "orders WHERE net_cents > :x GROUP BY 1", "takes :as_of only"),
    (OF + "orders WHERE net_cents > ? GROUP BY 1", "takes :as_of only"),
    ("WITH RECURSIVE t AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM t) SELECT :as_of FROM t", "RECURSIVE"),
    ("WITH memtag_known_orders AS (SELECT * FROM orders) " + OF + "memtag_known_orders GROUP BY 1", "may not name a WITH"),
    ("WITH secret AS (SELECT * FROM secret) " + OF + "secret GROUP BY 1", "'secret', which is no table"),
    ("WITH a AS (SELECT * FROM b), b AS (SELECT * FROM orders) " + OF + "a GROUP BY 1", "'b', which is no table"),
    ("SELECT :as_of AS value", "reads no table"), (OF + "orders WHERE net_cents > $x GROUP BY 1", "takes :as_of only"), ("SELECT member_id, year(:as_of) AS v FROM orders", "value is missing"),
    ("SELECT member_id, year(:as_of) AS value FROM orders", "have more, such as M\\*+"), (OF + "stores GROUP BY 1", "does not run on duckdb"),
    ("SELECT member_id, :as_of AS value FROM members", "is a date"), ("SELECT member_id, 'a' || day(:as_of) AS value FROM members", "type: number is declared"),
    ("SELECT member_id, CAST(city AS INT) + day(:as_of) AS value FROM members", "does not run"), ("SELECT " + "(" * 8000 + ":as_of", "."),
    ("SELECT /* " + "x" * 30_000 + " */ :as_of", "may have 20,000 characters")])
def test_sql_that_reads_anything_else_is_refused(text, says):
    with pytest.raises(DefinitionError, match=says) as error: values(SqlTag(name="t", sql=text, type="number"), world("whole"))
    assert len(str(error.value)) < 700 and "Glasgow" not in str(error.value)


def test_sql_reads_known_rows_by_any_road():
    "Aliases, subqueries, names in capitals, unions, a WITH that bears the name of a table, orders within: always the known ones."
    best = values(SqlTag(name="t", sql=OF + "orders GROUP BY 1", type="number"), world("whole"))
    assert best == values(SqlTag(name="t", sql=OF + "orders GROUP BY 1", type="number"), world("cut"))
    for text in (OF + "ORDERS AS o GROUP BY 1", OF + "(SELECT * FROM (SELECT * FROM orders)) GROUP BY 1",
                 "WITH members AS (SELECT * FROM orders) " + OF + "members GROUP BY 1",
                 "WITH a AS (SELECT * FROM orders), b AS (SELECT * FROM a) " + OF + "b GROUP BY 1;",
                 "FROM orders SELECT member_id, max(orders.net_cents) + 0 * day(:as_of) AS value GROUP BY ALL",
                 OF + "orders WHERE net_cents IN (SELECT net_cents FROM orders) GROUP BY 1",
                 OF + "(SELECT * FROM orders WHERE net_cents > 500 UNION ALL SELECT * FROM orders WHERE net_cents <= 500) GROUP BY 1",
                 "SELECT m.member_id, max(net_cents) + 0 * day(:as_of) AS value FROM (orders JOIN (SELECT DISTINCT member_id FROM orders) m USING (member_id)) GROUP BY 1"):
        assert values(SqlTag(name="t", sql=text, type="number"), world("whole")) == best, text


def test_sql_may_find_nobody():
    assert values(SqlTag(name="t", sql=OF + "orders WHERE local_date < :as_of - 20000 GROUP BY 1", type="number"), world("whole")) == {}


# The other engine

def test_spark_gives_the_same_cell_for_cell(spark):
    "A tag or two of each kind, as three columns of three types."
    names = ["tier", "gender", "taste", "hour", "first_place", "last_cents", "cart_late", "seen_bought", "risk", "p", "interest", "promotion_lover", "busy"]
    needed = ("order_lines", "members", "member_merges", "products", "events", "scores", "assigned_tags", "tier_history")
    there = in_engine({n: t for n, t in cut(tables(), AS_OF).items() if n in needed}, spark)
    def stacked(tables_):
        known, parts = Known(tables_, AS_OF), {"text": [], "number": [], "boolean": []}
        for name in names:
            t = value_table(TAGS[name], known, CATALOGUE)
            kind = "boolean" if t.value.type().is_boolean() else "number" if t.value.type().is_numeric() else "text"
            v = t.value.join(">") if t.value.type().is_array() else t.value.cast("float64") if kind == "number" else t.value
            parts[kind].append(t.select("member_id", tag=ibis.literal(name), value=v))
        return [to_frame(ibis.union(*p)).sort_values(["tag", "member_id"]).reset_index(drop=True) for p in parts.values()]
    for ours, theirs in zip(stacked(world("cut")), stacked(there)):
        assert len(ours) > 100
        pd.testing.assert_frame_equal(ours, theirs, check_exact=True, check_dtype=False)


def test_a_compilation_warns_of_values_that_nobody_declared():
    from memtag_research.tags.compile import compile_tags
    says = compile_tags(CATALOGUE, world("whole"), AS_OF, tags=["interest", "promotion_lover", "price_level"]).warnings
    assert len(says) == 2 and says[0].startswith("interest: ") and "fru****bles" in says[0] and "vegetables" not in says[0]
    assert says == compile_tags(CATALOGUE, world("poison"), AS_OF, tags=["interest", "promotion_lover", "price_level"]).warnings


def test_a_compilation_warns_of_a_model_that_nobody_scored():
    from memtag_research.tags.compile import compile_tags
    some = replace(CATALOGUE, tags={"lonely": ScoreTag(name="lonely", model="chrun", title={}, class_="risk"), "risk": TAGS["risk"]})
    says = compile_tags(some, world("whole"), AS_OF, tags=["lonely", "risk"]).warnings
    mine = [s for s in says if "no score of model" in s]
    assert len(mine) == 1 and mine[0].startswith(f"lonely: no score of model chrun is known at {AS_OF}") and TAGS["risk"].model in mine[0]
    assert not any("no score of model" in s for s in compile_tags(some, world("whole"), AS_OF, tags=["risk"]).warnings)
    none = world("whole") | {"scores": world("whole")["scores"].filter(ibis.literal(False))}
    assert any("no rows by then" in s for s in compile_tags(some, none, AS_OF, tags=["lonely"]).warnings)
