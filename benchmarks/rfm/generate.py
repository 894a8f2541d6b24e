"""Order lines with planted habits, written by DuckDB straight to Parquet; the same rows on every machine.

Lines stand in order of time over two years, two lines an order on average, members a tenth of the lines. At any moment
newer members buy more (older ones fade out), and a tenth of the members buy far more often than the others. A tenth
of the orders have no member. Every 33rd order returns an earlier one, whole or half; every 50th is a zero basket; every
twelfth carries freight; refunds follow within a month. All randomness is integer arithmetic on the row number.

    python benchmarks/rfm/generate.py ROWS FILE.parquet
"""
import sys
from pathlib import Path

import duckdb

FIRST_DAY, DAYS = "2022-01-01", 730

SQL = """
CREATE MACRO spread(x, salt) AS (x * 2654435761 + salt * 97531) % 4294967296;
CREATE MACRO mix(h) AS (xor(h, h >> 15) * 1103515245) % 4294967296;
CREATE MACRO u(x, salt) AS mix(spread(x, salt)) / 4294967296.0;   -- uniform in [0, 1)
CREATE MACRO back(o) AS 33 * CAST(floor(u(o, 1) * {orders} / 825) AS BIGINT) + 3;
COPY (
    WITH numbered AS (
        SELECT i, i % 6 AS k, i // 6 * 3 + CASE WHEN i % 6 < 1 THEN 0 WHEN i % 6 < 3 THEN 1 ELSE 2 END AS o
        FROM range({rows}) t(i)),
    sourced AS (
        SELECT *, o % 33 = 32 AND o >= back(o) AS is_return, CASE WHEN is_return THEN o - back(o) ELSE o END AS s
        FROM numbered),
    placed AS (
        SELECT *, CAST(floor({members} * (0.3 + 0.7 * s / {orders}) * (1 - u(s, 2) ** 2)) AS BIGINT) AS newest,
               CAST(floor(o * {days}.0 / {orders}) AS INTEGER) AS day, CAST(floor(u(o, 3) * 12) AS INTEGER) + 9 AS hour,
               CASE WHEN s % 50 = 7 THEN 0 ELSE 99 + CAST(floor(300 * (1 - u(s * 6 + k, 4)) ** -0.6) AS BIGINT) END AS paid
        FROM sourced)
    SELECT printf('l%010d', i) AS line_id, printf('o%010d', o) AS order_id,
           CASE WHEN u(s, 5) < 0.1 THEN NULL
                ELSE printf('m%09d', CASE WHEN u(s, 6) < 0.4 THEN newest // 10 * 10 ELSE newest END) END AS member_id,
           DATE '{first_day}' + day + to_hours(hour) + to_seconds(CAST(floor(u(o, 7) * 3600) AS BIGINT)) AS ts,
           DATE '{first_day}' + day AS local_date, CAST(hour AS BIGINT) AS local_hour,
           CASE WHEN is_return THEN 'return' WHEN k = 5 AND o % 4 = 0 THEN 'shipping' ELSE 'sale' END AS line_kind,
           printf('p%04d', CAST(floor(u(i, 8) * 5000) AS INTEGER)) AS product_id,
           CAST(CASE WHEN is_return THEN -1 ELSE 1 END AS DECIMAL(18, 3)) AS quantity,
           paid AS list_cents, CAST(0 AS BIGINT) AS discount_cents, CAST(0 AS BIGINT) AS coupon_cents,
           CASE WHEN NOT is_return THEN paid WHEN u(o, 9) < 0.6 THEN -paid ELSE -(paid // 2) END AS net_cents,
           printf('s%03d', CAST(floor(u(o, 10) * 200) AS INTEGER)) AS store_id,
           CASE WHEN is_return THEN printf('o%010d', s) END AS original_order_id
    FROM placed) TO '{path}' (FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1)
"""


def generate(rows: int, path) -> None:
    "Write `rows` order lines to a Parquet file, unless it is there."
    path = Path(path)
    if path.exists(): return
    part = path.with_suffix(".part")
    con = duckdb.connect(config={"memory_limit": "4GB", "temp_directory": str(path.parent / "spill")})
    for statement in SQL.format(rows=rows, members=rows // 10, orders=rows // 2, days=DAYS, first_day=FIRST_DAY,
                                path=part).split(";\n"):
        con.execute(statement)
    part.rename(path)


if __name__ == "__main__": generate(int(sys.argv[1]), sys.argv[2])
