"""Webhooks as providers and forgers send them, on a real server and a real PostgreSQL."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from fulfillment.services.context import Context
from tests.integration.web_client import CLIENT_SECRET, Store, error_of, news, signed
from tests.support import checkout, rows


def deliveries(context: Context) -> int:
    return len(rows(context, "SELECT id FROM webhook_deliveries"))


def test_a_good_delivery_is_stored_once_and_then_known(web_context: Context, store: Store) -> None:
    store.post(checkout(externalId="order_1"))
    store.next_hint()
    body = news("order_1")
    headers = signed(body)

    answers = [store.client.post("/webhooks/main", content=body, headers=headers) for _ in "123"]

    assert [answer.json() for answer in answers] == [
        {"status": "stored"},
        {"status": "known"},
        {"status": "known"},
    ]
    assert store.next_hint() == ("inbox.apply_webhook", "order_1")
    assert store.hints.empty()
    assert deliveries(web_context) == 1


def test_a_delivery_needs_no_token(store: Store) -> None:
    body = news("order_1")

    response = httpx.post(
        f"http://127.0.0.1:{store.port}/webhooks/main", content=body, headers=signed(body)
    )

    assert response.json() == {"status": "unknown_order"}


def test_a_delivery_about_another_accounts_order_changes_nothing(
    web_context: Context, store: Store
) -> None:
    store.post(checkout(externalId="order_1"))

    response = store.deliver(news("order_1"), account="second")

    assert response.json() == {"status": "unknown_order"}
    assert deliveries(web_context) == 0


@pytest.mark.parametrize("age", [timedelta(days=3), timedelta(days=-3)])
def test_a_delivery_of_another_time_is_stored_but_not_for_its_word(
    web_context: Context, store: Store, age: timedelta
) -> None:
    store.post(checkout(externalId="order_1"))
    body = news("order_1", "completed")

    response = store.deliver(body, **signed(body, datetime.now(UTC) - age))

    assert response.json() == {"status": "stored"}
    assert rows(web_context, "SELECT report FROM webhook_deliveries") == [{"report": None}]


def raw(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]


def test_forged_and_garbled_deliveries_are_refused_and_leave_nothing(
    web_context: Context, store: Store
) -> None:
    store.post(checkout(externalId="order_1"))
    body = news("order_1")
    good = signed(body)
    signature, stamp = good["x-signature"], good["x-timestamp"]
    bodies = [b"", body + b" ", b"\xff\xfe\x00", b"{}", b"[" * 60_000, b"\x00" * 65_536]
    signatures = ["", signature.upper(), signature[:-1], "0" * 64, "\xff\xe9", signature * 2]
    stamps = ["", "\xff", stamp + "0", "2026-13-45T99:99:99Z", "x" * 4000]
    both = raw(good)
    # Well signed by whoever has the secret, but nothing that names an order.
    nameless = [b"", b"\xff", b"[]", b'{"externalId": "a\\u0000b"}', b'{"externalId": 7}']
    forged = [
        *((sent, both) for sent in bodies),
        *((body, raw(good | {"x-signature": wrong})) for wrong in signatures),
        *((body, raw(good | {"x-timestamp": wrong})) for wrong in stamps),
        *((body, headers) for headers in (both + both, both[:1], both[1:], [])),
        (body, raw(signed(body, secret="x"))),
    ]
    unreadable = [(sent, raw(signed(sent))) for sent in nameless]

    for expected, deliveries_sent in ((401, forged), (400, unreadable)):
        for sent, headers in deliveries_sent:
            response = store.client.post("/webhooks/main", content=sent, headers=headers)
            assert error_of(response, expected)["message"]
            assert CLIENT_SECRET not in response.text

    assert deliveries(web_context) == 0


def test_many_copies_at_once_have_one_effect(web_context: Context, store: Store) -> None:
    store.post(checkout(externalId="order_1"))
    body = news("order_1")
    headers = signed(body)

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: store.deliver(body, **headers), range(50)))

    verdicts = sorted(answer.json()["status"] for answer in answers)
    assert verdicts == ["known"] * 49 + ["stored"]
    assert deliveries(web_context) == 1
