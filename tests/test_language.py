"""Labels, number formats, fonts and colours, against CLDR (by Babel), hand-worked numbers and drawn pictures."""

import itertools
import re
import subprocess
import sys
import unicodedata
import warnings
from datetime import date, datetime
from decimal import Decimal
from importlib.resources import files

import numpy as np
import pandas as pd
import pytest

from memtag_research import language
from memtag_research.core import DefinitionError, ParameterError
from memtag_research.language import (
    COLOURS,
    format_change,
    format_date,
    format_money,
    format_number,
    format_percent,
    format_period_end,
    format_points,
    glossary,
    label,
    labels,
    use_fonts,
)

NULLS = [None, float("nan"), np.nan, pd.NA, pd.NaT, Decimal("NaN"), float("inf"), -np.inf]


# Labels

def test_every_key_is_a_code_with_both_languages():
    for key, entry in glossary().items():
        assert re.fullmatch("[a-z][a-z0-9_]*", key), key
        assert entry["en"].strip() == entry["en"] != "" and entry["zh"].strip() == entry["zh"] != "", key
        assert entry["en"].isascii(), key
        assert any("\u4e00" <= c <= "\u9fff" for c in entry["zh"]), key
        assert set(entry) <= {"group", "en", "zh", "note", "unit", "aliases", "source"}, key


def test_no_key_stands_twice_in_the_file():
    text = files("memtag_research").joinpath("glossary.yaml").read_text(encoding="utf-8")
    keys = re.findall(r"^  (\w+):", text, re.MULTILINE)     # YAML itself lets the last of two win
    assert len(keys) == len(set(keys)) == len(glossary())


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_labels_of_one_group_are_told_apart(lang):
    for group, entries in itertools.groupby(glossary().values(), key=lambda e: e["group"]):
        words = [e[lang] for e in entries]
        assert sorted(set(words)) == sorted(words), group


def test_chinese_is_simplified():
    characters = {c for e in glossary().values() for c in e["zh"] if unicodedata.category(c) == "Lo"}
    assert {c for c in characters if not c.encode("gb2312", "ignore")} == set()   # the set of 1980 has no traditional forms


def test_values_fit_the_tools_that_show_them():
    for key in glossary():
        if re.match("(rfm_class|rfm_segment|lifecycle|status)_", key):
            assert len(label(key)) <= 15, key          # WeCom's limit for a tag
            assert len(label(key, "zh")) <= 6, key     # a card


def test_words_that_the_field_mixes_up():
    keys = ["repeat_purchase_rate", "repurchase_rate", "retention_rate", "uplift", "lift", "reach", "basket"]
    assert list(labels(keys, "zh").values()) == ["复购率", "回购率", "留存率", "增量", "提升度", "触达", "客单"]
    assert label("churn_risk", "zh") == "流失风险" and label("rfm_segment_lost", "zh") == "流失"
    dormant = {"沉默", "休眠"}
    assert dormant <= set(glossary()["dormant"]["aliases"])
    assert not [k for k, e in glossary().items() if e["zh"] in {"沉默", "休眠期", "客单价", "匿名"}]


def test_the_eight_value_classes():
    codes = [f"rfm_class_{a}_{b}" for a in ("key", "general") for b in ("value", "keep", "develop", "win_back")]
    classic = "重要价值 重要保持 重要发展 重要挽留 一般价值 一般保持 一般发展 一般挽留"
    assert list(labels(codes, "zh").values()) == classic.split()


def test_every_code_of_the_measures_has_its_label():
    from memtag_research.measures import lifecycle, metrics, rfm, sales
    codes = [*metrics.METRICS, *metrics.KPIS, *metrics.NOT_YET, *sales.FACTORS]
    codes += [f"rfm_class_{c}" for c in rfm.RFM_CLASSES] + [f"rfm_segment_{c}" for c in rfm.RFM_SEGMENTS]
    codes += [f"lifecycle_{c}" for c in lifecycle.STAGES] + [f"step_{c}" for c in lifecycle.FUNNEL]
    assert [c for c in codes if c not in glossary()] == []


def test_unknown_names_are_refused_with_a_hint():
    with pytest.raises(DefinitionError, match="Did you mean 'member_sales'"):
        label("member_sale")
    with pytest.raises(ParameterError, match="lang must be 'en' or 'zh', not 'zh_CN'"):
        label("member_sales", "zh_CN")
    with pytest.raises(TypeError):
        glossary()["new_key"] = {}


