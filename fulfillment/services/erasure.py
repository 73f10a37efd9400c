"""Erase trade URLs and sent bodies when their order has been over for the set number of days.

A keyed hash of the trade URL stays: who has the URL and the key can say whether, and to which
orders, it belonged; nobody can find it from the hash.
"""

from datetime import timedelta

from fulfillment.crash import crash_point
from fulfillment.errors import ConfigurationError
from fulfillment.log import get_logger
from fulfillment.services import pulse
from fulfillment.services.context import Context
from fulfillment.store import erasure, leases

log = get_logger(__name__)

_SLICE = 500
#: So long what this process has no key for is left to those that have it.
_OTHERS_TURN = timedelta(days=7)
#: A run ends after so many slices; the next one goes on.
_MOST_SLICES = 20


def erase(context: Context) -> int:
    """Erase what is due; give of how many orders."""
    with context.database.transaction() as session:
        leases.beat(session, pulse.ERASURE, context.now())
    total = 0
    for _ in range(_MOST_SLICES):
        erased = _erase_slice(context)
        total += erased
        if erased < _SLICE:
            break
    if total:
        log.info("erasure.done", orders=total)
    return total


def _erase_slice(context: Context) -> int:
    before = context.now() - timedelta(days=context.settings.erase_after_days)
    unreadable = []
    with context.database.transaction() as session:
        hashes: dict[int, str | None] = {}
        due = erasure.lock_due(session, before, before - _OTHERS_TURN, context.seal.key_ids, _SLICE)
        for order_id, name, sealed in due:
            try:
                hashes[order_id] = context.seal.fingerprint(context.seal.open(sealed))
            except ConfigurationError:
                # Nobody had its key for days, and that is no reason to keep it.
                hashes[order_id] = None
                unreadable.append(name)
        if hashes:
            erasure.erase(session, hashes)
            crash_point("erase.before_commit")
    if unreadable:
        log.error("erasure.without_hash", why="the key is not set", orders=unreadable)
    crash_point("erase.after_commit", hashes)
    return len(hashes)
