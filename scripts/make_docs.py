"""Write the pages of docs/ that are made from the package. `--check` changes nothing and exits 1 when a page is stale.

A new page is a function that returns its text, and a line in PAGES.
"""

import sys
from itertools import groupby
from pathlib import Path

from memtag_research.language import glossary, label
from memtag_research.measures.metrics import KPIS, METRICS, NOT_YET

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


PAGES = {"docs/glossary.md": glossary_page, "docs/metrics.md": metrics_page}   # page → function that gives its text


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
