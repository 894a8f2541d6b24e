"""Catalogues: read and written without loss, every mistake with its place, and a hash that changes when values may."""

import copy
from dataclasses import MISSING, fields, replace

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from memtag_research.core import DefinitionError
from memtag_research.tags import definition as model
from memtag_research.tags.catalogues import (
    check_catalogue,
    closure,
    definition_hash,
    levels,
    make_catalogue,
    overlay,
    read_catalogue,
    types,
    value_type,
    write_catalogue,
)
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
    "a value misspelt": ("stage == 'lost'", "stage == 'lsot'", "winback:", "segments.winback.where: stage has no value 'lsot'; it has lost, dormant, live. Did you mean 'lost'?"),
    "a value on the left": ("stage == 'lost' and not", "frequent and 'LOST' != stage and not", "winback:", "segments.winback.where: stage has no value 'LOST'", "Did you mean 'lost'?"),
    "values in a list": ("where: stage == 'lost' and not frequent", "where: \"stage not in ('lost', 'gone', 'liv')\"", "winback:", "segments.winback.where: stage has no value 'gone'; it has", "stage has no value 'liv'; it has lost, dormant, live. Did you mean 'live'?"),
    "a value in a flag": ("    when: orders_90d >= 12", "    when: orders_90d >= 12 and stage in ('dormnt',)", "when:", "tags.frequent.when: stage has no value 'dormnt'"),
    "a value in a support": ("    purpose: [service]", "    support: stage != 'aliv'\n    purpose: [service]", "support:", "tags.frequent.support: stage has no value 'aliv'"),
    "a title for a value": ("      live: else", "      live: else\n    labels: {lost: {en: Churned, zh: 流失}}\n  gone: " + TAG + "kind: flag, when: stage == '流失' or stage == 'churned'}",
                            "gone:", "stage has no value '流失'; it has lost, dormant, live. '流失' is the title of 'lost': write 'lost'.", "'churned' is the title of 'lost': write 'lost'."),
    "almost a title": ("      live: else", "      live: else\n    labels: {lost: {en: Churned, zh: 流失}}\n  gone: " + TAG + "kind: flag, when: stage == 'Churnd'}",
                       "gone:", "stage has no value 'Churnd'; it has lost, dormant, live. Did you mean 'lost' (Churned)?"),
    "a code of a column": ("{source: orders, agg: count, days: 90}", "{source: lines, agg: count, where: line_kind == 'sales', days: 90}", "orders_90d:",
                           "metrics.orders_90d.where: line_kind has no value 'sales'; it has sale, return,", "Did you mean 'sale'?"),
    "a code in a source": ("events: {table: events}", "events: {table: events, where: \"event in ('page_viw', 'search')\"}", "events: {",
                           "sources.events.where: event has no value 'page_viw'; it has page_view,", "and 16 more. Did you mean 'page_view'?"),
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


def test_values_that_may_be_anything_are_not_asked_for():
    "A column, an assigned flag, a number of the same name's text, and declared values themselves."
    open_ = with_tag("kind: column, from: members.city") + "  s2: {where: \"other == 'Nowhere' or stage in ('lost', 'live') or 'live' != stage\"}\n"
    assert not [w for w in check_catalogue(read_catalogue(open_)) if "has no value" in w]


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
    "kind: sql, sql: \"SELECT member_id, :as_of AS value FROM read_csv('/etc/passwd')\"": "may read tables of the programme only, not ",
    "kind: sql, sql: \"SELECT member_id, :as_of AS value FROM 'data/x.parquet'\"": "reads 'data/x.parquet', which is no table of the programme.",
    "kind: sql, sql: \"SELECT member_id, :as_of AS value FROM orders, read_text('/etc/passwd')\"": "may read tables of the programme only, not ",
    "kind: sql, sql: 'SELECT member_id, :as_of AS value FROM information_schema.tables'": "may read tables of the programme only, not ",
    "kind: sql, sql: 'SELECT member_id, :as_of AS value FROM oders'": "reads 'oders', which is no table of the programme. Did you mean 'orders'?",
    "kind: sql, sql: \"SELECT member_id, getenv('HOME') || :as_of AS value FROM orders\"": "may not call getenv: the answer would change from run to run.",
    "kind: sql, sql: 'SELECT member_id, now() - :as_of AS value FROM orders'": "Take :as_of for today.",
    "kind: sql, sql: 'SELECT member_id, current_date - :as_of AS value FROM orders'": "Take :as_of for today.",
    "kind: sql, sql: 'SELECT member_id, :asof AS value FROM orders'": "takes :as_of only, not $asof.",
    "kind: sql, sql: 'SELEC member_id FROM'": "tags.other.sql: ",
    "kind: sql, sql: 'SELECT member_id, count(*) AS value FROM orders TABLESAMPLE 10% WHERE local_date < :as_of GROUP BY 1'": "may not use tablesample.",
    "kind: sql, sql: 'WITH RECURSIVE a AS (SELECT 1) SELECT member_id, :as_of AS value FROM orders'": "may not be RECURSIVE.",
    "kind: sql, sql: 'SELECT member_id, unnest([1]) AS value FROM orders WHERE local_date < :as_of'": "may not use unnest.",
    "kind: sql, sql: \"SELECT 'a' AS member_id, :as_of AS value\"": "tags.other.sql: reads no table.",
    f"kind: sql, sql: 'SELECT member_id, {'1 + ' * 6000} 1 AS value FROM orders WHERE local_date < :as_of'": "may have 20,000 characters, not ",
    f"kind: sql, sql: 'SELECT member_id, {'(' * 4000}1{')' * 4000} AS value FROM orders WHERE local_date < :as_of'": "tags.other.sql: cannot be read",
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


