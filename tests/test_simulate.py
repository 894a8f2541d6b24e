"""The simulated programme as a whole: tables that fit together, sums that hold, a seed that decides, a truth that is apart."""

from dataclasses import replace

import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memtag_research.core import DefinitionError, NotComputable, ParameterError
from memtag_research.data.contracts import contracts
from memtag_research.data.ingest import check_workspace, ingest
from memtag_research.data.simulate import make_programme, read_truth
from memtag_research.data.workspace import open_workspace
from memtag_research.world.parameters import Causes, Contacts, Faults, PointsPolicy, Purchases, Tastes, TierPolicy, World, to_json

TABLES = [*contracts(), "orders", "member_days"]


@pytest.fixture(scope="module", params=["en", "zh"])
def made(request, tmp_path_factory):
    "Two years of 1,500 people, in London with its summer time, or in Shanghai."
    return make_programme(1_500, seed=11, locale=request.param, directory=tmp_path_factory.mktemp("made") / "programme")


def views(made):
    "A question to the tables, truth as `truth_…`."
    con = duckdb.connect()
    con.execute("SET TimeZone = 'UTC'")
    for name in TABLES:
        con.execute(f"CREATE VIEW {name} AS FROM read_parquet('{made.workspace.folder / name}.parquet')")
    for name in made.truth.tables():
        con.execute(f"CREATE VIEW truth_{name} AS FROM read_parquet('{made.truth.folder / name}.parquet')")
    return con


@pytest.fixture(scope="module")
def sql(made):
    con = views(made)
    return lambda text: con.execute(text).fetchall()


def test_every_canonical_table_is_there_filled_and_keeps_its_contract(made):
    assert {name: made.workspace.manifest["tables"][name]["rows"] > 0 for name in TABLES} == dict.fromkeys(TABLES, True)
    assert check_workspace(made.workspace) == []


def test_every_column_of_the_contracts_is_used_somewhere(made):
    "A column that is always empty, or not there, cannot exercise anything."
    unused = set()
    for name, spec in contracts().items():
        schema = pq.read_schema(made.workspace.folder / f"{name}.parquet").names
        frame = pq.read_table(made.workspace.folder / f"{name}.parquet")
        unused |= {f"{name}.{c}" for c in spec.columns if c not in schema or frame[c].null_count == len(frame)}
    # nobody asks for these here: incomes and marriages are sensitive, product rows are not dated, one scope of targets is the whole
    allowed = {"members.income_band", "members.marital_status", "members.household_size", "products.valid_from", "products.valid_to",
               "targets.scope"}
    assert unused <= allowed, sorted(unused - allowed)


REFERENCES = [
    *((t, "member_id", "members", "member_id") for t, spec in contracts().items() if "member_id" in spec.columns and t != "members"),
    ("member_merges", "from_id", "members", "member_id"), ("member_merges", "to_id", "members", "member_id"),
    ("order_lines", "product_id", "products", "product_id"), ("events", "product_id", "products", "product_id"),
    ("order_lines", "store_id", "stores", "store_id"), ("order_lines", "original_order_id", "order_lines", "order_id"),
    ("payments", "order_id", "order_lines", "order_id"), ("redemptions", "order_id", "orders", "order_id"),
    ("points_ledger", "order_id", "order_lines", "order_id"), ("redemptions", "campaign_id", "campaigns", "campaign_id"),
    ("exposures", "campaign_id", "campaigns", "campaign_id"), ("tier_history", "tier", "benefits", "tier"),
    ("truth_orders", "order_id", "orders", "order_id"), ("truth_people", "member_id", "members", "member_id"),
]  # fmt: skip

