"""The same tags by different roads: one per process.

    python benchmarks/tags/roads.py ROAD TAGS FOLDER OUT.parquet MEMORY_LIMIT

For each window of days: ten metrics of order lines, five of member days, and twenty-five tags of them (flags, classes, numbers,
quintiles). Two windows make 50 tags, eight make 200. The hand-written SQL, pandas and polars say the same by hand; pandas and
polars stop at the metrics, which is the larger part and flatters them. Prints one line of JSON, as the other benchmarks.
"""
import re
import sys
import time
from datetime import date, timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness import duckdb_of, engine_of, perform

AS_OF = date(2023, 12, 1)
WINDOWS = {50: (90, 365), 200: (14, 30, 60, 90, 120, 180, 270, 365)}
MONTHS = [date(2023, m, 1) for m in range(1, 13)]   # the last one is AS_OF
# name: (source, aggregate, column, condition)
METRICS = {
    "lines": ("lines", "count", "*", ""), "net": ("lines", "sum", "net_cents", ""), "listed": ("lines", "sum", "list_cents", ""),
    "dear": ("lines", "sum", "net_cents", "net_cents > 500"), "evening": ("lines", "sum", "net_cents", "local_hour >= 18"),
    "north": ("lines", "sum", "net_cents", "store_id < 's050'"), "south": ("lines", "count", "*", "store_id >= 's150'"),
    "small": ("lines", "count", "*", "net_cents < 200"), "late": ("lines", "count", "*", "local_hour >= 20"),
    "largest": ("lines", "max", "net_cents", ""), "orders": ("days", "sum", "orders", ""), "visits": ("days", "sum", "purchase_days", ""),
    "spend": ("days", "sum", "net_cents", ""), "gross": ("days", "sum", "gross_cents", ""), "best_day": ("days", "max", "net_cents", "")}
FLAGS = {
    "frequent": "visits >= 3", "spender": "spend > 5000", "evening_buyer": "2 * evening > net", "northern": "2 * north > net",
    "dear_buyer": "2 * dear > net and lines >= 3", "one_order": "orders == 1", "southern": "2 * south > lines", "late_buyer": "late >= 2",
    "small_basket": "2 * small > lines", "big_ticket": "largest > 2000"}
CLASSES = {
    "level": (("none", "spend == 0"), ("low", "spend < 1000"), ("middle", "spend < 5000"), ("high", "else")),
    "rhythm": (("none", "visits == 0"), ("once", "visits == 1"), ("some", "visits <= 4"), ("often", "else")),
    "basket": (("none", "lines == 0"), ("one", "lines == 1"), ("few", "lines <= 5"), ("many", "else")),
    "hours": (("none", "lines == 0"), ("night", "2 * late > lines"), ("evening", "2 * evening > net"), ("day", "else")),
    "place": (("none", "lines == 0"), ("north", "2 * north > net"), ("south", "2 * south > lines"), ("mixed", "else")),
    "worth": (("none", "orders == 0"), ("loyal", "orders >= 5 and spend > 5000"), ("bargain", "small >= 3"), ("plain", "else"))}
NUMBERS = {"per_order": "spend / orders", "evening_share": "evening / net", "dear_share": "dear / net", "kept_share": "spend / gross",
           "north_share": "north / net"}
QUINTILES = ("spend", "visits", "net", "lines")


def names(expression, window):
    "A rule of the tables above with the window in its names."
    return re.sub("|".join(rf"\b{m}\b" for m in METRICS), lambda m: f"{m[0]}_{window}d", expression)


def catalogue_text(windows, more=False):
    "The catalogue as a user writes it; `more`: with one more metric and tag of lines."
    metrics = [_metric(n, w, *m) for w in windows for n, m in METRICS.items()]
    tags = [tag for w in windows for tag in _tags(w)]
    if more:
        metrics.append("  more_90d: {source: lines, agg: count, days: 90, where: local_hour < 12}")
        tags.append("  more_90: {class: behaviour, kind: flag, title: {en: More, zh: 再一个}, when: more_90d >= 2}")
    return "\n".join(["sources:", "  lines: {table: order_lines, where: line_kind == 'sale'}",
                      "  days: {table: member_days, where: is_null(cancelled_date)}", "metrics:", *metrics, "tags:", *tags, ""])