# Numbers

@pytest.mark.parametrize("value, en, card, zh", [
    (0, "0", "0", "0"), (-0.0, "0", "0", "0"), (999, "999", "999", "999"), (9999, "9,999", "9,999", "9,999"),
    (10000, "10,000", "10.0K", "1.0万"), (12345, "12,345", "12.3K", "1.2万"), (-12345, "-12,345", "-12.3K", "-1.2万"),
    (999_949, "999,949", "999.9K", "100.0万"), (999_950, "999,950", "1.0M", "100.0万"),
    (1_469_307, "1,469,307", "1.5M", "146.9万"), (340_000_000, "340,000,000", "340.0M", "3.4亿"),
    (99_999_499, "99,999,499", "100.0M", "9,999.9万"), (99_999_500, "99,999,500", "100.0M", "1.0亿"),
    (2_500_000_000, "2,500,000,000", "2.5B", "25.0亿"), (123456789012345678, "123,456,789,012,345,678", None, None),
])
def test_number(value, en, card, zh):
    assert format_number(value) == en
    if card: assert (format_number(value, short=True), format_number(value, "zh")) == (card, zh)
    assert format_number(value, "zh", short=False) == en


def test_rounding_is_half_up_on_the_printed_digits():
    assert [format_number(v, decimals=2) for v in (2.675, 1.005, -2.675, 1.597)] == ["2.68", "1.01", "-2.68", "1.60"]
    assert [format_number(v) for v in (1.5, 2.5, -2.5)] == ["2", "3", "-3"]     # half even would say 2, 2, -2


def test_what_is_not_zero_never_reads_as_zero():
    assert [format_percent(r) for r in (.0005, .0004, -.0004, .00001, 0, -0.0)] == [
        "0.05%", "0.04%", "-0.04%", "0.001%", "0.0%", "0.0%"]
    assert [format_number(.004, decimals=2), format_number(.4)] == ["0.004", "0.4"]
    assert format_change(.0004) == "▲ 0.04%" and format_points(-.0004) == "-0.04 pp"
    assert format_percent(.1 + .2 - .3) == "0.0%"       # 5.6e-17 is float noise


def test_what_is_not_everybody_never_reads_as_everybody():
    assert [format_percent(r) for r in (.9996, .9994, 1, 1.0004, -.9996)] == [
        "99.96%", "99.94%", "100.0%", "100.04%", "-99.96%"]
    assert format_percent(2468 / 2469, decimals=0) == "99.96%"


def test_published_online_retail_figures():
    assert format_percent(8911407.90 / 10655622.48, decimals=2) == "83.63%"
    assert [format_percent(n / 1664) for n in (540, 443)] == ["32.5%", "26.6%"]
    assert format_percent(622 / 1364, "zh") == "45.6%"
    assert format_money(891140790, "GBP") == "£8,911,407.90"
    assert [format_number(x, decimals=3) for x in (2657 / 1664,)] == ["1.597"]


def test_differences_and_changes():
    assert [format_points(d) for d in (.012, -.0584, 0, -0.0)] == ["+1.2 pp", "-5.8 pp", "0.0 pp", "0.0 pp"]
    assert format_points(.012, "zh") == "+1.2 个百分点"
    assert [format_change(r) for r in (.123, -.05, 0, 12.5)] == ["▲ 12.3%", "▼ 5.0%", "0.0%", "▲ 1,250.0%"]


@pytest.mark.parametrize("null", NULLS)
def test_null_and_infinite_read_as_a_dash(null):
    for shown in (format_number(null), format_number(null, "zh"), format_money(null, "USD"), format_percent(null),
                  format_points(null), format_change(null)):
        assert shown == "–"


@pytest.mark.parametrize("value", ["many", True, [1], date(2018, 1, 1)])
def test_what_is_no_number_is_refused(value):
    with pytest.raises(ParameterError, match="A number was expected"):
        format_number(value)


def test_types_of_tables_read_alike():
    same = {format_percent(t) for t in (.125, np.float64(.125), np.float32(.125), Decimal("0.125"))}
    assert same == {"12.5%"}
    assert {format_number(t) for t in (1234, np.int64(1234), Decimal(1234), 1234.0)} == {"1,234"}