RULES = {   # name → a count of rows that break it
    "payments add up to the lines of their order": """FROM (SELECT order_id, sum(net_cents) n FROM order_lines GROUP BY 1)
        FULL JOIN (SELECT order_id, sum(cents) p FROM payments WHERE tender <> 'points' GROUP BY 1) USING (order_id)
        WHERE (n <> 0 OR p <> 0) AND p IS DISTINCT FROM n""",
    "points paid with are those of the ledger": """FROM
        (SELECT order_id, sum(points_cents) c FROM order_lines WHERE line_kind <> 'return' GROUP BY 1 HAVING c <> 0)
        FULL JOIN (SELECT order_id, -sum(points) p FROM points_ledger WHERE kind = 'redeem' AND order_id IS NOT NULL GROUP BY 1)
        USING (order_id) WHERE c IS DISTINCT FROM p""",
    "no balance is below zero on any moment": """FROM (SELECT sum(points) OVER (PARTITION BY member_id ORDER BY ts, entry_id) b
        FROM points_ledger) WHERE b < 0""",
    "earned + adjusted + merged = redeemed + expired + reversed + balance, every member and day": """FROM (
        SELECT sum(sum(points)) OVER w balance, sum(sum(points) FILTER (WHERE kind IN ('earn', 'adjust', 'merge'))) OVER w given,
            sum(-sum(points) FILTER (WHERE kind IN ('redeem', 'expire', 'reverse'))) OVER w taken
        FROM points_ledger GROUP BY member_id, local_date WINDOW w AS (PARTITION BY member_id ORDER BY local_date))
        WHERE coalesce(given, 0) <> coalesce(taken, 0) + balance""",
    "entries have the sign of their kind": """FROM points_ledger WHERE (kind = 'earn' AND points <= 0)
        OR (kind IN ('redeem', 'expire', 'reverse') AND points >= 0)""",
    "every entry has its reason": "FROM points_ledger WHERE reason IS NULL",
    "what moves at a merge arrives": "FROM (SELECT sum(points) s FROM points_ledger WHERE kind = 'merge') WHERE s <> 0",
    "points go on the day they expire": """FROM points_ledger WHERE kind = 'expire' AND reason <> 'closed'
        AND ts NOT IN (SELECT expires_at FROM points_ledger WHERE expires_at IS NOT NULL)""",
    "tiers have neither gaps nor overlaps": """FROM (SELECT valid_to, lead(valid_from) OVER (PARTITION BY member_id ORDER BY valid_from) n
        FROM tier_history) WHERE n IS NOT NULL AND n IS DISTINCT FROM valid_to""",
    "tiers last a day": "FROM tier_history WHERE valid_to <= valid_from",
    "benefits are used by who is entitled": """FROM benefit_uses u WHERE NOT EXISTS (FROM tier_history t JOIN benefits b USING (tier)
        WHERE t.member_id = u.member_id AND b.benefit = u.benefit AND t.valid_from <= u.local_date
        AND (t.valid_to IS NULL OR t.valid_to > u.local_date))""",
    "returns come after their sale": """FROM order_lines r JOIN (SELECT order_id, min(ts) t FROM order_lines GROUP BY 1) s
        ON r.original_order_id = s.order_id WHERE r.ts <= s.t""",
    "no more comes back than was sold": """FROM (SELECT original_order_id o, sum(net_cents) back FROM order_lines
        WHERE line_kind = 'return' GROUP BY 1) JOIN (SELECT order_id o, sum(net_cents) n FROM order_lines WHERE line_kind <> 'shipping'
        GROUP BY 1) USING (o) WHERE back + n < 0""",
    "list price less reductions is net": """FROM order_lines WHERE list_cents - discount_cents - coupon_cents - points_cents <> net_cents
        AND line_kind = 'sale'""",
    "a coupon used is a redemption": """FROM (SELECT DISTINCT order_id FROM order_lines WHERE coupon_cents > 0 AND line_kind = 'sale'
        AND member_id IS NOT NULL) FULL JOIN (SELECT order_id, campaign_id FROM redemptions) USING (order_id)
        WHERE campaign_id IS NULL OR order_id NOT IN (SELECT order_id FROM order_lines WHERE coupon_cents > 0)""",
    "who was drawn was exposed, in the same arm": """FROM truth_lots FULL JOIN (FROM exposures WHERE arm <> 'enrolled')
        USING (campaign_id, member_id, arm) WHERE day IS DISTINCT FROM local_date""",
    "nobody buys after leaving for good": """FROM truth_orders JOIN truth_people p USING (member_id) JOIN orders o USING (order_id)
        WHERE o.ts::DATE > p.died::DATE + 1""",
}  # fmt: skip