def _metric(name, window, source, agg, of, where):
    parts = [f"source: {source}", f"agg: {agg}", f"days: {window}"]
    if of != "*": parts.append(f"of: {of}")
    if where: parts.append(f'where: "{where}"')
    return f"  {name}_{window}d: {{{', '.join(parts)}}}"


def _tags(w):
    def tag(name, kind, rest): return (f"  {name}_{w}: {{class: behaviour, title: {{en: {name[:9]} {w}, zh: {name[:9]} {w}}}, "
                                       f"kind: {kind}, {rest}}}")

    yield from (tag(n, "flag", f'when: "{names(rule, w)}"') for n, rule in FLAGS.items())
    for n, rules in CLASSES.items(): yield tag(n, "rules", "values: {" + ", ".join(f'{v}: "{names(r, w)}"' for v, r in rules) + "}")
    yield from (tag(n, "number", f'metric: "{names(e, w)}"') for n, e in NUMBERS.items())
    yield from (tag(f"q{n}", "quantile", f"metric: {n}_{w}d, values: [q1, q2, q3, q4, q5]") for n in QUINTILES)


def tag_names(windows): return [f"{n}_{w}" for w in windows for n in (*FLAGS, *CLASSES, *NUMBERS, *(f"q{q}" for q in QUINTILES))]


def hand_sql(windows, cuts=False):
    """The same in SQL, as one writes it who knows DuckDB: a pass a source, FILTER a window, and quintiles either by rank() OVER, as
    one writes them first, or by cut points, as one writes them who has seen what the ranks cost."""
    since = f"local_date < DATE '{AS_OF}' AND local_date >= DATE '{AS_OF - timedelta(max(windows))}'"
    zero = ", ".join(f"coalesce({n}_{w}d, 0) AS {n}_{w}d" if agg in ("sum", "count") else f"{n}_{w}d"
                     for w in windows for n, (_, agg, *_) in METRICS.items())
    return f"""CREATE TEMP TABLE result AS
WITH l AS (SELECT member_id, {_hand_metrics("lines", windows)} FROM read_parquet('$FOLDER/lines.parquet')
    WHERE {since} AND line_kind = 'sale' AND member_id IS NOT NULL GROUP BY member_id),
d AS (SELECT member_id, {_hand_metrics("days", windows)} FROM read_parquet('$FOLDER/member_days.parquet')
    WHERE {since} AND (cancelled_date IS NULL OR cancelled_date >= DATE '{AS_OF}') GROUP BY member_id),
m AS (SELECT member_id, {zero} FROM read_parquet('$FOLDER/members.parquet') LEFT JOIN l USING (member_id) LEFT JOIN d USING (member_id))
{_hand_tables(windows, cuts)}"""


def _hand_tables(windows, cuts):
    tags = ", ".join(tag for w in windows for tag in _hand_tags(w, cuts))
    if not cuts: return f"SELECT member_id, {tags} FROM m"
    points = ", ".join(f"quantile_disc({n}_{w}d, [.2, .4, .6, .8]) AS {n}_{w}c" for w in windows for n in QUINTILES)
    return f", c AS (SELECT {points} FROM m)\nSELECT member_id, {tags} FROM m, c"


def _hand_metrics(source, windows):
    def metric(name, w, agg, of, where):
        condition = f"local_date >= DATE '{AS_OF - timedelta(w)}'" + (f" AND {where}" if where else "")
        return f"{agg}({of}) FILTER (WHERE {condition}){'::BIGINT' if agg == 'sum' else ''} AS {name}_{w}d"

    return ", ".join(metric(n, w, *rest) for w in windows for n, (s, *rest) in METRICS.items() if s == source)


