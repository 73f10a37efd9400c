"""How a service does several things at once; a simulation puts a scheduler of its own here."""

import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any


class Threads:
    """Real threads of this process."""

    @contextmanager
    def pool(self, size: int, name: str) -> Iterator[Executor]:
        """Give threads that have ended when the block has; what was not begun by then never is."""
        executor = ThreadPoolExecutor(size, thread_name_prefix=name)
        try:
            yield executor
        finally:
            executor.shutdown(wait=True, cancel_futures=True)

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
