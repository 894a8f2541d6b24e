"""Access: every row that names a member is in her file, nobody else's is, and what she says of herself beats what was inferred."""

import json
import re
from datetime import date
from html.parser import HTMLParser

import duckdb
import openpyxl
import pandas as pd
import pytest

from memtag_research.core import ParameterError
from memtag_research.data.privacy import MEMBER_COLUMNS, KeyMap, forget
from memtag_research.data.simulate import make_programme
from memtag_research.data.workspace import GRAINS, open_workspace
from memtag_research.insight import access
from memtag_research.insight.access import cards_of, member_export
from memtag_research.insight.catalogue import shipped_catalogue
from memtag_research.tags.catalogues import read_catalogue
from memtag_research.tags.explain import explain_tag
from memtag_research.tags.export import export_segment, read_exports
from memtag_research.tags.given import assign, put_scores
from memtag_research.tags.linter import check_catalogue
from memtag_research.tags.runs import take_snapshot
from memtag_research.tags.store import Store

TODAY = "2024-01-02"
OWN = """
sources: {orders: {table: orders}}
metrics: {orders_all: {source: orders, agg: count, days: all}}
tags:
  bought: {class: behaviour, kind: flag, title: {en: Bought, zh: 买过}, when: orders_all > 2, purpose: [marketing]}
  diet: {class: preference, kind: assigned, title: {en: Diet, zh: 饮食}, channels: [self, guide, import], precedence: [self, guide, import],
         values: [any, vegetarian], labels: {vegetarian: {en: Vegetarian, zh: 素食}}}
segments:
  friends: {title: {en: Friends, zh: 好友}, where: bought, include: [KEY]}
"""


class Text(HTMLParser):
    "The text of a page, and what it would load."
    def __init__(self):
        super().__init__()
        self.text, self.loads = "", []

    def handle_data(self, data): self.text += data + "\n"
    def handle_starttag(self, tag, attrs): self.loads += [(tag, n) for n, _ in attrs if n in ("src", "href")] + [tag] * (tag in ("script", "link"))


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    "A programme, somebody in it who has two cards, and her file."
    ws = make_programme(120, "2023-01-01", "2024-01-01", seed=11, directory=tmp_path_factory.mktemp("access") / "ws").workspace
    merges, bought = ws.table("member_merges").execute(), ws.table("order_lines").member_id.value_counts().execute()
    who = next(i for i in merges.to_id if i in set(bought.member_id))
    cards = [who, *merges.from_id[merges.to_id == who]]
    KeyMap(ws.root).add(cards)
    (ws.root / "catalogue").mkdir()
    (ws.root / "catalogue/own.yaml").write_text(OWN.replace("KEY", str(int(KeyMap(ws.root).keys_for([who])[0]))))
    catalogue = read_catalogue(OWN.replace("KEY", "1"))
    for day in ("2023-03-01", "2023-07-01", "2024-01-01"):
        if day == "2024-01-01":
            assign(ws, catalogue, "diet", who, "vegetarian", channel="self", ts="2023-08-01")
            assign(ws, catalogue, "diet", who, "any", channel="guide", by="Guide Anna", ts="2023-12-01", reason="<script>alert(1)</script>")
            put_scores(ws, pd.DataFrame({"member_id": [who], "score": [.25]}), "churn", "1", "2023-12-01")
        take_snapshot(ws, catalogue, day)
    (ws.root / "memtag.yaml").write_text((ws.root / "memtag.yaml").read_text() + "consent: not_required\nconsent_reason: a test\nk: 1\nretention_days: {events: 400}\n")
    ws = open_workspace(ws.root)
    export_segment(ws, catalogue, "bought or not bought", "2024-01-01", ws.root.parent / "everyone.csv", purpose="profiling")
    return ws, who, cards, member_export(ws, who, TODAY, "en")


