"""What endpoints take from a request: the application's parts, and whose token it bears."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Annotated, Any, cast

import structlog
from fastapi import Depends, HTTPException, Request
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.responses import Response

from fulfillment.services.context import Context
from fulfillment.services.intake import Received
from fulfillment.web.hints import Hints
from fulfillment.web.limits import Buckets, Lane, client_of, too_many
from fulfillment.web.metrics import Metrics
from fulfillment.web.together import Together
from fulfillment.web.tokens import Tokens

#: Threads of each group of routes; each may hold a connection to the database.
CHECKOUT_THREADS, READ_THREADS, WEBHOOK_THREADS, HEALTH_THREADS = 10, 4, 4, 2
THREADS = CHECKOUT_THREADS + READ_THREADS + WEBHOOK_THREADS + HEALTH_THREADS
#: A statement that takes longer, or that waits longer for a lock, is given up: somebody waits.
STATEMENT_TIMEOUT_S = 5.0
MEGABYTE = 1024 * 1024
_bearer = HTTPBearer(auto_error=False, scheme_name="bearer", description="FULFILLMENT_API_TOKEN")


@dataclass(frozen=True, slots=True)
class Web:
    """The parts that every endpoint works with."""

    context: Context
    checkouts: Lane
    #: Single checkouts that come at once share a transaction.
    intake: Together[bytes, Received]
    hints: Hints
    metrics: Metrics
    tokens: Tokens
    #: Calls by the name of their token, and failures by the client's address.
    calls: Buckets
    failures: Buckets
    #: Providers give up after 10 s and send again.
    webhooks: Lane = field(
        default_factory=lambda: Lane(WEBHOOK_THREADS, 1000, 32 * MEGABYTE, within_s=8)
    )
    health: Lane = field(default_factory=lambda: Lane(HEALTH_THREADS, 100, within_s=8))

    def note_failure(self, request: Request) -> None:
        """Count a wrong token or signature. Raises HTTPException 429 where they are too many.

        Who has the right one is let in all the same: nobody can lock the store or a provider out.
        """
        if wait_s := self.failures.take(client_of(request)):
            raise too_many(wait_s, "failures from your address") from None


async def _web(request: Request) -> Web:
    return cast(Web, request.app.state.web)


WebParts = Annotated[Web, Depends(_web)]


async def require_token(
    request: Request,
    web: WebParts,
    found: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> None:
    """Let only the store in, as often as its token may come."""
    # Of two, a proxy may have looked at the other one.
    is_one = len(request.headers.getlist("authorization")) == 1
    name = web.tokens.name_of(found.credentials.encode("latin-1")) if found and is_one else None
    if name is None:
        web.note_failure(request)
        text = "expected the header Authorization: Bearer <FULFILLMENT_API_TOKEN>"
        raise HTTPException(401, text, {"WWW-Authenticate": "Bearer"})
    structlog.contextvars.bind_contextvars(caller=name)
    web.metrics.calls.labels(name).inc()
    if wait_s := web.calls.take(name):
        raise too_many(wait_s, "calls with this token")


class DirectRoute(APIRoute):
    """A route whose endpoint takes the request, our parts and what the path names, and no more.

    FastAPI documents it. To have it find out for each request what the endpoint and its
    dependencies want would take longer than all else that is done for a single checkout.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Give what answers a request. Raises TypeError for a dependency but the token's."""
        guards = [depends.dependency for depends in self.dependencies]
        if guards not in ([], [require_token]):
            raise TypeError(f"{self.path} depends on more than the token")

        async def answer(request: Request) -> Response:
            web = await _web(request)
            if guards:
                await require_token(request, web, await _bearer(request))
            found: Response = await self.endpoint(request=request, web=web, **request.path_params)
            return found

        return answer
