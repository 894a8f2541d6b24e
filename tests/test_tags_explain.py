"""Why a member has a value, kind by kind: numbers worked by hand; and what a stored snapshot says beside it."""

from datetime import date

import pandas as pd
import pytest
import tag_world

from memtag_research.core import NotComputable, ParameterError
from memtag_research.data.engine import as_table, connect
from memtag_research.data.simulate import make_programme
from memtag_research.tags.catalogues import read_catalogue
from memtag_research.tags.compile import compile_tags
from memtag_research.tags.explain import explain_tag
from memtag_research.tags.given import assign
from memtag_research.tags.runs import take_snapshot

AS_OF = date(2024, 3, 1)
CATALOGUE = read_catalogue("""
sources:
  sold: {table: orders}
  seen: {table: events}
metrics:
  orders_all: {source: sold, agg: count, days: all}
tags:
  likes:    {class: preference, kind: affinity, title: {en: Likes, zh: 偏好}, source: sold, by: channel, of: net_cents, days: all, min_rows: 2, min_days: 2, top: 2, labels: {tea: {en: Tea, zh: 茶}}}
  single:   {class: preference, kind: affinity, title: {en: Likes, zh: 偏好}, source: sold, by: channel, of: net_cents, days: all, min_rows: 5}
  main:     {class: channel, kind: distribution, title: {en: Main, zh: 主要}, source: sold, by: channel, of: net_cents, days: all, min_rows: 1, min_share: 0.8, otherwise: mixed}
  last:     {class: channel, kind: first_last, title: {en: Last, zh: 最近}, source: sold, of: channel, days: all}
  returned: {class: behaviour, kind: sequence, title: {en: Returned, zh: 看后买}, first: {source: seen}, then: {source: sold}, within_days: 7, days: all}
  left:     {class: behaviour, kind: sequence, title: {en: Left, zh: 看后未买}, first: {source: seen}, then: {source: sold}, within_days: 7, days: all, never: true}
  level:    {class: value, kind: assigned, title: {en: Level, zh: 级别}, channels: [manual, guide, self], precedence: [manual, guide, self], values: [high, low], valid_for: 30d}
  risk:     {class: risk, kind: score, title: {en: Risk, zh: 风险}, model: churn, values: {high: 0.8, middle: 0.5, low: 0}}
  said:     {class: basic, kind: sql, title: {en: Said, zh: 语句}, type: text, sql: "SELECT member_id, 'often' AS value FROM orders WHERE local_date < :as_of GROUP BY member_id HAVING count(*) > 2"}
  group:    {class: value, kind: cluster, title: {en: Group, zh: 群}, metrics: [orders_all], values: [few, many]}
""")


def frame(columns, *rows):
    out = pd.DataFrame(rows, columns=columns.split())
    for c in out.columns:
        if c == "ts": out[c] = pd.to_datetime(out[c])
        elif c.endswith("_date") or c in ("as_of", "valid_until"): out[c] = pd.to_datetime(out[c]).dt.date
    return out


