"""Hints to the workers, sent beside the answer: a slow or dead broker delays no request."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

_MOST_WAITING = 1000


class Hints:
    """Sends hints from threads of its own.

    A hint equal to one that still waits is left out, since that one goes out after this one's
    commit too; beyond a thousand they are dropped, and the sweep finds what they were about.
    """

    def __init__(self, hint: Callable[..., object]) -> None:
        self._hint = hint
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="hints")
        self._lock = threading.Lock()
        self._waiting: set[tuple[str | int, ...]] = set()

    def __call__(self, *call: str | int) -> None:
        with self._lock:
            if call in self._waiting or len(self._waiting) >= _MOST_WAITING:
                return
            self._waiting.add(call)
        self._pool.submit(self._send, call)

    def _send(self, call: tuple[str | int, ...]) -> None:
        with self._lock:
            self._waiting.discard(call)
        self._hint(*call)

    def close(self) -> None:
        """Drop what still waits."""
        self._pool.shutdown(wait=False, cancel_futures=True)
