"""Lifetime value: summary, fit, prediction and discounted value; ours against hand-written SQL, lifetimes, clvkit and pymc-marketing.

    python benchmarks/clv/run.py --members cdnow,100_000 --rounds 3
    python benchmarks/clv/run.py --members 1_000_000 --rounds 1 --tasks fit --cases 'pareto_nbd_*'
    python benchmarks/clv/run.py --members 10_000_000 --leave-out 'fit/pareto_nbd_*/lifetimes=it takes 80 minutes'

Each road runs in a process of its own; the roads take turns within a round. Before a ratio is printed, summaries are compared
cell for cell, fits by the log-likelihood of both parameter sets under our formula, predictions member by member. Roads of other
packages run in a virtual environment of their own (`--others VENV/bin/python`) and are left out where there is none.
Figures go to results.md and results.json beside this file, one entry for each size, task and case.
"""
import argparse
import fnmatch
import json
import math
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import harness  # noqa: E402  the folder above is not a package
import roads as made  # noqa: E402
from generate import generate, generate_lines  # noqa: E402

MODELS = {"bgnbd": "BG/NBD", "mbgnbd": "MBG/NBD", "pareto_nbd": "Pareto/NBD", "gamma_gamma": "Gamma-Gamma"}
REPEAT = [f"{model}_{unit}" for model in MODELS if model != "gamma_gamma" for unit in (1, 7)]
CASES = {"summary": ["1", "7"], "fit": [*REPEAT, "gamma_gamma"], "predict": REPEAT, "clv": REPEAT, "value": ["lines", "days"]}
LABELS = {"ours": "ours", "summary": "the summary alone", "duckdb_sql": "hand-written DuckDB SQL", "lifetimes": "lifetimes",
          "pymc_marketing": "pymc-marketing, map", "clvkit": "clvkit"}
OTHERS = ("pymc_marketing", "clvkit")
TITLES = {"summary": "From days of members to x, t_x, T and mean spend", "fit": "Fit, from x, t_x, T in memory",
          "predict": "Expected purchases of every member in 39 weeks", "clv": "Value of every member in 12 months, discounted",
          "value": "From order lines (ten a member), or from days of members, to the value of every member"}
ABOUT = (
    "Written by `benchmarks/clv/run.py`. Medians over the rounds; `×` is the median of the ratios to the first row of the case in the "
    "same round: how many times as long a road takes as ours (as the hand-written SQL, for the summary). Imports and reading of frames "
    "are not in the times; peak memory is that of the whole process. Simulated members join over two years and follow Pareto/NBD and "
    "Gamma-Gamma with the parameters published for CDNOW (`generate.py`). Fits: all members, as users of lifetimes fit, its own "
    "settings; ours groups equal members, and that is in the time. `nats` says by how much the log-likelihood at a road's parameters, "
    "by our formula, is less than at ours: what a road leaves on the table. pymc-marketing finds the mode of a posterior with "
    "its own priors, so its parameters differ by the priors too, and its compiling of C code is done before the clock. CPU is counted "
    "in ticks of 10 ms: no ratio is given to less than five. Predictions: the same parameters (of our fit) for both; `apart` is the "
    "largest relative difference of a member and that of the sum; members for whom a road has no finite number are counted. "
    "Our value is expected purchases at twelve monthly horizons, discounted, times `expected_spend`; a month is what "
    "lifetimes takes for one (30 days, or 4.345 weeks). The last table starts from order lines as `benchmarks/rfm/generate.py` makes "
    "them, or from the days of members that ingest keeps of them, and ends with a table of the engine that holds every member's "
    "`p_alive`, `p_zero`, purchases and value: the weekly summary, fits of BG/NBD and Gamma-Gamma, and predictions; its `×` says how "
    "many times the summary alone that is.")


def main():
    args = _arguments()
    for size in args.members.replace("_", "").split(","):
        folder = Path(args.data) / f"clv_{size}"
        folder.mkdir(parents=True, exist_ok=True)
        try: measure(args, size, folder)
        finally:
            if not args.keep: shutil.rmtree(folder)


def _arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--members", default="cdnow,100_000", help="comma-separated: cdnow, or how many to simulate")
    parser.add_argument("--tasks", default=",".join(CASES), help="comma-separated")
    parser.add_argument("--cases", default="*", help="pattern, as in pareto_nbd_*; the summary's are 1 and 7")
    parser.add_argument("--leave-out", action="append", default=[], metavar="TASK/CASE/ROAD=REASON", help="patterns; may be repeated")
    parser.add_argument("--others", help="python of a virtual environment with clvkit, pymc-marketing and pyarrow")
    return harness.arguments(parser).parse_args()


