"""A process dies at a named crash point of an order's path, and all ends well.

Each run is a simulation of its own (world.py) of one path (paths.py), in which nothing goes wrong
but what the path is about: the process that comes by an armed point dies there, once a point.
"""

import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any
from unittest import mock

from kombu import Connection, Producer
from kombu.transport import memory
from sqlalchemy.engine import Engine

from fulfillment import broker, crash
from fulfillment.errors import FulfillmentError
from fulfillment.messaging import consumer, relay
from fulfillment.messaging.outgoing import Outgoing
from fulfillment.services import operations, recovery
from fulfillment.services.context import register_accounts
from fulfillment.store.bindings import Binding
from schemas import messages
from schemas.messages import CHECKOUT_KEY, CHECKOUT_QUEUE
from tests.faults.bus import Bus
from tests.faults.invariants import LIVENESS, SAFETY, violations
from tests.faults.kinds import Faults
from tests.faults.paths import Path
from tests.faults.plan import Plan, PlannedOrder
from tests.faults.run import is_quiet, look, read
from tests.faults.scheduler import Killed, Process
from tests.faults.world import World

SEED = 1
_LOOKS_FOR_LOSS_S = 0.25
#: A person looks at what is left to him so often.
_LOOKS_EVERY_S = 20.0
_MOST_STEPS = 6000
#: After a death the next point is armed so much later: the claims of the dead have lapsed.
_RECOVERY_S = 12.0
#: Everything must have ended so long after the beginning, in virtual seconds.
_WITHIN_S = 4 * 3600.0
#: What every task comes by is tried in each task.
_GENERAL = ("task.begun", "task.done", "claim.taken_over", "http.sent", "budget.taken")


class Scripted(Faults):
    """Strikes as a path says, instead of by chance: the first requests about each order."""

    def __init__(self, world: World, script: Mapping[str, int]) -> None:
        super().__init__(world.source, (), world.statuses)
        self._script = script
        self._struck: Counter[tuple[str, str]] = Counter()

    def strikes(self, *names: str, orders: Sequence[str] = (), weight: float = 1.0) -> str | None:
        """Say which of these kinds strikes now."""
        del weight
        for name, order in itertools.product(names, orders):
            if self._struck[name, order] < self._script.get(name, 0):
                self._struck[name, order] += 1
                self.note(name, orders)
                return name
        return None


class _UntilIdle(threading.Event):
    """Ends a part of the intake process when it would wait for something new."""

    def wait(self, timeout: float | None = None) -> bool:
        del timeout
        self.set()
        return True


class _StoreConnection(Connection):
    """kombu's broker in memory; who would wait long for a message is told to stop instead."""

    stop: _UntilIdle | None = None

    def drain_events(self, **options: Any) -> Any:
        if self.stop is not None and options["timeout"] >= 1 and not _waiting(CHECKOUT_QUEUE):
            self.stop.set()
            raise TimeoutError
        return super().drain_events(**options)


def _waiting(queue: str) -> int:
    found = memory.Channel.queues.get(queue)
    return found.qsize() if found else 0


def _connect(stop: _UntilIdle | None = None) -> _StoreConnection:
    connection = _StoreConnection("memory://", transport_options={"polling_interval": 0.0})
    connection.stop = stop
    return connection


