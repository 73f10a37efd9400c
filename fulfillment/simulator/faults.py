"""What can be done to an HTTP answer: one table, used by scenarios for one order, by API for all."""

# ruff: noqa: E501 - a row of the table stays on one line

import asyncio
import gzip
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fulfillment.simulator.core import Market

HANG_S = 60.0
Handler = Callable[[Request], Awaitable[Response]]
Apply = Callable[[Request, Response, float], Awaitable[Response]]


def answer_json(status: int, content: Any, headers: dict[str, str] | None = None) -> Response:
    body = content if isinstance(content, bytes) else msgspec.json.encode(content)
    return Response(body, status, headers, media_type="application/json")


def problem(status: int, code: str, message: str, **headers: str) -> Response:
    """Answer with the simulator's own error body: the contract documents none."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return answer_json(status, {"error": {"code": code, "message": message}}, named)


async def cut(receive: Receive, *, flush: bool) -> None:
    """Close the client's connection. ASGI has no word for it, so uvicorn's transport is taken."""
    transport = getattr(getattr(receive, "__self__", None), "transport", None)
    if transport is None:
        raise RuntimeError("expected uvicorn's own receive, to cut the connection")
    if flush:
        transport.close()
    else:
        transport.abort()
    await _gone(receive)


async def _gone(receive: Receive) -> None:
    """Wait until the client's connection is closed."""
    while (await receive())["type"] != "http.disconnect":
        pass


class Torn(Response):
    """Promises the whole body, sends half of it, and hangs up."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = self.raw_headers
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        half = self.body[: len(self.body) // 2]
        await send({"type": "http.response.body", "body": bytes(half), "more_body": True})
        await cut(receive, flush=True)


class Dripping(Response):
    """Sends one byte every `pause_s` seconds."""

    pause_s = 1.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = self.raw_headers
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        gone = asyncio.ensure_future(_gone(receive))
        for byte in bytes(self.body):
            done, _ = await asyncio.wait({gone}, timeout=self.pause_s)
            if done:
                return
            await send({"type": "http.response.body", "body": bytes([byte]), "more_body": True})
        gone.cancel()
        await send({"type": "http.response.body", "body": b""})


async def _hang(request: Request, response: Response, seconds: float) -> Response:
    try:
        async with asyncio.timeout(seconds or HANG_S):
            await _gone(request.receive)
    except (TimeoutError, asyncio.CancelledError):
        # Cancelled means that the simulator is being stopped: end as quietly as after the time.
        await cut(request.receive, flush=False)
    return response


async def _drop(request: Request, response: Response, seconds: float) -> Response:
    await cut(request.receive, flush=False)
    return response


async def _latency(request: Request, response: Response, seconds: float) -> Response:
    await asyncio.sleep(seconds or 3.0)
    return response


async def _drip(request: Request, response: Response, seconds: float) -> Response:
    dripping = Dripping(response.body, response.status_code, media_type="application/json")
    dripping.pause_s = seconds or 1.0
    return dripping


async def _torn(request: Request, response: Response, seconds: float) -> Response:
    return Torn(response.body, response.status_code, media_type="application/json")


def _always(make: Callable[[], Response]) -> Apply:
    async def apply(request: Request, response: Response, seconds: float) -> Response:
        return make()

    return apply


def _body(change: Callable[[bytes], bytes], **headers: str) -> Apply:
    async def apply(request: Request, response: Response, seconds: float) -> Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return answer_json(response.status_code, change(bytes(response.body)), named)

    return apply


def _value(change: Callable[[Any], Any]) -> Apply:
    return _body(lambda body: msgspec.json.encode(change(msgspec.json.decode(body))))


def _items(change: Callable[[list[Any]], list[Any]]) -> Apply:
    def change_catalog(content: Any) -> Any:
        if "items" in content:
            return {**content, "items": change(content["items"])}
        if isinstance(content.get("data"), dict):
            return {**content, "data": change_catalog(content["data"])}
        return content

    return _value(change_catalog)


def _wrong_types(value: Any) -> Any:
    match value:
        case dict():
            return {key: _wrong_types(each) for key, each in value.items()}
        case list():
            return [_wrong_types(each) for each in value]
        case bool() | None:
            return value
        case int():
            return str(value)
        case str() if value.isdigit():
            return int(value) + 0.5
    return value


def _foreign(value: Any) -> Any:
    """Put another order's id, and another item, where the answer speaks of the asked one."""
    if isinstance(value, list):
        return [_foreign(each) for each in value]
    if not isinstance(value, dict):
        return value
    foreign = {key: _foreign(each) for key, each in value.items()}
    for key in ("externalId", "custom_id", "merchant_tx_id"):
        if key in foreign:
            foreign[key] = "somebody-elses-order"
    if isinstance(value.get("item"), dict):
        foreign["item"] = {**value["item"], "name": "Somebody Else's Skin"}
    return foreign


