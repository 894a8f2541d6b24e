"""Catalogues: read and written without loss, every mistake with its place, and a hash that changes when values may."""

import copy
import string
import time
from dataclasses import MISSING, fields, replace

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from memtag_research.core import DefinitionError
from memtag_research.tags import definition as model
from memtag_research.tags.catalogues import (
    check_catalogue, closure, definition_hash, levels, make_catalogue, overlay, read_catalogue, types, value_type, write_catalogue)
from memtag_research.tags.definition import KINDS, Catalogue, FlagTag, Metric, NumberTag, Parameter, RulesTag, Segment, Source
from memtag_research.tags.graph import NOT_COUNTED, SECTIONS, key_of

GOOD = """\
sources:
  orders: {table: orders}
  lines: {table: order_lines, join: {products: product_id}, derive: {cut: discount_cents + coupon_cents}}
  events: {table: events}
parameters:
  d1: {calibrate: gap_quantile, of: orders, q: 0.9, fallback: 60}
  d2: {expr: 2 * d1}
metrics:
  orders_90d: {source: orders, agg: count, days: 90}
  spend_180d: {source: orders, agg: sum, of: net_cents, days: 180}
  recency: {source: orders, agg: days_since_last, days: all}
  mean_order: {expr: spend_180d / orders_90d}
tags:
  frequent:
    class: behaviour
    kind: flag
    title: {en: Frequent, zh: 高频}
    use: {en: early access}
    purpose: [service]
    when: orders_90d >= 12
    examples:
      - {orders_90d: 12, is: true}
      - {orders_90d: 11, is: false}
  stage:
    class: lifecycle
    kind: rules
    title: {en: Stage, zh: 阶段}
    use: {en: choose the message}
    purpose: [marketing]
    values:
      lost: recency > d2
      dormant: recency > d1
      live: else
segments:
  winback: {title: {en: Win back, zh: 挽回}, where: stage == 'lost' and not frequent, holdout: 0.1}
"""
TAG = "{class: value, title: {en: Other, zh: 其他}, use: {en: x}, purpose: [service], "   # a tag to which a test adds the rest


def line_of(text, part): return text[:text.index(part)].count("\n") + 1


def refused(*texts, check=True) -> str:
    with pytest.raises(DefinitionError) as caught: read_catalogue(*texts, check=check)
    return str(caught.value)


def with_tag(entry): return GOOD.replace("tags:\n", f"tags:\n  other: {TAG}{entry}}}\n")


# What is good

def test_the_good_catalogue_is_good():
    assert check_catalogue(read_catalogue(GOOD, check=True)) == []


def test_yaml_is_that_of_version_1_2():
    c = read_catalogue("tags:\n  yes: {kind: rules, values: {no: a > 1, on: b, off: else}, examples: [{a: yes, b: true, c: 012, d: 1_0, is: no}], title: {en: no}}")
    assert list(c.tags) == ["yes"] and list(c.tags["yes"].values) == ["no", "on", "off"]
    assert c.tags["yes"].examples == [{"a": "yes", "b": True, "c": 12, "d": "1_0", "is": "no"}] and c.tags["yes"].title == {"en": "no"}


def test_a_single_value_stands_for_a_list_of_one():
    assert read_catalogue("segments:\n  s: {where: x, minus: do_not_contact}").segments["s"].minus == ["do_not_contact"]


def test_an_expression_keeps_its_spelling_and_true_is_pythons():
    c = read_catalogue("tags: {a: {kind: flag, when: true}, b: {kind: number, metric: 012}, c: {kind: number, metric: 1e3}}")
    assert [c.tags["a"].when, c.tags["b"].metric, c.tags["c"].metric] == ["True", "012", "1e3"]


def test_a_byte_order_mark_is_skipped(tmp_path):
    (tmp_path / "c.yaml").write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert read_catalogue(tmp_path / "c.yaml") == read_catalogue(GOOD) == read_catalogue(str(tmp_path / "c.yaml"))


def test_places_are_those_of_the_file(tmp_path):
    (tmp_path / "c.yaml").write_text(GOOD, encoding="utf-8")
    places = read_catalogue(tmp_path / "c.yaml").places
    for keys, part in {("tags", "frequent"): "  frequent:", ("tags", "frequent", "when"): "when: orders", ("tags", "stage", "values", "dormant"): "dormant:",
                       ("tags", "frequent", "examples", 1): "orders_90d: 11", ("metrics", "recency"): "recency: {"}.items():
        assert places[keys] == f"{tmp_path / 'c.yaml'}:{line_of(GOOD, part)}"


