"""Exports: for each rule a planted member who must not appear, and one beside who must; the file, the record, the refusals."""

import hashlib
import json
import os
import re
from datetime import date

import pandas as pd
import pyarrow.parquet as pq
import pytest

from memtag_research.core import MemtagError, NotComputable, ParameterError
from memtag_research.data.engine import as_table
from memtag_research.data.grains import grains
from memtag_research.data.privacy import forget
from memtag_research.data.workspace import open_workspace
from memtag_research.tags import export as module
from memtag_research.tags.catalogues import read_catalogue
from memtag_research.tags.definition import Segment
from memtag_research.tags.draws import is_drawn
from memtag_research.tags.export import consent_reasons, export_segment, exports_of, read_exports
from memtag_research.tags.segment_files import with_members

AS_OF = "2024-03-01"
GOOD = [f"good{i:02}" for i in range(12)]
PLANTED = {  # member → the reason for which it must be left out
    "child": "minor", "quiet": "do_not_contact", "private": "no_profiling", "refused": "consent_refused", "withdrew": "consent_refused",
    "withdrewall": "consent_refused", "expired": "consent_expired", "expirestoday": "consent_expired", "later": "withdrawn_since",
    "silent": "no_consent", "otherchannel": "no_consent", "otherpurpose": "no_consent", "agreedlater": "no_consent", "agreedtoday": "no_consent",
    "leftlater": "closed"}
CATALOGUE = """
sources:
  days: {table: member_days}
  people: {table: members}
  blocks: {table: consents, where: purpose == 'third_party'}
  profiling: {table: consents, where: purpose == 'profiling'}
metrics:
  days_all: {source: days, agg: sum, of: purchase_days, days: all}
  age_years: {source: people, agg: max, of: "years(as_of, birth_date)", days: all}
  blocked: {source: blocks, agg: last, of: granted, days: all}
  profiled: {source: profiling, agg: last, of: granted, days: all}
tags:
  buyer: {class: behaviour, kind: flag, title: {en: Buyer, zh: 买过}, when: days_all >= 1}
  told: {class: basic, kind: column, title: {en: City, zh: 城市}, from: members.city, privacy: personal}
  stage:
    class: lifecycle
    kind: rules
    title: {en: Stage, zh: 阶段}
    values: {new: days_all == 1, more: else}
    labels: {new: {en: new here, zh: 新客}, more: {en: came again, zh: 老客}}
  minor: {class: compliance, kind: flag, title: {en: Minor, zh: 未成年}, when: age_years < 14}
  do_not_contact: {class: compliance, kind: flag, title: {en: No contact, zh: 免打扰}, when: "not coalesce(blocked, True)"}
  no_profiling: {class: compliance, kind: flag, title: {en: No profiling, zh: 拒绝}, when: "not coalesce(profiled, True)"}
  internal: {class: risk, kind: flag, title: {en: Internal, zh: 内部}, when: days_all >= 1, purpose: [risk_control]}
  illness:
    {class: basic, kind: column, title: {en: Illness, zh: 病}, from: members.marital_status, privacy: sensitive_personal, basis: consent, purpose: [marketing]}
segments:
  buyers: {title: {en: Buyers, zh: 买家}, where: buyer}
  townspeople: {title: {en: Town, zh: 城里人}, where: told == 'Ulm'}
  half: {title: {en: Half, zh: 一半}, where: buyer, holdout: 0.5}
  served: {where: buyer, purpose: service}
"""


def word(member, day, granted=True, channel="sms", purpose="marketing", expires=None):
    return {"member_id": member, "purpose": purpose, "channel": channel, "granted": granted, "ts": pd.Timestamp(day) + pd.Timedelta(hours=12),
            "local_date": pd.Timestamp(day).date(), "expires_at": pd.Timestamp(expires) if expires else pd.NaT,
            "expires_date": pd.Timestamp(expires).date() if expires else None, "source": "app"}


