"""Write the pages of docs/ that are made from the package. `--check` changes nothing and exits 1 when a page is stale.

A new page is a function that returns its text, and a line in PAGES.
"""

import json
import sys
from itertools import groupby
from pathlib import Path

from memtag_research.language import glossary, label
from memtag_research.measures.metrics import KPIS, METRICS, NOT_YET
from memtag_research.tags.describe import json_schema, reference
from memtag_research.tags.expression import FUNCTIONS

ROOT = Path(__file__).resolve().parents[1]
MADE_BY = "<!-- Made by scripts/make_docs.py. Edit {source}, then run `make docs`. -->"


def glossary_page() -> str:
    "Every term: group by group, in the order of the label file."
    lines = [
        "# Glossary", "", MADE_BY.format(source="memtag_research/glossary.yaml"), "",
        "What tables, plots, reports and the command line call things. `label(code, lang)` gives the word. Words after",
        "*also* are met elsewhere; we do not print them.",
    ]
    for group, entries in groupby(glossary().items(), key=lambda item: item[1]["group"]):
        lines += ["", f"## {group.replace('_', ' ').capitalize().replace('Rfm', 'RFM')}", "", *_rows(entries)]
    return "\n".join(lines) + "\n"


def _rows(entries):
    yield "| term | 中文 | code | unit | note |"
    yield "|---|---|---|---|---|"
    for key, entry in entries:
        also = f"also {', '.join(entry['aliases'])}" if entry["aliases"] else ""
        note = ". ".join(text for text in (also, entry["note"], entry.get("source", "")) if text)
        yield "| " + " | ".join([entry["en"], entry["zh"], f"`{key}`", entry["unit"], note]) + " |"


def metrics_page() -> str:
    "Every metric of the register, in its order, with its definition; and what cannot be computed, with the reason."
    lines = [
        "# Metrics", "", MADE_BY.format(source="nbs/measures/02_metrics.ipynb"), "",
        "One definition, one function, one label each. Everything is as known at the period's end: rows before it, and orders",
        "not cancelled by then. Valid orders have a positive net and are not fully refunded; top-ups, gift cards and shipping are",
        "no sales. Money is in cents, rates are fractions of one. `memtag metrics --period 2017-12` prints them; in Python,",
        "`measure(Book.of(ws), periods=\"2017-12\")`.", "",
        "D1 and D2 are the limits between active, dormant and lost, in days since the last purchase day: set in memtag.yaml, or",
        "D1 = the time within which nine of ten repurchases of the last 730 days happened, as known at the period's start, and",
        "D2 = 2 × D1.", "",
        "| metric | 中文 | code | unit | definition | 口径 | needs |", "|---|---|---|---|---|---|---|",
        *(_metric_row(m) for m in METRICS.values()), "", "## The KPI table", "",
        "Its rows: " + ", ".join(f"`{name}`" for name in KPIS) + ".", "", "## Not computable from the canonical tables", "",
        *(f"- `{name}` ({label(name)}, {label(name, 'zh')}): {reason}" for name, reason in NOT_YET.items()),
    ]
    return "\n".join(lines) + "\n"


def _metric_row(m):
    needs = ", ".join(f"`{need}`" for need in m.needs)
    return "| " + " | ".join([label(m.name), label(m.name, "zh"), f"`{m.name}`", m.unit, m.en, m.zh, needs]) + " |"


