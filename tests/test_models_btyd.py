"The summary of buying till one dies: by hand in plain Python, lifetimes, the other engine, and the future that it must not see."

from datetime import timedelta

import numpy as np
import pandas as pd
import pytest
from histories import MEMBERS, dates, engine, histories, lines_of, on, poisoned
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from lifetime_worlds import cdnow_log

from memtag_research.core import NotComputable, ParameterError
from memtag_research.data.engine import as_table, days_between, to_frame
from memtag_research.data.grains import member_days_grain
from memtag_research.models import btyd
from memtag_research.models.btyd import btyd_groups, btyd_summary, check_log_covers

few = settings(max_examples=8, deadline=None, derandomize=True)      # each builds grains in an engine


def summary_of(lines, as_of, con=None, **options):
    days = member_days_grain(as_table(lines, con or engine()))
    return to_frame(btyd_summary(days, as_of, **options)).sort_values("member_id", ignore_index=True)


def by_hand(history, as_of, period_days, until=None):
    "The same from the definitions, order by order; money from all lines of the member."
    rows = []
    for member in MEMBERS:
        mine = [o for o in history if o.member == member]
        standing = sorted({o.day for o in mine if o.stands(as_of)})
        if not standing: continue
        first, x = standing[0], len(standing) - 1
        money = lambda since, before, mine=mine: sum(
            [o.cents for o in mine if since <= o.day < before]
            + [-int(o.cents * o.refund_share) for o in mine if o.refund_day is not None and since <= o.refund_day < before])
        row = [member, x, (standing[-1] - first) / period_days, (as_of - 1 - first) / period_days, money(first + 1, as_of) / x if x else np.nan]
        if until is not None:
            row += [len({o.day for o in mine if o.stands(until) and o.day >= as_of}), money(as_of, until), (until - as_of) / period_days]
        rows.append(row)
    names = ["member_id", "x", "t_x", "T", "repeat_mean_cents", "x_holdout", "holdout_cents", "T_holdout"]
    return pd.DataFrame(rows, columns=names[: 5 if until is None else 8])


def covered(lines, until):
    "The rule by hand: not more silent days before the date than the members' log has had in a row."
    moved = lines[lines.member_id.notna() & (lines.net_cents != 0) & (lines.local_date < until)]
    days = sorted(set(moved.local_date))
    longest = max([(later - day).days - 1 for day, later in zip(days, days[1:], strict=False)], default=0)
    return (until - days[-1]).days - 1 <= longest


def assert_same(left, right):
    pd.testing.assert_frame_equal(left.reset_index(drop=True), right.reset_index(drop=True), check_dtype=False, check_exact=False, rtol=1e-12)


@few
@given(histories, dates, st.sampled_from([1, 7, 30]))
def test_against_plain_python(history, when, period_days):
    lines, (first, second) = lines_of(history), when
    assume(on(first) > lines.local_date.min() and covered(lines, on(second)))
    assert_same(summary_of(lines, on(first), period_days=period_days), by_hand(history, first, period_days))
    if on(first) <= lines[lines.member_id.notna() & (lines.net_cents != 0)].local_date.max():
        held = summary_of(lines, on(first), period_days=period_days, holdout_until=on(second))
        assert_same(held, by_hand(history, first, period_days, second))


def assert_blind_to_the_future(lines, as_of):
    whole = summary_of(lines, as_of)
    assert_same(whole, summary_of(lines[lines.local_date < as_of], as_of))
    assert_same(whole, summary_of(poisoned(lines, as_of), as_of))


@few
@given(histories, st.integers(1, 90))
def test_cut_and_poison(history, day):
    lines = lines_of(history)
    assume(lines.local_date.min() < on(day) and covered(lines[lines.local_date < on(day)], on(day)))
    assert_blind_to_the_future(lines, on(day))


@pytest.mark.parametrize("seen", ["rows", "ends"])
def test_cut_and_poison_would_notice(monkeypatch, seen):
    from histories import history_of
    rows_only = lambda t, as_of, ends=None: t.filter(t.local_date < as_of)
    monkeypatch.setattr(btyd, "known", (lambda t, as_of, ends=None: t) if seen == "rows" else rows_only)
    with pytest.raises(AssertionError):
        for day in (20, 35, 50): assert_blind_to_the_future(lines_of(history_of(3, 120)), on(day))


def same(one, other): assert one == other


@settings(max_examples=25, deadline=None, derandomize=True)
@given(histories, st.integers(1, 60))
def test_a_date_after_the_log_is_refused_where_its_silence_is_longer_than_any_before(history, beyond):
    lines = lines_of(history)
    days = member_days_grain(as_table(lines, engine())).cache()
    end = to_frame(days.agg(end=days.local_date.max())).end[0].date()
    until = end + timedelta(beyond)
    if covered(lines, until): return same(check_log_covers(days, until), until)
    with pytest.raises(NotComputable, match=f"member_days ends on {end}, .*Pass {end + timedelta(1)}, or ingest more"): btyd_summary(days, until)
    with pytest.raises(NotComputable, match=f"holdout_until {until} is too late"): btyd_summary(days, end, holdout_until=until)


