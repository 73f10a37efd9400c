"""What Skinslink writes is read exactly or not at all, and nothing is ever posted twice."""

import base64
import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from fulfillment.errors import (
    OverBudget,
    ProviderDeniesAccount,
    ProviderError,
    ProviderNotReached,
    ProviderOutcomeUnknown,
    ProviderRefused,
    WebhookRejected,
)
from fulfillment.providers.http import HTTPClient
from fulfillment.providers.skinslink import webhook, wire
from fulfillment.providers.skinslink.client import Skinslink
from schemas.provider import PurchaseCommand, ReportState, Want

SECRET = "merchant-secret"
NAME = "AWP | Atheris (Field-Tested)"
COMMAND = PurchaseCommand(
    external_id="ord-2026-000017",
    catalog_item_id="40155500123",
    market_hash_name=NAME,
    price_mills=6125,
    trade_url="https://steamcommunity.com/tradeoffer/new/?partner=123456789&token=AbCdEfGh",
    webhook_url="http://127.0.0.1:8080/webhooks/main",
)
ITEM = {"id": "40155500123", "name": NAME, "price": 6.125, "image_url": "https://cdn.example/a.png"}
# contracts/skinslink.md section 4.4
DATA: dict[str, Any] = {
    "id": 9012,
    "merchant_tx_id": "ord-2026-000017",
    "status": "pending",
    "steam_id": "76561198083722517",
    "date": "2026-11-20T12:30:00Z",
    "amount": 6.125,
    "item": ITEM,
}
# section 9
HINT: dict[str, Any] = {
    "sign": "prMmPzRaN0T3R7gE03AdYKlG1fNpsN0iKTzMuk1/Q+M=",
    "status": "hold",
    "purchase_id": 178,
    "merchant_tx_id": "ord-2026-000017",
}


def answering(respond: Callable[[httpx.Request], httpx.Response]) -> Skinslink:
    http = HTTPClient("http://provider.test/api/v1", transport=httpx.MockTransport(respond))
    return Skinslink(http, "key", [SECRET], read_s=20)


def saying(status: int, content: Any) -> Skinslink:
    return answering(lambda request: httpx.Response(status, json=content))


def success(data: Any) -> dict[str, Any]:
    return {"success": True, "message": "ok", "data": data}


def failure(message: str, *codes: str) -> dict[str, Any]:
    details = [{"field": "token", "code": code, "message": "x"} for code in codes]
    return {"success": False, "message": message} | ({"data": details} if codes else {})


def buy(provider: Skinslink, command: PurchaseCommand = COMMAND) -> Any:
    return provider.purchase(provider.purchase_body(command))


def look_up(**changes: Any) -> Any:
    data = {key: value for key, value in {**DATA, **changes}.items() if value is not None}
    return saying(200, success(data)).reports([COMMAND.external_id])[COMMAND.external_id]


# --- purchases


def test_a_purchase_has_the_documented_fields() -> None:
    def respond(request: httpx.Request) -> httpx.Response:
        assert str(request.url) == "http://provider.test/api/v1/merchant/purchase"
        assert request.headers["x-api-key"] == "key"
        assert request.content == (
            b'{"partner":123456789,"token":"AbCdEfGh","game":"csgo","asset_id":"40155500123",'
            b'"max_price":6.125,"merchant_tx_id":"ord-2026-000017"}'
        )
        return httpx.Response(201, json=success(DATA))

    report = buy(answering(respond))

    assert (report.state, report.charged_mills) == (ReportState.PENDING, 6125)
    assert report.provider_reference == "9012"


@pytest.mark.parametrize("item", [NAME, "0b0f4f0e-7c1e-4d0e-9a51-0d6c5a6c7f10"])
def test_what_is_no_items_id_is_bought_by_name(item: str) -> None:
    fields = json.loads(wire.write_purchase(replace(COMMAND, catalog_item_id=item)))

    assert fields["name"] == NAME
    assert "asset_id" not in fields


