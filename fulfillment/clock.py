"""The one source of time. Everything else takes a clock, so that tests can own it."""

import time
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple, Protocol


class Clock(Protocol):
    """Wall time for what is stored, monotonic time for how long something took."""

    def now(self) -> datetime:
        """Give the present as an aware datetime in UTC."""
        ...

    def monotonic(self) -> float:
        """Give seconds that never jump; only differences mean anything."""
        ...


#: Where there is one, a clock that goes on while the machine is suspended.
_ELAPSED: Final[int] = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.clock_gettime(_ELAPSED)


class Comparison(NamedTuple):
    """A machine's clock and a true one, at the same moment: each as its distance to the monotonic
    one, in seconds."""

    #: When they were compared, by the monotonic clock.
    at_s: float
    machine_s: float
    true_s: float

    @property
    def ahead(self) -> timedelta:
        """Say by how much the machine's clock is ahead of the true one."""
        return timedelta(seconds=self.machine_s - self.true_s)

    def now(self, monotonic_s: float) -> datetime:
        """Give the true time, carried on by the monotonic clock, which nobody sets."""
        return datetime.fromtimestamp(monotonic_s + self.true_s, UTC)
