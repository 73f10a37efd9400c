"""The broker's place: what Celery publishes waits here, and is run by Celery's own tracer.

So the task bodies, their hints and the chain's hand-over are the real ones.
"""

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from celery import states
from celery.app.trace import build_tracer
from kombu.exceptions import OperationalError

import tasks.base
import tasks.checkout
import tasks.inbox
import tasks.reconcile
import tasks.sweep
import tasks.upkeep
import tasks.watchdog
from fulfillment import broker
from fulfillment.broker import app
from fulfillment.services.context import Context
from tests.faults.kinds import Faults
from tests.faults.scheduler import Scheduler

#: After so long a message comes back that was put back.
_PAUSE_S = 1.0


@dataclass(eq=False)
class Message:
    """One task message on its way."""

    name: str
    args: list[Any]
    kwargs: dict[str, Any]
    chain: list[Any] | None
    due: float
    number: int
    ids: dict[str, Any] = field(default_factory=dict)

    @property
    def orders(self) -> list[str]:
        """Name the orders that it is about, as far as it says so."""
        found = [arg["names"] for arg in self.args if isinstance(arg, dict) and "names" in arg]
        return [name for names in found for name in names]


class Bus:
    """Messages that wait, in no particular order; it may lose, double and delay them."""

    def __init__(self, scheduler: Scheduler, faults: Faults) -> None:
        self._scheduler = scheduler
        self._faults = faults
        self._numbers = itertools.count(1)
        self._away_until = 0.0
        self._tracers: dict[str, Callable[..., Any]] = {}
        self.waiting: list[Message] = []
        #: What ended a task with an error that is none of ours.
        self.crashes: list[tuple[str, BaseException]] = []

    @contextmanager
    def installed(self, context: Context) -> Iterator[None]:
        """Put this in the broker's place for a while, and `context` into the tasks."""
        with (
            mock.patch.object(app, "send_task", self.send_task),
            mock.patch.object(tasks.base, "_context", context),
            mock.patch.object(tasks.base, "_PAUSE_S", 0),  # of the machine's time
        ):
            yield

    def send_task(
        self,
        name: str,
        args: Any = None,
        kwargs: Any = None,
        chain: Any = None,
        **options: Any,
    ) -> None:
        """Take a message as `Celery.send_task` does. Raises kombu's OperationalError."""
        self._scheduler.pause()
        now, faults = self._scheduler.now, self._faults
        sent: tuple[Any, Any, Any] = tuple(
            json.loads(json.dumps([list(args or ()), dict(kwargs or {}), chain]))
        )
        number = next(self._numbers)
        message = Message(name, *sent, now, number)
        message.ids = {key: options.get(key) for key in ("root_id", "parent_id")}
        if faults.strikes("broker_away", orders=message.orders, weight=0.25):
            self._away_until = now + faults.source.uniform(1, 60)
        if now < self._away_until and faults.is_on:
            raise OperationalError("the broker is away")
        if faults.strikes("message_lost", orders=message.orders, weight=0.25):
            return
        self.waiting.append(message)
        if faults.strikes("message_doubled", orders=message.orders, weight=0.25):
            later = now + faults.source.choice((0.0, 1.0, 20.0, 90.0))
            self.waiting.append(Message(name, *sent, later, number, message.ids))
        if faults.strikes("message_delayed", orders=message.orders, weight=0.25):
            message.due = now + faults.source.uniform(1, 180)

    def send_tick(self, name: str) -> None:
        """Take a tick of beat's, which loses nothing that the next one would not bring."""
        self.waiting.append(Message(name, [], {}, None, self._scheduler.now, next(self._numbers)))

    def listen(self) -> None:
        """Let hints go out again: after a failure they are silent by the machine's clock."""
        broker._silent_until = 0.0

    def due(self) -> list[Message]:
        return [message for message in self.waiting if message.due <= self._scheduler.now]

    def next_due(self) -> float | None:
        return min((message.due for message in self.waiting), default=None)

    def has(self, name: str) -> bool:
        return any(message.name == name for message in self.waiting)

    def run(self, message: Message) -> None:
        """Run a message's task in this strand as a worker does."""
        self.listen()
        if message.name not in self._tracers:
            task = app.tasks[message.name]
            self._tracers[message.name] = build_tracer(message.name, task, app=app)
        uuid = f"message-{message.number}"
        request: dict[str, Any] = {
            "id": uuid,
            "root_id": message.ids.get("root_id") or uuid,
            "parent_id": message.ids.get("parent_id"),
            "chain": message.chain,
            "delivery_info": {},
        }
        traced = self._tracers[message.name](uuid, message.args, message.kwargs, request)
        if traced.info is not None and traced.info.state == states.REJECTED:
            message.due = self._scheduler.now + _PAUSE_S
            self.waiting.append(message)
        if traced.info is not None and traced.info.state == states.FAILURE:
            self.crashes.append((message.name, traced.info.retval))
