"""Days of members as the grain `member_days` holds them: CDNOW's sample, or members whose lives follow Pareto/NBD.

Simulated members join evenly over two years, buy at a rate ~ Gamma and leave at a rate ~ Gamma with the parameters published for
CDNOW; the mean value of their purchases follows Gamma-Gamma. Every fiftieth repeat day was cancelled a week later. Rows stand in
order of members and days, written in chunks; the same rows for the same number of members.

    python benchmarks/clv/generate.py MEMBERS|cdnow FILE.parquet
"""
import subprocess
import sys
from datetime import date
from importlib.resources import files
from pathlib import Path

import duckdb
import numpy as np
import pyarrow.parquet as pq

FIRST_DAY, DAYS, CHUNK = date(2022, 1, 1), 730, 500_000
AS_OF = {"cdnow": date(1997, 10, 1)}                # others: date(2024, 1, 1)
R, ALPHA, S, BETA = .5533, 10.578 * 7, .6062, 11.669 * 7     # days
P, Q, V = 6.25, 3.744, 15.447                                # currency units

GRAIN = """
SELECT printf('m%09d', member) AS member_id, DATE '{first}' + CAST(day AS INTEGER) AS local_date,
       CASE WHEN gone THEN DATE '{first}' + CAST(day + 7 AS INTEGER) END AS cancelled_date,
       CAST(orders AS BIGINT) AS orders, CAST(1 AS BIGINT) AS purchase_days,
       local_date + to_hours(9) AS first_ts, local_date + to_hours(9 + CASE WHEN orders > 1 THEN 5 ELSE 0 END) AS last_ts,
       CAST(CASE WHEN gone THEN 0 ELSE orders END AS DECIMAL(18, 3)) AS units,
       CASE WHEN gone THEN 0 ELSE cents END AS gross_cents, CASE WHEN gone THEN 0 ELSE cents END AS net_cents
FROM rows
"""


def generate(members, path) -> None:
    "Write the days of members to a Parquet file, unless it is there."
    path = Path(path)
    if path.exists(): return
    part, writer, con = path.with_suffix(".part"), None, duckdb.connect(config={"memory_limit": "4GB"})
    for first, rows in ((FIRST_DAY, c) for c in _chunks(int(members))) if members != "cdnow" else [_cdnow()]:
        con.register("rows", rows)
        table = con.sql(GRAIN.format(first=first)).to_arrow_table()
        writer = writer or pq.ParquetWriter(part, table.schema, compression="zstd")
        writer.write_table(table, row_group_size=122_880)
    writer.close()
    part.rename(path)


def generate_lines(members, folder) -> None:
    "Order lines, ten a member, as the benchmark of RFM makes them, and their days as ingest leaves them."
    from memtag_research.data.engine import connect
    from memtag_research.data.grains import grains
    lines, days, con = Path(folder) / "lines.parquet", Path(folder) / "lines_days.parquet", connect(memory_limit="8GB")
    if days.exists(): return
    subprocess.run([sys.executable, Path(__file__).parents[1] / "rfm" / "generate.py", str(10 * int(members)), lines], check=True)
    con.raw_sql(f"SET temp_directory = '{folder}/spill'")
    grains(con.read_parquet(lines))["member_days"].to_parquet(part := days.with_suffix(".part"))
    part.rename(days)


def _chunks(members):
    "Columns of days, half a million members at a time."
    for first in range(0, members, CHUNK):
        draw = np.random.default_rng([14, first])
        yield _lives(draw, first, min(CHUNK, members - first))


def _lives(draw, first, n):
    joined = draw.uniform(0, DAYS, n)
    rate, leaving = draw.gamma(R, 1 / ALPHA, n), draw.gamma(S, 1 / BETA, n)
    with np.errstate(divide="ignore"): there = np.minimum(DAYS - joined, draw.standard_exponential(n) / leaving)
    bought = draw.poisson(rate * there)
    member = np.repeat(np.arange(n), bought)
    later = (joined[member] + draw.uniform(size=len(member)) * there[member]).astype(np.int64)
    keys = np.concatenate([np.arange(n) * 1024 + joined.astype(np.int64), member * 1024 + later])
    keys, orders = np.unique(keys, return_counts=True)
    member, day = keys // 1024, keys % 1024
    worth = draw.gamma(Q, 1 / V, n)[member]
    cents = np.maximum(np.rint(draw.gamma(P, 1, len(keys)) / worth * 100), 1).astype(np.int64)
    repeat = np.concatenate([[False], member[1:] == member[:-1]])
    gone = repeat & (day < DAYS - 8) & (draw.uniform(size=len(keys)) < .02)
    return _frame(member + first, day, orders, cents, gone)


def _cdnow():
    "The sample that lifetimes ships."
    import pandas as pd
    first = date(1997, 1, 1)
    with open(files("lifetimes") / "datasets" / "CDNOW_sample.txt") as f: rows = [line.split() for line in f if line.strip()]
    log = pd.DataFrame(rows, columns=["_", "member", "day", "cds", "dollars"])
    log = log.assign(member=log.member.astype(int), day=(pd.to_datetime(log.day) - pd.Timestamp(first)).dt.days,
                     cents=(log.dollars.astype(float) * 100).round().astype(int))
    days = log.groupby(["member", "day"], as_index=False).agg(orders=("cents", "size"), cents=("cents", "sum"))
    return first, _frame(*(days[c].to_numpy() for c in ("member", "day", "orders", "cents")), np.zeros(len(days), bool))


def _frame(member, day, orders, cents, gone):
    import pandas as pd
    return pd.DataFrame({"member": member, "day": day, "orders": orders, "cents": cents, "gone": gone})


def as_of(members) -> date:
    "Where the calibration ends, exclusive."
    return AS_OF.get(members, date(2024, 1, 1))


if __name__ == "__main__": generate(*sys.argv[1:])