@pytest.fixture(scope="module")
def tables():
    con = connect()
    frames = {
        "orders": frame("order_id member_id ts local_date net_cents channel",
                        ("o1", "ada_____1", "2024-01-05 10:00", "2024-01-05", 4000, "tea"), ("o2", "ada_____1", "2024-01-06 10:00", "2024-01-06", 2000, "tea"),
                        ("o3", "ada_____1", "2024-02-10 10:00", "2024-02-10", 2000, "rice"), ("o4", "bob_____2", "2024-01-08 10:00", "2024-01-08", 2000, "tea"),
                        ("o5", "bob_____2", "2024-01-09 10:00", "2024-01-09", 10000, "rice")),
        "events": frame("event_id member_id ts local_date", ("e1", "ada_____1", "2024-01-01 10:00", "2024-01-01"),
                        ("e2", "ada_____1", "2024-01-10 10:00", "2024-01-10"), ("e3", "ada_____1", "2024-02-20 10:00", "2024-02-20")),
        "assigned_tags": frame("member_id tag value channel ts local_date assigned_by reason expires_date revoked_date",
                               ("ada_____1", "level", "high", "self", "2024-02-20", "2024-02-20", "ada herself", "wishes", None, None),
                               ("ada_____1", "level", "low", "guide", "2024-02-15", "2024-02-15", "guide Wu", "seen", None, None),
                               ("ada_____1", "level", "high", "manual", "2024-01-10", "2024-01-10", "desk", "x", None, None),
                               ("ada_____1", "level", "high", "manual", "2024-02-01", "2024-02-01", "desk", "x", None, "2024-02-10")),
        "scores": frame("member_id model model_version as_of score valid_until", ("ada_____1", "churn", "v1", "2024-01-01", .9, None),
                        ("ada_____1", "churn", "v2", "2024-02-01", .625, "2024-04-01"), ("bob_____2", "churn", "v1", "2024-01-01", .9, "2024-02-01"))}
    return {name: as_table(f, con) for name, f in frames.items()}


def why(tables, tag, member="ada_____1", lang="en", **more): return explain_tag(CATALOGUE, tables, AS_OF, tag, member, lang=lang, **more)
def steps(made): return [(s.truth, s.text) for s in made.steps]


CENTRES = {"group.centres": {"means": [3.0], "scales": [2.0], "centres": [[-0.5], [0.25]]}}
CASES = {  # tag → (its value, what is said in English, what is said in Chinese), by hand
    # Ada: tea 6,000 of 8,000 on 2 days, all: tea 8,000 of 20,000; 100 × 0.75 / 0.4 = 187.5; rice 100 × 0.25 / 0.6 = 41.666…
    "likes": (["tea"], [(True, "3 orders add to it; at least 2 are needed"),
                        (True, "Tea: 75.0% of the member's, 40.0% of all members': TGI 187.5, at least 120, on 2 days, at least 2"),
                        (False, "rice: 25.0% of the member's, 60.0% of all members': TGI 41.7, at least 120, on 1 days, at least 2")],
              "茶：本人占比 75.0%，全体占比 40.0%，TGI 187.5，至少 120，2 天，至少 2 天"),
    "single": (None, [(False, "3 orders add to it; at least 5 are needed")], "计入 3 个订单，至少需要 5 个"),
    "main": ("mixed", [(False, "tea: 75.0% of the member's, at least 80.0%"), ("", "rice: 25.0% of the member's")], "tea：占本人 75.0%，至少 80.0%"),
    "last": ("rice", [("", "The last row: rice on 2024-02-10")], "末条记录：2024-02-10 为 rice"),
    # a look on 1 January was followed after 4 days, one on the 10th after 31, one on 20 February not yet
    "returned": (True, [(True, "2024-01-01 → 2024-01-05: after 4 days, at most 7"), (False, "2024-01-10 → 2024-02-10: after 31 days, at most 7"),
                        (False, "2024-02-20 → nothing since")], "2024-01-01 → 2024-01-05：相隔 4 天，至多 7 天"),
    "left": (True, [(True, "2024-01-10 → 2024-02-10: after 31 days, at most 7"), (True, "2024-02-20 → nothing since"),
                    (False, "2024-01-01 → 2024-01-05: after 4 days, at most 7")], "2024-02-20 → 之后没有"),
    "level": ("low", [(False, "high, by hand (1 of 3 in precedence), 2024-02-01: revoked on 2024-02-10"),
                      (False, "high, by hand (1 of 3 in precedence), 2024-01-10: valid for 30 days, until 2024-02-09"),
                      (True, "low, store associate (2 of 3 in precedence), 2024-02-15: decides"),
                      ("", "high, the member (3 of 3 in precedence), 2024-02-20: holds, but a stronger or later one decides")],
              "low，导购（优先级 2/3），2024-02-15：决定取值"),
    "risk": ("middle", [("", "churn, version v2, of 2024-02-01: score 0.625"), (True, "valid until 2024-04-01"), (False, "high: from 0.8"),
                        (True, "middle: from 0.5")], "churn，版本 v2，2024-02-01：评分 0.625"),
    "said": ("often", [("", "The statement of said says often")], "said 的语句结果：often"),
    # 3 orders are the mean: 0 standard deviations; centres at -0.5 and 0.25
    "group": ("many", [("", "orders_all = 3: 0.00 standard deviations from the mean of 3"), (False, "few: at a distance of 0.50"),
                       (True, "many: at a distance of 0.25")], "many：距离 0.25")}


