"""Erase trade URLs and sent bodies when their order has been over for the set number of days.

A keyed hash of the trade URL stays: who has the URL and the key can say whether, and to which
orders, it belonged; nobody can find it from the hash.
"""

from datetime import timedelta

from fulfillment.crash import crash_point
from fulfillment.errors import ConfigurationError
from fulfillment.log import get_logger
from fulfillment.services import pulse, schedule
from fulfillment.services.context import Context
from fulfillment.store import erasure, leases

log = get_logger(__name__)

_SLICE = 500
#: So long what this process has no key for is left to those that have it.
OTHERS_TURN = timedelta(days=7)
#: A run ends after so many slices; the next one goes on.
_MOST_SLICES = 20


def erase(context: Context) -> int:
    """Erase what is due; give of how many orders."""
    with context.database.transaction() as session:
        leases.beat(session, pulse.ERASURE, context.now())
    total = 0
    left: list[int] = []
    for _ in range(_MOST_SLICES):
        seen, erased = _erase_slice(context, left)
        total += erased
        if seen < _SLICE:
            break
    if total:
        log.info("erasure.done", orders=total)
    return total


def _erase_slice(context: Context, left: list[int]) -> tuple[int, int]:
    """Give how many were seen and how many erased; add to `left` what others may still read."""
    before = context.now() - timedelta(days=context.settings.erase_after_days)
    unreadable = []
    seal = context.seal
    with context.database.transaction() as session:
        hashes: dict[int, str | None] = {}
        asked, unreadable_before = before - schedule.LONGEST_WATCH, before - OTHERS_TURN
        due = erasure.lock_due(
            session, before, asked, unreadable_before, seal.key_ids, _SLICE, left
        )
        for order in due:
            try:
                hashes[order.id] = seal.fingerprint(seal.open(order.trade_url_sealed))
            except ConfigurationError:
                if not order.is_long_over:
                    left.append(order.id)  # sealed by another key of the same id
                    continue
                # Nobody had its key for days, and that is no reason to keep it.
                hashes[order.id] = None
                unreadable.append(order.external_id)
        if hashes:
            erasure.erase(session, hashes)
            crash_point("erase.before_commit")
    if unreadable:
        log.error("erasure.without_hash", why="the key is not set", orders=unreadable)
    crash_point("erase.after_commit", hashes)
    return len(due), len(hashes)
