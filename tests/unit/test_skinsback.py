"""What SkinsBack writes is read exactly or not at all, and its errors mean what they say."""

import json
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
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
from fulfillment.providers.http import HTTPClient, Unusable, read_json
from fulfillment.providers.signing import hmac_hex
from fulfillment.providers.skinsback import webhook, wire
from fulfillment.providers.skinsback.client import SkinsBack
from schemas.provider import PurchaseCommand, ReportState, Want

VECTORS = json.loads((Path(__file__).parents[1] / "vectors/skinsback-requests.json").read_text())
SECRET = "s3cr3t"
COMMAND = PurchaseCommand(
    external_id="order-1",
    catalog_item_id="88213",
    market_hash_name="AWP | Atheris (Field-Tested)",
    price_mills=6125,
    trade_url="https://steamcommunity.com/tradeoffer/new/?partner=123456789&token=AbCdEfGh",
    webhook_url="http://127.0.0.1:8080/webhooks/main",
)
ITEM = {"id": "88213", "name": "AWP | Atheris (Field-Tested)", "price": "6.12", "classid": "41"}
BOUGHT = {
    "status": "success",
    "item": ITEM,
    "buy_id": "5501",
    "offer_status": "creating_trade",
    "balance_debited_sum": "6.12",
}
# contracts/skinsback.md section 5.5
ROW: dict[str, Any] = {
    "item": ITEM,
    "buy_id": "5501",
    "offer_status": "accepted",
    "in_hold": True,
    "in_hold_until": "2026-11-28 12:31:00",
    "error_reason": None,
    "steamid": "76561198083722517",
    "date": "1795177800",
    "balance_debited_sum": "6.12",
    "tradeofferid": "7000000001",
    "custom_id": "order-1",
}
# section 8
EVENT = (
    b'{"event":"status_change","data":{"item":{"id":"2516"},"buy_id":"65","offer_status":'
    b'"waiting_accept","error_reason":null,"tradeofferid":"7000000001","custom_id":"order-1"}}'
)
SIGNATURE = "c1685aa3c86ba07d4cf704e5a2138ca20ef100cc8f78226f4f87a42179e05698"


def answering(respond: Callable[[dict[str, Any], httpx.Request], Any], **options: Any) -> SkinsBack:
    def handle(request: httpx.Request) -> httpx.Response:
        content = respond(json.loads(request.read()), request)
        return content if isinstance(content, httpx.Response) else httpx.Response(200, json=content)

    http = HTTPClient("http://provider.test/api.php", transport=httpx.MockTransport(handle))
    return SkinsBack(http, "4242", SECRET, [SECRET], **options)


def saying(content: Any) -> SkinsBack:
    return answering(lambda fields, request: content)


def error(code: object, name: str | None = None) -> dict[str, Any]:
    return {"status": "error", "error_code": code, "error_message": name}


def buy(provider: SkinsBack, command: PurchaseCommand = COMMAND) -> Any:
    return provider.purchase(provider.purchase_body(command))


def look_up(*rows: Any) -> Any:
    return saying({"status": "success", "items": list(rows)}).reports(["order-1"])


# --- signatures


@pytest.mark.parametrize(
    "vector", VECTORS["requests"], ids=lambda v: f"{v['client'].split()[0]}-{v['call']}"
)
def test_signatures_are_those_of_the_recorded_clients(vector: dict[str, Any]) -> None:
    fields = read_json(vector["body"].encode())
    signature = wire.sign(fields, vector["secret"])

    if vector["verdict"] == "valid":
        assert signature == vector["signature"]
    elif vector["verdict"] == "invalid":
        assert signature != vector["signature"]
    else:
        assert signature in (vector.get("server_signature"), vector["signature"])


def test_the_pages_own_sample_is_signed_alike() -> None:
    fields = {"method": "orderstatus", "order_id": 1, "shopid": 123}

    assert wire.sign(fields, "123") == "abee99d476c736102c3d6062807761b6e4d31dd8"


