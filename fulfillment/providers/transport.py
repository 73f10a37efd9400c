"""httpx's transport for requests that spend money: plain HTTP/1.1 on kept connections.

It reads with the standard library's parser on sockets that know the request's total deadline. It
never sends anything twice: a kept connection that turns out closed is the caller's unknown outcome.
"""

import http
import http.client
import io
import select
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import TYPE_CHECKING, cast

import httpx

from fulfillment.crash import crash_point

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

KEPT_CONNECTIONS = 64
# Under the 5 s after which Node and uvicorn close: a request that races such a close is unknown.
KEEP_ALIVE_S = 4.0
_PIECE = 65_536
#: So many interim answers may come before the one that counts.
_MOST_INTERIM = 16
_FORBIDDEN = (b"\r", b"\n", b"\0")

TimeLeft = Callable[[], float]


@cache
def _tls() -> ssl.SSLContext:
    """Read the certificates of the authorities once a process, when first needed: it is slow."""
    return httpx.create_ssl_context(trust_env=False)


class _Wire(io.RawIOBase):
    """A socket to read from until the present request's time is over."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.time_left: TimeLeft = lambda: 0.0
        self.is_over = False

    def wait_at_most(self) -> None:
        left = self.time_left()
        if left <= 0:
            raise TimeoutError("the request's total time is over")
        self.socket.settimeout(left)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        self.wait_at_most()
        size = self.socket.recv_into(cast("bytearray", buffer))
        self.is_over = size == 0
        return size


class _Reader(io.BufferedReader):
    """What is read ahead belongs to the connection: an answer that is over does not close it."""

    def close(self) -> None:
        pass


class _Connection:
    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._wire = _Wire(connection)
        self._reader = _Reader(self._wire, _PIECE)
        self._idle_since = 0.0

    def begin(self, time_left: TimeLeft) -> None:
        self._wire.time_left = time_left

    def send(self, data: bytes) -> None:
        self._wire.wait_at_most()
        self._socket.sendall(data)

    @property
    def is_over(self) -> bool:
        """Say whether the peer has closed its side."""
        return self._wire.is_over

    def makefile(self, mode: str) -> _Reader:
        """Give `http.client.HTTPResponse` what it reads from."""
        del mode
        return self._reader

    def rest(self) -> None:
        self._idle_since = time.monotonic()

    @property
    def is_usable(self) -> bool:
        """Say whether the connection rests: neither closed nor with bytes that nobody asked for."""
        if time.monotonic() - self._idle_since >= KEEP_ALIVE_S:
            return False
        if isinstance(self._socket, ssl.SSLSocket) and self._socket.pending():
            return False
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return not poll.poll(0) and not self._has_read_ahead()

    def _has_read_ahead(self) -> bool:
        self._wire.time_left = lambda: 0.0  # so that only what is in the buffer can be looked at
        try:
            return bool(self._reader.peek(1))
        except TimeoutError:
            return False

    def close(self) -> None:
        self._socket.close()


class KeptTransport(httpx.BaseTransport):
    """Connections to one origin or several, shared by threads.

    A request's `extensions` may hold `timeout` as httpx writes it, of which only `connect` counts,
    `time_left`, which says how many seconds the whole request has yet, `piece`: how many bytes
    of the body to give at once, and `before_send`, which is called when the connection stands
    and is told whether it stood before.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: dict[tuple[str, str, int], deque[_Connection]] = {}

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request, read the answer's head. Raises httpx's exceptions.

        Of these ConnectError, ConnectTimeout and UnsupportedProtocol say that nothing was sent.
        """
        time_left: TimeLeft = request.extensions.get("time_left", lambda: 60.0)
        data = _written(request)
        url = request.url
        if url.scheme not in ("http", "https"):
            raise httpx.UnsupportedProtocol("expected an http or https address")
        origin = (url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80))
        kept = self._kept(origin)
        connection = kept or self._connect(origin, request, time_left)
        try:
            request.extensions.get("before_send", _go)(is_at_once=kept is not None)
            with _translated(httpx.WriteTimeout, httpx.WriteError):
                connection.begin(time_left)
                connection.send(data)
            crash_point("http.sent")
            with _translated(httpx.ReadTimeout, httpx.ReadError):
                answer = _read_head(connection, request.method)
        except BaseException:
            connection.close()
            raise
        piece = request.extensions.get("piece", _PIECE)
        body = _Body(answer, connection, partial(self._keep, origin, connection), piece)
        # As bytes, as they came: httpx takes text in headers for ASCII.
        headers = [(n.encode("latin-1"), v.encode("latin-1")) for n, v in answer.getheaders()]
        return httpx.Response(answer.status, headers=headers, stream=body)

    def _kept(self, origin: tuple[str, str, int]) -> _Connection | None:
        while True:
            with self._lock:
                idle = self._idle.get(origin)
                if not idle:
                    return None
                connection = idle.pop()
            if connection.is_usable:
                return connection
            connection.close()

    def _keep(self, origin: tuple[str, str, int], connection: _Connection) -> None:
        connection.rest()
        with self._lock:
            idle = self._idle.setdefault(origin, deque())
            idle.append(connection)
            surplus = idle.popleft() if len(idle) > KEPT_CONNECTIONS else None
        if surplus is not None:
            surplus.close()

    def _connect(
        self, origin: tuple[str, str, int], request: httpx.Request, time_left: TimeLeft
    ) -> _Connection:
        scheme, host, port = origin
        longest = request.extensions.get("timeout", {}).get("connect") or 60.0
        connection: socket.socket | None = None
        try:
            with _translated(httpx.ConnectTimeout, httpx.ConnectError):
                left = min(longest, time_left())
                if left <= 0:
                    raise TimeoutError
                connection = socket.create_connection((host, port), left)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if scheme == "https":
                    connection.settimeout(max(min(longest, time_left()), 0.001))
                    connection = _tls().wrap_socket(connection, server_hostname=host)
                return _Connection(connection)
        except BaseException:
            if connection is not None:
                connection.close()
            raise

    def close(self) -> None:
        with self._lock:
            idle = [connection for kept in self._idle.values() for connection in kept]
            self._idle.clear()
        for connection in idle:
            connection.close()


class _Body(httpx.SyncByteStream):
    """An answer's body; once it is read to its end the connection may be used again."""

    def __init__(
        self,
        answer: http.client.HTTPResponse,
        connection: _Connection,
        keep: Callable[[], None],
        piece: int,
    ) -> None:
        self._answer = answer
        self._connection = connection
        self._keep = keep
        self._piece = piece
        self._is_whole = False

    def __iter__(self) -> Iterator[bytes]:
        answer = self._answer
        while not answer.isclosed():
            with _translated(httpx.ReadTimeout, httpx.ReadError):
                piece = answer.read(self._piece)
                if not piece and answer.length:
                    raise http.client.IncompleteRead(b"", answer.length)
            if piece:
                yield piece
        self._is_whole = True

    def close(self) -> None:
        if self._is_whole and not self._answer.will_close:
            self._keep()
        else:
            self._connection.close()