def _hand_tags(w, cuts):
    def sql(rule): return names(rule, w).replace("==", "=")

    yield from (f"coalesce({sql(rule)}, false) AS {n}_{w}" for n, rule in FLAGS.items())
    for n, rules in CLASSES.items():
        cases = " ".join(f"WHEN {sql(rule)} THEN '{v}'" for v, rule in rules if rule != "else")
        yield f"CASE {cases} ELSE '{rules[-1][0]}' END AS {n}_{w}"
    yield from ("{} / nullif({}, 0) AS {}_{}".format(*sql(e).split(" / "), n, w) for n, e in NUMBERS.items())
    if cuts:
        above = " + ".join(f"({{0}}_{w}d > {{0}}_{w}c[{k}])::INT" for k in (1, 2, 3, 4))
        yield from (f"'q' || 1 + {above.format(n)} AS q{n}_{w}" for n in QUINTILES)
    else: yield from (f"'q' || 1 + (5 * (rank() OVER (ORDER BY {n}_{w}d) - 1)) // count(*) OVER () AS q{n}_{w}" for n in QUINTILES)


def _ours(tags, folder, memory, more=False):
    from memtag_research.tags.catalogues import read_catalogue
    from memtag_research.tags.compile import compile_tags
    con = engine_of(memory)
    catalogue = read_catalogue(catalogue_text(WINDOWS[tags], more))

    def work():
        began = time.perf_counter()
        compiled = compile_tags(catalogue, _tables(con, folder), AS_OF)
        sql = con.compile(compiled.expr)
        build = time.perf_counter() - began
        con.raw_sql(f"CREATE TEMP TABLE result AS {sql}")
        return con.table("result"), {"build": build}
    return work, lambda result, out: result.to_parquet(out)


def _tables(con, folder):
    return {name: con.read_parquet(f"{folder}/{file}.parquet") for name, file in
            {"order_lines": "lines", "member_days": "member_days", "members": "members"}.items()}


def ours(tags, folder, memory): return _ours(tags, folder, memory)


def ours_one_more(tags, folder, memory):
    "One more metric and tag on the source of lines."
    return _ours(tags, folder, memory, more=True)


def ours_12_months(tags, folder, memory):
    "Twelve monthly dates."
    from memtag_research.tags.catalogues import read_catalogue
    from memtag_research.tags.compile import compile_many
    con, catalogue = engine_of(memory), read_catalogue(catalogue_text(WINDOWS[tags]))

    def work():
        for compiled in compile_many(catalogue, _tables(con, folder), MONTHS):
            con.raw_sql(f"CREATE OR REPLACE TEMP TABLE result AS {con.compile(compiled.expr)}")
        return con.table("result")
    return work, lambda result, out: result.to_parquet(out)


def duckdb_sql(tags, folder, memory, cuts=False):
    con = duckdb_of(memory)
    return (lambda: con.execute(hand_sql(WINDOWS[tags], cuts).replace("$FOLDER", folder)) and None,
            lambda _, out: con.execute(f"COPY result TO '{out}' (FORMAT parquet)"))


def duckdb_sql_cuts(tags, folder, memory):
    "The same with quintiles by cut points: a base made once, its quantiles in one row."
    return duckdb_sql(tags, folder, memory, cuts=True)


def _metrics_by(source, w): return {f"{n}_{w}d": (agg, of, where) for n, (s, agg, of, where) in METRICS.items() if s == source}


USED = {"lines": ["member_id", "local_date", "line_kind", "net_cents", "list_cents", "local_hour", "store_id"],
        "days": ["member_id", "local_date", "cancelled_date", "orders", "purchase_days", "net_cents", "gross_cents"]}


