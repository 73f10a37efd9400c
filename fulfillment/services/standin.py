"""Say when workers must send the ticks themselves, because no beat does."""

import uuid
from datetime import timedelta

from fulfillment.services import pulse
from fulfillment.services.context import Context
from fulfillment.store import leases

#: How often a worker looks, and how far apart the ticks of those who stand in are.
EVERY_S = 5.0
#: Beats tick every second: so long without a tick, none lives.
_PATIENCE = timedelta(seconds=10)


def is_wanted(context: Context) -> bool:
    """Say whether no beat's tick was run for ten seconds and it is this process's turn to help.

    Of all workers one at a time is told so. Raises ServerUnreachable.
    """
    now = context.now()
    with context.database.transaction() as session:
        last = leases.heartbeats(session, now).get(pulse.SWEEP)
        if last is not None and now - last <= _PATIENCE:
            return False
        turn = now + timedelta(seconds=EVERY_S * 0.8)
        return leases.acquire(session, pulse.STAND_IN, uuid.uuid4().hex, now, turn)
