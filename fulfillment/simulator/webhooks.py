"""Brings callbacks to their URLs: retried, and doubled, delayed, lost or forged as planned.

It never logs a body or a key; how a delivery is signed is the dialect's business.
"""

import asyncio
import hashlib
import json
import secrets
import uuid
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import httpx

from fulfillment.simulator.core import Market, Order
from fulfillment.simulator.scenarios import WebhookPlan

MAX_BACKOFF_S = 300.0
GARBAGE = "zz-not-hex"
REMEMBERED = 20_000
STALE_S = 7200.0
TAMPERS = {
    "": "genuine",
    "key": "signed with a key that is not ours",
    "body": "a body put under the signature of another one",
    "spaces": "the body formatted anew after it was signed",
    "garbage": "a signature that is no hex",
    "stale": "well signed two hours ago",
}


@dataclass(slots=True)
class Delivery:
    """One callback and what became of it."""

    id: str
    external_id: str
    status: str
    url: str = field(repr=False)
    body: bytes = field(repr=False)
    signed_body: bytes = field(repr=False)
    tamper: str = ""
    forged: bool = False
    attempts: int = 0
    outcome: str = "waiting"
    answers: list[str] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        return {
            "deliveryId": self.id,
            "externalId": self.external_id,
            "status": self.status,
            "tamper": self.tamper,
            "forged": self.forged,
            "attempts": self.attempts,
            "outcome": self.outcome,
            "answers": self.answers,
        }


class Letters(Protocol):
    """How a provider writes its callbacks."""

    retry_s: tuple[float, ...]  # pauses before each further attempt; empty: doubling
    claim: str  # the status that forgeries tell of

    def url_of(self, order: Order) -> str | None: ...

    def is_news(self, order: Order) -> bool:
        """Say whether the order's present status is called back at all."""

    def body_of(self, order: Order, status: str) -> bytes:
        """Write what is said of this status, which may be a claim that is not true."""

    def sealed(self, delivery: Delivery, secret: str, stamp: str) -> tuple[dict[str, str], bytes]:
        """Sign a delivery: give its headers and its body."""


