"""The calendar against two outside libraries, published holidays, and a day-by-day oracle."""

from dataclasses import replace
from datetime import date, timedelta

import numpy as np
import pytest
from borax.calendars.lunardate import LunarDate
from hypothesis import given, settings
from hypothesis import strategies as st
from lunar_python import Lunar

from memtag_research.core import ParameterError
from memtag_research.world.calendar import AFTER, clock_edges, day_weights, festival_days, lunar_new_year, mid_autumn
from memtag_research.world.parameters import Season, World, day_number

YEARS = range(2000, 2051)
PUBLISHED_LUNAR_NEW_YEARS = [
    "2017-01-28", "2018-02-16", "2019-02-05", "2020-01-25", "2021-02-12", "2022-02-01", "2023-01-22", "2024-02-10",
    "2025-01-29", "2026-02-17", "2030-02-03"]  # public holidays; 2030 as in the Hong Kong Observatory's almanac
PUBLISHED_MID_AUTUMNS = [
    "2017-10-04", "2018-09-24", "2019-09-13", "2020-10-01", "2021-09-21", "2022-09-10", "2023-09-29", "2024-09-17", "2025-10-06"]
FESTIVALS = ("lunar_new_year", "mid_autumn", "618", "double_11", "christmas")


def test_lunar_dates_of_borax():
    assert [lunar_new_year(y) for y in YEARS] == [LunarDate(y, 1, 1).to_solar_date() for y in YEARS]
    assert [mid_autumn(y) for y in YEARS] == [LunarDate(y, 8, 15).to_solar_date() for y in YEARS]


def test_lunar_dates_of_lunar_python():
    assert [str(lunar_new_year(y)) for y in YEARS] == [Lunar.fromYmd(y, 1, 1).getSolar().toYmd() for y in YEARS]
    assert [str(mid_autumn(y)) for y in YEARS] == [Lunar.fromYmd(y, 8, 15).getSolar().toYmd() for y in YEARS]


def test_published_dates():
    assert [str(lunar_new_year(int(d[:4]))) for d in PUBLISHED_LUNAR_NEW_YEARS] == PUBLISHED_LUNAR_NEW_YEARS
    assert [str(mid_autumn(int(d[:4]))) for d in PUBLISHED_MID_AUTUMNS] == PUBLISHED_MID_AUTUMNS


@pytest.mark.parametrize(("feast", "first", "last"), [(lunar_new_year, (1, 21), (2, 20)), (mid_autumn, (9, 7), (10, 8))])
def test_feasts_are_whole_lunar_years_apart(feast, first, last):
    days = [feast(y) for y in YEARS]
    assert all(date(d.year, *first) <= d <= date(d.year, *last) for d in days)
    gaps = [(b - a).days for a, b in zip(days, days[1:], strict=False)]
    assert set(gaps) <= {353, 354, 355, 356, 383, 384, 385}  # twelve or thirteen lunar months
    assert abs(sum(gaps) / len(gaps) - 365.25) < .5          # no drift against the sun


@pytest.mark.parametrize("year", [1999, 2051])
@pytest.mark.parametrize("feast", [lunar_new_year, mid_autumn])
def test_outside_the_table(feast, year):
    with pytest.raises(ParameterError, match="2000 to 2050"): feast(year)


def test_a_world_beyond_the_table_needs_a_season_without_lunar_feasts():
    late = World(start="2050-01-01", end="2051-01-01")
    with pytest.raises(ParameterError, match="leave it out of Season.festivals"): day_weights(late)
    assert day_weights(replace(late, season=Season(festivals={"618": 2.}))).shape == (4, 365 + AFTER)


@pytest.mark.parametrize(("name", "first", "last"), [
    ("lunar_new_year", "2024-02-09", "2024-02-15"), ("mid_autumn", "2024-09-15", "2024-09-17"), ("618", "2024-06-16", "2024-06-18"),
    ("double_11", "2024-11-10", "2024-11-11"), ("christmas", "2024-12-22", "2024-12-25")])
def test_festival_days(name, first, last):
    assert festival_days(name, 2024) == list(range(day_number(first), day_number(last) + 1))


def test_an_unknown_festival():
    with pytest.raises(ParameterError, match="Did you mean 'christmas'"): festival_days("chrismas", 2024)


def naive_weights(world, clock):
    "One clock, day by day, as one would write it on paper."
    season, weights = world.season, []
    lover, weekend = divmod(clock, 2)
    for i in range(world.days + AFTER):
        day = date.fromisoformat(world.start) + timedelta(i)
        years = (day - date.fromisoformat(f"2000-{season.peak}")).days / 365.2425
        weight = season.weekdays[day.weekday()] * (1 + season.yearly * np.cos(2 * np.pi * years))
        special = season.member_day if day.day in season.member_days else 1.
        for name, factor in season.festivals.items():
            if day_number(day.isoformat()) in festival_days(name, day.year): special *= factor
        weight *= special ** season.lover_boost if lover else special
        weights.append(weight * season.weekend_boost if weekend and day.weekday() >= 5 else weight)
    return np.array(weights) / np.mean(weights[:world.days])


@settings(max_examples=12, deadline=None)
@given(start=st.dates(date(2001, 1, 1), date(2045, 12, 31)), days=st.integers(90, 800),
       weekdays=st.tuples(*[st.floats(.2, 3)] * 7), yearly=st.floats(0, .9), peak=st.sampled_from(["12-01", "02-29", "07-15"]),
       festivals=st.dictionaries(st.sampled_from(FESTIVALS), st.floats(.3, 3)), member_days=st.lists(st.integers(1, 31), unique=True),
       boost=st.floats(0, 3), weekend=st.floats(.2, 4))
def test_weights_are_those_of_a_day_by_day_loop(start, days, weekdays, yearly, peak, festivals, member_days, boost, weekend):
    season = Season(weekdays=weekdays, yearly=yearly, peak=peak, festivals=festivals, member_days=tuple(member_days), lover_boost=boost,
                    weekend_boost=weekend)
    world = World(start=start.isoformat(), end=(start + timedelta(days)).isoformat(), season=season)
    weights = day_weights(world)
    for clock in range(4): np.testing.assert_allclose(weights[clock], naive_weights(world, clock), rtol=1e-9)
    assert (weights > 0).all()
    np.testing.assert_allclose(weights[:, :days].mean(axis=1), 1, rtol=1e-12)


def test_edges_are_sums_of_weights_that_rise():
    world = World()
    weights, edges = day_weights(world), clock_edges(day_weights(world))
    assert edges.shape == (4, world.days + AFTER + 1) and (edges[:, 0] == 0).all() and (np.diff(edges) > 0).all()
    np.testing.assert_allclose(edges[:, world.days], world.days, rtol=1e-12)
    np.testing.assert_allclose(np.diff(edges), weights, rtol=1e-9)