def tables() -> dict:
    everybody = [*GOOD, *PLANTED]
    members = pd.DataFrame({"member_id": everybody, "joined_at": pd.Timestamp("2023-01-01"), "local_date": date(2023, 1, 1), "city": "Ulm",
                            "marital_status": "x", "birth_date": [date(2012 if m == "child" else 1990, 1, 1) for m in everybody],
                            "closed_at": [pd.Timestamp("2024-03-05") if m == "leftlater" else pd.NaT for m in everybody],
                            "closed_date": [date(2024, 3, 5) if m == "leftlater" else None for m in everybody]})
    lines = pd.DataFrame({"line_id": everybody, "order_id": everybody, "member_id": everybody, "ts": pd.Timestamp("2024-01-05 10:00"),
                          "local_date": date(2024, 1, 5), "line_kind": "sale", "quantity": 1., "net_cents": 500})
    silent = ("silent", "otherchannel", "otherpurpose", "agreedlater", "agreedtoday", "refused")
    said = [word(m, "2024-01-02") for m in everybody if m not in silent and not m.startswith("expire")]
    said += [word("refused", "2024-01-02", False), word("withdrew", "2024-02-01", False), word("withdrewall", "2024-02-01", False, None),
             word("expired", "2024-01-02", expires="2024-02-01"), word("expirestoday", "2024-01-02", expires=AS_OF), word("later", "2024-03-03", False),
             word("otherchannel", "2024-01-02", channel="email"), word("otherpurpose", "2024-01-02", purpose="profiling"),
             word("agreedlater", "2024-03-02"), word("agreedtoday", AS_OF), word("quiet", "2024-01-02", False, purpose="third_party"),
             word("private", "2024-01-02", False, None, "profiling"),
             word("good00", "2023-06-01", False), word("good01", "2024-01-02", False, "email"), word("good02", "2024-01-01", expires="2024-01-20"),
             word("good03", "2024-01-10", expires="2024-03-02")]       # an older no, another channel, an older end, an end still to come
    ids = [(m, "wecom", f"wm{m}") for m in everybody if m != "good11"] + [("good00", "wecom", "wmsecond"), ("good10", "wecom", "wmchild")]
    ids = [i for i in ids if i != ("good10", "wecom", "wmgood10")]
    return {"members": members, "order_lines": lines, "consents": pd.DataFrame(said),
            "identities": pd.DataFrame(ids, columns=["member_id", "channel", "channel_id"])}


def make(folder, without=(), settings="", **changed):
    "A workspace as ingest would have left it."
    made = {n: t for n, t in {**tables(), **changed}.items() if n not in without}
    data = folder / "data" / "v-1"
    data.mkdir(parents=True)
    (folder / "data/current").symlink_to("v-1")
    for name, frame in made.items(): frame.to_parquet(data / f"{name}.parquet", coerce_timestamps="us")
    for name, grain in grains(as_table(data / "order_lines.parquet")).items(): grain.to_parquet(data / f"{name}.parquet")
    manifest = {"tables": {p.stem: {"rows": 1} for p in data.glob("*.parquet")}, "sha256": "1", "log": {"start": "2024-01-05", "end": "2024-01-05"}}
    (data / "manifest.json").write_text(json.dumps(manifest))
    (folder / "memtag.yaml").write_text("name: Shop\ncurrency: EUR\nzone: UTC\n" + settings, encoding="utf-8")
    return open_workspace(folder)


@pytest.fixture
def ws(tmp_path): return make(tmp_path / "ws", settings="k: 2\n")


@pytest.fixture
def wecom(tmp_path):
    "The same words, given for WeCom."
    return make(tmp_path / "wecom", consents=tables()["consents"].replace({"channel": {"sms": "wecom"}}))


@pytest.fixture(scope="module")
def catalogue(): return read_catalogue(CATALOGUE)


def export(ws, catalogue, segment="buyers", name="out.csv", shape="csv", **more):
    out = ws.root / name
    return export_segment(ws, catalogue, segment, AS_OF, out, shape, **{"channel": None if shape == "wecom" else "sms", **more}), out


def test_nobody_planted_appears_and_everybody_else_does(ws, catalogue):
    made, out = export(ws, catalogue)
    assert pd.read_csv(out).member_id.tolist() == GOOD
    expected = pd.Series(PLANTED).value_counts().to_dict()
    assert made.removed == expected and made.belong == len(GOOD) + len(PLANTED) and made.members == made.rows == len(GOOD)
    assert list(made.removed) == [r for r in module.REASONS if r in expected]      # in the order in which reasons count


def test_no_profiling_matters_where_derived_tags_do(ws, catalogue):
    "A rule over what members said themselves: who refuses profiling stays. With a derived tag in the file, or a metric in the rule: out."
    made, out = export(ws, catalogue, "townspeople")
    assert "no_profiling" not in made.removed and "private" in set(pd.read_csv(out).member_id)
    assert "private" not in set(pd.read_csv(export(ws, catalogue, "townspeople", tags=["stage"])[1]).member_id)
    assert "private" not in set(pd.read_csv(export(ws, catalogue, "told == 'Ulm' and days_all >= 0")[1]).member_id)