def test_a_pause_that_the_log_knows_is_no_end():
    "Closed from the 10th to the 19th: ten silent days after the end are a pause like it, eleven are not."
    days = pd.DataFrame([dict(member_id=m, local_date=on(d), cancelled_date=None, purchase_days=1, net_cents=100)
                         for m in "ab" for d in (*range(10), *range(20, 30))])
    assert to_frame(btyd_summary(days, on(40)))["T"].max() == pytest.approx(39 / 7)
    with pytest.raises(NotComputable, match="longest pause: 10"): btyd_summary(days, on(41))
    held = to_frame(btyd_summary(days, on(25), holdout_until=on(40)))
    assert held.x_holdout.tolist() == [5, 5]
    with pytest.raises(NotComputable, match="11 days of which nothing is known"): btyd_summary(days, on(25), holdout_until=on(41))


def test_a_derived_grain_is_not_computed_for_a_date_inside_the_log(monkeypatch):
    "The end is read off the stored tables: the one query over days is for dates after it."
    from histories import history_of
    asked = []
    monkeypatch.setattr(btyd, "days_between", lambda *a: asked.append(a) or days_between(*a))
    days = member_days_grain(as_table(lines_of(history_of(3, 100)), engine()))
    check_log_covers(days, on(60))
    assert not asked


def test_the_holdout_does_not_touch_the_calibration():
    from histories import history_of
    lines = lines_of(history_of(4, 100))
    plain, held = summary_of(lines, on(40)), summary_of(lines, on(40), holdout_until=on(80))
    assert_same(plain, held[list(plain)])
    assert held.x_holdout.sum() > 10


@pytest.mark.parametrize(("period_days", "freq"), [(1, "D"), (7, "W")])
def test_lifetimes_on_cdnow(period_days, freq):
    "x, t_x, T and mean spend of every customer; lifetimes counts whole weeks, so weeks are compared through its days."
    from lifetimes.utils import summary_data_from_transaction_data
    log = cdnow_log()
    days = log.groupby(["member_id", "local_date"], as_index=False).net_cents.sum().assign(purchase_days=1, cancelled_date=None)
    ours = to_frame(btyd_summary(days, "1997-10-01", period_days)).set_index("member_id").sort_index()
    theirs = summary_data_from_transaction_data(log, "member_id", "ts", "dollars", observation_period_end="1997-09-30")
    assert len(ours) == len(theirs) == 2357
    assert (ours.x == theirs.frequency).all()
    np.testing.assert_allclose(ours.t_x * period_days, theirs.recency, atol=1e-9)
    np.testing.assert_allclose(ours["T"] * period_days, theirs["T"], atol=1e-9)
    np.testing.assert_allclose(ours.repeat_mean_cents.fillna(0) / 100, theirs.monetary_value, atol=1e-9)
    weekly = summary_data_from_transaction_data(log, "member_id", "ts", observation_period_end="1997-09-30", freq="W")
    assert (weekly.frequency < ours.x).sum() > 10      # collapsing to weeks loses second purchases; measuring in weeks does not


def test_who_joined_before_is_left_out_on_request():
    from histories import history_of
    lines = lines_of(history_of(5, 100))
    whole, late = summary_of(lines, on(80), period_days=1), summary_of(lines, on(80), period_days=1, first_from=on(5))
    assert 0 < len(late) < len(whole)
    assert_same(late, whole[whole["T"] <= 74])


def test_groups_are_members_counted():
    from histories import history_of
    summary = pd.concat([summary_of(lines_of(history_of(s, 100)), on(80)).assign(shop=s % 2) for s in range(4)])
    groups = btyd_groups(summary)
    assert groups.members.sum() == len(summary) and not groups.duplicated(["x", "t_x", "T"]).any()
    pd.testing.assert_frame_equal(groups, btyd_groups(as_table(summary, engine())), check_dtype=False)
    many = summary.assign(**{f"c{i}": np.arange(len(summary)) + i / 7 for i in range(12)})     # more cells than a number can count
    assert btyd_groups(many, by=[c for c in many if c[0] == "c"]).members.tolist() == [1] * len(many)
    by_shop = btyd_groups(summary, by=["shop"])
    assert by_shop.members.sum() == len(summary) and list(by_shop) == ["x", "t_x", "T", "shop", "members"]


def test_mistakes():
    from histories import history_of
    lines = lines_of(history_of(3, 60))
    days = to_frame(member_days_grain(as_table(lines, engine())))
    first = lines.local_date.min()
    with pytest.raises(ParameterError, match="as_of .* is before the first order"): btyd_summary(days, first)
    for period_days in (0, -7, 1.5, "7", True, None):
        with pytest.raises(ParameterError, match="period_days must be a whole number of days"): btyd_summary(days, on(60), period_days)
    with pytest.raises(ParameterError, match="must be after as_of"): btyd_summary(days, on(60), holdout_until=on(60))
    end = days.local_date.max().date()
    with pytest.raises(NotComputable, match="nothing to hold out"):
        btyd_summary(days, end + timedelta(2), holdout_until=end + timedelta(3))
    with pytest.raises(NotComputable, match="no rows"): check_log_covers(days.head(0), on(60))
    with pytest.raises(ParameterError, match="member_days lacks net_cents"): btyd_summary(days.rename(columns={"net_cents": "cents"}), on(60))
    with pytest.raises(NotComputable, match="no rows"): btyd_summary(days.head(0), on(60))
    with pytest.raises(NotComputable, match="no members"): btyd_groups(to_frame(btyd_summary(days, on(60))).head(0))


def test_spark_gives_the_same_cells(spark):
    from histories import history_of
    lines = lines_of(history_of(6, 120))
    for options in ({}, {"holdout_until": on(70), "period_days": 1}, {"first_from": on(10)}):
        assert_same(summary_of(lines, on(45), **options), summary_of(lines, on(45), con=spark, **options))