# What is wrong: the change to the good catalogue, the line that must be named, what must be said

BAD = {
    "unknown key": ("agg: count, days: 90", "agg: count, dayz: 90", "orders_90d:", "metrics.orders_90d.dayz: there is no such key for a metric. Did you mean 'days'?"),
    "unknown key of a kind": ("    when: orders_90d", "    metric: orders_90d", "metric:", "tags.frequent.metric: there is no such key for a tag of kind flag."),
    "unknown section": ("segments:", "segmnts:", "segmnts:", "segmnts: there is no such section. Did you mean 'segments'?"),
    "unknown kind": ("kind: rules", "kind: rule", "kind: rule", "tags.stage.kind: there is no kind 'rule'. Did you mean 'rules'?"),
    "no kind": ("    kind: rules\n", "", "  stage:", "tags.stage: needs a kind; one of column, number, flag"),
    "unknown class": ("class: behaviour", "class: behavior", "class: behavior", "must be one of basic, behaviour,", "not 'behavior'. Did you mean 'behaviour'?"),
    "no class": ("    class: behaviour\n", "", "  frequent:", "tags.frequent: needs `class`: one class."),
    "unknown table": ("{table: orders}", "{table: order}", "orders: {table", "sources.orders.table: there is no table 'order'. Did you mean 'orders'?"),
    "unknown column": ("of: net_cents", "of: net_cent", "spend_180d:", "metrics.spend_180d.of: there is no column 'net_cent' in orders (source orders). Did you mean 'net_cents'?"),
    "unknown column of a join": ("cut: discount_cents", "cut: products.prize", "lines:", "no column 'products.prize' in order_lines (source lines)."),
    "table that is not joined": ("cut: discount_cents", "cut: stores.region", "lines:", "The source joins products."),
    "unknown joined table": ("products: product_id", "product: product_id", "lines:", "sources.lines.join.product: there is no table 'product'. Did you mean 'products'?"),
    "unknown column to join by": ("products: product_id", "products: produkt_id", "lines:", "there is no column 'produkt_id' in order_lines. Did you mean 'product_id'?"),
    "join that multiplies rows": ("products: product_id", "points_ledger: order_id", "lines:", "so rows would count twice; its key is entry_id."),
    "unknown metric": ("orders_90d >= 12", "order_90d >= 12", "when:", "tags.frequent.when: there is no metric or parameter or tag 'order_90d'. Did you mean 'orders_90d'?"),
    "unknown parameter": ("recency > d1", "recency > d3", "dormant:", "tags.stage.values.dormant: there is no metric or parameter or tag 'd3'."),
    "unknown tag": ("where: stage ==", "where: stages ==", "winback:", "segments.winback.where: there is no tag or segment or metric or parameter 'stages'. Did you mean 'stage'?"),
    "unknown source": ("orders_90d: {source: orders", "orders_90d: {source: order", "orders_90d:", "metrics.orders_90d.source: there is no source 'order'. Did you mean 'orders'?"),
    "tag in a metric": ("expr: spend_180d", "expr: frequent", "mean_order:", "'frequent' is a tag; here it must be a metric or parameter."),
    "metric cycle": ("agg: sum, of: net_cents, days: 180", "", "mean_order: {expr", None),
    "tag cycle": ("orders_90d >= 12", "stage == 'live'", "  frequent:", None),
    "missing days": ("agg: count, days: 90", "agg: count", "orders_90d:", "metrics.orders_90d: needs `days`", "Write `days: all`"),
    "no days": ("days: 90", "days: 0", "orders_90d:", "metrics.orders_90d.days: must be 1 or more days (at most 36,500), or `all`, not 0."),
    "days before time": ("days: 90", "days: -5", "orders_90d:", "not -5."),
    "days in quotes": ("days: 90", "days: '90'", "orders_90d:", "metrics.orders_90d.days: write 90 without quotes."),
    "broken days": ("days: 90", "days: 90.5", "orders_90d:", "metrics.orders_90d.days: must be a whole number or a text, not '90.5'."),
    "unknown window": ("days: 90", "days: d9", "orders_90d:", "metrics.orders_90d.days: there is no parameter 'd9'. There are d1, d2."),
    "negative offset": ("days: 90", "days: 90, offset: -1", "orders_90d:", "metrics.orders_90d.offset: must be 0 or more days"),
    "unknown aggregate": ("agg: count", "agg: cnt", "orders_90d:", "metrics.orders_90d.agg: must be one of count,", "Did you mean 'count'?"),
    "sum of texts": ("of: net_cents", "of: channel", "spend_180d:", "metrics.spend_180d.of: must be a number or true or false, not a text: channel."),
    "nothing to sum": ("of: net_cents, ", "", "spend_180d:", "metrics.spend_180d: needs `of`"),
    "source and expr": ("expr: spend_180d", "source: orders, expr: spend_180d", "mean_order:", "a metric has a source or an expr, not both."),
    "window of an expression": ("/ orders_90d}", "/ orders_90d, days: 9}", "mean_order:", "metrics.mean_order.days: belongs to a metric with a source"),
    "call of the forbidden": ("orders_90d >= 12", "__import__('os').system('id')", "when:", "tags.frequent.when: column 1 of `__import__('os').system('id')`"),
    "missing title": ("title: {en: Frequent, zh: 高频}", "title: {en: Frequent}", "title: {en: Frequent", "needs a title in zh."),
    "no title": ("    title: {en: Frequent, zh: 高频}\n", "", "  frequent:", "tags.frequent: needs `title`: display name by language"),
    "title of another language": ("zh: 高频", "fr: Fréquent", "title: {en: Frequent", "tags.frequent.title.fr: must be one of en, zh."),
    "long title": ("en: Frequent,", "en: Frequent buyer of all,", "title: {en: Frequent", "tags.frequent.title.en: 'Frequent buyer of all' has 21 characters; tools show 15."),
    "one title for two": ("{en: Stage, zh: 阶段}", "{en: frequent, zh: 阶段}", "{en: frequent", "'frequent' is the display name of 'frequent' too (text 1:"),
    "two equal rules": ("dormant: recency > d1", "dormant: (recency) > d2", "dormant:", "tags.stage.values.dormant: can never be reached: the rule of 'lost' above is the same."),
    "a rule within another": ("dormant: recency > d1", "dormant: recency > d2 and orders_90d == 0", "dormant:", "can never be reached: 'lost' above takes all of it."),
    "a value twice": ("dormant: recency > d1", "lost: recency > d1", "lost: recency > d1", "tags.stage.values.lost: stands twice; the first is on line 31. Keep one."),
    "no else": ("      live: else\n", "", "values:", "tags.stage.values: is not exhaustive. End with a value whose rule is `else`"),
    "else too early": ("dormant: recency > d1", "dormant: else", "dormant:", "tags.stage.values.dormant: `else` stands last"),
    "a value with quotes": ("dormant: recency", '"d\'ormant": recency', "values:", "cannot be a value: 1 to 40 characters without quotes"),
    "example that fails": ("orders_90d: 11, is: false", "orders_90d: 13, is: false", "orders_90d: 13", "tags.frequent.examples.1: gives true, not false: `orders_90d >= 12` is true with orders_90d = 13."),
    "example of another": ("orders_90d: 11, is", "recency: 11, is", "recency: 11", "tags.frequent.examples.1: the tag does not stand on 'recency'."),
    "example without end": ("{orders_90d: 11, is: false}", "{orders_90d: 11}", "{orders_90d: 11}", "tags.frequent.examples.1: needs `is`"),
    "example of mixed types": ("orders_90d: 11, is", "orders_90d: many, is", "orders_90d: many", "tags.frequent.examples.1: cannot be evaluated"),
    "number where a rule is due": ("orders_90d >= 12", "orders_90d", "when:", "tags.frequent.when: must be true or false, is a number: orders_90d."),
    "mixed types": ("stage == 'lost'", "stage == 3", "winback:", "segments.winback.where: `stage == 3 and not frequent`: the comparison mixes types"),
    "sensitive without basis": ("purpose: [service]", "privacy: sensitive_personal", "  frequent:", "tags.frequent: is sensitive_personal and needs a `basis`"),
    "weeks": ("purpose: [service]", "valid_for: 12w", "valid_for", "tags.frequent.valid_for: must be days such as 90d, not '12w'. Write 84d."),
    "unknown purpose": ("purpose: [service]", "purpose: [serivce]", "purpose", "tags.frequent.purpose.0: must be one of service,", "Did you mean 'service'?"),
    "successor that is not": ("purpose: [service]", "successor: staje", "successor", "tags.frequent.successor: there is no other tag 'staje'. Did you mean 'stage'?"),
    "label of no value": ("      live: else", "      live: else\n    labels: {dorment: {en: Asleep}}", "labels", "tags.stage.labels.dorment: there is no such value. Did you mean 'dormant'?"),
    "one label for two": ("      live: else", "      live: else\n    labels: {lost: {en: Off}, live: {en: Off}}", "labels", "two values are called 'Off' in en."),
    "quantile in a flag": ("orders_90d >= 12", "quantile(orders_90d, 5)", "when:", "quantile(x, n) stands in `uses`"),
    "a name of two things": ("  recency: {", "  stage: {source: orders, agg: count, days: 1}\n  recency: {", "  stage:\n", "is also the name of a metric (text 1:"),
    "a name that is taken": ("  frequent:", "  member_id:", "  member_id:", "tags.member_id: means something else already."),
    "a keyword": ("  frequent:", "  and:", "  and:", "tags.and: means something else already."),
    "a name of capitals": ("  frequent:", "  Frequent:", "  Frequent:", "tags.Frequent: a name is small letters, digits and _"),
    "parameter of nothing": ("{expr: 2 * d1}", "{unit: days}", "d2:", "parameters.d2: needs one of value, expr, calibrate; has none."),
    "parameter of two": ("{expr: 2 * d1}", "{expr: 2 * d1, value: 3}", "d2:", "needs one of value, expr, calibrate; has value and expr."),
    "share out of range": ("q: 0.9", "q: 1.5", "d1:", "parameters.d1.q: must lie in (0, 1), not 1.5."),
    "parameter cycle": ("{expr: 2 * d1}", "{expr: 2 * d2}", "d2:", "parameters.d2: parameter cycle: d2 → d2."),
    "column and parameter": ("d1: {calibrate", "net_cents: {value: 3}\n  d1: {calibrate", "spend_180d:", "'net_cents' is a column and a parameter."),
    "derived name of a column": ("cut: discount", "list_cents: discount", "lines:", "sources.lines.derive.list_cents: order_lines has a column of this name."),
    "holdout of all": ("holdout: 0.1", "holdout: 1", "winback:", "segments.winback.holdout: must lie in [0, 1), not 1."),
    "minus of no flag": ("holdout: 0.1", "minus: [stage]", "winback:", "segments.winback.minus.0: 'stage' is no flag."),
    "minus of nothing": ("holdout: 0.1", "minus: [stag]", "winback:", "segments.winback.minus.0: there is no tag or segment 'stag'. Did you mean 'stage'?"),
    "segment of all": ("where: stage == 'lost' and not frequent, ", "", "winback:", "segments.winback: needs a `where`"),
    "list for a text": ("class: behaviour", "class: [behaviour]", "class:", "tags.frequent.class: must be a text, not a list."),
    "text for a mapping": ("title: {en: Frequent, zh: 高频}", "title: Frequent", "title: Frequent", "tags.frequent.title: must be a mapping, not a text."),
    "text for a number": ("q: 0.9", "q: often", "d1:", "parameters.d1.q: must be a number, not 'often'."),
    "number beyond all": ("q: 0.9", "q: 1e400", "d1:", "parameters.d1.q: is out of range"),
    "not a number": ("q: 0.9", "q: .nan", "d1:", "parameters.d1.q: must be a number, not '.nan'."),
    "control character": ("en: early access", 'en: "early\\x07access"', "use: {en: \"early", "has a control character in it."),
}
CYCLES = {"metric cycle": "metrics.spend_180d: metric cycle: spend_180d → mean_order → spend_180d.", "tag cycle": "tags.frequent: tag cycle: frequent → stage → frequent."}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_definition_is_told_with_its_line_and_the_next_step(name):
    old, new, line, *texts = BAD[name]
    assert GOOD.count(old) >= 1
    text = GOOD.replace(old, new, 1)
    if name == "metric cycle": text, line, texts = text.replace("spend_180d: {source: orders, }", "spend_180d: {expr: mean_order * orders_90d}"), "spend_180d: {", [CYCLES[name]]
    if name == "tag cycle": text, texts = text.replace("dormant: recency > d1", "dormant: frequent"), [CYCLES[name]]
    said = refused(text)
    assert all(t in said for t in texts), said
    place = f"text 1:{line_of(text, line)}: "
    assert any(row.strip().startswith(place) and texts[0].split(" ")[0] in row for row in said.splitlines()), said