# Money

def test_money_by_hand():
    dollars = ["$0.00", "$0.05", "-$0.05", "$1,234.56", "$0.00"]
    assert [format_money(c, "USD") for c in (0, 5, -5, 123456, -0.0)] == dollars
    coded = ["¥1,234,567", "KWD\u00a01,234.567", "CHF\u00a012,345.67"]
    assert [format_money(1234567, c) for c in ("JPY", "KWD", "CHF")] == coded
    assert [format_money(1234567, c, "zh") for c in ("CNY", "USD", "JPY")] == ["¥1.2万", "US$1.2万", "JP¥123.5万"]
    assert format_money(123456789, "CNY", "zh", short=False) == "¥1,234,567.89"
    assert [format_money(120000000, "USD", short=True), format_money(43727, "GBP", decimals=0)] == ["$1.2M", "£437"]
    with pytest.raises(ParameterError, match="currency must be a code such as 'USD', not 'usd'"):
        format_money(1, "usd")


@pytest.mark.parametrize("lang, locale", [("en", "en_US"), ("zh", "zh_Hans_CN")])
def test_money_and_cards_agree_with_cldr(lang, locale):
    numbers = pytest.importorskip("babel.numbers", reason="Babel is not installed: CLDR was not compared")
    for currency in ("USD", "EUR", "GBP", "JPY", "CNY", "HKD", "TWD", "KRW", "INR", "VND", "CHF", "KWD"):
        minor = numbers.get_currency_precision(currency)
        for cents in (0, 5, -5, 99999, 123456789, -123456789):
            amount = Decimal(cents).scaleb(-minor)
            ours = format_money(cents, currency, lang, short=False).replace("\u00a0", "")   # Babel drops the blank
            assert ours == numbers.format_currency(amount, currency, locale=locale)
    for value in (12_345, 123_456, 1_469_307, 340_000_000, -20_660_000_000):
        theirs = numbers.format_compact_decimal(value, locale=locale, fraction_digits=1)
        if "." not in theirs: theirs = re.sub(r"(\D*)$", r".0\1", theirs, count=1)   # our columns keep a last zero
        assert format_number(value, lang, short=True) == theirs


# Dates

def test_people_read_inclusive_dates():
    assert format_period_end("2018-01-01") == format_period_end(date(2018, 1, 1)) == "Data to 31 Dec 2017"
    assert format_period_end("2016-03-01", "zh") == "数据截至 2016-02-29"
    days = ("2017-03-05", date(2017, 3, 5), datetime(2017, 3, 5, 23), pd.Timestamp("2017-03-05"))
    assert {format_date(d) for d in days} == {"5 Mar 2017"}
    assert [format_date(d) for d in (None, pd.NaT)] == ["–", "–"]
    assert format_date("2017-03-05", "zh") == "2017-03-05"
    with pytest.raises(ParameterError, match="must be a date"):
        format_period_end("2018-13-01")


# Fonts and pictures

@pytest.fixture
def plots():
    "A clean matplotlib without a screen; what the test sets is undone."
    import matplotlib
    from matplotlib import pyplot as plt
    language._cjk_font.cache_clear(), language._warn_no_font.cache_clear()
    backend = matplotlib.get_backend()
    plt.switch_backend("agg")
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("error")
        yield plt
    plt.close("all"), plt.switch_backend(backend)
    language._cjk_font.cache_clear(), language._warn_no_font.cache_clear()


def _draw(plt, words):
    fig = plt.figure(figsize=(3, 3))
    for word in words: fig.text(.1, .5, word)
    fig.canvas.draw()
    return np.asarray(fig.canvas.buffer_rgba())


def _need_font():
    if language._cjk_font() is None: pytest.skip("no Chinese font is installed here (Debian: fonts-noto-cjk)")


def test_every_label_is_drawn_without_a_missing_glyph(plots):
    _need_font()
    assert use_fonts("zh") == "zh"
    formats = ["▲ 12.3% ▼ 5.0% –", format_points(.012, "zh"), format_money(-123456, "KRW", "zh"), "3.4亿", "-1"]
    assert _draw(plots, [*labels(glossary(), "zh").values(), *formats]).min() < 255
    assert use_fonts("en") == "en"
    _draw(plots, [*labels(glossary(), "en").values(), "▲ ▼ –", "CN¥ ₩ £ € ₹ ₫", "散客"])   # data may be Chinese


