"""Heartbeats of periodic activities and long-running loops, for `/readyz` and the metrics."""

from fulfillment.services.context import Context
from fulfillment.store import leases
from fulfillment.store.engine import Session

SWEEP, WATCHDOG, POLL = "sweep", "watchdog", "poll"
#: The sweep's, where workers sent its tick for want of a beat.
STAND_IN = "sweep.stand_in"
INVARIANTS, ERASURE = "invariants", "erasure"
CONSUMER, RELAY = "intake.consumer", "intake.relay"
#: Before a routing key: when a queue of the store last refused a message of it.
REFUSED = "relay.refused."
#: When the queue of dead letters last took nothing of a worker's.
NOT_PUT_ASIDE = "worker.not_put_aside"
_GAP_S = 3.0


class Pulse:
    """A loop's heartbeat; written now and then, however often the loop turns."""

    def __init__(self, context: Context, name: str) -> None:
        self._context = context
        self._name = name
        self._next = 0.0

    def beat(self) -> None:
        """Note that the loop turns. Raises ServerUnreachable."""
        if self._context.clock.monotonic() < self._next:
            return
        with self._context.database.statement() as session:
            leases.beat(session, self._name, self._context.now())
        self._next = self._context.clock.monotonic() + _GAP_S


def beat_seldom(context: Context, session: Session, name: str) -> None:
    """Note in this transaction, now and then only, that something happens often.

    Every writer of a heartbeat waits for the one before to commit.
    """
    if is_due(context, name):
        context.next_beats[name] = context.clock.monotonic() + _GAP_S
        leases.beat(session, name, context.now())


def is_due(context: Context, name: str) -> bool:
    """Say whether `beat_seldom` would note it now."""
    return context.clock.monotonic() >= context.next_beats.get(name, 0.0)
