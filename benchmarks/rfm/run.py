"""RFM from order lines: ours against hand-written DuckDB SQL, polars, pandas, lifetimes and a bare scan.

    python benchmarks/rfm/run.py --rows 10_000_000 --rounds 3

Each road runs in a process of its own; the roads take turns within a round. Every result is compared with that of the
hand-written SQL, cell for cell, before a ratio is printed. Figures go to results.md and results.json beside this file,
one section for each number of rows.
"""
import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
ROADS = {"ours_lines": "ours, from lines", "ours_grain": "ours, from `member_days`", "duckdb_sql": "hand-written DuckDB SQL",
         "polars": "polars (streaming)", "pandas": "pandas", "lifetimes": "pandas + lifetimes' summary, no scores",
         "bare_scan": "bare scan of the columns"}
REFERENCE = "duckdb_sql"


def main():
    args = _arguments()
    folder = Path(args.data) / f"rfm_{args.rows}"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        results = measure(args, folder)
        write(args, results)
    finally:
        if not args.keep: shutil.rmtree(folder)


def _arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="order lines")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--roads", default=",".join(ROADS), help="comma-separated; the hand-written SQL is always run")
    parser.add_argument("--data", default="/tmp/memtag-bench", help="folder for the generated data")
    parser.add_argument("--keep", action="store_true", help="keep the generated data")
    parser.add_argument("--memory", type=float, default=12, help="a road over so many GB does not fit")
    parser.add_argument("--seconds", type=float, default=1200, help="a road over so many seconds does not fit")
    parser.add_argument("--engine-memory", default="4GB", help="DuckDB's memory_limit, ours and the hand-written SQL's")
    parser.add_argument("--reference-memory", help="another one for the hand-written SQL, where it needs more")
    return parser.parse_args()


def measure(args, folder):
    "Road → list of measurements, or the reason for which there is none."
    lines, grain = folder / "lines.parquet", folder / "member_days.parquet"
    subprocess.run([sys.executable, HERE / "generate.py", str(args.rows), lines], check=True)
    if not grain.exists(): print("make_grain", _run("make_grain", args, folder), flush=True)
    roads = [r for r in ROADS if r in args.roads.split(",") or r == REFERENCE]
    results = {road: [] for road in roads}
    for round_ in range(args.rounds):
        for road in sorted(roads, key=lambda r: (r != REFERENCE) if round_ == 0 else roads.index(r)):
            if isinstance(results[road], str): continue
            figures = _run(road, args, folder, save=round_ == 0)
            if round_ == 0 and isinstance(figures, dict): _check(road, folder)
            if isinstance(figures, str):
                if road == REFERENCE: raise SystemExit(f"the hand-written SQL: {figures}; give it more with --reference-memory")
                results[road] = figures
            else: results[road].append(figures)
            print(round_ + 1, road, figures, flush=True)
    return results


def _run(road, args, folder, save=False):
    "Figures of one process, or why it did not fit."
    out = folder / f"{road}.parquet"
    command = [sys.executable, str(HERE / "roads.py"), road, str(folder / "lines.parquet"),
               str(folder / "member_days.parquet"), str(out) if save else "-",
               args.reference_memory or args.engine_memory if road == REFERENCE else args.engine_memory]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"SPILL": str(folder / "spill")})
    start = time.monotonic()
    while process.poll() is None:
        if time.monotonic() - start > args.seconds: return _end(process, f"not within {args.seconds:.0f} s")
        if _resident(process.pid) > args.memory * 1e9: return _end(process, f"does not fit in {args.memory:g} GB")
        time.sleep(.05)
    if process.returncode: raise SystemExit(f"{road} failed with code {process.returncode}")
    return json.loads(process.stdout.read())


def _end(process, reason):
    process.kill()
    process.wait()
    return reason


def _resident(pid):
    try: return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (FileNotFoundError, ProcessLookupError, IndexError): return 0


