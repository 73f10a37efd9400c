"""Runs many strands of work one at a time, in an order and at times that a seed decides.

A strand is a greenlet that goes on until it pauses; so production code runs as it is, and the same
seed gives the same interleaving. Threads would do, at fifty times the price of each change of
turns. A process is what dies or freezes as a whole.
"""

import hashlib
import heapq
import itertools
import random
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from greenlet import getcurrent, greenlet

from fulfillment.services.threads import Slots, Threads
from tests.support import FakeClock


class Killed(BaseException):
    """This strand's process is dead: nothing that it would still do may have an effect."""


@dataclass(eq=False)
class Process:
    """One operating-system process of the simulated system."""

    name: str
    is_dead: bool = False
    frozen_until: float = 0.0


@dataclass(eq=False)
class Strand:
    """One thread of a process; `due` is when it may go on, `until` what it waits for."""

    process: Process
    name: str
    act: Callable[[], Any]
    due: float
    until: Callable[[], bool] | None = None
    #: Where it goes on; None before it has begun.
    place: greenlet | None = None
    error: BaseException | None = None

    def is_ready(self, now: float) -> bool:
        if self.process.is_dead:
            return True
        if now < self.due or now < self.process.frozen_until:
            return False
        return self.until is None or self.until()

    @property
    def wakes_at(self) -> float | None:
        """Give when time alone lets it go on; None where it waits for something else."""
        waits = self.until is not None and not self.until()
        return None if waits else max(self.due, self.process.frozen_until)


@dataclass(eq=False)
class _Timer:
    act: Callable[[], Any]
    is_off: bool = False


class Scheduler:
    """Owns virtual time: it passes only when nothing can run, or as strands pause for it."""

    def __init__(self, source: random.Random, clock: FakeClock) -> None:
        self.source = source
        self.clock = clock
        self.trace: list[str] = []
        self.errors: list[tuple[str, BaseException]] = []
        self._strands: list[Strand] = []
        self._timers: list[tuple[float, int, _Timer]] = []
        self._numbers = itertools.count()
        self._present: Strand | None = None
        self._is_alone = False

    @property
    def now(self) -> float:
        return self.clock.monotonic()

    @property
    def process(self) -> Process | None:
        """Give the process of the strand that runs now."""
        return self._present.process if self._present else None

    @property
    def doing(self) -> str:
        """Name the strand that runs now; "" where none does."""
        return self._present.name if self._present else ""

    @property
    def digest(self) -> str:
        """Name the course of the run so far."""
        return hashlib.sha256("\n".join(self.trace).encode()).hexdigest()[:16]

    def note(self, text: str) -> None:
        self.trace.append(f"{self.now - 1000:9.3f} {text}")

    def spawn(self, process: Process, name: str, act: Callable[[], Any]) -> Strand:
        strand = Strand(process, name, act, self.now)
        self._strands.append(strand)
        return strand

    def count(self, process: Process) -> int:
        return sum(strand.process is process for strand in self._strands)

    def orders_of(self, process: Process) -> list[str]:
        """Name the orders that a process works on, as its strands' names tell."""
        names = [s.name for s in self._strands if s.process is process]
        return [word for name in names for word in name.split() if word.startswith("order-")]

    def at(self, due: float, act: Callable[[], Any]) -> _Timer:
        """Let something happen at a time, outside any strand."""
        timer = _Timer(act)
        heapq.heappush(self._timers, (due, next(self._numbers), timer))
        return timer

    def kill(self, process: Process) -> None:
        """End a process between two steps; its strands unwind without an effect."""
        self.note(f"killed {process.name}")
        process.is_dead = True

    def pause(self, seconds: float = 0.0, until: Callable[[], bool] | None = None) -> None:
        """Let others go on; returns when this strand is chosen again.

        Does nothing outside strands. Raises Killed when the process died meanwhile.
        """
        strand = self._present
        if strand is None or self._is_alone:
            return
        if strand.process.is_dead:
            raise Killed
        strand.due, strand.until = self.now + seconds, until
        self._leave()
        if strand.process.is_dead:
            raise Killed

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Let nobody but the present strand go on to the end of the block."""
        self._is_alone = True
        try:
            yield
        finally:
            self._is_alone = False

    def step(self, others: Collection[Callable[[], Any]] = ()) -> bool:
        """Do one thing that can be done now, or one of `others`; False if there is none."""
        for strand in [each for each in self._strands if each.process.is_dead]:
            self._resume(strand)
        while self._timers and self._timers[0][0] <= self.now:
            timer = heapq.heappop(self._timers)[2]
            if not timer.is_off:
                timer.act()
        now = self.now
        ready: list[Strand | Callable[[], Any]] = []
        ready += [strand for strand in self._strands if strand.is_ready(now)]
        ready += others
        if not ready:
            return False
        chosen = ready[self.source.randrange(len(ready))]
        if isinstance(chosen, Strand):
            self._resume(chosen)
        else:
            chosen()
        return True

    def next_due(self) -> float | None:
        """Give when something becomes possible by time alone."""
        while self._timers and self._timers[0][2].is_off:
            heapq.heappop(self._timers)
        dues = [due for strand in self._strands if (due := strand.wakes_at) is not None]
        dues += [self._timers[0][0]] if self._timers else []
        return min(dues, default=None)

    def is_busy(self) -> bool:
        return bool(self._strands)

    def close(self) -> None:
        """Unwind every strand that is left."""
        for strand in list(self._strands):
            strand.process.is_dead = True
            self._resume(strand)

    def _resume(self, strand: Strand) -> None:
        """Let a strand go on until it pauses or ends."""
        self.note(strand.name)
        if strand.place is None:
            if strand.process.is_dead:
                self._strands.remove(strand)
                return
            strand.place = greenlet(lambda: self._act(strand))
        self._present = strand
        strand.place.switch()
        self._present = None
        if strand.place.dead:
            self._strands.remove(strand)
            if strand.error is not None:
                self.errors.append((strand.name, strand.error))

    def _leave(self) -> None:
        """Go on where this strand was resumed."""
        hub = getcurrent().parent
        assert hub is not None
        hub.switch()

    def _act(self, strand: Strand) -> None:
        try:
            strand.act()
        except Killed:
            pass
        except BaseException as error:
            strand.error = error


class _Lock:
    """A lock for strands."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._is_held = False

    def __enter__(self) -> None:
        if self._is_held:
            self._scheduler.pause(until=lambda: not self._is_held)
        self._is_held = True

    def __exit__(self, *error: object) -> None:
        self._is_held = False


