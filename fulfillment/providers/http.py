"""The one way out to providers: deadlines, size limits, and what each failure means.

A foreign exception ends here. Nothing raised from here holds a header, a body or a query.
"""

import json
import re
import socket
import ssl
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any, NoReturn

import httpx

from fulfillment.clock import Clock, SystemClock
from fulfillment.crash import crash_point
from fulfillment.errors import (
    ProviderDeniesAccount,
    ProviderError,
    ProviderNotReached,
    ProviderOutcomeUnknown,
)
from fulfillment.providers.base import BeforeSend
from fulfillment.providers.transport import KeptTransport

ANSWER_LIMIT = 1024 * 1024
LIST_LIMIT = 256 * 1024 * 1024  # Skinslink's full list is about 200 MB
#: A list that comes in one piece is not copied: its pages are taken from the system once.
LARGEST_PIECE = 16 * 1024 * 1024
CONNECT_S = 5.0
DENIED = (401, 403)
LONGEST_PAUSE = timedelta(minutes=10)
BOM = b"\xef\xbb\xbf"
#: It may be text that no UTF-8 can write.
HALF_OF_A_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")

#: Raised only while no byte of the request can have left.
NOT_SENT = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.UnsupportedProtocol,
    httpx.InvalidURL,
)
CONNECT_REASONS: dict[type[BaseException], str] = {
    socket.gaierror: "the host name cannot be resolved",
    ssl.SSLError: "TLS failed",
    ConnectionRefusedError: "connection refused",
    TimeoutError: "connecting took too long",
}

_url = lru_cache(256)(httpx.URL)  # most requests go to the same few addresses


class Unusable(ValueError):
    """An answer that cannot be read as what was asked for; its text never quotes the answer."""

    is_outage = False