def test_a_refusal_of_profiling_counts_without_the_tag(ws):
    bare = read_catalogue(re.sub(r"  no_profiling:.*\n", "", CATALOGUE))
    made, out = export(ws, bare)
    assert made.removed["no_profiling"] == 1 and "private" not in set(pd.read_csv(out).member_id)


def test_lists_do_not_overrule_a_no(ws, catalogue):
    listed = with_members(ws, catalogue.segments["buyers"], include=list(PLANTED), exclude=["good05"])
    assert pd.read_csv(export(ws, catalogue, listed)[1]).member_id.tolist() == [m for m in GOOD if m != "good05"]


def test_the_held_out_are_left_out_and_always_the_same(ws, catalogue):
    made, out = export(ws, catalogue, "half", name="half.csv")
    held = [m for m, h in zip(GOOD, is_drawn(GOOD, .5, "holdout:half")) if h]
    assert 0 < len(held) < len(GOOD) and made.removed["held_out"] == len(held)
    assert pd.read_csv(out).member_id.tolist() == [m for m in GOOD if m not in held]


def test_consent_is_of_a_purpose_and_channel(ws, catalogue):
    got = consent_reasons(ws, "marketing", "sms", AS_OF).set_index("member_id").reason
    for member, reason in PLANTED.items():
        if reason.startswith(("consent_", "withdrawn")): assert got[member] == reason
        if reason == "no_consent": assert member not in got
    assert consent_reasons(ws, "marketing", "email", AS_OF).set_index("member_id").reason.to_dict() == {
        "otherchannel": "granted", "good01": "consent_refused", "withdrewall": "consent_refused"}
    assert consent_reasons(ws, "marketing", "sms", "2024-02-29").set_index("member_id").reason["expirestoday"] == "granted"
    same = pd.DataFrame([word("a", "2024-01-02", g) for g in (True, False)]).astype({"expires_date": "date32[pyarrow]"})
    for frame in (same, same[::-1]):      # a yes and a no of one moment: the no, whatever the order of rows
        assert consent_reasons({"consents": as_table(frame)}, "marketing", "sms", AS_OF).reason.tolist() == ["consent_refused"]


def test_without_consents_nothing_is_exported_unless_declared(tmp_path, catalogue):
    bare = make(tmp_path / "bare", without=("consents",))
    with pytest.raises(NotComputable, match="no table consents"): export(bare, catalogue)
    assert not (bare.root / "out.csv").exists() and read_exports(bare).empty
    declared = make(tmp_path / "declared", without=("consents",), settings="consent: not_required\nconsent_reason: staff shop\n")
    made, out = export(declared, catalogue)
    assert made.removed == {"minor": 1, "closed": 1} and len(pd.read_csv(out)) == len(GOOD) + len(PLANTED) - 2
    assert made.notes[0] == "consent is not required: staff shop" and any("do_not_contact" in n and "consents" in n for n in made.notes)
    refused = make(tmp_path / "refused", settings="consent: not_required\nconsent_reason: staff shop\n")    # flags count all the same
    assert {"quiet", "child", "private"}.isdisjoint(pd.read_csv(export(refused, catalogue)[1]).member_id)


def test_fewer_than_k_are_refused(tmp_path, catalogue):
    ws = make(tmp_path / "k", settings="k: 13\n")
    with pytest.raises(ParameterError, match="fewer than 13 members") as error: export(ws, catalogue)
    assert "27 members" in str(error.value) and "under age: 1" in str(error.value) and not (ws.root / "out.csv").exists()
    assert not [m for m in [*GOOD, *PLANTED] if m in str(error.value) and m not in ("refused", "expired")]   # words of the message
    assert export(make(tmp_path / "k12", settings="k: 12\n"), catalogue)[0].members == 12
    with pytest.raises(ParameterError, match="fewer than 1 members"): export(make(tmp_path / "k0", settings="k: 0\n"), catalogue, "days_all > 5")


# ---- shapes


