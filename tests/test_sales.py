"The split adds up to the cent, and places add up to the whole."
import math
from functools import lru_cache

import pandas as pd
import pytest
from histories import MEMBERS, Order, engine, histories, lines_of, on, online_retail, poisoned
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from memtag_research.core import NotComputable
from memtag_research.data.engine import as_table
from memtag_research.measures import metrics, sales
from memtag_research.measures.metrics import Book
from memtag_research.measures.sales import (
    FACTORS,
    decompose_by,
    decompose_sales,
    plot_channels,
    plot_decomposition,
    sales_by,
    sales_totals,
)

few = settings(max_examples=5, deadline=None, phases=[Phase.generate])   # a seed does not shrink
totals = st.fixed_dictionaries(dict(buyers=st.integers(1, 10**7), orders=st.integers(1, 10**8),
                                    units=st.floats(.001, 1e9), net_cents=st.integers(1, 10**13)))


def parts(split): return split.contribution_cents[:4].tolist()


@settings(max_examples=200, deadline=None)
@given(totals, totals)
def test_the_split_adds_up_to_the_cent(before, after):
    split = decompose_sales(before, after)
    assert sum(parts(split)) == split.contribution_cents[4] == after["net_cents"] - before["net_cents"]
    for column, period in (("previous", before), ("current", after)):
        assert split[column][:4].prod() == pytest.approx(period["net_cents"], rel=1e-12)


@settings(max_examples=100, deadline=None)
@given(totals, totals)
def test_the_split_runs_both_ways(before, after):
    "Ang's time-reversal test: from after to before is minus the same, but for the rounding of a cent."
    there, back = parts(decompose_sales(before, after)), parts(decompose_sales(after, before))
    size = max(before["net_cents"], after["net_cents"])
    assert all(abs(a + b) <= 2 + 1e-12 * size * 40 for a, b in zip(there, back, strict=True))


@settings(max_examples=100, deadline=None)
@given(totals, st.integers(2, 50), st.sampled_from(range(4)))
def test_one_factor_alone_takes_the_whole_change(before, times, which):
    names = ["buyers", "orders", "units", "net_cents"]
    after = before | {n: before[n] * times for n in names[which:]}
    split = parts(decompose_sales(before, after))
    assert split[which] == pytest.approx(after["net_cents"] - before["net_cents"], abs=4, rel=1e-9)


def test_the_worked_formula():
    "Two factors move, worked with the definition: L ln(x1/x0), L the logarithmic mean of 400.00 and 900.00."
    split = decompose_sales(dict(buyers=10, orders=20, units=20, net_cents=40_000),
                            dict(buyers=15, orders=45, units=45, net_cents=90_000))
    mean = 50_000 / math.log(90_000 / 40_000)
    assert parts(split) == pytest.approx([mean * math.log(1.5), mean * math.log(1.5), 0, 0], abs=1)
    assert parts(split)[:2] == [25_000, 25_000]


def test_nothing_before_and_nothing_after():
    none = dict.fromkeys(("buyers", "orders", "units", "net_cents"), 0)
    some = dict(buyers=3, orders=4, units=5, net_cents=600)
    assert parts(decompose_sales(none, some)) == [600, 0, 0, 0]
    assert parts(decompose_sales(some, none)) == [-600, 0, 0, 0]
    nearly = dict(buyers=1e-300, orders=4e-300 / 3, units=5e-300 / 3, net_cents=2e-298)   # the limit that the rule stands for
    mean = (nearly["net_cents"] - 600) / math.log(nearly["net_cents"] / 600)
    assert mean * math.log(nearly["buyers"] / 3) == pytest.approx(-600, rel=1e-9)
    for broken in (dict(net_cents=-1), dict(units=0), dict(net_cents=0)):
        with pytest.raises(NotComputable, match="cannot be split"): decompose_sales(some, some | broken)


def by_hand(history, start, end, channel=None):
    "Buyers, orders, units and member net of a period, as known at its end."
    here = [(i, o) for i, o in enumerate(history) if o.member and channel in (None, o.channel)]
    made = [(i, o) for i, o in here if start <= o.day and o.stands(end)]
    money = sum(o.cents for _, o in here if start <= o.day < end)
    money -= sum(int(o.cents * o.refund_share) for _, o in here if o.refund_after is not None and start <= o.refund_day < end)
    return dict(buyers=len({o.member for _, o in made}), orders=len(made), units=sum(1 + i % 3 for i, _ in made), net_cents=money)


FIRST, SECOND = "2017-01-01..2017-01-20", "2017-01-21..2017-02-09"


@few
@given(histories)
def test_places_as_a_person_would_add_them(history):
    ends = [Order(None, 0, 5, "app", None, 0.), Order(None, 39, 5, "app", None, 0.)]     # the log covers both periods
    whole = ends + history
    book = Book(order_lines=as_table(lines_of(whole), engine()))
    assert [sales_totals(book, p) for p in (FIRST, SECOND)] == [by_hand(whole, 0, 20), by_hand(whole, 20, 40)]
    table = sales_by(book, SECOND).set_index("channel")
    for channel, row in table.iterrows():
        now, then = (by_hand(whole, *days, channel) for days in ((20, 40), (0, 20)))
        assert {c: row[c] for c in now} == now
        assert {c: row["previous_" + c] for c in then} == then
    assert table.net_cents.sum() == metrics.member_sales_cents(book, SECOND)
    assert table.all_net_cents.sum() == metrics.sales_cents(book, SECOND)
    split = decompose_by(table.reset_index())
    assert (split.change_cents == split[[*FACTORS, "unsplit"]].sum(axis=1)).all()
    assert split.change_cents.sum() == metrics.member_sales_cents(book, SECOND) - metrics.member_sales_cents(book, FIRST)