EXAMPLE = """\
# yaml-language-server: $schema=../docs/catalogue.schema.json
sources:
  orders: {table: orders, where: is_null(cancelled_date)}
  lines: {table: order_lines, where: line_kind == 'sale', join: {products: product_id}}
parameters:
  dormant_days: {calibrate: gap_quantile, of: orders, q: 0.9, fallback: 90, unit: days}
metrics:
  orders_365d: {source: orders, agg: count, days: 365, unit: orders}
  spend_365d: {source: orders, agg: sum, of: net_cents, days: 365, unit: cents}
  tea_365d: {source: lines, agg: sum, of: net_cents, where: products.category == 'tea', days: 365, unit: cents}
  recency_days: {source: orders, agg: days_since_last, days: all, unit: days}
  tea_share: {expr: tea_365d / spend_365d}
tags:
  stage:
    class: lifecycle
    kind: rules
    title: {en: Stage, zh: 阶段}
    use: {en: one message a stage}
    purpose: [marketing]
    values: {prospect: is_null(recency_days), dormant: recency_days > dormant_days, live: else}
    examples:
      - {recency_days: 91, dormant_days: 90, is: dormant}
      - {recency_days: 90, dormant_days: 90, is: live}
      - {is: prospect}
  tea_lover:
    class: preference
    kind: flag
    title: {en: Tea lover, zh: 爱茶}
    use: {en: invite to tastings}
    purpose: [marketing]
    when: tea_share >= 0.5
    support: orders_365d >= 3
segments:
  wake_tea_lovers: {title: {en: Wake tea lovers, zh: 唤醒茶客}, where: stage == 'dormant' and tea_lover, holdout: 0.1}
"""


def tags_page() -> str:
    "What a catalogue of tags may say: an example, the language of rules, then every key."
    functions = [f"| `{name}` | {_arguments(*spec[:3])} | {spec[3] or 'the same type'} |" for name, spec in FUNCTIONS.items()]
    lines = [
        "# Tags: the reference of the YAML", "", MADE_BY.format(source="nbs/tags/02_definition.ipynb"), "",
        "A workspace adds tags, or replaces shipped ones, by files in its folder `catalogue/`; `memtag tag check` says what is",
        "wrong with them, all at once. Editors complete and check the YAML by [its schema](catalogue.schema.json), named in the",
        "first line. Without a copy of this repository:", "", "```", SCHEMA_COMMAND, "```", "", "```yaml", EXAMPLE.rstrip(), "```", "",
        "It is YAML 1.2 in what matters: `no`, `yes`, `on`, `off` are texts; a key stands once; anchors and tabs are refused. A name",
        "is small letters, digits and `_`, and means one thing in the whole catalogue. A definition of a name that exists replaces",
        "it, and says so.", "", "## The language of rules", "",
        "`and or not`, comparisons (also `1 <= x < 5`), `x in ('a', 'b')`, `'a' in list`, `+ - * /`, names, numbers, texts in quotes,",
        "`True`, `False`, `as_of`, and functions. In a source, a metric with a source and tags over rows, names are columns",
        "(`net_cents`, of joined tables `products.category`) and parameters; elsewhere metrics, parameters and tags. Null is unknown,",
        "as in SQL: what is compared with null is null, a rule that is null does not match, a / 0 is null.", "",
        "| function | takes | gives |", "|---|---|---|", *functions, "| `date` | a day as a text: `date('2024-01-31')` | date |",
        "| `quantile` | an expression and n, alone in `uses` of a tag of rules | number |", "", reference(),
    ]
    return "\n".join(lines).rstrip() + "\n"


SCHEMA_COMMAND = ('python -c "import json; from memtag_research.tags.catalogues import json_schema as s; '
                  'print(json.dumps(s()))" > catalogue.schema.json')


def _arguments(least, most, types):
    count = f"{least}" if least == most else f"{least} or more"
    return f"{count} of {' or '.join(types) if types else 'any type'}"


def schema_page() -> str:
    "The JSON Schema of the YAML."
    return json.dumps(json_schema(), ensure_ascii=False, indent=1) + "\n"


PAGES = {"docs/glossary.md": glossary_page, "docs/metrics.md": metrics_page, "docs/tags.md": tags_page,
         "docs/catalogue.schema.json": schema_page}   # page → function that gives its text  # fmt: skip


def stale_pages(root: Path = ROOT) -> list[str]:
    "Pages that are missing or differ from what the package says now."
    def text(page):
        return (root / page).read_text(encoding="utf-8") if (root / page).exists() else None
    return [page for page, made in PAGES.items() if text(page) != made()]


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--check"]):
        print("usage: make_docs.py [--check]", file=sys.stderr)
        return 2
    stale = stale_pages()
    for page in stale:
        if arguments: print(f"{page} is stale: run `make docs`.", file=sys.stderr)
        else:
            (ROOT / page).write_text(PAGES[page](), encoding="utf-8")
            print(f"wrote {page}")
    return 1 if arguments and stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
