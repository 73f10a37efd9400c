"""The one way out: every failure has one meaning, every answer has an end, nothing is told."""

import contextlib
import gzip
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import NoReturn

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulfillment.errors import (
    ProviderDeniesAccount,
    ProviderError,
    ProviderNotReached,
    ProviderOutcomeUnknown,
)
from fulfillment.providers.http import Answer, HTTPClient

CANARY = "cs_test_7f3a9c_canary"
NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
GOOD = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"

Script = Callable[[socket.socket], None]


class StoppedClock:
    def now(self) -> datetime:
        return NOW

    def monotonic(self) -> float:
        return time.monotonic()


class Scripted(httpx.BaseTransport):
    """Answers as told, or raises what it was told."""

    def __init__(self, result: httpx.Response | Exception) -> None:
        self.result = result
        self.requests: list[httpx.Request] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


def scripted(result: httpx.Response | Exception) -> HTTPClient:
    return HTTPClient("http://provider.test", transport=Scripted(result), clock=StoppedClock())


def send(client: HTTPClient, *, is_purchase: bool = False, limit: int = 1000) -> Answer:
    return client.request(
        "POST" if is_purchase else "GET",
        f"/v1/orders?key={CANARY}",
        headers={"x-client-secret": CANARY},
        content=f"token={CANARY}".encode() if is_purchase else b"",
        is_purchase=is_purchase,
        limit=limit,
    )


@contextlib.contextmanager
def server(script: Script, connections: int = 1) -> Iterator[str]:
    """Read one request a connection on a local port, then let the script answer."""
    listener = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        for _ in range(connections):
            with contextlib.suppress(OSError), listener.accept()[0] as connection:
                connection.settimeout(10)
                read_request(connection)
                script(connection)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        # Closing alone would not wake a thread that waits in accept.
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def read_request(connection: socket.socket) -> bytes:
    read = b""
    while b"\r\n\r\n" not in read:
        read += received(connection)
    head, _, body = read.partition(b"\r\n\r\n")
    length = next(
        (int(line[15:]) for line in head.lower().splitlines() if line[:15] == b"content-length:"), 0
    )
    while len(body) < length:
        body += received(connection)
    return head + b"\r\n\r\n" + body


def received(connection: socket.socket) -> bytes:
    data = connection.recv(65_536)
    if not data:
        raise ConnectionResetError
    return data


def drip(data: bytes) -> Script:
    """Send a byte every 20 ms, without end."""

    def run(connection: socket.socket) -> None:
        while True:
            for byte in data:
                connection.sendall(bytes([byte]))
                time.sleep(0.02)

    return run


@contextlib.contextmanager
def client_of(url: str, timeout_s: float = 10) -> Iterator[HTTPClient]:
    client = HTTPClient(url, timeout_s=timeout_s)
    try:
        yield client
    finally:
        client.close()


# --- what each failure means

NOT_SENT = {
    "ConnectError",
    "ConnectTimeout",
    "PoolTimeout",
    "UnsupportedProtocol",
    "InvalidURL",
}
#: Misuse of httpx by ourselves: a bug is not translated into an outage.
BUGS = {"StreamError", "StreamConsumed", "StreamClosed", "ResponseNotRead", "RequestNotRead"}
BUGS |= {"CookieConflict"}
EXCEPTIONS = {
    name: kind
    for name in httpx.__all__
    if isinstance(kind := getattr(httpx, name), type) and issubclass(kind, Exception)
}


def example(kind: type[Exception]) -> Exception:
    request = httpx.Request("POST", f"http://x/?{CANARY}", headers={"x-client-secret": CANARY})
    if kind is httpx.HTTPStatusError:
        return httpx.HTTPStatusError(CANARY, request=request, response=httpx.Response(500))
    if issubclass(kind, httpx.RequestError):
        return kind(CANARY, request=request)
    return kind(CANARY)


