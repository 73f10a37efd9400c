"""The one source of time. Everything else takes a clock, so that tests can own it."""

import time
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol


def time_of_day(at: datetime, now: datetime) -> str:
    """Show a time by UTC, with its date where that is not today's."""
    at = at.astimezone(UTC)
    is_today = at.date() == now.astimezone(UTC).date()
    return at.strftime("%H:%M:%S" if is_today else "%Y-%m-%d %H:%M:%S")


def length_in_words(length: timedelta) -> str:
    """Say how long something lasts, in hours and minutes."""
    hours, minutes = divmod(round(length.total_seconds() / 60), 60)
    counts = ((hours, "hour"), (minutes, "minute"))
    parts = [f"{count} {unit}{'s' * (count != 1)}" for count, unit in counts if count]
    return " and ".join(parts) or "less than a minute"


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
