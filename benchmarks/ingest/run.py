"""A tills' CSV to canonical Parquet and grains: seconds, memory, and DuckDB doing less with the same file.

    python benchmarks/ingest/run.py --lines 10_000_000 --rounds 3

One export of so many lines (about 105 bytes each in UTF-8: ten million are 1 GB), written in UTF-8 and in GB18030, as Chinese Excel
saves it. Roads: ours (`ingest`: ids as text, money to cents, times to UTC and local dates, rules, checks of the whole table, orders and
members' days); DuckDB's plain copy of the UTF-8 file as text; hand-written DuckDB SQL that types the same columns and drops the same
rows, of the UTF-8 file; pandas in chunks with pyarrow. Rows and cents of ours, of the SQL and of pandas must be equal before a ratio
is printed.
Each road runs in a process of its own; figures go to results.md and results.json beside this file.
"""
import argparse
import shutil
import statistics
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import harness  # noqa: E402  the folder above is not a package

ROADS = {"copy": "DuckDB: plain copy of the UTF-8 file, all text",
         "sql": "hand-written DuckDB SQL, UTF-8, typed; no checks, no grains",
         "ours_utf8": "ours, UTF-8", "ours_gb18030": "ours, GB18030",
         "pandas_gb18030": "pandas in chunks, GB18030, typed; no checks, no grains"}
