"""What the benchmarks of roads share: a road runs in a process of its own, is watched, and is compared with the hand-written SQL."""
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path


def arguments(parser):
    "Options that all benchmarks of roads have."
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", default="/tmp/memtag-bench", help="folder for the generated data")
    parser.add_argument("--keep", action="store_true", help="keep the generated data")
    parser.add_argument("--memory", type=float, default=12, help="a road over so many GB does not fit")
    parser.add_argument("--seconds", type=float, default=1200, help="a road over so many seconds does not fit")
    parser.add_argument("--engine-memory", default="4GB", help="DuckDB's memory_limit, ours and the hand-written SQL's")
    parser.add_argument("--reference-memory", help="another one for the hand-written SQL, where it needs more")
    return parser


def take_turns(roads, reference, rounds, run, check):
    "Road → measurements of every round, or the reason for which there is none; the reference first, then in turn."
    results = {road: [] for road in roads}
    for round_ in range(rounds):
        for road in sorted(roads, key=lambda r: (r != reference) if round_ == 0 else roads.index(r)):
            if isinstance(results[road], str): continue
            figures = run(road, save=round_ == 0)
            if round_ == 0 and isinstance(figures, dict): check(road)
            if isinstance(figures, str):
                if road == reference: raise SystemExit(f"the hand-written SQL: {figures}; give it more with --reference-memory")
                results[road] = figures
            else: results[road].append(figures)
            print(round_ + 1, road, figures, flush=True)
    return results


def watched(command, args, spill):
    "What a process prints as JSON, or why it did not fit."
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"SPILL": str(spill)})
    start = time.monotonic()
    while process.poll() is None:
        if time.monotonic() - start > args.seconds: return _end(process, f"not within {args.seconds:.0f} s")
        if _resident(process.pid) > args.memory * 1e9: return _end(process, f"does not fit in {args.memory:g} GB")
        time.sleep(.05)
    if process.returncode: raise SystemExit(f"{' '.join(command[1:3])} failed with code {process.returncode}")
    return json.loads(process.stdout.read())


def _end(process, reason):
    process.kill()
    process.wait()
    return reason


def _resident(pid):
    try: return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (FileNotFoundError, ProcessLookupError, IndexError): return 0


def compare(road, wanted, found, spill):
    "Stop unless two SELECTs give the same rows."
    query = (f"SELECT (SELECT count(*) FROM ({wanted} EXCEPT {found})), (SELECT count(*) FROM ({found} EXCEPT {wanted})), "
             f"(SELECT count(*) FROM ({found})), (SELECT count(*) FROM ({wanted}))")
    code = (f"import duckdb; con = duckdb.connect(config={{'memory_limit': '6GB', 'temp_directory': {str(spill)!r}}});"
            "con.execute('SET enable_progress_bar = false');"
            f"print(*con.sql({query!r}).fetchone())")
    missing, extra, rows, wanted_rows = map(int, subprocess.run(
        [sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True).stdout.split())
    if missing or extra or rows != wanted_rows:
        raise SystemExit(f"{road}: {missing} rows of the reference are missing, {extra} others are there, {rows} for {wanted_rows}")


def perform(work, save, out, memory):
    "Do a road's work and print wall and CPU seconds (imports out) and the peak of memory; save what came out after the clock."
    before, start = os.times(), time.perf_counter()
    try: result = work()
    except Exception as e:
        if type(e).__name__ != "OutOfMemoryException": raise
        return print(json.dumps(f"out of memory at memory_limit {memory}"))
    wall, after = time.perf_counter() - start, os.times()
    result, more = result if isinstance(result, tuple) else (result, {})
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
    cpu = after.user + after.system - before.user - before.system
    print(json.dumps({"wall": wall, "cpu": cpu, "peak": peak, **more}), flush=True)
    if save and out != "-": save(result, out)


def duckdb_of(memory):
    import duckdb
    con = duckdb.connect(config={"memory_limit": memory, "temp_directory": os.environ["SPILL"]})
    for setting in ("enable_progress_bar", "preserve_insertion_order"): con.execute(f"SET {setting} = false")
    return con


def engine_of(memory):
    from memtag_research.data.engine import connect
    con = connect(memory_limit=memory)
    con.raw_sql(f"SET temp_directory = '{os.environ['SPILL']}'")
    return con


def keep(store, size, args, results, packages, **more):
    "Add a size to results.json; every size there, in order."
    everything = json.loads(store.read_text()) if store.exists() else {}
    everything[size] = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"), "cores": os.cpu_count(), "python": platform.python_version(),
        "rounds": args.rounds, "versions": {p: version(p) for p in packages}, "load": os.getloadavg()[2],
        "engine_memory": args.engine_memory + (f" (SQL {args.reference_memory})" if args.reference_memory else ""),
        "results": results, **more}
    store.write_text(json.dumps(everything, indent=1) + "\n")
    return json.loads(store.read_text())


def section(title, figures, roads, reference):
    "Markdown of one size: a row a road."
    versions = ", ".join(f"{k} {v}" for k, v in figures["versions"].items())
    head = [f"\n## {title}\n", f"{figures['date']}, {figures['cores']} cores (load {figures['load']:.1f}), "
            f"{figures['rounds']} rounds, DuckDB memory_limit {figures['engine_memory']}; Python {figures['python']}, {versions}.\n",
            "| road | wall s | × | CPU s | × | peak GB |", "|---|---|---|---|---|---|"]
    return "\n".join(head + [_row(label, figures["results"][road], figures["results"][reference])
                             for road, label in roads.items() if road in figures["results"]])


def _row(label, runs, reference):
    if isinstance(runs, str): return f"| {label} | {runs} | | | | |"
    median = {k: statistics.median(r[k] for r in runs) for k in ("wall", "cpu", "peak")}
    ratio = {k: statistics.median(r[k] / s[k] for r, s in zip(runs, reference, strict=True)) for k in ("wall", "cpu")}
    return (f"| {label} | {median['wall']:.2f} | {ratio['wall']:.2f} | {median['cpu']:.2f} | {ratio['cpu']:.2f} | "
            f"{median['peak'] / 1e9:.2f} |")
