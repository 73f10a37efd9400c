"""What every dialect does with the POST of a purchase before and after it is taken in."""

import asyncio
from collections import Counter
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from fulfillment.simulator.core import Market, Order
from fulfillment.simulator.faults import Gate, cut
from fulfillment.simulator.scenarios import Scenario
from fulfillment.simulator.webhooks import Courier

# Posts under invented ids are forgotten oldest first, so that they cannot fill memory.
REMEMBERED = 200_000


@dataclass(frozen=True, slots=True)
class Visit:
    """One POST and the scenario that it meets."""

    request: Request
    scenario: Scenario
    is_first: bool  # nothing is stored under its id
    is_spoiled: bool  # the scenario still spoils answers


class Desk:
    """Counts the POSTs of each id and plays what the scenario does to them."""

    def __init__(self, market: Market, courier: Courier, gate: Gate) -> None:
        self.market = market
        self.courier = courier
        self.gate = gate
        self._posts: Counter[str] = Counter()

    def visit(self, request: Request, external_id: str, item_id: str, trade_url: str) -> Visit:
        """Count a POST; one without an id (empty) is always the first."""
        existing = self.market.orders.get(external_id)
        scenario = (
            self.market.scenario_for(external_id, item_id, trade_url)
            if existing is None
            else existing.scenario
        )
        posts = 1
        if external_id:
            posts = self._posts.pop(external_id, 0) + 1
            self._posts[external_id] = posts
            if len(self._posts) > REMEMBERED:
                del self._posts[next(iter(self._posts))]
        return Visit(request, scenario, existing is None, posts <= scenario.posts)

    async def before(self, visit: Visit) -> Response | None:
        """Hold the POST back, or answer it in the place of the handler."""
        if not (visit.is_first and visit.is_spoiled):
            return None
        if visit.scenario.stalls_s and not await self._stall(visit):
            return Response()
        if visit.scenario.before:
            return await self.gate.spoil(visit.scenario.before, visit.request, Response())
        return None

    async def _stall(self, visit: Visit) -> bool:
        """Wait; give False if the simulator is being stopped meanwhile."""
        over = asyncio.Event()
        self.market.timeline.after(visit.scenario.stalls_s, over.set)
        try:
            await over.wait()
        except asyncio.CancelledError:
            await cut(visit.request.receive, flush=False)
            return False
        return True

    async def after(self, visit: Visit, response: Response) -> Response:
        """Spoil the answer to a POST whose order exists."""
        if visit.is_spoiled and visit.scenario.after:
            return await self.gate.spoil(visit.scenario.after, visit.request, response)
        return response

    async def call_back_first(self, order: Order) -> None:
        """Bring the callbacks that come before the POST's answer."""
        if order.steps != order.scenario.steps:
            return
        for status in order.scenario.called_back_first:
            # Its own life may have gone on while the first call-back was being answered.
            if status != "accepted" and order.status in ("accepted", "queued", "processing"):
                self.market.move(order, status, quiet=True)
            if self.courier.letters.is_news(order):
                await self.courier.deliver_now(order, status)