def rules(made):
    "All rules, those about references and the zone's dates included."
    world, zone = made.truth.world, made.workspace.config.zone
    every = dict(RULES)
    for table, column, other, key in REFERENCES:
        known = f"SELECT {key} FROM {other} WHERE {key} IS NOT NULL"
        every[f"{table}.{column} is in {other}"] = f"FROM {table} WHERE {column} IS NOT NULL AND {column} NOT IN ({known})"
    for name, spec in contracts().items():
        if not spec.time or "local_date" not in spec.columns: continue
        every[f"{name}: the local date is that of the zone"] = f"FROM {name} WHERE timezone('{zone}', {spec.time}::TIMESTAMPTZ)::DATE <> local_date"
        every[f"{name}: inside the world"] = f"FROM {name} WHERE local_date NOT BETWEEN DATE '{world.start}' AND DATE '{world.end}' - 1"
    every["order_lines: the local hour"] = f"FROM order_lines WHERE extract(hour FROM timezone('{zone}', ts::TIMESTAMPTZ)) <> local_hour"
    return every


def broken(made, con):
    return {name: n for name, rule in rules(made).items() if (n := con.execute(f"SELECT count(*) {rule}").fetchone()[0])}


def test_everything_fits_together(made):
    assert broken(made, views(made)) == {}


def test_references_are_filled(sql):
    "A rule about a column that is always empty would say nothing."
    for table, column, *_ in REFERENCES: assert sql(f"SELECT count({column}) > 0 FROM {table}") == [(True,)], (table, column)
    assert sql("SELECT count(DISTINCT kind) >= 6 FROM points_ledger") == [(True,)]
    assert sql("SELECT count(DISTINCT tier) FROM tier_history") == [(4,)]


SPOILT = {
    "members": "SELECT * FROM members OFFSET 1", "payments": "SELECT * REPLACE (cents + 1 AS cents) FROM payments",
    "points_ledger": "SELECT * REPLACE (CASE kind WHEN 'redeem' THEN points - 1 ELSE points END AS points) FROM points_ledger",
    "tier_history": "SELECT * REPLACE (valid_from + 1 AS valid_from) FROM tier_history",
    "redemptions": "SELECT * FROM redemptions OFFSET 1", "exposures": "SELECT * FROM exposures OFFSET 1",
    "order_lines": "SELECT * REPLACE (net_cents + 1 AS net_cents, ts + INTERVAL 9 HOUR AS ts) FROM order_lines",
}


@pytest.mark.parametrize("table", SPOILT)
def test_the_rules_notice_a_spoilt_table(made, table):
    con = views(made)
    con.execute(f"CREATE TABLE spoilt AS {SPOILT[table]}; DROP VIEW {table}; CREATE VIEW {table} AS FROM spoilt")
    assert broken(made, con)


SHARES = st.floats(0, 1)
WORLDS = st.builds(
    dict, n_members=st.integers(1, 250), seed=st.integers(0, 10**6), locale=st.sampled_from(["en", "zh"]),
    start=st.sampled_from(["2023-01-01", "2024-02-29"]), end=st.sampled_from(["2024-06-30", "2025-04-01"]),
    purchases=st.builds(Purchases, st.sampled_from(["bgnbd", "pareto_nbd"]), r=st.floats(.2, 6), never_share=SHARES),
    tastes=st.builds(Tastes, household_share=SHARES, second_card_share=SHARES, merged_share=SHARES, closed_share=SHARES,
                     late_join_share=SHARES, lines_mean=st.floats(1, 8)),
    points=st.builds(PointsPolicy, st.floats(0, 3), redeem_rate=SHARES, reward_rate=SHARES, expire_days=st.integers(1, 500),
                     welcome_points=st.integers(0, 1_000)),
    contacts=st.builds(Contacts, app_share=SHARES, refund_rate=SHARES, refund_whole=SHARES, feedback_rate=SHARES,
                       non_member_share=st.floats(0, .6), consent_share=SHARES, withdraw_share=SHARES),
    causes=st.sampled_from([Causes(), Causes(campaigns=()), Causes().without_effects()]))  # fmt: skip


