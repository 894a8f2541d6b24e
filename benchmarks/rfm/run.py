"""RFM from order lines: ours against hand-written DuckDB SQL, polars, pandas, lifetimes and a bare scan.

    python benchmarks/rfm/run.py --rows 10_000_000 --rounds 3

Each road runs in a process of its own; the roads take turns within a round. Every result is compared with that of the
hand-written SQL, cell for cell, before a ratio is printed. Figures go to results.md and results.json beside this file,
one section for each number of rows.
"""
import argparse
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import harness  # noqa: E402  the folder above is not a package

ROADS = {"ours_lines": "ours, from lines", "ours_grain": "ours, from `member_days`", "duckdb_sql": "hand-written DuckDB SQL",
         "polars": "polars (streaming)", "pandas": "pandas", "lifetimes": "pandas + lifetimes' summary, no scores",
         "bare_scan": "bare scan of the columns"}
REFERENCE = "duckdb_sql"


def main():
    args = _arguments()
    folder = Path(args.data) / f"rfm_{args.rows}"
    folder.mkdir(parents=True, exist_ok=True)
    try: write(args, measure(args, folder))
    finally:
        if not args.keep: shutil.rmtree(folder)


def _arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="order lines")
    parser.add_argument("--roads", default=",".join(ROADS), help="comma-separated; the hand-written SQL is always run")
    return harness.arguments(parser).parse_args()


def measure(args, folder):
    "Road → list of measurements, or the reason for which there is none."
    lines, grain = folder / "lines.parquet", folder / "member_days.parquet"
    subprocess.run([sys.executable, HERE / "generate.py", str(args.rows), lines], check=True)
    if not grain.exists(): print("make_grain", _run("make_grain", args, folder), flush=True)
    roads = [r for r in ROADS if r in args.roads.split(",") or r == REFERENCE]
    return harness.take_turns(roads, REFERENCE, args.rounds, lambda road, save: _run(road, args, folder, save),
                              lambda road: _check(road, folder))


def _run(road, args, folder, save=False):
    "Figures of one process, or why it did not fit."
    out, memory = folder / f"{road}.parquet", args.reference_memory or args.engine_memory if road == REFERENCE else args.engine_memory
    command = [sys.executable, str(HERE / "roads.py"), road, str(folder / "lines.parquet"), str(folder / "member_days.parquet"),
               str(out) if save else "-", memory]
    return harness.watched(command, args, folder / "spill")


def _check(road, folder):
    "Stop unless a road's table is that of the hand-written SQL, cell for cell."
    path = folder / f"{road}.parquet"
    if road in (REFERENCE, "bare_scan"): return
    columns = ("member_id, orders, purchase_days, recency_days, spend_cents, first_at, last_at, tenure_days, r_score, f_score, m_score")
    found = f"SELECT {columns} FROM '{path}'"
    if road == "lifetimes":
        columns = "member_id, purchase_days - 1, tenure_days - recency_days, tenure_days"
        found = f"SELECT member_id, frequency, recency, T FROM '{path}'"
    harness.compare(road, f"SELECT {columns} FROM '{folder / REFERENCE}.parquet'", found, folder / "spill")
    path.unlink()


def write(args, results):
    "Add this size to results.json and print every size to results.md."
    packages = ("duckdb", "ibis-framework", "polars", "pandas", "lifetimes")
    everything = harness.keep(HERE / "results.json", str(args.rows), args, results, packages)
    sections = {rows: harness.section(f"{int(rows):,} order lines", everything[rows], ROADS, REFERENCE)
                for rows in sorted(everything, key=int)}
    text = "\n".join(["# " + __doc__.splitlines()[0].rstrip("."), "", "Written by `benchmarks/rfm/run.py`. Medians over the rounds; "
        "`×` is the median of the ratios to the hand-written SQL of the same round. Every table was compared with that of "
        "the SQL, cell for cell, before. Imports are not in the times; peak memory is that of the whole process.", *sections.values()])
    (HERE / "results.md").write_text(text + "\n")
    print(sections[str(args.rows)])


if __name__ == "__main__": main()