class NotJSON(Unusable):
    """Not even JSON, as the page of a provider under maintenance."""

    is_outage = True


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete 2xx, or a 4xx that is about the request (not 429, rarely 401 and 403)."""

    status: int
    body: bytes = field(repr=False)


class HTTPClient:
    """Requests to one provider, shared by threads.

    It stands on a transport of httpx, not on httpx.Client: no cookie jar, no redirects, no proxy
    from the environment and no URL in the log by construction (decision 0007).
    """

    def __init__(
        self,
        base_url: str,
        *,
        timeout_s: float = 20.0,
        transport: httpx.BaseTransport | None = None,
        clock: Clock | None = None,
        spend: Callable[[], None] | None = None,
    ) -> None:
        """`spend` is called before each request leaves, and raises OverBudget where it must not."""
        self._base_url = base_url
        self._spend = spend
        self._timeout_s = timeout_s
        self._clock = clock or SystemClock()
        self._transport = transport or KeptTransport()

    def request(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str],
        content: bytes = b"",
        is_purchase: bool = False,
        total_s: float | None = None,
        limit: int = ANSWER_LIMIT,
        accept_gzip: bool = False,
        name: str = "",
        is_throttled_unacted: bool = False,
        before_send: BeforeSend | None = None,
        is_answer: Callable[[bytes], bool] | None = None,
    ) -> Answer:
        """Send one request and read its whole answer.

        Raises ProviderDeniesAccount for 401 and 403. All else that is no `Answer` is
        ProviderNotReached for a read or where nothing was sent, and ProviderOutcomeUnknown
        for a purchase. `name` stands for method and path in messages, where one path serves all;
        `is_throttled_unacted` says that a 429 means: nothing was done, of a purchase too.
        `before_send` is called before the first byte, also after connecting; what it raises comes
        out as it is. `is_answer` says of the body of a 401 or 403 that it counts, and not the code.
        """
        what = name or f"{method} {path.partition('?')[0]}"
        doubt = ProviderOutcomeUnknown if is_purchase else ProviderNotReached
        fixed = {
            "accept": "application/json",
            "accept-encoding": "gzip" if accept_gzip else "identity",
        }
        if content:
            fixed["content-type"] = "application/json"
        timeouts = {
            "connect": CONNECT_S,
            "pool": CONNECT_S,
            "read": self._timeout_s,
            "write": self._timeout_s,
        }
        # Counted from here: whoever is held up on the way to the first byte is so in this time.
        end = self._clock.monotonic() + (total_s or self._timeout_s)
        if self._spend is not None:
            self._spend()
        failure: ProviderError
        try:
            request = httpx.Request(
                method,
                _url(self._base_url + path),
                headers={**fixed, **headers},
                content=content or None,
                extensions={
                    "timeout": timeouts,
                    "time_left": lambda: end - self._clock.monotonic(),
                    "piece": min(limit + 1, LARGEST_PIECE),
                    **({"before_send": before_send} if before_send else {}),
                },
            )
            if is_purchase:
                crash_point("post.leaving")
            if before_send is not None:  # no need to connect for what may not leave
                before_send(is_at_once=True)
            response = self._transport.handle_request(request)
            if is_purchase:
                crash_point("post.answered")
            try:
                if is_answer is not None and response.status_code in DENIED:
                    with suppress(httpx.HTTPError, Unusable):
                        body = _read_body(response, limit)
                        if is_answer(body):
                            return Answer(response.status_code, body)
                throttled = ProviderNotReached if is_throttled_unacted else doubt
                self._check_status(response, what, doubt, throttled)
                return Answer(response.status_code, _read_body(response, limit))
            finally:
                response.close()
        except NOT_SENT as error:
            failure = ProviderNotReached(f"{what}: nothing was sent, {_connect_reason(error)}")
        except httpx.HTTPError as error:
            message = f"{what}: no complete answer ({type(error).__name__})"
            failure = doubt(message, is_cut=True)
        except Unusable as error:
            failure = doubt(f"{what}: {error}")
        # Raised out here, so that no foreign exception (it knows the headers) hangs on as context.
        raise failure

    def close(self) -> None:
        """Close the kept connections."""
        self._transport.close()

    def _check_status(
        self,
        response: httpx.Response,
        what: str,
        doubt: type[ProviderError],
        throttled: type[ProviderError],
    ) -> None:
        status = response.status_code
        if status in DENIED:
            raise ProviderDeniesAccount(f"{what}: credentials or address refused (HTTP {status})")
        if status == 429 or status >= 500:
            kind = throttled if status == 429 else doubt
            pause = self._retry_after(response)
            raise kind(f"{what}: HTTP {status}", retry_after=pause, is_outage=status >= 500)
        if not (200 <= status < 300 or status >= 400):
            message = f"{what}: expected an answer, found a redirect (HTTP {status})"
            raise doubt(message, is_outage=True)

    def _retry_after(self, response: httpx.Response) -> timedelta | None:
        """Read how long the provider wishes us to wait, at most ten minutes."""
        text = response.headers.get("retry-after", "").strip()
        if re.fullmatch(r"[0-9]{1,9}", text):
            return min(timedelta(seconds=int(text)), LONGEST_PAUSE)
        try:
            pause = parsedate_to_datetime(text) - self._clock.now()
        except (ValueError, TypeError, OverflowError):  # no date, or one without a zone
            return None
        return min(max(pause, timedelta()), LONGEST_PAUSE)


def _connect_reason(error: BaseException) -> str:
    origins = [error, *([error.__cause__, *error.__cause__.args] if error.__cause__ else [])]
    return next(
        (text for kind, text in CONNECT_REASONS.items() for o in origins if isinstance(o, kind)),
        "no connection",
    )


def _read_body(response: httpx.Response, limit: int) -> bytes:
    """Read at most `limit` bytes, counted after decompression. Raises Unusable."""
    encoding = response.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity", "gzip"):
        raise Unusable("expected an answer in identity or gzip encoding")
    inflate = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16) if encoding == "gzip" else None
    parts: list[bytes] = []
    size = 0
    assert isinstance(response.stream, httpx.SyncByteStream)
    for chunk in response.stream:
        part = chunk
        if inflate:
            try:
                # One byte more than allowed is enough to know: a bomb is never unpacked.
                part = inflate.decompress(chunk, limit - size + 1)
            except zlib.error:
                raise Unusable("expected gzip, found something else") from None
        size += len(part)
        if size > limit:
            raise Unusable(f"expected at most {limit} bytes, found more")
        parts.append(part)
    if inflate and (not inflate.eof or inflate.unused_data):
        raise Unusable("expected one complete gzip stream")
    return b"".join(parts)


def read_json(body: bytes) -> Any:
    """Parse one small JSON answer without guessing. Raises Unusable.

    Fractions come as Decimal, made from the text. Duplicate keys, NaN, what is no UTF-8 and absurd
    nesting are refused: two readers could see two different answers.
    """
    with suppress(ValueError, ArithmeticError, RecursionError):
        document = json.loads(
            body.removeprefix(BOM).decode(),
            parse_float=Decimal,
            parse_constant=_refuse,
            object_pairs_hook=_unique,
        )
        if HALF_OF_A_PAIR.search(body):
            json.dumps(document, ensure_ascii=False, default=str).encode()
        return document
    # Raised out here: the parser's exception quotes the document, which may hold a trade URL.
    raise NotJSON("expected unambiguous JSON")


def _refuse(_: str) -> NoReturn:
    raise ValueError("no JSON number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key stands twice")
    return result