def test_a_signed_request_carries_no_secret_and_the_stored_fields() -> None:
    seen: list[tuple[dict[str, Any], httpx.Request]] = []

    def respond(fields: dict[str, Any], request: httpx.Request) -> Any:
        seen.append((fields, request))
        return BOUGHT

    provider = answering(respond, is_signing=True)
    buy(provider)

    [(fields, request)] = seen
    signature = fields.pop("sign")
    assert "x-client-secret" not in request.headers
    assert SECRET.encode() not in request.content
    assert fields.pop("shopid") == "4242"
    assert fields == json.loads(provider.purchase_body(COMMAND))
    assert signature == wire.sign(read_json(request.content), SECRET)


def test_by_default_headers_authenticate_and_the_stored_bytes_are_sent() -> None:
    def respond(fields: dict[str, Any], request: httpx.Request) -> Any:
        assert (request.method, str(request.url)) == ("POST", "http://provider.test/api.php")
        assert request.headers["x-client-id"] == "4242"
        assert request.headers["x-client-secret"] == SECRET
        assert request.content == provider.purchase_body(COMMAND)
        return BOUGHT

    provider = answering(respond)
    assert buy(provider).provider_reference == "5501"


# --- purchases


def test_a_purchase_names_the_skin_the_recipient_the_cap_and_our_id() -> None:
    assert wire.write_purchase(COMMAND) == (
        b'{"method":"market_buy","partner":"123456789","token":"AbCdEfGh","id":88213,'
        b'"max_price":6.125,"custom_id":"order-1"}'
    )


def test_an_item_without_a_skins_id_is_bought_by_name() -> None:
    name = "★ Karambit | Doppler (Factory New)"
    command = PurchaseCommand("o", "0b0f-uuid", name, 12_500, COMMAND.trade_url, "http://x")

    fields = json.loads(wire.write_purchase(command))

    assert (fields["name"], fields["game"], fields["max_price"]) == (name, "cs2", 12.5)
    assert "id" not in fields


@pytest.mark.parametrize(
    ("mills", "text"), [(1, "0.001"), (6120, "6.12"), (6125, "6.125"), (1_000_000, "1000")]
)
def test_a_cap_is_the_shortest_decimal(mills: int, text: str) -> None:
    assert wire.price_text(mills) == text


@pytest.mark.parametrize(
    ("code", "name", "expected"),
    [
        (4, "insufficient_funds", "insufficient_funds"),
        (5, "skin_unavailable", "item_unavailable"),
        (6, "skins_not_found_at_specified_price", "price_changed"),
        (3, "missing_partner_or_token", "invalid_trade_url"),
        (8, "invalid_partner_value", "invalid_trade_url"),
        ("4", None, "insufficient_funds"),
        (99, "insufficient_funds", "insufficient_funds"),  # the name counts first
    ],
)
def test_documented_refusals_are_definite(code: object, name: str | None, expected: str) -> None:
    with pytest.raises(ProviderRefused) as caught:
        buy(saying(error(code, name)))

    assert caught.value.code == expected


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (error(7, "custom_id_already_exists"), ProviderOutcomeUnknown),
        (error(8, "something_new"), ProviderOutcomeUnknown),
        (error(13, "blue_moon"), ProviderOutcomeUnknown),
        (error(None, None), ProviderOutcomeUnknown),
        ({"status": "fail", "error_code": 99}, ProviderOutcomeUnknown),
        ({"status": "pending"}, ProviderOutcomeUnknown),
        (error(-6, "market_disabled"), ProviderNotReached),
        (error(-7, "request_limit_reached"), ProviderNotReached),
        (error(-9, "under_maintenance"), ProviderNotReached),
        (error(-2, "invalid_shopid"), ProviderDeniesAccount),
        (error(-3, "invalid_signature"), ProviderDeniesAccount),
        (error(-4, "shop_not_active"), ProviderDeniesAccount),
        (error("-8", "invalid_ip_address"), ProviderDeniesAccount),
        (error(-10, "invalid_client_secret"), ProviderDeniesAccount),
        (httpx.Response(400, json=error(-10)), ProviderDeniesAccount),
        ({**BOUGHT, "custom_id": "order-2"}, ProviderOutcomeUnknown),
        ({**BOUGHT, "item": {**ITEM, "id": 5}}, ProviderOutcomeUnknown),
        ({**BOUGHT, "buy_id": None}, ProviderOutcomeUnknown),
        ({**BOUGHT, "balance_debited_sum": "6.1234"}, ProviderOutcomeUnknown),
    ],
)
def test_other_answers_to_a_purchase(content: Any, kind: type[ProviderError]) -> None:
    with pytest.raises(kind) as caught:
        buy(saying(content))

    assert type(caught.value) is kind
    if kind is ProviderNotReached and content["error_code"] == -7:
        assert caught.value.retry_after == timedelta(seconds=60)