@settings(max_examples=10, deadline=None, derandomize=True)
@given(WORLDS)
def test_every_world_fits_together(planted):
    "Whatever is planted, references lead somewhere and sums hold."
    made = make_programme(**planted)
    assert broken(made, views(made)) == {}
    assert check_workspace(made.workspace) == []


def test_members_do_nothing_before_they_join_but_buy(sql):
    "A purchase before joining is entered later in real files too; everything else needs a member."
    for table in ("points_ledger", "consents", "benefit_uses", "assigned_tags"):
        assert sql(f"SELECT count(*) FROM {table} t JOIN members m USING (member_id) WHERE t.ts < m.joined_at") == [(0,)], table
    first = "SELECT member_id, min(ts) AS first FROM orders GROUP BY 1"
    late = sql(f"SELECT avg((m.joined_at > o.first)::INT) FROM ({first}) o JOIN members m USING (member_id)")
    assert .04 < late[0][0] < .14


def test_the_truth_is_apart_from_the_tables(made, sql):
    "No latent rate, cause or link can be read off a table."
    told = {c for name in TABLES for c in pq.read_schema(made.workspace.folder / f"{name}.parquet").names}
    assert not told & {"lam", "p", "mu", "spend_mean", "died", "cause", "alive_days", "weight", "promo", "interest", "clock"}
    assert sql("SELECT count(*) FROM truth_links") > sql("SELECT count(*) FROM member_merges")
    assert made.truth.folder.parent == made.workspace.root and "truth" not in made.workspace.tables()
    assert read_truth(made.workspace.root).world == made.truth.world


def test_no_gap_and_no_number_tells_second_cards(made, sql):
    "Who joined on the marketplace is little known on either kind of card; numbers are dealt out by lot."
    second = "member_id IN (SELECT from_id FROM truth_links)"
    for column in ("city", "birth_date", "gender", "region"):
        for missing in ("IS NULL", "IS NOT NULL"):
            both = sql(f"SELECT avg(({second})::INT) FROM members WHERE join_channel = 'marketplace' AND {column} {missing}")[0][0]
            assert .02 < both < .8, (column, missing, both)
    places = sql(f"SELECT right(member_id, 4)::INT FROM members WHERE {second}")
    n, k = sql("SELECT count(*) FROM members")[0][0], len(places)
    assert abs(np.mean(places) - n / 2) < 4 * n / np.sqrt(12 * k)
    # one block of people: orders are numbered by time, so that neighbours say nothing about who bought
    assert sql("SELECT count(*) FROM (SELECT ts, lag(ts) OVER (ORDER BY order_id) earlier FROM orders) WHERE earlier > ts") == [(0,)]
    # nor do coupons: numbered as they were made, a fifth of all neighbours are of one card (here 0.5 %)
    steps = sql("SELECT avg((abs(m - lag)::INT <= 2)::INT) FROM (SELECT right(member_id, 4)::INT m, lag(m) OVER (ORDER BY coupon_id) lag FROM redemptions)")
    assert steps[0][0] < .05
    assert sql(f"SELECT avg(({second})::INT) < .8 FROM identities WHERE channel = 'marketplace'") == [(True,)]


def test_purchases_in_the_tables_are_those_of_the_truth(made, sql):
    "Own repeat orders that were not lost or unseen, by person; a returned order was still a purchase."
    counted = sql("SELECT count(*) FROM truth_orders WHERE cause = 'base'")[0][0]
    people = made.truth.people
    assert counted + made.truth.counts["lost_orders"] >= people.x.sum() + people["T"].notna().sum() >= counted



# the seed decides, not the machine

def content(simulated):
    folders = (simulated.workspace.folder, simulated.truth.folder)
    return {p.name: pq.read_table(p) for folder in folders for p in sorted(folder.glob("*.parquet"))}


def test_threads_and_chunks_change_nothing():
    short = dict(n_members=9_000, start="2024-01-01", end="2024-04-01", seed=5)
    one, two = content(make_programme(**short, threads=1)), content(make_programme(**short, threads=3, chunk_members=10_000))
    assert one.keys() == two.keys()
    for name in one: assert one[name].equals(two[name]), name
    other = content(make_programme(**short | {"seed": 6}))
    assert not other["order_lines.parquet"].equals(one["order_lines.parquet"])


