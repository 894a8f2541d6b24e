"""Tags of every member at a date: ours against the same written by hand in DuckDB SQL, metrics in polars and pandas, a bare scan.

    python benchmarks/tags/run.py --rows 15_000_000 --tags 50 --rounds 3

Each road runs in a process of its own; the roads take turns within a round. Every table is compared with that of the
hand-written SQL (`--reference`: by ranks, or by cut points), cell for cell, before a ratio is printed (polars and pandas stop
at the metrics, and are compared with each other). Figures go to results.md and results.json beside this file, one section for
each number of rows and of tags.
"""
import argparse
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import harness  # noqa: E402  the folder above is not a package
import roads as made  # noqa: E402

ROADS = {"ours": "ours", "ours_one_more": "ours, one more tag of lines", "ours_12_months": "ours, twelve monthly dates",
         "duckdb_sql_cuts": "hand-written DuckDB SQL, cut points", "polars": "polars (streaming), metrics only",
         "pandas": "pandas, metrics only", "bare_scan": "bare scan of the columns", "duckdb_sql": "hand-written DuckDB SQL, ranks"}
REFERENCES = ("duckdb_sql", "duckdb_sql_cuts")


def main():
    args = _arguments()
    folder = Path(args.data) / f"tags_{args.rows}"
    folder.mkdir(parents=True, exist_ok=True)
    try: write(args, measure(args, folder))
    finally:
        if not args.keep: shutil.rmtree(folder)


def _arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_500_000, help="order lines")
    parser.add_argument("--tags", type=int, default=50, choices=list(made.WINDOWS))
    parser.add_argument("--roads", default=",".join(ROADS), help="comma-separated; the reference is always run")
    parser.add_argument("--reference", default=REFERENCES[0], choices=REFERENCES)
    return harness.arguments(parser).parse_args()


def measure(args, folder):
    "Road → list of measurements, or the reason for which there is none."
    subprocess.run([sys.executable, HERE.parent / "rfm" / "generate.py", str(args.rows), folder / "lines.parquet"], check=True)
    if not (folder / "members.parquet").exists(): print("make_grain", _run("make_grain", args, folder), flush=True)
    roads = [r for r in ROADS if r in args.roads.split(",") or r == args.reference]
    for road in ROADS: (folder / f"{road}.parquet").unlink(missing_ok=True)   # of a run with other tags
    return harness.take_turns(roads, args.reference, args.rounds, lambda road, save: _run(road, args, folder, save),
                              lambda road: _check(road, args, folder))


def _run(road, args, folder, save=False):
    "Figures of one process, or why it did not fit."
    out, memory = folder / f"{road}.parquet", args.reference_memory or args.engine_memory if road in REFERENCES else args.engine_memory
    return harness.watched([sys.executable, str(HERE / "roads.py"), road, str(args.tags), str(folder), str(out) if save else "-", memory],
                           args, folder / "spill")


def _check(road, args, folder):
    "Stop unless a road's table is that of the hand-written SQL, cell for cell; pandas is held against polars."
    if road in (args.reference, "bare_scan", "polars"): return
    path, reference = folder / f"{road}.parquet", folder / f"{'polars' if road == 'pandas' else args.reference}.parquet"
    if not reference.exists(): return
    columns = ([f"CAST({n}_{w}d AS BIGINT)" for w in made.WINDOWS[args.tags] for n in made.METRICS] if road == "pandas"
               else made.tag_names(made.WINDOWS[args.tags]))
    for start in range(0, len(columns), 25):   # all columns at once would spill more than a disk has
        some = "member_id, " + ", ".join(columns[start:start + 25])
        harness.compare(road, f"SELECT {some} FROM '{reference}'", f"SELECT {some} FROM '{path}'", folder / "spill")
    path.unlink()


def write(args, results):
    "Add this size to results.json and print every size to results.md."
    everything = harness.keep(HERE / "results.json", f"{args.rows} {args.tags}", args, results,
                              ("duckdb", "ibis-framework", "polars", "pandas"), reference=args.reference)
    (HERE / "results.md").write_text(page(everything))
    print(section(everything, f"{args.rows} {args.tags}"))


def section(everything, size):
    title, figures = "{:,} order lines, {} tags".format(*map(int, size.split())), everything[size]
    return harness.section(title, figures, ROADS, figures.get("reference", REFERENCES[0])) + _building(figures["results"])


def page(everything):
    "results.md."
    sizes = sorted(everything, key=lambda size: [int(n) for n in size.split()])
    about = (
        "Written by `benchmarks/tags/run.py`. Medians over the rounds; `×` is the median of the ratios to the hand-written SQL of the "
        "same round (the row of 1.00). Every table was compared with that of the SQL, cell for cell, before. Imports are not in the "
        "times; peak memory is that of the whole process. The SQL takes quintiles by rank() over, as one writes them first, which "
        "sorts all columns of all members once for each; or by cut points, one narrow row, as ours does and as one ends who has seen "
        "what ranks cost. The road of twelve dates is compared at its last one.")
    return "\n".join(["# " + __doc__.splitlines()[0].rstrip("."), "", about, *(section(everything, size) for size in sizes)]) + "\n"


def _building(results):
    "What building and compiling the expression took, as a share of the run."
    runs = [r for r in results.get("ours", []) if isinstance(r, dict)]
    if not runs: return ""
    build, share = (statistics.median(f(r) for r in runs) for f in (lambda r: r["build"], lambda r: r["build"] / r["wall"]))
    return f"\n\nBuilding and compiling the expression: {build:.2f} s, {share:.1%} of our run (it is in it)."


if __name__ == "__main__": main()
