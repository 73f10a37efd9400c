"""How a service does several things at once; a simulation puts a scheduler of its own here."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class _Lent(Executor):
    """An executor that one block has for itself."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._given: list[Future[Any]] = []

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future = self._executor.submit(fn, *args, **kwargs)
        self._given.append(future)
        return future

    def come_to_rest(self) -> None:
        """Cancel what was not begun and wait for the rest; the threads live on."""
        for future in self._given:
            future.cancel()
        wait(self._given)


class Slots:
    """How much of one kind this process may have under way at the same time."""

    def __init__(self, size: int) -> None:
        self._free = size
        self._changed = threading.Condition()

    def are_free(self, least: int = 1) -> bool:
        return self._free >= least

    def take(self, most: int) -> int:
        """Take up to so many, as many as are free now; say how many."""
        with self._changed:
            taken = max(0, min(most, self._free))
            self._free -= taken
        return taken

    def give_back(self, count: int) -> None:
        with self._changed:
            self._free += count
            self._changed.notify_all()

    def wait(self, least: int = 1) -> None:
        """Wait until so many are free; somebody else may be quicker to take them."""
        with self._changed:
            self._changed.wait_for(lambda: self.are_free(least))


class Share:
    """What one block has of the slots."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._held = 0
        self._lock = threading.Lock()

    def take(self, most: int) -> int:
        """Take up to so many of those that are free now; say how many."""
        taken = self._slots.take(most)
        with self._lock:
            self._held += taken
        return taken

    def give_back(self, count: int = 1) -> None:
        """Give back what was taken; after the block's end that is done already."""
        with self._lock:
            count = min(count, self._held)
            self._held -= count
        self._slots.give_back(count)

    def wait(self, least: int = 1) -> None:
        """Wait until `take` could find so many."""
        self._slots.wait(least)

    def close(self) -> None:
        """Give back all that is still held."""
        self.give_back(self._held)


class Threads:
    """Real threads of this process, kept for the next block: starting one costs half a request."""

    def __init__(self) -> None:
        #: The process is told to stop: what others can do is left to them.
        self.is_ending = False
        self._idle: dict[tuple[str, int], list[ThreadPoolExecutor]] = {}
        self._slots: dict[str, Slots] = {}
        self._names = Counter[str]()
        self._naming = threading.Lock()

    def lock(self) -> AbstractContextManager[Any]:
        """Give a lock for threads of one block."""
        return threading.Lock()

    @contextmanager
    def share(self, name: str, size: int) -> Iterator[Share]:
        """Give a part in the slots that all blocks of this process have together."""
        share = Share(self.slots(name, size))
        try:
            yield share
        finally:
            share.close()

    @contextmanager
    def named(self, name: str) -> Iterator[bool]:
        """Say whether no other block of this process has the name now; this one has it as well."""
        with self._naming:
            self._names[name] += 1
            is_only = self._names[name] == 1
        try:
            yield is_only
        finally:
            with self._naming:
                self._names[name] -= 1
                if not self._names[name]:
                    del self._names[name]

    def slots(self, name: str, size: int) -> Slots:
        """Give the slots of this name, which number `size` from their first use on."""
        return self._slots.setdefault(name, Slots(size))

    @contextmanager
    def pool(self, size: int, name: str) -> Iterator[Executor]:
        """Give threads that are at rest when the block has ended; what was not begun never is."""
        idle = self._idle.setdefault((name, size), [])
        try:
            executor = idle.pop()
        except IndexError:
            executor = ThreadPoolExecutor(size, thread_name_prefix=name)
        lent = _Lent(executor)
        try:
            yield lent
        finally:
            lent.come_to_rest()
            idle.append(executor)

    def pause(self, seconds: float) -> None:
        """Let some time pass."""
        time.sleep(seconds)

    def first_done(
        self, flying: Collection[Future[Any]], group_s: float, most_s: float | None = None
    ) -> list[Future[Any]]:
        """Wait for one of these, and `group_s` longer for those that come with it.

        Gives them in the order in which they stand in `flying`; none where none comes within
        `most_s`.
        """
        done, _ = wait(flying, timeout=most_s, return_when=FIRST_COMPLETED)
        if done and len(done) < len(flying):
            done, _ = wait(flying, timeout=group_s)
        return [future for future in flying if future in done]

    def all_done(self, flying: Collection[Future[Any]]) -> None:
        """Wait for all of these."""
        wait(flying)

    @contextmanager
    def repeating(self, every_s: float, act: Callable[[], bool], name: str) -> Iterator[None]:
        """Call `act` every so often beside the block, as long as it says yes."""
        stop = threading.Event()

        def repeat() -> None:
            while not stop.wait(every_s) and act():
                pass

        thread = threading.Thread(target=repeat, name=name, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
