"""What clients may take: calls and failures a second, threads, waiting places, memory, time.

Every number here is far above what a store and its providers send; see docs/security.md.
"""

import asyncio
import math
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from contextvars import copy_context
from ipaddress import IPv6Address, ip_address
from typing import TypeVar

from fastapi import HTTPException, Request
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fulfillment.clock import Clock
from fulfillment.web.errors import BAD_REQUEST, refusal
from fulfillment.web.together import Together

T = TypeVar("T")

#: A head must be there within this time, and so must a body.
READ_WITHIN_S = 10.0
MAX_HEAD_BYTES = 16 * 1024
MAX_HEADERS = 100
MAX_TARGET_BYTES = 8 * 1024
#: So much of a body that nobody wants is read and thrown away: to a client that is still sending,
#: a closed connection would hide the answer.
_DISCARD_BYTES = 8 * 1024 * 1024
#: To whom the connection ends with the answer, what is under way is read for as long after it.
_LINGER_S = 1.0
_MOST_KEYS = 10_000
_NO_SCRIPTS = "default-src 'none'; frame-ancestors 'none'"
#: For the page of the documentation, whose own script stands in it.
_SCRIPTS_OF_OURS = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; frame-ancestors 'none'"
)
_CLOSE = {"Connection": "close"}


class Buckets:
    """Token buckets by key. Beyond ten thousand keys the longest unused one is forgotten."""

    def __init__(self, clock: Clock, per_s: float, burst_s: float) -> None:
        self._clock = clock
        self._per_s = per_s
        self._most = per_s * burst_s
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str) -> float:
        """Take one; give 0, or after how many seconds there will be one."""
        now = self._clock.monotonic()
        level, at = self._levels.pop(key, (self._most, now))
        level = min(self._most, level + (now - at) * self._per_s)
        is_there = level >= 1
        self._levels[key] = (level - is_there, now)
        if len(self._levels) > _MOST_KEYS:
            self._levels.popitem(last=False)
        return 0.0 if is_there else (1 - level) / self._per_s


def too_many(wait_s: float, what: str) -> HTTPException:
    return HTTPException(429, f"too many {what}", {"Retry-After": str(max(1, math.ceil(wait_s)))})


def client_of(request: Request) -> str:
    """Name the client for counting: its address; of IPv6 the network, for one has many of them."""
    host = request.client.host if request.client else ""
    try:
        address = ip_address(host)
    except ValueError:
        return host[:64]
    if isinstance(address, IPv6Address) and not address.ipv4_mapped:
        return address.exploded[:19]
    return host


class Lane:
    """Threads, memory and time of one group of routes, so that no group can starve another.

    Whatever happens to the database, who comes in is answered within `within_s` seconds.
    """

    def __init__(
        self, threads: int, most_waiting: int, most_bytes: int = 0, *, within_s: float = 20.0
    ) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="lane")
        self._room = threading.Semaphore(threads + most_waiting)
        self._bytes_left = most_bytes
        self._within_s = within_s

    async def run(self, act: Callable[..., T], *args: object) -> T:
        """Run it in a thread of this lane.

        Raises HTTPException 503 where too many wait, or when it is not done in time. What has not
        begun by then never does; what has goes on by itself and keeps its thread.
        """
        if not self._room.acquire(blocking=False):
            raise self._busy()
        future = self._pool.submit(copy_context().run, act, *args)
        future.add_done_callback(lambda _: self._room.release())
        return await self._in_time(asyncio.wrap_future(future))

    async def run_on_body(self, request: Request, limit: int, act: Callable[[bytes], T]) -> T:
        """Read the body, keeping at most `limit` bytes, and act on it in a thread.

        Raises HTTPException for a body that is too large, too slow or cut off, and where the
        bodies under way already take all the memory there is for them.
        """
        async with self._body(request, limit) as body:
            return await self.run(act, body)

    async def run_together(self, request: Request, limit: int, together: Together[bytes, T]) -> T:
        """Do as `run_on_body`, with the bodies of those that come at the same time as one."""
        async with self._body(request, limit) as body:
            if not self._room.acquire(blocking=False):
                raise self._busy()
            try:
                return await self._in_time(together(body))
            finally:
                self._room.release()

    def together(
        self, act: Callable[[Sequence[bytes]], Sequence[T]], most: int
    ) -> Together[bytes, T]:
        """Have `act` called in a thread of this lane, with up to `most` bodies."""
        return Together(act, most, self._pool)

    async def _in_time(self, answer: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self._within_s) as deadline:
                return await answer
        except TimeoutError:
            if not deadline.expired():
                raise
            text = f"not done within {self._within_s:g} s; sending the same again is safe"
            raise HTTPException(503, text, {"Retry-After": "5"}) from None

    @asynccontextmanager
    async def _body(self, request: Request, limit: int) -> AsyncIterator[bytes]:
        body = bytearray()
        try:
            await self._read(request, limit, body)
            yield bytes(body)
        finally:
            self._bytes_left += len(body)

    async def _read(self, request: Request, limit: int, body: bytearray) -> None:
        if int(request.headers.get("content-length", 0)) > limit:
            raise self._too_large(limit)
        try:
            async with asyncio.timeout(READ_WITHIN_S):
                async for chunk in request.stream():
                    if len(body) + len(chunk) > limit:
                        raise self._too_large(limit)
                    if len(chunk) > self._bytes_left:
                        raise self._busy()
                    self._bytes_left -= len(chunk)
                    body += chunk
        except ClientDisconnect:
            raise HTTPException(400, "the body did not arrive") from None
        except TimeoutError:
            text = f"expected the whole body within {READ_WITHIN_S:g} s"
            raise HTTPException(408, text, _CLOSE) from None

    @staticmethod
    def _too_large(limit: int) -> HTTPException:
        return HTTPException(413, f"expected at most {limit} bytes", _CLOSE)

    @staticmethod
    def _busy() -> HTTPException:
        return HTTPException(503, "too much waits already; send it again", {"Retry-After": "1"})