@pytest.mark.parametrize("name", sorted(EXCEPTIONS.keys() - BUGS))
def test_every_exception_of_httpx_has_one_meaning(name: str) -> None:
    client = scripted(example(EXCEPTIONS[name]))

    with pytest.raises(ProviderError) as read:
        send(client)
    with pytest.raises(ProviderError) as purchase:
        send(client, is_purchase=True)

    assert type(read.value) is ProviderNotReached
    assert type(purchase.value) is (
        ProviderNotReached if name in NOT_SENT else ProviderOutcomeUnknown
    )
    for error in (read.value, purchase.value):
        assert CANARY not in str(error)
        assert error.__cause__ is None
        assert error.__context__ is None  # it would carry the request with its headers


def test_the_list_of_exceptions_is_complete() -> None:
    assert set(EXCEPTIONS) >= NOT_SENT | BUGS
    for name in EXCEPTIONS.keys() - BUGS - {"InvalidURL"}:
        assert issubclass(EXCEPTIONS[name], httpx.HTTPError)


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("is_purchase", [True, False])
def test_401_and_403_are_about_the_account(status: int, is_purchase: bool) -> None:
    with pytest.raises(ProviderDeniesAccount):
        send(scripted(httpx.Response(status, text=CANARY)), is_purchase=is_purchase)


@pytest.mark.parametrize(
    "status", [101, 204 - 100, 300, 301, 302, 303, 304, 307, 308, 429, 500, 502, 503, 504, 599]
)
def test_an_answer_that_settles_nothing(status: int) -> None:
    headers = {"location": "http://127.0.0.1:1/elsewhere"}
    with pytest.raises(ProviderNotReached):
        send(scripted(httpx.Response(status, headers=headers, text=CANARY)))
    with pytest.raises(ProviderOutcomeUnknown) as caught:
        send(scripted(httpx.Response(status, headers=headers, text=CANARY)), is_purchase=True)

    assert str(status) in str(caught.value)
    assert CANARY not in str(caught.value)
    assert caught.value.is_outage is (status != 429)


@pytest.mark.parametrize("status", [200, 201, 202, 206, 400, 404, 408, 409, 422])
def test_other_answers_are_the_adapters_to_judge(status: int) -> None:
    answer = send(scripted(httpx.Response(status, text=CANARY)), is_purchase=True)

    assert answer == Answer(status, CANARY.encode())
    assert CANARY not in repr(answer)


