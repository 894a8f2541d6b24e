"""Write the pages of docs/ that are made from the package. `--check` changes nothing and exits 1 when a page is stale.

A new page is a function that returns its text, and a line in PAGES.
"""

import sys
from itertools import groupby
from pathlib import Path

from memtag_research.language import glossary

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


PAGES = {"docs/glossary.md": glossary_page}   # page → function that gives its text


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