# The kinds: an entry of a tag that is wrong, and what is said of it

KIND_ERRORS = {
    "kind: column, from: members": "tags.other.from: must be table.column, such as members.gender, not 'members'.",
    "kind: column, from: member.gender": "there is no table 'member'. Did you mean 'members'?",
    "kind: column, from: members.gendre": "there is no column 'gendre' in members. Did you mean 'gender'?",
    "kind: column, from: order_lines.channel": "order_lines has many rows a member",
    "kind: column, from: members.birth_date, privacy: personal": "members.birth_date is a date",
    "kind: column, from: members.income_band": "members.income_band is a sensitive column: privacy must be sensitive_personal, with a basis.",
    "kind: column": "tags.other: needs `from`: table.column.",
    "kind: number": "needs `metric`",
    "kind: number, metric: frequent": "tags.other.metric: must be a number, is true or false: frequent.",
    "kind: flag": "needs `when`",
    "kind: rules": "needs `values`: value → rule, in order",
    "kind: rules, uses: {recency: orders_90d}, values: {a: recency > 2, b: else}": "tags.other.uses.recency: must be a name of its own",
    "kind: rules, uses: {r: 'quantile(frequent, 5)'}, values: {a: r > 2, b: else}": "quantile is of a number, not true or false.",
    "kind: rules, uses: {r: 'quantile(recency, 500)'}, values: {a: r > 2, b: else}": "tags.other.uses.r: column 1",
    "kind: quantile, metric: recency, values: [low]": "needs 2 to 100 values, has 1.",
    "kind: quantile, metric: recency, values: [low, low]": "the value 'low' is given twice.",
    "kind: quantile, metric: recency, values: [low, mid, high], shares: [0.5, 0.5]": "tags.other.shares: must rise and lie in (0, 1): 0.5, 0.5.",
    "kind: quantile, metric: recency, values: [low, mid, high], shares: [0.5]": "3 values need 2 shares, not 1.",
    "kind: quantile, metric: recency, values: [low, high], shares: [1]": "must rise and lie in (0, 1)",
    "kind: quantile, metric: recency, values: [low, high], otherwise: low": "'low' is a class too",
    "kind: quantile, metric: recency, values: [low, high], examples: [{recency: 3, is: low}]": "tags.other.examples: a tag of kind quantile looks at rows or at other members",
    "kind: quantile, values: [low, high]": "needs `metric`",
    "kind: affinity, source: lines, by: products.category": "tags.other: needs `days`",
    "kind: affinity, source: lines, by: products.categry, days: 90": "there is no column 'products.categry' in order_lines (source lines). Did you mean 'products.category'?",
    "kind: affinity, source: lines, by: local_date, days: 90": "tags.other.by: must be a text or a number or true or false, not a date: local_date.",
    "kind: affinity, source: lines, by: channel, of: channel, days: 90": "tags.other.of: must be a number or true or false, not a text: channel.",
    "kind: affinity, source: lines, by: channel, days: 90, top: 0": "tags.other.top: must be 1 to 20, not 0.",
    "kind: affinity, source: lines, by: channel, days: 90, min_rows: 0": "tags.other.min_rows: must be 1 to 1,000,000, not 0.",
    "kind: affinity, source: lines, by: channel, days: 90, half_life_days: 0": "tags.other.half_life_days: must be 1 to 36,500, not 0.",
    "kind: distribution, source: lines, by: channel, days: 90, min_share: 0": "tags.other.min_share: must lie in (0, 1], not 0.",
    "kind: distribution, source: line, by: channel, days: 90": "tags.other.source: there is no source 'line'. Did you mean 'lines'?",
    "kind: first_last, source: lines, of: channel, days: 90, pick: frist": "tags.other.pick: must be one of first, last, not 'frist'. Did you mean 'first'?",
    "kind: first_last, source: lines, of: local_date, days: all": "tags.other.of: must be a text or a number or true or false, not a date",
    "kind: first_last, source: lines, days: all": "needs `of`",
    "kind: sequence, first: {source: events}, days: 30": "tags.other: needs `then`",
    "kind: sequence, first: {where: 'value > 1'}, then: {source: orders}, days: 30": "tags.other.first: needs a source.",
    "kind: sequence, first: {source: event}, then: {source: orders}, days: 30": "tags.other.first.source: there is no source 'event'. Did you mean 'events'?",
    "kind: sequence, first: {source: events, wher: x}, then: {source: orders}, days: 30": "tags.other.first.wher: must be one of source, where. Did you mean 'where'?",
    "kind: sequence, first: {source: events, where: evnt == 'search'}, then: {source: orders}, days: 30": "tags.other.first.where: there is no column 'evnt' in events (source events). Did you mean 'event'?",
    "kind: sequence, first: {source: events}, then: {source: orders}, same: product_id, days: 30": "tags.other.same: there is no column 'product_id' in orders.",
    "kind: sequence, first: {source: events}, then: {source: orders}, within_days: 0, days: 30": "tags.other.within_days: must be 1 or more days",
    "kind: score, values: {high: 0.7}": "needs `model`",
    "kind: score, model: churn, values: {high: 0.4, mid: 0.7}": "tags.other.values: lowest scores must fall, or some values are out of reach: 0.4, 0.7.",
    "kind: score, model: churn, values: {high: much}": "tags.other.values.high: must be a whole number or a number, not 'much'.",
    "kind: assigned": "needs `channels`",
    "kind: assigned, channels: [guide, self]": "tags.other: needs `precedence`: all channels, strongest first.",
    "kind: assigned, channels: [guide, self], precedence: [self]": "tags.other.precedence: channels without a place: guide. List all, strongest first.",
    "kind: assigned, channels: [guide, self], precedence: [self, guide, import]": "tags.other.precedence: 'import' is none of the tag's channels.",
    "kind: assigned, channels: [guide, guide], precedence: [guide]": "tags.other.channels: names a channel twice.",
    "kind: assigned, channels: [gide], precedence: [gide]": "Did you mean 'guide'?",
    "kind: cluster, values: [a, b]": "needs `metrics`",
    "kind: cluster, metrics: [recency], values: [a]": "needs 2 to 20 values, has 1.",
    "kind: cluster, metrics: [frequent], values: [a, b]": "tags.other.metrics.0: must be a number, is true or false: frequent.",
    "kind: sql": "needs `sql`",
    "kind: sql, sql: 'SELECT member_id, 1 AS value FROM orders'": "tags.other.sql: must take :as_of",
    "kind: sql, sql: \"SELECT member_id, ':as_of' AS value FROM orders\"": "tags.other.sql: must take :as_of",
    "kind: sql, sql: 'SELECT member_id, :as_of AS value FROM orders; DROP TABLE orders'": "tags.other.sql: must be one SELECT.",
    "kind: sql, sql: 'DELETE FROM orders WHERE local_date < :as_of'": "tags.other.sql: must be one SELECT.",
    "kind: sql, sql: 'SELECT member_id FROM orders WHERE local_date < :as_of'": "must give member_id and value; it gives member_id.",
    "kind: sql, sql: \"SELECT member_id, :as_of AS value FROM read_csv('/etc/passwd')\"": "it may read tables of the programme only.",
    "kind: sql, sql: \"SELECT member_id, :as_of AS value FROM 'data/x.parquet'\"": "it may read tables of the programme only.",
    "kind: sql, sql: \"SELECT member_id, :as_of AS value FROM orders, read_text('/etc/passwd')\"": "it may read tables of the programme only.",
    "kind: sql, sql: 'SELECT member_id, :as_of AS value FROM information_schema.tables'": "it may read tables of the programme only.",
    "kind: sql, sql: 'SELECT member_id, :as_of AS value FROM oders'": "reads 'oders', which is no table of the programme. Did you mean 'orders'?",
    "kind: sql, sql: \"SELECT member_id, getenv('HOME') || :as_of AS value FROM orders\"": "calls getenv, whose answer changes from run to run.",
    "kind: sql, sql: 'SELECT member_id, now() - :as_of AS value FROM orders'": "Take :as_of for today.",
    "kind: sql, sql: 'SELECT member_id, current_date - :as_of AS value FROM orders'": "Take :as_of for today.",
    "kind: sql, sql: 'SELECT member_id, :asof AS value FROM orders'": "takes :as_of only, not :asof.",
    "kind: sql, sql: 'SELEC member_id FROM'": "tags.other.sql: ",
}


