"""The same table by different roads: member_id, the seven measures, three quintile scores. One road per process.

    python benchmarks/rfm/roads.py ROAD LINES.parquet GRAIN.parquet OUT.parquet MEMORY_LIMIT

Prints one line of JSON: wall and CPU seconds of the work alone (imports out), peak resident memory of the process.
What is computed is written to OUT after the clock has stopped, for comparison.
"""
import sys
from datetime import date, timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness import duckdb_of, engine_of, perform

AS_OF = date(2023, 12, 1)
COLUMNS = ("member_id", "orders", "purchase_days", "recency_days", "spend_cents", "first_at", "last_at", "tenure_days",
           "r_score", "f_score", "m_score")
USED = ["order_id", "member_id", "ts", "local_date", "line_kind", "net_cents", "original_order_id"]

# The rule in SQL, as one writes it who knows DuckDB and needs this table only: no grain, no cents that nobody asks for.
HAND_SQL = f"""
CREATE TEMP TABLE summary AS
WITH lines AS (
    SELECT order_id, member_id, ts, local_date, line_kind, net_cents, original_order_id
    FROM read_parquet('$LINES') WHERE local_date < DATE '{AS_OF}' AND member_id IS NOT NULL),
orders AS (
    SELECT order_id, any_value(member_id) AS member_id, any_value(local_date) AS local_date, min(ts) AS ts,
           sum(net_cents) AS net
    FROM lines WHERE line_kind IN ('sale', 'gift', 'service') GROUP BY order_id HAVING sum(net_cents) > 0),
refunds AS (
    SELECT coalesce(original_order_id, order_id) AS order_id, sum(net_cents) AS net
    FROM lines WHERE line_kind = 'return' GROUP BY 1),
days AS (
    SELECT member_id, local_date, count(*) AS orders, min(ts) AS first_at, max(ts) AS last_at
    FROM orders LEFT JOIN refunds USING (order_id)
    WHERE orders.net + coalesce(refunds.net, 0) > 0 GROUP BY member_id, local_date),
members AS (
    SELECT member_id, sum(orders)::BIGINT AS orders, count(*) AS purchase_days, min(first_at) AS first_at,
           max(last_at) AS last_at, date_diff('day', max(local_date), DATE '{AS_OF}') - 1 AS recency_days,
           date_diff('day', min(local_date), DATE '{AS_OF}') - 1 AS tenure_days
    FROM days GROUP BY member_id),
money AS (
    SELECT member_id, sum(net_cents)::BIGINT AS spend_cents FROM lines
    WHERE line_kind IN ('sale', 'return', 'exchange', 'gift', 'service') GROUP BY member_id)
SELECT members.*, spend_cents FROM members JOIN money USING (member_id);

CREATE TEMP TABLE result AS
WITH cuts AS (
    SELECT quantile_disc(recency_days, [.2, .4, .6, .8]) AS r, quantile_disc(orders, [.2, .4, .6, .8]) AS f,
           quantile_disc(spend_cents, [.2, .4, .6, .8]) AS m FROM summary)
SELECT member_id, orders, purchase_days, recency_days, spend_cents, first_at, last_at, tenure_days,
       5 - (recency_days > r[1])::INT - (recency_days > r[2])::INT - (recency_days > r[3])::INT - (recency_days > r[4])::INT AS r_score,
       1 + (orders > f[1])::INT + (orders > f[2])::INT + (orders > f[3])::INT + (orders > f[4])::INT AS f_score,
       1 + (spend_cents > m[1])::INT + (spend_cents > m[2])::INT + (spend_cents > m[3])::INT + (spend_cents > m[4])::INT AS m_score
FROM summary, cuts
"""


def ours_lines(lines, grain, memory):
    "Lines → member_days → rfm_summary → rfm_score, nothing prepared."
    from memtag_research.data.grains import member_days_grain
    from memtag_research.measures.rfm import rfm_score, rfm_summary
    con = engine_of(memory)

    def work():
        days = member_days_grain(con.read_parquet(lines))
        return rfm_score(rfm_summary(days, AS_OF)).cache()
    return work, lambda result, out: result.to_parquet(out)


def ours_grain(lines, grain, memory):
    "The member_days grain, as ingest leaves it → rfm_summary → rfm_score."
    from memtag_research.measures.rfm import rfm_score, rfm_summary
    con = engine_of(memory)

    def work(): return rfm_score(rfm_summary(con.read_parquet(grain), AS_OF)).cache()
    return work, lambda result, out: result.to_parquet(out)


def duckdb_sql(lines, grain, memory):
    con = duckdb_of(memory)

    def work():
        for statement in HAND_SQL.replace("$LINES", lines).split(";\n"): con.execute(statement)
    return work, lambda _, out: con.execute(f"COPY result TO '{out}' (FORMAT parquet)")


