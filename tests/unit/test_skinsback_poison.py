"""One order, or too many at once, that spoils SkinsBack's answer to many costs no other its own."""

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httpx
import pytest

from fulfillment.errors import OverBudget, ProviderNotReached
from fulfillment.providers.skinsback.client import LOOKUP_LIMIT, SkinsBack
from schemas.provider import ReportState, Want
from tests.unit.test_skinsback import ITEM, ROW, answering, error, look_up, saying

NAMES = [f"order-{place}" for place in range(40)]


def rows(names: list[str]) -> list[dict[str, Any]]:
    return [{**ROW, "custom_id": name, "buy_id": name[6:]} for name in names]


def raw(text: str, status: int = 200) -> httpx.Response:
    return httpx.Response(status, content=text.encode())


def odd_row(text: str) -> Callable[[], httpx.Response]:
    """Answer with a row of this as its reason: what cannot be read spoils the whole document."""
    row = json.dumps({**ROW, "error_reason": "?"}).replace('"?"', text)
    return lambda: raw(f'{{"status":"success","items":[{row}]}}')


SPOILT: dict[str, Callable[[], Any]] = {
    "another error": lambda: error(99, "internal_error"),
    "HTTP 400": lambda: httpx.Response(400, json=error(3, "wrong_custom_id")),
    "HTTP 404": lambda: raw("not found", 404),
    "HTTP 500": lambda: raw("oops", 500),
    "HTTP 502": lambda: raw("<html>", 502),
    "nothing": lambda: raw(""),
    "no JSON": lambda: raw("<html>"),
    "no status": lambda: {"items": []},
    "no list": lambda: {"status": "success", "items": None},
    "half a pair": odd_row(r'"caf\udce9"'),
    "no number": odd_row("NaN"),
}


@pytest.mark.parametrize("spoilt", SPOILT.values(), ids=SPOILT)
@pytest.mark.parametrize("poison", [{0}, {39}, {0, 1, 20}, {17, 18, 19}])
def test_an_order_that_spoils_every_answer_it_is_in_is_left_out_alone(
    poison: set[int], spoilt: Callable[[], Any]
) -> None:
    odd = {NAMES[place] for place in poison}
    asked = []

    def respond(fields: dict[str, Any], request: httpx.Request) -> Any:
        asked.append(fields["custom_ids"])
        names = fields["custom_ids"]
        return spoilt() if odd & set(names) else {"status": "success", "items": rows(names)}

    provider = answering(respond)

    # Two orders are asked for to see whether anything is answered, other ones at each call.
    found: dict[str, Any] = {}
    for _ in range(3):
        with suppress(ProviderNotReached):
            found = provider.reports(NAMES)
            break

    assert set(found) == set(NAMES) - odd
    assert all(each.state is ReportState.COMPLETED for each in found.values())
    assert len(asked) < 45
    for name in odd:
        with pytest.raises(ProviderNotReached):
            provider.reports([name])


@pytest.mark.parametrize("most", [1, 7, 20])
@pytest.mark.parametrize("spoilt", SPOILT.values(), ids=SPOILT)
def test_a_limit_of_orders_at_once_is_kept_to(spoilt: Callable[[], Any], most: int) -> None:
    def respond(fields: dict[str, Any], request: httpx.Request) -> Any:
        names = fields["custom_ids"]
        return spoilt() if len(names) > most else {"status": "success", "items": rows(names)}

    assert set(answering(respond).reports(NAMES)) == set(NAMES)


@pytest.mark.parametrize("spoilt", SPOILT.values(), ids=SPOILT)
def test_a_provider_that_is_down_is_asked_twice_more_and_the_next_time_as_before(
    spoilt: Callable[[], Any],
) -> None:
    asked = []

    def respond(fields: dict[str, Any], request: httpx.Request) -> Any:
        asked.append(len(fields["custom_ids"]))
        return spoilt()

    provider = answering(respond)
    for _ in range(2):
        with pytest.raises(ProviderNotReached):
            provider.reports(NAMES)

    assert asked == [40, 1, 1] * 2
    assert provider.lookup_limit == LOOKUP_LIMIT


