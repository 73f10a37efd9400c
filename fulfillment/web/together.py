"""Calls that come at once are done as one, as a database commits those that wait together."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Generic, TypeVar

A = TypeVar("A")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class _Call(Generic[A, R]):
    argument: A
    result: asyncio.Future[R]


class Together(Generic[A, R]):
    """Has `act` called, in a thread, with the arguments of all calls that wait.

    A call that comes while nothing is under way is acted on at once, for itself alone: none waits
    for others to come. Those that come meanwhile are acted on next, up to `most` at a time. For one
    event loop.
    """

    def __init__(
        self, act: Callable[[Sequence[A]], Sequence[R]], most: int, executor: Executor
    ) -> None:
        self._act = act
        self._most = most
        self._executor = executor
        self._waiting: deque[_Call[A, R]] = deque()
        self._is_acting = False

    async def __call__(self, argument: A) -> R:
        """Give this argument's result. Raises what `act` raises, to everybody of its group.

        A call that is cancelled before its group begins is never acted on.
        """
        call: _Call[A, R] = _Call(argument, asyncio.get_running_loop().create_future())
        self._waiting.append(call)
        self._begin()
        return await call.result

    def _begin(self) -> None:
        group: list[_Call[A, R]] = []
        while self._waiting and len(group) < self._most and not self._is_acting:
            call = self._waiting.popleft()
            if not call.result.done():
                group.append(call)
        if not group:
            return
        self._is_acting = True
        loop = asyncio.get_running_loop()
        arguments = [call.argument for call in group]
        acting = loop.run_in_executor(self._executor, self._act, arguments)
        acting.add_done_callback(lambda done: self._end(group, done))

    def _end(self, group: Sequence[_Call[A, R]], acting: asyncio.Future[Sequence[R]]) -> None:
        self._is_acting = False
        if acting.cancelled():
            error: BaseException | None = asyncio.CancelledError()
        else:
            error = acting.exception()
        results = [] if error else acting.result()
        for place, call in enumerate(group):
            if call.result.done():
                continue  # whoever called has given up
            if isinstance(error, asyncio.CancelledError):
                call.result.cancel()
            elif error is not None:
                call.result.set_exception(error)
            else:
                call.result.set_result(results[place])
        self._begin()