class Bounded:
    """ASGI middleware: bounds heads, cuts off bodies that nobody reads, sets safe headers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(scope, receive)
        policy = _SCRIPTS_OF_OURS if scope["path"].startswith("/docs") else _NO_SCRIPTS
        is_last = False

        async def answering(message: Message) -> None:
            nonlocal is_last
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("X-Content-Type-Options", "nosniff")
                headers.setdefault("Cache-Control", "no-store")
                headers.setdefault("Content-Security-Policy", policy)
                is_last = body.is_uninvited or headers.get("Connection") == "close"
                if is_last or not await body.is_discarded():
                    headers["Connection"] = "close"
            elif is_last and not message.get("more_body", False):
                await send({**message, "more_body": True})
                await body.is_discarded(_LINGER_S)
                message = {"type": "http.response.body"}
            await send(message)

        app = _refusal_of_head(scope) or self._app
        await app(scope, body.receive, answering)


def _refusal_of_head(scope: Scope) -> Response | None:
    """Give the answer to a head that is refused, whatever it asks for."""
    too_large = "the head is too large"
    if len(scope["raw_path"]) + len(scope["query_string"]) > MAX_TARGET_BYTES:
        return refusal(414, too_large, headers=_CLOSE)
    if b"%2f" in scope["raw_path"].lower():
        # A proxy's rules by path do not know it by this name.
        return refusal(404, "expected a path without encoded slashes")
    headers = scope["headers"]
    hosts = sum(name == b"host" for name, _ in headers)
    if hosts > 1 or (hosts == 0 and scope["http_version"] == "1.1"):
        return refusal(400, "expected one Host", headers=_CLOSE, code=BAD_REQUEST)
    size = sum(len(name) + len(value) for name, value in headers)
    if len(headers) > MAX_HEADERS or size > MAX_HEAD_BYTES:
        return refusal(431, too_large, headers=_CLOSE)
    if {b"content-length", b"transfer-encoding"} <= {name for name, _ in headers}:
        # A proxy may read it the other way, and let one client's bytes begin another's request.
        text = "expected one length of the body, found two"
        return refusal(400, text, headers=_CLOSE, code=BAD_REQUEST)
    codings = [value.lower() for name, value in headers if name == b"transfer-encoding"]
    if codings not in ([], [b"chunked"]):
        return refusal(501, "expected no transfer coding but chunked", headers=_CLOSE)
    return None


class _Body:
    """A request's body, and how much of it has come."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        names = {name for name, value in scope["headers"] if value != b"0"}
        self._is_due = bool(names & {b"content-length", b"transfer-encoding"})
        #: The client waits to be told that it may send, which it is when its body is asked for.
        self.is_uninvited = self._is_due and b"expect" in names
        self._receive = receive
        self._until = asyncio.get_running_loop().time() + READ_WITHIN_S

    async def receive(self) -> Message:
        self.is_uninvited = False
        message = await self._receive()
        self._is_due = self._is_due and message.get("more_body", False)
        return message

    async def is_discarded(self, idle_s: float | None = None) -> bool:
        """Throw away what is still to come; say whether that was all, in time and not too much.

        Where `idle_s` is given, wait no longer than that for each piece.
        """
        left = _DISCARD_BYTES
        try:
            async with asyncio.timeout_at(self._until):
                while self._is_due and left > 0:
                    async with asyncio.timeout(idle_s):
                        left -= len((await self.receive()).get("body", b""))
        except TimeoutError:
            pass
        return not self._is_due
