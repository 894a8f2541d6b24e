"""The shipped catalogue, as a whole: time, engines, threads, equal members, and other implementations of the same questions."""

from dataclasses import replace
from datetime import date
from functools import cache

import pandas as pd
import pyarrow as pa
import pytest
import tag_world as world

from memtag_research.data.engine import connect, to_frame
from memtag_research.insight.catalogue import shipped_catalogue
from memtag_research.measures.lifecycle import lifecycle_status
from memtag_research.measures.metrics import Book, dormancy_limits
from memtag_research.measures.rfm import rfm_score, rfm_summary
from memtag_research.tags import rows
from memtag_research.tags.compile import compile_tags, workings
from memtag_research.tags.definition import KINDS

AS_OF = world.AS_OF


@cache
def catalogue():
    "The shipped catalogue, its scores taken from the one model that the programme has scores of."
    shipped = shipped_catalogue()
    scored = {n: replace(t, model="vendor_churn", valid_for="120d") for n, t in shipped.tags.items() if t.kind == "score"}
    return replace(shipped, tags=shipped.tags | scored)


def evaluated(tables, as_of=AS_OF, con=None, **how) -> pd.DataFrame:
    "Every tag of the shipped catalogue, a row a member, lists as texts."
    compiled = compile_tags(catalogue(), world.in_engine(tables, con), as_of, **how)
    return comparable(to_frame(compiled.expr))


def comparable(frame):
    frame = frame.sort_values("member_id").set_index("member_id")
    frame = frame.astype(object).where(frame.notna(), None)
    return frame.map(lambda v: "|".join(v) if hasattr(v, "__len__") and not isinstance(v, str) else v)


def different(one, other) -> pd.Series:
    "Cells that differ, by tag; members that are in one only count in every tag."
    one, other = one.align(other, join="outer")
    same = (one == other) | (one.isna() & other.isna())
    return (~same).sum()[lambda s: s > 0]


@pytest.fixture(scope="module")
def frozen() -> dict:
    "Parameters as of the date, so that what is calibrated on all members is not what a test is about."
    compiled = compile_tags(catalogue(), world.in_engine(world.tables()), AS_OF)
    return {name: found.value for name, found in compiled.parameters.items()}


@pytest.fixture(scope="module")
def full() -> pd.DataFrame: return evaluated(world.tables())


def test_every_tag_has_members_on_both_sides(full):
    assert {t.kind for t in catalogue().tags.values()} == set(KINDS)
    assert set(full.columns) == set(catalogue().tags)
    for tag in full.columns: assert full[tag].nunique(dropna=False) >= 2, f"{tag} says nothing: {full[tag].unique()}"


def test_nothing_after_as_of_changes_a_tag(full):
    cut, poisoned = evaluated(world.cut(world.tables(), AS_OF)), evaluated(world.poison(world.tables(), AS_OF))
    assert different(full, cut).empty, different(full, cut)
    assert different(full, poisoned).empty, different(full, poisoned)


def test_the_tests_of_time_notice_a_filter_that_is_gone(monkeypatch):
    monkeypatch.setattr(rows, "known", lambda table, as_of, ends=None: table)
    whole, cut = evaluated(world.tables()), evaluated(world.cut(world.tables(), AS_OF))
    poisoned = evaluated(world.poison(world.tables(), AS_OF))
    assert len(different(whole, cut)) >= 15
    assert len(different(whole, poisoned)) >= 15


def test_what_was_recorded_late_was_not_known():
    late, without = world.learn_late(world.tables(), AS_OF)
    assert different(evaluated(late, knowledge_time=True), evaluated(without)).empty
    assert len(different(evaluated(late), evaluated(without))) >= 10           # else the late rows matter to nothing


def test_equal_at_every_run_and_with_any_number_of_threads(full):
    con = connect()
    compiled = compile_tags(catalogue(), world.in_engine(world.tables(), con), AS_OF)
    for threads in (1, 2, 4, 1, 3, 2, 1, 4, 2, 1):
        con.raw_sql(f"SET threads = {threads}")
        assert different(full, comparable(to_frame(compiled.expr))).empty


def test_the_order_of_rows_does_not_matter(full):
    turned = {name: table.take(pa.array(range(table.num_rows - 1, -1, -1))) for name, table in world.tables().items()}
    assert different(full, evaluated(turned)).empty


def test_equal_members_have_equal_tags(full, frozen):
    "Everybody once more under another id: shares of all stay as they are, so nobody's tags change, and the twin has them too."
    owned = [n for n, t in world.tables().items() if {"member_id", "from_id"} & {*t.column_names}]
    twins = dict(world.tables())
    for name in owned: twins[name] = pa.concat_tables([twins[name], _twin(twins[name])])
    both = evaluated(twins, parameters=frozen)
    alone = evaluated(world.tables(), parameters=frozen)
    assert different(alone, both.loc[alone.index]).empty
    twin = both[both.index.str.startswith("twin")].rename(index=lambda i: i.removeprefix("twin"))
    assert different(alone, twin).empty


