"""A backlog at one account: the judge counts no minute over the limit, and no order starves.

`FULFILLMENT_TEST_BACKLOG=10000` makes it as long as the promise names it; its figures are shown
with `--log-cli-level=INFO`.
"""

import logging
import multiprocessing
import os
import random
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from typing import Any

import pytest

from fulfillment.services.context import Context
from fulfillment.simulator.app import SimulatorOptions, serve
from schemas.enums import OrderStatus as S
from tests.conftest import CLIENT_ID, SECRET, TEST_PREFIX, MakeContext
from tests.support import Simulator, checkout, in_threads, receive, rows, run_ticks

log = logging.getLogger(__name__)

LIMIT = 500
BACKLOG = int(os.environ.get(f"{TEST_PREFIX}BACKLOG", "500"))
WORKERS = 3
#: What becomes of one order in so many; the others are delivered, and no webhook tells of any.
SPECIALS = {
    40: "dropped_after_accept",
    41: "dropped_before_accept",
    42: "error_after_accept",
    43: "expired",
}
#: Orders may overtake each other by what the workers have in hand together.
MOST_OVERTAKEN = 4 * 64


class SharedClock:
    """One time for the workers here and for the judge in its own process."""

    def __init__(self) -> None:
        self._start = datetime.now(UTC)
        self._passed_s = multiprocessing.get_context("spawn").Value("d", 0.0)

    def now(self) -> datetime:
        return self._start + timedelta(seconds=self.monotonic())

    def monotonic(self) -> float:
        return float(self._passed_s.value)

    def advance(self, seconds: float) -> None:
        with self._passed_s:
            self._passed_s.value += seconds


def _serve(options: SimulatorOptions, bound: Connection, clock: SharedClock) -> None:
    serve(options, on_bound=bound.send, clock=clock)


@pytest.fixture
def shared_clock() -> SharedClock:
    return SharedClock()


@pytest.fixture
def judge(shared_clock: SharedClock) -> Iterator[Simulator]:
    """Give a SkinsBack of its own, in its own process, with the documented limit."""
    options = SimulatorOptions(
        provider="skinsback",
        client_id=CLIENT_ID,
        client_secret=SECRET,
        port=0,
        items=20,
        reusable_items=True,
        balance_cents=10**10,
        default_scenario="webhooks_lost",
    )
    spawning = multiprocessing.get_context("spawn")
    here, there = spawning.Pipe()
    process = spawning.Process(target=_serve, args=(options, there, shared_clock), daemon=True)
    process.start()
    simulator = Simulator(here.recv(), CLIENT_ID, SECRET)
    yield simulator
    simulator.close()
    process.terminate()
    process.join()


@dataclass
class Shop:
    """Several workers at one account; time passes in uneven steps."""

    workers: list[Context]
    judge: Simulator
    clock: SharedClock
    latest_poll_s: float = 0.0
    steps: int = 0

    def receive(self, count: int) -> None:
        item = self.judge.item()
        event = checkout(
            catalogItemId=item["id"],
            marketHashName=item["marketHashName"],
            expectedPrice=item["price"],
        )
        names = [
            f"{uuid.uuid4().hex[:12]}.{SPECIALS.get(i % 50, 'webhooks_lost')}" for i in range(count)
        ]
        for start in range(0, count, 500):
            receive(self.workers[0], *({**event, "externalId": n} for n in names[start:][:500]))

    def step(self, seconds: float) -> None:
        in_threads(WORKERS, lambda place: run_ticks(self.workers[place]))
        self.clock.advance(seconds)
        self.judge.jump(0)  # wakes it up: its time has passed
        self.steps += 1
        if self.steps % 10 == 0:
            late = self.ask("SELECT min(next_poll_at) AS at FROM orders")[0]["at"]
            if late is not None:
                seconds = (self.clock.now() - late).total_seconds()
                self.latest_poll_s = max(self.latest_poll_s, seconds)

    def ask(self, query: str) -> list[dict[str, Any]]:
        return rows(self.workers[0], query)

    def open_orders(self) -> Counter[str]:
        query = "SELECT status, count(*) AS n FROM orders GROUP BY status"
        return Counter({row["status"]: row["n"] for row in self.ask(query)})


@pytest.fixture
def shop(make_context: MakeContext, judge: Simulator, shared_clock: SharedClock) -> Iterator[Shop]:
    main = {"provider": "skinsback", "request_timeout_s": 20.0}
    made = [make_context(base_url=f"{judge.url}/api.php", main=main) for _ in range(WORKERS)]
    jitter = random.Random(7).random
    workers = [
        replace(c, clock=shared_clock, jitter=jitter, _budgets={}, _providers={}) for c in made
    ]
    yield Shop(workers, judge, shared_clock)
    for worker in workers:
        worker.provider("main").close()


@pytest.mark.timeout(60 + BACKLOG // 5)
def test_a_backlog_is_bought_within_the_limit_and_nobody_starves(shop: Shop) -> None:
    shop.receive(BACKLOG)
    uneven = random.Random(3)

    while shop.open_orders()["received"]:
        shop.step(uneven.uniform(0.5, 3.5))
    drained_at = shop.clock.monotonic()
    requests = shop.judge.ask("GET", "/ledger")["requests"]
    while set(shop.open_orders()) - {S.COMPLETED, S.EXPIRED}:
        assert shop.clock.monotonic() < drained_at + 1000, shop.open_orders()
        shop.step(uneven.uniform(5, 15))

    ledger = shop.judge.ask("GET", "/ledger")
    used = sum(requests.values()) * 60 / drained_at / LIMIT
    bought = shop.ask(
        "SELECT o.external_id, o.status, a.confirmed_at, a.sending_at "
        "FROM orders o JOIN attempts a ON a.order_id = o.id ORDER BY o.id"
    )
    moved = _overtaken(bought)
    unknown_s = max((r["confirmed_at"] - r["sending_at"]).total_seconds() for r in bought)
    log.info(
        "%s orders in %.0f s; judge: %s, peak %s a minute, %.0f %% of the limit used; latest poll "
        "%.0f s, longest unknown %.0f s, overtaken by %s",
        *(BACKLOG, drained_at, ledger["requests"], ledger["peakRequestsPerMinute"], used * 100),
        *(shop.latest_poll_s, unknown_s, moved),
    )
    assert ledger["requestsLimited"] == 0
    assert ledger["peakRequestsPerMinute"] <= LIMIT
    assert used >= 0.8
    statuses = {row["externalId"]: row["status"] for row in ledger["purchases"]}
    assert len(ledger["purchases"]) == BACKLOG
    assert statuses == {row["external_id"]: row["status"] for row in bought}
    assert sum(row["posts"] for row in ledger["purchases"]) == BACKLOG
    assert moved <= MOST_OVERTAKEN
    assert unknown_s <= 150
    assert shop.latest_poll_s <= 60


def _overtaken(bought: list[dict[str, Any]]) -> int:
    """Give by how many places an order whose answer came at once was bought later than it came."""
    plain = [row for row in bought if not row["external_id"].endswith(tuple(SPECIALS.values()))]
    by_time = sorted(range(len(plain)), key=lambda place: (plain[place]["confirmed_at"], place))
    return max(then - place for then, place in enumerate(by_time))