@pytest.mark.parametrize("token", ["AbCdEfG", "AbCdEfGhI"])
def test_a_token_of_another_length_is_refused_before_any_request(token: str) -> None:
    def respond(request: httpx.Request) -> httpx.Response:
        raise AssertionError("no request was expected")

    command = replace(COMMAND, trade_url=COMMAND.trade_url.replace("AbCdEfGh", token))
    with pytest.raises(ProviderRefused) as caught:
        buy(answering(respond), command)

    assert caught.value.code == "invalid_trade_url"
    assert caught.value.is_ours
    assert token not in str(caught.value)


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("insufficient_balance", "insufficient_funds"),
        ("price_changed", "price_changed"),
        ("item_not_available", "item_unavailable"),
        ("item_specified_price_not_found", "price_changed"),
        ("item_sold", "item_unavailable"),
        ("provider_unavailable", "provider_unavailable"),
    ],
)
def test_an_instant_failure_is_a_definite_no(reason: str, code: str) -> None:
    with pytest.raises(ProviderRefused) as caught:
        buy(saying(200, success({**DATA, "status": "failed", "fail_reason": reason})))

    assert caught.value.code == code


@pytest.mark.parametrize("reason", ["blue_moon", None])
def test_a_failure_for_an_unknown_reason_is_kept_raw_and_alarmed(reason: str | None) -> None:
    report = buy(saying(200, success({**DATA, "status": "failed", "fail_reason": reason})))

    assert (report.state, report.failure_code) == (ReportState.FAILED, reason)
    assert report.alarm


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("trade_link_revoked", "invalid_trade_url"),
        ("trade_link_invalid", "invalid_trade_url"),
        ("trade_banned", "recipient_cannot_trade"),
        ("profile_private", "recipient_cannot_trade"),
        ("limited_account", "recipient_cannot_trade"),
        ("hold", "recipient_cannot_trade"),
        ("permissions", "recipient_cannot_trade"),
        ("hold_and_permissions", "recipient_cannot_trade"),
        ("len", "refused_by_provider"),
    ],
)
def test_validation_codes_have_their_meaning(code: str, expected: str) -> None:
    with pytest.raises(ProviderRefused) as caught:
        buy(saying(400, failure("validation error", code)))

    assert caught.value.code == expected


@pytest.mark.parametrize(
    ("status", "content", "kind"),
    [
        (400, failure("invalid request body"), ProviderRefused),
        (400, failure("something new"), ProviderOutcomeUnknown),
        (400, None, ProviderOutcomeUnknown),
        (401, failure("invalid API key"), ProviderDeniesAccount),
        (403, failure("invalid IP: 203.0.113.7"), ProviderDeniesAccount),
        (404, failure("purchase not found"), ProviderOutcomeUnknown),
        (408, failure("timeout"), ProviderOutcomeUnknown),
        (409, failure("duplicate"), ProviderOutcomeUnknown),
        (429, failure("too many requests"), ProviderNotReached),
        (500, failure("internal error"), ProviderOutcomeUnknown),
        (503, failure("internal error"), ProviderOutcomeUnknown),
        (200, failure("internal error"), ProviderOutcomeUnknown),
        (200, success(None), ProviderOutcomeUnknown),
        (200, success({**DATA, "merchant_tx_id": "other"}), ProviderOutcomeUnknown),
        (200, success({**DATA, "amount": 6.1251}), ProviderOutcomeUnknown),
        (200, success({**DATA, "amount": "-1"}), ProviderOutcomeUnknown),
        (200, success({**DATA, "item": {**ITEM, "id": "5"}}), ProviderOutcomeUnknown),
        (
            200,
            success({**DATA, "status": "failed", "fail_reason": "duplicate_purchase"}),
            ProviderOutcomeUnknown,
        ),
    ],
)
def test_other_answers_to_a_purchase(status: int, content: Any, kind: type[ProviderError]) -> None:
    with pytest.raises(kind) as caught:
        buy(saying(status, content))

    assert type(caught.value) is kind


# --- reports


@pytest.mark.parametrize(
    ("word", "state", "is_settled"),
    [
        ("new", ReportState.ACCEPTED, False),
        ("pending", ReportState.PENDING, False),
        ("active", ReportState.SENT, False),
        ("hold", ReportState.COMPLETED, False),
        ("completed", ReportState.COMPLETED, True),
        ("failed", ReportState.FAILED, False),
        ("canceled", ReportState.CANCELLED, False),
        ("reverted", ReportState.REVERSED, False),
        ("expired", ReportState.UNKNOWN, False),
    ],
)
def test_every_status_has_its_meaning(word: str, state: ReportState, is_settled: bool) -> None:
    report = look_up(status=word)

    assert (report.state, report.is_settled, report.raw_status) == (state, is_settled, word)


