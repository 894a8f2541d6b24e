"RFM against hand-worked orders, plain pandas, lifetimes, the other engine, and the future that it must not see."
import json
import subprocess
import sys
import warnings
from datetime import date, datetime, timedelta
from fractions import Fraction

import ibis
import numpy as np
import pandas as pd
import pytest
from histories import DAY0, dates, engine, histories, lines_of, on, poisoned
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from lifetime_worlds import cdnow_log

from memtag_research.core import NotComputable, ParameterError
from memtag_research.data.engine import as_table, connect, to_frame
from memtag_research.data.grains import member_days_grain
from memtag_research.language import label
from memtag_research.measures import rfm
from memtag_research.measures.rfm import (
    RFM_CLASSES,
    RFM_SEGMENTS,
    RfmCuts,
    plot_rfm,
    rfm_class,
    rfm_cuts,
    rfm_migration,
    rfm_score,
    rfm_segment,
    rfm_summary,
)

COLUMNS = ["member_id", "orders", "purchase_days", "recency_days", "spend_cents", "first_at", "last_at", "tenure_days"]
few = settings(max_examples=6, deadline=None, derandomize=True)      # each builds grains in an engine
many = settings(max_examples=25, deadline=None, derandomize=True)


def line(order_id, member_id, day, net_cents, kind="sale", original=None, hour=10):
    "A line of January 2017."
    return dict(line_id=f"{order_id}-{kind}-{net_cents}", order_id=order_id, member_id=member_id, line_kind=kind,
                ts=datetime(2017, 1, day, hour), local_date=date(2017, 1, day), quantity=1, net_cents=net_cents,
                original_order_id=original, channel=None if day % 2 else "shop", store_id="s1")


JANUARY = pd.DataFrame([
    line("o1", "ada", 2, 1000), line("o1", "ada", 2, 500), line("o2", "ada", 2, 700, hour=12),   # two orders, one day
    line("o3", "ada", 6, 900), line("r3", "ada", 10, -400, "return", "o3"), line("q3", "ada", 12, -500, "return", "o3"),
    line("o4", "bo", 3, 2500), line("o4", "bo", 3, 300, "shipping"), line("r0", "bo", 9, -200, "return"),
    line("o5", "cy", 4, 0, "gift"), line("o6", None, 4, 800), line("o7", "di", 11, 100), line("o8", "di", 5, 5000, "topup"),
    line("o9", "ed", 3, 650), line("r9", "ed", 3, -650, "return", "o9"), line("o10", "ed", 3, 150, hour=15)])


def summary_of(lines, as_of, con=None, **options):
    "Order lines → summary in pandas, by member."
    days = member_days_grain(as_table(lines, con or engine()))
    return to_frame(rfm_summary(days, as_of, **options)).sort_values("member_id", ignore_index=True)


def by_hand(lines, as_of):
    "The same in pandas, order by order, from nothing but the definitions."
    known, rows, last_day = lines[lines.local_date < as_of], [], as_of - timedelta(days=1)
    for member, mine in known[known.member_id.notna()].groupby("member_id"):
        standing = []
        for order_id, order in mine[mine.line_kind.isin(["sale", "gift", "service"])].groupby("order_id"):
            refunds = known[(known.line_kind == "return") & (known.original_order_id == order_id)]
            if order.net_cents.sum() > 0 and order.net_cents.sum() + refunds.net_cents.sum() > 0: standing.append(order)
        if not standing: continue
        orders, money = pd.concat(standing), mine[mine.line_kind.isin(["sale", "return", "exchange", "gift", "service"])]
        rows.append([member, len(standing), orders.local_date.nunique(), (last_day - orders.local_date.max()).days,
                     int(money.net_cents.sum()), orders.ts.min(), orders.ts.max(), (last_day - orders.local_date.min()).days])
    return pd.DataFrame(rows, columns=COLUMNS)


def assert_same(left, right):
    "Cell for cell, integers as integers."
    pd.testing.assert_frame_equal(left.reset_index(drop=True), right.reset_index(drop=True), check_dtype=False, check_exact=True)


