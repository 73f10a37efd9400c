"""How a service does several things at once; a simulation puts a scheduler of its own here."""

import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
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


class Threads:
    """Real threads of this process, kept for the next block: starting one costs half a request."""

    def __init__(self) -> None:
        self._idle: dict[tuple[str, int], list[ThreadPoolExecutor]] = {}

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

    def first_done(self, flying: Collection[Future[Any]], group_s: float) -> list[Future[Any]]:
        """Wait for one of these, and `group_s` longer for those that come with it.

        Gives them in the order in which they stand in `flying`.
        """
        done, _ = wait(flying, return_when=FIRST_COMPLETED)
        if len(done) < len(flying):
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