def test_grains_by_ranges_are_the_grains_of_the_whole(monkeypatch, tmp_path):
    from memtag_research.data import simulate

    short = dict(n_members=9_000, start="2024-01-01", end="2024-04-01", seed=5)
    whole = content(make_programme(**short))
    monkeypatch.setattr(simulate, "LINES_AT_ONCE", 10_000)
    parts = content(make_programme(**short))
    for name in ("orders.parquet", "member_days.parquet"):
        pd.testing.assert_frame_equal(whole[name].to_pandas(), parts[name].to_pandas())


def test_the_same_world_without_its_effects():
    "Nobody buys less because a campaign does nothing: own purchases are the same, only additional ones are gone."
    planted = dict(n_members=1_000, end="2024-01-01", seed=2)
    flat = replace(Causes().tier, attrition=(1., 1., 1., 1.))
    loud = make_programme(**planted, causes=replace(Causes(), tier=flat))
    calm = make_programme(**planted, causes=Causes().without_effects())
    for column in ("lam", "x", "t_x", "T", "repeat_mean", "died"):
        np.testing.assert_array_equal(loud.truth.people[column], calm.truth.people[column])
    assert set(calm.truth.table("orders").cause) == {"base"} < set(loud.truth.table("orders").cause)


# on request

def test_faults_are_counted():
    faults = Faults(duplicate_lines=.01, returns_without_sale=.2, late_records=.05, negative_balances=.02, points_abuse=.01,
                    coupon_abuse=.02)
    faulty, clean = (make_programme(1_500, "2024-01-01", "2025-01-01", seed=7, faults=f) for f in (faults, Faults()))
    counts = {name: n for name, n in faulty.truth.counts.items() if name.startswith("fault_")}
    assert len(counts) >= 6 and min(counts.values()) > 0
    assert not any(name.startswith("fault_") for name in clean.truth.counts)
    assert check_workspace(faulty.workspace) == []
    lines = [s.workspace.table("order_lines").count().execute() for s in (faulty, clean)]
    assert lines[0] > lines[1] + counts["fault_duplicate_lines"] - 1


def test_messy_files_are_the_same_programme():
    made = make_programme(150, "2024-01-01", "2024-07-01", seed=9, locale="zh", as_messy_files=True)
    files = made.workspace.root / "files"
    done = ingest(files).tables["order_lines"]
    assert done.dropped["never paid"] == made.truth.counts["messy_never_paid"] > 0
    tills = made.workspace.table("order_lines").filter(lambda t: t.channel != "marketplace")
    again = open_workspace(files).table("order_lines")
    sums = [t.group_by("order_id").agg(net=t.net_cents.sum()).order_by("order_id").execute() for t in (tills, again)]
    pd.testing.assert_frame_equal(*sums)


def test_odd_worlds_can_be_made():
    make_programme(1, "2024-01-01", "2024-04-01")
    make_programme(4_097, "2023-01-01", "2023-07-01", 1)     # the second block: one person, drawn into no campaign
    make_programme(60, "2024-02-29", "2024-06-01", causes=Causes(campaigns=()), contacts=replace(Contacts(), incident=(), app_share=0.))
    make_programme(60, "2024-01-01", "2024-05-01", purchases=Purchases("pareto_nbd", never_share=1.), tastes=Tastes(second_card_share=0.))
    quiet = make_programme(200, "2024-01-01", "2024-06-01", contacts=replace(Contacts(), non_member_share=0., refund_rate=0.))
    assert quiet.workspace.table("order_lines").filter(lambda t: t.member_id.isnull()).count().execute() == 0


def test_other_numbers_of_tiers():
    three = dict(tiers=TierPolicy(("a", "b", "c"), (0, 50_000, 200_000)), points=PointsPolicy(tier_factors=(1., 1.2, 1.5)))
    made = make_programme(300, "2023-01-01", "2024-06-01", **three, causes=Causes().without_effects())
    assert set(made.workspace.table("tier_history").tier.execute()) == {"a", "b", "c"}
    with pytest.raises(ParameterError, match="PointsPolicy.tier_factors, TierEffect.orders_30d, .*need a value for each of the 3 tiers"):
        make_programme(300, tiers=three["tiers"])