# the summary

def test_hand_worked():
    "Every member of JANUARY worked out on paper at the end of the 12th."
    found = summary_of(JANUARY, "2017-01-13")
    expected = pd.DataFrame([
        # o1 and o2 of the 2nd stand; o3 is refunded in two parts, whole since the 12th
        ["ada", 2, 1, 10, 2200, datetime(2017, 1, 2, 10), datetime(2017, 1, 2, 12), 10],
        # freight is no sale; the return without reference takes money only
        ["bo", 1, 1, 9, 2300, datetime(2017, 1, 3, 10), datetime(2017, 1, 3, 10), 9],
        # the top-up of the 5th is neither an order nor money
        ["di", 1, 1, 1, 100, datetime(2017, 1, 11, 10), datetime(2017, 1, 11, 10), 1],
        # o9 is refunded on its own day, o10 of the same day stands
        ["ed", 1, 1, 9, 150, datetime(2017, 1, 3, 15), datetime(2017, 1, 3, 15), 9],
    ], columns=COLUMNS)   # cy has a free bag only, o6 has no member
    assert_same(found, expected)
    assert list(found) == COLUMNS


def test_hand_worked_before_the_refund_is_whole():
    "A day earlier o3 stands with 500 of its 900 left, and Ada has two purchase days."
    ada = summary_of(JANUARY, "2017-01-12").iloc[0]
    assert ada[["orders", "purchase_days", "recency_days", "spend_cents", "tenure_days"]].tolist() == [3, 2, 5, 2700, 9]


def test_window_counts_the_last_days_only():
    found = summary_of(JANUARY, "2017-01-13", window_days=3).set_index("member_id")   # 10th to 12th
    assert found.orders.to_dict() == {"ada": 0, "bo": 0, "di": 1, "ed": 0}
    assert found.spend_cents.to_dict() == {"ada": -900, "bo": 0, "di": 100, "ed": 0}
    whole = summary_of(JANUARY, "2017-01-13").set_index("member_id")
    for column in ("recency_days", "tenure_days", "first_at", "last_at"): assert found[column].equals(whole[column])


@few
@given(histories, dates)
def test_against_plain_pandas(history, when):
    lines = lines_of(history)
    for as_of in map(on, when):
        assume(as_of > lines.local_date.min())
        assert_same(summary_of(lines, as_of), by_hand(lines, as_of))


def cdnow():
    "Baskets of more than nothing."
    return cdnow_log().query("net_cents > 0").reset_index(drop=True)


def test_against_lifetimes_on_cdnow():
    "frequency + 1 = purchase days, T = tenure, recency = tenure - recency_days, for every member of the sample."
    from lifetimes.utils import summary_data_from_transaction_data
    log = cdnow()
    lines = log.assign(line_id=log.index.astype(str), order_id=log.index.astype(str), local_date=log.ts.dt.date,
                       line_kind="sale", quantity=1)[["line_id", "order_id", "member_id", "ts", "local_date", "line_kind",
                                                      "quantity", "net_cents"]]
    ours = summary_of(lines, "1997-10-01").set_index("member_id")
    theirs = summary_data_from_transaction_data(log, "member_id", "ts", observation_period_end="1997-09-30")
    assert len(ours) == len(theirs) > 2300
    assert (ours.purchase_days - 1 == theirs.frequency).all()
    assert (ours.tenure_days == theirs["T"]).all()
    assert (ours.tenure_days - ours.recency_days == theirs.recency).all()
    calibration = log[log.ts < "1997-10-01"]
    assert ours.spend_cents.sum() == calibration.net_cents.sum()
    assert ours.orders.sum() == len(calibration)


# what it must not see

def assert_blind_to_the_future(lines, as_of):
    "Whole, cut and poisoned tables give one answer."
    whole = summary_of(lines, as_of)
    assert_same(whole, summary_of(lines[lines.local_date < as_of], as_of))
    assert_same(whole, summary_of(poisoned(lines, as_of), as_of))


