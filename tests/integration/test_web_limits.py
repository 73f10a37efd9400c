"""What one client may take of web, and that nobody is locked or starved out by another."""

import asyncio
import hmac
import json
import re
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any
from unittest.mock import ANY

import httpx
import pytest
import structlog
from fastapi import HTTPException
from starlette.requests import Request

from fulfillment.errors import ConfigurationError, InvalidInput
from fulfillment.services import operations
from fulfillment.services.context import Context
from fulfillment.web import connection, limits, tokens, webhooks
from fulfillment.web.limits import Buckets, Lane, client_of
from fulfillment.web.requests import READ_THREADS
from fulfillment.web.tokens import generate
from tests.conftest import MakeContext
from tests.integration.web_client import (
    API_TOKEN,
    BEARER,
    TWO_ACCOUNTS,
    Store,
    error_of,
    exchange,
    news,
    serving,
    signed,
)
from tests.support import FakeClock, checkout, until

Serve = Callable[..., Store]


@pytest.fixture
def serve(make_context: MakeContext) -> Iterator[Serve]:
    """Start a web application with these settings changed."""
    servers = []

    def start(**changes: Any) -> Store:
        server = serving(make_context(**TWO_ACCOUNTS | changes))
        servers.append(server)
        return server.__enter__()

    yield start
    for server in servers:
        server.__exit__(None, None, None)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


# Tokens