def test_wecom_has_addresses_of_nobody_who_said_no(wecom, catalogue):
    made, out = export(wecom, catalogue, "buyers", "w.csv", "wecom", tags=["buyer", "stage"], lang="zh")
    frame = pd.read_csv(out)
    assert list(frame.columns) == ["external_userid", "tag_group", "tag"]
    expected = {"wmsecond", *(f"wm{m}" for m in GOOD if m not in ("good10", "good11"))}     # good10 shares an address with a child, good11 has none
    assert set(frame.external_userid) == expected and made.removed["shared_address"] == made.removed["no_address"] == 1
    assert set(map(tuple, frame[["tag_group", "tag"]].values)) == {("行为", "买过"), ("生命周期", "新客")}
    assert made.rows == len(frame) == 2 * len(expected) and made.members == len(GOOD) - 2
    with pytest.raises(ParameterError, match="over the channel wecom"): export(wecom, catalogue, "buyers", "w.csv", "wecom", channel="sms")


def test_crm_and_xlsx(ws, catalogue):
    made, out = export(ws, catalogue, "buyers", "c.csv", "crm", tags=["stage", "told"])
    frame = pd.read_csv(out)
    assert list(frame.columns) == ["member_id", "tag_group", "tag", "value"] and made.rows == 2 * made.members
    assert set(map(tuple, frame[["tag_group", "tag", "value"]].values)) == {("Lifecycle", "Stage", "new here"), ("Basic", "City", "Ulm")}
    _, plain = export(ws, catalogue, "buyers", "p.csv", "crm", lang="zh")
    assert set(map(tuple, pd.read_csv(plain)[["tag_group", "tag", "value"]].values)) == {("人群", "买家", "是")}
    _, book = export(ws, catalogue, "buyers", "b.xlsx", "xlsx", tags=["stage", "buyer"], lang="zh")
    sheet = pd.read_excel(book)
    assert list(sheet.columns) == ["member_id", "阶段", "买过"] and set(sheet.阶段) == {"新客"} and set(sheet.买过) == {"是"}


def test_text_that_looks_like_a_formula_stays_text(tmp_path, catalogue):
    from openpyxl import load_workbook
    changed = tables()
    changed["members"].loc[changed["members"].member_id == "good00", "city"] = "=1+1"
    ws = make(tmp_path / "f", **changed)
    _, out = export(ws, catalogue, "buyers", "f.xlsx", "xlsx", tags=["told"])
    cells = {row[0].value: row[1] for row in load_workbook(out).active.iter_rows()}
    assert cells["good00"].value == "=1+1" and cells["good00"].data_type == "s"


def test_names_must_fit_the_tool(wecom):
    long = read_catalogue(CATALOGUE.replace("en: new here", "en: came here this winter"))
    with pytest.raises(MemtagError, match="longer than 15 characters.*came here this winter"): export(wecom, long, "buyers", "w.csv", "wecom", tags=["stage"])
    twice = read_catalogue(CATALOGUE.replace("{class: behaviour, kind: flag, title: {en: Buyer", "{class: lifecycle, kind: flag, title: {en: new here"))
    with pytest.raises(MemtagError, match="two tags would have the name 'new here'"):
        export(wecom, twice, "buyers", "w.csv", "wecom", tags=["stage", "buyer"])


# ---- purposes


def test_tags_are_used_for_what_they_are_for(tmp_path, ws, catalogue):
    with pytest.raises(MemtagError, match="internal is for risk_control only"): export(ws, catalogue, "internal and buyer")
    with pytest.raises(MemtagError, match="internal is for risk_control only"): export(ws, catalogue, tags=["internal"])
    with pytest.raises(MemtagError, match="served is for service"): export(ws, catalogue, "served")
    with pytest.raises(ParameterError, match="fewer than 2"): export(ws, catalogue, "illness == 'x'")     # nobody agreed to sensitive
    changed = tables()
    changed["consents"] = pd.concat([changed["consents"], pd.DataFrame([word(m, "2024-01-02", purpose="sensitive") for m in GOOD[:6]])])
    made, out = export(make(tmp_path / "s", **changed), catalogue, "illness == 'x'")
    assert pd.read_csv(out).member_id.tolist() == GOOD[:6] and made.removed["no_consent"] == 6 + 5 + 2   # and `private`, `leftlater`


# ---- the file and the record


