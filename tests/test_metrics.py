"""Metrics: published figures, plain pandas, cut and poison over the whole register, two engines, bad input."""

from datetime import date, timedelta
from pathlib import Path

import pandas as pd
import programme
import pytest

from memtag_research.core import NotComputable, ParameterError
from memtag_research.data.engine import as_table, connect, cut_points, known
from memtag_research.data.grains import member_days_grain, orders_grain
from memtag_research.data.workspace import open_workspace
from memtag_research.language import glossary
from memtag_research.measures import metrics
from memtag_research.measures.metrics import KPIS, METRICS, NOT_YET, Book, dormancy_limits, kpi_table, measure, repurchase_cycle
from memtag_research.measures.periods import parse_period

PERIOD = parse_period("2021-06")
SHIPPED = Path(__file__).parents[1] / "data/shipped/online_retail.parquet"


def number(name, book, period=PERIOD, **params): return METRICS[name].function(book, period, **params)


# ---- figures published in the metrics page (Online Retail)

@pytest.fixture(scope="module")
def sale_lines():
    "C- and A-invoices out, quantity and price positive: built by SQL of its own, not by ingest."
    con = connect()
    con.raw_sql(f"""create table lines as select InvoiceNo order_id, CustomerID::varchar member_id, InvoiceDate ts,
        InvoiceDate::date local_date, 'sale' line_kind, Quantity::decimal(18,3) quantity, round(UnitPrice::decimal(12,4) * Quantity * 100)::bigint net_cents
        from '{SHIPPED}' where InvoiceNo[1:1] not in ('C', 'A') and Quantity > 0 and UnitPrice > 0""")
    return con.table("lines")


@pytest.fixture(scope="module")
def sales_only(sale_lines): return Book(order_lines=sale_lines)


WHOLE = "2010-12-01..2011-12-09"


def test_online_retail_totals(sales_only, sale_lines):
    assert sale_lines.count().execute() == 530_103
    assert number("gross_sales_cents", sales_only, WHOLE) == number("sales_cents", sales_only, WHOLE) == 1_065_562_248
    assert number("gross_member_sales_cents", sales_only, WHOLE) == 891_140_790
    assert round(number("member_share_of_sales", sales_only, WHOLE), 4) == .8363
    assert number("member_orders", sales_only, WHOLE) == 18_532
    orders = sales_only.tables["orders"]
    assert orders.filter(orders.member_id.isnull()).count().execute() == 1_427


@pytest.mark.parametrize(("name", "value", "digits"), [
    ("member_sales_cents", 116_181_738, 0), ("member_orders", 2_657, 0), ("buyers", 1_664, 0), ("member_units", 669_051, 0),
    ("sales_per_order_cents", 43_727, 0), ("spend_per_buyer_cents", 69_821, 0),
    ("orders_per_buyer", 1.597, 3), ("units_per_order", 251.8, 1),
    ("repeat_purchase_rate_by_orders", 540 / 1_664, 12), ("repeat_purchase_rate", 443 / 1_664, 12), ("repurchase_rate", 622 / 1_364, 12)])
def test_online_retail_november_2011(sales_only, name, value, digits):
    assert round(number(name, sales_only, "2011-11"), digits) == round(value, digits)


def test_online_retail_twelve_months(sales_only):
    year = "2010-12-01..2011-11-30"
    assert number("buyers", sales_only, year) == 4_297
    assert round(number("repeat_purchase_rate_by_orders", sales_only, year), 3) == .642
    assert round(number("repeat_purchase_rate", sales_only, year), 3) == .628
    assert number("repeat_purchase_rate_12m", sales_only, "2011-11") == number("repeat_purchase_rate", sales_only, year)


def test_online_retail_second_purchase(sales_only):
    "First day before 2011-09-10 (a Saturday, without orders), all followed 90 days."
    period = "2011-03-01..2011-12-09"
    rates = [number("second_purchase_rate", sales_only, period, days=d, followed_days=90) for d in (30, 60, 90)]
    assert [round(100 * r, 1) for r in rates] == [18.8, 35.0, 45.5]
    assert [round(r * 3_370, 6) % 1 for r in rates] == [0, 0, 0]
    assert rates[2] == number("second_purchase_rate", sales_only, period)


