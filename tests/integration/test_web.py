"""The web application as the store meets it: checkouts, batches, reads and refusals."""

import itertools
import json
import socket
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest

from fulfillment.errors import InvalidInput
from fulfillment.services import operations
from fulfillment.services.batches import parse_batch
from fulfillment.services.context import Context
from fulfillment.store.sealing import generate_key
from fulfillment.web import limits, metrics
from fulfillment.web.checkouts import MAX_BATCH_BYTES
from fulfillment.web.hints import Hints
from tests.conftest import MakeContext
from tests.integration.web_client import API_TOKEN, TWO_ACCOUNTS, Store, error_of, serving
from tests.support import TOKEN, checkout, until

# Checkouts


def test_a_new_checkout_is_stored_and_the_workers_hear_of_it_once(store: Store) -> None:
    response = store.post(checkout(externalId="order_1"))

    assert response.status_code == 202
    assert response.json() == {"externalId": "order_1", "status": "received"}
    assert store.next_hint() == ("checkout.dispatch", "main")
    assert store.hints.empty()


def test_the_same_checkout_again_answers_with_the_order_and_gives_no_hint(store: Store) -> None:
    event = checkout(marketHashName="★ Karambit | Doppler")
    store.post(event)
    store.next_hint()

    again = store.post(event)

    assert again.status_code == 200
    assert again.json() == store.get(f"/v1/orders/{event['externalId']}").json()
    assert again.json()["marketHashName"] == "★ Karambit | Doppler"
    assert [entry["to"] for entry in again.json()["timeline"]] == ["received"]
    assert TOKEN not in again.text
    assert store.hints.empty()


@pytest.mark.parametrize("change", [{"expectedPrice": 1841}, {"account": "second"}])
def test_other_content_under_a_known_id_is_a_conflict(store: Store, change: dict[str, Any]) -> None:
    event = checkout()
    store.post(event)

    error = error_of(store.post(event | change), 409)

    assert (error["code"], error["field"]) == ("conflict", "externalId")
    assert len(store.get("/v1/orders").json()["orders"]) == 1


WRONG_FIELDS: list[tuple[str, Any]] = [
    ("externalId", "../wallet"),
    ("externalId", ".."),
    ("externalId", "a\nb"),
    ("externalId", "a\x00b"),
    ("externalId", "x" * 65),
    ("account", "nobody"),
    ("account", "main\x00"),
    ("catalogItemId", "a\x00b"),
    ("catalogItemId", "\ud800"),
    ("catalogItemId", None),
    ("marketHashName", "\x00"),
    ("expectedPrice", 0),
    ("expectedPrice", 18.4),
    ("expectedPrice", "1840"),
    ("expectedPrice", True),
    ("expectedPrice", 10**30),
    ("tradeUrl", f"https://steam.evil.example/tradeoffer/new/?partner=1&token={TOKEN}"),
    ("tradeUrl", f"http://steamcommunity.com/tradeoffer/new/?partner=1&token={TOKEN}"),
    ("submitBy", 1700000000),
    ("submitBy", "2026-11-20T12:30:00"),
    ("submitBy", "9999-12-31T23:59:59-14:00"),
]


def test_a_wrong_field_is_named(store: Store, subtests: pytest.Subtests) -> None:
    for field, value in WRONG_FIELDS:
        with subtests.test(field=field, value=value):
            response = store.post(json.dumps(checkout(**{field: value})).encode())

            error = error_of(response, 422)
            assert (error["code"], error["field"]) == ("invalid", field)
            assert TOKEN not in response.text


NO_OBJECTS = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'"text"',
    b"\xff\xfe",
    b"\xef\xbb\xbf{}",
    b'{"expectedPrice": NaN}',
    b'{"externalId": "a", "externalId": "b"}',
    b"[" * 15_000,
    b'{"expectedPrice": ' + b"1" * 10_000 + b"}",
]


def test_what_is_no_json_object_is_refused_as_such(store: Store, subtests: pytest.Subtests) -> None:
    for body in NO_OBJECTS:
        with subtests.test(body=body[:40]):
            decodes = body in (b"[1]", b'"x"', b"null", b"5", b"[]", b'"text"')
            expected = (422, "invalid") if decodes else (400, "invalid_json")
            assert error_of(store.post(body), expected[0])["code"] == expected[1]


def test_one_id_sent_at_once_by_many_is_stored_once(store: Store) -> None:
    event = checkout()

    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(store.post, [event] * 24))

    assert sorted(response.status_code for response in found) == [200] * 23 + [202]


