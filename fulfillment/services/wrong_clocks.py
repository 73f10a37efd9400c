"""Make due again what a process with a wrong clock, which may be dead, has put off."""

from datetime import timedelta

from fulfillment.log import get_logger
from fulfillment.providers.http import LONGEST_PAUSE
from fulfillment.services import schedule
from fulfillment.services.context import Context
from fulfillment.settings import LONGEST_LEASE_S
from fulfillment.store import leases, wrong_clocks
from fulfillment.store.engine import repeated

log = get_logger(__name__)

#: No order is put off for so long before it is submitted.
_LONGEST_WAIT = timedelta(days=1)
#: How many times as long the pauses of a process with other settings may be.
_OTHER_SETTINGS = 4


@repeated
def bring_back(context: Context) -> None:
    """Make due what is put off for longer than anything can be: its process had a wrong clock."""
    now = context.now()
    latest = wrong_clocks.Latest(
        claimed_until=now + timedelta(seconds=LONGEST_LEASE_S),
        next_attempt_at=now + _LONGEST_WAIT,
        next_poll_at=now + _OTHER_SETTINGS * schedule.longest_watch_gap(context),
        next_watch_at=now + _OTHER_SETTINGS * context.stalled_after,
    )
    with context.database.transaction() as session:
        if not leases.is_right(session, now):
            return
        found = wrong_clocks.bring_back_orders(session, latest, context.stalled_after, now)
        found += wrong_clocks.bring_back_deliveries(session, latest.claimed_until, now)
        found += wrong_clocks.bring_back_posts(session, now)
        of_accounts = wrong_clocks.bring_back_accounts(session, 2 * LONGEST_PAUSE, now)
    if found:
        log.error("order.put_off_by_a_wrong_clock", orders=found)
    if of_accounts:
        log.error("account.put_off_by_a_wrong_clock", accounts=of_accounts)
