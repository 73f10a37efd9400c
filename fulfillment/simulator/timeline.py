"""Time that can run fast or jump, and the one list of what falls due when."""

import asyncio
import heapq
import itertools
import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from fulfillment.clock import Clock

logger = logging.getLogger(__name__)


class VirtualClock:
    """Durations run `speed` times faster; the times written on messages stay wall time.

    A client judges those by its own clock (signature age, trade deadline): they must not run ahead.
    """

    def __init__(self, clock: Clock, speed: float, offset_s: float = 0.0) -> None:
        self.speed = speed
        self._clock = clock
        self._offset = timedelta(seconds=offset_s)
        self._origin = clock.monotonic()
        self._jumped_s = 0.0

    def now(self) -> float:
        """Give virtual seconds since the start."""
        return self._jumped_s + (self._clock.monotonic() - self._origin) * self.speed

    def real(self) -> float:
        """Give seconds that no speed hurries, as a limit on requests counts them; jumps count."""
        return self._jumped_s + self._clock.monotonic() - self._origin

    def jump(self, seconds: float) -> None:
        self._jumped_s += seconds

    def wall(self, ago_s: float = 0.0) -> datetime:
        """Give the present (or a past) moment as the provider's clock shows it."""
        return (self._clock.now() + self._offset - timedelta(seconds=ago_s)).astimezone(UTC)

    def stamp(self, ago_s: float = 0.0) -> str:
        """Write that moment as the providers do: UTC, milliseconds, `Z`."""
        return self.wall(ago_s).isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def unix_ms(self) -> int:
        return int(datetime.timestamp(self._clock.now()) * 1000)


class Timeline:
    """One heap of what is due when, run by one task: no task and no timer per order."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._wake = asyncio.Event()

    def at(self, due: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (due, next(self._numbers), action))
        if self._heap[0][0] == due:
            self._wake.set()

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        self.at(self.clock.now() + seconds, action)

    def jump(self, seconds: float) -> None:
        """Let virtual seconds pass at once."""
        self.clock.jump(seconds)
        self._wake.set()

    @property
    def next_due(self) -> float | None:
        """Give the virtual second at which the next action falls due."""
        return self._heap[0][0] if self._heap else None

    def run_due(self, most: int = 100) -> bool:
        """Run actions that are due; say whether more may be."""
        for _ in range(most):
            if not self._heap or self._heap[0][0] > self.clock.now():
                return False
            _, _, action = heapq.heappop(self._heap)
            try:
                action()
            except Exception:
                logger.exception("simulator.step_failed")
        return True

    async def run(self) -> None:
        while True:
            # In small groups, so that requests are answered while thousands fall due together.
            if self.run_due():
                await asyncio.sleep(0)
                continue
            self._wake.clear()
            wait_s = None
            if self._heap:
                wait_s = max(0.0, (self._heap[0][0] - self.clock.now()) / self.clock.speed)
            try:
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
            except TimeoutError:
                pass