def test_online_retail_workspace_agrees_and_has_returns(online_retail, sales_only):
    book = Book.of(open_workspace(online_retail))
    for name in ("gross_sales_cents", "gross_member_sales_cents", "gross_member_share_of_sales", "member_orders", "buyers", "member_units"):
        for period in (WHOLE, "2011-11"): assert number(name, book, period) == number(name, sales_only, period), (name, period)
    for name in ("repeat_purchase_rate", "repeat_purchase_rate_by_orders", "repurchase_rate"):
        assert number(name, book, "2011-11") == number(name, sales_only, "2011-11"), name
    assert number("member_sales_cents", book, WHOLE) == 830_006_581   # £8,300,065.81 with returns
    assert round(number("return_rate", book, WHOLE), 6) == round((891_140_790 - 830_006_581) / 891_140_790, 6)
    assert book.log_start == date(2010, 12, 1) and book.log_end == date(2011, 12, 9)


# ---- a small programme in which everything can be computed

@pytest.fixture(scope="module")
def tables(): return programme.programme()


@pytest.fixture(scope="module")
def book(tables): return Book(**tables)


@pytest.fixture(scope="module")
def full(book): return {name: number(name, book) for name in METRICS}


def of(changed): return Book(**changed)


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_is_computable_and_sane(full, name):
    value = full[name]
    assert isinstance(value, int | float) and value == value
    if METRICS[name].unit == "rate" and name != "gross_margin_rate": assert 0 < value < 1, "a figure on the edge proves little"
    if METRICS[name].unit == "count": assert value > 0 and value == int(value)


@pytest.fixture(scope="module")
def past(tables): return of(programme.cut(tables, PERIOD.as_of))


@pytest.fixture(scope="module")
def absurd(tables): return programme.poison(tables, PERIOD.as_of)


@pytest.mark.parametrize("name", METRICS)
def test_cut_and_poison(full, past, absurd_book, name):
    assert number(name, past) == full[name]
    assert number(name, absurd_book) == full[name]


@pytest.fixture(scope="module")
def absurd_book(absurd): return of(absurd)


@pytest.mark.parametrize("name", METRICS)
def test_poison_is_noticed_without_the_filter(full, absurd, absurd_book, name, monkeypatch):
    "The test above proves something: with `known` patched out, every metric goes wrong."
    monkeypatch.setattr(metrics, "known", lambda table, as_of, ends=None: table)
    unguarded = Book(**absurd_book.tables)
    try: value = number(name, unguarded)
    except NotComputable: return
    assert value != full[name]


def test_kpi_table_cut_and_poison(book, past, absurd_book):
    numbers = ["value", "previous", "change", "year_before", "year_change", "history", "parts", "reason"]
    tables = [kpi_table(b, PERIOD, spark_periods=2)[numbers] for b in (book, past, absurd_book)]
    assert str(tables[0].to_dict()) == str(tables[1].to_dict()) == str(tables[2].to_dict())


# ---- plain pandas

@pytest.fixture(scope="module")
def plain(tables):
    "Standing orders at the period's end, member by member, by loops and dictionaries."
    end = PERIOD.as_of
    lines = tables["order_lines"]
    sold, back, orders = {}, {}, []
    for r in lines.itertuples():
        if r.local_date >= end: continue
        if r.line_kind == "sale": sold[r.order_id] = (r.member_id, r.local_date, r.net_cents, r.quantity)
        if r.line_kind == "return":
            key = r.order_id if pd.isna(r.original_order_id) else r.original_order_id
            back[key] = back.get(key, 0) + r.net_cents
    for key, (member, day, net, units) in sold.items():
        if not pd.isna(member) and net + back.get(key, 0) > 0: orders.append((member, day, units))
    return pd.DataFrame(orders, columns=["member", "day", "units"])


def days_of(plain, low, high):
    d = plain[(plain.day >= low) & (plain.day < high)]
    return d.groupby("member").day.agg(lambda s: sorted(set(s))).to_dict()