def measure(args, size, folder):
    "Every task and case asked for; results are written after each."
    if args.tasks != "value": generate(size, folder / "member_days.parquet")
    for task in args.tasks.split(","):
        for case in (c for c in CASES[task] if fnmatch.fnmatch(c, args.cases)):
            _prepare(task, case, size, folder, args)
            print(f"-- {size} {task} {case}", flush=True)
            write(args, size, task, case, *_case(args, size, folder, task, case))


def _prepare(task, case, size, folder, args):
    "What a task stands on, where an earlier task has not left it."
    if task == "summary": return
    if task == "value": return generate_lines(size, folder)
    unit = made.split(case)[1]
    if not _out(folder, "summary", unit, "duckdb_sql").exists(): _run(args, size, folder, "summary", str(unit), "duckdb_sql", True)
    for fit in () if task == "fit" else (case, "gamma_gamma"):
        if not _out(folder, "fit", fit, "ours").exists():
            if fit == "gamma_gamma": _prepare("fit", fit, size, folder, args)
            _run(args, size, folder, "fit", fit, "ours", True)


def _case(args, size, folder, task, case):
    "Road → measurements or the reason for which there are none; and how the roads agree."
    roads = [f.__name__.removeprefix(f"{task}_") for f in made.TASKS[task]]
    reference = {"summary": "duckdb_sql", "value": "summary"}.get(task, "ours")
    left = {road: why for road in roads if (why := _left_out(args, task, case, road))}
    agreement = {}

    def check(road):
        if road != reference: agreement[road] = _check(task, case, road, folder)

    results = harness.take_turns([r for r in roads if r not in left], reference, args.rounds,
                                 lambda road, save: _run(args, size, folder, task, case, road, save), check)
    return {road: left.get(road) or results[road] for road in roads}, agreement, reference


def _left_out(args, task, case, road):
    "Why a road is not run, or None."
    for pattern, _, why in (option.partition("=") for option in args.leave_out):
        if fnmatch.fnmatch(f"{task}/{case}/{road}", pattern): return f"left out{': ' if why else ''}{why}"
    if road == "clvkit" and case.startswith("pareto"): return "has no such model"
    if road in OTHERS and not (args.others and Path(args.others).exists()): return "not installed"
    return None


def _run(args, size, folder, task, case, road, save=False):
    "Figures of one process, or why there are none."
    memory = args.reference_memory or args.engine_memory if road == "duckdb_sql" else args.engine_memory
    python = args.others if road in OTHERS else sys.executable
    out = str(_out(folder, task, case, road)) if save else "-"
    return harness.watched([python, str(HERE / "roads.py"), task, case, road, size, str(folder), out, memory], args, folder / "spill")


def _out(folder, task, case, road):
    "Where a road leaves what it found; the summary by SQL is the one that the other tasks read."
    if task == "summary": return folder / (f"summary_{case}.parquet" if road == "duckdb_sql" else f"summary_{case}_{road}.parquet")
    return folder / f"{task}_{case}_{road}.{ {'fit': 'json', 'value': 'parquet'}.get(task, 'npy')}"


def _check(task, case, road, folder):
    "How a road agrees with the reference; stop where it is not the same, or better by more than rounding."
    if task == "summary":
        columns = "member_id, x, t_x, T, repeat_mean_cents"
        wanted, found = (f"SELECT {columns} FROM '{_out(folder, task, case, r)}'" for r in ("duckdb_sql", road))
        return harness.compare(road, wanted, found, folder / "spill")
    if task == "value":
        found = f"SELECT member_id, x, t_x FROM '{_out(folder, task, case, road)}' WHERE isfinite(clv_cents) AND clv_cents >= 0"
        return harness.compare(road, f"SELECT member_id, x, t_x FROM '{_out(folder, task, case, 'summary')}'", found, folder / "spill")
    figures = json.loads(subprocess.run([sys.executable, HERE / "roads.py", task, case, "judge", "-", folder, road, "-"],
                                        check=True, stdout=subprocess.PIPE, text=True).stdout)
    print(road, figures, flush=True)
    if task == "fit" and -figures["less"] > max(1e-3, 1e-9 * abs(figures["log_likelihood"])):
        raise SystemExit(f"{case}: the maximum of {road} is better than ours by {-figures['less']:.6g}")
    if task != "fit" and (figures["ours_unknown"] or abs(figures["sum"]) > 1e-6):
        raise SystemExit(f"{task} {case}: {road} and ours are {figures['sum']:.2g} apart in the sum ({figures})")
    return figures


def write(args, size, task, case, results, agreement, reference):
    "Add this case to results.json and print every size to results.md."
    packages = ("duckdb", "ibis-framework", "pandas", "numpy", "scipy", "lifetimes")
    everything = harness.keep(HERE / "results.json", f"{size} {task} {case}", args, results, packages, agreement=agreement,
                              reference=reference, others=_others(args))
    (HERE / "results.md").write_text(page(everything))
    print("\n".join(_rows(case, everything[f"{size} {task} {case}"])), flush=True)