@few
@given(histories, st.integers(1, 90))
def test_cut_and_poison(history, day):
    lines = lines_of(history)
    assume(lines.local_date.min() < on(day))
    assert_blind_to_the_future(lines, on(day))


def test_cut_and_poison_of_january():
    for day in (4, 10, 12, 13): assert_blind_to_the_future(JANUARY, date(2017, 1, day))


@pytest.mark.parametrize("seen", ["rows", "ends"])
def test_cut_and_poison_would_notice(monkeypatch, seen):
    "The test above fails when the one filter lets later rows, or later cancellations, through."
    rows_only = lambda t, as_of, ends=None: t.filter(t.local_date < as_of)
    monkeypatch.setattr(rfm, "known", (lambda t, as_of, ends=None: t) if seen == "rows" else rows_only)
    with pytest.raises(AssertionError): assert_blind_to_the_future(JANUARY, date(2017, 1, 8))


def test_bad_dates():
    days = to_frame(member_days_grain(as_table(JANUARY, engine())))
    for as_of in ("2017-01-02", date(2016, 5, 1)):
        with pytest.raises(ParameterError, match="the log runs from 2017-01-02 to 2017-01-12"): rfm_summary(days, as_of)
    for as_of in ("2017-02-30", "2017", "yesterday", None, 20170113, datetime(2017, 1, 13, 8)):
        with pytest.raises(ParameterError, match="as_of must be a date"): rfm_summary(days, as_of)
    for window in (0, -3, 1.5, "30", True):
        with pytest.raises(ParameterError, match="window_days"): rfm_summary(days, "2017-01-13", window_days=window)
    with pytest.raises(NotComputable, match="no rows"): rfm_summary(days.head(0), "2017-01-13")
    with pytest.raises(ParameterError, match="lacks purchase_days"): rfm_summary(days.drop(columns="purchase_days"), "2017-01-13")
    with pytest.raises(ParameterError, match="2017-01-02 to 2017-01-12"):       # a grain that is not executed yet, too
        rfm_summary(member_days_grain(as_table(JANUARY, engine())), "2017-01-01")


def test_a_late_date_is_no_error():
    "Dates beyond the log only add to recency."
    found = summary_of(JANUARY, "2018-01-13")
    assert (found.recency_days - summary_of(JANUARY, "2017-01-13").recency_days == 365).all()


# scores

