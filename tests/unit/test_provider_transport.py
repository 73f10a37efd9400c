"""The transport below the one way out: what it sends, what it keeps, what it refuses to read."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import httpx
import pytest

from fulfillment.errors import NotLetGo
from fulfillment.providers.transport import KeptTransport
from tests.unit.test_provider_http import CHUNKED, GOOD, read_request, server

PATIENCE_S = 10.0


@pytest.fixture
def transport() -> Iterator[KeptTransport]:
    transport = KeptTransport()
    yield transport
    transport.close()


def ask(transport: KeptTransport, url: str, method: str = "GET", **more: object) -> bytes:
    content = b"{}" if method == "POST" else None
    request = httpx.Request(method, url, content=content, **more)  # type: ignore[arg-type]
    response = transport.handle_request(request)
    assert isinstance(response.stream, httpx.SyncByteStream)
    try:
        return b"".join(response.stream)
    finally:
        response.close()


@contextlib.contextmanager
def talking(act: Callable[[socket.socket, int], None]) -> Iterator[tuple[str, list[int]]]:
    """Serve connections one after another; `act` is told the connection and its number."""
    listener = socket.create_server(("127.0.0.1", 0))
    accepted: list[int] = []

    def run() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                accepted.append(len(accepted))
                with connection, contextlib.suppress(OSError):
                    connection.settimeout(PATIENCE_S)
                    act(connection, accepted[-1])

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", accepted
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def test_the_head_says_what_was_asked_and_nothing_else(transport: KeptTransport) -> None:
    seen: list[bytes] = []

    def act(connection: socket.socket, _: int) -> None:
        seen.append(read_request(connection))
        connection.sendall(GOOD)

    with talking(act) as (url, _):
        ask(transport, f"{url}/v1/a%2Fb?c=d", "POST", headers={"x-client-id": "me"})

    host = url.removeprefix("http://").encode()
    assert seen == [
        b"POST /v1/a%2Fb?c=d HTTP/1.1\r\nHost: " + host + b"\r\nx-client-id: me\r\n"
        b"Content-Length: 2\r\n\r\n{}"
    ]


@pytest.mark.parametrize("value", ["a\r\nx-other: b", "a\nb", "a\0b"])
def test_a_header_that_would_be_two_is_not_sent(transport: KeptTransport, value: str) -> None:
    with (
        talking(lambda connection, _: None) as (url, accepted),
        pytest.raises(httpx.LocalProtocolError),
    ):
        ask(transport, url, headers={"x-client-id": value})

    assert accepted == []


def test_bytes_that_nobody_asked_for_are_no_answer_to_the_next_request(
    transport: KeptTransport,
) -> None:
    """Neither those that came with the answer before nor those that came while it rested."""
    for extra in (GOOD, GOOD[:10]):

        def act(connection: socket.socket, number: int, extra: bytes = extra) -> None:
            read_request(connection)
            connection.sendall(GOOD.replace(b"{}", b"%02d" % number) + extra)
            while connection.recv(100):
                pass

        with talking(act) as (url, accepted):
            assert ask(transport, url) == b"00"
            assert ask(transport, url) == b"01"
            assert accepted == [0, 1]
            transport.close()


def test_an_answer_that_was_not_read_to_its_end_gives_its_connection_up(
    transport: KeptTransport,
) -> None:
    def act(connection: socket.socket, _: int) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 503 Down\r\ncontent-length: 5\r\n\r\nHello")
        with contextlib.suppress(OSError):
            connection.recv(1)

    with talking(act) as (url, accepted):
        for _ in range(2):
            response = transport.handle_request(httpx.Request("GET", url))
            assert response.status_code == 503
            response.close()

        assert accepted == [0, 1]


@pytest.mark.parametrize("last", [b"connection: close\r\n", b""])
def test_only_a_connection_that_the_server_keeps_is_kept(
    transport: KeptTransport, last: bytes
) -> None:
    def act(connection: socket.socket, _: int) -> None:
        for _ in range(2):
            read_request(connection)
            connection.sendall(b"HTTP/1.1 200 OK\r\n" + last + b"content-length: 2\r\n\r\n{}")

    with talking(act) as (url, accepted):
        for _ in range(2):
            assert ask(transport, url) == b"{}"
        transport.close()

        assert len(accepted) == (2 if last else 1)


def test_a_purchase_that_meets_a_closing_connection_is_not_sent_again(
    transport: KeptTransport,
) -> None:
    """The server read it and closed without an answer: only the caller may know what to do."""
    seen: list[bytes] = []

    def act(connection: socket.socket, _: int) -> None:
        seen.append(read_request(connection))
        connection.sendall(GOOD)
        seen.append(read_request(connection))

    with talking(act) as (url, accepted):
        ask(transport, url)
        with pytest.raises(httpx.RemoteProtocolError):
            ask(transport, f"{url}/buy", "POST")

        assert accepted == [0]
    assert [each.split(b" ")[0] for each in seen] == [b"GET", b"POST"]


@pytest.mark.parametrize(
    "head",
    [
        b"content-length: 2\r\ntransfer-encoding: chunked\r\n",
        b"content-length: -2\r\n",
        b"content-length: 2, 2\r\n",
        b"content-length: 2\r\ncontent-length: 02\r\n",
        b"transfer-encoding: gzip, chunked\r\n",
        b"no colon\r\ncontent-length: 2\r\n",
        b"content-length: 2\r\nx: y",
        b"content-length: 2\r\n",
    ],
)
def test_a_head_with_two_meanings_or_no_end_is_refused(
    transport: KeptTransport, head: bytes
) -> None:
    with (
        server(lambda connection: connection.sendall(b"HTTP/1.1 200 OK\r\n" + head)) as url,
        pytest.raises(httpx.RemoteProtocolError),
    ):
        ask(transport, url)


def test_chunks_and_what_ends_with_the_connection_are_read(transport: KeptTransport) -> None:
    def act(connection: socket.socket, number: int) -> None:
        read_request(connection)
        if number == 0:
            connection.sendall(CHUNKED + b"1;x=y\r\n{\r\n1\r\n}\r\n0\r\ntrailer: z\r\n\r\n")
            read_request(connection)
            connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n{}")

    with talking(act) as (url, accepted):
        assert [ask(transport, url) for _ in range(2)] == [b"{}", b"{}"]
        assert accepted == [0]


def test_the_last_look_is_taken_when_the_connection_stands(transport: KeptTransport) -> None:
    heard, is_over = list[bytes](), threading.Event()

    def hear(connection: socket.socket, number: int) -> None:
        heard.append(connection.recv(1))
        is_over.set()

    def refuse(*, is_at_once: bool) -> None:
        assert not is_at_once
        raise NotLetGo("the claim was lost")

    with talking(hear) as (url, accepted):
        with pytest.raises(NotLetGo):
            ask(transport, url, "POST", extensions={"before_send": refuse})
        assert is_over.wait(PATIENCE_S)

    assert (accepted, heard) == ([0], [b""])


def test_the_last_look_is_told_whether_the_connection_stood_before(
    transport: KeptTransport,
) -> None:
    told: list[bool] = []

    def act(connection: socket.socket, _: int) -> None:
        while read_request(connection):
            connection.sendall(GOOD)

    def look(*, is_at_once: bool) -> None:
        told.append(is_at_once)

    with talking(act) as (url, _):
        for _ in range(3):
            ask(transport, url, "POST", extensions={"before_send": look})
        transport.close()

    assert told == [False, True, True]


def test_other_schemes_are_not_spoken(transport: KeptTransport) -> None:
    with pytest.raises(httpx.UnsupportedProtocol):
        ask(transport, "ftp://127.0.0.1/")


def test_many_threads_share_the_kept_connections(transport: KeptTransport) -> None:
    requests, threads = 20, 8
    lock = threading.Lock()
    open_now: list[int] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while True:
                body = read_request(connection).partition(b"\r\n\r\n")[0].split(b" ")[1]
                connection.sendall(
                    b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
                )

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                open_now.append(1)
                threading.Thread(target=serve, args=[connection], daemon=True).start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    wrong: list[str] = []

    def work(number: int) -> None:
        for turn in range(requests):
            path = f"/{number}-{turn}"
            if ask(transport, url + path) != path.encode():
                with lock:
                    wrong.append(path)

    workers = [threading.Thread(target=work, args=[number]) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    acceptor.join()

    assert wrong == []
    assert len(open_now) <= threads


def test_what_is_only_said_beforehand_is_not_taken_for_the_answer(transport: KeptTransport) -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    before = b"HTTP/1.1 100 Continue\r\n\r\n" + early * 3 + b"HTTP/1.1 102 Processing\r\n\r\n"

    def act(connection: socket.socket, _: int) -> None:
        for _ in range(2):
            read_request(connection)
            connection.sendall(before + GOOD)

    with talking(act) as (url, accepted):
        answers = [ask(transport, url, "POST") for _ in range(2)]

    assert answers == [GOOD.partition(b"\r\n\r\n")[2]] * 2
    assert len(accepted) == 1


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1000,
        b"HTTP/1.1 103 Early Hints\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n" + GOOD,
    ],
    ids=["for ever", "with two meanings"],
)
def test_an_answer_that_never_comes_or_has_two_heads_is_none(
    transport: KeptTransport, head: bytes
) -> None:
    def act(connection: socket.socket, _: int) -> None:
        read_request(connection)
        connection.sendall(head)

    with talking(act) as (url, _), pytest.raises(httpx.RemoteProtocolError):
        ask(transport, url, "POST")


def test_bytes_of_a_header_that_are_no_ascii_spoil_no_answer(transport: KeptTransport) -> None:
    head = "HTTP/1.1 200 OK\r\nX-Served-By: Zürich\r\nContent-Length: 2\r\n\r\n{}"

    def act(connection: socket.socket, _: int) -> None:
        read_request(connection)
        connection.sendall(head.encode("latin-1"))

    with talking(act) as (url, _):
        assert ask(transport, url) == b"{}"