def polars(lines, grain, memory):
    import polars as pl

    def score(name, column, reverse=False):
        cuts = [pl.col(column).sort().get((pl.len() * q + 4) // 5 - 1) for q in range(1, 5)]
        above = pl.sum_horizontal([(pl.col(column) > c).cast(pl.Int64) for c in cuts])
        return (5 - above if reverse else 1 + above).alias(name)

    def work():
        rows = pl.scan_parquet(lines).select(USED).filter(pl.col("local_date") < AS_OF, pl.col("member_id").is_not_null())
        orders = (rows.filter(pl.col("line_kind").is_in(["sale", "gift", "service"])).group_by("order_id")
                  .agg(pl.first("member_id", "local_date"), pl.min("ts"), pl.sum("net_cents")).filter(pl.col("net_cents") > 0))
        refunds = (rows.filter(pl.col("line_kind") == "return")
                   .group_by(pl.coalesce("original_order_id", "order_id").alias("order_id")).agg(refund=pl.sum("net_cents")))
        valid = (orders.join(refunds, on="order_id", how="left")
                 .filter(pl.col("net_cents") + pl.col("refund").fill_null(0) > 0))
        days = (valid.group_by("member_id", "local_date")
                .agg(orders=pl.len().cast(pl.Int64), first_at=pl.min("ts"), last_at=pl.max("ts")))
        members = days.group_by("member_id").agg(
            pl.sum("orders"), purchase_days=pl.len().cast(pl.Int64), first_at=pl.min("first_at"), last_at=pl.max("last_at"),
            first=pl.min("local_date"), last=pl.max("local_date"))
        money = (rows.filter(pl.col("line_kind").is_in(["sale", "return", "exchange", "gift", "service"]))
                 .group_by("member_id").agg(spend_cents=pl.sum("net_cents")))
        last_day = pl.lit(AS_OF - timedelta(days=1))
        summary = members.join(money, on="member_id").with_columns(
            recency_days=(last_day - pl.col("last")).dt.total_days(),
            tenure_days=(last_day - pl.col("first")).dt.total_days()).collect(engine="streaming")
        return summary.lazy().with_columns(score("r_score", "recency_days", True), score("f_score", "orders"),
                                           score("m_score", "spend_cents")).select(COLUMNS).collect(engine="streaming")
    return work, lambda result, out: result.write_parquet(out)


def _pandas_orders(lines):
    "Known lines of members, and their valid orders."
    import pandas as pd
    rows = pd.read_parquet(lines, columns=USED, filters=[("local_date", "<", AS_OF)])
    rows = rows[rows.member_id.notna()]
    orders = (rows[rows.line_kind.isin(["sale", "gift", "service"])].groupby("order_id", sort=False)
              .agg(member_id=("member_id", "first"), local_date=("local_date", "first"), ts=("ts", "min"),
                   net_cents=("net_cents", "sum")))
    orders = orders[orders.net_cents > 0]
    refunds = rows[rows.line_kind == "return"]
    refunds = refunds.net_cents.groupby(refunds.original_order_id.fillna(refunds.order_id), sort=False).sum()
    return rows, orders[orders.net_cents + refunds.reindex(orders.index, fill_value=0) > 0]


def pandas(lines, grain, memory):
    import numpy as np
    import pandas as pd

    def score(values):
        ordered = np.sort(values.to_numpy())
        cuts = ordered[[(len(ordered) * q + 4) // 5 - 1 for q in range(1, 5)]]
        return np.searchsorted(cuts, values, side="left") + 1

    def work():
        rows, orders = _pandas_orders(lines)
        money = rows[rows.line_kind.isin(["sale", "return", "exchange", "gift", "service"])]
        orders["local_date"] = orders.ts.dt.normalize()   # here UTC days are local days; far quicker than date objects
        days = (orders.groupby(["member_id", "local_date"], sort=False)
                .agg(orders=("ts", "size"), first_at=("ts", "min"), last_at=("ts", "max")).reset_index())
        s = days.groupby("member_id", sort=False).agg(
            orders=("orders", "sum"), purchase_days=("orders", "size"), first_at=("first_at", "min"),
            last_at=("last_at", "max"), first=("local_date", "min"), last=("local_date", "max"))
        s["spend_cents"] = money.groupby("member_id", sort=False).net_cents.sum()
        last_day = pd.Timestamp(AS_OF) - pd.Timedelta(days=1)
        s["recency_days"], s["tenure_days"] = (last_day - s["last"]).dt.days, (last_day - s["first"]).dt.days
        s["r_score"] = 6 - score(s.recency_days)
        s["f_score"], s["m_score"] = score(s.orders), score(s.spend_cents)
        return s.reset_index()[list(COLUMNS)]
    return work, lambda result, out: result.to_parquet(out, index=False)


def lifetimes(lines, grain, memory):
    "Valid orders by pandas, then lifetimes' own summary: frequency, recency, T and mean of repeat days, no scores."
    from lifetimes.utils import summary_data_from_transaction_data

    def work():
        _, orders = _pandas_orders(lines)
        return summary_data_from_transaction_data(orders, "member_id", "ts", "net_cents",
                                                  observation_period_end=AS_OF - timedelta(days=1), freq="D")
    return work, lambda result, out: result.reset_index().to_parquet(out, index=False)


def bare_scan(lines, grain, memory):
    "Read the seven columns and fold them into one row."
    con = duckdb_of(memory)
    fold = ", ".join(f"max({c})" for c in USED)
    return lambda: con.execute(f"SELECT {fold} FROM read_parquet('{lines}')").fetchall(), None


ROADS = {f.__name__: f for f in (ours_lines, ours_grain, duckdb_sql, polars, pandas, lifetimes, bare_scan)}


def make_grain(lines, grain, memory):
    "Write the grain as ingest does."
    from memtag_research.data.grains import member_days_grain
    con = engine_of(memory)
    return lambda: member_days_grain(con.read_parquet(lines)).order_by("member_id", "local_date").to_parquet(grain), None


def main(road, lines, grain, out, memory):
    work, save = (make_grain if road == "make_grain" else ROADS[road])(lines, grain, memory)
    perform(work, save, out, memory)


if __name__ == "__main__": main(*sys.argv[1:])