def test_against_plain_pandas(plain, tables, full):
    start, end = PERIOD.start, PERIOD.end
    inside, ever = plain[(plain.day >= start) & (plain.day < end)], days_of(plain, programme.DAY0, end)
    now, before = days_of(plain, start, end), days_of(plain, PERIOD.previous().start, start)
    firsts = {m: d[0] for m, d in ever.items()}
    assert full["member_orders"] == len(inside) and full["buyers"] == len(now)
    assert full["member_units"] == inside.units.sum()
    assert full["repeat_purchase_rate"] == sum(len(d) > 1 for d in now.values()) / len(now)
    assert full["repeat_purchase_rate_by_orders"] == (inside.groupby("member").size() > 1).mean()
    assert full["repurchase_rate"] == len(set(now) & set(before)) / len(before)
    assert full["new_customers"] == sum(d >= start for d in firsts.values())
    year = days_of(plain, date(2020, 7, 1), end)
    assert full["repeat_purchase_rate_12m"] == sum(len(d) > 1 for d in year.values()) / len(year)
    cohort = [d for d in ever.values() if start - timedelta(90) <= d[0] < end - timedelta(90)]
    assert full["second_purchase_rate"] == sum(len(d) > 1 and (d[1] - d[0]).days <= 90 for d in cohort) / len(cohort)
    lines = tables["order_lines"]
    money = lines[(lines.local_date >= start) & (lines.local_date < end) & lines.member_id.notna()]
    assert full["member_sales_cents"] == money.net_cents.sum()
    old = money.member_id.map(firsts) < start
    assert full["existing_customer_share"] == money.net_cents[old.fillna(False)].sum() / money.net_cents.sum()
    assert full["gross_margin_cents"] == (money.net_cents - money.tax_cents.fillna(0) - money.cost_cents).sum()


def test_members_against_plain_pandas(plain, tables, full):
    start, end = PERIOD.start, PERIOD.end
    people, merged = tables["members"].set_index("member_id"), tables["member_merges"]
    gone = set(merged[merged.local_date < end].from_id)
    known_ = {m: r for m, r in people.iterrows() if not pd.isna(r.local_date) and r.local_date < end}
    shut = {m for m, r in people.iterrows() if not pd.isna(r.closed_date) and r.closed_date < end}
    ever = days_of(plain, programme.DAY0, end)
    valid = set(known_) - shut - gone
    assert full["valid_members"] == len(valid)
    assert full["new_members"] == sum(r.local_date >= start for r in known_.values())
    active = {m for m, d in ever.items() if d[-1] >= end - timedelta(365)}
    assert full["active_members"] == len(active - shut) and full["active_rate"] == len(active & valid) / len(valid)
    cohort = {m: r.local_date for m, r in known_.items() if start - timedelta(30) <= r.local_date < end - timedelta(30)}
    waits = [(ever[m][0] - d).days if m in ever else 999 for m, d in cohort.items()]
    waits = [w for w in waits if w >= 0]
    assert full["first_purchase_rate"] == sum(w <= 30 for w in waits) / len(waits)


def test_dormancy_against_plain_pandas(tables, plain, book):
    start, end, limits = PERIOD.start, PERIOD.end, dict(dormant_days=60, lost_days=150)
    people = tables["members"].set_index("member_id").closed_date
    shut = {m for m, d in people.items() if not pd.isna(d) and d < end}
    last = {m: (end - timedelta(1) - d[-1]).days for m, d in days_of(plain, programme.DAY0, end).items() if m not in shut}
    assert number("dormant_members", book, **limits) == sum(60 < r <= 150 for r in last.values())
    assert number("lost_members", book, **limits) == sum(r > 150 for r in last.values())
    assert number("dormant_members", book, **limits) > 3 and number("lost_members", book, **limits) > 3
    opening = Book(**programme.cut(tables, start))     # what was known at the start
    day_before = parse_period(f"{start - timedelta(1)}..{start - timedelta(1)}")
    at_start = number("dormant_members", opening, day_before, **limits) + number("lost_members", opening, day_before, **limits)
    assert (number("reactivation_rate", book, **limits) * at_start) % 1 < 1e-9
    assert number("reactivation_rate", book, **limits) > 0


