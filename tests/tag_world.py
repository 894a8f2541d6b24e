"""A small simulated programme with holes in it, and ways to cut it at a date, to poison what comes after, and to learn of it late.

`tables()` are pyarrow tables by canonical name, without grains; `in_engine` and `as_workspace` add those. Everything is SQL over
the raw tables: no function of the package's time handling is used here, so that the package can be held against it."""

import hashlib
import json
import tempfile
from datetime import date, timedelta
from functools import cache
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from memtag_research.data.contracts import contracts
from memtag_research.data.engine import connect
from memtag_research.data.grains import grains
from memtag_research.data.simulate import make_programme

START, END = date(2023, 1, 1), date(2024, 7, 1)
AS_OF = date(2024, 3, 10)             # no border of a month, quarter or log
OWN_DATE = {"tier_history": "valid_from"}
TIMELESS = ("products", "stores", "rewards", "benefits", "identities", "targets")
HOLES = {  # column → one row in so many loses its value; only columns that may be empty
    "order_lines": {"product_id": 17, "list_cents": 7, "discount_cents": 5, "coupon_cents": 6, "cost_cents": 9, "channel": 11,
                    "store_id": 8, "local_hour": 13},
    "members": {"joined_at": 15, "birth_date": 6, "age_band": 5, "gender": 4, "city": 7, "join_channel": 6, "household_id": 9},
    "products": {"category": 12, "brand": 9, "subcategory": 8}, "stores": {"region": 5}, "events": {"product_id": 9, "topic": 5, "channel": 6},
    "feedback": {"score": 6}, "assigned_tags": {"value": 9, "channel": 11}, "redemptions": {"order_id": 5}, "points_ledger": {"reason": 5}}


@cache
def tables(people: int = 250, seed: int = 5) -> dict[str, pa.Table]:
    "Every canonical table; every nullable column that a tag may read has holes."
    with tempfile.TemporaryDirectory(prefix="memtag-tags-") as folder:
        ws = make_programme(people, START, END, seed=seed, directory=Path(folder) / "ws").workspace
        raw = {name: ws.table(name).to_pyarrow() for name in ws.tables() if name not in ("orders", "member_days")}
    return {name: _with_holes(name, table) for name, table in raw.items()}


def _with_holes(name, table):
    "The table, its holes spread by the row's number; those of a line by its order, whose lines share one place."
    holes = {c: n for c, n in HOLES.get(name, {}).items() if c in table.column_names}
    if name == "members": holes["local_date"] = holes["joined_at"]
    by = "order_id" if name == "order_lines" else "row_"
    column = lambda c: f"CASE WHEN hash({by} || '{'joined_at' if c == 'local_date' else c}') % {holes[c]} = 0 THEN NULL ELSE {c} END AS {c}"
    columns = ", ".join(column(c) if c in holes else c for c in table.column_names)
    return _sql(f"SELECT {columns} FROM (SELECT *, (row_number() OVER ())::VARCHAR AS row_ FROM t)", t=table)


def _sql(query, **given) -> pa.Table:
    con = duckdb.connect()
    con.execute("SET TimeZone = 'UTC'; SET threads = 1; SET preserve_insertion_order = true")
    for name, table in given.items(): con.register(name, table)
    return con.execute(query).to_arrow_table()


def day_column(name, table): return OWN_DATE.get(name, "local_date" if "local_date" in table.column_names else None)


def end_columns(name, table):
    "(date column, moment column or None) of second times."
    pairs = [(e[:-3] + "_date" if e.endswith("_at") else e, e) for e in contracts()[name].ends]
    return [(d, m) for d, m in pairs if d in table.column_names]


def cut(world: dict, as_of: date) -> dict[str, pa.Table]:
    "The raw tables as they stood at `as_of`: later rows gone, later ends not yet known."
    out = {}
    for name, table in world.items():
        keep, day = "TRUE", day_column(name, table)
        if day: keep = f"{day} IS NULL OR {day} < DATE '{as_of}'"
        if name == "scores": keep = f"as_of <= DATE '{as_of}'"
        if name == "payments": keep = f"order_id IN (SELECT order_id FROM lines WHERE local_date < DATE '{as_of}')"
        later = {c: f"CASE WHEN {d} < DATE '{as_of}' THEN {c} END AS {c}" for d, m in end_columns(name, table) for c in {d, m}}
        columns = ", ".join(later.get(c, c) for c in table.column_names)
        out[name] = _sql(f"SELECT {columns} FROM t WHERE {keep}", t=table, lines=world["order_lines"])
    return out


def poison(world: dict, as_of: date) -> dict[str, pa.Table]:
    """The same past and an absurd future: every row again one day and forty days later under another id, numbers and
    texts wrong; every order refunded, every account closed and merged, every tag revoked and tier ended at `as_of`."""
    past = cut(world, as_of)
    out = {name: table if name in TIMELESS or name == "payments" else _later(name, table, as_of) for name, table in past.items()}
    refunds = _sql(f"""SELECT * REPLACE ('refund' || line_id AS line_id, 'refund' || order_id AS order_id, order_id AS original_order_id,
        'return' AS line_kind, -abs(net_cents) AS net_cents, TIMESTAMP '{as_of} 00:00:01' + INTERVAL 12 HOUR AS ts, DATE '{as_of}' AS local_date)
        FROM t WHERE line_kind = 'sale'""", t=past["order_lines"])
    out["order_lines"] = pa.concat_tables([out["order_lines"], refunds.cast(out["order_lines"].schema)])
    moment = f"TIMESTAMP '{as_of} 13:00:00'"
    merges = _sql(f"""SELECT member_id AS from_id, 'f' || member_id AS to_id, {moment} AS merged_at, DATE '{as_of}' AS local_date, {moment} AS recorded_at
        FROM t ANTI JOIN merged ON member_id = from_id""", t=past["members"], merged=past["member_merges"])
    out["member_merges"] = pa.concat_tables([out["member_merges"], merges.cast(out["member_merges"].schema)])
    return out


