"""`memtag tag`, `memtag segment`, `memtag forget` as a user meets them, on a small simulated programme."""

import json
import re
import unicodedata

import pandas as pd
import pytest
from click.testing import CliRunner

from memtag_research.cli import main
from memtag_research.data.simulate import make_programme
from memtag_research.data.workspace import open_workspace
from memtag_research.tags.store import Store


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    "A workspace with one snapshot of a few tags."
    folder = tmp_path_factory.mktemp("cli") / "ws"
    make_programme(250, "2023-01-01", "2024-03-01", seed=2, directory=folder, locale="zh")
    code, text = memtag("tag", "run", "-w", folder, "--as-of", "2024-02-01", "--tag", "lifecycle", "--tag", "do_not_contact", "--tag", "tier",
                        "--tag", "recency", "--lang", "en")
    assert code == 0, text
    (folder / "first_run.txt").write_text(text)
    return folder


def width(line): return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in line)


def memtag(*words):
    result = CliRunner().invoke(main, [str(w) for w in words])
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def member(root): return sorted(open_workspace(root).table("orders").member_id.execute().dropna())[40]


def test_help_lists_every_command():
    for group, commands in {"tag": ("list", "show", "check", "run", "drop", "history", "diff", "assign", "explain"),
                            "segment": ("list", "size", "explain", "export", "sql")}.items():
        code, text = memtag(group, "--help")
        assert code == 0
        for command in commands: assert command in text and memtag(group, command, "--help")[0] == 0
    assert memtag("forget", "--help")[0] == 0


def test_a_run_prints_what_the_snapshot_holds(root):
    text, store = (root / "first_run.txt").read_text(), Store(open_workspace(root))
    made = store.snapshot("2024-02-01")
    blocks = dict(re.findall(r"^(\w+) +(.*(?:\n +.*)*)", text, re.M))      # a long cell goes on below itself
    for name in ("lifecycle", "do_not_contact", "recency", "tier"):
        counts = {v: int(n.replace(",", "")) for v, n in re.findall(r"([A-Za-z]+)\s+([\d,]+)\s+\(", blocks[name])}
        assert counts.pop("Unknown") == made.tags[name]["unknown"], name                         # also where nobody is
        assert sum(counts.values()) + made.tags[name]["unknown"] == made.rows
        if name == "lifecycle": assert counts == made.tags[name]["values"]
    assert max(map(width, text.splitlines()[:-1])) <= 100                                        # the last line is a path
    words = " ".join(text.split())
    assert "dormant_days = " in text and "found at 2024-01-01 on" in words and "lost_days = " in text     # calibrated values with their dates
    assert str(made.folder) in text and f"4 tags of {made.rows:,} members as of 2024-02-01" in text and re.search(r"\d s\n", text)
    code, again = memtag("tag", "run", "-w", root, "--as-of", "2024-02-01", "--tag", "lifecycle", "--tag", "do_not_contact", "--tag", "tier",
                         "--tag", "recency")
    assert code == 0 and "已存在且输入相同" in again and "沉睡" not in again and "休眠期" in again            # the workspace's own language
    assert len(store.runs("2024-02-01")) == 1


def test_many_dates_and_history(root, member):
    code, text = memtag("tag", "run", "-w", root, "--monthly", "2023-11..2024-01", "--tag", "lifecycle", "--tag", "tier")
    assert code == 0 and [line[:10] for line in text.splitlines()] == ["2023-11-01", "2023-12-01", "2024-01-01"]
    code, text = memtag("tag", "history", member, "-w", root, "--tag", "lifecycle", "--lang", "en")
    spells = re.findall(r"lifecycle +(\S+) – (\S*) *(\w+)", text)
    assert code == 0 and spells and all(a[1] <= b[0] for a, b in zip(spells, spells[1:])) and member not in text
    snapshot = Store(open_workspace(root)).tags_as_of("2024-02-01", ["lifecycle"])
    assert spells[-1][2] == snapshot.filter(snapshot.member_id == member).lifecycle.execute()[0]
    code, text = memtag("tag", "history", "-w", root, "--tag", "lifecycle")
    assert code == 0 and text.count("休眠期") == 4
    code, text = memtag("tag", "diff", "2024-01-01", "2024-02-01", "-w", root, "--tag", "lifecycle", "--lang", "en")
    assert code == 0 and "lost" in text