@pytest.mark.parametrize("entry", KIND_ERRORS)
def test_each_kind_refuses_what_it_cannot_mean(entry):
    text = with_tag(entry)
    said = refused(text)
    assert KIND_ERRORS[entry] in said, said
    assert f"text 1:{line_of(text, '  other:')}: tags.other" in said, said


KIND_GOOD = ["kind: column, from: members.gender, privacy: personal", "kind: column, from: tier_history.tier", "kind: number, metric: spend_180d / 100",
             "kind: quantile, metric: recency, values: [low, high], shares: [0.5], among: orders_90d > 0, otherwise: none",
             "kind: rules, uses: {r: 'quantile(-recency, 5)', f: orders_90d}, values: {a: r > 2 and f > 1, b: else}",
             "kind: rules, support: orders_90d >= 3, values: {a: recency > 2, b: recency <= 2}",
             "kind: affinity, source: lines, by: products.category, of: net_cents, days: d1, top: 3", "kind: distribution, source: lines, by: local_hour, days: all",
             "kind: first_last, source: lines, of: cut, days: all", "kind: sequence, first: {source: events, where: event == 'search'}, then: {source: orders}, within_days: 7, days: 30",
             "kind: score, model: churn, values: {high: 0.7, low: 0}, valid_for: 60d", "kind: assigned, channels: [guide], precedence: [guide], values: [a, b]",
             "kind: cluster, metrics: [recency, spend_180d / 100], values: [a, b]",
             "kind: sql, type: number, sql: 'WITH o AS (SELECT * FROM orders) SELECT member_id, max(units) AS value FROM o WHERE local_date < :as_of GROUP BY 1'"]