def _half_missing(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _half_missing(each) for key, each in list(value.items())[::2]}
    return [_half_missing(each) for each in value] if isinstance(value, list) else value


@dataclass(frozen=True, slots=True)
class Fault:
    """`needs_answer`: the request is handled first and its answer spoiled, else it never is."""

    description: str
    apply: Apply
    needs_answer: bool = False


# fmt: off
FAULTS = {
    "outage": Fault("503", _always(lambda: problem(503, "unavailable", "maintenance"))),
    "outage_retry_after": Fault("503 with Retry-After: 2", _always(lambda: problem(503, "unavailable", "maintenance", retry_after="2"))),
    "maintenance": Fault("503, or the provider's own word for maintenance (SkinsBack -9)", _always(lambda: problem(503, "unavailable", "maintenance"))),
    "market_disabled": Fault("503, or the provider's own word for a closed market (SkinsBack -6)", _always(lambda: problem(503, "unavailable", "market is off"))),
    "account_disabled": Fault("403, as for a closed account (SkinsBack -4)", _always(lambda: problem(403, "forbidden", "account is disabled"))),
    "gateway_timeout": Fault("504 with a page of HTML", _always(lambda: Response("<html><h1>504 Gateway Time-out</h1></html>", 504, media_type="text/html"))),
    "error": Fault("500 without JSON", _always(lambda: Response("internal error", 500))),
    "unauthorized": Fault("401, as with rotated credentials", _always(lambda: problem(401, "unauthorized", "credentials are inactive"))),
    "forbidden": Fault("403, as from a foreign address", _always(lambda: problem(403, "forbidden", "source address is not allowed"))),
    "not_found": Fault("404", _always(lambda: problem(404, "not_found", "nothing is here"))),
    "rate_limited": Fault("429 with Retry-After: 1", _always(lambda: problem(429, "rate_limited", "slow down", retry_after="1"))),
    "rate_limited_bare": Fault("429 without Retry-After", _always(lambda: problem(429, "rate_limited", "slow down"))),
    "redirect": Fault("307 to another host", _always(lambda: Response(b"", 307, {"location": "http://127.0.0.1:9/elsewhere"}))),
    "html_page": Fault("200 with an HTML page", _always(lambda: Response("<html><h1>We'll be back</h1></html>", media_type="text/html"))),
    "deep_json": Fault("200 with 100,000 nested objects", _always(lambda: answer_json(200, b'{"a":' * 100_000 + b"1" + b"}" * 100_000))),
    "bomb": Fault("200 with gzip that unpacks to 64 MB", _always(lambda: answer_json(200, gzip.compress(bytes(1 << 26), 1), {"content-encoding": "gzip"}))),
    "hang": Fault("no answer for `seconds` (60), then the connection is closed", _hang),
    "drop": Fault("connection closed without a byte", _drop),
    "latency": Fault("answered right, `seconds` (3) late", _latency, needs_answer=True),
    "slow_drip": Fault("answered right, a byte every `seconds` (1)", _drip, needs_answer=True),
    "torn": Fault("half of the promised body, then the connection is closed", _torn, needs_answer=True),
    "truncated": Fault("half of the body as if it were whole", _body(lambda body: body[: len(body) // 2]), needs_answer=True),
    "garbage": Fault("the right code with a body that is no JSON", _body(lambda body: b'{"externalId: \xff\xfe'), needs_answer=True),
    "huge_body": Fault("the right answer behind 64 MB of blanks", _body(lambda body: b" " * (1 << 26) + body), needs_answer=True),
    "wrong_types": Fault("numbers as strings, strings of digits as fractions", _value(_wrong_types), needs_answer=True),
    "missing_fields": Fault("every second field left out", _value(_half_missing), needs_answer=True),
    "foreign_order": Fault("speaks about another order", _value(_foreign), needs_answer=True),
    "empty_catalog": Fault("no item on sale", _items(lambda items: []), needs_answer=True),
    "half_catalog": Fault("every second item missing", _items(lambda items: items[::2]), needs_answer=True),
    "doubled_catalog": Fault("every item twice, the second dearer", _items(lambda items: items + [{**item, "price": item["price"] + 1} for item in items]), needs_answer=True),
    "free_catalog": Fault("every price 0", _items(lambda items: [{**item, "price": 0} for item in items]), needs_answer=True),
}
# fmt: on


@dataclass(slots=True, kw_only=True)
class ActiveFault:
    """A fault laid on the requests that match, for some times or until cleared."""

    fault: str
    path: str = "/"
    method: str | None = None
    call: str | None = None  # what is asked for, in the provider's words or in `PURPOSES`
    times: int | None = None
    seconds: float = 0.0
    after: bool = False  # let the request do its work first, though the fault needs no answer
    fired: int = 0

    def matches(self, request: Request, names: tuple[str, str]) -> bool:
        spent = self.times is not None and self.fired >= self.times
        path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
        return (
            not spent
            and path.startswith(self.path)
            and self.method in (None, request.method)
            and (self.call is None or self.call in names)
        )


# What every provider is asked for, whatever it calls it.
PURPOSES = ("submit", "lookup", "wallet", "catalog", "check", "other")


class Gate:
    """What every request meets before its handler: counting, limit, latency, faults laid on all.

    `words` are the provider's own ways to say what some faults say.
    """

    def __init__(
        self, market: Market, words: Mapping[str, Callable[[], Response]] | None = None
    ) -> None:
        self.market = market
        self.active: list[ActiveFault] = []
        self.requests: Counter[str] = Counter()
        self.limited = 0  # requests refused because of the limit
        self.peak_per_minute = 0
        self._words = words or {}
        self._last_minute: deque[float] = deque()
        self._blocked_until = 0.0

    def answering(self, name: str, handler: Handler, purpose: str = "other") -> Handler:
        async def answer(request: Request) -> Response:
            return await self.answer(request, name, purpose, handler)

        return answer

    async def answer(self, request: Request, name: str, purpose: str, handler: Handler) -> Response:
        self.requests[name] += 1
        if self._is_over_limit():
            self.limited += 1
            return await self.spoil("rate_limited", request, Response())
        if self.market.options.latency_s:
            await asyncio.sleep(self.market.options.latency_s)
        for active in self.active:
            if active.matches(request, (name, purpose)):
                active.fired += 1
                handled = FAULTS[active.fault].needs_answer or active.after
                response = await handler(request) if handled else Response()
                return await self.spoil(active.fault, request, response, active.seconds)
        return await handler(request)

    async def spoil(
        self, fault: str, request: Request, response: Response, seconds: float = 0.0
    ) -> Response:
        """Answer with a fault, in the provider's own words where it has some."""
        if fault in self._words:
            return self._words[fault]()
        return await FAULTS[fault].apply(request, response, seconds)

    def _is_over_limit(self) -> bool:
        now, options = self.market.clock.real(), self.market.options
        self._last_minute.append(now)
        while self._last_minute[0] <= now - 60:
            self._last_minute.popleft()
        self.peak_per_minute = max(self.peak_per_minute, len(self._last_minute))
        limit = options.limit_per_minute
        if limit and len(self._last_minute) > limit:
            self._blocked_until = now + options.limit_block_s
        return limit > 0 and now < self._blocked_until