def _later(name, table, as_of):
    "A table, its open ends set to `as_of`, and two copies of it in the future."
    ends = {}
    for d, m in end_columns(name, table):
        ends[d] = f"coalesce({d}, DATE '{as_of}') AS {d}"
        if m != d and m in table.column_names: ends[m] = f"coalesce({m}, TIMESTAMP '{as_of} 13:00:00') AS {m}"
    past = f"SELECT {', '.join(ends.get(c, c) for c in table.column_names)} FROM t"
    wild = [f"SELECT {', '.join(_wild(name, c, table, as_of + timedelta(days)) for c in table.column_names)} FROM t" for days in (0, 1, 40)]
    return _sql(" UNION ALL ".join([past, *wild]), t=table)


def _wild(name, column, table, day):
    "A column of the future: the day given, other ids, numbers a thousandfold; other tiers and tags, all else kept (rules should match)."
    kind, spec, mark = table.schema.field(column).type, contracts()[name], f"f{day:%d}"
    if name == "scores" and column in ("as_of", "valid_until"): return f"DATE '{day + timedelta(1 if column == 'as_of' else 90)}' AS {column}"
    if column in (spec.time, "recorded_at"): return f"TIMESTAMP '{day} 09:00:00' AS {column}"
    if column == day_column(name, table): return f"DATE '{day}' AS {column}"
    if column in ("line_id", "order_id", "entry_id") or (name == "member_merges" and column == "from_id"): return f"'{mark}' || {column} AS {column}"
    if name == "tier_history" and column == "tier": return "'another' AS tier"
    if name == "assigned_tags" and column == "value": return "CASE WHEN value = 'low' THEN 'high' ELSE 'low' END AS value"
    if name == "members" and column == "member_id": return f"'{mark}' || member_id AS member_id"
    if pa.types.is_integer(kind) and column != "local_hour": return f"1000 * {column} + 1 AS {column}"
    if pa.types.is_floating(kind): return f"1000 * {column} AS {column}"
    return column


def learn_late(world: dict, as_of: date) -> tuple[dict, dict]:
    "(tables in which every fifth earlier row of a table with `recorded_at` was recorded after `as_of`, the same without these rows)."
    late, without = dict(world), dict(world)
    for name, table in world.items():
        if "recorded_at" not in table.column_names: continue
        by = "order_id" if name == "order_lines" else "member_id" if "member_id" in table.column_names else "from_id"
        chosen = f"coalesce(hash({by}) % 5 = 0, FALSE)"
        stamp = f"CASE WHEN {chosen} THEN TIMESTAMP '{as_of}' + INTERVAL 30 DAY WHEN recorded_at IS NULL THEN NULL ELSE least(recorded_at, TIMESTAMP '{START}') END"
        late[name] = _sql(f"SELECT * REPLACE (({stamp})::TIMESTAMP AS recorded_at) FROM t", t=table).cast(table.schema)
        without[name] = _sql(f"SELECT * FROM t WHERE NOT {chosen}", t=late[name]).cast(table.schema)
    return late, without


def in_engine(world: dict, con=None, folder=None) -> dict:
    "The tables in an engine, with the grains derived from their order lines."
    con = con or connect()
    folder = Path(folder or tempfile.mkdtemp(prefix="memtag-world-"))
    for name, table in world.items(): pq.write_table(table, folder / f"{name}.parquet", coerce_timestamps="us", allow_truncated_timestamps=True)
    out = {name: con.read_parquet(folder / f"{name}.parquet") for name in world}
    local = connect() if con.name != "duckdb" else con
    lines = local.read_parquet(folder / "order_lines.parquet")
    for name, grain in grains(lines).items():
        local.to_parquet(grain, folder / f"{name}.parquet")
        out[name] = con.read_parquet(folder / f"{name}.parquet")
    return out


def as_workspace(world: dict, folder, zone="UTC", **settings) -> Path:
    "A workspace folder that holds the tables, as ingest would have left it."
    folder = Path(folder)
    data = folder / "data" / "v-world"
    data.mkdir(parents=True)
    made = in_engine(world, folder=data)
    (folder / "data" / "current").symlink_to("v-world")
    days = duckdb.sql(f"SELECT min(local_date), max(local_date) FROM '{data}/order_lines.parquet'").fetchone()
    rows = {name: int(table.count().execute()) for name, table in made.items()}
    manifest = {"tables": {n: {"name": n, "rows": r, "dropped": {}, "unmatched": {}} for n, r in rows.items()}, "notes": [],
                "log": {"start": str(days[0]), "end": str(days[1])}, "simulated": {},
                "sha256": hashlib.sha256(b"".join(p.read_bytes() for p in sorted(data.glob("*.parquet")))).hexdigest()}
    (data / "manifest.json").write_text(json.dumps(manifest))
    settings = {"name": "World", "currency": "CNY", "zone": zone, **settings}
    (folder / "memtag.yaml").write_text("\n".join(f"{k}: {json.dumps(v, ensure_ascii=False)}" for k, v in settings.items()), encoding="utf-8")
    return folder