@pytest.mark.parametrize(
    ("header", "pause"),
    [
        ("7", timedelta(seconds=7)),
        (" 0 ", timedelta()),
        ("86400", timedelta(minutes=10)),
        ("Fri, 20 Nov 2026 12:00:30 GMT", timedelta(seconds=30)),
        ("Fri, 20 Nov 2026 11:00:00 GMT", timedelta()),
        ("Sun, 20 Nov 2050 12:00:00 GMT", timedelta(minutes=10)),
        ("Fri, 20 Nov 2026 12:00:30 -0000", None),
        ("-5", None),
        ("1.5", None),
        ("soon", None),
        ("٣", None),
        ("9" * 400, None),
        (None, None),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_read(status: int, header: str | None, pause: timedelta | None) -> None:
    headers = {} if header is None else {b"retry-after": header.encode()}
    with pytest.raises(ProviderNotReached) as read:
        send(scripted(httpx.Response(status, headers=headers)))
    with pytest.raises(ProviderOutcomeUnknown) as purchase:
        send(scripted(httpx.Response(status, headers=headers)), is_purchase=True)

    assert read.value.retry_after == purchase.value.retry_after == pause


@given(st.text(max_size=40))
def test_no_retry_after_raises_or_exceeds_ten_minutes(text: str) -> None:
    headers = {b"retry-after": text.encode("utf-8", "replace")}
    with pytest.raises(ProviderNotReached) as caught:
        send(scripted(httpx.Response(429, headers=headers)))

    pause = caught.value.retry_after
    assert pause is None or timedelta() <= pause <= timedelta(minutes=10)


# --- the request


def test_the_request_is_what_was_asked_and_no_more() -> None:
    seen: list[bytes] = []

    def script(connection: socket.socket) -> None:
        connection.sendall(GOOD)

    with server(script) as url:
        transport = Scripted(httpx.Response(200, headers={"set-cookie": "a=1"}))
        client = HTTPClient(f"{url}/base", transport=transport)
        for _ in range(2):
            client.request("POST", "/v1/a%2Fb", headers={"x-client-id": "me"}, content=b"{}")
        seen = [request.url.raw_path for request in transport.requests]
        with client_of(url) as real:
            assert real.request("GET", "/", headers={}).body == b"{}"

    assert seen == [b"/base/v1/a%2Fb"] * 2
    headers = transport.requests[1].headers
    assert "cookie" not in headers
    assert headers["accept-encoding"] == "identity"
    assert headers["content-type"] == "application/json"
    assert headers["x-client-id"] == "me"
    assert transport.requests[1].read() == b"{}"


def test_the_environment_has_no_say(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")

    with server(lambda c: c.sendall(GOOD)) as url, client_of(url) as client:
        assert send(client).status == 200


# --- the wire


def test_a_refused_connection_sent_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with (
        client_of(f"http://127.0.0.1:{port}") as client,
        pytest.raises(ProviderNotReached, match="connection refused"),
    ):
        send(client, is_purchase=True)


@pytest.mark.parametrize("host", ["a" * 70 + ".invalid", "a..invalid"])
def test_a_name_that_cannot_be_asked_for_sent_nothing(host: str) -> None:
    with (
        client_of(f"http://{host}") as client,
        pytest.raises(ProviderNotReached, match="nothing was sent"),
    ):
        send(client, is_purchase=True)


def test_a_name_that_cannot_be_resolved_sent_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> NoReturn:
        raise socket.gaierror(socket.EAI_NONAME, CANARY)

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with (
        client_of("http://name.invalid") as client,
        pytest.raises(ProviderNotReached, match="host name cannot be resolved"),
    ):
        send(client, is_purchase=True)


def test_failed_tls_sent_nothing() -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65_536)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    thread = threading.Thread(target=run)
    thread.start()
    try:
        with (
            client_of(f"https://127.0.0.1:{listener.getsockname()[1]}") as client,
            pytest.raises(ProviderNotReached, match="TLS failed"),
        ):
            send(client, is_purchase=True)
    finally:
        thread.join()
        listener.close()


def test_a_silent_tls_peer_is_left_within_the_total_time() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        client_of(f"https://127.0.0.1:{listener.getsockname()[1]}", 0.3) as client,
    ):
        started = time.monotonic()
        with pytest.raises(ProviderNotReached):
            send(client, is_purchase=True)

    assert time.monotonic() - started < 3


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200",
        b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{}",
        CHUNKED + b"5\r\n{}",
        CHUNKED + b"zz\r\n{}",
        b"\x16\x03\x01 nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nx: " + b"a" * 200_000,
        b"HTTP/1.1 302 Found\r\nlocation: http://[bad\r\ncontent-length: 0\r\n\r\n",
    ],
)
def test_a_broken_answer_settles_nothing(answer: bytes) -> None:
    def script(connection: socket.socket) -> None:
        connection.sendall(answer)

    with server(script, connections=2) as url, client_of(url) as client:
        with pytest.raises(ProviderNotReached):
            send(client)
        with pytest.raises(ProviderOutcomeUnknown):
            send(client, is_purchase=True)


@pytest.mark.parametrize(
    "script",
    [
        drip(b"HTTP/1.1 200 OK\r\n" + b"x-header: abc\r\n" * 1000),
        drip(b"HTTP/1.1 100 Continue\r\n\r\n"),
        lambda c: (c.sendall(CHUNKED), drip(b"1\r\n \r\n")(c)),
        lambda c: (
            c.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n"),
            drip(b" ")(c),
        ),
        lambda c: c.recv(1),
    ],
    ids=["headers", "interim answers", "chunks", "body", "silence"],
)
@pytest.mark.parametrize("is_purchase", [True, False])
def test_dripping_never_outlasts_the_total_time(script: Script, is_purchase: bool) -> None:
    with server(script) as url, client_of(url, timeout_s=0.4) as client:
        started = time.monotonic()
        with pytest.raises(ProviderOutcomeUnknown if is_purchase else ProviderNotReached):
            send(client, is_purchase=is_purchase)
        took_s = time.monotonic() - started

    assert took_s < 2


