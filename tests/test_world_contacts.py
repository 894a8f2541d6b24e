"""Contacts: tables as the contract wants them, a funnel that holds exactly, an incident that shows, and a truth that tells."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy.stats import binom, nbinom, poisson

from memtag_research.data import contracts
from memtag_research.world.baskets import basket_lines, make_assortment
from memtag_research.world.contacts import make_contacts
from memtag_research.world.parameters import NONE, Coded, Contacts, Numbered, World
from memtag_research.world.people import CHANNELS, DAY, make_cards, make_people
from memtag_research.world.purchases import make_calendar, make_purchases

DOUBT = 1e-4  # two-sided probability of a bound being missed by luck; seeds are fixed
TABLES = yaml.safe_load(Path(contracts.__file__).with_name("contracts.yaml").read_text("utf-8"))


def some_orders(world, who, cards, mean=12.0):
    "Orders at random moments: the tables only need to know who bought when and where. The incident destroys as planted."
    rng, n, end = np.random.default_rng(world.seed + 99), len(who["person"]), world.last_day * DAY
    times = np.where(who["first"] == NONE, 0, rng.poisson(mean, n)) if mean else np.zeros(n, int)
    person = np.repeat(np.arange(n), times)
    first = who["first"][person]
    day = (first + rng.random(len(person)) * (end - first)).astype(np.int64) // DAY
    ts = np.maximum(day * DAY + rng.integers(8 * 3600, 22 * 3600, len(person)), first)
    by = np.lexsort((ts, person))
    person, ts = person[by], ts[by]
    apart = (np.diff(person, prepend=-1) != 0) | (np.diff(ts, prepend=0) > 600)  # so that a cart can be told to its order
    person, ts = person[apart], ts[apart]
    channel = np.where(rng.random(len(person)) < 0.7, who["channel"][person], rng.integers(0, 4, len(person))).astype(np.int8)
    second, card = who["second"][person], person.copy()
    there = (channel == 3) & (second >= 0) & (ts >= cards["joined"][second])
    card[there] = second[there]
    back = rng.random(len(person)) < 0.3
    orders = dict(number=10_000_000 + np.arange(len(person)), person=person, card=card, ts=ts, channel=channel,
                  value_cents=rng.integers(10_00, 300_00, len(person)), coupon=rng.integers(-6, 2, len(person)).clip(-1),
                  store=np.where(channel == 0, who["store"][person], -1), refund_ts=np.where(back, ts + DAY, NONE), refund_cents=np.where(back, 5_00, 0))
    lost = np.zeros(len(person), bool)
    if world.contacts.incident:
        start, days, factor = world.contacts.incident
        lost = (channel == 1) & (ts // DAY >= world.day(start)) & (ts // DAY < world.day(start) + days) & (rng.random(len(person)) >= factor)
    return {k: v[~lost] for k, v in orders.items()}, {k: v[lost] for k, v in orders.items()}


class Made:
    "A block with everything that went in and came out."

    def __init__(self, mean=12.0, block=0, rich=False, **contacts):
        n = contacts.pop("n_members", 4096)
        self.world = world = World(n_members=n, seed=contacts.pop("seed", 1), locale=contacts.pop("locale", "en"),
                                   contacts=Contacts(**contacts))
        self.who = make_people(world, block)
        self.cards = make_cards(world, block, self.who)
        self.orders, self.lost = some_orders(world, self.who, self.cards, mean)
        ended = np.full(len(self.who["person"]), world.first_day * DAY)
        np.maximum.at(ended, self.orders["person"], self.orders["ts"])
        closed = np.where(np.arange(len(ended)) % 17 == 0, np.maximum(ended, self.who["joined"]) + 5 * DAY, NONE)
        self.cards["closed"] = np.full(len(self.cards["person"]), NONE)
        self.cards["closed"][: len(closed)] = np.where(closed < world.last_day * DAY, closed, NONE)
        person = np.flatnonzero(self.who["joined"] < world.day("middle") * DAY)
        self.exposures = dict(campaign=np.ones(len(person), np.int64), person=person, arm=person % 3, ts=np.full(len(person), world.day("middle") * DAY + 9 * 3600))
        self.assortment = make_assortment(world) if rich else None
        lines = basket_lines(world, block, self.assortment, self.who, self.orders, np.zeros(len(self.orders["ts"]), np.int64))[0]["order_lines"] if rich else None
        self.lines, self.block = lines, block
        self.tables, self.truth = self.make()

    def make(self, **other):
        given = dict(people=self.who, cards=self.cards, orders=self.orders, lost=self.lost, exposures=self.exposures,
                     assortment=self.assortment, order_lines=self.lines) | other  # fmt: skip
        return make_contacts(self.world, self.block, **given)

    def events(self, *kinds):
        "Card, moment and the other columns of the events of some kinds."
        table = self.tables["events"]
        names = np.array(table["event"].values)[table["event"].codes]
        rows = np.isin(names, kinds) if kinds else np.ones(len(names), bool)
        return {name: plain(column)[rows] for name, column in table.items()} | {"card": cards_of(table)[rows], "event": names[rows]}


def plain(column):
    "A column as a numpy array; texts as texts, empty ones as ''."
    if isinstance(column, Coded): return np.array([*column.values, ""], object)[column.codes]
    return column.numbers if isinstance(column, Numbered) else column


def cards_of(table, block=0):
    column = table["member_id"]
    assert column.prefix == "M" and column.width == 9
    return column.numbers - block * 10_000


def assert_within(observed, law, *parameters):
    low, high = law.ppf([DOUBT / 2, 1 - DOUBT / 2], *parameters)
    assert low <= observed <= high, f"{observed} is not in [{low:.0f}, {high:.0f}]"


@pytest.fixture(scope="module")
def made():
    return Made(rich=True)


EDGES = {"usual": {}, "nobody logged": dict(app_share=0), "all logged": dict(app_share=1, mean=3), "no orders": dict(mean=0),
         "one person": dict(n_members=1), "two people": dict(n_members=2, mean=40), "no incident": dict(incident=(), mean=3), "nobody agrees": dict(consent_share=0),
         "all withdraw": dict(consent_share=1, withdraw_share=1), "silence": dict(messages_month=0, interactions_month=0, feedback_rate=0),
         "certain": dict(view_to_cart=1, cart_to_order=1), "Chinese": dict(locale="zh", mean=2),
         "incident to the end": dict(incident=("2024-12-30", 90, 0.0)), "from the first day": dict(incident=("2023-01-01", 900, 0.3))}  # fmt: skip


@pytest.mark.parametrize("edge", EDGES, ids=str)
def test_tables_are_as_the_contract_wants_them(edge):
    made = Made(**{"mean": 5} | EDGES[edge])
    start, end = made.world.first_day * DAY, made.world.last_day * DAY
    assert set(made.tables) == {"members", "events", "consents", "identities", "member_merges", "feedback", "redemptions", "assigned_tags", "scores"}
    for name, table in made.tables.items():
        wanted, lengths = TABLES[name]["columns"], {len(plain(c)) for c in table.values()}
        assert len(lengths) == 1, name
        assert set(table) <= set(wanted), name
        assert {c for c, how in wanted.items() if how.get("required")} - set(table) <= {"local_date"}, name
        for column, how in wanted.items():
            if column not in table: continue
            values = plain(table[column])
            empty = np.isin(values, [""]) if values.dtype == object else values == NONE
            assert how.get("nullable", True) or not empty.any(), (name, column)
            if "values" in how: assert set(values[~empty]) <= set(how["values"]), (name, column)
            kinds = {"string": (Coded, Numbered), "timestamp": np.ndarray, "date": np.ndarray, "float64": np.ndarray, "boolean": np.ndarray}
            assert isinstance(table[column], kinds[how["type"]]), (name, column)
            if how["type"] in ("timestamp", "date"): assert values.dtype == np.int64, (name, column)
            if how["type"] == "timestamp" and column != "expires_at":
                assert ((values >= start) & (values < end) | empty).all(), (name, column)
        if "key" in TABLES[name]:
            key = list(zip(*(plain(table[column]).tolist() for column in TABLES[name]["key"])))
            assert len(set(key)) == len(key), name
        if "ts" in table: assert (np.lexsort((table["ts"], cards_of(table))) == np.arange(len(table["ts"]))).all(), name


def test_the_same_world_gives_the_same_contacts_and_leaves_what_it_was_given(made):
    before = {k: v.copy() for k, v in (made.orders | {f"who {k}": v for k, v in made.who.items()} | {f"cards {k}": v for k, v in made.cards.items()}).items()}
    tables, truth = made.make()
    after = made.orders | {f"who {k}": v for k, v in made.who.items()} | {f"cards {k}": v for k, v in made.cards.items()}
    assert all(np.array_equal(before[k], after[k]) for k in before)
    for ours, theirs in [*zip(tables.values(), made.tables.values()), *zip(truth.values(), made.truth.values())]:
        for name in ours: assert np.array_equal(plain(ours[name]), plain(theirs[name]), equal_nan=plain(ours[name]).dtype == float), name


def test_products_change_nothing_but_what_is_looked_at(made):
    bare, _ = made.make(assortment=None, order_lines=None)
    for name in ("ts", "event", "channel", "session_id", "member_id"):
        assert np.array_equal(plain(bare["events"][name]), plain(made.tables["events"][name]))
    assert "product_id" not in bare["events"] and "city" not in bare["members"]


def funnel_of(made):
    "Visits, carts, orders by channel and period, from the tables alone; an order belongs to a cart some minutes before it."
    visits = made.events("view_item", "add_to_cart", "search", "login", "favorite")
    ends, cart = {}, {}
    for card, ts, event, visit, channel in zip(*(visits[k].tolist() for k in ("card", "ts", "event", "session_id", "channel"))):
        ends[visit] = (max(ts, ends.get(visit, (0,))[0]), channel)
        if event == "add_to_cart": cart[visit] = (card, ts)
    paid, seen = {}, set()
    for order, (card, ts, channel) in enumerate(zip(*(made.orders[k].tolist() for k in ("card", "ts", "channel")))):
        paid.setdefault((card, CHANNELS[channel]), []).append((order, ts))
    counts = {cell: [0, 0, 0] for cell in (("app", "normal"), ("web", "normal"), ("app", "incident"))}
    start, days, _ = made.world.contacts.incident
    first = made.world.day(start)
    for visit, (ts, channel) in ends.items():
        during = channel == "app" and first <= ts // DAY < first + days
        cell = counts[channel, "incident" if during else "normal"]
        cell[0] += 1
        if visit in cart:
            cell[1] += 1
            card, at = cart[visit]
            near = [order for order, when in paid.get((card, channel), []) if 20 <= when - at < 360 and order not in seen]
            cell[2] += len(near) > 0  # an order counts once, though another cart may lie in the same minutes by chance
            seen |= set(near[:1])
    return counts


def told(made):
    funnel = made.truth["funnel"]
    cells = zip(plain(funnel["channel"]), plain(funnel["period"]))
    return {cell: [int(funnel[k][i]) for k in ("sessions", "carts", "orders")] for i, cell in enumerate(cells)}


def since_joining(who, orders):
    "What somebody bought before joining was entered later: no visit is known."
    return orders["ts"] >= who["joined"][orders["person"]]


def test_the_funnel_of_the_tables_is_the_one_that_the_truth_tells(made):
    assert funnel_of(made) == told(made)
    kept = made.who["app"][made.orders["person"]] & since_joining(made.who, made.orders)
    assert sum(orders for _, _, orders in told(made).values()) == (kept & np.isin(made.orders["channel"], (1, 2))).sum()


@pytest.mark.parametrize("v, c, factor", [(0.25, 0.4, 0.5), (0.1, 0.8, 0.2), (0.6, 0.1, 0.9), (1.0, 0.3, 0.0), (0.3, 1.0, 0.5)])
def test_conversion_is_the_planted_one_in_and_outside_the_incident(v, c, factor):
    made = Made(mean=8, app_share=1, view_to_cart=v, cart_to_order=c, incident=("middle", 30, factor), seed=7)
    destroyed = int(((made.lost["channel"] == 1) & since_joining(made.who, made.lost)).sum())
    assert destroyed > 20
    for (_, period), (visits, carts, orders) in told(made).items():
        wanted = orders + (destroyed if period == "incident" else 0)
        assert_within(carts - wanted, nbinom, wanted, c)  # independent carts until so many orders
        assert_within(visits - carts, nbinom, carts, v)
        if period == "incident": assert_within(orders, binom, wanted, factor)


def test_the_incident_shows_and_without_it_there_is_nothing_to_see():
    broken, calm = (Made(mean=30, n_members=2000, app_share=1, incident=("middle", 14, factor)) for factor in (0.5, 1.0))
    _, carts, orders = funnel_of(broken)["app", "incident"]
    assert binom.cdf(orders, carts, broken.world.contacts.cart_to_order) < 1e-6
    _, carts, orders = told(calm)["app", "incident"]
    assert_within(carts - orders, nbinom, orders, calm.world.contacts.cart_to_order)


def test_visits_stay_on_the_side_of_the_incident_on_which_their_order_is():
    made = Made(mean=30, app_share=1, incident=("middle", 20, 0.5))
    first = made.world.day("middle")
    for rows in ((made.orders["ts"] // DAY >= first) & (made.orders["ts"] // DAY < first + 20), made.orders["ts"] // DAY >= first + 20):
        orders = {k: v[rows & (made.orders["channel"] == 1)] for k, v in made.orders.items()}
        days = made.orders["ts"][rows].min() // DAY, made.orders["ts"][rows].max() // DAY
        tables, _ = made.make(orders=orders, lost={k: v[:0] for k, v in made.lost.items()})
        visits = tables["events"]["ts"][tables["events"]["session_id"].numbers != NONE] // DAY
        assert len(visits) > 1000 and visits.min() >= days[0] and visits.max() <= days[1]


def test_visits_are_of_people_whose_visits_are_logged_while_they_are_there(made):
    visits = made.events("view_item", "add_to_cart", "search", "login")
    assert made.who["app"][visits["card"]].all()
    truth, n = made.truth["contacts"], len(made.who["person"])
    closed = np.where(made.cards["closed"][:n] == NONE, made.world.last_day * DAY, made.cards["closed"][:n])
    assert (visits["ts"] >= truth["begin"][visits["card"]] - 30 * 60).all() and (visits["ts"] < closed[visits["card"]]).all()
    buyers = np.unique(made.orders["person"][np.isin(made.orders["channel"], (1, 2))])
    assert (~np.isin(visits["card"], buyers)).sum() > 100  # looking is not buying


def test_people_look_at_what_they_like_and_at_what_is_on_sale(made):
    tables, _ = made.make(order_lines=None)
    events = tables["events"]
    view = np.flatnonzero(np.array(events["event"].values)[events["event"].codes] == "view_item")
    products, person, row = made.assortment.products, cards_of(events)[view], events["product_id"].numbers[view] - 1
    tastes, interest = made.world.tastes, made.who["interest"][person]
    expected = tastes.top_interest + (1 - tastes.top_interest - tastes.second_interest) * np.array(tastes.categories)[interest]
    # a visit's cart and view share a product, views of one visit do not: every view is a draw of its own
    assert_within((products["category"].codes[row] == interest).sum(), binom, len(view), expected.mean())
    assert (products["first_sold_at"][row] <= events["ts"][view]).all()


def test_the_visit_of_an_order_has_its_first_product_in_the_cart(made):
    carts = made.events("add_to_cart")
    place = {key: i for i, key in enumerate(zip(carts["card"].tolist(), carts["ts"].tolist()))}
    line_of = dict(zip(made.lines["order_id"].numbers[::-1].tolist(), made.lines["product_id"].numbers[::-1].tolist()))
    logged = np.flatnonzero(made.who["app"][made.orders["person"]] & np.isin(made.orders["channel"], (1, 2)) & since_joining(made.who, made.orders))
    seen = 0
    for i in logged[:3000].tolist():
        card, ts = int(made.orders["card"][i]), int(made.orders["ts"][i])
        mine = [place[card, ts - k] for k in range(20, 360) if (card, ts - k) in place]
        products = carts["product_id"][mine]
        seen += line_of[int(made.orders["number"][i])] in products
    assert seen >= 0.999 * min(len(logged), 3000)  # a launch within the minutes between leaves the rest


def consents_of(made):
    "Card and channel → marketing statements as (moment, granted, until)."
    table = made.tables["consents"]
    said = {}
    for card, purpose, channel, granted, ts, until in zip(cards_of(table).tolist(), plain(table["purpose"]), plain(table["channel"]),
                                                         table["granted"].tolist(), table["ts"].tolist(), table["expires_at"].tolist()):
        if purpose == "marketing": said.setdefault((card, channel), []).append((ts, granted, until))
    return said


def test_messages_go_only_where_a_consent_holds(made):
    said, sent = consents_of(made), made.events("message_sent")
    assert len(sent["ts"]) > 10_000
    for card, channel, ts in zip(sent["card"].tolist(), sent["channel"].tolist(), sent["ts"].tolist()):
        last = [s for s in said[card, channel] if s[0] <= ts][-1]
        assert last[1] and (last[2] == NONE or ts < last[2])


def test_consent_is_as_planted_and_what_is_taken_back_was_given(made):
    world, truth = made.world.contacts, made.truth["contacts"]
    assert_within(truth["agreed"].sum(), binom, len(truth["agreed"]), world.consent_share)
    assert_within((truth["taken_back_at"] != NONE).sum(), binom, truth["agreed"].sum(), world.withdraw_share)
    said = consents_of(made)
    agreed = {card for (card, _), statements in said.items() if statements[0][1]}
    assert agreed == set(np.flatnonzero(truth["agreed"]).tolist())
    for (card, _), statements in said.items():
        assert [granted for _, granted, _ in statements] in ([True], [False], [True, False])
        if len(statements) == 2: assert statements[1][0] == truth["taken_back_at"][card] > statements[0][0]


def test_messages_and_interactions_come_at_the_planted_rates(made):
    truth, rates, month = made.truth["contacts"], made.world.contacts, DAY * 365.25 / 12
    sent, opened, clicked = (len(made.events(f"message_{k}")["ts"]) for k in ("sent", "open", "click"))
    assert_within(sent, poisson, (truth["agreed_until"] - truth["granted_at"])[truth["agreed"]].sum() / month * rates.messages_month)
    assert_within(opened, binom, sent, rates.open_rate)
    assert_within(clicked, binom, opened, rates.click_rate)
    did = made.events("check_in", "like", "share", "comment", "follow", "task_complete", "attend", "live_watch", "ad_click", "survey", "store_visit")
    assert truth["interacting"][did["card"]].all()
    there = np.maximum(truth["active_until"] - truth["begin"], 0)[truth["interacting"]].sum()
    assert_within(len(did["ts"]), poisson, there / month * rates.interactions_month)


def test_a_guide_is_deleted_only_after_he_was_added(made):
    friends, gone = made.events("wecom_add"), made.events("wecom_delete")
    added = dict(zip(friends["card"].tolist(), friends["ts"].tolist()))
    assert len(added) == len(friends["ts"]) and 0 < len(gone["ts"]) < len(added)
    assert all(ts > added[card] for card, ts in zip(gone["card"].tolist(), gone["ts"].tolist()))


def test_everybody_who_was_brought_has_a_referral_before(made):
    referred = np.flatnonzero(made.who["referrer"] >= 0)
    by, joined, events = made.who["referrer"][referred], made.who["joined"][referred], made.events("refer")
    assert np.array_equal(np.sort(by), np.sort(events["card"]))
    assert np.array_equal(cards_of(made.truth["referrals"]), by)
    for person in np.unique(by).tolist():  # as many referrals before the k-th arrival as there were arrivals
        assert (np.sort(events["ts"][events["card"] == person]) <= np.sort(joined[by == person])).all()


def test_a_coupon_is_claimed_before_it_is_used_and_redemptions_are_orders(made):
    used, table = made.orders["coupon"] >= 0, made.tables["redemptions"]
    assert np.array_equal(np.sort(table["order_id"].numbers), np.sort(made.orders["number"][used]))
    assert len(np.unique(table["coupon_id"].numbers)) == used.sum()
    row = np.searchsorted(made.orders["number"], table["order_id"].numbers)
    assert plain(table["campaign_id"]).tolist() == [("C-WELCOME", "C-COUPON")[k] for k in made.orders["coupon"][row]]
    assert np.array_equal(cards_of(table), made.orders["card"][row]) and np.array_equal(table["ts"], made.orders["ts"][row])
    claims, earliest = made.events("coupon_claim"), {}
    for card, ts in zip(claims["card"].tolist(), claims["ts"].tolist()): earliest.setdefault(card, ts)
    assert all(earliest[card] <= ts for card, ts in zip(made.orders["card"][used].tolist(), made.orders["ts"][used].tolist()))
    firsts = [earliest[card] for card in made.orders["card"][used].tolist()]
    assert np.mean(made.orders["ts"][used] - firsts > 3600) > 0.8
    idle = ~np.isin(made.exposures["person"], made.orders["card"][made.orders["coupon"] == 1]) & (made.exposures["arm"] > 0)
    uses = len(np.unique(made.orders["coupon"][used] * 10_000 + made.orders["card"][used]))
    assert_within(len(claims["ts"]) - uses, binom, idle.sum(), 0.5)


def test_opinions_follow_orders_at_the_planted_rate_and_say_what_happened():
    made = Made(feedback_rate=0.2)
    said, orders = made.tables["feedback"], made.orders
    old = (orders["ts"] < (made.world.last_day - 31) * DAY).sum()
    assert binom.ppf(DOUBT / 2, old, 0.2) <= len(said["ts"]) <= binom.ppf(1 - DOUBT / 2, len(orders["ts"]), 0.2)
    latest = {}
    for card, ts in zip(orders["card"].tolist(), orders["ts"].tolist()): latest.setdefault(card, []).append(ts)
    for card, ts in zip(cards_of(said).tolist(), said["ts"].tolist()):
        assert any(0 < ts - when <= 30 * DAY for when in latest[card])
    kind = plain(said["kind"])
    for name, (low, high) in {"nps": (0, 10), "csat": (1, 5), "review": (1, 5)}.items():
        scores = said["score"][kind == name]
        assert scores.min() == low and scores.max() == high and (scores == scores.astype(int)).all()
    assert np.isnan(said["score"][kind == "complaint"]).all()
    assert (plain(said["text"]) != "").tolist() == np.isin(kind, ("review", "complaint")).tolist()
    assert len(made.events("review")["ts"]) == (kind == "review").sum() and len(made.events("support_ticket")["ts"]) == (kind == "complaint").sum()


def test_who_returned_something_is_mostly_displeased():
    calm, returned = Made(feedback_rate=1), Made(feedback_rate=1)
    for m, cents in ((calm, 0), (returned, 5_00)): m.orders["refund_cents"] = np.full(len(m.orders["ts"]), cents)
    for m, share in ((calm, 0.12), (returned, 0.7)):
        said = m.make()[0]["feedback"]
        nps = said["score"][plain(said["kind"]) == "nps"]
        detractors = share * 0.35 / (share * 0.35 + (1 - share) * 0.4)
        assert_within((nps <= 6).sum(), binom, len(nps), detractors)


def test_ids_cannot_exist_and_tell_what_the_truth_says(made):
    table, truth, n = made.tables["identities"], made.truth["links"], len(made.who["person"])
    card, channel, text = cards_of(table), plain(table["channel"]), plain(table["channel_id"])
    assert len(set(zip(card.tolist(), channel))) == len(card)
    assert all(len(t) == 11 and t.isdigit() and t.startswith("100") for t in text[channel == "phone"])
    assert all(t.endswith("@example.com") for t in text[channel == "email"])
    owner = np.concatenate([np.arange(n), cards_of({"member_id": truth["to_id"]})])
    household = made.who["household"][owner]
    shared, household_pairs = 0, 0
    for name in set(channel):
        holders = {}
        for c, t in zip(card[channel == name].tolist(), text[channel == name]): holders.setdefault(t, []).append(c)
        for cards in holders.values():
            for one in cards[1:]:
                same = owner[one] == owner[cards[0]]
                shared += same
                household_pairs += not same
                assert same or (name == "phone" and household[one] == household[cards[0]] != NONE), (name, cards)
    assert shared > 50 and household_pairs > 5  # pairs to find, and pairs not to fall for
    there = (made.who["join_channel"] == 3) | (made.who["channel"] == 3)     # people who buy there have a name there too
    assert set(card[channel == "marketplace"].tolist()) == {*np.flatnonzero(there).tolist(), *range(n, len(made.cards["person"]))}


def test_links_are_all_second_cards_and_merges_those_that_are_known(made):
    truth, merges, n = made.truth["links"], made.tables["member_merges"], len(made.who["person"])
    second = cards_of({"member_id": truth["from_id"]})
    assert second.tolist() == list(range(n, len(made.cards["person"])))
    assert np.array_equal(made.who["second"][cards_of({"member_id": truth["to_id"]})], second)
    known = made.cards["merged_into"] >= 0
    assert np.array_equal(cards_of({"member_id": merges["from_id"]}), np.flatnonzero(known))
    assert np.array_equal(merges["merged_at"], made.cards["merged"][known]) and np.array_equal(truth["known"], known[n:])


def test_members_are_all_cards_and_marketplace_cards_tell_little(made):
    table, n = made.tables["members"], len(made.who["person"])
    assert cards_of(table).tolist() == list(range(len(made.cards["person"])))
    assert np.array_equal(table["joined_at"], made.cards["joined"]) and np.array_equal(table["closed_at"], made.cards["closed"])
    shy, market = plain(table["city"]) == "", plain(table["join_channel"]) == "marketplace"
    for own in (np.arange(len(shy)) < n, np.arange(len(shy)) >= n):
        assert_within(shy[own & market].sum(), binom, (own & market).sum(), .6)
    assert_within(shy[~market].sum(), binom, (~market).sum(), .02)
    assert market[n:].all()
    person = made.cards["person"]
    assert np.array_equal(table["birth_date"], np.where(shy, NONE, made.who["birth"][person])) and (plain(table["household_id"])[n:] == NONE).all()
    for name in ("gender", "region"): assert (plain(table[name])[shy] == "").all()
    assert np.array_equal(plain(table["city"])[~shy], plain(made.assortment.stores["city"])[made.who["store"][person[~shy]]])
    bands = plain(table["age_band"])[shy]
    assert (plain(table["age_band"])[~shy] == "").all() and (bands != "").mean() > .8
    years = (table["joined_at"] // DAY - made.who["birth"][person])[shy] / 365.25
    for band, year in zip(bands, years):
        if band: assert int(band[:2]) <= year < (int(band[3:]) + 1 if band[3:] else 120)


def test_a_closing_before_joining_closes_nothing(made):
    early = made.cards | {"closed": made.cards["joined"] - DAY}
    tables, truth = made.make(cards=early)
    assert (tables["members"]["closed_at"] == NONE).all() and (truth["contacts"]["agreed_until"] >= truth["contacts"]["granted_at"]).all()
    open_ended, _ = made.make(cards=made.cards | {"closed": np.full(len(early["closed"]), NONE)})
    assert np.array_equal(tables["events"]["ts"], open_ended["events"]["ts"])


def test_tags_are_right_as_often_as_their_source_is_and_the_truth_says_where():
    made = Made(mean=1, n_members=4096)
    table, truth = made.tables["assigned_tags"], made.truth["assigned_tags"]
    channel, tag, card = plain(table["channel"]), plain(table["tag"]), cards_of(table)
    for name, share, right in (("self", 0.15, 0.95), ("guide", 0.12, 0.75), ("campaign", 0.1, 0.65), ("import", 0.2, 0.7), ("manual", 0.05, 0.85)):
        assert_within((channel == name).sum(), binom, 4096, share)
        assert_within(truth["right"][channel == name].sum(), binom, (channel == name).sum(), right)
    assert np.array_equal(truth["right"], plain(table["value"]) == plain(truth["true_value"]))
    liked = np.array([f"category {k + 1}" for k in made.who["interest"]])[card]
    lover = np.where(made.who["lover"], "yes", "no")[card]
    level = np.array(["low", "middle", "high"])[(made.who["price_tier"] * 3).astype(int)][card]
    for name, true in (("interest", liked), ("promotion_lover", lover), ("price_level", level)):
        assert np.array_equal(plain(truth["true_value"])[tag == name], true[tag == name])
    revoked, expires = table["revoked_at"], table["expires_at"]
    gone = revoked != NONE
    assert gone.any() and (revoked[gone] > table["ts"][gone]).all()
    both = gone & (expires != NONE)
    assert both.any() and (revoked[both] < expires[both]).all()
    assert (expires[channel == "campaign"] == table["ts"][channel == "campaign"] + 90 * DAY).all() and (expires[channel == "self"] == NONE).all()
    assert (table["ts"] >= made.truth["contacts"]["begin"][card]).all()


def test_the_vendors_score_knows_the_past_only(made):
    day = int(np.median(made.tables["scores"]["as_of"]))
    past = made.orders["ts"] < day * DAY
    cards = made.cards | {"closed": np.full(len(made.cards["person"]), NONE)}
    cut = {k: v[past] for k, v in made.orders.items()}
    full, cut = (made.make(orders=orders, cards=cards, order_lines=None)[0]["scores"] for orders in (made.orders, cut))
    for name in ("member_id", "score", "as_of"):
        ours, theirs = (plain(t[name])[t["as_of"] <= day] for t in (full, cut))
        assert len(ours) and np.array_equal(ours, theirs)
    assert not np.array_equal(full["score"], cut["score"])


@pytest.fixture(scope="module")
def lived():
    "People who really buy as `world.purchases` has it, with their exposures."
    world = World(n_members=4096, seed=5)
    who, calendar = make_people(world, 0), make_calendar(world)
    cards = make_cards(world, 0, who)
    bought = make_purchases(world, calendar, 0, who, cards)
    cards["closed"] = np.full(len(cards["person"]), NONE)
    cards["closed"][:4096] = bought.latent["closed"]
    lots = bought.lots
    shown = {"campaign": lots["campaign"] + 1, "person": lots["person"], "arm": lots["arm"], "ts": lots["day"] * DAY + 9 * 3600}
    return world, bought, make_contacts(world, 0, who, cards, bought.orders, bought.lost, shown)


def test_the_vendors_score_is_higher_for_those_who_are_gone(lived):
    _, bought, (tables, _) = lived
    scores = tables["scores"]
    rows = scores["as_of"] == np.unique(scores["as_of"])[-2]
    died, card = bought.latent["died"], cards_of(scores)[rows]
    gone = (died[card] != NONE) & (died[card] < scores["as_of"][rows] * DAY)
    rank = scores["score"][rows].argsort().argsort()
    area = (rank[gone].sum() - gone.sum() * (gone.sum() - 1) / 2) / (gone.sum() * (~gone).sum())
    assert 0.6 < area < 0.95  # something, and not everything


def test_contacts_of_people_who_really_buy_stay_within_the_world_and_the_funnel(lived):
    world, bought, (tables, truth) = lived
    events, funnel = tables["events"], truth["funnel"]
    assert events["ts"].min() >= world.first_day * DAY and events["ts"].max() < world.last_day * DAY
    logged = truth["contacts"]["app"][bought.orders["person"]] & (bought.orders["ts"] >= truth["contacts"]["begin"][bought.orders["person"]])
    assert funnel["orders"].sum() == (np.isin(bought.orders["channel"], (1, 2)) & logged).sum()
    for i in (0, 1):
        assert_within(funnel["carts"][i] - funnel["orders"][i], nbinom, funnel["orders"][i], world.contacts.cart_to_order)
        assert_within(funnel["sessions"][i] - funnel["carts"][i], nbinom, funnel["carts"][i], world.contacts.view_to_cart)


def test_blocks_differ_and_their_ids_do_not_meet():
    first, second = (Made(mean=2, n_members=4096 + 300, block=b) for b in (0, 1))
    for table, column in (("members", "member_id"), ("events", "session_id"), ("redemptions", "coupon_id")):
        ours, theirs = (set(m.tables[table][column].numbers.tolist()) - {NONE} for m in (first, second))
        assert ours and theirs and not ours & theirs
    ours, theirs = (set(plain(m.tables["identities"]["channel_id"])) for m in (first, second))
    assert not ours & theirs
    assert set(second.tables["members"]["member_id"].numbers.tolist()) == set(range(10_000, 10_000 + len(second.cards["person"])))


def test_another_rate_of_messages_leaves_visits_and_consents_alone(made):
    other = replace(made.world, contacts=replace(made.world.contacts, messages_month=3.0))
    tables, _ = make_contacts(other, 0, made.who, made.cards, made.orders, made.lost, made.exposures, None, made.assortment, made.lines)
    mine, theirs = (np.sort(plain(t["events"]["session_id"])) for t in (made.tables, tables))
    assert np.array_equal(mine[mine != NONE], theirs[theirs != NONE])
    assert np.array_equal(tables["consents"]["ts"], made.tables["consents"]["ts"])