def test_every_row_that_names_her_is_there_and_no_other(asked):
    ws, _who, cards, file = asked
    assert list(file.cards) == cards and len(cards) > 1
    given, own = file.content["tables"], ", ".join(f"'{c}'" for c in cards)
    for path in sorted(ws.folder.glob("*.parquet")):
        columns = [c for c, *_ in duckdb.sql(f"DESCRIBE SELECT * FROM '{path}'").fetchall()]
        naming = " OR ".join(f"{c} IN ({own})" for c in MEMBER_COLUMNS if c in columns)
        if path.stem == "payments": naming = f"order_id IN (SELECT order_id FROM '{ws.folder}/order_lines.parquet' WHERE member_id IN ({own}))"
        if not naming or path.stem in GRAINS: assert path.stem not in given; continue
        n = duckdb.sql(f"SELECT count(*) FROM '{path}' WHERE {naming}").fetchone()[0]
        assert len(given.get(path.stem, [])) == n + {"assigned_tags": 2, "scores": 1}.get(path.stem, 0), path.stem
    money = duckdb.sql(f"SELECT sum(net_cents) FROM '{ws.folder}/order_lines.parquet' WHERE member_id IN ({own})").fetchone()[0]
    assert sum(r["net_cents"] for r in given["order_lines"]) == money


def test_nobody_else_is_in_it(asked):
    ws, _who, cards, file = asked
    others = set(ws.table("members").member_id.execute()) - set(cards)
    whole = file.to_json() + file.to_html()
    assert [i for i in others if re.search(rf"\b{i}\b", whole)] == [] and "Guide Anna" not in whole
    assert "G****a" in whole


def test_tags_come_with_values_and_reasons(asked):
    ws, who, _cards, file = asked
    tags = {t["tag"]: t for t in file.content["tags"] if t["card"] == who}
    snapshot = Store(ws).snapshot("2024-01-01")
    assert set(tags) == set(snapshot.tags) and file.content["as_of"] == "2024-01-01"
    orders = ws.table("orders").filter(lambda t: t.member_id == who).count().execute()
    assert tags["bought"]["value"] is bool(orders > 2) and f"orders_all = {orders}" in "\n".join(tags["bought"]["why"])
    assert file.content["tags_before"] and all(r["valid_to"] for r in file.content["tags_before"])
    assert [r["segment"] for r in file.content["lists"]] == ["friends"]


def test_what_she_says_of_herself_beats_what_others_say_later(asked):
    ws, who, _cards, file = asked
    diet = next(t for t in file.content["tags"] if t["tag"] == "diet" and t["card"] == who)
    assert (diet["value"], diet["shown"]) == ("vegetarian", "Vegetarian")       # said in August; the guide wrote another in December
    given = [r for r in file.content["tables"]["assigned_tags"] if r["tag"] == "diet"]
    assert sorted(r["value"] for r in given) == ["any", "vegetarian"]             # both are held, so both are shown
    assert "vegetarian" in explain_tag(read_catalogue(OWN.replace("KEY", "1")), ws, "2024-01-01", "diet", who).text.lower()


def test_a_tag_in_which_others_beat_the_member_is_doubtful():
    order = lambda *channels: OWN.replace("KEY", "1").replace("precedence: [self, guide, import]", f"precedence: [{', '.join(channels)}]")
    said = lambda *channels: [w for w in check_catalogue(read_catalogue(order(*channels))) if "puts others before `self`" in w]
    assert said("self", "import", "guide") == [] and len(said("guide", "self", "import")) == 1
    assert all(t.precedence[0] == "self" for t in shipped_catalogue().tags.values() if t.kind == "assigned" and "self" in t.channels)


def test_consents_exports_and_retention_are_told(asked):
    ws, who, _cards, file = asked
    told = ws.table("consents").execute()
    last = told[told.member_id.isin([who]) & (told.purpose == "marketing")].sort_values("ts").groupby("channel").granted.last()
    said = {r["channel"]: r["state"] for r in file.content["consent"] if r["card"] == who and r["purpose"] == "marketing" and r["channel"]}
    for channel, granted in last.items(): assert (said[channel] == "granted") == bool(granted)
    assert [e["file"] for e in file.content["exports"]] == ["everyone.csv"] and file.content["retention_days"] == {"events": 400}


