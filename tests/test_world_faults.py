"""Faults: each is what it says, in the share that was asked for, and nothing else changes."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from scipy.stats import binom

from memtag_research.world.baskets import basket_lines, make_assortment
from memtag_research.world.contacts import make_contacts
from memtag_research.world.faults import AGAIN, add_faults
from memtag_research.world.parameters import NONE, Coded, Faults, Numbered, TierPolicy, World
from memtag_research.world.people import DAY, make_cards, make_people
from memtag_research.world.programme import Wishes, draw_wishes, naive_ledger, naive_tiers, points_ledger, tier_history
from memtag_research.world.purchases import make_calendar, make_purchases

# windows begin in the middle of the days on which abuse happens
WORLD = World(n_members=2_000, seed=5, tiers=TierPolicy(window_days=100, evaluations=("01-01", "04-01", "07-01", "10-01")))
MACHINES = {"duplicate_lines": "order_lines", "returns_without_sale": "order_lines", "late_records": "order_lines",
            "negative_balances": "points_ledger", "coupon_abuse": "identities"}
EVERYTHING = Faults(*[.3] * 6)


def made(world, block=0):
    "Cards, orders and clean tables of one block."
    people, cards = make_people(world, block), make_cards(world, block, make_people(world, block))
    bought = make_purchases(world, make_calendar(world), block, people, cards)
    cards["closed"] = np.full(len(cards["person"]), NONE)
    cards["closed"][:len(people["person"])] = bought.latent["closed"]
    orders, assortment = bought.orders, make_assortment(world)
    ledger, used = points_ledger(world, block, cards, orders)
    tables, _ = basket_lines(world, block, assortment, people, orders, used)
    exposures = {name: np.empty(0, np.int64) for name in ("campaign", "person", "arm", "ts")}
    tables |= make_contacts(world, block, people, cards, orders, bought.lost, exposures, None, assortment, tables["order_lines"])[0]
    tables |= {"points_ledger": ledger, "tier_history": tier_history(world, block, cards, bought.evaluations)}
    return cards, orders, tables


@cache
def base(): return made(WORLD)


def clean(): return base()[2]


@cache
def spoilt(faults): return add_faults(replace(WORLD, faults=faults), 0, clean())


def plain(column):
    "A column as an array of numbers or texts."
    if isinstance(column, Coded): return np.array([*column.values, ""], object)[column.codes]
    return column.numbers if isinstance(column, Numbered) else column


def length(table): return len(plain(next(iter(table.values()))))


def same_rows(table, other, rows=slice(None), leave=()):
    "The rows of one table are the other table."
    assert list(table) == list(other)
    for name in table:
        if name not in leave: np.testing.assert_array_equal(plain(table[name])[rows], plain(other[name]), err_msg=name)


def likely(count, n, share):
    low, high = binom.ppf([5e-5, 1 - 5e-5], n, share)
    assert low <= count <= high, (count, n, share)


def texts(column, text): return plain(column) == text


def test_without_faults_the_same_objects_come_back():
    tables, truth = add_faults(WORLD, 0, clean())
    assert tables is clean() and truth == {}


@pytest.mark.parametrize("kind", MACHINES)
def test_a_fault_touches_its_table_only_and_not_what_was_given(kind):
    before = {name: {c: plain(v).copy() for c, v in table.items()} for name, table in clean().items()}
    tables, truth = spoilt(Faults(**{kind: .2}))
    assert list(truth) == [kind] and list(tables) == list(clean())
    assert [name for name in tables if tables[name] is not clean()[name]] == [MACHINES[kind]]
    for name, table in clean().items():
        for column, values in table.items(): np.testing.assert_array_equal(plain(values), before[name][column])


@pytest.mark.parametrize("share", [.01, .4, 1.])
def test_duplicate_lines_come_right_after_their_originals(share):
    tables, truth = spoilt(Faults(duplicate_lines=share))
    lines, number = tables["order_lines"], tables["order_lines"]["line_id"].numbers
    copy = np.flatnonzero(np.isin(number, truth["duplicate_lines"]["line_id"].numbers))
    likely(len(copy), length(clean()["order_lines"]), share)
    assert len(copy) == length(truth["duplicate_lines"]) and len(np.unique(number)) == len(number)
    same_rows({name: plain(v)[copy] for name, v in lines.items()}, {name: plain(v)[copy - 1] for name, v in lines.items()}, leave=("line_id",))
    np.testing.assert_array_equal(number[copy], number[copy - 1] + AGAIN)
    np.testing.assert_array_equal(truth["duplicate_lines"]["original_line_id"].numbers, number[copy - 1])
    same_rows(lines, clean()["order_lines"], np.delete(np.arange(len(number)), copy))


def test_line_numbers_leave_room_for_the_second_time():
    assert (clean()["order_lines"]["line_id"].numbers % 100 < AGAIN).all()


@pytest.mark.parametrize("share", [.1, 1.])
def test_returns_without_sale_refer_to_nothing(share):
    tables, truth = spoilt(Faults(returns_without_sale=share))
    lines, cases = tables["order_lines"], truth["returns_without_sale"]
    returns = np.unique(lines["order_id"].numbers[texts(lines["line_kind"], "return")])
    likely(length(cases), len(returns), share)
    hit = np.isin(lines["order_id"].numbers, cases["order_id"].numbers)
    assert not np.isin(lines["original_order_id"].numbers[hit], lines["order_id"].numbers).any()
    assert (lines["original_order_id"].numbers[hit] // 10_000_000 == 1).all()          # still within the block
    original = dict(zip(cases["order_id"].numbers.tolist(), cases["original_order_id"].numbers.tolist()))
    restored = [original.get(order, was) for order, was in zip(lines["order_id"].numbers.tolist(), lines["original_order_id"].numbers.tolist())]
    assert restored == clean()["order_lines"]["original_order_id"].numbers.tolist()
    same_rows(lines, clean()["order_lines"], leave=("original_order_id",))


@pytest.mark.parametrize("share", [.05, 1.])
def test_late_lines_are_recorded_days_after_and_before_the_end(share):
    tables, truth = spoilt(Faults(late_records=share))
    lines, cases = tables["order_lines"], truth["late_records"]
    wait = lines["recorded_at"] - lines["ts"]
    late = np.isin(lines["line_id"].numbers, cases["line_id"].numbers)
    end = WORLD.last_day * DAY
    likely(late.sum(), (lines["ts"] + DAY < end).sum(), share)
    assert (wait[late] >= DAY).all() and (wait[late] <= 30 * DAY).all() and (lines["recorded_at"] < end).all()
    assert abs(np.mean(wait[late & (lines["ts"] < end - 40 * DAY)]) / DAY - 15.5) < .7
    np.testing.assert_array_equal(wait[late], cases["seconds"])
    np.testing.assert_array_equal(lines["recorded_at"][~late], clean()["order_lines"]["recorded_at"][~late])
    same_rows(lines, clean()["order_lines"], leave=("recorded_at",))


def balances(ledger):
    "Balance after each entry, of its card."
    total, card = np.cumsum(ledger["points"]), ledger["member_id"].numbers
    begin = np.searchsorted(card, card)
    return total - total[begin] + ledger["points"][begin]


@pytest.mark.parametrize("share", [.1, 1.])
def test_negative_balances_end_a_day_below_zero(share):
    tables, truth = spoilt(Faults(negative_balances=share))
    ledger, cases = tables["points_ledger"], truth["negative_balances"]
    card, day = ledger["member_id"].numbers, ledger["ts"] // DAY
    assert (np.diff(card) >= 0).all() and (np.diff(ledger["ts"])[np.diff(card) == 0] >= 0).all()
    fault = np.isin(ledger["entry_id"].numbers, cases["entry_id"].numbers)
    assert (balances(clean()["points_ledger"]) >= 0).all()
    likely(fault.sum(), len(np.unique(card)), share)             # every card got points on joining
    assert fault.sum() == length(cases) == len(np.unique(card[fault])) and texts(ledger["kind"], "redeem")[fault].all()
    ends = np.append((card[1:] != card[:-1]) | (day[1:] != day[:-1]), True)
    assert ends[fault].all() and ((balances(ledger)[fault] >= -500) & (balances(ledger)[fault] <= -1)).all()
    assert len(np.unique(ledger["entry_id"].numbers)) == len(card) and (ledger["ts"] < WORLD.last_day * DAY).all()
    same_rows(ledger, clean()["points_ledger"], ~fault)


ABUSE = Faults(points_abuse=.3)


def with_abuse():
    "The round trips as orders and wishes, added to the others: what `naive_ledger` takes."
    (cards, orders, before), (tables, truth) = base(), spoilt(ABUSE)
    lines, trips = tables["order_lines"], truth["points_abuse"]
    place = {number: row for row, number in enumerate(lines["order_id"].numbers.tolist())}
    buy, back = ([place[n] for n in trips[name].numbers.tolist()] for name in ("order_id", "return_id"))
    history = tables["tier_history"]
    tiers = [max((first, tier) for card, first, tier in zip(history["member_id"].numbers, history["valid_from"], history["tier"].codes)
                 if card == who and first <= ts // DAY)[1] for who, ts in zip(trips["member_id"].numbers, lines["ts"][buy])]
    more = {"number": trips["order_id"].numbers, "card": trips["member_id"].numbers, "ts": lines["ts"][buy], "tier": np.array(tiers, np.int64),
            "value_cents": lines["net_cents"][buy], "refund_ts": lines["ts"][back], "refund_cents": -lines["net_cents"][back]}
    together = {name: np.concatenate([orders[name], more[name]]) for name in more}
    wishes, ledger = draw_wishes(WORLD, 0, cards, orders), tables["points_ledger"]
    new = ~np.isin(ledger["entry_id"].numbers, before["points_ledger"]["entry_id"].numbers) & texts(ledger["kind"], "redeem")
    wishes = Wishes(np.append(wishes.pays, np.zeros(len(buy), bool)), np.append(wishes.card, ledger["member_id"].numbers[new]),
                    np.append(wishes.ts, ledger["ts"][new]), np.append(wishes.pick, np.full(new.sum(), .999)))     # the dearest
    return cards, together, wishes


def test_the_points_of_round_trips_follow_the_rules_of_the_programme():
    expected, _ = naive_ledger(WORLD, *with_abuse())
    ledger, trips = spoilt(ABUSE)[0]["points_ledger"], spoilt(ABUSE)[1]["points_abuse"]
    none = lambda values: [None if v == NONE else v for v in values.tolist()]
    ours = list(zip(ledger["member_id"].numbers.tolist(), ledger["ts"].tolist(), plain(ledger["kind"]).tolist(), ledger["points"].tolist(),
                    plain(ledger["reason"]).tolist(), none(ledger["order_id"].numbers), none(ledger["expires_at"])))
    assert len(trips["order_id"].numbers) > 100
    assert ours == expected
    assert len(np.unique(ledger["entry_id"].numbers)) == len(ours)


def test_round_trips_are_orders_that_go_back_whole_and_are_paid():
    tables, truth = spoilt(ABUSE)
    lines, pay, trips = tables["order_lines"], tables["payments"], truth["points_abuse"]
    n = length(clean()["order_lines"])
    same_rows(lines, clean()["order_lines"], slice(0, n))
    number, back = trips["order_id"].numbers, trips["return_id"].numbers
    m = len(number)
    assert lines["order_id"].numbers[n:].tolist() == [*number, *back] and not np.isin([*number, *back], clean()["order_lines"]["order_id"].numbers).any()
    sold, gone = ({name: plain(v)[n:][part] for name, v in lines.items()} for part in (slice(0, m), slice(m, 2 * m)))
    assert set(sold["line_kind"]) == {"sale"} and set(gone["line_kind"]) == {"return"} and set(gone["status"]) == {"refunded"}
    for name in ("net_cents", "list_cents", "quantity", "tax_cents", "cost_cents"):
        np.testing.assert_array_equal(sold[name], -gone[name])
        assert (sold[name] > 0).all()
    for name in ("member_id", "product_id", "store_id", "channel"): np.testing.assert_array_equal(sold[name], gone[name])
    np.testing.assert_array_equal(gone["original_order_id"], sold["order_id"])
    np.testing.assert_array_equal(sold["net_cents"], sold["list_cents"])
    stay = gone["ts"] // DAY - sold["ts"] // DAY
    assert (stay >= 2).all() and (stay <= 5).all() and (gone["ts"] < WORLD.last_day * DAY).all()
    k = length(clean()["payments"])
    assert pay["order_id"].numbers[k:].tolist() == [*number, *back] and pay["cents"][k:].tolist() == [*sold["net_cents"], *gone["net_cents"]]


def test_round_trips_change_no_tier():
    (cards, orders, _), (_, together, _) = base(), with_abuse()
    for card in np.unique(spoilt(ABUSE)[1]["points_abuse"]["member_id"].numbers).tolist():
        first, second = (growths(cards, given, card) for given in (orders, together))
        assert first == second


def growths(cards, orders, card):
    "Evaluations of one card by the plain loop."
    own = np.flatnonzero(orders["card"] == card)
    back = own[orders["refund_ts"][own] != NONE]
    rows = list(zip(orders["ts"][own].tolist(), orders["value_cents"][own].tolist()))
    return naive_tiers(WORLD, cards["joined"][card], rows, list(zip(orders["refund_ts"][back].tolist(), orders["refund_cents"][back].tolist())))


def test_abusers_make_several_trips_and_come_out_with_nothing_left():
    tables, truth = spoilt(ABUSE)
    ledger, before = tables["points_ledger"], clean()["points_ledger"]
    card, trips = np.unique(truth["points_abuse"]["member_id"].numbers, return_counts=True)
    assert trips.min() >= 2 and trips.max() <= 6
    last = np.flatnonzero(np.diff(before["member_id"].numbers, append=-1))
    quiet = before["member_id"].numbers[last][before["ts"][last] // DAY + 70 < WORLD.last_day]
    able = np.intersect1d(quiet, before["member_id"].numbers[texts(before["kind"], "earn")])
    members = clean()["members"]
    able = np.setdiff1d(able, members["member_id"].numbers[members["closed_at"] != NONE])
    able = np.setdiff1d(able, clean()["member_merges"]["from_id"].numbers)
    assert np.isin(card, able).all()
    likely(len(card), len(able), .3)
    assert (balances(ledger) >= 0).all()
    ends = np.flatnonzero(np.diff(ledger["member_id"].numbers, append=-1))
    assert (balances(ledger)[ends][np.isin(ledger["member_id"].numbers[ends], card)] == 0).all()
    lines = tables["order_lines"]
    added = {name: plain(v)[length(clean()["order_lines"]):] for name, v in lines.items()}
    assert (added["ts"] > dict_of_last(before)[added["member_id"]]).all()


def dict_of_last(ledger):
    "Moment of the last entry, by card number."
    out = np.zeros(20_000, np.int64)
    np.maximum.at(out, ledger["member_id"].numbers, ledger["ts"])
    return out


@pytest.mark.parametrize("share", [.2, 1.])
def test_groups_of_cards_share_one_device(share):
    tables, truth = spoilt(Faults(coupon_abuse=share))
    ids, cases = tables["identities"], truth["coupon_abuse"]
    card, used = cases["member_id"].numbers, clean()["redemptions"]
    newcomers = np.unique(used["member_id"].numbers[texts(used["campaign_id"], "C-WELCOME")])
    likely(len(card), len(newcomers), share)
    assert np.isin(card, newcomers).all() and len(np.unique(card)) == len(card)
    sizes = np.unique(cases["group"], return_counts=True)[1]
    assert sizes.min() == 3 and sizes.max() == 6
    device = {c: d for c, d, channel in zip(ids["member_id"].numbers.tolist(), plain(ids["channel_id"]), plain(ids["channel"])) if channel == "device"}
    by_group = {}
    for c, group, text in zip(card.tolist(), cases["group"].tolist(), plain(cases["device"])):
        assert device[c] == text
        by_group.setdefault(group, set()).add(text)
    assert all(len(texts) == 1 for texts in by_group.values()) and len(set.union(*by_group.values())) == len(sizes)
    others = ~(texts(ids["channel"], "device") & np.isin(ids["member_id"].numbers, card))
    was = clean()["identities"]
    kept = np.flatnonzero(~(texts(was["channel"], "device") & np.isin(was["member_id"].numbers, card)))
    same_rows(ids, {name: plain(v)[kept] for name, v in was.items()}, others)
    assert (np.diff(ids["member_id"].numbers) >= 0).all()


def test_all_at_once_again_and_in_other_blocks():
    tables, truth = spoilt(EVERYTHING)
    again, same = add_faults(replace(WORLD, faults=EVERYTHING), 0, clean())
    assert list(truth) == list(same) and len(truth) == 6 and all(length(cases) for cases in truth.values())
    for name in tables: same_rows(tables[name], again[name])
    ids = tables["order_lines"]["line_id"].numbers
    assert len(np.unique(ids)) == len(ids)
    other = replace(WORLD, n_members=4096 + 300, faults=EVERYTHING)
    tables, truth = add_faults(other, 1, made(other, 1)[2])
    numbers = np.concatenate([tables["order_lines"]["order_id"].numbers, truth["points_abuse"]["return_id"].numbers])
    assert (numbers // 10_000_000 == 2).all() and (tables["points_ledger"]["entry_id"].numbers // 100_000_000 == 2).all()


@pytest.mark.parametrize("world", [World(n_members=1), World(n_members=3, start="2024-01-01", end="2024-04-01", seed=3),
                                   World(n_members=5, locale="zh", seed=1)])
def test_small_worlds(world):
    tables = made(world)[2]
    spoiled, truth = add_faults(replace(world, faults=Faults(*[1.] * 6)), 0, tables)
    assert len(truth) == 6
    for name, table in spoiled.items(): assert len({len(plain(v)) for v in table.values()}) <= 1, name