@pytest.mark.parametrize("failure", [httpx.ReadTimeout, httpx.RemoteProtocolError])
def test_of_a_lookup_that_is_not_answered_to_its_end_fewer_are_asked_for_the_next_time(
    failure: type[httpx.TransportError],
) -> None:
    asked = []

    def respond(fields: dict[str, Any], request: httpx.Request) -> Any:
        asked.append(len(fields["custom_ids"]))
        if len(fields["custom_ids"]) > 10:
            raise failure("too many")
        return {"status": "success", "items": rows(fields["custom_ids"])}

    provider = answering(respond)
    found: dict[str, Any] = {}
    for _ in range(6):
        with suppress(ProviderNotReached):
            found |= provider.reports(NAMES[: provider.lookup_limit])

    # After each that is cut one alone shows that the provider is up.
    assert asked == [40, 1, 20, 1, 10, 11, 1, 5, 6]
    assert set(found) >= set(NAMES[:10])


def test_fewer_are_asked_for_also_where_the_budget_has_nothing_left_for_one_alone() -> None:
    allowed = 0

    def respond(fields: dict[str, Any], request: httpx.Request) -> Any:
        nonlocal allowed
        if allowed == 0:
            raise OverBudget
        allowed -= 1
        raise httpx.ReadTimeout("slow")

    provider = answering(respond)
    for most in (20, 10, 5):
        allowed = 1
        with pytest.raises(ProviderNotReached):
            provider.reports(NAMES[: provider.lookup_limit])
        assert provider.lookup_limit == most


@pytest.mark.parametrize("count", [1, 40])
def test_a_lookup_that_is_not_answered_though_one_is_asked_for_is_a_failure(count: int) -> None:
    def respond(fields: dict[str, Any], request: httpx.Request) -> Any:
        raise httpx.ReadTimeout("slow")

    provider = answering(respond)
    with pytest.raises(ProviderNotReached) as failure:
        provider.reports(NAMES[:count])

    assert not isinstance(failure.value, OverBudget)
    assert provider.lookup_limit == LOOKUP_LIMIT


def test_a_provider_that_goes_down_while_it_is_asked_is_asked_no_more() -> None:
    asked = []

    def respond(fields: dict[str, Any], request: httpx.Request) -> Any:
        asked.append(len(fields["custom_ids"]))
        is_answered = len(asked) == 2
        return {"status": "success", "items": rows(NAMES[:20])} if is_answered else raw("", 500)

    with pytest.raises(ProviderNotReached):
        answering(respond).reports(NAMES)

    assert len(asked) < 15


@pytest.mark.parametrize(
    "answer",
    [
        error(-7, "request_limit_reached"),
        error(-9, "under_maintenance"),
        httpx.Response(429),
        httpx.Response(503, headers={"retry-after": "30"}),
    ],
)
def test_what_tells_of_the_account_is_no_matter_of_fewer_orders(answer: Any) -> None:
    asked = []

    def respond(fields: dict[str, Any], request: httpx.Request) -> Any:
        asked.append(fields)
        return answer

    with pytest.raises(ProviderNotReached):
        answering(respond).reports(NAMES)

    assert len(asked) == 1


def test_the_budget_is_kept_to_where_an_order_spoils_the_answer() -> None:
    """One request a call: each call goes on where the one before it had to stop."""
    allowed = 0

    def respond(fields: dict[str, Any], request: httpx.Request) -> Any:
        nonlocal allowed
        if allowed == 0:
            raise OverBudget
        allowed -= 1
        names = fields["custom_ids"]
        return raw("", 500) if NAMES[7] in names else {"status": "success", "items": rows(names)}

    provider = answering(respond)
    found: set[str] = set()
    waiting = NAMES
    for _ in range(60):
        allowed = 1
        part = waiting[: provider.lookup_limit]
        try:
            found |= set(provider.reports(part))
        except OverBudget:
            continue
        except ProviderNotReached:
            assert part == [NAMES[7]]
        waiting = waiting[len(part) :]

    assert found == {*NAMES} - {NAMES[7]}


def test_rows_may_come_as_an_object() -> None:
    provider = saying({"status": "success", "items": {"0": ROW, "5": {**ROW, "custom_id": "b"}}})

    assert set(provider.reports(["order-1", "b"])) == {"order-1", "b"}
    assert look_up(ROW) == saying({"status": "success", "items": {"x": ROW}}).reports(["order-1"])


# --- searches


def searching(
    refuse: Callable[[list[str]], Any], most: int = 1_000
) -> tuple[SkinsBack, list[list[str]]]:
    """Give a provider whose searches `refuse` may spoil, and what it was asked for."""
    asked: list[list[str]] = []

    def respond(fields: dict[str, Any], request: httpx.Request) -> Any:
        names = fields["names"]
        asked.append(names)
        if len(names) > most:
            return error(3, "too_many_names")
        items = [{**ITEM, "id": name[6:], "name": name} for name in names]
        return refuse(names) or {"status": "success", "items": items}

    return answering(respond), asked


