"""The wire below web: uvicorn's protocol, which by itself waits for ever for a client."""

import asyncio
import socket
import struct
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fulfillment.web import limits
from fulfillment.web.errors import BAD_REQUEST, refusal

#: A piece of an answer (64 kB at the most) must be taken within this time.
TAKEN_WITHIN_S = 10.0
#: Beyond this a head is not read on; `limits.Bounded` refuses smaller ones, which it can answer.
_LARGEST_HEAD = 4 * limits.MAX_HEAD_BYTES
#: So much may come that is neither head nor body: trailers, a chunk's extensions, empty lines.
_MOST_BESIDE = limits.MAX_HEAD_BYTES
#: So many requests of one connection wait while one before them is answered.
_MOST_PIPELINED = 32
_CLOSE = {"Connection": "close"}


class _InOnePiece:
    """Sends what is written in one turn of the loop at once: uvicorn writes head and body apart.

    Each write is a call of the system that wakes the client, who cannot do anything with half.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._written: list[bytes] = []
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        if not self._written:
            self._loop.call_soon(self._send)
        self._written.append(data)

    def close(self) -> None:
        self._send()
        self._transport.close()

    def _send(self) -> None:
        if self._written:
            data = b"".join(self._written)
            self._written.clear()
            self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class _TooManyAtOnce(Exception):
    """A client asks on and on and does not wait for an answer."""


class Connection(HttpToolsProtocol):
    """Ends with a client that does not send its head, or does not take its answer, in time.

    Trailers are thrown away: a proxy has looked at the head, and what is proven stands there.
    """

    _deadline: asyncio.TimerHandle | None = None
    _taken_by: asyncio.TimerHandle | None = None
    _is_in_head = True
    #: What came since a head was complete or a piece of a body came; the parser may keep it.
    _unread_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast(asyncio.Transport, _InOnePiece(transport, self.loop)))
        # So that whatever the system does not take at once is told of by `pause_writing`.
        transport.set_write_buffer_limits(high=0)
        self._watch()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_in_head = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._is_in_head, self._unread_bytes = False, 0
        if len(self.pipeline) >= _MOST_PIPELINED:
            self.transport.close()
            raise _TooManyAtOnce  # the parser reads no more of what came with it
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unread_bytes = 0
        super().on_body(body)

    def data_received(self, data: bytes) -> None:
        self._unread_bytes += len(data)
        idle = self.timeout_keep_alive_task
        super().data_received(data)
        if self._is_in_head:
            self._watch()
        else:
            self._unwatch()
            if idle is not None and self.cycle.response_complete:  # an empty line is no request
                handler = self.timeout_keep_alive_handler
                self.timeout_keep_alive_task = self.loop.call_at(idle.when(), handler)
        most = _LARGEST_HEAD if self._is_in_head else _MOST_BESIDE
        if self._unread_bytes <= most or self.transport.is_closing():
            return
        if self._is_in_head:
            self._refuse(431, "Request Header Fields Too Large", "the head is too large")
        else:  # an answer may have begun
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        self._is_taken()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP in the one form that refusals have."""
        if self.transport.is_closing():
            return
        self._refuse(400, "Bad Request", "expected an HTTP/1.1 request", BAD_REQUEST)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._taken_by = self.loop.call_later(TAKEN_WITHIN_S, self._give_up)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._is_taken()

    def _refuse(self, status: int, phrase: str, message: str, code: str | None = None) -> None:
        answer = refusal(status, message, headers=_CLOSE, code=code)
        head = [f"HTTP/1.1 {status} {phrase}".encode()]
        head += [name + b": " + value for name, value in answer.raw_headers]
        self.transport.write(b"\r\n".join([*head, b"", bytes(answer.body)]))
        self.transport.close()

    def _give_up(self) -> None:
        """Close with a reset: else the system would go on keeping what nobody takes."""
        connection = self.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def _is_taken(self) -> None:
        if self._taken_by is not None:
            self._taken_by.cancel()
            self._taken_by = None

    def _watch(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(limits.READ_WITHIN_S, self.transport.abort)

    def _unwatch(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