@pytest.mark.parametrize("entry", KIND_GOOD)
def test_each_kind_passes_what_it_can_mean(entry):
    assert check_catalogue(read_catalogue(with_tag(entry))) == []


# Doubts

DOUBTS = {
    "{en: Frequent, zh: 高频}": ("{en: Active, zh: 活跃会员}", ["title.en: 'Active' means two things: buying or interacting", "title.zh: '活跃会员' means two things"]),
    "class: behaviour": ("class: behaviour\n    status: deprecated", ["tags.frequent.status: is deprecated and names no successor.", "segments.winback: uses the deprecated tag 'frequent'."]),
    "    purpose: [service]\n": ("", ["tags.frequent: states no purpose."]),
    ", fallback: 60": ("", ["parameters.d1: has no fallback"]),
    "zh: 挽回": ("", ["segments.winback: has no title in zh."]),
    "holdout: 0.1": ("include: [1, 2], exclude: [2]", ["1 members are included and excluded; excluding is stronger."]),
}


@pytest.mark.parametrize("old", DOUBTS)
def test_what_is_doubtful_is_said_and_passes(old):
    new, said = DOUBTS[old]
    assert GOOD.count(old) == 1
    warnings = check_catalogue(read_catalogue(GOOD.replace(old, new)))
    assert len(warnings) == len(said) and all(any(s in w for w in warnings) for s in said), warnings