# --- reports


@pytest.mark.parametrize(
    ("word", "state"),
    [
        ("creating_trade", ReportState.ACCEPTED),
        ("waiting_accept", ReportState.SENT),
        ("accepted", ReportState.COMPLETED),
        ("canceled", ReportState.CANCELLED),
        ("cancelled", ReportState.UNKNOWN),
        ("timeout", ReportState.EXPIRED),
        ("invalid_trade_token", ReportState.FAILED),
        ("user_not_tradable", ReportState.FAILED),
        ("trade_create_error", ReportState.FAILED),
        ("rollback_user", ReportState.REVERSED),
        ("rollback_supplier", ReportState.REVERSED),
        ("Accepted", ReportState.UNKNOWN),
    ],
)
def test_every_status_has_its_meaning(word: str, state: ReportState) -> None:
    assert look_up({**ROW, "offer_status": word})["order-1"].state is state


@pytest.mark.parametrize(
    ("word", "reason", "code", "is_alarm"),
    [
        ("invalid_trade_token", None, "invalid_trade_url", False),
        ("user_not_tradable", "user_trade_ban", "recipient_cannot_trade", False),
        ("trade_create_error", "skin_unavailable", "item_unavailable", False),
        ("trade_create_error", "private_inventory", "recipient_cannot_trade", False),
        ("trade_create_error", None, "trade_create_error", False),
        ("trade_create_error", "blue_moon", "blue_moon", True),
        ("timeout", None, None, False),
    ],
)
def test_every_reason_has_its_code(
    word: str, reason: str | None, code: str | None, is_alarm: bool
) -> None:
    report = look_up({**ROW, "offer_status": word, "error_reason": reason})["order-1"]

    assert report.failure_code == code
    assert bool(report.alarm) is is_alarm


@pytest.mark.parametrize(
    "until",
    ["2026-11-28 12:31:00", "2026-11-28T12:31:00Z", "2026-11-28T15:31:00+03:00", 1795869060],
)
def test_a_hold_can_be_undone_until_its_end(until: object) -> None:
    report = look_up({**ROW, "in_hold_until": until})["order-1"]

    assert report.reversible_until == datetime(2026, 11, 28, 12, 31, tzinfo=UTC)
    assert report.is_held is True


@pytest.mark.parametrize("debited", ["11.73", 29.93, "0.01"])
def test_a_sum_that_is_no_dollars_is_not_booked_and_a_person_is_told(debited: object) -> None:
    report = look_up({**ROW, "balance_debited_sum": debited})["order-1"]

    assert report.charged_mills == 6120
    assert "balance_debited_sum" in (report.alarm or "")


@pytest.mark.parametrize("debited", ["6.12", "6.30", 6.125])
def test_a_sum_near_the_price_is_what_was_charged(debited: object) -> None:
    report = look_up({**ROW, "balance_debited_sum": debited})["order-1"]

    assert report.charged_mills == round(float(str(debited)) * 1000)
    assert report.alarm is None


def test_a_row_that_cannot_be_read_spoils_no_other() -> None:
    rows = [{**ROW, "balance_debited_sum": "NaN"}, {**ROW, "custom_id": "order-2"}]
    provider = saying({"status": "success", "items": rows})

    reports = provider.reports(["order-1", "order-2"])

    assert reports["order-1"].state is ReportState.UNKNOWN
    assert reports["order-1"].alarm
    assert reports["order-2"].state is ReportState.COMPLETED


