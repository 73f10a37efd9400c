"""Go by the database's clock, carried on by the one that nobody sets (docs/decisions/0020).

Ends, claims and due times of one machine are judged on others: two that differ by less than any
margin between them agree.
"""

from datetime import timedelta

from fulfillment.clock import Comparison, SystemClock
from fulfillment.errors import WrongClock
from fulfillment.services.context import Context
from fulfillment.store.engine import Session

#: Clocks that are right are no farther apart; one of two that are is wrong, and nobody knows which.
_APART = timedelta(minutes=1)
#: How long a comparison is believed, in seconds, unless the clock has jumped by so much since.
_BELIEVED_S = 60.0
_JUMP_S = 1.0
#: A difference of less is none: nobody's time goes back for it.
_SAME_S = 0.05
#: How often the database is asked, at the most, for an answer that comes at once.
_TRIES = 3


def check(context: Context) -> None:
    """Have the context go by the database's clock; raise WrongClock where this machine's is apart.

    The database is asked once a minute, and whenever the clock has been set since. Raises
    ServerUnreachable. A clock that is not the machine's own is its owner's.
    """
    if not isinstance(context.clock, SystemClock):
        return
    seen = context.clock_seen
    at_s, machine_s = _machine(context)
    if seen and at_s - seen.at_s < _BELIEVED_S and abs(machine_s - seen.machine_s) < _JUMP_S:
        return
    with context.database.transaction() as session:
        compared = compare(context, session)
    if abs(compared.ahead) > _APART:
        raise WrongClock(compared.ahead)
    if seen and abs(compared.true_s - seen.true_s) < _SAME_S:
        compared = compared._replace(true_s=seen.true_s)
    context.clock_seen = compared


def compare(context: Context, session: Session) -> Comparison:
    """Compare this machine's clock with the database's, to half of what an answer takes.

    A clock that is not the machine's own is right.
    """
    if not isinstance(context.clock, SystemClock):
        at_s, machine_s = _machine(context)
        return Comparison(at_s, machine_s, machine_s)
    best: tuple[float, Comparison] | None = None
    for _ in range(_TRIES):
        at_s, machine_s = _machine(context)
        true = session.scalar("SELECT clock_timestamp()").timestamp()
        took_s = context.clock.monotonic() - at_s
        true_s = true - (at_s + took_s / 2)
        if abs(true_s - machine_s) <= max(took_s / 2, _SAME_S):
            true_s = machine_s
        if best is None or took_s < best[0]:
            best = took_s, Comparison(at_s, machine_s, true_s)
        if took_s < _SAME_S:
            break
    assert best is not None
    return best[1]


def is_right(compared: Comparison) -> bool:
    """Say whether the two clocks may be gone by."""
    return abs(compared.ahead) <= _APART


def _machine(context: Context) -> tuple[float, float]:
    at_s = context.clock.monotonic()
    return at_s, context.clock.now().timestamp() - at_s