def test_without_the_font_the_same_check_fails(plots):
    plots.rcParams["font.family"] = ["DejaVu Sans"]
    with pytest.raises(UserWarning, match=r"Glyph .* missing from font"):
        _draw(plots, [label("member", "zh")])


def test_different_characters_are_different_pictures(plots):
    _need_font()
    use_fonts("zh")
    pictures = {_draw(plots, [word]).tobytes() for word in ("会", "员", "沉", "睡")}
    assert len(pictures) == 4                                   # boxes would all look alike


def test_tick_labels_and_minus_signs_are_drawn(plots):
    _need_font()
    use_fonts("zh")
    fig, ax = plots.subplots()
    ax.barh(["会员", "散客"], [-3, 2])
    fig.canvas.draw()
    assert plots.rcParams["axes.unicode_minus"] is False
    assert "-3" in [t.get_text() for t in ax.get_xticklabels()]


def test_no_chinese_font_means_english_and_one_warning(plots, monkeypatch):
    from matplotlib import font_manager
    monkeypatch.setattr(font_manager.fontManager, "ttflist",
                        [f for f in font_manager.fontManager.ttflist if f.name.startswith("DejaVu")])
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert [use_fonts("zh"), use_fonts("zh"), use_fonts("en")] == ["en", "en", "en"]
    assert len(caught) == 1 and "English labels" in str(caught[0].message)
    _draw(plots, labels(glossary(), "en").values())


def test_a_font_installed_after_matplotlib_made_its_list_is_found(plots, monkeypatch):
    from matplotlib import font_manager
    _need_font()
    language._cjk_font.cache_clear()
    monkeypatch.setattr(font_manager.fontManager, "ttflist",
                        [f for f in font_manager.fontManager.ttflist if f.name.startswith("DejaVu")])
    assert use_fonts("zh") == "zh"


def test_the_import_loads_no_plotting():
    heavy = "import sys, memtag_research.language; print({'matplotlib', 'numpy', 'pandas'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


# Colours

OKABE_ITO = "#000000 #E69F00 #56B4E9 #009E73 #F0E442 #0072B2 #D55E00 #CC79A7"     # jfly.uni-koeln.de/color, 2008
VISION = {   # Machado, Oliveira & Fernandes 2009, severity 1.0, on linear RGB
    "normal": np.eye(3),
    "deuteranopia": np.array([[.367322, .860646, -.227968], [.280085, .672501, .047413],
                              [-.011820, .042940, .968881]]),
    "protanopia": np.array([[.152286, 1.052583, -.204868], [.114503, .786281, .099216],
                            [-.003882, -.048116, 1.051998]]),
}
APART = 14      # CIE76 distance; 2.3 is just noticeable, and the closest of Okabe and Ito's own eight are 17.0 apart


def _lab(colour, vision):
    rgb = np.array([int(colour[i:i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(rgb <= .04045, rgb / 12.92, ((rgb + .055) / 1.055) ** 2.4)
    to_xyz = np.array([[.4124, .3576, .1805], [.2126, .7152, .0722], [.0193, .1192, .9505]])
    xyz = to_xyz @ np.clip(vision @ linear, 0, 1) / np.array([.9505, 1, 1.089])
    f = np.where(xyz > .008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_the_palette_is_okabe_and_ito():
    assert set(OKABE_ITO.split()) <= {COLOURS[k] for k in COLOURS if k not in glossary()}


@pytest.mark.parametrize("group", ["rfm_class_", "rfm_segment_", "lifecycle_"])
@pytest.mark.parametrize("vision", VISION)
def test_colours_of_a_group_stay_apart_for_the_colour_blind(group, vision):
    keys = [k for k in glossary() if k.startswith(group) and k != "lifecycle_closed"]
    assert set(keys) == {k for k in COLOURS if k.startswith(group)}
    for one, other in itertools.combinations(keys, 2):
        gap = np.linalg.norm(_lab(COLOURS[one], VISION[vision]) - _lab(COLOURS[other], VISION[vision]))
        assert gap > APART, (one, other)