def test_list_show_and_check(root, tmp_path):
    code, text = memtag("tag", "list", "-w", root, "--class", "lifecycle", "--lang", "en")
    assert code == 0 and re.findall(r"^\w+", text, re.M) == ["lifecycle", "declining", "churn_risk", "clv_outlook"]
    code, text = memtag("tag", "show", "lifecycle", "-w", root)
    assert code == 0 and "member_days.purchase_days" in text and "kind: rules" in text and "，2024-01-01 校准" in text and "生命周期" in text
    assert memtag("tag", "check", "-w", root)[0] == 0
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("tags:\n  big: {class: value, kind: flag, title: {en: Big, zh: 大额}, when: spend_365d > 100000}\n", encoding="utf-8")
    bad.write_text("tags:\n  big: {class: value, kind: flag, title: {en: Big, zh: 大额}, when: spend_365 > 100000}\n", encoding="utf-8")
    code, text = memtag("tag", "check", good, "-w", tmp_path)       # no workspace is needed
    assert code == 0 and "25 tags" in text
    code, text = memtag("tag", "check", bad, "-w", root)
    assert code == 2 and "bad.yaml:2" in text and "spend_365d" in text and "Traceback" not in text


def test_assign_revoke_and_explain(root, member, tmp_path):
    code, text = memtag("tag", "assign", "price_level", member, "high", "--channel", "guide", "--reason", "said so", "-w", root)
    assert code == 0 and "已有 price_level = high" in text and member not in text
    ws = open_workspace(root)
    log = Store(ws).tables()["assigned_tags"]
    assert log.filter(log.member_id == member, log.reason == "said so").channel.execute().tolist() == ["guide"]
    code, text = memtag("tag", "assign", "price_level", member, "--revoke", "-w", root)
    assert code == 0 and re.search(r"结束 price_level 的 \d+ 条记录", text) and member not in text
    file = tmp_path / "many.csv"
    file.write_text(f"member_id,value\n{member},low\n")
    code, text = memtag("tag", "assign", "price_level", "--from", file, "-w", root)
    assert code == 0 and "已记录 1 条 price_level" in text
    code, text = memtag("tag", "explain", "lifecycle", member, "-w", root, "--as-of", "2024-02-01")
    assert code == 0 and member not in text and "生命周期" in text and "recency_days = " in text


def test_segments(root, member, tmp_path):
    code, text = memtag("segment", "list", "-w", root)
    assert code == 0 and "win_back" in text and "待召回" in text and max(map(width, text.splitlines())) <= 100
    rule = "lifecycle == 'lost' and not do_not_contact"
    code, text = memtag("segment", "size", "-w", root, "--where", rule)
    size = int(text.split()[0])
    snapshot = Store(open_workspace(root)).tags_as_of("2024-02-01", ["lifecycle", "do_not_contact"]).execute()
    assert code == 0 and size == ((snapshot.lifecycle == "lost") & ~snapshot.do_not_contact.astype(bool)).sum() and "snapshot of 2024-02-01" in text
    code, text = memtag("segment", "size", "-w", root, "--where", rule, "--fraction", ".5")
    assert code == 0 and re.match(r"about \d+ members \(\d+ to \d+ at 95%\)", text)
    code, text = memtag("segment", "explain", "-w", root, "--where", rule, "--member", member, "--lang", "en")
    assert code == 0 and "belong" in text and "lifecycle = " in text and member not in text
    code, text = memtag("segment", "sql", "-w", root, "--where", rule)
    assert code == 0 and text.startswith("SELECT") and member not in text
    out = tmp_path / "lost.csv"
    code, text = memtag("segment", "export", "-w", root, "--where", "lifecycle in ('lost', 'mature')", "--out", out, "--channel", "sms", "--lang", "en")
    assert code == 0 and "do not contact" in text, text
    assert out.stat().st_mode & 0o777 == 0o600 and len(pd.read_csv(out)) == int(text.split()[0])
    record = json.loads((root / "tags/exports.jsonl").read_text().splitlines()[-1])
    assert record["members"] == len(pd.read_csv(out)) and record["file"] == "lost.csv"