@pytest.mark.parametrize("odd", ["   ", "order-0 "])
def test_a_name_that_is_refused_as_too_short_is_unclear_and_spoils_no_other(odd: str) -> None:
    def refuse(names: list[str]) -> Any:
        return error(2, "name_min_length_3") if odd in names else None

    provider, _ = searching(refuse)
    wants = [Want("1", name) for name in (odd, *NAMES)]

    quotes = provider.quote(wants)
    alone = provider.quote(wants[:1])

    assert {want.market_hash_name for want in quotes.found} == set(NAMES[1:2])
    assert quotes.searched == dict.fromkeys(NAMES, True)
    for each in (quotes, alone):
        assert "name_min_length_3" in each.unclear[wants[0]]
        assert (each.unasked, odd in each.searched) == (frozenset(), False)


def test_a_name_that_is_refused_for_nobody_knows_what_is_unclear_and_spoils_no_other() -> None:
    provider, _ = searching(lambda names: error(99, "blue_moon") if "bad" in names else None)
    bad = Want("bad")

    quotes = provider.quote([bad, *map(Want, NAMES)])

    assert {want.catalog_item_id for want in quotes.found} == set(NAMES)
    assert "blue_moon" in quotes.unclear[bad]
    assert "bad" not in quotes.searched
    assert set(provider.quote([bad]).unclear) == {bad}


@pytest.mark.parametrize("has_worked", [False, True])
@pytest.mark.parametrize("spoilt", SPOILT.values(), ids=SPOILT)
def test_a_name_that_spoils_every_search_it_is_in_is_unclear_alone(
    spoilt: Callable[[], Any], has_worked: bool
) -> None:
    provider, asked = searching(lambda names: spoilt() if "bad" in names else None)
    if has_worked:
        provider.quote([Want("before")])
    bad, found = Want("bad"), set[str]()
    unclear: set[Want] = set()
    asked.clear()
    # Where no name was ever taken, a few attempts find one that is.
    for _ in range(6):
        with suppress(ProviderNotReached):
            quotes = provider.quote([bad, *map(Want, NAMES)])
            found, unclear = {want.catalog_item_id for want in quotes.found}, set(quotes.unclear)
            break

    assert (found, unclear) == (set(NAMES), {bad})
    assert len(asked) < 40
    assert set(provider.quote([bad]).unclear) == {bad}


@pytest.mark.parametrize("has_worked", [False, True])
@pytest.mark.parametrize("spoilt", SPOILT.values(), ids=SPOILT)
def test_a_search_that_is_down_is_asked_little_and_goes_on_when_it_is_up(
    spoilt: Callable[[], Any], has_worked: bool
) -> None:
    is_down = False
    provider, asked = searching(lambda names: spoilt() if is_down else None)
    if has_worked:
        provider.quote(list(map(Want, NAMES[:5])))
    is_down = True

    for _ in range(5):
        asked.clear()
        with suppress(ProviderNotReached):
            quotes = provider.quote(list(map(Want, NAMES)))
            assert len(quotes.unclear) == len(NAMES)
            assert not has_worked
        assert len(asked) <= 9
    assert len(asked) <= 5
    is_down = False

    assert len(provider.quote(list(map(Want, NAMES))).found) == len(NAMES)


def test_a_limit_of_names_in_one_search_is_kept_to() -> None:
    provider, asked = searching(lambda names: None, most=7)

    quotes = provider.quote([Want(name) for name in NAMES])

    assert len(quotes.found) == len(NAMES)
    assert len(asked) < 25


@pytest.mark.parametrize("no", [error(2, "name_min_length_3"), error(99, "blue_moon")])
def test_where_every_name_is_refused_the_items_are_not_gone(no: Any) -> None:
    provider, _ = searching(lambda names: no)

    quotes = provider.quote([Want(name) for name in NAMES])

    assert set(quotes.unclear) == {Want(name) for name in NAMES}
    assert (quotes.found, quotes.searched, quotes.unasked) == ({}, {}, frozenset())


@pytest.mark.parametrize("count", [1, 2, 64])
@pytest.mark.parametrize("has_worked", [False, True])
def test_a_search_that_takes_no_name_is_asked_little_and_an_outage_where_it_took_some(
    count: int, has_worked: bool
) -> None:
    is_broken = False
    provider, asked = searching(lambda names: error(11, "unavailable") if is_broken else None)
    if has_worked:
        provider.quote([Want("before")])
    is_broken = True
    wants = [Want(f"name-{n}") for n in range(count)]

    for _ in range(3):
        asked.clear()
        if has_worked:
            with pytest.raises(ProviderNotReached):
                provider.quote(wants)
        else:
            assert set(provider.quote(wants).unclear) == set(wants)
        assert len(asked) <= 8
    assert len(asked) <= 4