class SimulatedThreads(Threads):
    """A service's threads as strands of the process that it runs in."""

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__()
        self._scheduler = scheduler

    def lock(self) -> _Lock:
        return _Lock(self._scheduler)

    @contextmanager
    def named(self, name: str) -> Iterator[bool]:
        with super().named(self._own(name)) as is_only:
            yield is_only

    def slots(self, name: str, size: int) -> Slots:
        return self._slots.setdefault(self._own(name), _Slots(self._scheduler, size))

    def _own(self, name: str) -> str:
        """Tell what one process names so from what another one does."""
        process = self._scheduler.process
        return f"{process.name if process else ''} {name}"

    @contextmanager
    def pool(self, size: int, name: str) -> Iterator[Executor]:
        executor = _Executor(self._scheduler, size, name)
        try:
            yield executor
        finally:
            executor.shutdown(cancel_futures=True)

    def pause(self, seconds: float) -> None:
        self._scheduler.pause(seconds)

    def first_done(
        self, flying: Collection[Future[Any]], group_s: float, most_s: float | None = None
    ) -> list[Future[Any]]:
        scheduler = self._scheduler
        ends_at = float("inf") if most_s is None else scheduler.now + most_s
        if most_s is not None:
            scheduler.at(ends_at, lambda: None)  # or time would not come to it
        scheduler.pause(
            until=lambda: scheduler.now >= ends_at or any(future.done() for future in flying)
        )
        if not any(future.done() for future in flying):
            return []
        if not all(future.done() for future in flying):
            self._scheduler.pause(group_s)
        return [future for future in flying if future.done()]

    def all_done(self, flying: Collection[Future[Any]]) -> None:
        self._scheduler.pause(until=lambda: all(future.done() for future in flying))

    @contextmanager
    def repeating(self, every_s: float, act: Callable[[], bool], name: str) -> Iterator[None]:
        scheduler, process = self._scheduler, self._scheduler.process
        if process is None:
            yield
            return
        stopped: list[bool] = []

        def act_once() -> None:
            if not stopped and act():
                wait()

        def fire() -> None:
            if process.frozen_until > scheduler.now:
                timers[:] = [scheduler.at(process.frozen_until, fire)]
            elif not process.is_dead and not stopped:
                scheduler.spawn(process, name, act_once)

        def wait() -> None:
            timers[:] = [scheduler.at(scheduler.now + every_s, fire)]

        timers: list[_Timer] = []
        wait()
        try:
            yield
        finally:
            stopped.append(True)
            timers[0].is_off = True


class _Slots(Slots):
    def __init__(self, scheduler: Scheduler, size: int) -> None:
        super().__init__(size)
        self._scheduler = scheduler

    def wait(self, least: int = 1) -> None:
        self._scheduler.pause(until=lambda: self.are_free(least))


class _Executor(Executor):
    def __init__(self, scheduler: Scheduler, size: int, name: str) -> None:
        self._scheduler = scheduler
        self._size = size
        self._name = name
        self._flying: list[Future[Any]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        process = self._scheduler.process
        assert process is not None, "services run in strands"

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(fn(*args, **kwargs))
            except Exception as error:
                future.set_exception(error)

        strand = self._scheduler.spawn(process, self._name, run)
        earlier = list(self._flying)
        strand.until = lambda: sum(not f.done() for f in earlier) < self._size
        self._flying.append(future)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        if cancel_futures:
            for future in self._flying:
                future.cancel()
        if wait:
            self._scheduler.pause(until=lambda: all(future.done() for future in self._flying))
