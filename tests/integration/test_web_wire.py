"""What comes over a connection of web beside heads and bodies, and what is left of it."""

import json
import socket
import time
from types import SimpleNamespace

import pytest
import structlog
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fulfillment.services.context import Context
from fulfillment.web import app, webhooks
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