def _go(*, is_at_once: bool) -> None:
    """Let any request leave."""


def _written(request: httpx.Request) -> bytes:
    """Write the request out. Raises httpx.LocalProtocolError where a header would be two."""
    head = [request.method.encode() + b" " + request.url.raw_path + b" HTTP/1.1"]
    for name, value in request.headers.raw:
        if any(byte in name or byte in value for byte in _FORBIDDEN):
            raise httpx.LocalProtocolError("expected a header of one line")
        head.append(name + b": " + value)
    return b"\r\n".join([*head, b"", b""]) + request.read()


def _read_head(connection: _Connection, method: str) -> http.client.HTTPResponse:
    """Read the head of the answer behind what is only said of it beforehand (RFC 9110, 15.2)."""
    for _ in range(_MOST_INTERIM):
        answer = http.client.HTTPResponse(cast("socket.socket", connection), method=method)
        answer.begin()
        if connection.is_over:  # the parser takes a head that is cut off for a whole one
            raise http.client.HTTPException("expected a whole head")
        _check_framing(answer)
        if not 100 < answer.status < 200 or answer.status == http.HTTPStatus.SWITCHING_PROTOCOLS:
            return answer
    raise http.client.HTTPException("expected an answer")


def _check_framing(answer: http.client.HTTPResponse) -> None:
    """Refuse a head of which two readers could see two ends of the body."""
    lengths = answer.headers.get_all("content-length", [])
    encodings = answer.headers.get_all("transfer-encoding", [])
    is_odd = (
        answer.headers.defects
        or len(set(lengths)) > 1
        or not all(each.isascii() and each.isdigit() for each in lengths)
        or (encodings and (lengths or [e.strip().lower() for e in encodings] != ["chunked"]))
    )
    if is_odd:
        raise http.client.HTTPException("expected a head with one meaning")


@contextmanager
def _translated(timeout: type[httpx.HTTPError], broken: type[httpx.HTTPError]) -> Iterator[None]:
    """Tell of foreign exceptions in httpx's words."""
    try:
        yield
    except TimeoutError as error:
        raise timeout("the time is over") from error
    except http.client.HTTPException as error:
        raise httpx.RemoteProtocolError(type(error).__name__) from error
    except (OSError, UnicodeError) as error:
        raise broken(type(error).__name__) from error