def test_the_page_is_read_by_people_and_loads_nothing(asked):
    ws, who, cards, file = asked
    page = Text()
    page.feed(file.to_html())
    assert page.loads == [] and "<script>alert(1)</script>" in page.text     # as text
    for text in ("What ", who, cards[1], "Vegetarian", "Merged", "everyone.csv", "Visits and clicks: 400 days"): assert text in page.text, text
    zh = Text()
    zh.feed(member_export(ws, who, TODAY, "zh").to_html())
    assert "所保存的关于您的信息" in zh.text and "素食" in zh.text and "积分流水" in zh.text


def test_files_are_private_and_the_record_knows(asked, tmp_path):
    ws, who, _cards, file = asked
    before = len(read_exports(ws))
    for n, name in enumerate(("me.json", "me.html", "me.xlsx"), 1):
        path = file.save(tmp_path / name)
        assert oct(path.stat().st_mode)[-3:] == "600"
        entry = read_exports(ws).iloc[-1]
        assert len(read_exports(ws)) == before + n and (entry["shape"], entry["file"], entry["rows"]) == ("access", name, file.rows)
        assert who not in (ws.root / "tags/exports.jsonl").read_text()
    assert json.loads((tmp_path / "me.json").read_text())["tables"].keys() == file.content["tables"].keys()
    book = openpyxl.load_workbook(tmp_path / "me.xlsx")
    assert book["order_lines"].max_row == len(file.content["tables"]["order_lines"]) + 1
    assert member_export(ws, who, TODAY).content["exports"][-1]["file"] == "me.xlsx"


def test_what_is_refused_names_nobody(asked, tmp_path):
    ws, who, _cards, file = asked
    with pytest.raises(ParameterError, match=r"such as 138\*\*\*\*8000"): member_export(ws, "13800138000", TODAY)
    with pytest.raises(ParameterError, match="must end in .html, .json, .xlsx"): file.save(tmp_path / "me.txt")
    with pytest.raises(ParameterError, match="today must be a date"): member_export(ws, who, "soon")
    assert who not in repr(file) + file._repr_html_()


def test_who_was_forgotten_is_unknown(tmp_path):
    ws = make_programme(40, "2023-01-01", "2023-07-01", seed=2, directory=tmp_path / "ws").workspace
    who = ws.table("order_lines").member_id.min().execute()
    member_export(ws, who, TODAY).save(ws.root / "her.json")
    forget(ws.root, who)
    with pytest.raises(ParameterError, match="not in this workspace"): member_export(open_workspace(ws.root), who, TODAY)
    assert who not in (ws.root / "her.json").read_text()


def test_cards_are_found_along_a_chain(tmp_path):
    ws = make_programme(40, "2023-01-01", "2023-07-01", seed=2, directory=tmp_path / "ws").workspace
    a, b, c, d = sorted(ws.table("members").member_id.execute())[:4]
    path = ws.folder / "member_merges.parquet"
    kinds = ws.table("member_merges").schema()
    frame = pd.DataFrame({"from_id": [a, b], "to_id": [b, c], "merged_at": pd.Timestamp("2023-02-01"), "local_date": date(2023, 2, 1)})
    duckdb.sql(f"COPY (SELECT {', '.join(n if n in frame else f'NULL::TIMESTAMP AS {n}' for n in kinds)} FROM frame) TO '{path}' (FORMAT parquet)")
    assert set(cards_of(open_workspace(ws.root), c)) == set(cards_of(open_workspace(ws.root), a)) == {a, b, c}
    assert cards_of(open_workspace(ws.root), d) == [d]


def test_household_counts_others_only(asked):
    ws, *_ = asked
    house, ids = next((h, list(m)) for h, m in ws.table("members").execute().groupby("household_id").member_id if len(m) > 1)
    assert access._household(ws, ids[:1]) == (house, len(ids) - 1) and access._household(ws, ids) == (house, 0)