def polars(tags, folder, memory):
    import polars as pl

    def metric(name, agg, of, where, w):
        rows = pl.col("local_date") >= AS_OF - timedelta(w)
        if where: rows = rows & pl.sql_expr(where)
        if agg == "count": return rows.sum().cast(pl.Int64).alias(name)
        return getattr(pl.col(of).filter(rows), agg)().alias(name)

    def source(name, file, windows):
        rows = pl.scan_parquet(f"{folder}/{file}.parquet").select(USED[name]).filter(
            pl.col("local_date") < AS_OF, pl.col("local_date") >= AS_OF - timedelta(max(windows)), pl.col("member_id").is_not_null())
        rows = rows.filter(pl.col("line_kind") == "sale") if name == "lines" else rows.filter(
            pl.col("cancelled_date").is_null() | (pl.col("cancelled_date") >= AS_OF))
        return rows.group_by("member_id").agg(*[metric(n, *m, w) for w in windows for n, m in _metrics_by(name, w).items()])

    def work():
        windows = WINDOWS[tags]
        members = pl.scan_parquet(f"{folder}/members.parquet").select("member_id")
        for name, file in (("lines", "lines"), ("days", "member_days")):
            members = members.join(source(name, file, windows), on="member_id", how="left")
        zero = [f"{n}_{w}d" for w in windows for n, (_, agg, *_) in METRICS.items() if agg in ("sum", "count")]
        return members.with_columns(pl.col(zero).fill_null(0)).collect(engine="streaming")
    return work, lambda result, out: result.write_parquet(out)


def pandas(tags, folder, memory):
    import pandas as pd

    def source(name, file, windows):
        filters = [("local_date", "<", AS_OF), ("local_date", ">=", AS_OF - timedelta(max(windows)))]
        rows = pd.read_parquet(f"{folder}/{file}.parquet", columns=USED[name], filters=filters)
        rows = rows[rows.member_id.notna()]
        rows = rows[rows.line_kind == "sale"] if name == "lines" else rows[rows.cancelled_date.isna() | (rows.cancelled_date >= AS_OF)]
        rows["local_date"], rows["member_id"] = pd.to_datetime(rows.local_date), rows.member_id.astype("category")
        out = {}
        for w in windows:
            recent = rows[rows.local_date >= pd.Timestamp(AS_OF - timedelta(w))]
            for metric, (agg, of, where) in _metrics_by(name, w).items():
                some = recent.query(where) if where else recent
                groups = some.groupby("member_id", observed=True)
                out[metric] = groups.size() if agg == "count" else getattr(groups[of], agg)()
        return pd.DataFrame(out)

    def work():
        windows = WINDOWS[tags]
        frame = pd.read_parquet(f"{folder}/members.parquet", columns=["member_id"]).set_index("member_id")
        for name, file in (("lines", "lines"), ("days", "member_days")):
            made = source(name, file, windows)
            made.index = made.index.astype(frame.index.dtype)
            frame = frame.join(made)
        zero = [f"{n}_{w}d" for w in windows for n, (_, agg, *_) in METRICS.items() if agg in ("sum", "count")]
        frame[zero] = frame[zero].fillna(0).astype("int64")
        return frame.reset_index()
    return work, lambda result, out: result.to_parquet(out, index=False)


def bare_scan(tags, folder, memory):
    "Read the columns used and fold them into one row."
    con = duckdb_of(memory)

    def work():
        for name, file in (("lines", "lines"), ("days", "member_days")):
            con.execute(f"SELECT {', '.join(f'max({c})' for c in USED[name])} FROM read_parquet('{folder}/{file}.parquet')").fetchall()
    return work, None


ROADS = {f.__name__: f for f in (ours, ours_one_more, ours_12_months, duckdb_sql, duckdb_sql_cuts, polars, pandas, bare_scan)}


def make_grain(tags, folder, memory):
    "The grain as ingest writes it, and the members."
    from memtag_research.data.grains import member_days_grain
    con = engine_of(memory)

    def work():
        lines = con.read_parquet(f"{folder}/lines.parquet")
        member_days_grain(lines).order_by("member_id", "local_date").to_parquet(f"{folder}/member_days.parquet")
        members = lines.filter(lines.member_id.notnull() & (lines.local_date < AS_OF)).group_by("member_id")
        members = members.agg(joined_at=lines.ts.min(), local_date=lines.local_date.min())
        members.order_by("member_id").to_parquet(f"{folder}/members.parquet")
    return work, None


def main(road, tags, folder, out, memory):
    perform(*(make_grain if road == "make_grain" else ROADS[road])(int(tags), folder, memory), out, memory)


if __name__ == "__main__": main(*sys.argv[1:])