def test_one_request_may_be_given_more_time_than_the_others() -> None:
    def script(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 40\r\n\r\n")
        for _ in range(40):
            connection.sendall(b" ")
            time.sleep(0.02)

    with server(script) as url, client_of(url, timeout_s=0.4) as client:
        answer = client.request("GET", "/v1/catalog", headers={}, total_s=10)

    assert len(answer.body) == 40


def test_a_connection_is_kept_and_a_stale_one_is_replaced() -> None:
    accepted: list[int] = []

    def script(connection: socket.socket) -> None:
        accepted.append(1)
        connection.sendall(GOOD)
        read_request(connection)
        connection.sendall(GOOD)
        connection.shutdown(socket.SHUT_RDWR)  # the server closes an idle connection

    with server(script, connections=2) as url, client_of(url) as client:
        assert send(client).status == 200
        assert send(client).status == 200
        deadline = time.monotonic() + 5
        while len(accepted) < 2 and time.monotonic() < deadline:
            with contextlib.suppress(ProviderNotReached):
                send(client)
        assert len(accepted) == 2


# --- how much is read


def stream(*chunks: bytes, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(200, headers=named, stream=Chunks(chunks))


class Chunks(httpx.SyncByteStream):
    def __init__(self, chunks: tuple[bytes, ...]) -> None:
        self.chunks = chunks
        self.given = 0
        self.is_closed = False

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self.chunks:
            self.given += 1
            yield chunk

    def close(self) -> None:
        self.is_closed = True


@pytest.mark.parametrize("is_purchase", [True, False])
def test_a_body_over_the_limit_is_given_up_at_once(is_purchase: bool) -> None:
    response = stream(*[b" " * 100] * 1000)

    with pytest.raises(
        ProviderOutcomeUnknown if is_purchase else ProviderNotReached, match="at most 1000 bytes"
    ):
        send(scripted(response), is_purchase=is_purchase, limit=1000)

    assert isinstance(response.stream, Chunks)
    assert response.stream.given == 11
    assert response.stream.is_closed


def test_a_body_of_exactly_the_limit_is_read() -> None:
    assert len(send(scripted(stream(b" " * 1000)), limit=1000).body) == 1000
    packed = gzip.compress(b" " * 1000)
    assert len(send(scripted(stream(packed, content_encoding="gzip")), limit=1000).body) == 1000


def test_a_compression_bomb_is_not_unpacked() -> None:
    bomb = gzip.compress(bytes(1 << 26), 9)  # 64 MB in one piece of 64 kB

    tracemalloc.start()
    try:
        with pytest.raises(ProviderNotReached, match="at most 100000 bytes"):
            send(scripted(stream(bomb, content_encoding="gzip")), limit=100_000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 4_000_000


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_gzip_is_read_in_pieces_of_any_size(size: int) -> None:
    text = b'{"a":"' + b"xyz" * 300 + b'"}'
    packed = gzip.compress(text)
    pieces = [packed[at : at + size] for at in range(0, len(packed), size)]

    assert send(scripted(stream(*pieces, content_encoding=" GZIP "))).body == text


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", b"{}"),
        ("gzip", gzip.compress(b"{}")[:-4]),
        ("gzip", gzip.compress(b"{}") + b"more"),
        ("gzip", b""),
        ("br", b"{}"),
        ("gzip, gzip", gzip.compress(gzip.compress(b"{}"))),
    ],
    ids=["no gzip", "cut", "more", "empty", "brotli", "twice"],  # gzip holds the time
)
def test_an_encoding_that_cannot_be_trusted_is_refused(encoding: str, body: bytes) -> None:
    with pytest.raises(ProviderNotReached):
        send(scripted(stream(body, content_encoding=encoding)))


def test_the_answer_is_closed_when_its_status_says_enough() -> None:
    response = stream(b" " * 10_000)
    response.status_code = 503

    with pytest.raises(ProviderNotReached):
        send(scripted(response))

    assert isinstance(response.stream, Chunks)
    assert response.stream.is_closed
    assert response.stream.given == 0