def test_each_named_token_comes_in_and_is_known_by_its_name(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    callers: list[Any] = []
    wallets = operations.wallets

    def noting(context: Context) -> Any:
        callers.append(structlog.contextvars.get_contextvars().get("caller"))
        return wallets(context)

    monkeypatch.setattr(operations, "wallets", noting)
    (eu, eu_pair), (us, us_pair) = generate("store-eu"), generate("store-us")
    store = serve(api_tokens=f"{eu_pair}, {us_pair}")

    for token in (eu, us, API_TOKEN):
        answer = store.client.get("/v1/wallets", headers=bearer(token))
        assert answer.status_code == 200

    assert callers == ["store-eu", "store-us", "API_TOKEN"]
    text = store.get("/metrics").text
    assert 'fulfillment_api_calls_total{token="store-eu"} 1.0' in text
    assert not [secret for secret in (eu, us, eu_pair, us_pair, API_TOKEN) if secret in text]


def test_a_token_is_rotated_by_adding_the_new_and_then_removing_the_old(serve: Serve) -> None:
    (old, old_pair), (new, new_pair) = generate("old"), generate("new")

    both, after = serve(api_tokens=f"{old_pair},{new_pair}"), serve(api_tokens=new_pair)

    for store, token, status in ((both, old, 200), (both, new, 200), (after, new, 200)):
        assert store.client.get("/v1/wallets", headers=bearer(token)).status_code == status
    error_of(after.client.get("/v1/wallets", headers=bearer(old)), 401)


def test_neither_a_hash_nor_a_part_of_a_token_comes_in(serve: Serve) -> None:
    token, pair = generate("store")
    store = serve(api_token="", api_tokens=pair)

    for wrong in (pair, pair.partition(":")[2], token[:-1], token + "=", token.upper()):
        answer = store.client.get("/v1/wallets", headers=bearer(wrong))
        assert error_of(answer, 401)["code"] == "unauthorized"
    assert store.client.get("/v1/wallets", headers=bearer(token)).status_code == 200


def test_every_token_is_compared_each_time(
    make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[bytes] = []
    compare_digest = hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        compared.append(other)
        return compare_digest(one, other)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    made = [generate(name) for name in ("a", "b", "c")]
    pairs = ",".join(pair for _, pair in made)
    known = tokens.Tokens(make_context(**TWO_ACCOUNTS, api_tokens=pairs).settings)

    found = [known.name_of(token.encode()) for token in (*(t for t, _ in made), API_TOKEN, "x")]

    assert found == ["a", "b", "c", "API_TOKEN", None]
    assert len(compared) == 4 * 5


def test_without_any_token_web_does_not_start(serve: Serve) -> None:
    with pytest.raises(ConfigurationError, match="FULFILLMENT_API_TOKEN"):
        serve(api_token="")


@pytest.mark.parametrize("name", ["", "Store", "-a", "a:b", "x" * 33, "ä"])
def test_a_token_for_a_name_that_no_setting_takes_is_not_made(name: str) -> None:
    with pytest.raises(InvalidInput):
        generate(name)


# Rates


def test_a_token_that_calls_too_often_waits_and_the_others_do_not(
    serve: Serve, clock: FakeClock
) -> None:
    other, pair = generate("other")
    store = serve(api_tokens=pair, web_calls_per_s=1)

    answers = [store.get("/v1/wallets") for _ in range(3)]
    others = store.client.get("/v1/wallets", headers=bearer(other))
    clock.advance(1)
    later = [store.post(checkout()) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert error_of(answers[2], 429)["code"] == "too_many_requests"
    assert answers[2].headers["retry-after"] == "1"
    assert others.status_code == 200
    assert [answer.status_code for answer in later] == [202, 429]
    assert store.get("/healthz").status_code == 200


def test_the_default_rates_do_not_hold_up_a_store_at_its_peak(serve: Serve) -> None:
    store = serve()
    events = [checkout() for _ in range(1000)]

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: store.get("/v1/orders/nobody").status_code, range(600)))
    batches = [store.post(events, "/v1/checkouts/batch").status_code for _ in range(3)]

    assert set(answers) == {404}
    assert batches == [200] * 3


def test_failures_are_counted_by_address_and_lock_nobody_out(
    serve: Serve, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[str] = []
    monkeypatch.setattr(
        webhooks, "log", SimpleNamespace(warning=lambda event, **_: logged.append(event))
    )
    store = serve(web_failures_per_s=1)
    store.post(checkout(externalId="order_1"))

    forged = [store.deliver(b"{}", **signed(b"other")).status_code for _ in range(49)]
    wrong = [store.client.get("/v1/orders", headers=bearer("wrong")) for _ in range(2)]
    forged += [store.deliver(b"{}", **signed(b"other")).status_code for _ in range(20)]

    assert forged == [401] * 49 + [429] * 20
    assert [answer.status_code for answer in wrong] == [401, 429]
    assert wrong[1].headers["retry-after"] == "1"
    assert len(logged) == 49
    assert store.get("/v1/orders").status_code == 200
    assert store.deliver(news("order_1")).json() == {"status": "stored"}
    clock.advance(1)
    error_of(store.deliver(b"{}", **signed(b"other")), 401)


@pytest.mark.parametrize(
    ("trusted", "expected"), [("", [401, 429]), ("127.0.0.1", [401, 401]), ("::1", [401, 429])]
)
def test_only_a_trusted_proxy_names_the_client(
    serve: Serve, trusted: str, expected: list[int]
) -> None:
    store = serve(web_failures_per_s=1, web_trusted_proxies=trusted)
    for _ in range(49):
        store.client.get("/v1/orders", headers=bearer("x") | {"X-Forwarded-For": "192.0.2.1"})

    found = [
        store.client.get("/v1/orders", headers=bearer("x") | {"X-Forwarded-For": f"192.0.2.{n}"})
        for n in (1, 2)
    ]

    assert [answer.status_code for answer in found] == expected


def test_counting_takes_no_more_memory_however_many_addresses_there_are() -> None:
    buckets = Buckets(FakeClock(), per_s=1, burst_s=1)

    for number in range(30_000):
        assert buckets.take(str(number)) == 0

    assert len(buckets._levels) == 10_000
    assert buckets.take("29999") > 0


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:0db8:0001:0002"),
        ("2001:db8:1:2:ffff::", "2001:0db8:0001:0002"),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.1"),
        ("x" * 500, "x" * 64),
    ],
)
def test_an_ipv6_client_is_its_network(address: str, name: str) -> None:
    request = Request({"type": "http", "client": (address, 1), "headers": []})

    assert client_of(request) == name


# Heads and bodies


