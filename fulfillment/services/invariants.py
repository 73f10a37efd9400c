"""Look whether what must always hold does hold, and raise an alert with ids where it does not."""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from fulfillment.errors import ServerUnreachable
from fulfillment.log import get_logger
from fulfillment.providers.http import LONGEST_PAUSE
from fulfillment.services import backstop, pulse, schedule, unknowns, wrong_clocks
from fulfillment.services.context import Context
from fulfillment.services.erasure import OTHERS_TURN
from fulfillment.store import invariants, leases
from fulfillment.store.invariants import INVARIANTS, Finding
from fulfillment.store.promises import Invariant

log = get_logger(__name__)

#: How long after its time a thing may be late without anybody being told.
_PATIENCE = timedelta(minutes=15)
_ERASE_PATIENCE = timedelta(days=1)
#: Orders a run whose logs and money are replayed: as many of the newest, as many in turn.
_SLICE = 500
_MOST_NAMES = 100
#: A check is no use to a second beat's tick this soon after.
_GAP = timedelta(seconds=30)
#: So often a statement is asked that reads a whole table.
_DEAR_GAP = timedelta(hours=1)
#: Behind the last order there may be rows of one that is gone.
_LAST_ID = 2**63 - 1
#: How a charge above the cap is told of in an order's log (services/decide.py).
_ABOVE_CAP = "above the agreed price"
#: An order at which a statement fails; or the invariant's name, where no order is to blame.
UNCHECKED = "cannot_be_checked"
_PROMISES = {each.name: each.promise for each in INVARIANTS} | {
    UNCHECKED: "whatever is kept of an order can be read by these checks"
}


@dataclass(frozen=True, slots=True)
class Violation:
    """An invariant that does not hold; `subjects` are orders' external ids or accounts.

    Of rows without an order its number stands, as `#17`.
    """

    invariant: str
    promise: str
    subjects: tuple[str, ...]


@dataclass
class _Found:
    """What breaks each invariant that was looked at, and why some could not be."""

    subjects: dict[str, set[str]] = field(default_factory=lambda: {UNCHECKED: set()})
    reasons: set[str] = field(default_factory=set)

    def add(self, broken: Mapping[str, Iterable[str]]) -> None:
        for name, subjects in broken.items():
            self.subjects.setdefault(name, set()).update(subjects)

    def violations(self) -> list[Violation]:
        return _violations({name: sorted(found) for name, found in self.subjects.items()})


def _parameters(context: Context) -> dict[str, Any]:
    accounts = context.settings.accounts
    return {
        "now": context.now(),
        "patience": _PATIENCE,
        "wallet_lag": context.wallet_lag,
        "review_after": unknowns.REVIEW_AFTER,
        "longest_unknown": unknowns.LONGEST,
        "stalled_after": context.stalled_after,
        "overdue_grace": schedule.OVERDUE_GRACE,
        "erase_after": timedelta(days=context.settings.erase_after_days),
        "erase_patience": _ERASE_PATIENCE,
        "others_turn": OTHERS_TURN,
        "longest_watch": schedule.LONGEST_WATCH,
        "key_ids": [each.encode() for each in context.seal.key_ids],
        "lease": context.lease,
        # An account's pause, or until a cached answer is too old to count.
        "longest_pause": 2 * LONGEST_PAUSE + context.cache_time,
        "longest_poll_gap": schedule.longest_poll_gap(context),
        "longest_watch_gap": schedule.longest_watch_gap(context),
        "accounts": list(accounts),
        "slippage_bps": [account.slippage_bps for account in accounts.values()],
        "slippage_cents": [account.slippage_cents for account in accounts.values()],
        "above_cap": _ABOVE_CAP,
    }


def violations(context: Context) -> list[Violation]:
    """Check everything, all orders included: for tests and for a quiet hour, not for every tick."""
    found = _Found()
    after_id, is_last = 0, False
    while not is_last:
        with context.database.transaction() as session:
            ids = invariants.ids_after(session, after_id, _SLICE)
        # Behind the last one nothing is left but rows of orders that are gone.
        is_last = len(ids) < _SLICE
        asked = [each for each in INVARIANTS if each.is_about_ids or after_id == 0]
        to_id = _LAST_ID if is_last else ids[-1]
        parameters = _parameters(context) | {"after": after_id, "to": to_id}
        _look_at_all(_Reader(context, parameters, _SLICE), asked, ids, found)
        after_id = to_id
    return found.violations()


@dataclass(frozen=True, slots=True)
class _Reader:
    """Asks the statements, each for up to `limit` names."""

    context: Context
    parameters: Mapping[str, Any]
    limit: int
    #: Worth its time where tables are large and little of them is asked about.
    by_values: bool = False

    def broken(self, asked: Sequence[Invariant], ids: Sequence[int]) -> dict[str, list[str]]:
        """Give what breaks each of these, all in one transaction."""
        values = {**self.parameters, "ids": ids}
        with self.context.database.transaction() as session:
            if self.by_values:
                invariants.plan_by_values(session)
            return {i.name: invariants.broken(session, i, values, self.limit) for i in asked}