class CrashWorld(World):
    """A world of one path, in which processes die at points and the store has its own exchange."""

    def __init__(self, path: Path, plan: Plan, engine: Engine, points: Collection[str]) -> None:
        super().__init__(plan, engine)
        #: A set of points fires as they are come by, a sequence one after another.
        self._in_any_order = isinstance(points, Set)
        self.path = path
        self.faults = Scripted(self, path.strikes)
        self.bus = Bus(self.scheduler, self.faults)
        self.intake = Process("intake")
        #: Where processes are yet to die, and where they did.
        self.armed = list(points)
        self.died: list[str] = []
        self.passed: Counter[str] = Counter()
        #: How many purchases each account had when our rows were lost.
        self.lost: dict[str, int] = {}
        self._armed_at = 0.0
        self._relayed_at = -1

    def __enter__(self) -> "CrashWorld":
        stack = self._stack
        stack.enter_context(mock.patch.dict(memory.Channel.queues, clear=True))
        # What a dead consumer had not acknowledged comes again, as with every other broker.
        stack.enter_context(mock.patch.object(memory.Channel, "do_restore", new=True))
        self._declare()
        super().__enter__()
        stack.enter_context(crash.acting(self._pass_by))
        self._plan_path()
        return self

    def _plan_path(self) -> None:
        path, began, main = self.path, self.scheduler.now, self.accounts["main"]
        scenarios = itertools.chain(path.scenarios, itertools.repeat(path.scenarios[-1]))
        for account, scenario in zip(self.accounts.values(), scenarios, strict=False):
            for order in self.plan.orders:
                account.market.scenario_of_id[order.external_id] = scenario
        if path.gone_from is not None:
            for item in list(main.market.items.values())[path.gone_from :]:
                main.market.change_item(item, available=False)
        if path.is_down:
            main.down["outage"] = began + _WITHIN_S
        if path.top_up_after_s is not None:
            for order in self.plan.orders:
                top_up = partial(self._top_up, 10 * self.event_of(order)["expectedPrice"])
                self.scheduler.at(began + order.at + path.top_up_after_s, top_up)
        if path.is_erased:
            self._every(60.0, lambda: self.bus.send_tick(messages.ERASE))
        if path.restored_after_s is not None:
            self.scheduler.at(began + path.restored_after_s, self._lose_everything)
        if path.finding is not None:
            self._every(_LOOKS_EVERY_S, self._look_at_reviews)

    def _every(self, seconds: float, act: Callable[[], None]) -> None:
        def again() -> None:
            if self.wrong_ends():
                act()
                self.scheduler.at(self.scheduler.now + seconds, again)

        self.scheduler.at(self.scheduler.now + seconds, again)

    def _lose_everything(self) -> None:
        """Put an empty database in the place of ours, as a restore from before all this would.

        Where nothing was bought yet it would prove nothing: then a little later.
        """
        if not all(account.market.orders for account in self.accounts.values()):
            self.scheduler.at(self.scheduler.now + _LOOKS_FOR_LOSS_S, self._lose_everything)
            return
        self.lost = {name: len(each.market.orders) for name, each in self.accounts.items()}
        for process in [*self.workers, self.web]:
            self.replace(process, 0.0)
        self.empty()
        register_accounts(self.context)
        recovery.doubt(self.context, timedelta(hours=24))
        self.acknowledged.clear()
        for order in self.plan.orders:
            self.check_out(self.event_of(order))

    def _top_up(self, mills: int) -> None:
        self.foreign_mills["main"] = self.foreign_mills.get("main", 0) + mills
        self.accounts["main"].market.move_money("top_up", mills)

    def _plan_order(self, order: PlannedOrder) -> None:
        if not self.path.comes_by_queue:
            super()._plan_order(order)
            return
        with _connect() as connection:
            producer = Producer(connection, exchange=broker.store_exchange)
            producer.publish(self.event_of(order), routing_key=CHECKOUT_KEY)

    # Dying

    def _pass_by(self, point: str) -> None:
        process = self.scheduler.process
        if process is None:
            return
        place = self._place(point)
        self.passed[place] += 1
        if self.scheduler.now < self._armed_at:
            return
        armed = self.armed if self._in_any_order else self.armed[:1]
        found = next((each for each in (place, point) if each in armed), None)
        if found is None:
            return
        self.armed.remove(found)
        self.died.append(found)
        self.scheduler.note(f"dies at {place}")
        self._armed_at = self.scheduler.now + _RECOVERY_S
        self.replace(process, self.source.uniform(0, 5))
        if process is self.intake:
            self.intake = Process("intake")
        raise Killed

    def _place(self, point: str) -> str:
        if point not in _GENERAL:
            return point
        words = self.scheduler.doing.split()
        return f"{point} in {words[1] if words[0].startswith('worker') else words[0]}"

    # The store's exchange, and the intake process beside it

    def _declare(self) -> None:
        with _connect() as connection:
            broker.checkout_queue(connection.default_channel).declare()

    def step(self) -> bool:
        if _waiting(CHECKOUT_QUEUE) and not self.scheduler.count(self.intake):
            self.scheduler.spawn(self.intake, "consumer", self._consume)
        return super().step()

    def _pass_time(self) -> bool:
        """Before time passes, let the relay publish what there is."""
        changed = self._relayed_at != self.database.transactions
        if self.path.is_relayed and changed and not self.scheduler.count(self.intake):
            self._relayed_at = self.database.transactions
            if self.rows("SELECT 1 FROM outbox_messages LIMIT 1"):
                self.scheduler.spawn(self.intake, "relay", self._relay)
                return True
        return super()._pass_time()

    def _consume(self) -> None:
        stop = _UntilIdle()
        with mock.patch.object(consumer, "connect", return_value=_connect(stop)):
            consumer.CheckoutConsumer(self.context, stop).run()
        if not _waiting(CHECKOUT_QUEUE):
            self.acknowledged |= {order.external_id for order in self.plan.orders}

    def _relay(self) -> None:
        publisher = _ToStore(self)
        with (
            mock.patch.object(relay, "connect", return_value=_connect()),
            mock.patch.object(relay, "make_publisher", return_value=publisher),
        ):
            relay.OutboxRelay(self.context, _UntilIdle()).run()
        if self.rows("SELECT 1 FROM outbox_messages LIMIT 1"):
            # Somebody who is dead has the lease: asked for again in a while.
            self.scheduler.at(self.scheduler.now + 2, self._forget_relay)

    def _forget_relay(self) -> None:
        self._relayed_at = -1

    def take_in(self, group: Sequence[Outgoing]) -> None:
        """Be the store: note what it is told."""
        ids = {row["external_id"]: row["id"] for row in self.rows("SELECT * FROM orders")}
        for _, body, _ in group:
            told = json.loads(body)
            order_id = ids[told["externalId"]]
            self.published.append(
                {"order_id": order_id, "name": told["eventId"], "sequence": told["sequence"]}
            )

    # The operator

    def _look_at_reviews(self) -> None:
        query = "SELECT external_id FROM orders WHERE status = 'needs_review'"
        for row in self.rows(query):
            name = row["external_id"]
            self.scheduler.spawn(Process("person"), f"person {name}", partial(self._resolve, name))

    def _resolve(self, name: str) -> None:
        assert self.path.finding is not None
        try:
            operations.resolve(self.context, name, self.path.finding, "looked it up")
        except FulfillmentError:
            return  # looked at again in a while

    def is_over(self) -> bool:
        """Say whether nothing is on its way, and every order has ended as its path says."""
        return is_quiet(self) and not self.wrong_ends()

    def wrong_ends(self) -> list[str]:
        """Give what is not yet as it must be at the end."""
        orders = self.rows("SELECT external_id, status, trade_url_sealed FROM orders ORDER BY id")
        ends = self.path.crashed_ends if self.died else self.path.ends
        found = [
            f"{o['external_id']} is {o['status']}, its path ends in {' or '.join(sorted(ends))}"
            for o in orders
            if o["status"] not in ends
        ]
        if len(orders) < len(self.plan.orders):
            found.append("not every order has arrived")
        over = [order for order in orders if order["status"] != "needs_review"]
        if self.path.is_erased and any(order["trade_url_sealed"] for order in over):
            found.append("a trade URL is not erased")
        if self.path.restored_after_s is not None and not self.lost:
            found.append("no rows were lost after each account had sold something")
        if self.path.is_relayed and self.rows("SELECT 1 FROM outbox_messages LIMIT 1"):
            found.append("a message to the store is not published")
        return found


