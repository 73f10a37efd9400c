"""Refuse to work by a clock that is not the database's: ends, claims and due times go by it.

What one machine writes is judged on others, so that two must agree to less than any margin between
them (docs/decisions/0020).
"""

from datetime import datetime, timedelta

from fulfillment.clock import SystemClock
from fulfillment.errors import WrongClock
from fulfillment.services.context import Context
from fulfillment.store.engine import Session

#: Clocks that are right are no farther apart. Of the margins between machines the smallest is 5 s:
#: by so much WALLET_LAG_S and LOOKUP_CACHE_S are longer than a provider's cache, and the time
#: between two lookups (`unknowns.LOOKUPS_APART`) than a minute.
APART = timedelta(seconds=2)
#: How long a comparison is believed, in seconds, unless the clock has jumped by so much since.
_BELIEVED_S = 10.0
_JUMP_S = 0.5
#: An answer that took no longer says enough; where it did, so many more are asked for.
_SOON_S = 0.1
_TRIES = 3


def check(context: Context) -> None:
    """Raise WrongClock where this machine's clock and the database's are apart.

    The database is asked every ten seconds, and whenever the clock has been set since. Raises
    ServerUnreachable. A clock that is not the machine's own is its owner's.
    """
    if not isinstance(context.clock, SystemClock):
        return
    at_s = context.clock.monotonic()
    offset_s = context.now().timestamp() - at_s
    seen = context.clock_seen
    if seen and at_s - seen[0] < _BELIEVED_S and abs(offset_s - seen[1]) < _JUMP_S:
        return
    with context.database.transaction() as session:
        by = ahead(context, session)
    if abs(by) > APART:
        raise WrongClock(by)
    context.clock_seen = at_s, offset_s


def ahead(context: Context, session: Session) -> timedelta:
    """Say by how much this machine's clock is surely ahead of the database's.

    Less than nothing: it is behind. A clock that is not the machine's own is right.
    """
    if not isinstance(context.clock, SystemClock):
        return timedelta()
    best: tuple[datetime, datetime, datetime] | None = None
    for _ in range(_TRIES):
        before = context.now()
        present: datetime = session.scalar("SELECT clock_timestamp()")
        after = context.now()
        if best is None or after - before < best[2] - best[0]:
            best = before, present, after
        if after - before < timedelta(seconds=_SOON_S):
            break
    assert best is not None
    before, present, after = best
    # The database looked at its clock at some time in between.
    return max(before - present, timedelta()) or min(after - present, timedelta())
