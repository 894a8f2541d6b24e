"""The whole Complete Journey on DuckDB and on PySpark: grains, RFM and every metric, cell for cell."""

import pandas as pd
import pytest

from memtag_research.data.engine import to_frame
from memtag_research.data.grains import member_days_grain, orders_grain
from memtag_research.data.workspace import open_workspace
from memtag_research.measures.metrics import Book, measure
from memtag_research.measures.rfm import rfm_score, rfm_summary

DATES = ("2017-04-01", "2018-01-01")
PERIOD = "2017-12"
TOLERANCE = 1e-12  # of rates: the engines divide equal integers, and may differ in the last bit


def cells(con, root):
    "name → sorted frame, everything that is compared."
    ws = open_workspace(root)
    lines, days = (con.read_parquet(ws.folder / f"{t}.parquet") for t in ("order_lines", "member_days"))
    out = {"orders": to_frame(orders_grain(lines)).sort_values("order_id"),
           "member_days": to_frame(member_days_grain(lines)).sort_values(["member_id", "local_date", "cancelled_date"])}
    for as_of in DATES:
        out[f"rfm {as_of}"] = to_frame(rfm_score(rfm_summary(days, as_of))).sort_values("member_id")
    tables = {t: con.read_parquet(ws.folder / f"{t}.parquet") for t in ws.tables() if t != "member_days"}
    book = Book(washout_days=180, log_start=ws.log_start, log_end=ws.log_end, **tables)
    out["metrics"] = measure(book, periods=[PERIOD])
    return {name: frame.reset_index(drop=True) for name, frame in out.items()}


@pytest.mark.proof(name="spark_large", covers=["memtag_research/data/*.py", "memtag_research/measures/*.py"],
                   data=["memtag_research/data/mappings/complete-journey.yaml"])
def test_both_engines_agree_on_the_whole_year(complete_journey, spark, record_proof):
    from memtag_research.data.engine import connect
    duck, spk = cells(connect(), complete_journey), cells(spark, complete_journey)
    for name, ours in duck.items():
        pd.testing.assert_frame_equal(ours, spk[name][ours.columns], check_dtype=False, rtol=TOLERANCE, atol=0, obj=name)
    assert len(duck["orders"]) == 155_370 and (duck["metrics"].status == "ok").sum() >= 20
    record_proof({f"{name}_cells_equal": int(frame.size) for name, frame in duck.items()})
