"""Raw values against other implementations: Python's Decimal, datetime and hmac; every form of number and id that inputs.md names."""

import hmac
import stat
from datetime import datetime, timedelta, timezone
from decimal import ROUND_HALF_UP, Decimal
from zoneinfo import ZoneInfo

import ibis
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memtag_research.core import DefinitionError, MemtagError
from memtag_research.data.contracts import Column
from memtag_research.data.engine import as_table, connect
from memtag_research.data.values import check_how, key_of, read_secret, read_value, use_secret

MEMBER, PRODUCT = Column("member_id", "string", privacy="personal"), Column("product_id", "string")
NET, PIECES, WHOLE = Column("net_cents", "int64", unit="cents"), Column("quantity", "decimal(18, 3)"), Column("points", "int64")
TS, DAY, SCORE, CITY, YES = (Column("ts", "timestamp"), Column("birth_date", "date"), Column("score", "float64"), Column("city", "string"),
                             Column("granted", "boolean"))
SECRET = bytes(range(100, 132))


@pytest.fixture(scope="module")
def con():
    made = connect(threads=1)
    use_secret(made, SECRET)
    return made


def read(con, values, column, how=None, zone="Asia/Shanghai", kind="string"):
    "(values, bad, labels) as lists, None for null."
    raw = ibis.memtable(pd.DataFrame({"raw": values}), schema={"raw": kind})
    made = read_value(raw.raw, column, how or {}, zone)
    nothing = ibis.null("string")
    frame = con.execute(raw.select(v=made.value, b=nothing if made.bad is None else made.bad, c=nothing if made.cleaned is None else made.cleaned))
    return [[None if pd.isna(x) else x for x in frame[c]] for c in "vbc"]


def test_ids_stay_text_and_are_freed_of_what_spreadsheets_add(con):
    given = ["007", " 0100005 ", '="3245678901234567890"', "'13800138000", "\t1001", "17850.0", "１２３", "　张三　", "A.0", "1.05", "=", "2024-1", '=""']
    value, bad, label = read(con, given, MEMBER)
    assert value == ["007", "0100005", "3245678901234567890", "13800138000", "1001", "17850", "123", "张三", "A.0", "1.05", None, "2024-1", None]
    assert bad[10] == "="
    assert label[2:7] == ['="…" stripped', "leading ' stripped", "tabs stripped", "'.0' stripped", "full-width characters made plain"]
    assert [label[i] for i in (0, 1, 7, 8, 9)] == [None] * 5


def test_rounded_and_masked_ids_are_refused(con):
    assert read(con, ["3.24568E+18", "3.245678901234568e+18", "1E+15"], PRODUCT)[:2] == [[None] * 3, ["3.24568E+18", "3.245678901234568e+18", "1E+15"]]
    assert read(con, ["138****8000"], MEMBER)[:2] == [[None], ["138****8000"]]
    assert read(con, ["2E10", "1E5", "A**"], PRODUCT)[:2] == [["2E10", "1E5", "A**"], [None] * 3]   # codes of products, no floats
    value, bad, _ = read(con, [17850.0, 3245678901234567890.0, 1.5], PRODUCT, kind="float64")
    assert value == ["17850", None, None] and bad[0] is None and bad[1] and bad[2] == "1.5"
    assert read(con, [3245678901234567891], PRODUCT, kind="int64")[0] == ["3245678901234567891"]


PHONES = ["13800138000", "+8613800138000", "+86 138-0013-8000", "86-13800138000", "0086 138 0013 8000", "'13800138000", '="13800138000"',
          "１３８００１３８０００", "13800138000.0", " 138 0013 8000\t"]


def test_one_phone_has_one_key(con):
    keys, bad, label = read(con, PHONES, MEMBER, {"keyed": True})
    assert set(keys) == {hmac.new(SECRET, b"13800138000", "sha256").hexdigest()[:32]} and not any(bad)
    assert label[1] == "written in another way" and label[0] is None
    others = read(con, ["13800138001", "8613800138001", "A 1", "A1", "Li@X.com", "li@x.com", "2024-0001", "20240001"], MEMBER, {"keyed": True})[0]
    assert others[0] == others[1] and others[2] != others[3] and others[4] == others[5] and others[6] != others[7]
    assert read(con, [None, "", "散客"], MEMBER, {"keyed": True, "empty": ["散客"]})[0] == [None] * 3


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40), min_size=1, max_size=20))
def test_the_engine_and_python_make_the_same_keys(con, texts):
    texts = [t for t in texts if t.strip() and not t.lstrip().startswith(("=", "'", "＝", "＇")) and ".0" not in t and "．" not in t and "**" not in t
             and "+" not in t and "＋" not in t]
    if not texts: return
    got = read(con, texts, MEMBER, {"keyed": True})[0]
    assert got == [key_of(t, SECRET) if g is not None else None for t, g in zip(texts, got)]