def test_a_search_that_takes_no_name_before_the_budget_ends_is_no_answer() -> None:
    left = 3

    def refuse(names: list[str]) -> Any:
        nonlocal left
        if left == 0:
            raise OverBudget
        left -= 1
        return error(2, "name_min_length_3")

    provider, _ = searching(refuse)

    quotes = provider.quote([Want(name) for name in NAMES])

    assert (quotes.found, quotes.searched) == ({}, {})
    assert len(quotes.unclear) + len(quotes.unasked) == len(NAMES)


@pytest.mark.parametrize("answered", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("spoilt", [SPOILT["another error"], SPOILT["HTTP 500"]])
def test_of_a_search_that_goes_down_midway_nothing_is_said_to_be_gone(
    spoilt: Callable[[], Any], answered: int
) -> None:
    left = answered

    def refuse(names: list[str]) -> Any:
        nonlocal left
        if len(names) > 1 or left <= 0:
            return spoilt()
        left -= 1
        return None

    provider, _ = searching(refuse)
    wants = [Want(name) for name in NAMES[:20]]

    quotes = provider.quote(wants)

    assert quotes.found
    assert {*quotes.found, *quotes.unclear, *quotes.unasked} == set(wants)


def test_names_that_are_refused_again_and_again_are_searched_rarely() -> None:
    bad = {f"bad-{n}" for n in range(20)}
    provider, asked = searching(lambda names: error(2) if bad & {*names} else None)
    wants = [*map(Want, bad), *map(Want, NAMES[:5])]

    costs = []
    for _ in range(20):
        asked.clear()
        quotes = provider.quote(wants)
        assert {want.catalog_item_id for want in quotes.found} == set(NAMES[:5])
        assert {want.catalog_item_id for want in quotes.unclear} == bad
        costs.append(len(asked))

    assert costs[0] < 60
    assert sum(costs[10:]) / 10 < 6


def test_one_refused_name_is_asked_for_again_and_is_no_outage() -> None:
    """Nothing else is known of the search: the order waits, and all else goes on."""
    is_refused = True
    provider, asked = searching(lambda names: error(2) if is_refused else None)

    for _ in range(30):
        assert set(provider.quote([Want("bad")]).unclear) == {Want("bad")}
    is_refused = False

    assert len(asked) == 30
    assert set(provider.quote([Want("bad")]).found) == {Want("bad")}


def test_a_price_that_cannot_be_read_is_no_outage_where_nothing_else_is_searched() -> None:
    item = {**ITEM, "id": 1, "name": "odd", "price": "10.0051"}
    provider = saying({"status": "success", "items": [item]})

    quotes = provider.quote([Want("odd")])

    assert "10.0051" in quotes.unclear[Want("odd")]
    item["price"] = None  # where nothing has an amount at all it is one
    with pytest.raises(ProviderNotReached):
        saying({"status": "success", "items": [item]}).quote([Want("777")])


def test_two_refused_names_are_no_outage_where_another_is_taken() -> None:
    provider, _ = searching(lambda names: error(2) if {"bad", "odd"} & {*names} else None)
    wants = [Want("bad"), Want("odd"), Want(NAMES[0])]

    found = set()
    for _ in range(4):
        with suppress(ProviderNotReached):
            found |= set(provider.quote(wants).found)

    assert found == {wants[2]}


def test_a_search_tells_of_the_account_at_once() -> None:
    provider, asked = searching(lambda names: error(-6, "market_disabled"))

    with pytest.raises(ProviderNotReached):
        provider.quote([Want(name) for name in NAMES])

    assert len(asked) == 1


def test_what_the_budget_cuts_off_of_a_search_is_unasked() -> None:
    """Two requests a call: each call goes on where the one before it had to stop."""
    allowed = 0

    def refuse(names: list[str]) -> Any:
        nonlocal allowed
        if allowed == 0:
            raise OverBudget
        allowed -= 1
        return error(2) if NAMES[7] in names else None

    provider, _ = searching(refuse)
    waiting = list(map(Want, NAMES))
    found = set()
    for _ in range(30):
        allowed = 2
        with suppress(OverBudget):
            quotes = provider.quote(waiting)
            found |= {want.catalog_item_id for want in quotes.found}
            waiting = [want for want in waiting if want in quotes.unasked]

    assert not waiting
    assert found == {*NAMES} - {NAMES[7]}