def test_money_points_and_campaigns_against_plain_pandas(tables, full):
    start, end = PERIOD.start, PERIOD.end
    lines = tables["order_lines"]
    mine = lines[lines.member_id.notna() & (lines.local_date < end)]
    month = mine[mine.local_date >= start]
    listed = month[(month.line_kind == "sale") & month.list_cents.notna()]
    assert full["price_paid_share"] == listed.net_cents.sum() / listed.list_cents.sum()
    sold, back = (month[(month.line_kind == "return") == returned].net_cents.sum() for returned in (False, True))
    assert full["return_rate"] == -back / sold
    refunds = mine[mine.line_kind == "return"]
    refunded = refunds[refunds.original_order_id.isin(month[month.line_kind == "sale"].order_id)].net_cents.sum()
    assert full["return_rate_by_order_date"] == -refunded / sold
    ledger = tables["points_ledger"]
    year = ledger[(ledger.local_date >= date(2020, 7, 1)) & (ledger.local_date < end)].groupby("kind").points.sum()
    assert full["points_use_rate"] == -year["redeem"] / year["earn"]
    ended = tables["campaigns"][lambda t: (t.ends_date >= start) & (t.ends_date < end)].campaign_id
    sent, used = ({(r.campaign_id, r.member_id) for r in tables[n].itertuples() if r.campaign_id in set(ended) and r.local_date < end}
                  for n in ("exposures", "redemptions"))
    assert full["campaign_redemption_rate"] == len(sent & used) / len(sent)


def log(**days_of_member) -> Book:
    "One order of 1.00 on each day (days since 2021-01-01) of each member; somebody else buys every day."
    rows = [(m, d) for m, days in {**days_of_member, None: range(800)}.items() for d in days]
    frame = pd.DataFrame(dict(order_id=f"o{i}", member_id=m, local_date=date(2021, 1, 1) + timedelta(d), line_kind="sale", quantity=1,
                              net_cents=100) for i, (m, d) in enumerate(rows))
    return Book(order_lines=programme.typed(frame.assign(ts=[programme.at(d) for d in frame.local_date])))


def span(first, last): return "..".join(str(date(2021, 1, 1) + timedelta(d)) for d in (first, last))


@pytest.mark.parametrize(("name", "period", "params", "value", "book_"), [
    # day 30 is within 30 days, day 31 is not; on day 130 a first purchase of day 100 has been followed for 30 days
    ("second_purchase_rate", span(130, 130), dict(days=30), 1 / 2, dict(a=[100, 130], b=[100, 131])),
    ("second_purchase_rate", span(131, 131), dict(days=30), 1, dict(a=[100, 130], b=[101, 131])),
    ("second_purchase_rate", span(130, 130), dict(days=30), 0, dict(a=[100, 100, 131])),
    # recency of D1 is active, of D2 dormant, beyond lost
    ("dormant_members", span(200, 200), dict(dormant_days=10, lost_days=20), 2, dict(a=[190], b=[189], c=[180], d=[179])),
    ("lost_members", span(200, 200), dict(dormant_days=10, lost_days=20), 1, dict(a=[190], b=[189], c=[180], d=[179])),
    ("reactivation_rate", span(200, 209), dict(dormant_days=10, lost_days=20), 1 / 3,   # b, of b, c and d
     dict(a=[189, 201], b=[188, 200], c=[188], d=[170, 210])),
    ("member_churn_rate", span(200, 209), dict(dormant_days=10, lost_days=20), 3 / 4,   # b, c and e, of a, b, c and e
     dict(a=[189, 199], b=[189], c=[190], d=[150, 209], e=[198])),
    # a year without an order: 366 days apart is new again, 365 is not
    ("new_customers_365d", span(500, 509), {}, 2, dict(a=[134, 500], b=[135, 500], c=[505, 506], d=[140, 141])),
    ("active_members", span(400, 400), {}, 1, dict(a=[36], b=[35])),
    ("repeat_purchase_rate_12m", "2022-01", {}, 1 / 2, dict(a=[31, 395], b=[30, 31], c=[30])),
    ("repurchase_rate", span(100, 109), {}, 1 / 2, dict(a=[90, 100], b=[99, 110], c=[89, 101])),
    ("existing_customer_share", span(100, 109), {}, 2 / 3, dict(a=[99, 100, 109], b=[100])),
    ("new_customers", span(100, 109), {}, 2, dict(a=[99, 100], b=[100, 101], c=[109], d=[110]))])