def test_the_secret_is_made_once_and_is_its_owners(tmp_path):
    secret = read_secret(tmp_path)
    path = tmp_path / "data" / ".ids.secret"
    assert len(secret) == 32 and read_secret(tmp_path) == secret and stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_bytes(b"short")
    with pytest.raises(MemtagError, match="backup"): read_secret(tmp_path)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.decimals(-10**9, 10**9, places=2), min_size=1, max_size=30), st.sampled_from([".", ","]))
def test_money_in_every_dress(con, amounts, decimal):
    "What Python writes with groups, signs and brackets is read back to the cent."
    def dressed(i, a):
        text = f"{abs(a):,.2f}"
        if decimal == ",": text = text.translate(str.maketrans(",.", ".,"))
        minus = "-" if a < 0 else ""
        plain = f"{a:.2f}".replace(".", decimal)
        return [minus + "￥" + text, f"({text})" if a < 0 else text, text + minus, minus + text + " 元", "¥" + minus + text, plain][i % 6]
    cents, bad, _ = read(con, [dressed(i, a) for i, a in enumerate(amounts)], NET, {"decimal": decimal})
    assert cents == [int(a * 100) for a in amounts] and not any(bad)


def test_what_is_no_money(con):
    bad = ["12,50", "1,29,900", "12.5O", "1 2", "(5", "5)", "-5-", "￥", "1.2.3", "--1", "12.50 kg"]
    assert read(con, bad, NET)[:2] == [[None] * len(bad), bad]
    assert read(con, ["12.50", "1,2,3"], NET, {"decimal": ","})[1] == ["12.50", "1,2,3"]


def test_half_a_cent_rounds_away_from_zero(con):
    texts = ["0.005", "-0.005", "12.345", "1.0049"]
    assert read(con, texts, NET)[0] == [int((Decimal(t) * 100).quantize(Decimal(1), ROUND_HALF_UP)) for t in texts]
    assert read(con, ["1250", "-3"], NET, {"unit": "minor", "sign": -1})[0] == [-1250, 3]


def test_quantities_and_counts(con):
    assert [float(x) for x in read(con, ["0.352", "１", "1,000", "2.0"], PIECES)[0]] == [0.352, 1, 1000, 2]
    assert read(con, ["3", "3.0", "1,200", "2.5", "x"], WHOLE)[:2] == [[3, 3, 1200, None, None], [None, None, None, "2.5", "x"]]
    assert read(con, ["4.5", "1e3", "x"], SCORE)[0] == [4.5, 1000, None] and read(con, ["4,5"], SCORE, {"decimal": ","})[0] == [4.5]


def test_codes_become_other_types(con):
    assert read(con, ["是", " 否", "?"], YES, {"values": {"是": True, "否": False}})[:2] == [[True, False, None], [None, None, "?"]]
    assert read(con, ["F", "x"], CITY, {"values": {"F": "female"}})[:2] == [["female", None], [None, "x"]]
    assert read(con, ["未知", "上海", "-"], CITY, {"empty": ["未知", "-"]})[0] == [None, "上海", None]


CLOCKS = ["%Y/%-m/%-d %-H:%M", "%Y年%-m月%-d日", "%Y年%-m月%-d日 %H:%M:%S", "%Y-%m-%d %H:%M", "%Y%m%d"]


@settings(max_examples=40, deadline=None)
@given(st.datetimes(datetime(1990, 1, 1), datetime(2035, 1, 1)), st.sampled_from(CLOCKS), st.sampled_from(["Asia/Shanghai", "Europe/Berlin", "UTC"]))
def test_times_as_people_write_them(con, moment, form, zone):
    text = moment.strftime(form)
    known = datetime.strptime(text, form.replace("-m", "m").replace("-d", "d").replace("-H", "H") if "%-" in form else form)
    got = read(con, [text], TS, {"format": ["zh", "ymd", "%Y-%m-%d %H:%M"]}, zone)[0][0]
    want = known.replace(tzinfo=ZoneInfo(zone)).astimezone(timezone.utc).replace(tzinfo=None)
    if datetime.fromtimestamp(want.replace(tzinfo=timezone.utc).timestamp(), ZoneInfo(zone)).replace(tzinfo=None) == known:   # an hour that exists
        assert abs(got - want) in (timedelta(0), timedelta(hours=1))   # an hour that comes twice


