"""What endpoints take from a request: the application's parts, the token, a bounded body."""

import asyncio
import hmac
from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.requests import ClientDisconnect

from fulfillment.services.context import Context
from fulfillment.web.hints import Hints
from fulfillment.web.metrics import Metrics

READ_WITHIN_S = 10.0
#: So much of a body that is too large is read and thrown away: to a client that is still sending,
#: a closed connection would hide the answer.
_DISCARD_BYTES = 8 * 1024 * 1024
_CLOSE = {"Connection": "close"}
_bearer = HTTPBearer(auto_error=False, scheme_name="bearer", description="FULFILLMENT_API_TOKEN")


@dataclass(frozen=True, slots=True)
class Web:
    """The parts that every endpoint works with."""

    context: Context
    hints: Hints
    metrics: Metrics


async def _web(request: Request) -> Web:
    return cast(Web, request.app.state.web)


WebParts = Annotated[Web, Depends(_web)]


async def require_token(
    web: WebParts, found: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> None:
    """Let only the store in."""
    token = web.context.settings.api_token.get_secret_value().encode()
    sent = found.credentials.encode("latin-1") if found else b""
    if not token or not hmac.compare_digest(sent, token):
        text = "expected the header Authorization: Bearer <FULFILLMENT_API_TOKEN>"
        raise HTTPException(401, text, {"WWW-Authenticate": "Bearer"})


async def read_body(request: Request, limit: int) -> bytes:
    """Read the body, keeping at most `limit` bytes, whatever the client says of its length."""
    body = bytearray()
    size = 0
    try:
        async with asyncio.timeout(READ_WITHIN_S):
            async for chunk in request.stream():
                size += len(chunk)
                if size <= limit:
                    body += chunk
                elif size > limit + _DISCARD_BYTES:
                    break
    except ClientDisconnect:
        raise HTTPException(400, "the body did not arrive") from None
    except TimeoutError:
        if size <= limit:
            text = f"expected the whole body within {READ_WITHIN_S:g} s"
            raise HTTPException(408, text, _CLOSE) from None
    if size > limit:
        raise HTTPException(413, f"expected at most {limit} bytes", _CLOSE)
    return bytes(body)