# Bodies that are too large or too slow, and a broker that is


@pytest.mark.parametrize("path", ["/v1/checkouts", "/v1/checkouts/batch", "/webhooks/main"])
@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_over_the_limit_is_refused_and_the_answer_arrives(
    store: Store, path: str, is_chunked: bool
) -> None:
    pieces = [b" " * 65_536] * 80

    body = iter(pieces) if is_chunked else b"".join(pieces)
    response = store.client.post(path, content=body)

    assert error_of(response, 413)["code"] == "body_too_large"
    assert response.headers["connection"] == "close"


def test_an_endless_body_is_cut_off(store: Store) -> None:
    with socket.create_connection(("127.0.0.1", store.port), timeout=10) as connection:
        connection.sendall(
            b"POST /webhooks/main HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        chunk = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            connection.sendall(chunk * 1000)


def test_slow_bodies_end_in_408_and_hold_up_nobody(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "READ_WITHIN_S", 1.5)
    head = b"POST /webhooks/main HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc"
    with ExitStack() as stack:
        slow = [
            stack.enter_context(socket.create_connection(("127.0.0.1", store.port), timeout=10))
            for _ in range(60)
        ]
        for connection in slow:
            connection.sendall(head)

        started = time.monotonic()
        assert store.post(checkout()).status_code == 202
        assert time.monotonic() - started < 1.2

        for connection in slow:
            assert connection.recv(4096).startswith(b"HTTP/1.1 408 ")


def test_a_slow_broker_delays_no_answer(web_context: Context) -> None:
    is_back = threading.Event()
    with serving(web_context, lambda *_: is_back.wait(30)) as store:
        for _ in range(30):
            assert store.post(checkout()).status_code == 202
        assert not is_back.is_set()
        is_back.set()


def test_hints_that_wait_are_sent_as_one_and_equal_ones_once() -> None:
    sent: list[tuple[Any, ...]] = []
    is_back = threading.Event()

    def hint(*call: Any) -> None:
        is_back.wait(10)
        sent.append(call)

    hints = Hints(hint)
    for _ in range(50):
        hints("task", "main")
    hints("task", "other")
    is_back.set()

    until(lambda: any("other" in call for call in sent))
    hints.close()
    assert len(sent) <= 3  # two were under way already
    assert sum(call.count("other") for call in sent) == 1


def test_hints_that_come_fast_go_out_together_and_the_first_at_once() -> None:
    sent: list[tuple[Any, ...]] = []
    hints = Hints(lambda *call: sent.append(call))
    names = [f"o{number}" for number in range(100)]

    hints("task", names[0])
    until(lambda: sent)
    for name in names[1:]:
        hints("task", name)
        time.sleep(0.002)

    until(lambda: sum(len(call) - 1 for call in sent) == len(names))
    hints.close()
    assert sent[0] == ("task", names[0])
    assert [name for call in sent for name in call[1:]] == names
    assert len(sent) <= 20  # a twentieth of a second lies between two


# Batches


@pytest.mark.parametrize("is_bare", [False, True])
def test_a_bad_entry_does_not_fail_the_others(store: Store, is_bare: bool) -> None:
    known = checkout(externalId="known")
    store.post(known)
    store.next_hint()
    good = checkout(externalId="good")
    entries = [
        good,
        checkout(externalId="bad", expectedPrice=-1),
        7,
        checkout(externalId="other", account="second"),
        known | {"expectedPrice": 1},
        known,
        good,
        {"externalId": "\ud800"},
        checkout(externalId="stray", account="nobody"),
    ]
    body = entries if is_bare else {"checkouts": entries}

    response = store.post(json.dumps(body).encode(), "/v1/checkouts/batch")

    assert response.status_code == 200, response.text
    found = [
        (r["externalId"], r.get("status") or (r["error"]["code"], r["error"]["field"]))
        for r in response.json()["results"]
    ]
    assert found == [
        ("good", "received"),
        ("bad", ("invalid", "expectedPrice")),
        (None, ("invalid", None)),
        ("other", "received"),
        ("known", ("conflict", "externalId")),
        ("known", "received"),
        ("good", "received"),
        ("?", ("invalid", "externalId")),
        ("stray", ("invalid", "account")),
    ]
    hinted: set[str] = set()  # in one hint or in two
    while hinted != {"main", "second"}:
        task, *accounts = store.next_hint()
        assert task == "checkout.dispatch"
        hinted |= set(accounts)
    assert store.hints.empty()


def test_a_thousand_checkouts_are_one_batch_and_one_more_is_too_many(store: Store) -> None:
    many = [checkout() for _ in range(1001)]

    error = error_of(store.post(many, "/v1/checkouts/batch"), 422)
    response = store.post(many[:1000], "/v1/checkouts/batch")

    assert error["field"] == "checkouts"
    results = response.json()["results"]
    assert [r["externalId"] for r in results] == [event["externalId"] for event in many[:1000]]
    assert {r["status"] for r in results} == {"received"}


@pytest.mark.parametrize(
    ("body", "status"),
    [([], 422), ({"checkouts": []}, 422), ({"checkouts": {}}, 422), ({}, 422), (7, 422)],
)
def test_a_batch_without_entries_is_refused(store: Store, body: Any, status: int) -> None:
    error = error_of(store.post(body, "/v1/checkouts/batch"), status)

    assert error["field"] == ("checkouts" if status == 422 else None)


@pytest.mark.parametrize("form", [b"[%b]", b'{"checkouts": [%b]}', b'[{"externalId": [%b]}]'])
@pytest.mark.parametrize("value", [b"[]", b"{}", b'""', b'{"a":{"b":[0]}}'])
def test_a_batch_of_countless_values_is_refused_before_they_are_built(
    store: Store, form: bytes, value: bytes
) -> None:
    body = form % b",".join([value] * (MAX_BATCH_BYTES // (len(value) + 1) - 20))

    error = error_of(store.post(body, "/v1/checkouts/batch"), 422)
    tracemalloc.start()
    with pytest.raises(InvalidInput, match="50000 values in all"):
        parse_batch(body)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert error["field"] == "checkouts"
    assert peak_bytes < 1_000_000  # the values alone would take 12 MB


@pytest.mark.parametrize("is_bare", [False, True])
def test_an_entry_larger_than_a_checkout_may_be_is_refused_alone(
    store: Store, is_bare: bool
) -> None:
    notes: dict[str, Any] = {
        "small": "x" * 16_000,
        "long": "x" * 16_384,
        "foreign": "★" * 5_000,  # in bytes on the wire, not in escapes
        "wide": [{"x": "y" * 4_000}] * 5,
        "deep": json.loads('{"a":' * 300 + "0" + "}" * 300),
    }
    entries = [checkout(externalId=name, note=note) for name, note in notes.items()]
    chosen = [[entries[0]], [entries[1]], entries] if is_bare else [entries]
    for batch in chosen:
        response = store.post(batch if is_bare else {"checkouts": batch}, "/v1/checkouts/batch")

        refused = {
            result["externalId"]: result["error"]["message"]
            for result in response.json()["results"]
            if result.get("error")
        }
        large = [each["externalId"] for each in batch if each["externalId"] in ("long", "wide")]
        assert refused == dict.fromkeys(large, "expected at most 16384 bytes")


# Who may come in, and in what form refusals go out


CLOSED = [
    ("POST", "/v1/checkouts"),
    ("POST", "/v1/checkouts/batch"),
    ("GET", "/v1/orders"),
    ("GET", "/v1/orders/order_1"),
    ("GET", "/v1/wallets"),
]


def test_without_the_token_nobody_comes_in(store: Store) -> None:
    good = (b"authorization", f"Bearer {API_TOKEN}".encode())
    wrong = (b"", b"Bearer", b"Bearer wrong", b"Basic x", b"Bearer \xff\xfe", b"\xe9")
    heads = [[(b"authorization", value)] for value in wrong]
    # Of two, a proxy may have looked at the other one.
    heads += [[good, good], [good, heads[2][0]], [heads[2][0], good]]
    for (method, path), headers in itertools.product(CLOSED, heads):
        response = store.client.request(method, path, headers=headers)

        error = error_of(response, 401)
        assert (error["code"], error["field"]) == ("unauthorized", None)
        assert response.headers["www-authenticate"] == "Bearer"


NOT_THERE = [
    ("GET", "/nowhere", 404),
    ("GET", "/v1/orders/nobody", 404),
    ("GET", "/v1/orders/%00", 404),
    ("GET", "/v1/orders/a%2Fb", 404),
    ("GET", "/v1/orders/%ff", 404),
    ("POST", "/v1/checkouts/", 404),
    ("POST", "/webhooks/nobody", 404),
    ("POST", "/webhooks/%00", 404),
    ("DELETE", "/v1/orders", 405),
    ("PUT", "/webhooks/main", 405),
]


def test_what_is_not_there_is_refused_in_the_common_form(
    store: Store, subtests: pytest.Subtests
) -> None:
    for method, path, status in NOT_THERE:
        with subtests.test(method=method, path=path):
            error = error_of(store.client.request(method, path), status)

            assert error["code"] == {404: "not_found", 405: "method_not_allowed"}[status]


def test_a_known_order_whose_key_is_not_configured_is_put_off_by_name(
    store: Store, make_context: MakeContext, capsys: pytest.CaptureFixture[str]
) -> None:
    event, fresh = checkout(), checkout()
    store.post(event)

    with serving(make_context(encryption_keys=f"new:{generate_key()}", **TWO_ACCOUNTS)) as without:
        alone = without.post(event)
        batch = without.post([event, fresh], "/v1/checkouts/batch")
        shown = without.get("/metrics").text

    said = {
        "code": "key_missing",
        "message": "our configuration lacks a key that this order was stored with; sending the "
        "same again later is safe",
        "field": None,
    }
    assert error_of(alone, 503) == said
    assert alone.headers["retry-after"] == "60"
    known, new = batch.json()["results"]
    assert (known["externalId"], known["error"]) == (event["externalId"], said)
    assert new == {"externalId": fresh["externalId"], "status": "received"}
    assert 'fulfillment_checkouts_total{result="key_missing"} 2.0' in shown
    missing = [line for line in capsys.readouterr().out.splitlines() if "key_missing" in line]
    assert len(missing) == 2
    assert all(event["externalId"] in line and "lacks the key 'test'" in line for line in missing)
    assert store.post(event).status_code == 200


def test_an_unforeseen_error_tells_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_context: Context) -> None:
        raise RuntimeError("canary-detail")

    logged: list[str] = []
    log = SimpleNamespace(exception=lambda event, **_: logged.append(event))
    monkeypatch.setattr(metrics, "log", log)
    monkeypatch.setattr(operations, "wallets", fail)

    response = store.get("/v1/wallets")

    assert error_of(response, 500)["code"] == "internal"
    assert "canary" not in response.text
    assert logged == ["web.unexpected_error"]


# Reading


def test_orders_are_listed_newest_first_page_by_page(store: Store) -> None:
    events = [checkout(externalId=f"order_{number}") for number in range(1, 6)]
    store.post(events, "/v1/checkouts/batch")
    store.post(checkout(externalId="else", account="second"))

    pages: list[list[str]] = []
    cursor: dict[str, str] = {}
    while True:
        page = store.get("/v1/orders", account="main", status="received", limit=2, **cursor).json()
        pages.append([order["externalId"] for order in page["orders"]])
        if page["nextCursor"] is None:
            break
        cursor = {"cursor": page["nextCursor"]}

    assert pages == [["order_5", "order_4"], ["order_3", "order_2"], ["order_1"]]
    assert store.get("/v1/orders", status="completed").json() == {"orders": [], "nextCursor": None}
    assert TOKEN not in store.get("/v1/orders").text


WRONG_PARAMETERS = [
    ("status", "lost"),
    ("account", "a\x00"),
    ("account", ""),
    ("limit", "0"),
    ("limit", "501"),
    ("limit", "x"),
    ("cursor", ""),
    ("cursor", "\x00"),
    ("cursor", "é"),
    ("cursor", "MTIz"),
]


def test_a_wrong_parameter_is_named(store: Store, subtests: pytest.Subtests) -> None:
    for parameter, value in WRONG_PARAMETERS:
        with subtests.test(parameter=parameter, value=value):
            error = error_of(store.get("/v1/orders", **{parameter: value}), 422)

            assert error["field"] == parameter


@pytest.mark.parametrize(
    ("parameter", "value"), [("status", "failed"), ("account", "main"), ("limit", "5")]
)
def test_a_parameter_that_stands_twice_is_refused_by_name(
    store: Store, parameter: str, value: str
) -> None:
    response = store.client.get(f"/v1/orders?{parameter}={value}&{parameter}={value}")

    assert error_of(response, 422)["field"] == parameter


def test_wallets_are_shown_for_every_account(store: Store) -> None:
    first, second = store.get("/v1/wallets").json()["wallets"]

    assert (first["account"], second["account"]) == ("main", "second")
    assert first["balance"] is None
    assert first["held"] == 0