def _others(args):
    "Versions in the other environment."
    if not (args.others and Path(args.others).exists()): return {}
    code = "import json, importlib.metadata as m; print(json.dumps({p: m.version(p) for p in ('pymc-marketing', 'pymc', 'clvkit')}))"
    return json.loads(subprocess.run([args.others, "-c", code], check=True, stdout=subprocess.PIPE, text=True).stdout)


def page(everything):
    "results.md."
    sizes = sorted({key.split()[0] for key in everything}, key=lambda s: 0 if s == "cdnow" else int(s))
    return "\n".join(["# " + __doc__.splitlines()[0].rstrip("."), "", ABOUT, *(section(everything, size) for size in sizes)]) + "\n"


def section(everything, size):
    "One size: a table a task."
    title = "CDNOW, 2,357 members, calibration until 1997-09-30" if size == "cdnow" else f"{int(size):,} members"
    parts = [f"\n## {title}\n", _circumstances([f for key, f in everything.items() if key.split()[0] == size])]
    for task in CASES:
        cases = {case: everything[key] for case in CASES[task] if (key := f"{size} {task} {case}") in everything}
        if not cases: continue
        last = {"summary": "cells", "fit": "nats", "value": "members"}.get(task, "apart")
        parts += [f"\n### {TITLES[task]}\n", f"| case | road | rounds | wall s | × | CPU s | × | peak GB | {last} |",
                  "|---|---|---|---|---|---|---|---|---|", *(row for case, figures in cases.items() for row in _rows(case, figures))]
    return "\n".join(parts)


def _circumstances(entries):
    "When and on what all tables of a size were measured."
    dates, loads = sorted({e["date"] for e in entries}), [e["load"] for e in entries]
    versions = {k: v for e in entries for k, v in (e["versions"] | e["others"]).items()}
    return (f"{' and '.join(dates)}, {entries[0]['cores']} cores (load {min(loads):.1f} to {max(loads):.1f}), DuckDB memory_limit "
            f"{entries[0]['engine_memory']}; Python {entries[0]['python']}, {', '.join(f'{k} {v}' for k, v in versions.items())}.")


def _rows(case, figures):
    "A row a road, the reference first."
    reference = figures["results"][figures["reference"]]
    roads = sorted(figures["results"], key=lambda road: road != figures["reference"])
    return [_row(f"| {_title(case, reference)} | {LABELS[road]} |", figures["results"][road], reference,
                 _agreement(road, figures)) for road in roads]


def _title(case, reference):
    if case in CASES["value"]: return {"lines": "from order lines", "days": "from days of members"}[case] + (
        f" ({groups:,} groups)" if (groups := reference[0].get("groups")) else "")
    model, unit = made.split(case)
    name = f"{MODELS[model]}, " if model in MODELS and case != model else MODELS.get(case, "")
    unit = "" if case == "gamma_gamma" else "days" if unit == 1 or case == "1" else "weeks"
    groups = f" ({reference[0]['groups']:,} groups)" if "groups" in reference[0] else ""
    return f"{name}{unit}{groups}"


def _row(label, runs, reference, agreement):
    if isinstance(runs, str): return f"{label} | {runs} | | | | | |"
    median = {k: statistics.median(r[k] for r in runs) for k in ("wall", "cpu", "peak")}
    ratio = {k: statistics.median(r[k] / s[k] if s[k] >= least else math.nan for r, s in zip(runs, reference, strict=True))
             for k, least in (("wall", 0), ("cpu", .05))}
    return (f"{label} {len(runs)} | {_seconds(median['wall'])} | {_times(ratio['wall'])} | {_seconds(median['cpu'])} | "
            f"{_times(ratio['cpu'])} | {median['peak'] / 1e9:.2f} | {agreement} |")


def _seconds(s): return f"{s:.1f}" if s >= 100 else f"{s:.2f}" if s >= 1 else f"{s:.3f}"
def _times(t): return "–" if math.isnan(t) else f"{t:,.0f}" if t >= 100 else f"{t:.1f}" if t >= 10 else f"{t:.2f}"


def _agreement(road, figures):
    "The last cell."
    if road == figures["reference"]: return ""
    found = figures["agreement"].get(road)
    if not found: return "equal"                     # a table that is not is no result
    if "less" in found: return f"{found['less']:.2g}"
    return f"{found['most']:.1g} (sum {abs(found['sum']):.0e})" + (f", {found['unknown']:,} none" if found["unknown"] else "")


if __name__ == "__main__": main()