@pytest.mark.parametrize("end", ["2026-11-27T12:31:00Z", "2026-11-27T15:31:00.000000+03:00"])
def test_a_hold_can_be_undone_until_its_end(end: str) -> None:
    report = look_up(status="hold", hold_end_date=end, trade_offer_id="7000000002")

    assert report.reversible_until == datetime(2026, 11, 27, 12, 31, tzinfo=UTC)
    assert report.is_held
    assert look_up(status="completed").is_held is None
    assert report.steam_offer_id == "7000000002"


def test_our_id_may_come_as_a_number() -> None:
    command = replace(COMMAND, external_id="100042")
    provider = saying(200, success({**DATA, "merchant_tx_id": 100042}))
    hint = json.dumps({**HINT, "merchant_tx_id": 100042}).encode()

    assert provider.reports(["100042"])["100042"].state is ReportState.PENDING
    assert buy(provider, command).external_id == "100042"
    assert webhook.read(hint, (SECRET,)).external_id == "100042"


def test_a_stored_duplicate_is_no_failed_order() -> None:
    report = look_up(status="failed", fail_reason="duplicate_purchase")

    assert report.state is ReportState.UNKNOWN
    assert "duplicate_purchase" in report.raw_status


def test_an_amount_that_is_not_exact_concludes_nothing() -> None:
    report = look_up(status="completed", amount="6.1251")

    assert (report.state, report.charged_mills) == (ReportState.UNKNOWN, None)
    assert report.alarm


@pytest.mark.parametrize("absent", ["trade_offer_id", "item", "amount", "date", "steam_id"])
def test_what_is_left_out_is_no_error(absent: str) -> None:
    assert look_up(**{absent: None}).state is ReportState.PENDING


@pytest.mark.parametrize(
    ("status", "content"), [(404, failure("purchase not found")), (200, success({}))]
)
def test_what_nobody_knows_is_absent(status: int, content: Any) -> None:
    assert saying(status, content).reports(["a&merchant_tx_id=b"]) == {}


# --- quotes and money


@pytest.mark.parametrize("price", [10.1234, "NaN", -5, 1e30, "", 0, "10,1", None, "absent"])
def test_a_price_that_is_not_exact_makes_its_item_unclear_and_never_gone(price: Any) -> None:
    odd = {**ITEM, "price": price}
    if price == "absent":
        del odd["price"]
    good = {**ITEM, "id": "5", "name": "other", "price": 1}
    by_name, by_id, other = Want(NAME), Want(COMMAND.catalog_item_id, NAME), Want("other")
    wants = [by_name, by_id, other, Want("no such")]

    quotes = saying(200, success({"items": [odd, good]})).quote(wants)
    with_another = saying(200, success({"items": [odd, {**ITEM, "id": "6"}]})).quote(wants)

    assert set(quotes.found) == {other}
    assert set(quotes.unclear) == {by_name, by_id}
    if price in (10.1234, "10,1"):  # an amount that cannot be read is no outage by itself
        alone = saying(200, success({"items": [odd]})).quote([by_name])
        assert set(alone.unclear) == {by_name}
    assert str(odd.get("price") or "") in quotes.unclear[by_name]
    assert set(with_another.found) == {by_name}
    assert set(with_another.unclear) == {by_id}


@pytest.mark.parametrize("data", [{"total": 0}, {"items": None}, {"items": []}])
def test_a_search_that_finds_nothing_may_leave_the_items_out(data: dict[str, Any]) -> None:
    quotes = saying(200, success({"game": "csgo", **data})).quote([Want(NAME)])

    assert (quotes.found, quotes.searched) == ({}, {NAME: False})


def test_names_are_searched_in_short_addresses() -> None:
    names = [f"★ Karambit | Doppler {place} (Factory New)" for place in range(200)]
    searches = []

    def respond(request: httpx.Request) -> httpx.Response:
        searches.append(request.url)
        asked = request.url.params.get_list("names")
        rows = [{"id": f"{names.index(n)}", "name": n, "price": 6.125} for n in asked]
        return httpx.Response(200, json=success({"game": "csgo", "items": rows}))

    quotes = answering(respond).quote([Want(name) for name in names])

    assert len(quotes.found) == 200
    assert len(searches) > 1
    assert all(len(str(url)) < 4000 for url in searches)