def test_edges_of_days(name, period, params, value, book_):
    assert number(name, log(**book_), period, **params) == value


def test_edges_of_joining():
    book = log(a=[130], b=[131], c=[99, 120], d=[100])
    people = pd.DataFrame([(m, date(2021, 1, 1) + timedelta(d)) for m, d in dict(a=100, b=100, c=100, d=100, e=100, f=101).items()],
                          columns=["member_id", "local_date"])
    book = Book(**book.tables, members=programme.typed(people.assign(joined_at=pd.to_datetime(people.local_date), closed_date=None)))
    assert number("first_purchase_rate", book, span(130, 130)) == 2 / 4   # a and d of a, b, d, e; c bought before
    assert number("first_purchase_rate", book, span(130, 131)) == 2 / 5   # f, a day later


# ---- the repurchase cycle

def test_cycle_is_that_of_the_gaps(tables, plain, book):
    end, lines = PERIOD.end, as_table(tables["order_lines"])
    low = end - timedelta(730)
    gaps = sorted((b - a).days for d in days_of(plain, low, end).values() for a, b in zip(d, d[1:], strict=False))
    quantile = lambda q: next(g for i, g in enumerate(gaps, 1) if i * 100 >= q * len(gaps))
    cycle = repurchase_cycle(orders_grain(lines), end)
    assert cycle == (quantile(50), quantile(80), quantile(90), len(gaps))
    assert cycle == repurchase_cycle(member_days_grain(lines), end)
    column = as_table(pd.DataFrame({"gap": gaps})).gap
    assert list(cycle[:3]) == cut_points(column, shares=(.5, .8, .9))
    assert dormancy_limits(book, end) == (cycle.g90, 2 * cycle.g90)
    assert dormancy_limits(book, end, lost_days=1000) == (cycle.g90, 1000)
    assert dormancy_limits(Book(**book.tables, dormant_days=20, lost_days=50), end) == (20, 50)


def test_cycle_refuses_few_gaps(book):
    orders = book.tables["orders"]
    with pytest.raises(NotComputable, match=r"stands on \d+ gaps.*Give dormant_days"): repurchase_cycle(orders, date(2019, 3, 1))
    with pytest.raises(NotComputable, match="stands on 0 gaps"): repurchase_cycle(orders, date(2018, 3, 1), min_gaps=0)
    with pytest.raises(ParameterError, match="as_of"): repurchase_cycle(orders, "yesterday")


# ---- identities and invariances

def test_sales_are_the_product_of_their_factors(full):
    product = full["buyers"] * full["orders_per_buyer"] * full["units_per_order"] * full["sales_per_unit_cents"]
    assert product == pytest.approx(full["member_sales_cents"], rel=1e-12)
    assert full["spend_per_buyer_cents"] == pytest.approx(full["orders_per_buyer"] * full["sales_per_order_cents"], rel=1e-12)
    assert full["price_paid_share"] + full["discount_depth"] == 1


def test_months_add_up_to_the_quarter(book):
    months, quarter = ("2021-04", "2021-05", "2021-06"), "2021Q2"
    for name in ("member_sales_cents", "sales_cents", "new_members", "points_earned", "points_redeemed", "points_expired"):
        assert sum(number(name, book, m) for m in months) == number(name, book, quarter), name


def test_points_balance(book):
    moved = sum(number(n, book, "2021-06") * s for n, s in (("points_earned", 1), ("points_redeemed", -1), ("points_expired", -1)))
    rows = book.tables["points_ledger"].filter(lambda t: t.kind == "adjust").execute()
    adjusted = rows[(rows.local_date >= pd.Timestamp(PERIOD.start)) & (rows.local_date < pd.Timestamp(PERIOD.end))].points.sum()
    assert number("points_balance", book, "2021-06") == number("points_balance", book, "2021-05") + moved + adjusted


def test_row_order_and_names_of_members_do_not_matter(tables, full):
    shuffled = {n: t.sample(frac=1, random_state=3) for n, t in tables.items()}
    for table in shuffled.values():
        for column in table.columns.intersection(["member_id", "from_id", "to_id"]): table[column] = "z" + table[column]
    other = Book(**{n: programme.typed(t) for n, t in shuffled.items()})
    assert {n: number(n, other) for n in METRICS} == full


