"""What comes over a connection of web beside heads and bodies, and what is left of it."""

import json
import re
import socket
import time
from types import SimpleNamespace

import pytest
import structlog
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fulfillment.services.context import Context
from fulfillment.web import app, limits, webhooks
from tests.integration.web_client import BEARER, Store, exchange, news, serving, signed
from tests.support import checkout

CHUNKED = b"POST %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n"


@pytest.mark.parametrize(
    "beside",
    [
        b"0\r\n" + b"x-name: some value\r\n" * 20_000,
        b"0\r\nx: " + b"v" * 400_000,
        b"1;x=" + b"v" * 400_000,
    ],
    ids=["many trailers", "one trailer", "a chunk's extension"],
)
def test_what_is_neither_head_nor_body_is_not_kept_and_soon_cut_off(
    store: Store, monkeypatch: pytest.MonkeyPatch, beside: bytes
) -> None:
    kept: list[int] = []
    on_header = HttpToolsProtocol.on_header

    def counting(self: HttpToolsProtocol, name: bytes, value: bytes) -> None:
        on_header(self, name, value)
        kept.append(len(self.headers))

    monkeypatch.setattr(HttpToolsProtocol, "on_header", counting)
    rest = beside.partition(b"\r\n")[2] or beside[4:]
    with socket.create_connection(("127.0.0.1", store.port), timeout=5) as client:
        client.sendall(CHUNKED % b"/webhooks/main" + b"\r\n" + beside)
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            client.sendall(rest * 100)  # within the ten seconds that a body has

    assert max(kept) == CHUNKED.count(b": ")


def test_a_body_of_small_chunks_comes_in_whole(store: Store) -> None:
    event = json.dumps(checkout(note="x" * 12_000)).encode()
    token = b"Authorization: %b\r\n\r\n" % BEARER["Authorization"].encode()
    chunks = b"".join(b"1;a=b\r\n%c\r\n" % byte for byte in event)

    answer = exchange(store, CHUNKED % b"/v1/checkouts" + token, chunks + b"0\r\nX-Sum: 1\r\n\r\n")

    assert answer.startswith(b"HTTP/1.1 202")


def test_a_trailer_is_no_header(store: Store) -> None:
    store.post(checkout(externalId="order_1"))
    body = news("order_1")
    for path, proof in (("/v1/checkouts", BEARER), ("/webhooks/main", signed(body))):
        chunk = b"\r\n%x\r\n%b\r\n" % (len(body), body)
        trailers = "".join(f"{name}: {value}\r\n" for name, value in proof.items()).encode()

        # In one piece with the head: whoever reads the headers then finds all that ever come.
        answer = exchange(store, CHUNKED % path.encode() + chunk + b"0\r\n" + trailers + b"\r\n")

        assert answer.startswith(b"HTTP/1.1 401"), path


@pytest.mark.parametrize("is_upgrade", [False, True])
def test_an_idle_connection_is_closed_whatever_comes_that_is_no_request(
    web_context: Context, monkeypatch: pytest.MonkeyPatch, is_upgrade: bool
) -> None:
    monkeypatch.setattr(app, "_KEPT_IDLE_S", 1)
    head = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
    if is_upgrade:  # to what we do not speak: whatever comes after it is not read
        head += b"Connection: Upgrade\r\nUpgrade: other\r\n"
    with (
        serving(web_context) as store,
        socket.create_connection(("127.0.0.1", store.port), timeout=5) as client,
    ):
        client.sendall(head + b"\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 200")

        started = time.monotonic()
        for _ in range(4):  # a drip: anew from the last of them would be 1.6 s
            client.sendall(b"\r\n")
            time.sleep(0.2)
        while client.recv(4096):
            pass

    assert time.monotonic() - started < 1.5  # not anew from each line on