MAPPING = """name: benchmark
currency: CNY
zone: Asia/Shanghai
first_order_washout_days: 0
sources:
  order_lines:
    files: [{file}]
    encoding: {encoding}
    columns:
      line_id: 流水号
      order_id: 小票号
      member_id: 会员卡号
      ts: {{from: 付款时间, format: "%Y/%m/%d %H:%M:%S"}}
      product_id: 商品编码
      quantity: 数量
      net_cents: 实付金额
      line_kind: {{from: 业务类型, values: {{销售: sale, 退货: return}}}}
      store_id: 门店
      channel: 渠道
    drop:
      - {{reason: never paid, where: "状态 = '待付款'"}}
"""
TYPED = """SELECT 流水号 AS line_id, 小票号 AS order_id, nullif(会员卡号, '') AS member_id,
    timezone('Asia/Shanghai', strptime(付款时间, '%Y/%m/%d %H:%M:%S')) AS ts, strptime(付款时间, '%Y/%m/%d %H:%M:%S')::DATE AS local_date,
    商品编码 AS product_id, 数量::DECIMAL(18, 3) AS quantity, (实付金额::DECIMAL(18, 6) * 100)::BIGINT AS net_cents,
    CASE 业务类型 WHEN '销售' THEN 'sale' ELSE 'return' END AS line_kind, 门店 AS store_id, 渠道 AS channel
    FROM read_csv('{path}', all_varchar=true, header=true) WHERE 状态 <> '待付款'"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lines", type=lambda t: int(t.replace("_", "")), default=10_000_000)
    parser.add_argument("--road", help=argparse.SUPPRESS)
    args = harness.arguments(parser).parse_args()
    folder = Path(args.data) / f"ingest_{args.lines}"
    if args.road: return perform(args, folder)
    generate(args, folder)
    try:
        run = lambda road, save: harness.watched(_command(args, road), args, folder / "spill")
        results = harness.take_turns(list(ROADS), "copy", args.rounds, run, lambda road: None)
        sums = {road: (r[0]["rows"], r[0]["cents"]) for road, r in results.items() if road != "copy" and not isinstance(r, str)}
        if len(set(sums.values())) != 1: raise SystemExit(f"the roads disagree: {sums}")
        sizes = {p.stem: p.stat().st_size for p in folder.glob("*.csv")}
        packages = ("duckdb", "ibis-framework", "pandas", "pyarrow")
        kept = harness.keep(HERE / "results.json", str(args.lines), args, results, packages, sizes=sizes)
        (HERE / "results.md").write_text(page(kept))
    finally:
        if not args.keep: shutil.rmtree(folder)


def _command(args, road):
    given = {"--lines": str(args.lines), "--data": args.data, "--road": road, "--engine-memory": args.engine_memory}
    return [sys.executable, __file__, *(word for pair in given.items() for word in pair)]


def generate(args, folder):
    "The export in both encodings; nothing when it is there."
    import duckdb
    folder.mkdir(parents=True, exist_ok=True)
    utf8, chinese = folder / "utf8.csv", folder / "gb18030.csv"
    if chinese.exists(): return
    con = duckdb.connect(config={"memory_limit": args.engine_memory, "temp_directory": str(folder / "spill")})
    names = "['牛奶', '有机鸡蛋', '鲜切水果拼盘', '洗衣液', '𠮷野家盖饭']"
    second = f"to_seconds(((i // 3) * 63072000 // {max(args.lines // 3, 1)})::BIGINT)"
    con.execute(f"""COPY (SELECT format('L{{:012}}', i) AS 流水号, format('R{{:010}}', i // 3) AS 小票号,
        CASE WHEN (i // 3) % 5 = 0 THEN NULL ELSE format('{{:08}}', hash(i // 3) % {max(args.lines // 30, 1)}) END AS 会员卡号,
        strftime(TIMESTAMP '2023-01-01' + {second}, '%Y/%m/%d %H:%M:%S') AS 付款时间,
        format('P{{:05}}', hash(i) % 20000) AS 商品编码, {names}[1 + (hash(i) % 5)::INT] AS 商品名称, 1 + i % 3 AS 数量,
        CASE WHEN i % 41 = 0 THEN '-' ELSE '' END || (1 + hash(i) % 300) || '.' ||
            lpad((hash(i, 1) % 100)::VARCHAR, 2, '0') AS 实付金额,
        CASE WHEN i % 41 = 0 THEN '退货' ELSE '销售' END AS 业务类型, 'S' || hash(i // 3) % 40 AS 门店,
        ['门店', 'APP', '官网'][1 + (hash(i // 3) % 3)::INT] AS 渠道,
        CASE WHEN (i // 3) % 100 = 99 THEN '待付款' ELSE '已完成' END AS 状态
        FROM range({args.lines}) t(i)) TO '{utf8}' (HEADER)""")
    with open(utf8, encoding="utf-8", newline="") as given, open(chinese, "w", encoding="gb18030", newline="") as taken:
        shutil.copyfileobj(given, taken, 1 << 20)


def perform(args, folder):
    work = {"copy": _copy, "sql": _sql, "pandas_gb18030": _pandas}.get(args.road, _ours)
    harness.perform(lambda: (None, work(args, folder)), False, "-", args.engine_memory)


def _ours(args, folder):
    from memtag_research.data.ingest import ingest
    encoding = args.road.removeprefix("ours_")
    root = folder / "ws" / encoding
    root.mkdir(parents=True, exist_ok=True)
    mapping = MAPPING.format(file=folder / f"{encoding}.csv", encoding=encoding.replace("utf8", "utf-8"))
    (root / "memtag.yaml").write_text(mapping, encoding="utf-8")
    ingest(root, force=True, memory_limit=args.engine_memory)
    return _sum(root / "data/current/order_lines.parquet")


def _sum(path):
    import duckdb
    rows, cents = duckdb.sql(f"SELECT count(*), sum(net_cents)::BIGINT FROM read_parquet('{path}')").fetchone()
    return {"rows": rows, "cents": cents}


def _copy(args, folder):
    con = harness.duckdb_of(args.engine_memory)
    con.execute(f"COPY (FROM read_csv('{folder}/utf8.csv', all_varchar=true, header=true)) TO '{folder}/copy.parquet'")
    return {}


def _sql(args, folder):
    con = harness.duckdb_of(args.engine_memory)
    con.execute(f"COPY ({TYPED.format(path=folder / 'utf8.csv')}) TO '{folder}/sql.parquet'")
    return _sum(folder / "sql.parquet")


def _pandas(args, folder):
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq
    writer = None
    for chunk in pd.read_csv(folder / "gb18030.csv", encoding="gb18030", dtype=str, keep_default_na=False, chunksize=500_000):
        chunk = chunk[chunk.状态 != "待付款"]
        local = pd.to_datetime(chunk.付款时间, format="%Y/%m/%d %H:%M:%S")
        cents = (pd.to_numeric(chunk.实付金额) * 100).round().astype("int64")
        table = pa.Table.from_pandas(pd.DataFrame({
            "line_id": chunk.流水号, "order_id": chunk.小票号, "member_id": chunk.会员卡号.mask(chunk.会员卡号 == ""),
            "ts": local.dt.tz_localize("Asia/Shanghai").dt.tz_convert("UTC"), "local_date": local.dt.date, "product_id": chunk.商品编码,
            "quantity": pd.to_numeric(chunk.数量), "net_cents": cents, "line_kind": chunk.业务类型.map({"销售": "sale", "退货": "return"}),
            "store_id": chunk.门店, "channel": chunk.渠道}), preserve_index=False)
        writer = writer or pq.ParquetWriter(folder / "pandas.parquet", table.schema)
        writer.write_table(table)
    writer.close()
    return _sum(folder / "pandas.parquet")


def page(everything):
    head = ("# A CSV export to canonical Parquet\n\nWritten by `benchmarks/ingest/run.py`. Medians over the rounds; `×` is the median of "
            "the ratios to DuckDB's plain copy of the UTF-8 file in the same round. Imports are not in the times; peak memory is that of "
            "the whole process. Ours reads, types, applies rules, counts what it drops, checks keys and contract of the whole table, and "
            "writes `orders` and `member_days` beside it; it first takes a sha256 of the file, so that a second run knows that nothing "
            "changed.\n")
    return head + "".join(_section(lines, figures) for lines, figures in everything.items()) + "\n"


def _section(lines, figures):
    files = ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in sorted(figures["sizes"].items()))
    said = harness.section(f"{int(lines):,} lines ({files})", figures, ROADS, "copy")
    seconds = statistics.median(r["wall"] for r in figures["results"]["ours_gb18030"])
    return said + f"\n\nOurs, GB18030: {int(lines) / seconds:,.0f} lines a second.\n"


if __name__ == "__main__": main()
