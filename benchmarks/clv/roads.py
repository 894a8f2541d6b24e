"""One task by one road, in a process of its own.

    python benchmarks/clv/roads.py TASK CASE ROAD SIZE FOLDER OUT MEMORY_LIMIT

TASK is summary, fit, predict, clv or value; CASE the model and the days of its unit, as in bgnbd_7 (the summary has the days
alone, Gamma-Gamma, which knows no time, the model alone; the value starts from `lines` or `days`). `judge` instead of a road
compares what the roads have left in FOLDER.
Prints one line of JSON: wall and CPU seconds of the work alone (imports and reading of frames out), peak memory of the process.
"""
import json
import os
import sys
import warnings
from contextlib import redirect_stdout
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness import duckdb_of, engine_of, perform

HORIZON, MONTH = {1: 273, 7: 39}, {1: 30, 7: 4.345}   # 39 weeks; a month as lifetimes counts it
MONTHS, DISCOUNT = 12, .01
SQL = """
CREATE TEMP TABLE result AS
WITH days AS (
    SELECT member_id, local_date, net_cents, purchase_days,
           purchase_days > 0 AND (cancelled_date IS NULL OR cancelled_date >= DATE '{as_of}') AS bought
    FROM read_parquet('{path}') WHERE local_date < DATE '{as_of}'),
members AS (
    SELECT member_id, min(local_date) FILTER (bought) AS first_day, max(local_date) FILTER (bought) AS last_day,
           sum(purchase_days) FILTER (bought)::BIGINT - 1 AS x
    FROM days GROUP BY member_id HAVING first_day IS NOT NULL),
money AS (
    SELECT member_id, sum(net_cents)::BIGINT AS cents FROM days JOIN members USING (member_id)
    WHERE local_date > first_day GROUP BY member_id)
SELECT member_id, x, (last_day - first_day) / {unit} AS t_x, (DATE '{as_of}' - 1 - first_day) / {unit} AS T,
       CASE WHEN x > 0 THEN coalesce(cents, 0) / x END AS repeat_mean_cents
FROM members LEFT JOIN money USING (member_id)
"""


def split(case):
    "Model and unit of a case."
    model, _, unit = case.rpartition("_")
    return (model, int(unit)) if unit.isdigit() else (case, 1)


def frame_of(case, folder):
    "The summary in memory."
    import pandas as pd
    columns = ["x", "repeat_mean_cents"] if case == "gamma_gamma" else ["x", "t_x", "T", "repeat_mean_cents"]
    return pd.read_parquet(f"{folder}/summary_{split(case)[1]}.parquet", columns=columns)


def parameters_of(case, folder, road="ours"): return json.loads(Path(f"{folder}/fit_{case}_{road}.json").read_text())
def save_parameters(values, out): Path(out).write_text(json.dumps({k: float(v) for k, v in values.items()}))


def save_column(values, out):
    import numpy as np
    np.save(out, np.asarray(values, dtype=float))


def summary_ours(case, size, folder, memory):
    from generate import as_of

    from memtag_research.models.btyd import btyd_summary
    con, unit = engine_of(memory), int(case)

    def work():
        made = btyd_summary(con.read_parquet(f"{folder}/member_days.parquet"), as_of(size), unit)
        con.raw_sql(f"CREATE TEMP TABLE result AS {con.compile(made)}")
        return con.table("result")
    return work, lambda result, out: result.to_parquet(out)


def summary_duckdb_sql(case, size, folder, memory):
    from generate import as_of
    con, statement = duckdb_of(memory), SQL.format(as_of=as_of(size), path=f"{folder}/member_days.parquet", unit=int(case))
    return lambda: con.execute(statement) and None, lambda _, out: con.execute(f"COPY result TO '{out}' (FORMAT parquet)")


def fit_ours(case, size, folder, memory):
    import ibis.backends.duckdb  # noqa: F401  an import, which Gamma-Gamma would else do on the clock

    from memtag_research.models import fits
    model, unit = split(case)
    frame, fit = frame_of(case, folder), getattr(fits, f"fit_{model}")

    def work():
        made = fit(frame) if case == "gamma_gamma" else fit(frame, period_days=unit)
        return made.parameters, {"groups": made.groups, "members": made.members}
    return work, save_parameters


FITTERS = {"bgnbd": "BetaGeoFitter", "mbgnbd": "ModifiedBetaGeoFitter", "pareto_nbd": "ParetoNBDFitter", "gamma_gamma": "GammaGammaFitter"}


def fit_lifetimes(case, size, folder, memory):
    "As its users fit: all members, its own settings; for Gamma-Gamma those with repeat purchases."
    import lifetimes
    frame, fitter = _named(frame_of(case, folder)), getattr(lifetimes, FITTERS[split(case)[0]])

    def work():
        if case != "gamma_gamma": return fitter().fit(frame.frequency, frame.recency, frame["T"]).params_
        some = frame[frame.frequency > 0]
        return fitter().fit(some.frequency, some.monetary_value).params_
    return work, save_parameters