def test_the_record_tells_everything_but_who(ws, catalogue):
    made, out = export(ws, catalogue, tags=["stage"])
    export(ws, catalogue, "buyers", "c.csv", "crm")
    record = read_exports(ws)
    first = record.iloc[0]
    assert first.sha256 == made.sha256 == hashlib.sha256(out.read_bytes()).hexdigest() and first.removed == made.removed
    assert (first.segment, first.purpose, first.channel, first.as_of, first["shape"], first.rows) == ("buyers", "marketing", "sms", AS_OF, "csv", 12)
    assert len(first.definition_hash) == 64 and first.who and first.when.endswith("Z") and first.belong == made.belong
    text = (ws.root / "tags/exports.jsonl").read_text()
    assert not [m for m in [*GOOD, *PLANTED] if re.search(rf"\b(wm)?{m}\b", text)]
    for path in (out, ws.root / "tags/exports.jsonl"): assert path.stat().st_mode & 0o777 == 0o600


def test_no_record_no_file(ws, catalogue, monkeypatch):
    (ws.root / "tags").mkdir(exist_ok=True)
    (ws.root / "tags/exports.jsonl").mkdir()        # cannot be written
    with pytest.raises(MemtagError, match="Nothing was exported"): export(ws, catalogue)
    assert not (ws.root / "out.csv").exists()


def test_half_a_line_of_a_killed_writer_harms_no_other(ws, catalogue):
    export(ws, catalogue)
    with open(ws.root / "tags/exports.jsonl", "a") as f: f.write('{"when": "2024')
    export(ws, catalogue, name="two.csv")
    assert read_exports(ws).file.tolist() == ["out.csv", "two.csv"]


def test_a_file_that_cannot_be_written_leaves_the_old_one(ws, catalogue, monkeypatch):
    _, out = export(ws, catalogue)
    before = out.read_bytes()
    real = module.write_file
    def full(path, content):
        if path == out: raise OSError(28, "No space left on device")
        real(path, content)
    monkeypatch.setattr(module, "write_file", full)
    with pytest.raises(MemtagError, match="No space left"): export(ws, catalogue)
    assert out.read_bytes() == before and read_exports(ws).iloc[-1].failed == "No space left on device"
    monkeypatch.undo()
    assert len(exports_of(ws, pd.read_csv(out).member_id.astype(str))) == 1     # the one that failed is not among them
    with pytest.raises(MemtagError, match="cannot write"): export(ws, catalogue, name="none/out.csv")
    assert [p.name for p in ws.root.iterdir() if p.name.startswith(".new")] == [] and os.listdir(ws.root).count("out.csv") == 1


@pytest.mark.parametrize("more, says", [
    ({"shape": "wecon"}, "Did you mean 'wecom'"), ({"purpose": "marketin"}, "Did you mean 'marketing'"), ({"tags": ["stag"]}, "Did you mean 'stage'"),
    ({"channel": None}, "email, sms"), ({"name": "out.txt"}, "ends in .csv"), ({"shape": "xlsx"}, "ends in .xlsx"), ({"segment": "buyer and"}, "buyer and"),
    ({"segment": Segment(name="x", where="byer")}, "buyer")])
def test_wrong_arguments_are_refused(ws, catalogue, more, says):
    with pytest.raises(MemtagError, match=re.escape(says)): export(ws, catalogue, **more)
    assert read_exports(ws).empty and not (ws.root / "out.csv").exists()


def test_who_was_in_a_file_is_known_by_key_only(ws, catalogue):
    made, out = export(ws, catalogue)
    inside = sorted(pd.read_csv(out, dtype=str).member_id)
    outside = sorted(set(ws.table("members").member_id.execute()) - set(inside))
    assert inside and outside
    for who, times in ((inside[0], 1), (inside[-1], 1), (outside[0], 0)): assert len(exports_of(ws, [who])) == times
    assert exports_of(ws, [inside[0]]).iloc[0].sha256 == made.sha256
    kept = next((ws.root / "tags/exported").glob("*.parquet"))
    assert oct(kept.stat().st_mode)[-3:] == "600" and pq.read_schema(kept).names == ["member_key"]
    assert not [i for i in inside if f'"{i}"' in (ws.root / "tags/exports.jsonl").read_text()]
    forget(ws.root, inside[0])
    assert exports_of(ws, [inside[0]]).empty and len(exports_of(ws, [inside[1]])) == 1 and pq.read_table(kept)["member_key"].null_count == 1


def test_readable_in_a_notebook(ws, catalogue):
    made, _ = export(ws, catalogue, lang="zh")
    assert "未成年" in str(made) and "<script" not in made._repr_html_() and "12 rows of 12 members" in str(made)