def test_two_purchases_under_one_id_are_told_of_and_nothing_is_concluded() -> None:
    report = look_up(ROW, {**ROW, "buy_id": "5502"})["order-1"]

    assert report.state is ReportState.UNKNOWN
    assert "two purchases" in (report.alarm or "")


def test_rows_without_our_id_are_asked_for_one_by_one() -> None:
    asked = []

    def respond(fields: dict[str, Any], request: httpx.Request) -> Any:
        asked.append(fields["custom_ids"])
        rows = [{**ROW, "custom_id": None} for _ in fields["custom_ids"]]
        return {"status": "success", "items": rows}

    reports = answering(respond).reports(["order-1", "order-2", "order-3"])

    assert set(reports) == {"order-1", "order-2", "order-3"}
    assert all(report.external_id == name for name, report in reports.items())
    assert len(asked) == 5


@pytest.mark.parametrize(
    "content", [{"status": "success", "items": []}, error(2, "offer_not_found")]
)
def test_what_nobody_knows_is_absent(content: Any) -> None:
    assert saying(content).reports(["order-1"]) == {}


@pytest.mark.parametrize("items", [None, {}, "x", [None], [{**ROW, "custom_id": "other"}]])
def test_an_answer_about_something_else_is_an_outage(items: Any) -> None:
    with pytest.raises(ProviderNotReached):
        saying({"status": "success", "items": items}).reports(["order-1"])


# --- money, quotes, recipients


@pytest.mark.parametrize("usd", ["1250.500", 1250.5])
def test_the_wallet_is_read_in_dollars(usd: Any) -> None:
    fields = {"balance": 93_787.5, "balance_in_currencies": {"usd": usd}}
    assert saying({"status": "success", **fields}).wallet_mills() == 1_250_500


@pytest.mark.parametrize("balance", [None, "", "1.2345", "1,5", "--1", True, "NaN", [], "1e400"])
def test_a_wallet_that_is_not_exact_is_refused(balance: Any) -> None:
    fields = {"balance": "5.000", "balance_in_currencies": {"usd": balance}}
    with pytest.raises(ProviderNotReached):
        saying({"status": "success", **fields}).wallet_mills()


@pytest.mark.parametrize("usd", ["-0.500", -0.5])
def test_an_overdrawn_wallet_is_read_as_it_is(usd: Any) -> None:
    fields = {"balance": "0.000", "balance_in_currencies": {"usd": usd}}
    assert saying({"status": "success", **fields}).wallet_mills() == -500


@pytest.mark.parametrize("currencies", [{}, {"balance_in_currencies": {"eur": "1.0"}}])
def test_a_balance_in_nobody_knows_what_is_refused(currencies: dict[str, Any]) -> None:
    with pytest.raises(ProviderNotReached):
        saying({"status": "success", "balance": "91250.000", **currencies}).wallet_mills()


def test_a_name_is_matched_exactly_and_the_cheapest_counts() -> None:
    rows = [
        {**ITEM, "id": 1, "price": 7.5},
        {**ITEM, "id": 2, "price": "6.125"},
        {**ITEM, "id": 3, "price": 1, "name": ITEM["name"] + " Souvenir"},
        {**ITEM, "id": 4, "price": 0},
    ]
    by_name, by_id = Want(ITEM["name"]), Want("1", ITEM["name"])

    found = saying({"status": "success", "items": rows}).quote([by_name, by_id]).found

    assert {want: quote.price_mills for want, quote in found.items()} == {
        by_name: 6125,
        by_id: 7500,
    }