LOG = [Order(m, d, 100 + d, "shop" if d % 2 else "app", after, share)
       for m, days in zip(MEMBERS, ((3, 20, 41), (5, 9), (26,), (2, 38), (30, 31), (0, 39)), strict=False)
       for d, after, share in zip(days, (None, 25, None), (1., .4, 1.), strict=False)]
MEASURES = {"totals": lambda b: pd.Series(sales_totals(b, SECOND)), "channel": lambda b: sales_by(b, SECOND),
            "store": lambda b: sales_by(b, SECOND, "store_id"),
            "split": lambda b: decompose_sales(sales_totals(b, FIRST), sales_totals(b, SECOND))}


@lru_cache
def _variants():
    "The log whole, cut at 10 February and poisoned from it on."
    lines = lines_of(LOG)
    return [as_table(t, engine()) for t in (lines, lines[lines.local_date < on(40)], poisoned(lines, on(40)))]


def _same(measure):
    full, *others = (MEASURES[measure](Book(order_lines=t)) for t in _variants())
    return all(full.equals(o) for o in others)


@pytest.mark.parametrize("measure", MEASURES)
def test_the_future_is_not_known(measure): assert _same(measure)


@pytest.mark.parametrize("measure", MEASURES)
def test_and_these_tests_see_it_where_the_filter_is_gone(measure, monkeypatch):
    for module in (sales, metrics): monkeypatch.setattr(module, "known", lambda table, as_of, ends=None: table)
    assert not _same(measure)


def _store_lines(sold):
    "One sale of 1.00 a store and month of 2017."
    rows = [dict(order_id=f"{s}{m}", member_id="a", line_kind="sale", net_cents=100, quantity=1, store_id=s,
                 ts=pd.Timestamp(2017, m, 15)) for s, months in sold.items() for m in months]
    return pd.DataFrame(rows).assign(line_id=lambda t: t.order_id, local_date=lambda t: t.ts.dt.date)


def test_like_for_like():
    whole, gap = range(1, 13), [*range(1, 8), *range(9, 13)]
    lines = _store_lines({"old": whole, "closed": range(1, 11), "new": range(9, 13), "gap": gap, "late": whole})
    stores = as_table(pd.DataFrame({"store_id": ["old", "late", "closed"], "region": ["n", "n", "s"],
                                    "opened_date": [on(-500), on(200), on(-9)]}), engine())
    book = Book(order_lines=as_table(lines, engine()), stores=stores)
    table = sales_by(book, "2017Q4", "store_id").set_index("store_id")
    assert table.like_for_like.to_dict() == dict(old=True, late=False, closed=False, new=False, gap=False)
    regions = sales_by(book, "2017Q4", "region").set_index("region")
    assert regions.net_cents.to_dict() == dict(n=600, unknown=600, s=100)
    ranked = sales_by(book, "2017Q4", "store_id", targets={"old": 900, "closed": 50})
    assert ranked.store_id.tolist()[:2] == ["old", "closed"] and ranked.gap_cents.tolist()[:2] == [-600, 50]
    assert ranked.gap_cents[2:].isna().all()


def test_a_channel_that_is_not_mapped():
    book = Book(order_lines=as_table(_store_lines({"old": range(1, 13)}), engine()))
    with pytest.raises(NotComputable, match=r"order_lines.channel"): sales_by(book, "2017Q4")
    with pytest.raises(NotComputable, match="Did you mean 'store_id'"): sales_by(book, "2017Q4", "storeid")


def test_a_previous_period_outside_the_log():
    book = Book(order_lines=as_table(_store_lines({"old": range(1, 13)}), engine()))
    table = sales_by(book, "2017-02", "store_id", previous="2016-12")
    assert table.previous_net_cents.isna().all() and table.change.isna().all()
    with pytest.raises(NotComputable, match="does not cover the previous"): decompose_by(table)


def test_online_retail_october_to_november():
    tables = online_retail()
    book = Book(order_lines=tables.order_lines, orders=tables.orders)
    now = sales_totals(book, "2011-11")
    assert now == dict(buyers=1664, orders=2657, units=669051, net_cents=116181738)      # docs/metrics.md
    split = decompose_sales(sales_totals(book, "2011-10"), now)
    assert parts(split) == [21856993, 13346338, -22103685, -849787]
    assert sum(parts(split)) == split.contribution_cents[4] == 12249859
    table = sales_by(book, "2011-11")
    assert table.net_cents.sum() == 116181738
    assert decompose_by(table).change_cents.sum() == 12249859


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.filterwarnings("error:Glyph")
def test_sales_are_drawn(lang, tmp_path):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    split = decompose_sales(dict(buyers=10, orders=20, units=40, net_cents=40_000),
                            dict(buyers=13, orders=31, units=57, net_cents=100_101))
    ax = plot_decomposition(split, "GBP", lang)
    ax.figure.savefig(tmp_path / "split.png")
    assert ax.patches[-2].get_y() + max(ax.patches[-2].get_height(), 0) == 100_101        # the last factor ends at the total
    ax = plot_channels(MEASURES["channel"](Book(order_lines=_variants()[0])), "CNY", lang)
    ax.figure.savefig(tmp_path / "channels.png")
    assert len(ax.patches) == 2