def test_many_periods_at_once_are_the_same_as_one_by_one(book, full):
    "Seventeen windows are more than one query takes; `full` was computed window by window."
    together = measure(Book(**book.tables), periods=PERIOD.back(17))
    assert together[together.period == "2021-06"].set_index("name").value.to_dict() == full


def test_input_is_not_touched(tables):
    before = {n: t.copy() for n, t in tables.items()}
    Book(**tables)
    for name, table in tables.items(): pd.testing.assert_frame_equal(table, before[name])


# ---- two engines

def test_both_engines_agree(tables, spark, tmp_path):
    "Every metric, equal to the last bit, on data with nulls; some of them in many windows at once."
    for name, table in tables.items(): table.to_parquet(tmp_path / f"{name}.parquet", coerce_timestamps="us", index=False)
    on_spark = Book(**{name: as_table(tmp_path / f"{name}.parquet", spark) for name in tables})
    for names, periods in ((None, ["2021-06"]), (["second_purchase_rate", "new_customers", "member_churn_rate"], PERIOD.back(3))):
        a, b = (measure(book, names, periods) for book in (Book(**tables), on_spark))
        pd.testing.assert_frame_equal(a, b, check_exact=True)
        assert (a.status == "ok").all()


# ---- scope

def test_scopes_partition_sales(book, tables):
    stores = [Book(**book.tables, scope={"store_id": s}) for s in ("s1", "s2")]
    for name in ("sales_cents", "member_sales_cents", "member_orders", "gross_sales_cents"):
        assert sum(number(name, s) for s in stores) == number(name, book), name
    north = Book(**book.tables, scope={"region": "north"})
    assert number("member_sales_cents", north) == number("member_sales_cents", stores[0])
    assert number("buyers", north) < number("buyers", book)
    with pytest.raises(NotComputable, match="whole programme only"): number("new_members", north)
    with pytest.raises(NotComputable, match="store_id=s1"): number("points_balance", stores[0])


def test_a_scope_is_the_log_of_its_lines(tables, book):
    lines = tables["order_lines"]
    alone = Book(order_lines=lines[lines.store_id == "s2"], log_start=book.log_start, log_end=book.log_end, members=tables["members"])
    scoped = Book(**book.tables, scope={"store_id": "s2"})
    for name in ("buyers", "repeat_purchase_rate", "second_purchase_rate", "existing_customer_share", "repurchase_rate", "lost_members"):
        params = dict(dormant_days=60, lost_days=150) if name == "lost_members" else {}
        assert number(name, scoped, **params) == number(name, alone, **params), name


@pytest.mark.parametrize(("scope", "error", "says"), [
    ({"shop": "s1"}, ParameterError, "scope has no key 'shop'"), ({"store": "s1"}, ParameterError, "Did you mean 'store_id'"),
    ({"store_id": "s11"}, ParameterError, "Did you mean 's1'"), ({"region": "nort"}, ParameterError, "Did you mean 'north'"),
    ({"city": "x"}, NotComputable, "needs the column city")])
def test_wrong_scopes(book, scope, error, says):
    with pytest.raises(error, match=says): Book(**book.tables, scope=scope)


# ---- tables of metrics, targets

def test_measure_has_a_value_or_a_reason(book):
    table = measure(book, periods=["2021-06", "2018-06"])
    assert list(table.columns) == ["name", "period", "value", "unit", "status", "reason"] and len(table) == 2 * len(METRICS)
    assert (table.value.isna() == (table.reason != "")).all() and ((table.status == "ok") == (table.reason == "")).all()
    assert set(table[table.period == "2021-06"].status) == {"ok"}
    before_log = table[(table.period == "2018-06") & ~table.name.isin(["new_members", "valid_members", "campaign_redemption_rate"])]
    assert set(before_log.status) == {"not_computable"} and before_log.reason.str.contains("log|ledger|gaps").all()
    assert len(measure(book, "buyers", "2021-06")) == 1