class Courier:
    """Sends what is due with a bounded number of connections; retries go back to the timeline."""

    def __init__(self, market: Market, letters: Letters) -> None:
        self.market = market
        self.letters = letters
        self.timeline = market.timeline
        self.deliveries: deque[Delivery] = deque(maxlen=REMEMBERED)
        self.outcomes: Counter[str] = Counter()
        self._queue: asyncio.Queue[Delivery] = asyncio.Queue()
        self._client: httpx.AsyncClient | None = None
        #: Brings one attempt to its URL; a simulation in one process puts its own here.
        self.post: Callable[[Delivery], Awaitable[tuple[str, bool]]] = self._post
        market.on_order.append(self.announce)

    async def run(self) -> None:
        options = self.market.options
        timeout_s = options.webhook_timeout_s
        limits = httpx.Limits(max_keepalive_connections=options.webhook_concurrency)
        async with (
            httpx.AsyncClient(timeout=timeout_s, limits=limits, trust_env=False) as self._client,
            asyncio.TaskGroup() as group,
        ):
            for _ in range(options.webhook_concurrency):
                group.create_task(self._work())

    def announce(self, order: Order, topic: str = "") -> None:
        """Plan the callbacks of the status the order has just reached, or of another topic."""
        plan = order.scenario.webhooks
        if not self.letters.url_of(order):
            return
        body = self.letters.body_of(order, topic or order.status)
        if topic or self.letters.is_news(order):
            genuine = self._delivery(order, topic or order.status, body, plan.tamper)
            if plan.lost == ("*",) or order.status in plan.lost:
                self._end(genuine, "lost")
            else:
                for _ in range(plan.copies):
                    self._plan(genuine, plan, order)
        for tamper in () if topic else plan.forgeries:
            claim = self._delivery(order, "completed", body, tamper, forged=True)
            claim.body = self.letters.body_of(order, self.letters.claim)
            claim.signed_body = body if tamper == "body" else claim.body
            # A forgery equal to what was truly signed would be no forgery.
            if tamper != "body" or claim.body != body:
                self._plan(claim, WebhookPlan(), order)

    async def deliver_now(self, order: Order, status: str) -> None:
        """Bring one callback to its end or its first failure before returning."""
        if self.letters.url_of(order):
            body = self.letters.body_of(order, status)
            await self.attempt(self._delivery(order, status, body, order.scenario.webhooks.tamper))

    def _delivery(
        self, order: Order, status: str, body: bytes, tamper: str, *, forged: bool = False
    ) -> Delivery:
        url = self.letters.url_of(order)
        assert url is not None
        delivery = Delivery(
            self._new_id(), order.external_id, status, url, body, body, tamper, forged
        )
        if tamper == "spaces":
            delivery.body = json.dumps(json.loads(body)).encode()
        self.deliveries.append(delivery)
        return delivery

    def _new_id(self) -> str:
        # UUID version 7: milliseconds, then chance.
        number = (self.market.clock.unix_ms() << 80) | secrets.randbits(80)
        number = (number & ~(0xF << 76)) | (7 << 76)
        return str(uuid.UUID(int=(number & ~(3 << 62)) | (2 << 62)))

    def _plan(self, delivery: Delivery, plan: WebhookPlan, order: Order) -> None:
        due = self.market.clock.now() + plan.delay_s
        step = next((each for each in order.steps if each.status == order.status), None)
        if plan.mirrored and step is not None:
            # Mirrored around the order's end: what came first is delivered last.
            window_s = self.market.options.window_s
            ends = order.steps[-1].due_s(window_s)
            due = order.started + 2 * ends - step.due_s(window_s)
        self.timeline.at(due, partial(self._queue.put_nowait, delivery))

    async def _work(self) -> None:
        while True:
            await self.attempt(await self._queue.get())

    def take_due(self) -> list[Delivery]:
        """Give what is to be brought now, where nobody runs the workers."""
        return [self._queue.get_nowait() for _ in range(self._queue.qsize())]

    async def attempt(self, delivery: Delivery) -> None:
        delivery.attempts += 1
        attempt = delivery.attempts
        answer, is_taken = await self.post(delivery)
        delivery.answers.append(answer)
        if is_taken:
            self._end(delivery, "delivered")
        elif delivery.forged or attempt >= self._attempts():
            self._end(delivery, "refused" if delivery.forged else "given_up")
        else:
            delivery.outcome = "retrying"
            pauses = self.letters.retry_s
            pause_s = pauses[attempt - 1] if pauses else min(2.0**attempt, MAX_BACKOFF_S)
            self.timeline.after(pause_s, partial(self._queue.put_nowait, delivery))

    async def _post(self, delivery: Delivery) -> tuple[str, bool]:
        """Give the answer's status or the error's name, and whether it is a yes."""
        assert self._client is not None
        try:
            async with asyncio.timeout(self.market.options.webhook_timeout_s):
                headers, body = self.sealed(delivery)
                response = await self._client.post(delivery.url, content=body, headers=headers)
            return str(response.status_code), response.is_success
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, TimeoutError) as error:
            return type(error).__name__, False

    def _attempts(self) -> int:
        allowed = self.market.options.webhook_attempts
        return min(allowed, len(self.letters.retry_s) + 1) if self.letters.retry_s else allowed

    def sealed(self, delivery: Delivery) -> tuple[dict[str, str], bytes]:
        """Write headers and body of one attempt."""
        # Made anew at each attempt, so that a late retry still carries a young timestamp.
        stamp = self.market.clock.stamp(STALE_S if delivery.tamper == "stale" else 0.0)
        secret = self.market.options.client_secret
        if delivery.tamper == "key":
            secret = hashlib.sha256(secret.encode()).hexdigest()
        return self.letters.sealed(delivery, secret, stamp)

    def _end(self, delivery: Delivery, outcome: str) -> None:
        delivery.outcome = outcome
        self.outcomes[outcome] += 1