@pytest.mark.parametrize("tag", CASES)
def test_every_kind_says_what_decided(tables, tag):
    value, english, chinese = CASES[tag]
    given = {"parameters": CENTRES} if tag == "group" else {}
    made = why(tables, tag, **given)
    assert made.value == value
    said = [s for s in steps(made) if s in english]
    assert said == english, made.text
    zh = why(tables, tag, lang="zh", **given)
    assert chinese in zh.text and zh.head.startswith("会员 a****1 的 ") and len(zh.steps) == len(made.steps)
    for text in (made.text, zh.text, made._repr_html_()):
        assert not any(personal in text for personal in ("ada_____1", "bob", "Wu", "wishes", "desk"))
    assert all(f"{line.split(' → ')[0]}" in made._repr_html_() for _, line in english if "'" not in line)


WORLD = read_catalogue("""
tags:
  price_level: {class: value, kind: assigned, title: {en: Level, zh: 级别}, channels: [self, guide, import, campaign, manual], precedence: [self, guide, import, campaign, manual], values: [low, middle, high], valid_for: 200d}
  lapse: {class: risk, kind: score, title: {en: Risk, zh: 风险}, model: vendor_churn, values: {high: 0.8, middle: 0.5, low: 0}}
""")


@pytest.mark.parametrize("tag", WORLD.tags)
def test_what_is_said_to_decide_is_the_value_that_the_engine_finds(tag):
    "The explanation works out expiry, precedence and cuts anew: it ends where the compiled tag does."
    world = tag_world.in_engine(tag_world.tables(people=120))
    values = compile_tags(WORLD, world, tag_world.AS_OF, tags=[tag]).to_frame().set_index("member_id")[tag]
    values = values.sort_index()
    some, none = values[values.notna()].index[:15], values[values.isna()].index[:15]
    assert min(len(some), len(none)) > 5
    for member in [*some, *none]:
        made = explain_tag(WORLD, world, tag_world.AS_OF, tag, member)
        holds = [s.text for s in made.steps if s.truth is True]
        said = [t for t in holds if t.endswith("decides") or ": from " in t]
        assert made.value == (None if pd.isna(values[member]) else values[member])
        assert len(said) == (made.value is not None) and all(t.startswith(made.value) for t in said), made.text


def test_a_score_that_has_ended_and_members_without_rows(tables):
    ended = why(tables, "risk", "bob_____2")
    assert ended.value is None and (False, "no longer valid since 2024-02-01") in steps(ended)
    assert ("", "Nothing is assigned") in steps(why(tables, "level", "bob_____2"))
    assert ("", "The statement of said does not name this member") in steps(why(tables, "said", "bob_____2"))


def test_parameters_are_explained_in_chinese():
    ws = make_programme(150, "2023-01-01", "2024-01-01", seed=3, locale="zh").workspace
    catalogue = read_catalogue("""
sources: {bought: {table: orders}}
metrics: {orders_all: {source: bought, agg: count, days: all}}
parameters:
  many: {calibrate: quantile, of: orders_all, q: 0.8, among: orders_all > 0, min_n: 20, freeze: quarterly}
  few: {calibrate: quantile, of: orders_all, q: 0.2, min_n: 9999, fallback: 1, freeze: quarterly}
tags: {often: {class: behaviour, kind: flag, when: orders_all >= many and orders_all > few, title: {en: Often, zh: 高频}}}
""")
    member = ws.table("orders").member_id.min().execute()
    text = explain_tag(catalogue, ws, "2023-11-15", "often", member).text
    assert "orders_all（限 orders_all > 0）的 0.8 分位数，2023-10-01 校准，基于 " in text and "可用值不足（" in text and "quantile 0.8" not in text
    assert "quantile 0.8 of orders_all among orders_all > 0, found at 2023-10-01 on " in explain_tag(catalogue, ws, "2023-11-15", "often", member, lang="en").text