def test_kpi_table(book, full):
    table = kpi_table(book, "2021-06", lunar=True).set_index("name")
    assert list(table.index) == list(KPIS) and len(table) == 12
    row = table.loc["member_sales_cents"]
    before, year = number("member_sales_cents", book, "2021-05"), number("member_sales_cents", book, "2020-06")
    assert (row.value, row.previous, row.year_before) == (full["member_sales_cents"], before, year)
    assert row.change == row.value / before - 1 and row.year_change == row.value / year - 1
    assert len(row.history) == 13 and row.history[-1] == row.value and row.history[-2] == before and row.history[0] == year
    share = table.loc["member_share_of_sales"]
    assert share.change == share.value - share.previous
    assert row.lunar_year_before == number("member_sales_cents", book, PERIOD.year_before(lunar=True))
    parts = {p["name"]: p["value"] for p in table.loc["spend_per_buyer_cents"].parts}
    assert parts["orders_per_buyer"] * parts["sales_per_order_cents"] == pytest.approx(table.loc["spend_per_buyer_cents"].value)
    assert table.loc["programme_cost_rate"].reason == NOT_YET["programme_cost_rate"]
    assert pd.isna(table.loc["programme_cost_rate"].value)


def targets(*rows): return pd.DataFrame(rows, columns=["metric", "period", "scope", "target"]).astype({"scope": "string"})


def test_targets_of_the_period_and_of_the_month_it_starts(book):
    plan = targets(("buyers", "2021-06", None, 50.), ("buyers", "2021", None, 9.), ("buyers", "2021Q2", None, 7.),
                   ("buyers", "2021-06", "store_id=s1", 4.))
    row = lambda period, b=book: kpi_table(b, period, plan, spark_periods=1).set_index("name").loc["buyers"]
    month, half = row("2021-06"), row("2021-06-01..2021-06-15")
    assert (month.target, month.attainment, month.time_progress) == (50, month.value / 50, 1)
    assert (half.target, half.attainment, half.time_progress) == (50, half.value / 50, .5)
    assert pd.isna(row("2021-05").target) and pd.isna(row("2021-06-02..2021-06-15").target)
    assert row("2021-06", Book(**book.tables, scope={"store_id": "s1"})).target == 4
    assert metrics._target_rows(Book(**book.tables, targets=plan), None) == metrics._target_rows(book, plan)
    with pytest.raises(ParameterError, match="no period"): kpi_table(book, "2021-06", targets(("buyers", "June", None, 1.)))


# ---- what cannot be computed

@pytest.mark.parametrize("name", METRICS)
def test_an_absent_table_or_column_is_a_reason(tables, name):
    for need in METRICS[name].needs:
        table, _, column = need.partition(".")
        left = {n: t for n, t in tables.items() if n != {"orders": "order_lines"}.get(table, table)}   # orders are made of lines
        if column: left[table] = tables[table].drop(columns=column)
        with pytest.raises(NotComputable, match=f"{name} needs the (table order_lines|.*{need}).*memtag ingest"): number(name, Book(**left))


@pytest.mark.parametrize("period", ["2018-12", "2022-01", "2018", "2021-12-20..2022-01-20", "1999"])
def test_periods_outside_the_log(book, period):
    with pytest.raises(NotComputable, match=f"the log covers 2019-0.* to {book.log_end}"): number("buyers", book, period)


def test_the_last_days_may_be_silent_but_not_for_long(tables):
    lines = tables["order_lines"]
    quiet = Book(order_lines=lines[lines.local_date < date(2021, 6, 29)])
    assert quiet.log_end == date(2021, 6, 28) and number("buyers", quiet) > 0
    silent = Book(order_lines=lines[lines.local_date < date(2021, 6, 2)])
    with pytest.raises(NotComputable, match="the log covers"): number("buyers", silent)


def test_first_orders_near_the_start_of_the_log(tables):
    washed = Book(order_lines=tables["order_lines"], washout_days=900)
    for name in ("new_customers", "existing_customer_share", "second_purchase_rate"):
        with pytest.raises(NotComputable, match="first_order_washout_days: 900"): number(name, washed)
    assert number("buyers", washed) > 0
    start = washed.log_start
    assert number("new_customers", Book(order_lines=tables["order_lines"]), f"{start}..{start + timedelta(30)}") > 0


