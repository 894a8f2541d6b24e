"""The simulated programme into Parquet: rows a second, memory, and DuckDB writing the same tables.

    python benchmarks/simulate/run.py --members 10_000 100_000 1_000_000

Each size is made in a process of its own with about 100 order lines a member, then DuckDB copies all its tables from Parquet to
Parquet, which is reading and encoding alone. Figures go to results.md and results.json beside this file, a row for each size.
"""
import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
MEASURE = """
import json, resource, sys, time
began, cpu = time.perf_counter(), time.process_time()
{work}
print(json.dumps({{"wall": time.perf_counter() - began, "cpu": time.process_time() - cpu,
                  "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}}))
"""
MAKE = """
from memtag_research.data.simulate import make_programme
from memtag_research.world.parameters import Purchases
make_programme({members}, "2023-01-01", "2026-01-01", seed=1, directory={folder!r}, purchases=Purchases(r=4.6))
"""
COPY = """
import duckdb
con = duckdb.connect(config={{"memory_limit": "3GB", "temp_directory": {spill!r}, "preserve_insertion_order": False}})
for path in {paths!r}:
    con.execute(f"COPY (FROM read_parquet('{{path}}')) TO '{{path}}.copy' (FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1)")
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--members", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--data", default="/tmp/memtag-bench", help="folder for the generated data")
    args = parser.parse_args()
    path = HERE / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for members in args.members:
        results[str(members)] = measure(members, Path(args.data) / f"simulate_{members}")
        print(members, results[str(members)], flush=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    (HERE / "results.md").write_text(page(dict(sorted(results.items(), key=lambda item: int(item[0])))))


def measure(members, folder):
    "Figures of one size; the data are removed."
    shutil.rmtree(folder, ignore_errors=True)
    try:
        load = os.getloadavg()[0]
        made = run(MAKE.format(members=members, folder=str(folder)))
        tables = sorted(p for part in ("data/current", "truth") for p in (folder / part).glob("*.parquet"))
        rows = json.loads((folder / "data/current/manifest.json").read_text())["tables"]
        size = sum(p.stat().st_size for p in tables)
        copy = run(COPY.format(paths=[str(p) for p in tables], spill=str(folder / "spill")))
        return {"lines": rows["order_lines"]["rows"], "rows": sum(t["rows"] for t in rows.values()), "bytes": size, "load": load,
                "make": made, "copy": copy, "date": f"{datetime.now(timezone.utc):%Y-%m-%d}"}
    finally: shutil.rmtree(folder, ignore_errors=True)


def run(work):
    "One process: seconds, CPU seconds, peak memory in bytes."
    done = subprocess.run([sys.executable, "-c", MEASURE.format(work=work)], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def page(results):
    "The table of all sizes."
    used = ", ".join(f"{name} {version(name)}" for name in ("numpy", "pyarrow", "duckdb"))
    head = ("# A simulated programme into Parquet\n\n"
            "Every canonical table, both grains and the truth; the copy is DuckDB reading and writing the same tables (zstd).\n\n"
            f"{os.cpu_count()} cores; Python {platform.python_version()}, {used}. `python benchmarks/simulate/run.py`\n\n"
            "| members | order lines | rows of all tables | GB | wall s | lines a second | CPU µs a line | CPU µs a row | peak GB "
            "| × DuckDB's copy, wall | × CPU | load before |\n|---|---|---|---|---|---|---|---|---|---|---|---|\n")
    return head + "".join(row(int(members), r) for members, r in results.items())


def row(members, r):
    made, copy = r["make"], r["copy"]
    return (f"| {members:,} | {r['lines']:,} | {r['rows']:,} | {r['bytes'] / 1e9:.2f} | {made['wall']:.1f} "
            f"| {r['lines'] / made['wall']:,.0f} | {1e6 * made['cpu'] / r['lines']:.2f} | {1e6 * made['cpu'] / r['rows']:.2f} "
            f"| {made['peak'] / 1e9:.2f} | {made['wall'] / copy['wall']:.2f} | {made['cpu'] / copy['cpu']:.2f} | {r['load']:.1f} |\n")


if __name__ == "__main__": main()
