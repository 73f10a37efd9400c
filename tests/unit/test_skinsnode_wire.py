"""What SkinsNode writes, and what it might write by mistake, is read exactly or not at all."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulfillment.errors import WebhookRejected
from fulfillment.providers import reading
from fulfillment.providers.http import Unusable, read_json
from fulfillment.providers.signing import hmac_hex
from fulfillment.providers.skinsnode import webhook, wire
from schemas.money import MAX_MILLS
from schemas.provider import OrderReport, PurchaseCommand, ReportState

# contracts/skinsnode.md section 9
SECRET = "cs_test_7f3a9c"
STAMP = "2026-11-20T12:36:12.000Z"
BODY = (
    b'{"externalId":"order_100042","status":"completed","steamOfferId":"7193849201",'
    b'"amount":"1840","currency":"USD","error":null,"timestamps":{"queuedAt":'
    b'"2026-11-20T12:30:00.000Z","updatedAt":"2026-11-20T12:36:12.000Z","refundedAt":null}}'
)
SIGNATURE = "7c7609a088622004de56fa30e139c36d6612cccf76e88b0d20c914c2aa4232d4"
# contracts/skinsnode.md section 4.5
POLLED: dict[str, Any] = {
    "externalId": "ord-2026-000017",
    "status": "failed",
    "steamOfferId": None,
    "tradeUrl": "https://steamcommunity.com/tradeoffer/new/?partner=123456789&token=AbCdEfGh",
    "item": {"id": "0b0f", "marketHashName": "AWP", "price": 612, "currency": "USD"},
    "pricing": {"currency": "USD", "amount": "612"},
    "failure": {"code": "price_changed", "message": "price moved"},
    "timestamps": {
        "queuedAt": "2026-11-20T12:30:00.000Z",
        "updatedAt": "2026-11-20T12:30:04.120Z",
        "refundedAt": "2026-11-20T12:30:04.120Z",
    },
}
ITEM = {"id": "a", "marketHashName": "AWP | Atheris", "price": 612, "currency": "USD"}


def signed(body: bytes, stamp: str = STAMP, secret: str = SECRET) -> dict[str, str]:
    signature = hmac_hex(secret, stamp.encode() + b"." + body)
    return {"x-timestamp": stamp, "x-signature": signature, "x-delivery-id": "1"}


def catalog(*items: Mapping[str, Any]) -> bytes:
    return json.dumps({"items": items}).encode()


def polled(**changes: Any) -> OrderReport:
    return wire.read_order({**POLLED, **changes})


# --- webhooks


def test_the_contracts_vector_verifies() -> None:
    assert len(BODY) == 234

    notice = webhook.read({"X-Timestamp": STAMP, "X-Signature": SIGNATURE}, BODY, ("other", SECRET))

    assert notice.external_id == "order_100042"
    assert notice.signed_at == datetime(2026, 11, 20, 12, 36, 12, tzinfo=UTC)
    assert notice.report == OrderReport(
        external_id="order_100042",
        state=ReportState.COMPLETED,
        raw_status="completed",
        charged_mills=18_400,
        steam_offer_id="7193849201",
        reported_at=datetime(2026, 11, 20, 12, 36, 12, tzinfo=UTC),
    )


def test_the_same_json_written_anew_is_rejected() -> None:
    rewritten = json.dumps(json.loads(BODY)).encode()

    for body in (rewritten, BODY + b"\n", b"\xef\xbb\xbf" + BODY):
        with pytest.raises(WebhookRejected, match="signature"):
            webhook.read({"x-timestamp": STAMP, "x-signature": SIGNATURE}, body, (SECRET,))


@given(st.integers(0, len(BODY) - 1), st.integers(1, 255))
def test_one_changed_byte_is_rejected(place: int, change: int) -> None:
    altered = BODY[:place] + bytes([BODY[place] ^ change]) + BODY[place + 1 :]

    with pytest.raises(WebhookRejected):
        webhook.read({"x-timestamp": STAMP, "x-signature": SIGNATURE}, altered, (SECRET,))


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-timestamp": STAMP},
        {"x-signature": SIGNATURE},
        {"x-timestamp": STAMP, "x-signature": ""},
        {"x-timestamp": STAMP, "x-signature": SIGNATURE.upper()},
        {"x-timestamp": STAMP, "x-signature": "é" * 64},
        {"x-timestamp": "2026-11-20T12:36:12.001Z", "x-signature": SIGNATURE},
        {"x-timestamp": "é\u20ac", "x-signature": SIGNATURE},
        {"x-timestamp": STAMP, "x-signature": SIGNATURE, "X-Signature": SIGNATURE},
        {"x-timestamp": STAMP, "X-Timestamp": STAMP, "x-signature": SIGNATURE},
    ],
)
def test_missing_doubled_and_malformed_headers_are_rejected(headers: dict[str, str]) -> None:
    with pytest.raises(WebhookRejected):
        webhook.read(headers, BODY, (SECRET,))


@pytest.mark.parametrize("secrets", [(), ("",), ("another",)])
def test_without_the_secret_nothing_verifies(secrets: tuple[str, ...]) -> None:
    with pytest.raises(WebhookRejected):
        webhook.read({"x-timestamp": STAMP, "x-signature": SIGNATURE}, BODY, secrets)
    with pytest.raises(WebhookRejected):
        webhook.read(signed(BODY, secret=""), BODY, secrets)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"order_1"',
        b"{}",
        b"{",
        b"\xff\xfe{}",
        b'{"externalId":1}',
        b'{"externalId":""}',
        b'{"externalId":"a/../b"}',
        b'{"externalId":"a\\u0000"}',
        b'{"externalId":"a\\n"}',
        b'{"externalId":"' + b"a" * 65 + b'"}',
        b'{"externalId":"a","externalId":"b"}',
        b'{"externalId":"a","amount":NaN}',
        b'{"externalId":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"externalId":"a","n":' + b"9" * 5000 + b"}",
    ],
)
def test_a_well_signed_body_that_names_no_order_is_rejected(body: bytes) -> None:
    with pytest.raises(WebhookRejected, match="well signed"):
        webhook.read(signed(body), body, (SECRET,))


@pytest.mark.parametrize(
    "fields",
    [
        {"amount": "1840.5"},
        {"amount": "-1"},
        {"amount": True},
        {"amount": [1]},
        {"currency": "EUR"},
        {"currency": None},
        {"currency": 5},
        {"status": None},
        {"status": 7},
    ],
)
def test_what_cannot_be_taken_at_its_word_is_a_hint_to_ask(fields: dict[str, Any]) -> None:
    body = json.dumps({**json.loads(BODY), **fields}).encode()

    notice = webhook.read(signed(body), body, (SECRET,))

    assert notice.external_id == "order_100042"
    assert notice.report is None


@pytest.mark.parametrize(
    "stamp",
    [
        "",
        "2026-11-20T12:36:12.000",
        "2026-11-20T12:36:12.000+00:00",
        "2026-11-20 12:36:12.000Z",
        "2026-11-20T12:36:60.000Z",
        "2026-02-30T12:36:12.000Z",
        "1795178172",
        "now",
        "2026-11-20T12:36:12.000Z ",
    ],
)
def test_a_signed_but_malformed_time_is_a_hint_to_ask(stamp: str) -> None:
    notice = webhook.read(signed(BODY, stamp), BODY, (SECRET,))

    assert notice.signed_at is None
    assert notice.report is None


def test_unsigned_headers_have_no_say() -> None:
    headers = {**signed(BODY), "x-event-type": "order.deleted", "x-delivery-id": "\x00"}

    assert webhook.read(headers, BODY, (SECRET,)).report is not None


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (None, None, None),
        ("item sold", None, "item sold"),
        ({"code": "price_changed", "message": "moved"}, "price_changed", "moved"),
        ({"code": 5, "reason": "x"}, None, None),
        (["price_changed"], None, None),
    ],
)
def test_a_webhooks_error_may_have_any_shape(
    error: Any, code: str | None, message: str | None
) -> None:
    report = wire.read_order({**json.loads(BODY), "status": "failed", "error": error})

    assert (report.failure_code, report.failure_message) == (code, message)


@given(st.binary(max_size=300))
def test_no_signed_bytes_raise_anything_but_a_rejection(body: bytes) -> None:
    with suppress(WebhookRejected):
        webhook.read(signed(body), body, (SECRET,))


# --- orders


def test_the_contracts_order_is_read() -> None:
    ended = datetime(2026, 11, 20, 12, 30, 4, 120_000, tzinfo=UTC)

    assert polled() == OrderReport(
        external_id="ord-2026-000017",
        state=ReportState.FAILED,
        raw_status="failed",
        charged_mills=6120,
        failure_code="price_changed",
        failure_message="price moved",
        reported_at=ended,
        refunded_at=ended,
        item_id="0b0f",
        item_name="AWP",
        partner=123456789,
    )


def test_an_accepted_order_carries_its_time() -> None:
    taken = {"externalId": "a", "status": "accepted", "acceptedAt": "2026-11-20T12:30:00.000Z"}

    report = wire.read_order(taken)
    replayed = wire.read_order({**taken, "status": "sent"})

    assert report.reported_at == datetime(2026, 11, 20, 12, 30, tzinfo=UTC)
    assert replayed.state is ReportState.SENT
    assert replayed.reported_at is None  # acceptedAt says nothing about when it was sent


def test_every_documented_status_is_known_and_no_other() -> None:
    going = {"accepted", "queued", "processing", "pending", "sent"}
    ended = {"completed", "failed", "cancelled", "expired", "reversed"}

    assert set(wire.STATES) == going | ended
    assert ReportState.UNKNOWN not in wire.STATES.values()
    assert {polled(status=word).state for word in wire.STATES} == set(wire.STATES.values())


@given(st.text().filter(lambda word: word not in wire.STATES))
def test_an_unknown_status_is_kept_and_never_success(word: str) -> None:
    report = polled(status=word)

    assert report.state is ReportState.UNKNOWN
    assert report.state.order_status() is None
    assert len(report.raw_status) <= 64
    assert "\x00" not in report.raw_status
    report.raw_status.encode()


@pytest.mark.parametrize("word", ["canceled", "Completed", "completed ", "COMPLETED", "done"])
def test_a_status_is_not_guessed_from_a_likeness(word: str) -> None:
    assert polled(status=word).state is ReportState.UNKNOWN


@given(st.integers(0, MAX_MILLS // 10))
def test_an_amount_is_exact_however_it_is_written(cents: int) -> None:
    spellings = (f'"{cents}"', f"{cents}", f"{cents}.0", f'"{cents}.00"', f"{cents}e0")
    for spelling in spellings:
        body = f'{{"currency":"USD","availableBalance":{spelling}}}'.encode()
        assert wire.read_wallet(body) == cents * 10


@pytest.mark.parametrize(
    ("spelling", "mills"), [("612.0", 6120), ("1e3", 10_000), ("1E+3", 10_000), ("6.12e2", 6120)]
)
def test_a_float_is_read_from_its_text(spelling: str, mills: int) -> None:
    body = f'{{"currency":"USD","availableBalance":{spelling}}}'.encode()

    assert wire.read_wallet(body) == mills


WRONG_AMOUNTS = (
    *('"612.5"', "612.5", "45.989999", "-1", '"-1"', "NaN", '"NaN"', "Infinity", '"inf"'),
    *("9223372036854775808", "1e308", "1e99999999999", '"1e99"', "0.1e0", "true", "null"),
    *('""', '" 612"', '"1_000"', '"٦١٢"', '"0x10"', "[612]", '{"a":1}', '"612 USD"', "1e-1"),
    *("612.00000000000000000000000000001", '"1e1000000"', "9" * 5000),
)


OVERDRAWN = ("-1", '"-1"')


@pytest.mark.parametrize("spelling", OVERDRAWN)
def test_an_overdrawn_wallet_is_read_as_it_is(spelling: str) -> None:
    body = f'{{"currency":"USD","availableBalance":{spelling}}}'.encode()

    assert wire.read_wallet(body) == -10


@pytest.mark.parametrize("spelling", ["--1", "-1.5", "- 1", "-"])
def test_an_overdrawn_wallet_that_is_not_exact_is_refused(spelling: str) -> None:
    with pytest.raises(Unusable):
        wire.read_wallet(f'{{"currency":"USD","availableBalance":"{spelling}"}}'.encode())


@pytest.mark.parametrize("spelling", WRONG_AMOUNTS)
def test_an_amount_that_is_not_exact_is_refused(spelling: str) -> None:
    if spelling not in OVERDRAWN:
        wallet = f'{{"currency":"USD","availableBalance":{spelling}}}'.encode()
        with pytest.raises(Unusable):
            wire.read_wallet(wallet)
    if spelling != "null":
        order = json.dumps({**POLLED, "pricing": "?"}).replace(
            '"?"', f'{{"currency":"USD","amount":{spelling}}}'
        )
        with pytest.raises(Unusable):
            wire.read_order(read_json(order.encode()))


@given(st.floats(min_value=0.001, max_value=1e9).filter(lambda cents: cents != int(cents)))
def test_a_part_of_a_cent_is_never_rounded(cents: float) -> None:
    with pytest.raises(Unusable):
        wire.mills(Decimal(repr(cents)), "USD")


@pytest.mark.parametrize("currency", ["EUR", "usd", "", None, 840])
def test_another_currency_is_refused(currency: object) -> None:
    with pytest.raises(Unusable):
        polled(pricing={"currency": currency, "amount": "612"})
    with pytest.raises(Unusable):
        wire.read_wallet(json.dumps({"currency": currency, "availableBalance": "1"}).encode())


@pytest.mark.parametrize("pricing", [None, {}, {"currency": "USD"}, {"amount": None}])
def test_an_amount_that_is_not_said_is_none(pricing: object) -> None:
    assert polled(pricing=pricing).charged_mills is None


@pytest.mark.parametrize(
    "changes",
    [
        {"externalId": None},
        {"externalId": 17},
        {"status": None},
        {"status": ["sent"]},
        {"pricing": "612"},
        {"pricing": [612]},
    ],
)
def test_an_order_of_the_wrong_shape_is_unusable(changes: dict[str, Any]) -> None:
    with pytest.raises(Unusable):
        polled(**changes)


@pytest.mark.parametrize("document", [None, [], "sent", 5, True])
def test_no_object_is_no_order(document: Any) -> None:
    with pytest.raises(Unusable):
        wire.read_order(document)


def test_odd_details_do_not_spoil_a_report() -> None:
    report = polled(
        status="sent",
        failure="odd",
        timestamps=["2026"],
        steamOfferId={"id": 1},
        item=None,
        tradeUrl=5,
        novelty={"a": [1]},
    )

    assert report.state is ReportState.SENT
    assert report.reported_at is None
    assert report.steam_offer_id is None


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ("7193849201", "7193849201"),
        (7193849201, "7193849201"),
        ("", None),
        ("a1", None),
        ("-1", None),
        (True, None),
        (1.5, None),
        ("9" * 21, None),
        ("٦", None),
    ],
)
def test_a_steam_offer_id_is_digits_or_nothing(found: object, expected: str | None) -> None:
    assert polled(steamOfferId=found).steam_offer_id == expected


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ("2026-11-20T12:30:00Z", datetime(2026, 11, 20, 12, 30, tzinfo=UTC)),
        ("2026-11-20T15:30:00+03:00", datetime(2026, 11, 20, 12, 30, tzinfo=UTC)),
        ("2026-11-20T12:30:00", None),
        ("2026-11-20", None),
        ("0001-01-01T00:00:00+23:00", None),
        (1795178172, None),
        (None, None),
    ],
)
def test_a_time_without_zone_is_no_time(found: object, expected: datetime | None) -> None:
    assert reading.instant(found) == expected


@pytest.mark.parametrize(
    "message",
    [
        "bad link https://steamcommunity.com/tradeoffer/new/?partner=1&token=AbCdEfGh !",
        "bad link steamcommunity.com/tradeoffer/new/?token=AbCdEfGh",
        "refused token=AbCdEfGh",
        "refused token: AbCdEfGh",
        "refused AbCdEfGh",
        "x" * 1_000_000 + " https://steamcommunity.com/tradeoffer/new/?partner=1&token=AbCdEfGh",
        "https://steamcommunity.com/tradeoffer/new/?partner=1&token=AbCdEfGh " * 10_000,
        "https://STEAMCOMMUNITY.com%2Ftradeoffer%3Ftoken%3DAbCdEfGh",
        "steam\x00community.com/?token=AbCdEfGh",
    ],
)
def test_a_trade_link_never_gets_into_a_report(message: str) -> None:
    report = polled(failure={"code": message, "message": message})

    assert "AbCdEfGh" not in str(report)


def test_a_failure_message_is_short_and_fit_for_a_database() -> None:
    report = polled(failure={"code": "c" * 500, "message": "a\x00\ud800\n" + "é" * 500})

    assert report.failure_message == "a" + "é" * 199
    assert report.failure_code == "c" * 64


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":1,"a":1}',
        b'{"b":{"a":1,"a":2}}',
        b"NaN",
        b"[Infinity]",
        b'"\xff"',
        b"",
        b"{",
        b"{}{}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        '{"a":1}'.encode("utf-16"),
        b"9" * 5000,
    ],
)
def test_ambiguous_json_is_unusable(body: bytes) -> None:
    with pytest.raises(Unusable) as caught:
        read_json(body)

    assert caught.value.__context__ is None  # the parser's exception would quote the body


def test_a_byte_order_mark_is_no_harm() -> None:
    assert read_json(b'\xef\xbb\xbf{"a":1.10}') == {"a": Decimal("1.10")}
    assert wire.read_catalog(b"\xef\xbb\xbf" + catalog(ITEM), {"a"})[1] == 1


# --- catalog


def test_only_wanted_items_are_found_and_all_are_counted() -> None:
    body = catalog(ITEM, {**ITEM, "id": "b", "price": 700, "phase": None, "floatValue": "0.1"})

    found, listed, _ = wire.read_catalog(body, {"b", "c"})

    assert {id_: item.price for id_, item in found.items()} == {"b": 700}
    assert listed == 2


@pytest.mark.parametrize(
    "odd",
    [
        {"price": 0},
        {"price": -612},
        {"price": 612.5},
        {"price": "NaN"},
        {"price": None},
        {"price": True},
        {"price": 2**63},
        {"price": "612 USD"},
        {"currency": "EUR"},
        {"currency": None},
        {"marketHashName": None},
        {"id": 5},
    ],
)
def test_an_odd_entry_is_left_out_and_the_others_stay(odd: dict[str, Any]) -> None:
    found, listed, _ = wire.read_catalog(catalog({**ITEM, "id": "b", **odd}, ITEM), {"a", "b"})

    assert set(found) == {"a"}
    assert listed == 1


@pytest.mark.parametrize("price", ["612", 612.0, "612.00"])
def test_a_price_of_another_type_is_exact(price: object) -> None:
    found, *_ = wire.read_catalog(catalog({**ITEM, "price": price}), {"a"})

    assert found["a"].price == 612


@pytest.mark.parametrize(
    "entries",
    [5, None, "x", [], [None], [5], [[]], [{}], [{**ITEM, "price": 0}]],
)
def test_a_catalog_without_a_usable_entry_is_an_outage(entries: object) -> None:
    with pytest.raises(Unusable):
        wire.read_catalog(json.dumps({"items": entries}).encode(), {"a"})


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"null", b"{}", b"<html>", catalog(ITEM)[:-1], b'{"items":' + b"[" * 100_000],
)
def test_a_catalog_that_cannot_be_read_is_an_outage(body: bytes) -> None:
    with pytest.raises(Unusable):
        wire.read_catalog(body, {"a"})


@pytest.mark.parametrize("other", [{"price": 613}, {"marketHashName": "Case"}])
def test_an_id_that_stands_for_two_things_is_not_found(other: dict[str, Any]) -> None:
    twice = catalog(ITEM, {**ITEM, **other}, ITEM, {**ITEM, "id": "b"})

    assert set(wire.read_catalog(twice, {"a", "b"})[0]) == {"b"}
    assert set(wire.read_catalog(catalog(ITEM, ITEM), {"a"})[0]) == {"a"}


# --- the purchase


def test_the_body_has_exactly_the_documented_fields() -> None:
    command = PurchaseCommand(
        external_id="order_1",
        catalog_item_id="0b0f",
        market_hash_name="★ Karambit",
        price_mills=6120,
        trade_url="https://steamcommunity.com/tradeoffer/new/?partner=1&token=AbCdEfGh",
        webhook_url="http://127.0.0.1:8080/webhooks/main",
    )

    assert wire.write_purchase(command) == (
        b'{"catalogItemId":"0b0f","expectedPrice":612,"externalId":"order_1",'
        b'"webhookUrl":"http://127.0.0.1:8080/webhooks/main",'
        b'"tradeUrl":"https://steamcommunity.com/tradeoffer/new/?partner=1&token=AbCdEfGh"}'
    )
    for mills in (6125, 0, -10):
        with pytest.raises(ValueError, match="cents"):
            wire.write_purchase(replace(command, price_mills=mills))


@pytest.mark.parametrize("odd", [{"price": 10.5}, {"price": -5}, {"price": 0}, {"price": None}])
def test_a_wanted_entry_without_an_exact_price_is_told_of_as_unclear(odd: dict[str, Any]) -> None:
    body = catalog({**ITEM, "id": "b", **odd}, {**ITEM, "marketHashName": "other"})
    again = catalog({**ITEM, "id": "b", **odd}, {**ITEM, "id": "b"})
    name = str(ITEM["marketHashName"])

    unclear = wire.read_catalog(body, {"a", "b", "c"}, {name})[2]

    assert set(unclear) == {"b", name}
    assert json.dumps(odd["price"]) in unclear["b"]
    assert wire.read_catalog(again, {"b"}, {name})[2] == {}