class _ToStore:
    """Publishes straight to the store; the real publishers are tried on real brokers."""

    broker = "redis"
    is_in_doubt = False

    def __init__(self, world: CrashWorld) -> None:
        self.confirmed: Sequence[int] = ()
        self.known: frozenset[Binding] = frozenset()
        self.told_before: dict[str, Outgoing] = {}
        self.is_unheard = False
        self._world = world

    def look(self) -> bool:
        return False

    def bind_again(self) -> None:
        pass

    def unread(self, names: Iterable[str]) -> dict[str, int]:
        del names
        return {}

    def backlog(self) -> int:
        return 0

    def settle(self, within_s: float) -> None:
        """Do nothing: it is never in doubt."""

    def publish(self, group: Sequence[Outgoing], within_s: float) -> None:
        del within_s
        self._world.take_in(group)
        self.confirmed = range(len(group))


@dataclass
class CrashReport:
    """What one run with crashes did."""

    path: str
    points: tuple[str, ...]
    seed: int = SEED
    #: Where processes died; where nobody came by any more, where they should have, is missing.
    died: tuple[str, ...] = ()
    passed: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    steps: int = 0
    virtual_s: float = 0.0
    lost: dict[str, int] = field(default_factory=dict)
    real_s: float = 0.0
    trace: list[str] = field(default_factory=list, repr=False)

    @property
    def command(self) -> str:
        points = "".join(f" --at '{point}'" for point in self.points)
        return f".venv/bin/python -m tests.faults.matrix --path {self.path}{points}"


def run_path(
    path: Path,
    engine: Engine,
    points: Collection[str] = (),
    *,
    seed: int = SEED,
) -> CrashReport:
    """Run a path from empty tables to its end; processes die at `points`, one after another."""
    began = time.perf_counter()
    report = CrashReport(path.name, tuple(points), seed)
    with CrashWorld(path, path.plan(seed), engine, points) as world:
        _run(world, report)
        report.died, report.passed = tuple(world.died), world.passed
        report.lost = world.lost
        report.virtual_s = world.scheduler.now - 1000
        report.trace = world.scheduler.trace
    report.real_s = time.perf_counter() - began
    return report


def _run(world: CrashWorld, report: CrashReport) -> None:
    look_at = world.scheduler.now
    deadline = world.scheduler.now + _WITHIN_S
    while report.steps < _MOST_STEPS and world.scheduler.now < deadline and world.step():
        report.steps += 1
        if world.scheduler.now < look_at or not is_quiet(world):
            continue
        if world.is_over() and not violations(read(world), LIVENESS):
            break
        look_at = world.scheduler.now + 5
    report.violations = look(world, SAFETY + LIVENESS) + world.wrong_ends()
