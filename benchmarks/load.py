"""A small HTTP load generator: requests are written beforehand, answers are only counted.

An HTTP library's own CPU would be taken from the server's on a small machine.
"""

import selectors
import socket
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context


def request(host: str, path: str, headers: Mapping[str, str], body: bytes) -> bytes:
    """Write a POST with keep-alive."""
    lines = [f"POST {path} HTTP/1.1", f"host: {host}", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


class Connection:
    """One kept connection; used by one thread at a time."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def post(self, message: bytes) -> None:
        """Send one request and read its whole answer. Raises RuntimeError unless it is a 2xx."""
        self.send(message)
        self.take_answer()

    def send(self, message: bytes) -> None:
        """Send one request, whose answer is to be taken before the next."""
        self._socket.sendall(message)

    def take_answer(self) -> None:
        """Read one whole answer. Raises RuntimeError unless it is a 2xx."""
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._receive()
        head, _, body = data.partition(b"\r\n\r\n")
        if head[9:10] != b"2":
            raise RuntimeError(f"expected 2xx, found {(head[:40] + body[:200])!r}")
        start = head.lower().index(b"content-length:") + len(b"content-length:")
        left = int(head[start:].partition(b"\r\n")[0]) - len(body)
        while left > 0:
            left -= len(self._receive())

    def _receive(self) -> bytes:
        data = self._socket.recv(1 << 18)
        if not data:
            raise RuntimeError("the server closed the connection")
        return data

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()


def post_all(port: int, messages: Sequence[bytes], connections: int) -> float:
    """Post all messages over so many connections; give requests a second.

    One thread serves them all: several would take turns, which costs as much as what they do.
    """
    waiting = iter(messages)
    with selectors.DefaultSelector() as selector:
        opened = [Connection(port) for _ in range(connections)]
        began = time.perf_counter()
        for connection, message in zip(opened, waiting, strict=False):
            selector.register(connection, selectors.EVENT_READ, connection)
            connection.send(message)
        while selector.get_map():
            for key, _ in selector.select():
                key.data.take_answer()
                if following := next(waiting, None):
                    key.data.send(following)
                else:
                    selector.unregister(key.fileobj)
        took_s = time.perf_counter() - began
    for connection in opened:
        connection.close()
    return len(messages) / took_s


def post_at_rate(port: int, messages: Sequence[bytes], per_s: float) -> list[float]:
    """Post at a fixed rate, whatever the server does; give the seconds that each took.

    Counted from when it was due, so that a server that stalls is charged for those that wait. It
    is a process of its own: what else the caller's threads do meanwhile would be charged, too.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as executor:
        executor.submit(time.monotonic).result()  # started, before anything is due
        return executor.submit(_post_at_rate, port, messages, per_s).result()


def _post_at_rate(port: int, messages: Sequence[bytes], per_s: float) -> list[float]:
    found: list[float] = []
    idle: list[Connection] = []
    due_at: dict[Connection, float] = {}
    began = time.perf_counter()
    with selectors.DefaultSelector() as selector:
        for place, message in enumerate(messages):
            due = began + place / per_s
            while (wait_s := due - time.perf_counter()) > 0:
                _take_answers(selector.select(wait_s), due_at, idle, found)
            connection = idle.pop() if idle else Connection(port)
            if connection.fileno() not in selector.get_map():
                selector.register(connection, selectors.EVENT_READ, connection)
            due_at[connection] = due
            connection.send(message)
        while due_at:
            _take_answers(selector.select(), due_at, idle, found)
        for connection in idle:
            connection.close()
    return found


def _take_answers(
    ready: list[tuple[selectors.SelectorKey, int]],
    due_at: dict[Connection, float],
    idle: list[Connection],
    found: list[float],
) -> None:
    for key, _ in ready:
        connection = key.data
        connection.take_answer()
        found.append(time.perf_counter() - due_at.pop(connection))
        idle.append(connection)
