"""A loopback TCP proxy that spoils connections on request, as Toxiproxy does, seeded.

Besides what it does to bytes it knows where a PostgreSQL or HTTP request ends: `lose_answers` lets
a request be done and its answer never arrive.
"""

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

T = TypeVar("T")

HOST = "127.0.0.1"
_CHUNK = 64 * 1024
#: `SO_LINGER` on, zero seconds: closing sends a reset and forgets what was not sent.
_RESET = struct.pack("ii", 1, 0)
_STARTUP_CODES = {196608, 196610}  # protocols 3.0 and 3.2; other codes only ask for encryption


class Framer(Protocol):
    """Cuts what a client sends into whole requests; a part of one is kept back."""

    def feed(self, data: bytes) -> Iterator[bytes]: ...


class PostgresMessages:
    """The messages of a PostgreSQL client that does not encrypt."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._is_started = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        self._held += data
        while (size := self._size()) and len(self._held) >= size:
            message = bytes(self._held[:size])
            del self._held[:size]
            if not self._is_started:
                self._is_started = int.from_bytes(message[4:8], "big") in _STARTUP_CODES
            yield message

    def _size(self) -> int:
        kind = 1 if self._is_started else 0  # only messages after the first have a letter
        if len(self._held) < kind + 4:
            return 0
        return kind + int.from_bytes(self._held[kind : kind + 4], "big")


class HTTPRequests:
    """The requests of an HTTP client that tells the length of each body."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        self._held += data
        while (end := self._held.find(b"\r\n\r\n")) >= 0:
            size = end + 4 + self._body_size(end)
            if len(self._held) < size:
                return
            yield bytes(self._held[:size])
            del self._held[:size]

    def _body_size(self, end: int) -> int:
        for line in bytes(self._held[:end]).split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                return int(value)
        return 0


def is_commit(message: bytes) -> bool:
    """Say whether a PostgreSQL message commits."""
    return message[:1] == b"Q" and message[5:].rstrip(b"\0; ").upper() == b"COMMIT"


def is_post(request: bytes) -> bool:
    """Say whether an HTTP request may do something."""
    return request.startswith(b"POST ")


@dataclass
class Flow:
    """What happens to the bytes of one direction; may be changed at any time."""

    latency_s: float = 0.0
    jitter_s: float = 0.0
    #: Nothing passes, and nobody is told; what waits goes on when this ends.
    is_stalled: bool = False
    bytes_per_s: float | None = None
    #: Pieces of 1 to so many bytes, each sent by itself.
    slice_bytes: int | None = None
    #: After so many bytes of a connection it is closed.
    limit_bytes: int | None = None
    #: So long the other side's close is kept from this one.
    close_delay_s: float = 0.0


