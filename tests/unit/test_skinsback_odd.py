"""Odd rows and a recipient check that is down: neither spoils what else SkinsBack says."""

import json
from dataclasses import replace
from typing import Any

import httpx
import pytest

from fulfillment.errors import (
    ProviderDeniesAccount,
    ProviderError,
    ProviderNotReached,
    ProviderRefused,
)
from fulfillment.providers.reading import dollars
from fulfillment.providers.signing import hmac_hex
from fulfillment.providers.skinsback import webhook, wire
from schemas.provider import ReportState, Want
from tests.unit.test_skinsback import (
    BOUGHT,
    COMMAND,
    EVENT,
    ITEM,
    ROW,
    SECRET,
    answering,
    buy,
    error,
    look_up,
    saying,
)


@pytest.mark.parametrize("price", ["45.98999999999999", "45.990000000000002"])
def test_one_item_of_an_amount_that_is_not_exact_is_no_outage_of_a_search(price: str) -> None:
    row = f'{{"id":"7","name":"odd","classid":"1","price":{price}}}'
    body = f'{{"status":"success","items":[{row}]}}'

    quotes = answering(lambda _f, _r: httpx.Response(200, content=body.encode())).quote(
        [Want("odd")]
    )

    assert Want("odd") in quotes.unclear


def test_a_price_list_of_amounts_that_are_not_exact_is_no_outage() -> None:
    provider = saying({"status": "success", "items": [{**ITEM, "price": "45.990000000000002"}]})

    assert Want("777") not in provider.quote([Want("777")]).found


def test_a_custom_id_may_be_a_number() -> None:
    number, text = {**ROW, "custom_id": 100042}, {**ROW, "custom_id": "100043"}
    provider = saying({"status": "success", "items": [number, text]})
    body = EVENT.replace(b'"order-1"', b"100042")
    command = replace(COMMAND, external_id="100042")

    reports = provider.reports(["100042", "100043"])

    assert {name: report.state for name, report in reports.items()} == {
        "100042": ReportState.COMPLETED,
        "100043": ReportState.COMPLETED,
    }
    assert buy(saying({**BOUGHT, "custom_id": 100042}), command).external_id == "100042"
    notice = webhook.read({"signature": hmac_hex(SECRET, body)}, body, (SECRET,))
    assert notice.external_id == "100042"


@pytest.mark.parametrize("odd", [{**ROW, "custom_id": "ORDER-2"}, {**ROW, "custom_id": []}, None])
def test_a_row_that_was_not_asked_for_spoils_no_other(odd: Any) -> None:
    provider = saying({"status": "success", "items": [odd, ROW]})

    assert set(provider.reports(["order-1", "order-2"])) == {"order-1"}


@pytest.mark.parametrize("price", [10.1234, "NaN", -5, 1e30, "", 0, "10,1", None, "absent"])
def test_a_price_that_is_not_exact_makes_its_item_unclear_and_never_gone(price: Any) -> None:
    odd = {**ITEM, "price": price}
    if price == "absent":
        del odd["price"]
    good = {**ITEM, "id": "5", "name": "other", "price": 1}
    by_name, by_id, other = Want(ITEM["name"]), Want("88213", ITEM["name"]), Want("other")
    wants = [by_name, by_id, other, Want("88213", "other"), Want("no such")]

    quotes = saying({"status": "success", "items": [odd, good]}).quote(wants)
    with_another = saying({"status": "success", "items": [odd, {**ITEM, "id": "6"}]}).quote(wants)

    assert set(quotes.found) == {other}
    assert set(quotes.unclear) == {by_name, by_id}
    assert str(odd.get("price") or "") in quotes.unclear[by_name]
    assert set(with_another.found) == {by_name}
    assert set(with_another.unclear) == {by_id}


def test_a_search_says_of_each_name_whether_anything_of_it_is_on_sale() -> None:
    """An item that was sold is no name without items."""
    provider = saying({"status": "success", "items": [ITEM]})

    searched = provider.quote([Want("7", ITEM["name"]), Want("no such"), Want("no")])
    listed = provider.quote([Want("88213"), Want("no such")])

    assert (searched.searched, searched.is_whole) == ({ITEM["name"]: True, "no such": False}, False)
    assert (listed.searched, listed.is_whole) == ({}, True)


