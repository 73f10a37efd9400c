"""Watch the Steam trade windows: remind before the end, ask at the end, alarm after it.

Before the offer is out, watch that the order comes on at all. The provider's word wins: nothing
here ever declares an order failed or an offer expired.
"""

from datetime import datetime, timedelta

from msgspec.structs import replace

from fulfillment.clock import length_in_words
from fulfillment.crash import crash_point
from fulfillment.log import get_logger
from fulfillment.services import pulse, schedule
from fulfillment.services.context import Context
from fulfillment.services.dispatch import overdue_refusal
from fulfillment.services.unknowns import REVIEW_AFTER
from fulfillment.states import FOLLOWED
from fulfillment.store import doubts, due, leases, ledger, orders
from fulfillment.store.engine import repeated
from fulfillment.store.ledger import Posting
from fulfillment.store.models import Doubt, Move, Order
from schemas.enums import OrderStatus, Source
from schemas.messages import NEEDS_REVIEW, TRADE_REMINDER

log = get_logger(__name__)

_LIMIT = 500


@repeated
def watch_trade_windows(context: Context) -> list[str]:
    """Look at every window that is due; give the orders that were acted on."""
    now = context.now()
    acted: list[str] = []
    with context.database.transaction() as session:
        leases.beat(session, pulse.WATCHDOG, now)
        # Claimed for a minute: a crash below rolls the claim back with the rest.
        watched = due.claim_watches(session, now, now + timedelta(minutes=1), _LIMIT)
        moves, over = [], []
        for order in watched:
            if order.status in FOLLOWED and order.status is not OrderStatus.SENT:
                acted.append(order.external_id)
                moves.append(_stalled(context, order))
                continue
            if order.status is not OrderStatus.SENT or order.trade_deadline_at is None:
                orders.set_due(session, [order.id], next_watch_at=None)
                continue
            acted.append(order.external_id)
            if order.overdue and now >= order.trade_deadline_at + context.stalled_after:
                moves.append(_stalled(context, order))
                continue
            if now >= order.trade_deadline_at:
                over.append(order.id)
            moves.append(_look(order, now, order.trade_deadline_at))
            at = schedule.next_watch(now, order.sent_at or now, order.trade_deadline_at)
            # At last it is a person's, who alone may end what its provider has forgotten.
            at = at or now + context.stalled_after
            orders.set_due(session, [order.id], next_watch_at=at)
        orders.apply(session, moves, now)
        # The last question before anything is concluded, as soon as the cache allows.
        due.poll_at(session, over, now, schedule.gap_before_news(context).total_seconds())
        crash_point("watchdog.before_commit", watched)
    crash_point("watchdog.after_commit", watched)
    return acted


def _stalled(context: Context, order: Order) -> Move:
    """Hand an order that does not come on to a person; its hold stays, and it is still followed."""
    log.warning("watchdog.stalled", order_id=order.external_id, status=order.status)
    lasted = length_in_words(context.stalled_after)
    since = " since its trade window" if order.status is OrderStatus.SENT else ""
    note = f"still {order.status} after {lasted}{since}; a person may ask the provider"
    return Move(
        order.id,
        order.status,
        OrderStatus.NEEDS_REVIEW,
        Source.WATCHDOG,
        note,
        {"told_status": order.status.value, "overdue": False},
        {"next_watch_at": None, "next_poll_at": order.next_poll_at or context.now()},
        tell=(NEEDS_REVIEW,),
    )


def _look(order: Order, now: datetime, deadline: datetime) -> Move:
    left = deadline - now
    changes: dict[str, bool] = {}
    tell: tuple[str, ...] = ()
    if left > timedelta():
        note, tell = f"{round(left.total_seconds())} s left to accept the trade", (TRADE_REMINDER,)
    elif -left < schedule.OVERDUE_GRACE:
        note = "the trade window is over; asking the provider"
    else:
        log.warning("watchdog.overdue", order_id=order.external_id)
        note = "still sent long after the trade window; a person may ask the provider"
        changes, tell = {"overdue": True}, (NEEDS_REVIEW,)
    return Move(order.id, order.status, order.status, Source.WATCHDOG, note, changes, tell=tell)


def _late_end(order: Order, doubt: Doubt | None, now: datetime) -> Move | None:
    """End an order in time; one that may be bought, which nobody could tell, is told to a person.

    The account where it is now is asked about it until there is an answer.
    """
    end = overdue_refusal(order, now, Source.SWEEP)
    if end is None or order.was_searched(doubt):
        return end
    why = "our rows are in doubt" if order.is_doubted(doubt) else "an account told of it"
    note = f"{end.note}; {why}, and no answer was had to whether it was bought: it may have been"
    log.warning("order.alarm", order_id=order.external_id, note=note)
    due = {**end.due, "next_poll_at": now, "poll_wanted_at": now}
    return replace(end, note=note, due=due, tell=(NEEDS_REVIEW,))


@repeated
def expire_waiting(context: Context) -> list[str]:
    """End orders that were not submitted in time, also while their provider cannot be asked."""
    now = context.now()
    with context.database.transaction() as session:
        late = orders.lock_overdue(session, now, _LIMIT, REVIEW_AFTER)
        attempts = ledger.attempts_of(session, [order.id for order in late])
        doubted = doubts.of_accounts(session) if late else {}
        moves = [
            _late_end(order, doubted.get(order.account), now)
            for order in late
            if order.is_surely_unsent(attempts.get(order.id))
        ]
        ended = orders.apply(session, [move for move in moves if move], now)
        ledger.refuse(session, [Posting(order_id, "never sent") for order_id in ended], now)
        crash_point("expire.before_commit", ended)
    return [order.external_id for order in ended.values()]