def _named(frame):
    "The summary as lifetimes has it, money in currency units and 0 where there is none."
    frame["repeat_mean_cents"] = frame.repeat_mean_cents.fillna(0) / 100
    return frame.rename(columns={"x": "frequency", "t_x": "recency", "repeat_mean_cents": "monetary_value"})


def fit_pymc_marketing(case, size, folder, memory):
    "The posterior's mode under the priors that it comes with."
    os.environ.setdefault("PYTENSOR_FLAGS", f"base_compiledir={sys.prefix}/pytensor")
    import pymc_marketing.clv as clv
    model = getattr(clv, {"bgnbd": "BetaGeoModel", "mbgnbd": "ModifiedBetaGeoModel", "pareto_nbd": "ParetoNBDModel",
                          "gamma_gamma": "GammaGammaModel"}[split(case)[0]])
    frame = _named(frame_of(case, folder)).assign(customer_id=lambda d: range(len(d)))
    if case == "gamma_gamma": frame = frame[frame.frequency > 0]

    def fitted(frame):
        made = model(data=frame)
        made.fit(method="map", progressbar=False)
        return {name: float(made.fit_result[name].values.ravel()[0]) for name in NAMES[split(case)[0]]}

    with redirect_stdout(sys.stderr): fitted(frame.iloc[:500])      # its C code is compiled once and kept: not on the clock
    return lambda: fitted(frame), save_parameters


def fit_clvkit(case, size, folder, memory):
    "From a summary as it makes one; it has no Pareto/NBD."
    import pandas as pd
    from clvkit import CustomerBase
    from clvkit.clv import bgnbd, gamma_gamma, mbgnbd
    model = {"bgnbd": bgnbd.BGNBD, "mbgnbd": mbgnbd.MBGNBD, "gamma_gamma": gamma_gamma.GammaGamma}[split(case)[0]]
    frame, unit = _named(frame_of(case, folder)), "D" if split(case)[1] == 1 else "W"
    base = CustomerBase(frame, time_unit=unit, collapse="D", observation_period_end=pd.Timestamp("2024-01-01"), has_monetary=True,
                        on_negative="raise")

    def work(): return dict(zip(NAMES[split(case)[0]], model().fit(base).params_, strict=True))
    return work, save_parameters


NAMES = {"bgnbd": ("r", "alpha", "a", "b"), "mbgnbd": ("r", "alpha", "a", "b"), "pareto_nbd": ("r", "alpha", "s", "beta"),
         "gamma_gamma": ("p", "q", "v")}


def _fitted(case, folder):
    "A model of lifetimes with our parameters."
    import lifetimes
    import pandas as pd
    made = getattr(lifetimes, FITTERS[split(case)[0]])()
    made.params_ = pd.Series(parameters_of(case, folder))
    if hasattr(made, "conditional_expected_number_of_purchases_up_to_time"):
        made.predict = made.conditional_expected_number_of_purchases_up_to_time
    return made


def predict_ours(case, size, folder, memory):
    from memtag_research.models.predictions import expected_purchases
    (model, unit), frame, parameters = split(case), frame_of(case, folder), parameters_of(case, folder)
    return lambda: expected_purchases(model, parameters, HORIZON[unit], frame.x, frame.t_x, frame["T"]), save_column


def predict_lifetimes(case, size, folder, memory):
    frame, made, t = _named(frame_of(case, folder)), _fitted(case, folder), HORIZON[split(case)[1]]
    return lambda: made.predict(t, frame.frequency, frame.recency, frame["T"]), save_column


def clv_ours(case, size, folder, memory):
    "Expected purchases at twelve monthly horizons, each month's discounted, times the expected value of one."
    import numpy as np

    from memtag_research.models.predictions import expected_purchases, expected_spend
    (model, unit), frame = split(case), frame_of(case, folder)
    parameters, spend = parameters_of(case, folder), parameters_of("gamma_gamma", folder)
    months = np.arange(1, MONTHS + 1)

    def work():
        until = expected_purchases(model, parameters, months * MONTH[unit], frame.x, frame.t_x, frame["T"])
        discount = (1 + DISCOUNT) ** -months
        discount[:-1] -= discount[1:].copy()        # of differences of months: each horizon is added once and taken off once
        return discount @ until * expected_spend(spend, frame.x, frame.repeat_mean_cents / 100)
    return work, save_column