def test_a_name_that_is_refused_spoils_no_other() -> None:
    def respond(request: httpx.Request) -> httpx.Response:
        if "bad" in request.url.params.get_list("names"):
            return httpx.Response(400, json=failure("validation error", "names"))
        return httpx.Response(200, json=success({"items": [ITEM]}))

    quotes = answering(respond).quote([Want("bad"), Want(NAME), Want("other one")])

    assert set(quotes.found) == {Want(NAME)}
    assert quotes.searched == {NAME: True, "other one": False}  # nobody looked for the bad one


def test_what_the_budget_cuts_off_is_unasked_and_an_invalid_name_is_found_all_the_same() -> None:
    """One request a call: each call goes on where the one before it had to stop."""
    names = ["bad", *(f"name {place}" for place in range(9)), NAME]
    allowed = 0

    def respond(request: httpx.Request) -> httpx.Response:
        nonlocal allowed
        if allowed == 0:
            raise OverBudget
        allowed -= 1
        if "bad" in request.url.params.get_list("names"):
            return httpx.Response(400, json=failure("validation error", "names"))
        return httpx.Response(200, json=success({"items": [ITEM]}))

    provider = answering(respond)
    waiting = [Want(name) for name in names]
    found = set()
    for _ in range(12):
        allowed = 1
        with suppress(OverBudget):
            quotes = provider.quote(waiting)
            found |= set(quotes.found)
            waiting = [want for want in waiting if want in quotes.unasked]

    assert not waiting
    assert found == {Want(NAME)}


def test_where_every_name_is_refused_the_items_are_not_gone() -> None:
    with pytest.raises(ProviderNotReached):
        saying(400, failure("validation error")).quote([Want("a"), Want("b")])


def test_the_wallet_is_what_is_available() -> None:
    data = {"total": 1250.75, "hold": 320.5, "available": 930.25}

    assert saying(200, success(data)).wallet_mills() == 930_250
    with pytest.raises(ProviderNotReached):
        saying(200, success({"total": 1250.75})).wallet_mills()


def test_an_overdrawn_wallet_is_read_as_it_is() -> None:
    assert saying(200, success({"total": 0, "available": -0.125})).wallet_mills() == -125


# --- webhooks


def test_the_contracts_vector_verifies_and_is_a_hint() -> None:
    notice = webhook.read(json.dumps(HINT).encode(), ("other", SECRET))

    assert (notice.external_id, notice.provider_reference) == ("ord-2026-000017", "178")
    assert (notice.signed_at, notice.report) == (None, None)


@pytest.mark.parametrize("number", [0, 2**63, 2**64 - 1])
def test_a_purchase_may_have_any_number(number: int) -> None:
    sign = base64.b64encode(hashlib.sha256(f"{number}{SECRET}".encode()).digest()).decode()
    body = json.dumps({**HINT, "purchase_id": number, "sign": sign}).encode()

    assert webhook.read(body, (SECRET,)).provider_reference == str(number)
    assert look_up(id=number).provider_reference == str(number)


def test_unsigned_fields_do_not_make_new_deliveries() -> None:
    bodies = [{**HINT, "amount": place, "status": f"new word {place}"} for place in range(5)]

    identities = {webhook.read(json.dumps(b).encode(), (SECRET,)).identity for b in bodies}

    assert len(identities) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"purchase_id": 179},
        {"purchase_id": "178"},
        {"purchase_id": 178.0},
        {"purchase_id": True},
        {"purchase_id": -178},
        {"purchase_id": None, "trade_id": 178},
        {"sign": ""},
        {"sign": 5},
        {"sign": HINT["sign"].lower()},
        {"sign": base64.b64encode(hashlib.sha256(b"178").digest()).decode()},
    ],
)
def test_anything_else_is_rejected(changes: dict[str, Any]) -> None:
    for secrets in ((SECRET,), (), ("",)):
        if secrets == ("",) and "178" in str(changes.get("sign")):
            continue
        with pytest.raises(WebhookRejected):
            webhook.read(json.dumps({**HINT, **changes}).encode(), [s for s in secrets if s])


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"null", b"{", b'{"purchase_id":1,"purchase_id":178}']
)
def test_a_body_that_cannot_be_read_is_rejected(body: bytes) -> None:
    with pytest.raises(WebhookRejected):
        webhook.read(body, (SECRET,))