def test_a_deprecated_tag_with_its_successor():
    text = GOOD.replace("class: behaviour", "class: behaviour\n    status: deprecated\n    successor: stage")
    assert check_catalogue(read_catalogue(text)) == [f"text 1:{line_of(GOOD, 'winback') + 2}: segments.winback: uses the deprecated tag 'frequent'. Its successor is 'stage'."]


# All at once

def test_all_problems_of_all_files_are_one_error(tmp_path):
    (tmp_path / "a.yaml").write_text("metrics:\n  x: {source: orders, agg: cont, days: 3}\n  y: {expr: x + }\n", encoding="utf-8")
    (tmp_path / "b.yaml").write_text("tags:\n  z: {kind: falg}\n  w: {kind: flag, when: x > 1, wen: 3}\n", encoding="utf-8")
    said = refused(tmp_path / "a.yaml", tmp_path / "b.yaml")
    for at in ("a.yaml:2: metrics.x.agg:", "a.yaml:2: metrics.x.source: there is no source", "a.yaml:3: metrics.y.expr:", "b.yaml:2: tags.z.kind:", "b.yaml:3: tags.w.wen:"):
        assert at in said, said
    assert said.startswith(f"{len(said.splitlines()) - 1} problems in the definitions:")


def test_a_mistake_is_told_once_and_not_again_where_it_is_used():
    said = refused(GOOD.replace("agg: days_since_last", "agg: days_since_lst"))
    assert len(said.splitlines()) == 1 and "metrics.recency.agg" in said
    said = refused(GOOD.replace("{expr: 2 * d1}", "{expr: 2 * d9}"))
    assert len(said.splitlines()) == 1 and "parameters.d2.expr" in said