def test_rules_and_metrics_are_in_chinese(tables):
    catalogue = read_catalogue("""
sources: {sold: {table: orders}}
metrics:
  orders_all: {source: sold, agg: count, days: all}
  net: {source: sold, agg: sum, of: net_cents, days: 30}
tags:
  stage: {class: lifecycle, kind: rules, title: {en: Stage, zh: 阶段}, values: {none: orders_all == 0, some: net > 100, rest: else},
          labels: {none: {en: None yet, zh: 未购}, some: {en: Some, zh: 近期}}}
""")
    said = {lang: steps(explain_tag(catalogue, tables, AS_OF, "stage", "ada_____1", lang=lang)) for lang in ("en", "zh")}
    assert {(False, "未购: orders_all == 0"), (True, "近期: net > 100"), ("", "orders_all = 3: sold 的行数, 截至 2024-02-29 的全部日期"),
            ("", "net = 2,000: sold 中 net_cents 的合计, 日期 2024-01-31 至 2024-02-29")} <= set(said["zh"])
    assert {(False, "None yet: orders_all == 0"), ("", "orders_all = 3: number of rows of sold, all days to 2024-02-29"),
            ("", "net = 2,000: sum of net_cents in sold, days 2024-01-31 to 2024-02-29")} <= set(said["en"])


TEXT = """
sources: {{bought: {{table: orders}}}}
metrics: {{orders_all: {{source: bought, agg: count, days: all}}}}
tags:
  often: {{class: behaviour, kind: flag, when: orders_all >= {least}, title: {{en: Often, zh: 高频}}}}
  level: {{class: value, kind: assigned, channels: [manual], precedence: [manual], values: [gold], title: {{en: Level, zh: 级别}}}}
"""


def test_what_the_stored_snapshot_says_besides(tmp_path):
    ws = make_programme(120, "2023-01-01", "2024-01-01", seed=3, directory=tmp_path / "ws").workspace
    old, new = (read_catalogue(TEXT.format(least=n)) for n in (1, 3))
    orders = ws.table("orders").execute()
    counts = orders[orders.local_date < pd.Timestamp("2023-08-01")].member_id.value_counts()
    one, three = counts[counts == 1].index[0], counts[counts >= 3].index[0]
    day = "2023-08-01"
    assert "snapshot" not in explain_tag(old, ws, day, "often", one).text            # none is there
    take_snapshot(ws, old, day)
    assert "snapshot" not in explain_tag(old, ws, day, "often", one).text            # it says the same
    said = explain_tag(new, ws, day, "often", one)
    assert said.value is False and said.steps[-1].text == f"The snapshot of {day} says yes, by another definition than this one"
    assert explain_tag(new, ws, day, "often", three).steps[-1].text == f"The snapshot of {day} has the same value, by another definition than this one"
    assert explain_tag(new, ws, day, "often", one, lang="zh").steps[-1].text == f"{day} 的快照为 是：其定义与当前定义不同"
    assign(ws, old, "level", one, "gold", ts="2023-07-20")                           # after the snapshot was made
    said = explain_tag(old, ws, day, "level", one)
    assert said.value == "gold" and said.steps[-1].text == f"The snapshot of {day} says Unknown: data or parameters have changed since it was made"


def test_mistakes(tables):
    with pytest.raises(ParameterError, match=r"nob\*\*\*\*here is no member"): why(tables, "likes", "nobody_here")
    with pytest.raises(ParameterError, match="lang must be"): why(tables, "likes", lang="de")
    with pytest.raises(NotComputable, match="scores"): why({n: t for n, t in tables.items() if n != "scores"}, "risk")