def test_progress_is_told():
    told = []
    make_programme(5_000, "2024-01-01", "2024-04-01", progress=lambda *step: told.append(step))
    assert told == [(1, 2), (2, 2)]


def test_a_workspace_is_not_overwritten(tmp_path):
    make_programme(20, "2024-01-01", "2024-04-01", directory=tmp_path / "one")
    before = (tmp_path / "one/data/current/manifest.json").read_text()
    with pytest.raises(DefinitionError, match="is a workspace already"):
        make_programme(20, "2024-01-01", "2024-04-01", directory=tmp_path / "one")
    assert (tmp_path / "one/data/current/manifest.json").read_text() == before
    assert ingest(tmp_path / "one").unchanged


def test_wrong_questions():
    with pytest.raises(ParameterError, match="no argument 'sed'. Did you mean 'seed'"): make_programme(20, sed=1)
    with pytest.raises(NotComputable, match="not a simulated programme"): read_truth("/nowhere")
    with pytest.raises(ParameterError, match="at least 90 days"): make_programme(20, "2024-01-01", "2024-01-31")
    with pytest.raises(ParameterError, match="chunk_members"): make_programme(20, "2024-01-01", "2024-04-01", chunk_members=0)
    with pytest.raises(ParameterError, match="at most 400000000"): make_programme(10**15)
    with pytest.raises(ParameterError, match="orders a week and person"): make_programme(20, purchases=Purchases(r=10**6))
    with pytest.raises(ParameterError, match="needs a name"): make_programme(20, directory=" ")
    with pytest.raises(ParameterError, match="threads"): make_programme(20, "2024-01-01", "2024-04-01", threads=0)


def test_an_interrupted_run_leaves_no_workspace(tmp_path, monkeypatch):
    from memtag_research.data import simulate

    def broken(*_): raise KeyboardInterrupt
    monkeypatch.setattr(simulate, "make_contacts", broken)
    with pytest.raises(KeyboardInterrupt): make_programme(20, "2024-01-01", "2024-04-01", directory=tmp_path / "half")
    assert not (tmp_path / "half/memtag.yaml").exists() and not (tmp_path / "half/data/current").exists()
    monkeypatch.undo()
    assert open_workspace(make_programme(20, "2024-01-01", "2024-04-01", directory=tmp_path / "half").workspace.root).has("members")


def test_probability_of_silence_adds_up():
    "Over all who had bought, expected silence is what came: within four standard deviations, in every model."
    for how in (Purchases(), Purchases("pareto_nbd")):
        made = make_programme(3_000, "2023-01-01", "2024-01-01", seed=8, purchases=how, causes=Causes().without_effects(),
                              contacts=replace(Contacts(), incident=()))
        silence = made.truth.p_no_purchase("2023-08-01", 60).set_index("member_id").p_no_purchase
        dates = made.workspace.table("orders").select("order_id", "local_date").execute()
        own = made.truth.table("orders").merge(dates, on="order_id")
        bought = own[(own.local_date >= pd.Timestamp("2023-08-01")) & (own.local_date < pd.Timestamp("2023-09-30"))].member_id
        actual = (~silence.index.isin(bought)).sum()
        assert abs(actual - silence.sum()) < 4 * np.sqrt((silence * (1 - silence)).sum()), how.model


def test_parameters_are_saved_as_they_were():
    world = World(seed=3, faults=Faults(late_records=.1))
    assert to_json(world)["faults"]["late_records"] == .1


def test_spark_reads_what_was_written(made, spark):
    "Every table, its rows and types; the money of the lines to the cent."
    for name in made.workspace.tables():
        path = made.workspace.folder / f"{name}.parquet"
        here, there = made.workspace.table(name), spark.read_parquet(path)
        assert there.count().execute() == here.count().execute(), name
        assert {c: str(t).lstrip("!").replace("(6)", "") for c, t in there.schema().items()} == {
            c: str(t).lstrip("!").replace("(6)", "") for c, t in here.schema().items()}, name
        if name == "order_lines": assert there.net_cents.sum().execute() == here.net_cents.sum().execute()