HEAD = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (HEAD + b"".join(b"x-%d: 1\r\n" % n for n in range(120)), b"431"),
        (HEAD + b"x-long: " + b"a" * 17_000 + b"\r\n", b"431"),
        (HEAD + b"x-long: " + b"a" * 500_000 + b"\r\n", b"4"),
        (b"GET /v1/orders?cursor=" + b"a" * 9_000 + b" HTTP/1.1\r\nHost: x\r\n", b"414"),
        (HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n", b"400"),
        (HEAD + b"Content-Length: -1\r\n", b"400"),
        (HEAD + b"Transfer-Encoding: chunked, identity\r\n", b"400"),
        (HEAD + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", b"400"),
        (HEAD + b"bad header\r\n", b"400"),
        (b"GET /\xff HTTP/1.1\r\nHost: x\r\n", b"400"),
        (b"GET /healthz HTTP/1.1\r\n", b"400"),
    ],
)
def test_a_head_that_is_too_large_or_no_http_is_refused(
    store: Store, head: bytes, status: bytes
) -> None:
    try:
        answer = exchange(store, head + b"\r\n")
    except ConnectionError:
        answer = b"HTTP/1.1 4"  # closed before it had read all

    assert answer.startswith(b"HTTP/1.1 " + status)


def test_a_body_of_two_lengths_begins_no_other_request(store: Store) -> None:
    head = HEAD + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"

    answer = exchange(store, head + b"0\r\n\r\n" + HEAD + b"\r\n")

    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"400"]


@pytest.mark.parametrize("head", [b"no http\r\n", HEAD + b"Content-Length: x\r\n"])
def test_what_is_no_http_is_refused_in_the_common_form(store: Store, head: bytes) -> None:
    answer = exchange(store, head + b"\r\n")

    body = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert body == {"error": {"code": ANY, "message": ANY, "field": None}}


@pytest.mark.parametrize("part", [b"", b"GET /healthz HT", HEAD, HEAD + b"\r\n" + HEAD])
def test_a_head_that_does_not_come_is_not_waited_for(
    store: Store, monkeypatch: pytest.MonkeyPatch, part: bytes
) -> None:
    monkeypatch.setattr(limits, "READ_WITHIN_S", 0.5)

    started = time.monotonic()
    with socket.create_connection(("127.0.0.1", store.port), timeout=10) as connection:
        connection.sendall(part)
        with pytest.raises(ConnectionError):  # noqa: PT012  # the drip keeps no connection open
            while time.monotonic() - started < 9:
                connection.sendall(b"x")
                time.sleep(0.05)

    assert time.monotonic() - started < 5


def test_answers_that_nobody_reads_are_not_kept(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "TAKEN_WITHIN_S", 0.5)
    script = next(line for line in store.get("/docs").text.split('"') if line.endswith(".js"))
    # More than the system itself keeps for a connection.
    asked = f"GET {script} HTTP/1.1\r\nHost: x\r\n\r\n".encode() * 40
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    with client:
        client.settimeout(10)
        client.connect(("127.0.0.1", store.port))
        client.sendall(asked)
        closed = select.poll()
        closed.register(client, select.POLLHUP | select.POLLERR | select.POLLRDHUP)
        assert closed.poll(5_000), "web still holds the connection"


def test_a_connection_that_is_used_again_within_its_time_stays_open(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "READ_WITHIN_S", 0.3)
    store.get("/healthz")  # opened with the short time

    time.sleep(0.6)
    with socket.create_connection(("127.0.0.1", store.port), timeout=10) as connection:
        for _ in range(2):
            connection.sendall(HEAD + b"\r\n")
            answer = b""
            while not answer.endswith(b'{"status":"ok"}'):
                answer += connection.recv(4096) or pytest.fail("closed")
            time.sleep(0.6)


@pytest.mark.parametrize("target", [b"GET /healthz", b"POST /nowhere", b"GET /v1/orders"])
def test_a_body_that_nobody_reads_is_cut_off(store: Store, target: bytes) -> None:
    head = target + b" HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"10000\r\n" + b"x" * 65_536 + b"\r\n"

    with (
        socket.create_connection(("127.0.0.1", store.port), timeout=10) as connection,
        pytest.raises(ConnectionError),
    ):
        connection.sendall(head + chunk * 1000)


def test_a_refusal_reaches_a_client_that_still_sends(store: Store) -> None:
    for path, status in (("/v1/checkouts/batch", 401), ("/webhooks/nobody", 404), ("/x", 404)):
        answer = store.client.post(path, content=b" " * 4_000_000, headers=bearer("wrong"))
        assert answer.status_code == status
        assert "connection" not in answer.headers  # all of it was read, so the next may follow