def test_a_request_is_not_logged_as_that_of_the_caller_before_on_its_connection(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    callers: list[object] = []
    noting = SimpleNamespace(
        warning=lambda *_, **__: callers.append(structlog.contextvars.get_contextvars())
    )
    monkeypatch.setattr(webhooks, "log", noting)

    # Larger than what is read at once, so that its reading is paused and resumed.
    large = [{"x": "y" * 400}] * 900
    assert store.post(large, "/v1/checkouts/batch").status_code == 200
    assert store.deliver(b"{}", **signed(b"other")).status_code == 401

    assert callers == [{}]


def test_who_asks_on_and_on_without_waiting_for_an_answer_is_cut_off(store: Store) -> None:
    """Each request that waits is kept; a packet of 256 KiB has ten thousand of the smallest."""
    head = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
    few, last = (head + b"\r\n") * 15, head + b"Connection: close\r\n\r\n"
    assert exchange(store, few + last).count(b"HTTP/1.1 200") == 16

    assert exchange(store, (head + b"\r\n") * 999).count(b"HTTP/1.1 ") < 100


AUTHORIZED = b"Host: x\r\nAuthorization: %b\r\n" % BEARER["Authorization"].encode()
EXPECTING = b"Expect: 100-continue\r\n"


@pytest.mark.parametrize("path", [b"/v1/checkouts", b"/v1/checkouts/batch", b"/webhooks/main"])
@pytest.mark.parametrize("more", [b"", EXPECTING])
def test_a_body_that_says_it_is_too_large_is_refused_before_it_comes(
    store: Store, monkeypatch: pytest.MonkeyPatch, path: bytes, more: bytes
) -> None:
    head = b"POST %b HTTP/1.1\r\nContent-Length: 99999999\r\n" % path + AUTHORIZED + more
    monkeypatch.setattr(limits, "_LINGER_S", 5.0)
    with socket.create_connection(("127.0.0.1", store.port), timeout=3) as client:
        client.sendall(head + b"\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 413")
    monkeypatch.setattr(limits, "_LINGER_S", 0.1)

    answer = exchange(store, head + b"\r\n")

    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"413"]  # and then it is closed


def test_who_waits_to_be_asked_for_a_body_is_asked_only_where_it_is_wanted(store: Store) -> None:
    event = json.dumps(checkout()).encode()
    head = b"POST /v1/checkouts HTTP/1.1\r\nContent-Length: %d\r\n" % len(event) + EXPECTING

    stranger = exchange(store, head + b"Host: x\r\n\r\n")
    asked = exchange(store, head + AUTHORIZED + b"Connection: close\r\n\r\n", event)

    assert re.findall(rb"HTTP/1.1 (\d+)", stranger) == [b"401"]
    assert re.findall(rb"HTTP/1.1 (\d+)", asked) == [b"100", b"202"]


@pytest.mark.parametrize(
    "codings",
    [
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Transfer-Encoding: chunked, chunked\r\n",
        b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n",
    ],
)
def test_a_body_in_another_coding_than_chunks_is_not_taken_for_plain(
    store: Store, codings: bytes
) -> None:
    event = json.dumps(checkout()).encode()
    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(event), event)

    answer = exchange(
        store, b"POST /v1/checkouts HTTP/1.1\r\n" + AUTHORIZED + codings + b"\r\n" + chunks
    )

    assert answer.startswith((b"HTTP/1.1 501", b"HTTP/1.1 400"))
    assert store.hints.empty()


@pytest.mark.parametrize("path", [b"/v1%2fcheckouts", b"/v1%2Fcheckouts", b"%2Fv1/checkouts"])
def test_a_path_that_a_proxy_would_not_know_is_not_known_here(store: Store, path: bytes) -> None:
    event = json.dumps(checkout()).encode()
    head = b"POST %b HTTP/1.1\r\nConnection: close\r\nContent-Length: %d\r\n" % (path, len(event))

    answer = exchange(store, head + AUTHORIZED + b"\r\n" + event)

    assert answer.startswith((b"HTTP/1.1 404", b"HTTP/1.1 400"))
    assert store.hints.empty()


@pytest.mark.parametrize("head", [b"no http\r\n", b"GET /healthz HTTP/1.1\r\n"])
def test_what_is_no_request_is_not_called_json(store: Store, head: bytes) -> None:
    answer = exchange(store, head + b"\r\n")

    assert answer.startswith(b"HTTP/1.1 400")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "bad_request"