def _twin(table):
    ids = [c for c in ("member_id", "order_id", "original_order_id", "line_id", "entry_id", "session_id", "from_id", "to_id") if c in table.column_names]
    return world._sql("SELECT * REPLACE (" + ", ".join(f"'twin' || {c} AS {c}" for c in ids) + ") FROM t", t=table).cast(table.schema)


def test_spark_says_the_same_cell_for_cell(full, frozen, spark):
    ours, theirs = evaluated(world.tables(), parameters=frozen), evaluated(world.tables(), con=spark, parameters=frozen)
    assert different(ours, full).empty
    assert different(ours, theirs).empty, different(ours, theirs)


def test_lifecycle_and_recency_are_those_of_the_measures():
    "Two roads to one answer: the tag, and measures.lifecycle with the limits that the tag was calibrated to."
    tables = world.in_engine(world.tables())
    compiled = compile_tags(catalogue(), tables, AS_OF, tags=["lifecycle", "recency"])
    tags = to_frame(compiled.expr).set_index("member_id")
    limits = {name: int(compiled.parameters[name].value) for name in ("dormant_days", "lost_days", "loyal_days")}
    stages = lifecycle_status(tables["member_days"], AS_OF, limits["dormant_days"], limits["lost_days"], limits["loyal_days"],
                              tables["members"], merges=tables["member_merges"]).set_index("member_id")
    assert {*to_frame(tables["member_merges"])[lambda f: f.local_date < pd.Timestamp(AS_OF)].from_id}.isdisjoint(tags.index)
    assert tags.lifecycle.sort_index().equals(stages.stage.reindex(tags.index).sort_index().astype(tags.lifecycle.dtype))
    rfm = to_frame(rfm_summary(tables["member_days"], AS_OF)).set_index("member_id")
    assert (tags.recency.dropna() == rfm.recency_days.reindex(tags.index).dropna()).all() and len(tags.recency.dropna()) > 100


@pytest.mark.parametrize("day", [AS_OF, date(2024, 4, 1), date(2024, 6, 20)])
def test_the_limits_of_the_lifecycle_are_those_of_the_metrics_at_the_start_of_the_quarter(day):
    "D1 is G90 of the repurchase cycle, D2 twice that; refunds on a day of their own (the world has some) are no purchases."
    tables = world.in_engine(world.tables())
    found = compile_tags(catalogue(), tables, day, tags=["lifecycle"]).parameters
    start = date(day.year, (day.month - 1) // 3 * 3 + 1, 1)
    assert (found["dormant_days"].at, found["lost_days"].value) == (start, 2 * found["dormant_days"].value)
    assert (found["dormant_days"].value, 2 * found["dormant_days"].value) == dormancy_limits(Book(orders=tables["orders"]), start)
    days = to_frame(tables["member_days"])
    assert ((days.purchase_days == 0) & days.cancelled_date.isna() & days.member_id.notna()).sum() > 50


def test_rfm_scores_are_those_of_the_measure():
    "R, F and M of the tag, and measures.rfm over the same members: who never bought has no score, and moves nobody's."
    tables = world.in_engine(world.tables())
    table = workings(catalogue(), tables, AS_OF, "rfm_value").table
    tags = to_frame(table.select("member_id", "rfm_value", **{f"{x}_score": table[f"rfm_value.{x}"] for x in "rfm"})).set_index("member_id")
    scored = to_frame(rfm_score(rfm_summary(tables["member_days"].semi_join(table, "member_id"), AS_OF, 365))).set_index("member_id").sort_index()
    mine = tags.dropna(subset="r_score").sort_index()
    assert len(tags) > len(mine) + 10 and tags.rfm_value.notna().sum() == len(mine)
    assert {*scored.index} == {*mine.index} and (mine[["r_score", "f_score", "m_score"]].astype("int64") == scored[["r_score", "f_score", "m_score"]]).all(axis=None)


def test_only_what_is_asked_is_computed():
    compiled = compile_tags(catalogue(), world.in_engine(world.tables()), AS_OF, tags=["recency"])
    assert compiled.expr.columns == ("member_id", "recency") and set(compiled.catalogue.tags) == {"recency"}
    assert "order_lines" not in compiled.sql() and "events" not in compiled.sql()


def test_a_workspace_without_the_tables_says_what_is_missing():
    tables = {k: v for k, v in world.in_engine(world.tables()).items() if k in ("order_lines", "orders", "member_days", "products")}
    compiled = compile_tags(catalogue(), tables, AS_OF)
    assert {"age_band", "cart_no_order", "tier", "price_level", "churn_risk", "do_not_contact"} <= set(compiled.not_computable)
    assert "members" in compiled.not_computable["age_band"] and "events" in compiled.not_computable["cart_no_order"]
    assert {"lifecycle", "spend_level", "category_affinity", "main_channel"} <= set(compiled.tags)


@pytest.mark.parametrize("day", [date(2023, 2, 1), date(2024, 6, 30)])
def test_other_dates_too(day):
    assert different(evaluated(world.tables(), day), evaluated(world.cut(world.tables(), day), day)).empty
