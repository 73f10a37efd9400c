"""Calls that come at once are done as one, as a database commits those that wait together."""

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

A = TypeVar("A")
R = TypeVar("R")


class _Call(Generic[A, R]):
    """One thread's argument, and what became of it."""

    def __init__(self, argument: A) -> None:
        self.argument = argument
        self.leads = False
        self.turn = threading.Event()
        self.results: Sequence[R] = ()
        self.error: BaseException | None = None


class Together(Generic[A, R]):
    """Has `act` called with the arguments of all threads that wait; none waits for others to come.

    A thread that comes while nothing is under way acts at once, for itself alone. Of those that
    come meanwhile the first acts next, for up to `most` of them.
    """

    def __init__(self, act: Callable[[Sequence[A]], Sequence[R]], most: int) -> None:
        self._act = act
        self._most = most
        self._lock = threading.Lock()
        self._waiting: list[_Call[A, R]] = []
        self._is_acting = False

    def __call__(self, argument: A) -> R:
        """Give this argument's result. Raises what `act` raises, to everybody of its group."""
        call: _Call[A, R] = _Call(argument)
        with self._lock:
            self._waiting.append(call)
            call.leads = not self._is_acting
            self._is_acting = True
        if not call.leads:
            call.turn.wait()
        if call.leads:
            self._lead()
        if call.error is not None:
            raise call.error
        return call.results[0]

    def _lead(self) -> None:
        with self._lock:
            group = self._waiting[: self._most]
            del self._waiting[: self._most]
        try:
            results = self._act([call.argument for call in group])
            for call, result in zip(group, results, strict=True):
                call.results = [result]
        except BaseException as error:
            for call in group:
                call.error = error
            raise
        finally:
            with self._lock:
                following = self._waiting[:1]
                self._is_acting = bool(following)
            for call in following:
                call.leads = True
            for call in (*group, *following):
                call.turn.set()
