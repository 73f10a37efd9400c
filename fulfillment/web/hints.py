"""Hints to the workers, sent beside the answer: a slow or dead broker delays no request."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

_MOST_WAITING = 1000
#: Of one task a hint goes out at once, and the next one not sooner than so many seconds later.
_GAP_S = 0.05


class Hints:
    """Sends hints from threads of its own.

    Hints of one task that wait together go out as one, with the arguments of all: what each is
    about was committed before. So many requests a second cause twenty messages a second, and a
    single one waits for nothing. Beyond a thousand they are dropped; the sweep finds the rest.
    """

    def __init__(self, hint: Callable[..., object]) -> None:
        self._hint = hint
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="hints")
        self._lock = threading.Lock()
        self._waiting: dict[str, list[str]] = {}
        self._sent_at: dict[str, float] = {}
        self._closed = threading.Event()

    def __call__(self, task: str, about: str) -> None:
        """Have `task` run soon, with `about` among its arguments."""
        with self._lock:
            waiting = self._waiting.setdefault(task, [])
            if about in waiting or len(waiting) >= _MOST_WAITING:
                return
            waiting.append(about)
            if len(waiting) > 1:
                return  # whoever sends the first takes this one along
        self._pool.submit(self._send, task)

    def _send(self, task: str) -> None:
        self._closed.wait(self._sent_at.get(task, 0.0) + _GAP_S - time.monotonic())
        with self._lock:
            waiting = self._waiting.pop(task)
            self._sent_at[task] = time.monotonic()
        self._hint(task, *waiting)

    def close(self) -> None:
        """Drop what still waits."""
        self._closed.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