@pytest.mark.parametrize(
    "content", [httpx.Response(502), httpx.Response(200, content=b"<html>"), {"status": 5}]
)
def test_a_check_that_is_down_stops_no_purchase(content: Any) -> None:
    def respond(fields: dict[str, Any], request: httpx.Request) -> Any:
        return content if fields["method"] == "user_inventory" else BOUGHT

    assert buy(answering(respond, is_checking_recipient=True)).state is ReportState.ACCEPTED


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (error(-7, "request_limit_reached"), ProviderNotReached),
        (error(-9, "under_maintenance"), ProviderNotReached),
        (httpx.Response(429), ProviderNotReached),
        (httpx.Response(403), ProviderDeniesAccount),
        (error(-2, "invalid_shopid"), ProviderDeniesAccount),
    ],
)
def test_what_a_check_says_about_the_account_stops_the_purchase(
    content: Any, kind: type[ProviderError]
) -> None:
    def respond(fields: dict[str, Any], request: httpx.Request) -> Any:
        assert fields["method"] == "user_inventory"
        return content

    with pytest.raises(kind):
        buy(answering(respond, is_checking_recipient=True))


@pytest.mark.parametrize("debited", [0, "0", "0.000"])
@pytest.mark.parametrize("word", ["waiting_accept", "canceled", "rollback_user"])
def test_a_sum_of_nothing_is_not_told_yet(word: str, debited: object) -> None:
    report = look_up({**ROW, "offer_status": word, "balance_debited_sum": debited})["order-1"]

    assert (report.charged_mills, report.alarm) == (None, None)


def test_what_is_delivered_for_nothing_is_booked_at_its_price_and_told() -> None:
    row = {**ROW, "offer_status": "accepted", "balance_debited_sum": 0}

    report = look_up(row)["order-1"]

    assert report.charged_mills == dollars(ITEM["price"])
    assert "is not believed" in (report.alarm or "")


@pytest.mark.parametrize("word", ["canceled", "timeout", "trade_create_error"])
def test_of_what_ended_without_the_item_no_sum_is_an_alarm(word: str) -> None:
    row = {**ROW, "offer_status": word, "balance_debited_sum": "448.95"}

    assert look_up(row)["order-1"].alarm is None
    assert "blue_moon" in look_up({**row, "error_reason": "blue_moon"})["order-1"].alarm


@pytest.mark.parametrize("status", [401, 403])
def test_what_skinsback_itself_says_counts_and_not_the_http_code(status: int) -> None:
    def answer(content: Any) -> httpx.Response:
        return httpx.Response(status, json=content)

    with pytest.raises(ProviderRefused) as refused:
        buy(saying(answer(error(5, "skin_unavailable"))))
    with pytest.raises(ProviderDeniesAccount):
        buy(saying(answer(error(-10, "invalid_client_secret"))))

    assert refused.value.code == "item_unavailable"
    assert saying(answer(error(2, "offer_not_found"))).reports(["order-1"]) == {}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>",
        b"[]",
        b'{"error":"forbidden"}',
        b'{"status":"error","error_message":"forbidden"}',
        b'{"status":"error","error_code":"NaN"}',
        b'{"status":"error","error_code":403,"error_message":"forbidden"}',
        b'{"status":"error","error_code":1020}',
        b'{"status":"error","error_code":5,"error_message":"access_denied"}',
        b"x" * 2_000_000,
    ],
)
def test_a_denial_that_is_not_skinsbacks_own_answer_is_one(content: bytes) -> None:
    with pytest.raises(ProviderDeniesAccount):
        buy(saying(httpx.Response(403, content=content)))


def test_a_name_of_digits_alone_is_not_bought_as_an_id() -> None:
    command = replace(COMMAND, catalog_item_id="12345", market_hash_name="12345")

    fields = json.loads(wire.write_purchase(command))

    assert (fields.get("id"), fields["name"]) == (None, "12345")
