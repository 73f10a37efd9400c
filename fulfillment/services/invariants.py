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


def _parameters(context: Context) -> dict[str, Any]:
    return {
        "now": context.now(),
        "patience": _PATIENCE,
        "wallet_lag": context.wallet_lag,
        "review_after": unknowns.REVIEW_AFTER,
        "stalled_after": context.stalled_after,
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
        turn = invariants.ids_after(
            session, max((row.after_id for row in before.values()), default=0), _SLICE
        )
        known = [name for row in before.values() for name in row.violations]
        ids = {*turn, *invariants.ids_beside(session, known, _SLICE)}
    parameters = _parameters(context) | {"ids": sorted(ids)}
    found: dict[str, list[str]] = {}
    for invariant in INVARIANTS:
        with context.database.transaction() as session:
            found[invariant.name] = invariants.broken(session, invariant, parameters, _MOST_NAMES)
    with context.database.transaction() as session:
        # Behind the last one it goes on with the first.
        invariants.keep(session, found, turn[-1] if len(turn) == _SLICE else 0, now)
    for each in _violations(found):
        told = before[each.invariant].violations if each.invariant in before else []
        if new := sorted(set(each.subjects) - set(told)):
            log.error("invariant.violated", invariant=each.invariant, why=each.promise, ids=new)
    return _violations(found)


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
    none = dict.fromkeys((each.name for each in INVARIANTS), 0)
    return none | {each.invariant: len(each.subjects) for each in found}
