"""Names of queues, routing keys and tasks: what Flower and foreign senders see (DESIGN 7)."""

from typing import Any, TypedDict

STORE_EXCHANGE = "store.events"
CHECKOUT_KEY = "checkout.completed"
CHECKOUT_QUEUE = "fulfillment.checkouts"
DEAD_QUEUE = "fulfillment.checkouts.dead"
REASON_HEADER = "x-reason"

ORDER_UPDATED = "order.updated"
TRADE_REMINDER = "trade.reminder"
NEEDS_REVIEW = "order.needs_review"

RECEIVE = "checkout.receive"
DISPATCH = "checkout.dispatch"
REFRESH_CATALOG = "checkout.refresh_catalog"
CHECK_WALLET = "checkout.check_wallet"
SUBMIT_ORDERS = "checkout.submit_orders"
SCHEDULE_RECONCILIATION = "checkout.schedule_reconciliation"
POLL_DUE = "reconcile.poll_due"
POLL_ORDERS = "reconcile.poll_orders"
WATCH_TRADE_WINDOWS = "watchdog.watch_trade_windows"
APPLY_WEBHOOK = "inbox.apply_webhook"
RESUME_STUCK = "sweep.resume_stuck"
CHECK_INVARIANTS = "invariants.check"
ERASE = "erasure.erase_due"


class Batch(TypedDict):
    """The argument of every step of the chain: which claimed orders it is about, never their state.

    `names` are the orders' external ids, for people who watch Flower.
    """

    account: str
    token: str
    ids: list[int]
    names: list[str]


class OrderMessage(TypedDict):
    """The body of every message to the store."""

    eventId: str
    externalId: str
    sequence: int
    type: str
    occurredAt: str
    order: dict[str, Any]