@pytest.mark.parametrize("words, says", [
    (["tag", "show", "lifecycl"], "您是不是要找 'lifecycle'？"), (["tag", "list", "--class", "lifecicle"], "您是不是要找 'lifecycle'？"),
    (["tag", "run"], "say when"), (["tag", "run", "--as-of", "soon"], "应是日期"), (["tag", "run", "--monthly", "2023-13..2024-01"], "two months"),
    (["tag", "run", "--as-of", "2024-02-01", "--dates", "2024-01-01"], "say when"), (["tag", "run", "--as-of", "2024-02-01", "--tag", "tear"], "'tier'"),
    (["tag", "run", "--dates", "2024-02-01", "--refresh"], "goes with --as-of"),
    (["tag", "history"], "say whose"), (["tag", "history", "13812345678"], "138****5678"), (["tag", "history", "--tag", "lifecycl"], "'lifecycle'"),
    (["tag", "diff", "2024-02-01", "2024-01-31"], "before"), (["tag", "diff", "2024-01-31", "2024-02-01"], "2024-01-31"),
    (["tag", "assign", "price_level"], "say to whom"), (["tag", "assign", "pricelevel", "13812345678"], "'price_level'"),
    (["tag", "assign", "price_level", "13812345678", "hihg", "--channel", "guide"], "'high'"), (["tag", "assign", "lifecycle", "13812345678"], "not assigned"),
    (["tag", "assign", "price_level", "13812345678", "high"], "138****5678"), (["tag", "assign", "price_level", "--from", "no.csv"], "no.csv"),
    (["tag", "explain", "lifecycl", "13812345678"], "'lifecycle'"), (["tag", "check", "no.yaml"], "no.yaml"),
    (["segment", "size", "win_bak"], "'win_back'"), (["segment", "size"], "say which"), (["segment", "size", "win_back", "--where", "minor"], "say which"),
    (["segment", "size", "--where", "lifecycl == 'lost'"], "lifecycle"), (["segment", "size", "--where", "lifecycle =="], "lifecycle =="),
    (["segment", "size", "--where", "recency"], "true or false"), (["segment", "size", "win_back", "--fraction", "7"], "from 0 to 1"),
    (["segment", "export", "win_back", "--out", "x.csv"], "sms"), (["segment", "export", "win_back", "--out", "x.doc", "--channel", "sms"], ".csv"),
    (["segment", "export", "win_back", "--out", "x.csv", "--shape", "wecon"], "'wecom'"),
    (["segment", "export", "win_back", "--out", "x.csv", "--channel", "sms", "--purpose", "marketin"], "'marketing'"),
    (["segment", "export", "win_back", "--out", "x.csv", "--channel", "sms", "--tag", "lifecycl"], "'lifecycle'"),
    (["segment", "export", "--where", "lifecycle == 'lost' and orders_365d > 99", "--out", "x.csv", "--channel", "sms"], "fewer than 5 members"),
    (["forget", "13812345678"], "不在这个工作区里"), (["forget"], "name the members"), (["forget", "13812345678", "--yes"], "138****5678"),
])
def test_mistakes_end_in_2_and_name_nobody(root, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    code, text = memtag(*words, "-w", root)
    assert code == 2 and says in text, text
    assert "13812345678" not in text and "Traceback" not in text and not list(tmp_path.iterdir())


def test_every_command_needs_a_workspace(tmp_path):
    for words in (["tag", "list"], ["tag", "run", "--as-of", "2024-01-01"], ["segment", "size", "win_back"], ["forget", "a", "--yes"]):
        code, text = memtag(*words, "-w", tmp_path)
        assert code == 2 and "memtag init" in text


def test_forget_shows_first_and_does_it_when_told(tmp_path):
    root = tmp_path / "ws"
    ws = make_programme(60, "2023-01-01", "2023-07-01", seed=1, directory=root).workspace
    someone = sorted(ws.table("orders").member_id.execute().dropna())[3]
    before = (root / "data/current/order_lines.parquet").read_bytes()
    code, text = memtag("forget", someone, "-w", root)
    assert code == 2 and "cannot be undone" in text and someone not in text
    assert (root / "data/current/order_lines.parquet").read_bytes() == before
    code, text = memtag("forget", someone, "-w", root, "--yes")
    assert code == 0 and "forgotten" in text and someone not in text
    assert someone not in set(open_workspace(root).table("order_lines").member_id.execute())


def test_unknown_is_counted_beside_many_values(root):
    "A tag of more values than a line shows: the rest is counted, unknown is shown."
    code, text = memtag("tag", "run", "-w", root, "--as-of", "2023-10-01", "--tag", "age_band", "--tag", "category_affinity", "--lang", "zh")
    made = Store(open_workspace(root)).snapshot("2023-10-01")
    assert code == 0 and len(made.tags["category_affinity"]["values"]) > 8
    for name in ("age_band", "category_affinity"):
        said = text.split(name)[1].replace("\n", "").replace(" ", "")
        assert f"未知{made.tags[name]['unknown']}(" in said
    assert f"另有{len(made.tags['category_affinity']['values']) - 8}个取值" in text.replace("\n", "").replace(" ", "")
    code, text = memtag("tag", "list", "-w", root, "--lang", "zh")
    assert max(map(width, text.splitlines())) <= 100 and len({width(line.partition(" · ")[0].rpartition("  ")[0]) for line in text.splitlines()}) == 1


def test_a_snapshot_of_a_wrong_date_is_refused_and_dropped(root):
    store = Store(open_workspace(root))
    days = store.dates()
    code, text = memtag("tag", "run", "-w", root, "--as-of", "2042-02-01", "--tag", "tier")
    assert code == 2 and "as_of 2042-02-01 lies outside the data" in text and "--any-date" in text
    code, text = memtag("tag", "run", "-w", root, "--dates", "2024-01-01,2042-02-01", "--tag", "tier")
    assert code == 2 and "2042-02-01" in text and store.dates() == days
    assert memtag("tag", "run", "-w", root, "--as-of", "2042-02-01", "--tag", "tier", "--any-date")[0] == 0
    run = store.runs("2042-02-01")[0]
    code, text = memtag("tag", "drop", "-w", root, "--as-of", "2042-02-01", "--run", "R", "--lang", "en")
    assert code == 2 and f"no run 'R' of 2042-02-01. Its runs: {run}" in text
    code, text = memtag("tag", "drop", "-w", root, "--as-of", "2042-02-01", "--lang", "en")
    assert code == 0 and f"dropped: as_of=2042-02-01/run={run}" in text and "no snapshot of 2042-02-01 any more" in text and store.dates() == days
    code, text = memtag("tag", "drop", "-w", root, "--as-of", "2042-02-01")
    assert code == 2 and "no snapshot of 2042-02-01 to drop" in text
    assert memtag("tag", "drop", "-w", root, "--as-of", "february")[0] == 2


def test_assigning_says_what_is_wrong_and_revoking_what_it_ends(root, member, tmp_path):
    (root / "catalogue").mkdir(exist_ok=True)
    (root / "catalogue/guests.yaml").write_text("tags:\n  guest: {class: value, kind: assigned, channels: [manual, import], precedence: [manual, import], values: [gold, black], "
                                                "title: {en: Guest, zh: 贵客}}\n")
    log_files = lambda: sorted((root / "tags/assigned").glob("*"))
    before = log_files()
    try:
        code, text = memtag("tag", "assign", "guest", member, "gold", "-w", root, "--expires", "tomorrow")
        assert code == 2 and "'tomorrow' is no date. Write 2024-01-31" in text
        code, text = memtag("tag", "assign", "guest", member, "gold", "-w", root, "--expires", "2020-01-01")
        assert code == 2 and "would never hold" in text
        file = tmp_path / "guests.csv"
        file.write_text(f"member_id,value,ts\n{member},gold,2023-05-01\n{member},black,soon\nM-nobody-1,gold,\n")
        code, text = memtag("tag", "assign", "guest", "--from", file, "-w", root)
        assert code == 2 and "ts 'soon' is no date" in text and "(1 such, line 3)" in text and "such as M****1 (line 4)" in text and "M-nobody-1" not in text
        assert log_files() == before
        file.write_text(f"member_id,value,ts\n{member},gold,2023-05-01 08:30\n{member},black,2023-05-02\n")
        code, text = memtag("tag", "assign", "guest", "--from", file, "-w", root)
        assert code == 0 and "2" in text
        code, text = memtag("tag", "assign", "guest", member, "-w", root, "--revoke")
        assert code == 0 and "guest = gold" in text and "2023-05-01 08:30" in text and "guest = black" in text and "import" in text and member not in text
        code, text = memtag("tag", "assign", "guest", member, "-w", root, "--revoke")
        assert code == 2 and "that could be revoked" in text
    finally: (root / "catalogue/guests.yaml").unlink()


def test_the_preview_of_forgetting(root, member):
    code, text = memtag("forget", "nobody-123", "-w", root)
    assert code == 2 and "有 1 位会员不在这个工作区里，例如 n****3" in text and "This takes" not in text
    code, text = memtag("forget", member, "-w", root)
    assert code == 2 and "This takes 1 id (" in text and "请加 --yes" in text and member not in text