def test_twelve_months_and_the_previous_period_need_their_days(tables):
    book = Book(order_lines=tables["order_lines"], log_start=date(2019, 1, 1), log_end=date(2021, 12, 31))
    for name in ("repeat_purchase_rate_12m", "active_members", "repurchase_rate", "new_customers_365d"):
        with pytest.raises(NotComputable, match="the log covers 2019-01-01"): number(name, book, "2019-01")


def test_empty_denominators(tables):
    lines = tables["order_lines"]
    guests = Book(order_lines=lines.assign(member_id=pd.Series(pd.NA, index=lines.index, dtype="string")))
    assert number("buyers", guests) == 0 and number("member_sales_cents", guests) == 0 and number("member_share_of_sales", guests) == 0
    for name in ("spend_per_buyer_cents", "units_per_order", "repeat_purchase_rate", "repurchase_rate", "existing_customer_share",
                 "price_paid_share"):
        with pytest.raises(NotComputable, match="there are no"): number(name, guests)
    with pytest.raises(NotComputable, match="no orders"): number("buyers", Book(order_lines=lines.head(0)))


def test_others_returns_and_costs_that_are_not_recorded(tables):
    lines = tables["order_lines"]
    members_only = Book(order_lines=lines[lines.member_id.notna()])
    for name in ("member_share_of_sales", "gross_member_share_of_sales"):
        with pytest.raises(NotComputable, match="the log holds members only"): number(name, members_only)
    assert number("member_sales_cents", members_only) == number("sales_cents", members_only)
    with pytest.raises(NotComputable, match="no return lines"): number("return_rate", Book(order_lines=lines[lines.line_kind != "return"]))
    unnamed = lines.assign(original_order_id=pd.Series(pd.NA, index=lines.index, dtype="string"))
    with pytest.raises(NotComputable, match="names its order"): number("return_rate_by_order_date", Book(order_lines=unnamed))
    some = Book(order_lines=lines.assign(cost_cents=lines.cost_cents.where(lines.index % 2 == 0)))
    with pytest.raises(NotComputable, match=r"cost is known for \d"): number("gross_margin_cents", some)
    assert number("gross_margin_cents", some, min_cost_share=.1) != number("gross_margin_cents", Book(order_lines=lines))


@pytest.mark.parametrize(("name", "params", "says"), [
    ("second_purchase_rate", dict(days=0), "whole number"), ("second_purchase_rate", dict(days="90"), "whole number"),
    ("second_purchase_rate", dict(days=90, followed_days=30), "followed_days must be 90"),
    ("first_purchase_rate", dict(days=-1), "whole number"), ("active_members", dict(days=1.5), "whole number"),
    ("dormant_members", dict(dormant_days=90, lost_days=90), "must hold, not 90 and 90"),
    ("lost_members", dict(dormant_days=0, lost_days=9), "must hold, not 0 and 9")])
def test_wrong_parameters(book, name, params, says):
    with pytest.raises(ParameterError, match=says): number(name, book, **params)


def test_wrong_names(book):
    with pytest.raises(ParameterError, match="Did you mean 'buyers'"): measure(book, "buyer", "2021-06")
    with pytest.raises(ParameterError, match="Did you mean 'order_lines'"): Book(order_line=None)
    with pytest.raises(ParameterError, match="is no period"): measure(book, "buyers", "June")
    with pytest.raises(ParameterError, match="unit must be one of"): metrics.metric("percent", "x")
    with pytest.raises(ParameterError, match="expected an Ibis table"): Book(order_lines=[1, 2])


# ---- the register

def test_every_metric_is_defined_and_labelled():
    for name, m in METRICS.items():
        assert m.en.endswith(".") and len(m.en) > 20 and m.zh and m.needs, name
        assert name in glossary(), f"{name} has no label in glossary.yaml"
        assert m.unit == "cents" or not name.endswith("_cents")
        assert m.unit != "cents" or name.endswith("_cents")
    for name in [*KPIS, *NOT_YET]: assert name in glossary() and (name in METRICS) != (name in NOT_YET)


def test_known_is_the_engines():
    assert metrics.known is known
