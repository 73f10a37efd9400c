"""The proxy does to connections what it is told to, and nothing else."""

import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from sqlalchemy.engine import make_url

from tests.faults.proxy import (
    HOST,
    HTTPRequests,
    PostgresMessages,
    Proxy,
    is_commit,
    is_post,
)
from tests.support import Simulator, until

MESSAGE = bytes(range(256)) * 400


class _Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while data := self.request.recv(65536):
            self.request.sendall(data)


class _EchoServer(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: connections are reset on purpose."""


@pytest.fixture(scope="module")
def echo() -> Iterator[int]:
    with _EchoServer((HOST, 0), _Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.fixture
def proxy(echo: int) -> Iterator[Proxy]:
    with Proxy(echo, seed=7) as made:
        yield made


def connect(proxy: Proxy, timeout_s: float = 10.0) -> socket.socket:
    return socket.create_connection((HOST, proxy.port), timeout=timeout_s)


def ask(end: socket.socket, message: bytes = b"hello") -> bytes:
    """Send a message and read as much; less where the other side closes."""
    threading.Thread(target=end.sendall, args=[message], daemon=True).start()
    return read(end, len(message))


def read(end: socket.socket, size: int) -> bytes:
    answer = b""
    while len(answer) < size and (data := end.recv(65536)):
        answer += data
    return answer


def test_without_orders_every_byte_passes_in_its_place(proxy: Proxy) -> None:
    with connect(proxy) as one, connect(proxy) as other:
        assert ask(one, MESSAGE) == MESSAGE
        assert ask(other) == b"hello"

    assert proxy.connections == 2
    until(lambda: proxy.open_links == 0)


def test_slices_reorder_nothing(proxy: Proxy) -> None:
    proxy.requests.slice_bytes = proxy.answers.slice_bytes = 1000

    with connect(proxy) as end:
        assert ask(end, MESSAGE) == MESSAGE


def test_latency_and_bandwidth_cost_their_time(proxy: Proxy) -> None:
    proxy.requests.latency_s = 0.15
    proxy.answers.bytes_per_s = 20
    began = time.monotonic()

    with connect(proxy) as end:
        assert ask(end) == b"hello"
        assert time.monotonic() - began >= 0.15
        ask(end)

    assert time.monotonic() - began >= 0.15 * 2 + 5 / 20


def test_a_stalled_proxy_is_a_black_hole_and_goes_on_where_it_was(proxy: Proxy) -> None:
    with connect(proxy, 0.2) as end:
        with proxy.stalled():
            end.sendall(b"hello")
            with pytest.raises(TimeoutError):
                end.recv(5)
            with connect(proxy, 0.2) as other, pytest.raises(TimeoutError):
                ask(other)
        end.settimeout(5)
        assert read(end, 5) == b"hello"


def test_a_swallowed_connection_stays_silent_and_new_ones_do_not(proxy: Proxy) -> None:
    with connect(proxy, 0.3) as end:
        ask(end)
        assert proxy.swallow() == 1
        with pytest.raises(TimeoutError):
            ask(end)

        with connect(proxy) as other:
            assert ask(other) == b"hello"


def test_a_limit_lets_so_many_bytes_through_and_closes(proxy: Proxy) -> None:
    proxy.answers.limit_bytes = 1234

    with connect(proxy) as end:
        assert ask(end, MESSAGE) == MESSAGE[:1234]


def test_reset_connections_are_reset_and_others_come_in(proxy: Proxy) -> None:
    with connect(proxy) as end:
        ask(end)
        assert proxy.reset() == 1
        with pytest.raises(ConnectionResetError):
            end.recv(5)

    with connect(proxy) as end:
        assert ask(end) == b"hello"


def test_a_proxy_that_is_down_refuses_until_it_is_up_at_the_same_port(proxy: Proxy) -> None:
    port = proxy.port

    proxy.down()
    with pytest.raises(ConnectionRefusedError):
        connect(proxy)
    proxy.up()

    with connect(proxy) as end:
        assert ask(end) == b"hello"
    assert proxy.port == port


def test_a_close_is_kept_back_for_as_long_as_was_said(proxy: Proxy) -> None:
    proxy.answers.close_delay_s = 0.2

    with connect(proxy) as end:
        ask(end)
        end.shutdown(socket.SHUT_WR)
        began = time.monotonic()
        assert end.recv(1) == b""

    assert time.monotonic() - began >= 0.2


def test_the_same_seed_loses_the_same_answers(echo: int) -> None:
    request = b"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n"

    def answered(seed: int) -> list[bool]:
        found = []
        with Proxy(echo, seed=seed, framer=HTTPRequests) as proxy:
            with proxy.lose_answers(is_post, chance=0.5):
                for _ in range(12):
                    with connect(proxy) as end, suppress(ConnectionResetError):
                        found.append(False)
                        found[-1] = ask(end, request) == request
            assert proxy.lost_answers == found.count(False)
        return found

    assert answered(3) == answered(3)
    assert answered(3) != answered(4)


@pytest.mark.parametrize("framer", [PostgresMessages, HTTPRequests])
def test_a_request_in_pieces_is_the_request(framer: Any) -> None:
    requests = {
        PostgresMessages: [
            (8).to_bytes(4, "big") + (80877103).to_bytes(4, "big"),
            (11).to_bytes(4, "big") + (196608).to_bytes(4, "big") + b"a\0\0",
            b"Q" + (11).to_bytes(4, "big") + b"COMMIT\0",
            b"X" + (4).to_bytes(4, "big"),
        ],
        HTTPRequests: [
            b'POST /v1/orders HTTP/1.1\r\nContent-Length: 11\r\n\r\n{"a": true}',
            b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        ],
    }[framer]
    whole = b"".join(requests)

    for size in (1, 2, 3, 7, len(whole)):
        one = framer()
        pieces = (whole[start : start + size] for start in range(0, len(whole), size))
        assert [request for piece in pieces for request in one.feed(piece)] == requests
    assert [is_commit(request) or is_post(request) for request in requests].count(True) == 1


@pytest.fixture
def postgres(database_url: str) -> Iterator[tuple[Proxy, str]]:
    """Give a proxy in front of the database, and its address through it."""
    url = make_url(database_url).set(drivername="postgresql")
    host, port = url.query.get("host", url.host), url.query.get("port", url.port)
    upstream = Path(f"{host}/.s.PGSQL.{port}") if str(host).startswith("/") else int(str(port))
    with Proxy(upstream, framer=PostgresMessages) as made:
        through = url.set(host=HOST, port=made.port, query={})
        yield made, through.render_as_string(hide_password=False)


def test_a_commit_whose_answer_is_lost_is_done(postgres: tuple[Proxy, str]) -> None:
    proxy, url = postgres
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute("CREATE TABLE lost_commits (n int)")
        try:
            with psycopg.connect(url) as connection:
                connection.execute("INSERT INTO lost_commits VALUES (%s)", [1])
                with proxy.lose_answers(is_commit), pytest.raises(psycopg.OperationalError):
                    connection.commit()

            assert admin.execute("SELECT n FROM lost_commits").fetchall() == [(1,)]
            assert proxy.lost_answers == 1
        finally:
            admin.execute("DROP TABLE lost_commits")


def test_a_purchase_whose_answer_is_lost_is_made(simulator: Simulator) -> None:
    item = simulator.item()
    order = {
        "externalId": "lost-answer",
        "catalogItemId": item["id"],
        "expectedPrice": item["price"],
        "tradeUrl": simulator.checkout("delivered")["tradeUrl"],
    }
    headers = {"x-client-id": simulator.client_id, "x-client-secret": simulator.secret}

    with Proxy(httpx.URL(simulator.url).port or 0, framer=HTTPRequests) as proxy:
        url = f"http://{HOST}:{proxy.port}"
        with httpx.Client(base_url=url, headers=headers, trust_env=False) as client:
            with proxy.lose_answers(is_post), pytest.raises(httpx.TransportError):
                client.post("/v1/orders", json=order)
            found = client.get("/v1/orders/lost-answer")

    assert found.status_code == httpx.codes.OK
    assert proxy.lost_answers == 1