integers = st.integers(0, 8)
summaries = st.lists(st.tuples(integers, integers, st.integers(-300, 900)), min_size=1, max_size=30).map(
    lambda rows: pd.DataFrame(rows, columns=["recency_days", "orders", "spend_cents"]).assign(
        member_id=[f"m{i:02d}" for i in range(len(rows))], purchase_days=lambda t: (t.orders + 1) // 2))


def class_by_definition(values, n):
    "1 + how many cuts the value exceeds; the cut of share i/n is the smallest value that i/n of the values do not exceed."
    values, size = sorted(values), len(values)
    cuts = [next(v for v in values if Fraction(sum(w <= v for w in values), size) >= Fraction(i, n)) for i in range(1, n)]
    return lambda v: 1 + sum(v > c for c in cuts)


@many
@given(summaries, st.integers(2, 7), st.sampled_from(["orders", "purchase_days"]))
def test_scores_by_definition(summary, n, frequency):
    scored = rfm_score(summary, n=n, frequency=frequency)
    for score, column in (("r_score", "recency_days"), ("f_score", frequency), ("m_score", "spend_cents")):
        expected = summary[column].map(class_by_definition(summary[column], n))
        assert (scored[score] == (n + 1 - expected if score == "r_score" else expected)).all()
        assert scored[score].between(1, n).all()
        ordered = scored.sort_values(column, ascending=score != "r_score")[score]
        assert ordered.is_monotonic_increasing
        assert (scored.groupby(column)[score].nunique() == 1).all()     # equal members, equal scores


@few
@given(summaries, st.randoms(use_true_random=False))
def test_scores_do_not_depend_on_names_or_order(summary, random):
    scored, order = rfm_score(summary), list(range(len(summary)))
    random.shuffle(order)
    renamed = summary.iloc[order].assign(member_id=lambda t: "x" + t.member_id.str[::-1])
    shuffled = rfm_score(renamed)
    for column in ("r_score", "f_score", "m_score"):
        assert shuffled[column].tolist() == scored[column].iloc[order].tolist()


@few
@given(summaries, st.sampled_from(["mean", "median"]))
def test_tables_and_frames_agree(summary, cut):
    table = as_table(summary, engine())
    for function in (rfm_score, lambda s: rfm_class(s, cut), lambda s: rfm_segment(rfm_score(s))):
        assert_same(to_frame(function(table).order_by("member_id")), function(summary))


def test_thread_count_is_irrelevant():
    random = np.random.default_rng(7)
    member = pd.Series(random.integers(0, 3000, 40_000)).map("m{:04d}".format)
    day = random.integers(0, 300, 40_000)
    lines = pd.DataFrame(dict(order_id=[f"o{i // 2}" for i in range(40_000)], member_id=member[::2].repeat(2).to_numpy(),
                              local_date=[on(int(d)) for d in day[::2].repeat(2)], line_kind="sale", quantity=1,
                              net_cents=random.integers(0, 5000, 40_000)))
    lines["ts"] = pd.to_datetime(lines.local_date) + pd.Timedelta(hours=9)
    found = []
    for threads in (1, 4):
        days = member_days_grain(as_table(lines.sample(frac=1, random_state=threads), connect(threads=threads)))
        found.append(to_frame(rfm_score(rfm_summary(days, on(200))).order_by("member_id")))
    assert len(found[0]) > 2500
    assert_same(*found)


def test_frozen_cuts_score_another_date():
    "Through JSON and back; a member with the same values has the same scores, whatever the others do."
    days = member_days_grain(as_table(JANUARY, engine()))
    cuts = rfm_cuts(rfm_summary(days, "2017-01-07"), n=3, as_of="2017-01-07")
    again = RfmCuts.from_dict(json.loads(json.dumps(cuts.to_dict())))
    assert again == cuts and again.n == 3 and again.as_of == "2017-01-07"
    then, later = (to_frame(rfm_score(rfm_summary(days, d), again)).set_index("member_id") for d in ("2017-01-07", "2017-01-13"))
    assert then.loc["bo", "f_score"] == later.loc["bo", "f_score"]
    assert then.loc["bo", "r_score"] > later.loc["bo", "r_score"] == 1
    assert then.loc["ed", "m_score"] == later.loc["ed", "m_score"]


def test_bad_cuts_and_scores():
    frame = pd.DataFrame(dict(member_id=["a"], recency_days=[1], orders=[1], purchase_days=[1], spend_cents=[1]))
    with pytest.raises(ParameterError, match="from 2 to 100"): rfm_cuts(frame, n=1)
    with pytest.raises(ParameterError, match="Did you mean 'purchase_days'"): rfm_cuts(frame, frequency="purchase_day")
    with pytest.raises(ParameterError, match="how must be"): rfm_cuts(frame, how="ntile")
    with pytest.raises(ParameterError, match="ascending"): RfmCuts((1, 2), (2, 1), (1, 2))
    with pytest.raises(ParameterError, match="as many"): RfmCuts((1, 2), (1,), (1, 2))
    for how in ("quantile", "mean"):
        with pytest.raises(NotComputable, match="no cut points"): rfm_cuts(frame.head(0), how=how)
    with pytest.raises(ParameterError, match="lacks recency_days"): rfm_score(frame.drop(columns="recency_days"))
    with pytest.raises(ParameterError, match="makes? 5 classes"): rfm_class(frame, rfm_cuts(frame))
    with pytest.raises(ParameterError, match="Did you mean 'median'"): rfm_class(frame, "medain")


# classes and segments

def test_the_eight_classes():
    "All eight corners around the cut, and the corner at the cut itself: recent, but neither frequent nor high."
    cut = RfmCuts(recency_days=(10,), frequency=(2,), spend_cents=(500,))
    corners = pd.DataFrame([(f"{r}{f}{m}", 11 - r, 2 + f, 500 + m) for r in (0, 1) for f in (0, 1) for m in (0, 1)],
                           columns=["member_id", "recency_days", "orders", "spend_cents"])
    found = rfm_class(corners, cut).set_index("member_id").rfm_class
    assert found.to_dict() == {"111": "key_value", "011": "key_keep", "101": "key_develop", "001": "key_win_back",
                               "110": "general_value", "010": "general_keep", "100": "general_develop", "000": "general_win_back"}
    assert {"".join(map(str, key)): name for name, key in RFM_CLASSES.items()} == found.to_dict()


def test_classes_by_the_mean():
    summary = pd.DataFrame(dict(member_id=list("abc"), recency_days=[0, 30, 60], orders=[1, 2, 6], purchase_days=[1, 2, 2],
                                spend_cents=[100, 100, 100]))
    assert rfm_class(summary).rfm_class.tolist() == ["general_develop", "general_develop", "general_keep"]   # 30, 3, 100
    assert rfm_class(summary, frequency="purchase_days").rfm_class.tolist() == ["general_develop", "general_value", "general_keep"]


def test_segments_are_exclusive_and_exhaustive():
    cells = pd.DataFrame([(r, f) for r in range(1, 6) for f in range(1, 6)], columns=["r_score", "f_score"])
    named = rfm_segment(cells)
    for r, f, name in named.itertuples(index=False):
        rules = [n for n, ((r1, r2), (f1, f2)) in RFM_SEGMENTS.items() if r1 <= r <= r2 and f1 <= f <= f2]
        assert rules == [name]
    assert set(named.rfm_segment) == set(RFM_SEGMENTS) and len(RFM_SEGMENTS) == 11
    corner = named.set_index(["r_score", "f_score"]).rfm_segment
    assert [corner[c] for c in ((5, 5), (1, 1), (5, 1), (1, 5), (3, 3))] == ["champions", "lost", "new", "cannot_lose", "need_attention"]
    outside = rfm_segment(pd.DataFrame(dict(r_score=[6, 0], f_score=[1, 5])))
    assert outside.rfm_segment.isna().all()


def test_every_code_has_labels():
    for lang in ("en", "zh"):
        names = [label(f"rfm_class_{c}", lang) for c in RFM_CLASSES] + [label(f"rfm_segment_{c}", lang) for c in RFM_SEGMENTS]
        assert len(set(names)) == 19


@few
@given(summaries, summaries)
def test_migration_reconciles(before, after):
    after = after.assign(member_id=[f"m{i + 5:02d}" for i in range(len(after))])
    cut = RfmCuts(recency_days=(4,), frequency=(3,), spend_cents=(200,))
    before, after = rfm_class(before, cut), rfm_class(after, cut)
    moves = rfm_migration(before, after)
    assert moves.shape == (9, 9) and moves.loc["entered", "left"] == 0
    was, now = before.rfm_class.value_counts(), after.rfm_class.value_counts()
    for name in RFM_CLASSES:
        assert moves.loc[name].sum() == was.get(name, 0)
        assert moves[name].sum() == now.get(name, 0)
    assert moves.loc["entered"].sum() == len(set(after.member_id) - set(before.member_id))
    assert moves["left"].sum() == len(set(before.member_id) - set(after.member_id))
    tables = [as_table(t, engine()) for t in (before, after)]
    assert rfm_migration(*tables).equals(moves)


def test_migration_refuses_strange_values():
    classed = pd.DataFrame(dict(member_id=["a"], rfm_class=["key_value"], rfm_segment=[None]))
    with pytest.raises(ParameterError, match="`after` has values of rfm_class that are none: important"):
        rfm_migration(classed, classed.assign(rfm_class="important"))
    with pytest.raises(ParameterError, match="`before` has values of rfm_segment"): rfm_migration(classed, classed, by="rfm_segment")


# picture, engines, imports

@pytest.mark.parametrize("lang", ["en", "zh"])
def test_heat_map_shows_every_member(lang, tmp_path):
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    random = np.random.default_rng(1)
    summary = pd.DataFrame(dict(member_id=[str(i) for i in range(500)], recency_days=random.integers(0, 300, 500),
                                orders=random.geometric(.3, 500), spend_cents=random.integers(100, 90000, 500)))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*[Gg]lyph")
        ax = plot_rfm(rfm_score(summary), lang, currency="GBP")
        ax.figure.savefig(tmp_path / "map.png")
    assert sum(int(t.get_text().split("\n")[0]) for t in ax.texts) == 500
    assert ax.images[0].get_array().sum() == 500
    axes = plt.subplots()[1]
    assert plot_rfm(rfm_score(summary), lang, ax=axes) is axes
    plt.close("all")
    with pytest.raises(NotComputable, match="nothing to draw"): plot_rfm(rfm_score(summary).head(0))


def test_spark_gives_the_same_cells(spark, tmp_path):
    "Days with nulls → summary, cuts, scores, classes, segments on both engines."
    con = connect(threads=2)
    random = np.random.default_rng(3)
    extra = pd.concat([JANUARY.assign(order_id=lambda t, i=i: f"{i}-" + t.order_id, original_order_id=lambda t, i=i:
                                      (f"{i}-" + t.original_order_id).where(t.original_order_id.notna(), None),
                                      member_id=lambda t, i=i: t.member_id.where(t.member_id.isna(), t.member_id + str(i % 7)),
                                      net_cents=lambda t: (t.net_cents * random.integers(1, 4)),
                                      local_date=lambda t, i=i: [d + timedelta(days=3 * i) for d in t.local_date],
                                      ts=lambda t, i=i: t.ts + timedelta(days=3 * i)) for i in range(20)], ignore_index=True)
    assert extra.member_id.isna().any() and extra.channel.isna().any() and extra.original_order_id.isna().any()
    member_days_grain(as_table(extra, con)).to_parquet(tmp_path / "days.parquet")   # its own test has it on both engines
    found = []
    for engine_ in (con, spark):
        summary = rfm_summary(as_table(tmp_path / "days.parquet", engine_), "2017-02-20", window_days=30).cache()
        cuts, mean = rfm_cuts(summary), rfm_cuts(summary, how="mean")
        classed = rfm_segment(rfm_class(rfm_score(summary, cuts), mean))
        found.append((cuts, mean, to_frame(classed.order_by("member_id"))))
    assert len(found[0][2]) >= 25 and found[0][:2] == found[1][:2]
    assert_same(found[0][2], found[1][2])


def test_import_is_light():
    "Measures are used without the laboratory."
    code = ("import sys, memtag_research.measures.rfm; heavy = {'jupyter', 'jupyterlab', 'IPython', 'ipykernel', 'papermill', 'nbconvert', "
            "'matplotlib', 'lifetimes', 'sklearn', 'pyspark'}; print(*sorted(heavy & {m.split('.')[0] for m in sys.modules}))")
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip() == ""


def test_inputs_of_three_kinds(tmp_path):
    "Frame, Parquet file and Ibis table give one answer, and the frame is left as it was."
    days = to_frame(member_days_grain(as_table(JANUARY, engine())))
    untouched = days.copy()
    days.to_parquet(tmp_path / "days.parquet", index=False)
    found = [to_frame(rfm_score(rfm_summary(d, "2017-01-13")).order_by("member_id"))
             for d in (days, tmp_path / "days.parquet", as_table(days, engine()))]
    assert_same(found[0], found[1])
    assert_same(found[0], found[2])
    pd.testing.assert_frame_equal(days, untouched)
    assert isinstance(rfm_summary(days, "2017-01-13"), ibis.Table) and DAY0 == date(2017, 1, 1)
