"""The rate budget as one process sees it: no request leaves for a provider that was not taken.

Services take in bulk what their calls will need; an adapter's HTTP client spends it request by
request, and what a call needs beyond it is taken from the shared row as it is needed.
"""

import threading
from contextvars import ContextVar
from datetime import datetime, timedelta
from types import TracebackType

from fulfillment.clock import Clock, SystemClock
from fulfillment.crash import crash_point
from fulfillment.errors import OverBudget, ServerUnreachable
from fulfillment.store import accounts
from fulfillment.store.accounts import Purpose
from fulfillment.store.engine import Database, Session, repeated

#: A request that is sent later than this after it was taken would arrive in another minute.
_FRESH = timedelta(seconds=2)

#: Those in force in this thread, the innermost last.
_present: ContextVar[tuple["Grant", ...]] = ContextVar("grants", default=())


class RateBudget:
    """One account's requests a minute, shared with all processes; None is no limit."""

    def __init__(self, account: str, limit: int | None, database: Database, clock: Clock) -> None:
        self._account = account
        self._limit = limit
        self._database = database
        self.clock = clock

    @property
    def is_limited(self) -> bool:
        return self._limit is not None

    def _now(self) -> datetime | None:
        """Give the present where a test owns time; None is the database's, which all share.

        One process whose clock is wrong must not empty, or fill, the budget of all.
        """
        return None if isinstance(self.clock, SystemClock) else self.clock.now()

    @repeated
    def take(self, purpose: Purpose, wanted: int = 1, *, leaving: int = 0) -> "Grant":
        """Take up to `wanted` requests where `leaving` more could follow them."""
        if self._limit is None or not wanted:
            return Grant(self, purpose, wanted, leaving)
        with self._database.transaction() as session:
            grant = self.take_within(session, purpose, wanted, leaving=leaving)
        crash_point("budget.taken")
        return grant

    def take_within(
        self, session: Session, purpose: Purpose, wanted: int, *, leaving: int = 0
    ) -> "Grant":
        """Take requests in a transaction that does more, and does it before.

        The account's row is locked from here on: whoever takes some waits for the commit.
        """
        size = wanted
        if self._limit is not None and wanted:
            size = accounts.take(
                session, self._account, self._limit, purpose, wanted, self._now(), leaving=leaving
            )
        return Grant(self, purpose, size, leaving)

    def seems_enough(self, session: Session, purpose: Purpose, wanted: int) -> bool:
        """Say whether so many requests could be taken now, unless somebody else is faster."""
        if self._limit is None:
            return True
        found = accounts.glance(session, self._account, self._limit, purpose, self._now())
        return found >= wanted

    @repeated
    def give_back(self, purpose: Purpose, count: int) -> None:
        if self._limit is not None and count:
            with self._database.transaction() as session:
                accounts.give_back(session, self._account, self._limit, purpose, count, self._now())

    def left(self, purpose: Purpose) -> int | None:
        """Say how many requests could be taken now; None is no limit."""
        if self._limit is None:
            return None
        with self._database.transaction() as session:
            return accounts.left(session, self._account, self._limit, purpose, self._now())

    def spend(self) -> None:
        """Count a request that leaves now. Raises OverBudget where it must not.

        Outside any grant it is a person who asks, which is urgent.
        """
        if self._limit is None:
            return
        grants = _present.get()
        if grants and grants[-1].budget is self:
            grants[-1].spend()
        else:
            Grant(self, Purpose.URGENT, 0, 0).spend()


class Grant:
    """Requests that were taken for a purpose; `with grant:` has this thread's requests spend it."""

    def __init__(self, budget: RateBudget, purpose: Purpose, size: int, leaving: int) -> None:
        self.budget = budget
        self.size = size
        self._purpose = purpose
        self._leaving = leaving
        self._left = size
        self._stale_at = budget.clock.now() + _FRESH
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        _present.set((*_present.get(), self))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _present.set(_present.get()[:-1])

    def spend(self) -> None:
        """Count one request. Raises OverBudget."""
        with self._lock:
            if self._left and self.budget.clock.now() <= self._stale_at:
                self._left -= 1
                return
        try:
            more = self.budget.take(self._purpose, leaving=self._leaving)
        except ServerUnreachable:
            raise OverBudget from None
        if not more.size:
            raise OverBudget

    def for_each(self, calls: int) -> "list[Grant]":
        """Part it among calls that belong together; nothing, and given back, where not for all.

        What a call needs beyond its own leaves enough for those that follow it.
        """
        if self.size < calls:
            self.give_back()
            return []
        parts = [Grant(self.budget, self._purpose, 1, left) for left in reversed(range(calls))]
        for part in parts:
            part._stale_at = self._stale_at
        return parts

    def give_back(self) -> None:
        """Return what was not spent."""
        with self._lock:
            unspent, self._left = self._left, 0
        self.budget.give_back(self._purpose, unspent)