def _check(road, folder):
    "Stop unless a road's table is that of the hand-written SQL, cell for cell."
    path = folder / f"{road}.parquet"
    if road in (REFERENCE, "bare_scan"): return
    reference, columns = f"'{folder / REFERENCE}.parquet'", ("member_id, orders, purchase_days, recency_days, spend_cents, "
        "first_at, last_at, tenure_days, r_score, f_score, m_score")
    if road == "lifetimes":
        columns = "member_id, purchase_days - 1, tenure_days - recency_days, tenure_days"
        found = f"SELECT member_id, frequency, recency, T FROM '{path}'"
    else: found = f"SELECT {columns} FROM '{path}'"
    wanted = f"SELECT {columns} FROM {reference}"
    query = (f"SELECT (SELECT count(*) FROM ({wanted} EXCEPT {found})), (SELECT count(*) FROM ({found} EXCEPT {wanted})), "
             f"(SELECT count(*) FROM ({found})), (SELECT count(*) FROM ({wanted}))")
    code = (f"import duckdb; con = duckdb.connect(config={{'memory_limit': '6GB', 'temp_directory': {str(folder / 'spill')!r}}});"
            "con.execute('SET enable_progress_bar = false');"
            f"print(*con.sql({query!r}).fetchone())")
    missing, extra, rows, wanted_rows = map(int, subprocess.run(
        [sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True).stdout.split())
    if missing or extra or rows != wanted_rows:
        raise SystemExit(f"{road}: {missing} rows of the reference are missing, {extra} others are there, {rows} for {wanted_rows}")
    path.unlink()


def write(args, results):
    "Add this size to results.json and print every size to results.md."
    store = HERE / "results.json"
    everything = json.loads(store.read_text()) if store.exists() else {}
    packages = {p: version(p) for p in ("duckdb", "ibis-framework", "polars", "pandas", "lifetimes")}
    everything[str(args.rows)] = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"), "cores": os.cpu_count(), "python": platform.python_version(),
        "rounds": args.rounds, "versions": packages, "load": os.getloadavg()[2],
        "engine_memory": args.engine_memory + (f" (SQL {args.reference_memory})" if args.reference_memory else ""),
        "results": results}
    store.write_text(json.dumps(dict(sorted(everything.items(), key=lambda kv: int(kv[0]))), indent=1) + "\n")
    text = "\n".join(["# " + __doc__.splitlines()[0].rstrip("."), "", "Written by `benchmarks/rfm/run.py`. Medians over the rounds; "
        "`×` is the median of the ratios to the hand-written SQL of the same round. Every table was compared with that of "
        "the SQL, cell for cell, before. Imports are not in the times; peak memory is that of the whole process.",
        *(_section(int(rows), figures) for rows, figures in json.loads(store.read_text()).items())])
    (HERE / "results.md").write_text(text + "\n")
    print(_section(args.rows, everything[str(args.rows)]))


def _section(rows, figures):
    versions = ", ".join(f"{k} {v}" for k, v in figures["versions"].items())
    head = [f"\n## {rows:,} order lines\n", f"{figures['date']}, {figures['cores']} cores (load {figures['load']:.1f}), "
            f"{figures['rounds']} rounds, DuckDB memory_limit {figures['engine_memory']}; Python {figures['python']}, {versions}.\n",
            "| road | wall s | × | CPU s | × | peak GB |", "|---|---|---|---|---|---|"]
    return "\n".join(head + [_row(road, figures["results"]) for road in ROADS if road in figures["results"]])


def _row(road, results):
    runs, reference = results[road], results[REFERENCE]
    if isinstance(runs, str): return f"| {ROADS[road]} | {runs} | | | | |"
    median = {k: statistics.median(r[k] for r in runs) for k in ("wall", "cpu", "peak")}
    ratio = {k: statistics.median(r[k] / s[k] for r, s in zip(runs, reference, strict=True)) for k in ("wall", "cpu")}
    return (f"| {ROADS[road]} | {median['wall']:.2f} | {ratio['wall']:.2f} | {median['cpu']:.2f} | {ratio['cpu']:.2f} | "
            f"{median['peak'] / 1e9:.2f} |")


if __name__ == "__main__": main()