def test_what_stands_on_a_definition_that_cannot_be_read_is_not_told_of():
    said = refused(GOOD.replace("kind: rules", "kind: rulez"))
    assert len(said.splitlines()) == 1 and "tags.stage.kind: there is no kind 'rulez'." in said


# Files that are none

@pytest.mark.parametrize("text, said", [
    ("", "is empty; sections are sources, parameters"), ("# nothing\n", "is empty"), ("- a\n- b\n", "must be a mapping of sections"), ("hello\nworld", "must be a mapping of sections"),
    ("tags:\n\tvip: {kind: flag}\n", "text 1:2: is not valid YAML: found character that cannot start any token. Indent with spaces, not tabs."),
    ("tags:\n  vip: {kind: flag\n", "is not valid YAML"), ("a: &x 1\nb: *x\n", "text 1:1: anchors and aliases"), ("tags: {b: *x}\n", "anchors and aliases"),
    ("tags: !!python/object/apply:os.system [id]\n", "text 1:1: tags such as"), ("tags: {}\n---\ntags: {}\n", "text 1:3: a second document begins"),
    ("? [a, b]\n: 1\n", "a key must be a text"), ("tags:\n  a: {kind: flag, when: x}\n  b: {kind: flag, when: x}\n  a: {kind: flag, when: y}\n", "text 1:4: tags.a: stands twice; the first is on line 2."),
    ("tags:\n  vip:\n    kind: flag\ntags:\n  x: 1\n", "text 1:4: tags: stands twice; the first is on line 1."), ("tags: [1, 2]\n", "tags: must be a mapping, not a list."),
    ("tags:\n  vip: 3\n", "tags.vip: must be a mapping, not a text."), ("tags:\n  vip: {kind: [flag]}\n", "there is no kind a list."),
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


HOSTILE_SAID = {"10 MB": "at most 2,000,000", "10,000 deep": "nested more than 10 deep", "10,000 maps deep": "nested more than 10 deep", "10,000 indents": "nested more than 10 deep",
                "laughs": "anchors and aliases", "a million keys": "has more than 100,000 keys and values", "a long line": "tags: must be a mapping, not a text."}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts_are_refused_and_do_not_blow_up(name):
    said = refused(HOSTILE[name], check=False)
    assert len(said) < 300 and HOSTILE_SAID[name] in said


def test_the_hostile_file_is_not_even_read(tmp_path, monkeypatch):
    (tmp_path / "big.yaml").write_text(HOSTILE["10 MB"])
    monkeypatch.setattr(type(tmp_path), "read_bytes", lambda self: pytest.fail("it was read"))
    assert "big.yaml: has 10,000,034 bytes; a catalogue has at most 2,000,000." in refused(tmp_path / "big.yaml")


# Writing and reading again

NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
ODD = ["no", "yes", "on", "Off", "null", "~", "true", "False", "012", "1_000", "1e3", "0x1F", "0o17", ".5", "-.inf", "1:20:30", "2024-01-31", "<<", "=", "- a", "? b", "a: b", "a #b",
       " a", "a ", "'", '"', "|", ">", "&a", "*a", "!a", "%a", "@a", "`a", "{a", "[a", "a, b", "贵宾", "😀", "a\nb", "a\tb", "\n", "a\n\n b\n", "x" * 300, "# a", "---", "...", "é\u00a0b"]
LETTERS = st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Cn", "Zl", "Zp"), exclude_characters="\ufeff\ufffe\uffff")
TEXTS = st.sampled_from(ODD) | st.text(LETTERS | st.sampled_from("\n\t :#'\"-"), max_size=12)
NUMBERS = st.integers(-10**15, 10**15) | st.floats(-1e15, 1e15)
SCALARS = st.none() | st.booleans() | NUMBERS | TEXTS


def values_for(field, made):
    "Any value that a field may have, by its type and metadata."
    meta, items = field.metadata, field.metadata.get("items", "text")
    item = {"text": TEXTS, "number": NUMBERS, "integer": st.integers(-10**15, 10**15), "titles": st.dictionaries(st.sampled_from(["en", "zh"]), TEXTS),
            "example": st.dictionaries(NAMES | st.sampled_from(ODD), SCALARS | st.lists(SCALARS, max_size=3), max_size=4)}[items]
    if meta.get("values"): one = st.sampled_from(meta["values"])
    else: one = item
    if field.type is dict: return st.dictionaries(st.sampled_from(meta["keys"]) if "keys" in meta else NAMES | TEXTS, item, max_size=4)
    if field.type is list: return st.lists(one, max_size=4)
    if meta.get("values"): return one
    kinds = getattr(field.type, "__args__", (field.type,))
    return st.one_of([{str: TEXTS, int: st.integers(-10**15, 10**15), float: NUMBERS, bool: st.booleans(), type(None): st.none()}[k] for k in kinds])


@st.composite
def definitions(draw):
    made = draw(st.sampled_from([Source, Metric, Parameter, Segment, *KINDS.values()]))
    some = [f for f in fields(made) if f.name != "name" and draw(st.booleans())]
    return made(name=draw(NAMES), **{f.name: draw(values_for(f, made)) for f in some})


@pytest.mark.parametrize("text", ODD)
def test_a_text_that_looks_like_something_else_stays_a_text(text):
    c = make_catalogue(Parameter(name="p", value=text), FlagTag(name="t", title={"en": text}, labels={text: {"zh": text}}, purpose=["service"], owner=text, examples=[{text: text, "is": [text, True, 1]}]))
    assert read_catalogue(write_catalogue(c)) == c and c.parameters["p"].value == text and c.tags["t"].examples == [{text: text, "is": [text, True, 1]}]


@given(st.lists(definitions(), max_size=5))
@settings(max_examples=100, deadline=None)
def test_what_is_written_is_read_again_and_writing_is_a_fixed_point(made):
    unique = list({(next(s for s, c in SECTIONS.items() if isinstance(d, c)), d.name): d for d in made}.values())
    c = make_catalogue(*unique)
    assert [d for s in SECTIONS for d in getattr(c, s).values()] == sorted(unique, key=lambda d: [isinstance(d, k) for k in SECTIONS.values()].index(True))
    text = write_catalogue(c)
    assert text == "" or (read_catalogue(text) == c and write_catalogue(read_catalogue(text)) == text)
    if text: assert set(yaml.safe_load(text)) <= set(SECTIONS)      # YAML 1.1 reads the same texts
    for section, entries in (yaml.safe_load(text) or {}).items():
        for name, entry in entries.items():
            d = getattr(c, section)[name]
            assert all(getattr(d, f.name) == entry[key_of(f)] for f in fields(d) if key_of(f) in entry)


def test_the_shipped_catalogue_is_written_and_read_again():
    from memtag_research.insight.catalogue import shipped_catalogue
    c = shipped_catalogue()
    assert read_catalogue(write_catalogue(c)) == c and len({t.kind for t in c.tags.values()}) == len(KINDS)
    assert make_catalogue(*(d for s in SECTIONS for d in getattr(c, s).values())) == c


@pytest.mark.parametrize("made, said", [
    (FlagTag(name="a", when=3.5j), "tags.a.when"), (Metric(name="a", days=True), "metrics.a.days: must be a whole number or a text, not 'true'."), (Source(name="a", join=["x"]), "sources.a.join: must be a mapping"),
    (Segment(name="a", include=["m1"]), "segments.a.include.0: must be a whole number, not 'm1'."), (RulesTag(name="a", privacy="secret"), "tags.a.privacy: must be one of public"),
    (Parameter(name="a", value=float("nan")), "parameters.a.value"), (NumberTag(name="a", title={"en": "\x00"}), "has a control character"), ({"name": "a"}, "a definition is a Source"),
])
def test_python_goes_through_the_same_door(made, said):
    with pytest.raises(DefinitionError, match=said.replace(".", r"\.")): make_catalogue(made)


def test_one_list_in_two_places_is_written_twice():
    both, title = ["service"], {"en": "a"}
    c = Catalogue(tags={n: FlagTag(name=n, purpose=both, title=title, when="x") for n in "ab"})
    assert "&" not in write_catalogue(c) and read_catalogue(write_catalogue(c)) == c


def test_python_is_told_all_at_once_too():
    with pytest.raises(DefinitionError) as e: make_catalogue(FlagTag(name="a", when="x >"), FlagTag(name="b", status="new"), FlagTag(name="b"), check=True)
    for text in ("tags.a.when: column", "tags.b.status: must be one of draft", "tags.b: is given twice"): assert text in str(e.value)


# Overlay

def test_what_is_laid_over_replaces_and_says_so(tmp_path):
    for name, days in {"a": 90, "b": 30}.items():
        (tmp_path / f"{name}.yaml").write_text(f"metrics:\n  m: {{source: s, agg: count, days: {days}}}\n  only_{name}: {{expr: m}}\n")
    both = read_catalogue(tmp_path / "b.yaml", over=read_catalogue(tmp_path / "a.yaml"))
    assert both.metrics["m"].days == 30 and list(both.metrics) == ["m", "only_a", "only_b"]
    assert both.replaced == (f"metric 'm' of {tmp_path}/b.yaml:2 replaces that of {tmp_path}/a.yaml:2.",)
    assert both.places["metrics", "m", "days"] == f"{tmp_path}/b.yaml:2" and both.places["metrics", "only_a"] == f"{tmp_path}/a.yaml:3"
    assert read_catalogue(tmp_path / "a.yaml", tmp_path / "b.yaml") == both and overlay(both, Catalogue()) == both
    again = make_catalogue(Metric(name="m", expr="only_a"), over=both)
    assert again.replaced[1:] == (f"metric 'm' of a definition in Python replaces that of {tmp_path}/b.yaml:2.",)
    assert ("metrics", "m", "days") not in again.places


def test_a_tag_may_not_take_the_name_of_a_shipped_metric():
    said = refused(GOOD, f"tags:\n  recency: {TAG}kind: flag, when: frequent}}\n")
    assert "text 2:2: tags.recency: is also the name of a metric (text 1:11: metrics.recency)." in said


# Order and closure against the standard library's

@st.composite
def graphs(draw):
    "name → names that it stands on, in any order, cycles allowed."
    names = draw(st.lists(NAMES.map("m_".__add__), min_size=1, max_size=9, unique=True))
    return {n: draw(st.lists(st.sampled_from(names), max_size=3)) for n in names}


def of_graph(graph):
    "A catalogue of that graph: metrics that stand on nothing have a source, half of the others are tags."
    made = {"sources": {"orders": Source(name="orders", table="orders")}, "metrics": {}, "tags": {}}
    for n, below in graph.items():
        if not below: made["metrics"][n] = Metric(name=n, source="orders", agg="count", days=1)
        else: made["tags"][n] = NumberTag(name=n, metric=" + ".join(below))
    return Catalogue(**made)


@given(graphs())
@settings(max_examples=200, deadline=None)
def test_closure_and_levels_are_those_of_the_graph(graph):
    from graphlib import CycleError, TopologicalSorter
    c, root = of_graph(graph), next(iter(graph))
    reached, more = {root}, [root]
    while more: more = [x for n in more for x in graph[n] if x not in reached and not reached.add(x)]
    try: order = list(TopologicalSorter({n: graph[n] for n in reached}).static_order())
    except CycleError:
        with pytest.raises(DefinitionError, match="tag cycle: ") as e: closure(c, [root])
        chain = str(e.value).split("cycle: ")[1].split(". One")[0].split(" → ")
        assert chain[0] == chain[-1] and all(b in graph[a] for a, b in zip(chain, chain[1:]))
        return
    found = closure(c, [root])
    assert {*found.metrics, *found.tags} == reached and bool(found.sources) == bool(found.metrics)
    depth = {}
    for n in order: depth[n] = max((depth[x] + 1 for x in graph[n] if graph[x]), default=0)
    derived = [n for n in reached if graph[n]]
    assert [sorted(level) for level in levels(c, [root])] == [sorted(n for n in derived if depth[n] == d) for d in range(max((depth[n] for n in derived), default=-1) + 1)]


def test_a_long_chain_is_ordered():
    chain = {f"m{i}": [f"m{i + 1}"] for i in range(2_000)} | {"m2000": []}
    assert [level[0] for level in levels(of_graph(chain), ["m0"])] == [f"m{i}" for i in range(1_999, -1, -1)]


def test_each_cycle_is_told_once():
    text = "metrics:\n  a: {expr: b}\n  b: {expr: a}\n  c: {expr: d}\n  d: {expr: c + a}\n  e: {expr: a}\n"
    said = refused(text)
    assert said.splitlines()[1:] == ["  text 1:2: metrics.a: metric cycle: a → b → a. One of them must do without the others.",
                                     "  text 1:4: metrics.c: metric cycle: c → d → c. One of them must do without the others."]


# Types

def test_types_of_everything():
    c = read_catalogue(GOOD + "  \n", check=True)
    assert types(c) == {"d1": "number", "d2": "number", "orders_90d": "number", "spend_180d": "number", "recency": "number", "mean_order": "number",
                        "frequent": "boolean", "stage": "text", "winback": "boolean"}
    for entry, kind in {"kind: affinity, source: lines, by: products.category, days: 9, top: 3": "list", "kind: affinity, source: lines, by: local_hour, days: 9": "text",
                        "kind: column, from: members.gender": "text", "kind: first_last, source: lines, of: quantity, days: all": "number", "kind: score, model: m": "number",
                        "kind: score, model: m, values: {a: 1}": "text", "kind: assigned, channels: [self], precedence: [self]": "boolean", "kind: sql, sql: '', type: number": "number"}.items():
        assert value_type("other", read_catalogue(with_tag(entry))) == kind


def test_columns_of_a_workspace_count_too():
    import ibis
    own = {"orders": ibis.table({"order_id": "string", "member_id": "string", "local_date": "date", "net_cents": "int64", "tip_cents": "int64"}, name="orders")}
    c = read_catalogue(GOOD.replace("of: net_cents", "of: tip_cents"))
    with pytest.raises(DefinitionError, match="no column 'tip_cents' in orders"): check_catalogue(c)
    assert check_catalogue(c, own) == []


# The hash

FULL = {  # every field that is not its default, and another value of it
    Source: dict(table=("orders", "member_days"), key=("member_id", "order_id"), time=("local_date", "cancelled_date"), where=("units > 1", "units > p1"),
                 join=({"stores": "store_id"}, {"members": "member_id"}), derive=({"w": "units / 2"}, {"w": "units / 3"})),
    Metric: dict(source=("s1", "s2"), agg=("sum", "mean"), of=("net_cents", "units"), where=("units > 1", "units > 2"), days=(90, "p1"), offset=(1, "p1"), expr=("", "m3 + 1"),
                 title=({"en": "a"}, {"en": "b"}), unit=("cents", "yuan")),
    Parameter: dict(value=(3, 4), expr=("p1 + 1", "p1 + 2"), calibrate=("quantile", "mean"), of=("m2", "m3"), q=(.5, .6), among=("m2 > 1", "m2 > 2"), days=(10, 11), min_n=(5, 6),
                    fallback=(1, 2), freeze=("yearly", "monthly"), unit=("a", "b")),
    model.Tag: dict(class_=("value", "risk"), title=({"en": "a"}, {"en": "b"}), description=({"en": "a"}, {"en": "b"}), use=({"en": "a"}, {"en": "b"}), labels=({"a": {"en": "a"}}, {"a": {"en": "b"}}),
                    owner=("a", "b"), department=("a", "b"), status=("draft", "active"), successor=("a", "b"), purpose=(["service"], ["analysis"]), basis=("a", "b"), privacy=("public", "personal"),
                    refresh=("static", "weekly"), valid_for=("9d", "10d"), valid_while=("m2 > 1", "m2 > 2"), support=("m2 > 3", "m2 > 4"), examples=([{"is": 1}], [{"is": 2}])),
    model.ColumnTag: dict(from_=("members.gender", "members.city")), NumberTag: dict(metric=("m2", "m3")), FlagTag: dict(when=("m2 > 5", "m2 >= 5")),
    RulesTag: dict(uses=({"r": "quantile(m2, 5)"}, {"r": "quantile(m2, 4)"}), values=({"a": "r > 1", "b": "else"}, {"b": "r > 1", "a": "else"})),
    model.QuantileTag: dict(metric=("m2", "m3"), values=(["a", "b"], ["b", "a"]), shares=([.5], [.6]), among=("m2 > 6", "m2 > 7"), otherwise=("x", "y"), freeze=("yearly", "monthly")),
    model.AffinityTag: dict(source=("s1", "s2"), by=("channel", "store_id"), of=("net_cents", "units"), where=("units > 1", "units > 2"), days=(9, "p1"), min_tgi=(100, 130), min_rows=(1, 2), min_days=(2, 3),
                            top=(2, 3), half_life_days=(5, 6)),
    model.DistributionTag: dict(source=("s1", "s2"), by=("channel", "store_id"), of=("net_cents", "units"), where=("units > 1", "units > 2"), days=(9, "p1"), min_share=(.4, .6), min_tgi=(1, 2), min_rows=(1, 2),
                                otherwise=("x", "y")),
    model.FirstLastTag: dict(source=("s1", "s2"), of=("channel", "store_id"), where=("units > 1", "units > 2"), pick=("first", "last"), days=(9, "p1")),
    model.SequenceTag: dict(first=({"source": "s1", "where": "units > 1"}, {"source": "s1", "where": "units > 2"}), then=({"source": "s2"}, {"source": "s1"}), same=("store_id", "channel"),
                            within_days=(4, "p1"), days=(9, "p1"), never=(True, False)),
    model.ScoreTag: dict(model=("churn", "clv"), values=({"a": .5, "b": .2}, {"a": .5, "b": .3})),
    model.AssignedTag: dict(channels=(["self", "guide"], ["self"]), precedence=(["self", "guide"], ["guide", "self"]), values=(["a", "b"], ["a", "c"])),
    model.ClusterTag: dict(metrics=(["m2", "m3"], ["m3", "m2"]), values=(["a", "b"], ["b", "a"]), among=("m2 > 6", "m2 > 7"), freeze=("yearly", "monthly"), seed=(1, 2)),
    model.SqlTag: dict(sql=("SELECT member_id, 1 AS value", "SELECT member_id, 2 AS value"), type=("number", "boolean")),
    Segment: dict(title=({"en": "a"}, {"en": "b"}), description=({"en": "a"}, {"en": "b"}), where=("m2 > 8", "m2 > 9"), minus=(["t"], []), include=([1], [2]), exclude=([3], [4]), holdout=(.1, .2),
                  purpose=("service", "analysis"), owner=("a", "b")),
}
DO_NOT_COUNT = {"title", "description", "use", "labels", "owner", "department", "status", "successor", "purpose", "basis", "privacy", "refresh", "examples", "unit", "class_"}


def world(d):
    "A catalogue in which the segment `root` stands on a definition named x."
    base = [Source(name="s1", table="orders"), Source(name="s2", table="orders"), Parameter(name="p1", value=7), Metric(name="m2", source="s1", agg="count", days=5),
            Metric(name="m3", source="s2", agg="count", days=5), FlagTag(name="t", when="m2 > 100")]
    user = {Source: [Metric(name="y", source="x", agg="count", days=1)], Parameter: [Metric(name="y", expr="m2 + x")]}.get(type(d), [])
    root = Segment(name="root", where=f"is_null({'y' if user else 'x'})")
    return Catalogue(**{s: {e.name: e for e in [*base, *user, d, root] if isinstance(e, c)} for s, c in SECTIONS.items()})


def test_every_field_of_every_definition_is_decided():
    assert {("class_" if n == "class" else n) for n in NOT_COUNTED} == DO_NOT_COUNT
    for made in (Source, Metric, Parameter, Segment, *KINDS.values()):
        own = FULL[made] | (FULL[model.Tag] if issubclass(made, model.Tag) else {})
        assert {f.name for f in fields(made)} - {"name"} == set(own), made
        for f in fields(made):
            if f.name != "name": assert own[f.name][0] != own[f.name][1] and (f.default is MISSING or own[f.name][0] != f.default or f.name in ("table", "key", "expr")), f.name


CASES = [(made, name) for made in (Source, Metric, Parameter, Segment, *KINDS.values()) for name in {**FULL[made], **(FULL[model.Tag] if issubclass(made, model.Tag) else {})}]


@pytest.mark.parametrize("made, name", CASES, ids=[f"{m.__name__}.{n}" for m, n in CASES])
def test_a_hash_changes_with_what_can_change_a_value_and_with_nothing_else(made, name):
    all_of = {**FULL[made], **(FULL[model.Tag] if issubclass(made, model.Tag) else {})}
    one = made(name="x", **{k: v[0] for k, v in all_of.items()})
    other = replace(one, **{name: all_of[name][1]})
    same = definition_hash(world(one), "root") == definition_hash(world(other), "root")
    assert same == (name in DO_NOT_COUNT)
    assert definition_hash(world(copy.deepcopy(one)), "root") == definition_hash(world(one), "root")


@pytest.mark.parametrize("made", FULL, ids=lambda m: m.__name__)
def test_a_hash_does_not_change_by_order_spelling_and_strangers(made):
    if made is model.Tag: return
    all_of = {**FULL[made], **(FULL[model.Tag] if issubclass(made, model.Tag) else {})}
    one = made(name="x", **{k: v[0] for k, v in all_of.items()})
    c, h = world(one), definition_hash(world(one), "root")
    turned = Catalogue(**{s: dict(reversed(getattr(c, s).items())) for s in SECTIONS})
    strangers = overlay(make_catalogue(Metric(name="stranger", source="s1", agg="count", days=3), FlagTag(name="other", when="stranger > x"), Source(name="new", table="events")), c)
    loud = {f.name: f"( {getattr(one, f.name)} )" for f in fields(one) if f.metadata.get("format") == "expression" and isinstance(getattr(one, f.name), str) and getattr(one, f.name)}
    floats = {f.name: float(getattr(one, f.name)) for f in fields(one) if type(getattr(one, f.name)) is int}
    for d in (turned, strangers, world(replace(one, **loud)), world(replace(one, **floats)), read_catalogue(write_catalogue(c))):
        assert definition_hash(d, "root") == h


def test_order_counts_where_the_first_wins_and_not_in_sets():
    def hashed(d): return definition_hash(world(d), "root")
    def turned(d, name):
        value = getattr(d, name)
        return hashed(replace(d, **{name: dict(reversed(value.items())) if isinstance(value, dict) else value[::-1]})) != hashed(d)
    rules = RulesTag(name="x", uses={"r": "quantile(m2, 5)", "s": "m3"}, values={"a": "r > 1", "b": "s > 2", "c": "else"})
    given = model.AssignedTag(name="x", channels=["self", "guide"], precedence=["self", "guide"], values=["a", "b"])
    assert turned(rules, "values") and turned(given, "precedence") and turned(model.QuantileTag(name="x", metric="m2", values=["a", "b"]), "values")
    assert not turned(rules, "uses") and not turned(given, "channels") and not turned(Source(name="x", table="orders", derive={"a": "units", "b": "net_cents"}), "derive")
    for name in ("minus", "include", "exclude"):
        one = Segment(name="x", where="t", minus=["t", "root2"], include=[1, 2], exclude=[3, 4])
        c = Catalogue(**{**{k: getattr(world(one), k) for k in SECTIONS}, "segments": {"x": one, "root2": Segment(name="root2", where="t")}})
        other = replace(c, segments={**c.segments, "x": replace(one, **{name: getattr(one, name)[::-1]})})
        assert definition_hash(c, "x") == definition_hash(other, "x")


def test_the_values_of_parameters_count_where_they_are_used():
    c = read_catalogue(GOOD)
    h = definition_hash(c, "stage")
    assert len({h, definition_hash(c, "stage", {"d1": 70}), definition_hash(c, "stage", {"d1": 71}), definition_hash(c, "stage", {"d1": 70, "d2": 150})}) == 4
    assert definition_hash(c, "frequent", {"d1": 70}) == definition_hash(c, "frequent")
    assert definition_hash(c, "stage", {"d1": 70}) == definition_hash(c, "stage", {"d1": 70.0, "unknown": 3})

    class Calibrated: value = 70
    assert definition_hash(c, "stage", {"d1": Calibrated}) == definition_hash(c, "stage", {"d1": 70})
    q = read_catalogue(with_tag("kind: quantile, metric: recency, values: [low, high], freeze: quarterly"))
    assert len({definition_hash(q, "other", {"other.cuts": v}) for v in ([3], [4], [3, 4])}) == 3


def test_sql_is_told_apart_by_what_it_says_not_by_its_lines():
    def hashed(sql): return definition_hash(make_catalogue(model.SqlTag(name="x", sql=sql)), "x")
    one = hashed("SELECT member_id, 1 AS value FROM orders WHERE local_date < :as_of")
    assert one == hashed("select member_id,\n  1 as value -- a remark\nfrom orders where local_date < :as_of") != hashed("SELECT member_id, 1 AS value FROM orders WHERE local_date <= :as_of")


# Rules within reach, against evaluation

ATOMS = st.builds("{} {} {}".format, st.sampled_from("xy"), st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), st.integers(0, 4)) | st.builds(
    "{} {} x {} {}".format, st.integers(0, 4), st.sampled_from(["<", "<=", ">", ">="]), st.sampled_from(["<", "<=", ">", ">="]), st.integers(0, 4)) | st.builds(
    "{} in ({}, {})".format, st.sampled_from("xy"), st.integers(0, 4), st.integers(0, 4)) | st.sampled_from(["x > y", "not x > 2", "is_null(x)"])
RULES = st.lists(st.lists(ATOMS, min_size=1, max_size=2).map(" and ".join), min_size=1, max_size=2).map(" or ".join)


@given(RULES, RULES)
@settings(max_examples=300, deadline=None)
def test_a_rule_that_is_said_to_imply_another_does(a, b):
    from memtag_research.tags.expression import evaluate, parse
    from memtag_research.tags.reach import implies
    a, b = parse(a), parse(b)
    grid = [{"x": x, "y": y} for x in (None, *(n / 2 for n in range(-1, 10))) for y in (None, *(n / 2 for n in range(-1, 10)))]
    if implies(a, b): assert all(evaluate(b, row) is True for row in grid if evaluate(a, row) is True)
    assert implies(a, a)


@pytest.mark.parametrize("a, b, holds", [("1 < x > 3", "x > 2", True), ("x > 2", "1 < x > 3", False), ("1 > x < 3", "x < 2", True), ("x < 2", "1 > x < 3", False), ("x >= 3", "x > 3", False), ("x == 3", "x in (3, 4)", True),
                                          ("x in (3, 4)", "x == 3", False), ("x in (3, 4)", "3 <= x <= 4", True), ("x > 1 and y > 1", "y > 0", True), ("y > 0", "x > 1 and y > 1", False), ("x > 1 or y > 1", "y > 0", False), ("x > 3", "True", True)])
def test_what_implies_what(a, b, holds):
    from memtag_research.tags.expression import parse
    from memtag_research.tags.reach import implies
    assert implies(parse(a), parse(b)) is holds


# Examples against the compiler

@pytest.mark.parametrize("entry, given, value", [
    ("kind: flag, when: recency > 3", {"recency": None}, False), ("kind: flag, when: recency > 3, support: orders_90d >= 2", {"recency": 9}, None), ("kind: flag, when: recency > 3, valid_while: orders_90d >= 2", {"recency": 9, "orders_90d": 2}, True),
    ("kind: flag, when: recency > 3, valid_while: orders_90d >= 2", {"recency": 9}, None), ("kind: rules, values: {a: recency > 3, b: else}", {}, "b"), ("kind: rules, support: recency > 0, values: {a: recency > 3}", {"recency": 2}, None),
    ("kind: rules, uses: {r: 'quantile(recency, 5)'}, values: {a: r > 3, b: else}", {"r": 4}, "a"), ("kind: rules, uses: {r: 2 * recency}, values: {a: r > 3, b: else}", {"recency": 2}, "a"), ("kind: number, metric: mean_order / 100", {"spend_180d": 900, "orders_90d": 3}, 3.0),
    ("kind: number, metric: mean_order", {"spend_180d": 900, "orders_90d": 0}, None), ("kind: number, metric: mean_order", {"mean_order": 5}, 5), ("kind: flag, when: stage == 'lost'", {"recency": 121}, True), ("kind: flag, when: stage == 'lost'", {"recency": 121, "d1": 90}, False),
    ("kind: flag, when: stage == 'lost'", {"stage": "lost"}, True)])
def test_the_value_of_one_row(entry, given, value):
    from memtag_research.tags.examples import evaluate_tag
    found = evaluate_tag(read_catalogue(with_tag(entry)), "other", given)[0]
    assert found == value and type(found) is type(value)


def test_one_row_at_a_time_gives_what_the_compiler_gives_for_all():
    import pandas as pd
    import tag_world

    from memtag_research.insight.catalogue import shipped_catalogue
    from memtag_research.tags.compile import compile_tags
    from memtag_research.tags.examples import ONE_ROW, evaluate_tag
    c = shipped_catalogue()
    names = [n for n, t in c.tags.items() if t.kind in ONE_ROW and "quantile" not in str(getattr(t, "uses", ""))]
    metrics = sorted({m for n in names for m in closure(c, [n]).metrics if not c.metrics[m].expr})
    compiled = compile_tags(c, tag_world.in_engine(tag_world.tables()), tag_world.AS_OF, tags=names, metrics=metrics)
    rows = compiled.expr.to_pyarrow().to_pylist()
    parameters = {n: p.value for n, p in compiled.parameters.items()}
    assert len(rows) > 100 and len(names) > 6 and not compiled.not_computable
    plain = lambda v: None if pd.isna(v) else v
    for row in rows:
        given = {**parameters, **{m: plain(row[m]) for m in metrics}}
        for n in names:
            mine, theirs = evaluate_tag(c, n, given, tag_world.AS_OF)[0], plain(row[n])
            assert mine == theirs or (isinstance(mine, float) and mine == pytest.approx(theirs, abs=1e-9)), (n, given)


# Schema and reference

@pytest.fixture(scope="module")
def schema():
    jsonschema = pytest.importorskip("jsonschema", reason="pip install -e '.[dev]'")
    from memtag_research.tags.catalogues import json_schema
    jsonschema.Draft202012Validator.check_schema(json_schema())
    return jsonschema.Draft202012Validator(json_schema())


def as_json(text):
    "What an editor sees: YAML 1.2, which differs here in booleans only."
    class Loader(yaml.SafeLoader): pass
    Loader.yaml_implicit_resolvers = {k: [(t, r) for t, r in v if not t.endswith((":bool", ":timestamp"))] for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
    Loader.add_implicit_resolver("tag:yaml.org,2002:bool", __import__("re").compile("^(?:true|false)$"), list("tf"))
    return yaml.load(text, Loader)


def test_the_schema_passes_what_is_good(schema):
    from importlib.resources import files
    shipped = (files("memtag_research.insight") / "catalogue.yaml").read_text(encoding="utf-8")
    for text in (GOOD, shipped, *map(with_tag, KIND_GOOD)): assert [e.message for e in schema.iter_errors(as_json(text))] == []


SEEN_BY_THE_SCHEMA = ["unknown key", "unknown key of a kind", "unknown section", "unknown kind", "no kind", "unknown class", "no class", "missing days", "no days", "broken days", "negative offset", "unknown aggregate",
                      "source and expr", "missing title", "no title", "title of another language", "long title", "weeks", "unknown purpose", "parameter of nothing", "parameter of two", "list for a text",
                      "text for a mapping", "text for a number", "a name of capitals", "example without end", "days in quotes"]


@pytest.mark.parametrize("name", SEEN_BY_THE_SCHEMA)
def test_the_schema_refuses_what_it_can_see(schema, name):
    old, new, *_ = BAD[name]
    assert list(schema.iter_errors(as_json(GOOD.replace(old, new, 1))))


@pytest.mark.parametrize("kind", KINDS)
def test_the_schema_asks_for_what_the_linter_asks(schema, kind):
    "Each needed key of each kind: leave it out, and both refuse."
    good = next(e for e in KIND_GOOD if e.startswith(f"kind: {kind},")) if kind != "flag" else "kind: flag, when: frequent"
    entry = as_json(with_tag(good))["tags"]["other"]
    for f in fields(KINDS[kind]):
        if not f.metadata.get("required"): continue
        less = {k: v for k, v in entry.items() if k != key_of(f)}
        assert list(schema.iter_errors({"tags": {"other": less}})), f.name
        assert f"needs `{key_of(f)}`" in refused(GOOD, yaml.safe_dump({"tags": {"other": less}}, allow_unicode=True)), f.name


def test_every_key_has_a_description_in_schema_and_reference(schema):
    from memtag_research.tags.catalogues import reference
    page = reference()
    for made in (Source, Metric, Parameter, Segment, *KINDS.values()):
        for f in fields(made):
            if f.name == "name": continue
            assert f"| `{key_of(f)}` |" in page and f.metadata["about"].split("|")[0] in page
            place = schema.schema["$defs"][f"{made.kind}_tag" if hasattr(made, "kind") else made.__name__.lower()]["properties"][key_of(f)]
            assert "$ref" in place or place["description"] == f.metadata["about"]


def test_the_example_of_the_page_holds():
    from test_docs import make_docs
    assert check_catalogue(read_catalogue(make_docs().EXAMPLE, check=True)) == []


# Lineage and HTML

def test_lineage_goes_from_columns_to_segments():
    from memtag_research.tags.catalogues import lineage
    line = lineage(read_catalogue(GOOD), "recency")
    assert line.of("column") == ["orders.local_date", "orders.member_id"] and line.of("source") == ["orders"]
    assert line.of("tag") == ["stage"] and line.of("segment") == ["winback"] and line.of("parameter") == []
    assert line.text.splitlines()[0] == "metric recency: days_since_last of orders, all days" and line.text.endswith("used by tag stage\nused by segment winback")
    assert "orders.net_cents" in lineage(read_catalogue(GOOD), "mean_order").of("column")
    cut = read_catalogue(GOOD.replace("recency: {", "cut_all: {source: lines, agg: sum, of: cut, days: all}\n  recency: {"))
    assert {(("column", f"order_lines.{c}_cents"), ("metric", "cut_all")) for c in ("discount", "coupon")} <= set(lineage(cut, "cut_all").edges)


@pytest.mark.parametrize("entry, columns", [
    ("kind: affinity, source: lines, by: products.category, of: cut, days: 9", {"products.category", "order_lines.discount_cents", "order_lines.coupon_cents", "products.product_id", "order_lines.product_id"}),
    ("kind: column, from: members.gender", {"members.gender"}), ("kind: score, model: m", {"scores.score"}), ("kind: assigned, channels: [self], precedence: [self]", {"assigned_tags.value"}),
    ("kind: sequence, first: {source: events, where: event == 'search'}, then: {source: lines}, same: product_id, days: 30", {"events.event", "events.product_id", "order_lines.product_id"}),
    ("kind: sql, sql: 'SELECT member_id, max(units) AS value FROM orders WHERE local_date < :as_of GROUP BY 1'", {"orders.units", "orders.member_id", "orders.local_date"})])
def test_lineage_of_kinds_that_look_at_rows(entry, columns):
    from memtag_research.tags.catalogues import lineage
    assert columns <= set(lineage(read_catalogue(with_tag(entry)), "other").of("column"))


def test_html_is_escaped_and_there_for_everything():
    from memtag_research.tags.catalogues import lineage
    c = make_catalogue(FlagTag(name="a", title={"en": "<script>"}, when="m > 1"), Metric(name="m", source="s", agg="count", days=1, title={"en": "<b>"}), Source(name="s", table="orders"),
                       Segment(name="g", where="a and 'x' in ('<i>', 'x')"), Parameter(name="p", value="<u>"))
    for html in (c._repr_html_(), *(d._repr_html_() for s in SECTIONS for d in getattr(c, s).values()), lineage(c, "g")._repr_html_()):
        assert "<table" in html and not any(bad in html for bad in ("<script>", "<b>m", "<i>", "<u>"))
    assert "&lt;script&gt;" in c._repr_html_() and "<b>g</b>" in lineage(c, "g")._repr_html_()


def test_importing_catalogues_is_enough_for_all_of_the_contract():
    from memtag_research.tags import catalogues
    for name in ("read_catalogue", "write_catalogue", "make_catalogue", "check_catalogue", "overlay", "closure", "levels", "definition_hash", "lineage", "types", "value_type", "json_schema", "reference", "show"):
        assert callable(getattr(catalogues, name)) and name in catalogues.__all__


TOKENS = ["null", "true", "[]", "{}", "3", "-1", "''", "x >", "else", "all", "[1, 2]", "{a: b}", "as_of", "1e300", "quantile(x, 5)", "no", "days", "frequent", "member_id", *" :{}[],'\"#&*-|>%@`!?\\\t"]


@given(st.lists(st.tuples(st.integers(0, 10**6), st.sampled_from(TOKENS), st.integers(0, 12)), min_size=1, max_size=4), st.sampled_from([GOOD, *map(with_tag, KIND_GOOD)]))
@settings(max_examples=200, deadline=None)
def test_whatever_is_written_nothing_but_a_definition_error_comes(slips, text):
    for at, token, width in slips:
        at %= len(text)
        text = text[:at] + token + text[at + width:]
    try: c = read_catalogue(text + "\n", check=True)
    except DefinitionError as e: assert str(e)
    else: assert read_catalogue(write_catalogue(c), check=True) == c


def test_a_name_that_clashes_with_a_shipped_one_is_the_users_to_mend():
    "Whichever section comes first: the place is that of the user's file; the shipped one is named beside it."
    shipped = read_catalogue("metrics: {spend: {expr: 2 * paid}}\nparameters: {limit: {value: 3}, paid: {value: 2}}", check=False)
    for mine, other in (("parameters: {spend: {value: 1}}", "metric"), ("metrics: {limit: {expr: 1 + paid}}", "parameter")):
        with pytest.raises(DefinitionError) as error: read_catalogue(f"\n\n{mine}", over=shipped, check=True)
        clash = next(line for line in str(error.value).splitlines() if "A name means one thing" in line).strip()
        assert clash.split(": ")[0].endswith(":3") and f"is also the name of a {other} (" in clash and clash.index(":3") < clash.index("is also")