# Files that are none

@pytest.mark.parametrize("text, said", [
    ("", "is empty; sections are sources, parameters"), ("# nothing\n", "is empty"), ("- a\n- b\n", "must be a mapping of sections"), ("hello\nworld", "must be a mapping of sections"),
    ("tags:\n\tvip: {kind: flag}\n", "text 1:2: is not valid YAML: found character that cannot start any token. Indent with spaces, not tabs."),
    ("tags:\n  vip: {kind: flag\n", "is not valid YAML"), ("a: &x 1\nb: *x\n", "text 1:1: anchors and aliases"), ("tags: {b: *x}\n", "anchors and aliases"),
    ("tags: !!python/object/apply:os.system [id]\n", "text 1:1: tags such as"), ("tags: {}\n---\ntags: {}\n", "text 1:3: a second document begins"),
    ("? [a, b]\n: 1\n", "a key must be a text"), ("tags:\n  a: {kind: flag, when: x}\n  b: {kind: flag, when: x}\n  a: {kind: flag, when: y}\n", "text 1:4: tags.a: stands twice; the first is on line 2."),
    ("tags:\n  vip:\n    kind: flag\ntags:\n  x: 1\n", "text 1:4: tags: stands twice; the first is on line 1."), ("tags: [1, 2]\n", "tags: must be a mapping, not a list."),
    ("tags:\n  vip: 3\n", "tags.vip: must be a mapping, not a text."), ("tags:\n  vip: {kind: [flag]}\n", "there is no kind 'a list'."),
])
def test_a_text_that_is_no_catalogue(text, said):
    assert said in refused(text, check=False)


