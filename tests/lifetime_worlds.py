"Members whose parameters are planted: drawn purchase by purchase from the story of each model, not from its likelihood."

from importlib.resources import files

import numpy as np
import pandas as pd

PLANTED = {"bgnbd": {"r": 0.8, "alpha": 5.0, "a": 0.9, "b": 2.5}, "mbgnbd": {"r": 0.9, "alpha": 6.0, "a": 0.8, "b": 1.8},
           "pareto_nbd": {"r": 0.9, "alpha": 6.0, "s": 0.8, "beta": 12.0}, "gamma_gamma": {"p": 4.0, "q": 3.5, "v": 20.0},
           "sbg": {"alpha": 0.7, "beta": 2.0}, "bgbb": {"alpha": 1.2, "beta": 0.8, "gamma": 0.7, "delta": 2.8}}


def ages(rng, n, longest): return rng.uniform(longest / 3, longest, n)


def repeat_world(model, n, seed, longest=78.0, buying=1.0, leaving=1.0, future=0.0, **planted):
    """x, t_x, T of n members who join over time; `alive` at T, and purchases `x_future` in the time after.

    `buying` and `leaving` multiply the rates (of leaving: the odds of Pareto/NBD's rate, or a and b of the others) of each member."""
    rng, p = np.random.default_rng(seed), PLANTED[model] | planted
    T, rate = ages(rng, n, longest), rng.gamma(p["r"], 1 / (p["alpha"] / np.broadcast_to(buying, n)))
    if model == "pareto_nbd": death, quit_ = rng.exponential(1 / rng.gamma(p["s"], 1 / (p["beta"] / np.broadcast_to(leaving, n)))), np.zeros(n)
    else: death, quit_ = np.full(n, np.inf), rng.beta(p["a"] * np.broadcast_to(leaving, n), p["b"] * np.broadcast_to(leaving, n))
    x, t_x, later, now = np.zeros(n), np.zeros(n), np.zeros(n), np.zeros(n)
    alive = rng.random(n) >= quit_ if model == "mbgnbd" else np.ones(n, bool)    # MBG/NBD: the first purchase can be the last
    alive_at_T = alive & (death > T)
    while alive.any():
        now = now + rng.exponential(1 / rate)
        buys = alive & (now <= np.minimum(T + future, death))
        seen = buys & (now <= T)
        x, t_x, later = x + seen, np.where(seen, now, t_x), later + (buys & ~seen)
        quits = buys & (rng.random(n) < quit_)
        alive_at_T &= ~(quits & seen)
        alive = buys & ~quits
    return pd.DataFrame({"x": x, "t_x": t_x, "T": T, "alive": alive_at_T, "x_future": later})


def spend_world(n, seed, **planted):
    "x and mean spend in cents of members who came back."
    rng, p = np.random.default_rng(seed), PLANTED["gamma_gamma"] | planted
    x, rate = rng.geometric(0.3, n), rng.gamma(p["q"], 1 / p["v"], n)
    return pd.DataFrame({"x": x, "repeat_mean_cents": 100 * rng.gamma(p["p"] * x, 1 / rate) / x})


def contracts(n, seed, periods=8, **planted):
    "Survivors of n contracts at the start and after each period."
    rng, p = np.random.default_rng(seed), PLANTED["sbg"] | planted
    lost_in = rng.geometric(rng.beta(p["alpha"], p["beta"], n))
    return [int((lost_in > t).sum()) for t in range(periods + 1)]


def opportunities(n, seed, periods=10, **planted):
    "x, t_x, n of members with so many opportunities."
    rng, p = np.random.default_rng(seed), PLANTED["bgbb"] | planted
    buys, leaves = rng.beta(p["alpha"], p["beta"], n), rng.beta(p["gamma"], p["delta"], n)
    lived = rng.geometric(leaves) - 1
    bought = (rng.random((n, periods)) < buys[:, None]) & (np.arange(1, periods + 1) <= lived[:, None])
    return pd.DataFrame({"x": bought.sum(axis=1), "t_x": (bought * np.arange(1, periods + 1)).max(axis=1), "n": periods})


def cdnow_log():
    "The CDNOW sample as lifetimes ships it, read without its module of data sets: a row an order."
    with open(files("lifetimes") / "datasets" / "CDNOW_sample.txt") as f: rows = [r.split() for r in f]
    log = pd.DataFrame(rows, columns=["_", "member_id", "day", "cds", "dollars"])
    log["ts"], log["dollars"] = pd.to_datetime(log.day), log.dollars.astype(float)
    return log.assign(net_cents=(log.dollars * 100).round().astype("int64"), local_date=log.ts.dt.date)


def cdnow_summary():
    "x, t_x, T in weeks and mean repeat spend of the published calibration, by pandas; a row a member, orders merged by day."
    log = cdnow_log()
    days = log[log.ts < "1997-10-01"].groupby(["member_id", "ts"], as_index=False).dollars.sum()
    frame = days.groupby("member_id").ts.agg(["min", "max", "size"])
    repeat = days[days.ts > days.groupby("member_id").ts.transform("min")].groupby("member_id").dollars.mean()
    return pd.DataFrame({"x": frame["size"] - 1., "t_x": (frame["max"] - frame["min"]).dt.days / 7,
                         "T": (pd.Timestamp("1997-09-30") - frame["min"]).dt.days / 7, "repeat_mean_cents": repeat * 100})