def test_a_body_that_trickles_to_nobody_is_not_waited_for(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "READ_WITHIN_S", 0.3)

    answer = exchange(store, b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nab")

    assert answer.startswith(b"HTTP/1.1 404")
    assert b"connection: close" in answer.lower()


def test_every_answer_tells_browsers_to_do_nothing_with_it(store: Store) -> None:
    for path in ("/healthz", "/v1/orders", "/nowhere"):
        headers = store.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert headers["content-security-policy"].startswith("default-src 'none'")


# Lanes


def test_a_flood_of_reads_holds_up_neither_checkouts_nor_webhooks_nor_health(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_over = threading.Event()
    entered: list[int] = []
    wallets = operations.wallets

    def slow(context: Context) -> Any:
        entered.append(1)
        is_over.wait(20)
        return wallets(context)

    monkeypatch.setattr(operations, "wallets", slow)
    url = f"http://127.0.0.1:{store.port}/v1/wallets"
    with ThreadPoolExecutor(40) as pool:
        flood = [pool.submit(httpx.get, url, headers=BEARER, timeout=30) for _ in range(40)]
        try:
            until(lambda: len(entered) == READ_THREADS)
            assert store.post(checkout(externalId="order_1")).status_code == 202
            assert store.deliver(news("order_1")).json() == {"status": "stored"}
            assert store.get("/readyz").json()["checks"]["database"]["ok"]
            assert store.get("/metrics").status_code == 200
        finally:
            is_over.set()
        assert {answer.result().status_code for answer in flood} == {200}


def test_a_lane_that_is_full_says_so_at_once() -> None:
    async def crowd() -> None:
        lane, is_over = Lane(threads=1, most_waiting=2), threading.Event()
        waiting = [asyncio.create_task(lane.run(is_over.wait, 10)) for _ in range(3)]
        await asyncio.sleep(0.05)
        with pytest.raises(HTTPException) as refused:
            await lane.run(is_over.wait, 10)
        is_over.set()
        assert all(await asyncio.gather(*waiting))
        assert (refused.value.status_code, refused.value.headers) == (503, {"Retry-After": "1"})

    asyncio.run(crowd())


def test_who_waits_too_long_is_told_so_although_nothing_moves() -> None:
    async def wait() -> None:
        lane, is_over = Lane(threads=1, most_waiting=2, within_s=0.1), threading.Event()
        begun: list[int] = []

        async def refused(act: Callable[[], object]) -> int:
            with pytest.raises(HTTPException, match=r"within 0\.1 s") as found:
                await lane.run(act)
            return found.value.status_code

        first, second = refused(lambda: is_over.wait(10)), refused(lambda: begun.append(1))
        assert set(await asyncio.gather(first, second)) == {503}
        is_over.set()
        assert await lane.run(lambda: "free again") == "free again"
        assert begun == []

    asyncio.run(wait())


def test_bodies_under_way_take_no_more_memory_than_they_may() -> None:
    async def crowd() -> None:
        lane, is_over = Lane(threads=1, most_waiting=9, most_bytes=100), asyncio.Event()

        def sending(*sizes: int) -> Request:
            pieces = [b"x" * size for size in sizes]

            async def receive() -> dict[str, Any]:
                if len(pieces) < len(sizes):
                    await is_over.wait()
                body = pieces.pop(0)
                return {"type": "http.request", "body": body, "more_body": bool(pieces)}

            return Request({"type": "http", "headers": []}, receive)

        first = asyncio.create_task(lane.run_on_body(sending(60, 39), 1000, len))
        await asyncio.sleep(0.05)
        with pytest.raises(HTTPException) as refused:
            await lane.run_on_body(sending(41), 1000, len)
        assert await lane.run_on_body(sending(40), 1000, len) == 40
        is_over.set()
        assert refused.value.status_code == 503
        assert await first == 99
        assert await lane.run_on_body(sending(100), 1000, len) == 100

    asyncio.run(crowd())


def test_the_page_of_the_api_loads_nothing_from_elsewhere(store: Store) -> None:
    page = store.get("/docs")

    assert "http://" not in page.text
    assert "https://" not in page.text
    assert page.headers["content-security-policy"].startswith("default-src 'self'")
    for name in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png"):
        assert f"/docs/static/{name}" in page.text
        assert len(store.get(f"/docs/static/{name}").content) > 1000
    assert store.get("/docs/static/../../app.py").status_code == 404
    until(lambda: 'route="/docs"' in store.get("/metrics").text)