def test_a_file_that_is_not_utf8_is_refused_with_advice(tmp_path):
    (tmp_path / "gbk.yaml").write_bytes("tags:\n  vip: {title: {zh: 贵宾}}\n".encode("gb18030"))
    assert "gbk.yaml:2: is not UTF-8. Save it as UTF-8; if it is GB18030 (GBK), so: iconv -f GB18030 -t UTF-8 gbk.yaml" in refused(tmp_path / "gbk.yaml")
    (tmp_path / "wide.yaml").write_bytes(GOOD.encode("utf-16"))
    assert "is not UTF-8" in refused(tmp_path / "wide.yaml")
    assert "there is no file" in refused(tmp_path / "none.yaml")


HOSTILE = {"10 MB": "tags: {a: {kind: flag, when: '" + "x" * 10_000_000 + "'}}\n", "10,000 deep": "tags: " + "[" * 10_000 + "]" * 10_000 + "\n",
           "10,000 maps deep": "tags: " + "{a: " * 10_000 + "}" * 10_000 + "\n", "10,000 indents": "\n".join(" " * i + "a:" for i in range(1_400)),
           "laughs": "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi")),
           "a million keys": "tags: {" + ", ".join(f"a{i}: 1" for i in range(150_000)) + "}\n", "a long line": "tags: " + "a " * 900_000 + "\n"}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts_are_refused_and_do_not_blow_up(name):
    assert len(refused(HOSTILE[name], check=False)) < 40_000_000


def test_the_hostile_file_is_not_even_read(tmp_path, monkeypatch):
    (tmp_path / "big.yaml").write_text(HOSTILE["10 MB"])
    monkeypatch.setattr(type(tmp_path), "read_bytes", lambda self: pytest.fail("it was read"))
    assert "big.yaml: has 10,000,034 bytes; a catalogue has at most 2,000,000." in refused(tmp_path / "big.yaml")