@dataclass(eq=False)
class _Link:
    """One connection through the proxy: the client's side and the server's."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    framer: Framer | None
    passed: dict[str, int] = field(default_factory=lambda: {"requests": 0, "answers": 0})
    #: The answer that is next is to be lost.
    is_doomed: bool = False
    #: Nothing passes any more, and neither side is told.
    is_swallowed: bool = False

    def reset(self) -> None:
        for writer in (self.client, self.server):
            end = writer.get_extra_info("socket")
            with suppress(OSError):  # it is closed already
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()

    def close(self) -> None:
        for writer in (self.client, self.server):
            writer.close()


class Proxy:
    """Listens on a port of its own and passes on to `upstream`, a port or a unix socket's path.

    Use it in a `with` block. `requests` and `answers` say what happens to either direction.
    """

    def __init__(
        self,
        upstream: int | Path,
        *,
        seed: int = 0,
        framer: Callable[[], Framer] | None = None,
    ) -> None:
        self.requests, self.answers = Flow(), Flow()
        self.port = 0
        #: How many answers were lost, and how many connections were made.
        self.lost_answers = self.connections = 0
        self._upstream = upstream
        self._framer = framer
        self._source = random.Random(seed)
        self._doom: Callable[[bytes], bool] = lambda request: False
        self._chance = 0.0
        self._links: set[_Link] = set()
        self._loop: asyncio.AbstractEventLoop
        self._thread: threading.Thread
        self._server: asyncio.Server | None = None

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def open_links(self) -> int:
        return len(self._links)

    def up(self) -> None:
        """Listen, at the same port as before."""
        self._do(self._listen())

    def down(self) -> None:
        """Refuse connections and reset those that are open."""
        self._do(self._refuse())
        self.reset()

    def reset(self) -> int:
        """Reset every open connection; give how many."""
        return self._do(self._reset())

    def swallow(self) -> int:
        """Be a black hole for the connections that are open, for good; give how many."""
        for link in (links := list(self._links)):
            link.is_swallowed = True
        return len(links)

    @contextmanager
    def stalled(self) -> Iterator[None]:
        """Be a black hole in both directions for as long as the block lasts."""
        self.requests.is_stalled = self.answers.is_stalled = True
        try:
            yield
        finally:
            self.requests.is_stalled = self.answers.is_stalled = False

    @contextmanager
    def lose_answers(self, to: Callable[[bytes], bool], chance: float = 1.0) -> Iterator[None]:
        """Forward such a request whole, let it be done, and reset instead of passing the answer."""
        assert self._framer is not None, "without a framer it is not known where a request ends"
        self._doom, self._chance = to, chance
        try:
            yield
        finally:
            self._chance = 0.0

    # In the loop's thread

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, HOST, self.port, backlog=512)
            self.port = self._server.sockets[0].getsockname()[1]

    async def _refuse(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _reset(self) -> int:
        links = list(self._links)
        for link in links:
            link.reset()
        return len(links)

    async def _end(self) -> None:
        await self._refuse()
        await self._reset()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            answers, server = await self._connect()
        except OSError:  # as the server itself would: there is nobody
            client.transport.abort()
            return
        link = _Link(client, server, self._framer() if self._framer else None)
        self._links.add(link)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(link, reader, server, "requests"))
                group.create_task(self._pump(link, answers, client, "answers"))
        except* (OSError, asyncio.CancelledError):
            link.reset()
        finally:
            self._links.discard(link)
            link.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self._upstream, Path):
            return await asyncio.open_unix_connection(str(self._upstream))
        return await asyncio.open_connection(HOST, self._upstream)

    async def _pump(
        self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str
    ) -> None:
        """Pass one direction on until its sender closes, or the link is cut."""
        while data := await reader.read(_CHUNK):
            flow: Flow = getattr(self, way)
            await self._hold_back(flow)
            while link.is_swallowed:
                await asyncio.sleep(0.1)
            if way == "answers" and link.is_doomed:
                self.lost_answers += 1
                raise ConnectionResetError
            for request in self._framed(link, data, way):
                await self._pass(link, request, writer, way)
        await asyncio.sleep(getattr(self, way).close_delay_s)
        if writer.can_write_eof():
            writer.write_eof()

    def _framed(self, link: _Link, data: bytes, way: str) -> Iterator[bytes]:
        if link.framer is None or way == "answers":
            yield data
            return
        for request in link.framer.feed(data):
            if self._chance and self._doom(request) and self._source.random() < self._chance:
                link.is_doomed = True
            yield request

    async def _hold_back(self, flow: Flow) -> None:
        if flow.latency_s or flow.jitter_s:
            await asyncio.sleep(flow.latency_s + flow.jitter_s * self._source.random())
        while flow.is_stalled:
            await asyncio.sleep(0.02)

    async def _pass(self, link: _Link, data: bytes, writer: asyncio.StreamWriter, way: str) -> None:
        flow: Flow = getattr(self, way)
        while data:
            size = self._source.randint(1, flow.slice_bytes) if flow.slice_bytes else len(data)
            if flow.limit_bytes is not None:
                size = max(min(size, flow.limit_bytes - link.passed[way]), 0)
            piece, data = data[:size], data[size:]
            link.passed[way] += len(piece)
            if flow.bytes_per_s:
                await asyncio.sleep(len(piece) / flow.bytes_per_s)
            writer.write(piece)
            await writer.drain()
            if flow.limit_bytes is not None and link.passed[way] >= flow.limit_bytes:
                link.close()
                return
