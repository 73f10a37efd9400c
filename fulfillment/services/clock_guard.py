"""Refuse to work by a clock that is not the database's: ends, claims and due times go by it."""

from datetime import datetime, timedelta

from fulfillment.clock import SystemClock
from fulfillment.errors import WrongClock
from fulfillment.services.context import Context
from fulfillment.store.engine import Session

#: Clocks that are right are no farther apart.
_APART = timedelta(minutes=1)
#: How long a comparison is believed, in seconds, unless the clock has jumped by so much since.
_BELIEVED_S = 60.0
_JUMP_S = 5.0


def check(context: Context) -> None:
    """Raise WrongClock where this machine's clock and the database's are apart.

    The database is asked once a minute, and whenever the clock has been set since. Raises
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
    if abs(by) > _APART:
        raise WrongClock(by)
    context.clock_seen = at_s, offset_s


def ahead(context: Context, session: Session) -> timedelta:
    """Say by how much this machine's clock is ahead of the database's."""
    present: datetime = session.scalar("SELECT clock_timestamp()")
    return context.now() - present


def is_right(context: Context, session: Session) -> bool:
    """Say whether the two clocks agree; one that is not the machine's own is right."""
    return not isinstance(context.clock, SystemClock) or abs(ahead(context, session)) <= _APART