@pytest.mark.parametrize(
    ("code", "name", "expected"),
    [
        (3, "invalid_trade_token", "invalid_trade_url"),
        (2, "invalid_steam_id", "invalid_trade_url"),
        (5, "user_not_tradable", "recipient_cannot_trade"),
        (6, "user_inventory_is_hidden", "recipient_cannot_trade"),
    ],
)
def test_a_checked_recipient_is_refused_before_the_purchase(
    code: int, name: str, expected: str
) -> None:
    def respond(fields: dict[str, Any], request: httpx.Request) -> Any:
        assert fields["method"] == "user_inventory"
        assert fields["steam_id"] == "76561198083722517"
        return error(code, name)

    provider = answering(respond, is_checking_recipient=True)

    for check in (lambda: buy(provider), lambda: provider.check_recipient(COMMAND.trade_url)):
        with pytest.raises(ProviderRefused) as caught:
            check()
        assert caught.value.code == expected


def test_an_inventory_that_steam_does_not_show_stops_no_purchase() -> None:
    def respond(fields: dict[str, Any], request: httpx.Request) -> Any:
        is_check = fields["method"] == "user_inventory"
        return error(7, "user_inventory_is_unavailable") if is_check else BOUGHT

    assert buy(answering(respond, is_checking_recipient=True)).state is ReportState.ACCEPTED


# --- webhooks


def test_the_contracts_event_verifies_and_is_a_hint() -> None:
    notice = webhook.read({"Signature": SIGNATURE}, EVENT, ("other", SECRET))

    assert (notice.external_id, notice.provider_reference) == ("order-1", "65")
    assert (notice.signed_at, notice.report) == (None, None)


def test_an_event_about_no_purchase_is_about_no_order() -> None:
    body = b'{"event":"balance_change","data":{"balance_value":"5.0"}}'
    notice = webhook.read({"signature": hmac_hex(SECRET, body)}, body, (SECRET,))

    assert (notice.external_id, notice.provider_reference) == ("", None)


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({}, EVENT),
        ({"signature": SIGNATURE.upper()}, EVENT),
        ({"signature": SIGNATURE}, EVENT + b"\n"),
        ({"signature": SIGNATURE, "Signature": SIGNATURE}, EVENT),
        ({"authorization": SIGNATURE}, EVENT),
        ({"signature": "e4a958c7f0c636f5bd5e34dec8f776dd"}, EVENT),  # the MD5 of id and secret
        ({"x-sign": "e4a958c7f0c636f5bd5e34dec8f776dd"}, EVENT),
    ],
)
def test_anything_else_is_rejected(headers: dict[str, str], body: bytes) -> None:
    with pytest.raises(WebhookRejected):
        webhook.read(headers, body, (SECRET,))


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"event":1}', b'{"event":"a","event":"b"}'])
def test_a_well_signed_body_that_is_no_event_is_rejected(body: bytes) -> None:
    with pytest.raises(WebhookRejected, match="well signed"):
        webhook.read({"signature": hmac_hex(SECRET, body)}, body, (SECRET,))


def test_inexact_amounts_are_refused_and_not_rounded() -> None:
    with pytest.raises(Unusable, match="dollars"):
        wire.read_purchase({**ROW, "item": {**ITEM, "price": "6.1234"}})


def test_a_lookup_that_the_budget_cuts_off_is_asked_in_smaller_parts_the_next_time() -> None:
    """One request a call: the unknown id that spoils every answer is found all the same."""
    names = [f"order-{place}" for place in range(20)]
    allowed = 0

    def respond(fields: dict[str, Any], request: httpx.Request) -> Any:
        nonlocal allowed
        if allowed == 0:
            raise OverBudget
        allowed -= 1
        if "order-7" in fields["custom_ids"]:
            return error(2, "offer_not_found")
        items = [{**ROW, "custom_id": name, "buy_id": name[6:]} for name in fields["custom_ids"]]
        return {"status": "success", "items": items}

    provider = answering(respond)
    found: set[str] = set()
    waiting = names
    for _ in range(40):
        allowed = 1
        part = waiting[: provider.lookup_limit]
        with suppress(OverBudget):
            found |= set(provider.reports(part))
            waiting = waiting[len(part) :]

    assert found == {*names} - {"order-7"}
    assert provider.lookup_limit > 10
