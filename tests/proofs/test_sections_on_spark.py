"Lifecycle, cohorts and sales from DuckDB and PySpark, cell for cell, on data with nulls."
import pandas as pd
import pytest
from histories import SPAN, Order, Tables, engine, history_of, lines_of, members_of, on

from memtag_research.data.engine import as_table
from memtag_research.measures.cohorts import cohort_triangle, repurchase_by_month, second_purchase_by_source
from memtag_research.measures.lifecycle import bridge_members, dormant_funnel, lifecycle_status, membership_bridge
from memtag_research.measures.metrics import Book
from memtag_research.measures.sales import sales_by, sales_totals


def _at(frame, day):
    return frame.assign(local_date=[on(d) for d in frame[day]], ts=[pd.Timestamp(on(d)) for d in frame[day]])


SENT = _at(pd.DataFrame({"campaign_id": "c", "member_id": list("abcd"), "arm": ["x", "holdout", "x", None], "day": 41}), "day")
SEEN = _at(pd.DataFrame({"member_id": ["a", "z"], "event": "search", "day": 42}), "day")
SAID = _at(pd.DataFrame({"member_id": list("abbc"), "purpose": "marketing", "channel": ["sms", "sms", "sms", None],
                         "granted": [True, True, False, True], "day": [1, 1, 5, 9],
                         "expires_date": [None, on(80), None, on(20)]}), "day")


def _sections(con):
    ends = [Order(None, 0, 5, "app", None, 0.), Order(None, SPAN - 1, 5, None, None, 0.)]
    tables = Tables(lines_of(history_of(3, 150) + ends), con)
    members = as_table(members_of({"a": 30, "b": 50}), con)
    members = members.mutate(closed_date=members.closed_date.cast("date"))
    days, limits, period = tables.member_days, (10, 25), (on(40), on(80))
    book = Book(order_lines=tables.order_lines, orders=tables.orders)
    return {
        "status": lifecycle_status(days, on(80), *limits, 3, members, on(10)),
        "who": bridge_members(days, *period, *limits, members, on(50)),
        "bridge": membership_bridge(days, *period, *limits, members, on(50)),
        "funnel": dormant_funnel(days, *period, *limits, members, SAID, SENT, SEEN),
        "second": second_purchase_by_source(days, tables.orders, on(0), on(60), on(80)),
        "weeks": cohort_triangle(days, on(80), "week"), "quarters": cohort_triangle(days, on(80), "quarter"),
        "months": repurchase_by_month(days, on(80)),
        "channels": sales_by(book, "2017-02"), "stores": sales_by(book, "2017-02", "store_id"),
        "totals": pd.Series(sales_totals(book, "2017-02")).to_frame()}


@pytest.mark.proof(name="sections_on_spark", covers=["memtag_research/core.py", "memtag_research/data/engine.py",
                                                     "memtag_research/data/grains.py", "memtag_research/measures/*.py",
                                                     "tests/histories.py"])
def test_every_section_is_the_same_on_both_engines(spark, record_proof):
    ours, theirs = _sections(engine()), _sections(spark)
    for name, frame in ours.items():
        assert len(frame), name
        pd.testing.assert_frame_equal(frame, theirs[name], obj=name)
    record_proof({f"{name}_cells_equal": int(frame.size) for name, frame in ours.items()})