def test_halves_of_the_day(con):
    texts = ["2024年3月1日 上午8:05", "2024年3月1日 下午3:05", "2024年3月1日下午12:30", "2024年3月1日 上午12:30:15", "2024年3月1日 晚上 9:00", "2024年3月1日 8时05分"]
    got = [str(t)[11:] for t in read(con, texts, TS, {"format": "zh"}, "UTC")[0]]
    assert got == ["08:05:00", "15:05:00", "12:30:00", "00:30:15", "21:00:00", "08:05:00"]


def test_ambiguous_and_short_years_are_not_guessed(con):
    texts = ["02/03/2024", "24/3/1", "2024-13-01", "soon", "45352"]
    assert read(con, texts, TS)[1] == texts and read(con, texts, TS, {"format": ["zh", "ymd"]})[1] == texts
    assert str(read(con, ["02/03/2024"], DAY, {"format": "%d/%m/%Y"})[0][0])[:10] == "2024-03-02"


@settings(max_examples=40, deadline=None)
@given(st.datetimes(datetime(1973, 4, 1), datetime(2099, 1, 1)).map(lambda t: t.replace(microsecond=0)))
def test_serials_and_epochs(con, moment):
    "Excel's day numbers to the second, as openpyxl reads them; seconds and milliseconds are told apart."
    from openpyxl.utils.datetime import to_excel
    assert read(con, [repr(to_excel(moment))], TS, {"format": "excel"}, "UTC")[0][0] == moment
    seconds = int(moment.replace(tzinfo=timezone.utc).timestamp())
    assert read(con, [str(seconds)], TS, {"format": "epoch_s"})[0][0] == moment
    assert read(con, [str(seconds * 1000 + 7)], TS, {"format": ["epoch_s", "epoch_ms"]})[0][0] == moment + timedelta(milliseconds=7)
    assert read(con, [str(seconds)], TS, {"format": "epoch_ms"})[1] == [str(seconds)]
    local = datetime.fromtimestamp(seconds, ZoneInfo("Asia/Shanghai")).date()
    assert pd.Timestamp(read(con, [str(seconds)], DAY, {"format": "epoch_s"})[0][0]).date() == local


@pytest.mark.parametrize("how, column, says", [
    ({"decimal": ";"}, NET, "decimal must be . or ,"), ({"on_error": "ignore"}, NET, "drop or empty"), ({"empty": "散客"}, MEMBER, "must be a list"),
    ({"format": "excle"}, TS, "Did you mean 'excel'"), ({"keyed": True}, CITY, "keyed is for ids"), ({"zone": "Mars"}, TS, "IANA"),
    ({"values": ["a"]}, CITY, "must map codes")])
def test_settings_that_mean_nothing(how, column, says):
    with pytest.raises(DefinitionError, match=says): check_how(how, column, "sources.x.columns.y")


@pytest.mark.parametrize("text, how, utc", [
    ("2025-07-20 03:04:29 +0800", {"zone": "offset"}, "2025-07-19 19:04:29"),
    ("2025-07-20 03:04:29 +0800", {"format": "%Y-%m-%d %H:%M:%S %z"}, "2025-07-19 19:04:29"),
    ("2025-07-20T03:04:29-05:30", {"zone": "offset"}, "2025-07-20 08:34:29"),
    ("2024-01-01 15:00:00+08", {"zone": "offset"}, "2024-01-01 07:00:00"),
    ("2024-01-01T15:00:00.250Z", {"zone": "offset"}, "2024-01-01 15:00:00.250"),
    ("2024-01-01 15:00 UTC", {"zone": "offset"}, "2024-01-01 15:00:00"),
    ("20/07/2025 03:04 +0800", {"format": "%d/%m/%Y %H:%M %z", "zone": "offset"}, "2025-07-19 19:04:00"),
    ("2025-07-20 03:04:29", {"zone": "offset"}, None),
])
def test_times_that_say_their_own_zone(text, how, utc):
    "Against the offsets as a person adds them up; a clock without its offset is no moment."
    column = Column("ts", "timestamp")
    table = as_table(pd.DataFrame({"x": [text]}))
    found = table.select(v=read_value(table.x, column, how, "Asia/Shanghai").value).execute().v.iloc[0]
    assert (pd.isna(found) and utc is None) or found == pd.Timestamp(utc)


def test_a_format_with_an_offset_refuses_another_zone():
    with pytest.raises(DefinitionError, match="times with %z say their own zone"):
        check_how({"format": "%Y-%m-%d %H:%M %z", "zone": "Asia/Shanghai"}, Column("ts", "timestamp"), "sources.order_lines.columns.ts")