def _look_at_all(
    reader: _Reader, asked: Sequence[Invariant], ids: Sequence[int], found: _Found
) -> None:
    """Add what breaks these invariants, in one transaction; where that fails, one by one."""
    try:
        whole = backstop.tried(lambda members: reader.broken(asked, members), ids)
    except ServerUnreachable as error:
        whole = backstop.Halves(error=error)
    if whole.error is not None:
        for invariant in asked:
            _look(reader, invariant, ids, found)
    for broken in whole.results:
        found.add(broken)


def _look(reader: _Reader, invariant: Invariant, ids: Sequence[int], found: _Found) -> None:
    """Add what breaks one invariant; where it cannot be looked at, who is to blame for that.

    Then what was found of it before is left as it is. Raises ServerUnreachable where nothing can
    be looked at.
    """
    members = ids if invariant.is_about_ids else []
    try:
        halves = backstop.halved(lambda part: reader.broken([invariant], part), members)
    except ServerUnreachable as error:
        reader.context.database.ping()  # it is there: this one statement takes too long
        halves = backstop.Halves(error=error)
    if halves.error is not None:
        found.reasons.add(f"{invariant.name}: {type(halves.error).__name__}")
        with reader.context.database.transaction() as session:
            names = invariants.names_of(session, halves.failed)
        found.subjects[UNCHECKED] |= set(names) or {invariant.name}
    for broken in halves.results:
        found.add(broken)


def _violations(found: Mapping[str, Iterable[str]]) -> list[Violation]:
    return [
        Violation(name, promise, tuple(subjects))
        for name, promise in _PROMISES.items()
        if (subjects := found.get(name))
    ]


def check(context: Context) -> list[Violation]:
    """Check once with a bounded effort, alert of what is new, and keep what was found.

    Logs and money are replayed for the newest orders, the next ones in turn, and those that were
    found broken before; so a violation stays until it is gone.
    """
    now = context.now()
    with context.database.transaction() as session:
        if not leases.acquire(session, "invariants", uuid.uuid4().hex, now, now + _GAP):
            return []
        before = invariants.found_before(session)
        last = max(before.values(), key=lambda row: row.checked_at, default=None)
        after_id = last.after_id if last else 0
        turn = invariants.ids_after(session, after_id, _SLICE)
        known = [name for row in before.values() for name in row.violations]
        ids = sorted({*turn, *invariants.ids_beside(session, known, _SLICE)})
    wrong_clocks.bring_back(context)
    # Behind the last one it goes on with the first.
    is_last = len(turn) < _SLICE
    parameters = _parameters(context) | {"after": after_id, "to": _LAST_ID if is_last else turn[-1]}
    found = _Found()
    asked = [
        each
        for each in INVARIANTS
        if not each.is_dear or _is_asked_again(before.get(each.name), now)
    ]
    _look_at_all(_Reader(context, parameters, _MOST_NAMES, by_values=True), asked, ids, found)
    with context.database.transaction() as session:
        subjects = {name: sorted(each) for name, each in found.subjects.items()}
        invariants.keep(session, subjects, 0 if is_last else turn[-1], now)
        leases.beat(session, pulse.INVARIANTS, now)
    _alert(found, before)
    return found.violations()


def _is_asked_again(last: Finding | None, now: datetime) -> bool:
    """Say whether a dear statement is due: what it found is looked at again until it is gone."""
    return last is None or bool(last.violations) or now - last.checked_at >= _DEAR_GAP


def _alert(found: _Found, before: Mapping[str, Finding]) -> None:
    for each in found.violations():
        told = before[each.invariant].violations if each.invariant in before else []
        if new := sorted(set(each.subjects) - set(told)):
            why = each.promise
            if each.invariant == UNCHECKED:
                why += f"; it fails at {', '.join(sorted(found.reasons))}"
            log.error("invariant.violated", invariant=each.invariant, why=why, ids=new)


def last_findings(context: Context) -> tuple[list[Violation], datetime | None]:
    """Give what the last check found, and when; None where none ran yet.

    Raises ServerUnreachable, SchemaOutdated.
    """
    with context.database.transaction() as session:
        kept = invariants.found_before(session)
    found = {name: row.violations for name, row in kept.items()}
    return _violations(found), max((row.checked_at for row in kept.values()), default=None)


def last_counts(context: Context) -> dict[str, int]:
    """Count what breaks each invariant, by the last check."""
    found, _ = last_findings(context)
    return dict.fromkeys(_PROMISES, 0) | {each.invariant: len(each.subjects) for each in found}


def age(context: Context) -> timedelta:
    """Say how long ago a check was last completed; where none was, since when one is missing."""
    now = context.now()
    with context.database.transaction() as session:
        kept = invariants.found_before(session)
        since = max((row.checked_at for row in kept.values()), default=None)
        since = since or invariants.oldest_order_at(session) or now
    return max(now - since, timedelta())
