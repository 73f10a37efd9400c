"""Look whether what must always hold does hold, and raise an alert with ids where it does not."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from fulfillment.log import get_logger
from fulfillment.services import pulse, schedule, unknowns
from fulfillment.services.context import Context
from fulfillment.store import invariants, leases
from fulfillment.store.invariants import INVARIANTS

log = get_logger(__name__)

#: How long after its time a thing may be late without anybody being told.
_PATIENCE = timedelta(minutes=15)
_ERASE_PATIENCE = timedelta(days=1)
#: Orders a run whose logs and money are replayed: as many of the newest, as many in turn.
_SLICE = 500
_MOST_NAMES = 100
#: A check is no use to a second beat's tick this soon after.
_GAP = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class Violation:
    """An invariant that does not hold; `subjects` are orders' external ids or accounts."""

    invariant: str
    promise: str
    subjects: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Findings:
    """What the last check found, and when it ran; None where none did yet."""

    violations: Mapping[str, int]
    shown: tuple[Violation, ...]
    checked_at: datetime | None


def _parameters(context: Context) -> dict[str, Any]:
    return {
        "now": context.now(),
        "patience": _PATIENCE,
        "wallet_lag": context.wallet_lag,
        "review_after": unknowns.REVIEW_AFTER,
        "overdue_grace": schedule.OVERDUE_GRACE,
        "erase_after": timedelta(days=context.settings.erase_after_days),
        "erase_patience": _ERASE_PATIENCE,
    }


def violations(context: Context) -> list[Violation]:
    """Check everything, all orders included: for tests and for a quiet hour, not for every tick."""
    parameters = _parameters(context)
    found: dict[str, set[str]] = {invariant.name: set() for invariant in INVARIANTS}
    after_id, ids = 0, [0]
    while ids:
        with context.database.transaction() as session:
            ids = invariants.ids_after(session, after_id, _SLICE)
            for invariant in INVARIANTS:
                if invariant.is_about_ids or after_id == 0:
                    parameters["ids"] = ids
                    found[invariant.name] |= set(
                        invariants.broken(session, invariant, parameters, _SLICE)
                    )
        after_id = ids[-1] if ids else after_id
    return _violations({name: sorted(subjects) for name, subjects in found.items()})


def _violations(found: Mapping[str, list[str]]) -> list[Violation]:
    return [
        Violation(each.name, each.promise, tuple(found[each.name]))
        for each in INVARIANTS
        if found.get(each.name)
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
        leases.beat(session, pulse.INVARIANTS, now)
        before = invariants.found_before(session)
        after_id = max((row.after_id for row in before.values()), default=0)
        turn = invariants.ids_after(session, after_id, _SLICE)
        ids = {*turn, *invariants.newest_ids(session, _SLICE)}
        for invariant in INVARIANTS:
            if invariant.is_about_ids and invariant.name in before:
                ids |= set(invariants.ids_of(session, before[invariant.name].violations))
    parameters = _parameters(context) | {"ids": sorted(ids)}
    found: dict[str, list[str]] = {}
    for invariant in INVARIANTS:
        with context.database.transaction() as session:
            found[invariant.name] = invariants.broken(session, invariant, parameters, _MOST_NAMES)
    with context.database.transaction() as session:
        # Behind the last one it goes on with the first.
        invariants.keep(session, found, turn[-1] if len(turn) == _SLICE else 0, now)
    for each in _violations(found):
        known = before[each.invariant].violations if each.invariant in before else []
        if new := sorted(set(each.subjects) - set(known)):
            log.error("invariant.violated", invariant=each.invariant, why=each.promise, ids=new)
    return _violations(found)


def last_findings(context: Context) -> Findings:
    """Give what the last check found. Raises ServerUnreachable, SchemaOutdated."""
    with context.database.transaction() as session:
        kept = invariants.found_before(session)
    found = {
        each.name: list(kept[each.name].violations) for each in INVARIANTS if each.name in kept
    }
    return Findings(
        violations={each.name: len(found.get(each.name, ())) for each in INVARIANTS},
        shown=tuple(_violations(found)),
        checked_at=min((row.checked_at for row in kept.values()), default=None),
    )