def clv_lifetimes(case, size, folder, memory):
    frame, made, spend = _named(frame_of(case, folder)), _fitted(case, folder), _fitted("gamma_gamma", folder)
    freq = {1: "D", 7: "W"}[split(case)[1]]
    return lambda: spend.customer_lifetime_value(made, frame.frequency, frame.recency, frame["T"], frame.monetary_value, time=MONTHS,
                                                 discount_rate=DISCOUNT, freq=freq), save_column


def _until_summary(case, size, folder, memory):
    "The engine, and the statement that makes the summary of order lines, or of days that stand already."
    from generate import as_of

    from memtag_research.data.grains import member_days_grain
    from memtag_research.models.btyd import btyd_summary
    con = engine_of(memory)
    rows = con.read_parquet(f"{folder}/{'lines_days' if case == 'days' else 'lines'}.parquet")
    days = rows if case == "days" else member_days_grain(rows)
    return con, f"CREATE TEMP TABLE summary AS {con.compile(btyd_summary(days, as_of(size), 7))}"


def value_summary(case, size, folder, memory):
    "What has to be done before anybody can fit."
    con, statement = _until_summary(case, size, folder, memory)
    return lambda: con.raw_sql(statement) and None, lambda _, out: con.table("summary").to_parquet(out)


def value_ours(case, size, folder, memory):
    "The same, then both fits and the value of every member, as a table of the engine."
    from memtag_research.models.clv import predict_members
    from memtag_research.models.fits import fit_bgnbd, fit_gamma_gamma
    con, statement = _until_summary(case, size, folder, memory)

    def work():
        con.raw_sql(statement)
        summary = con.table("summary")
        buying, spend = fit_bgnbd(summary), fit_gamma_gamma(summary)
        con.raw_sql(f"CREATE TEMP TABLE result AS {con.compile(predict_members(summary, buying, spend))}")
        return con.table("result"), {"groups": buying.groups, "members": buying.members}
    return work, lambda result, out: result.to_parquet(out)


def judge(task, case, folder, road):
    "What a road's result has more than ours: log-likelihood by our formula, or members' figures."
    import numpy as np
    if task == "fit":
        ours, theirs = (_log_likelihood(case, folder, parameters_of(case, folder, r)) for r in ("ours", road))
        return {"log_likelihood": ours, "less": ours - theirs}
    ours, theirs = (np.load(f"{folder}/{task}_{case}_{r}.npy") for r in ("ours", road))
    known = np.isfinite(theirs)
    apart = np.abs(ours[known] / theirs[known] - 1)
    return {"sum": float(theirs[known].sum() / ours[known].sum() - 1), "most": float(apart.max()), "typical": float(np.median(apart)),
            "unknown": int((~known).sum()), "ours_unknown": int((~np.isfinite(ours)).sum())}


def _log_likelihood(case, folder, parameters):
    "Of all members, by our formula, a part at a time."
    import numpy as np
    import pandas as pd

    from memtag_research.models.btyd import btyd_groups
    from memtag_research.models.fits import MODELS
    frame, model = frame_of(case, folder), MODELS[split(case)[0]]
    if case == "gamma_gamma":
        frame = frame[(frame.x > 0) & (frame.repeat_mean_cents > 0)]
        groups = pd.DataFrame({"x": frame.x, "mean_spend": frame.repeat_mean_cents / 100, "members": 1})
    else: groups = btyd_groups(frame)
    logs, total = [np.log(parameters[p]) for p in model.parameters], 0.
    for first in range(0, len(groups), 200_000):
        part = groups.iloc[first:first + 200_000]
        rows = model.prepare(**{c: part[c].to_numpy("float64") for c in model.columns})
        total += model.likelihood(logs, rows).value @ part.members.to_numpy("float64")
    return float(total)


TASKS = {"summary": (summary_ours, summary_duckdb_sql), "fit": (fit_ours, fit_lifetimes, fit_clvkit, fit_pymc_marketing),
         "predict": (predict_ours, predict_lifetimes), "clv": (clv_ours, clv_lifetimes), "value": (value_summary, value_ours)}
ROADS = {f.__name__: f for roads in TASKS.values() for f in roads}


def main(task, case, road, size, folder, out, memory):
    warnings.simplefilter("ignore")
    if road == "judge": return print(json.dumps(judge(task, case, folder, out)))
    work, save = ROADS[f"{task}_{road}"](case, size, folder, memory)
    perform(_quiet(work), save, out, memory)


def _quiet(work):
    "Standard output is for the figures."
    def quiet():
        with redirect_stdout(sys.stderr): return work()
    return quiet


if __name__ == "__main__":
    try: main(*sys.argv[1:])
    except Exception as e:
        if type(e).__name__ not in ("ConvergenceError", "MemoryError"): raise
        print(e, file=sys.stderr)
        print(json.dumps("does not converge" if type(e).__name__ == "ConvergenceError" else "out of memory"))
