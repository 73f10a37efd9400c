"""Names of queues, routing keys and tasks: what Flower and foreign senders see (DESIGN 7)."""

from typing import Annotated, Any, NotRequired, TypedDict

from msgspec import Meta

STORE_EXCHANGE = "store.events"
CHECKOUT_KEY = "checkout.completed"
CHECKOUT_QUEUE = "fulfillment.checkouts"
DEAD_QUEUE = "fulfillment.checkouts.dead"
REASON_HEADER = "x-reason"
#: The arguments of every queue of ours. A virtual host may have another type as its default, with
#: which no worker could run; Redis knows no arguments, and kombu leaves them out there.
CLASSIC = {"x-queue-type": "classic"}

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


Account = Annotated[str, Meta(pattern=r"\A[a-z0-9][a-z0-9_-]{0,31}\Z")]
ExternalId = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9._-]{1,64}\Z")]
OrderId = Annotated[int, Meta(ge=1, le=2**63 - 1)]
Token = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_-]{0,64}\Z")]


class Batch(TypedDict):
    """The argument of every step of the chain: which claimed orders it is about, never their state.

    `names` are the orders' external ids, for people who watch Flower. `is_copy`: others work on the
    same batch as well.
    """

    account: Account
    token: Token
    ids: list[OrderId]
    names: list[ExternalId]
    is_copy: NotRequired[bool]


#: What a hint's arguments must be, by task. What a store sends is judged by intake instead.
HINTS: dict[str, Any] = {
    DISPATCH: tuple[Account, ...],
    REFRESH_CATALOG: tuple[Batch],
    CHECK_WALLET: tuple[Batch],
    SUBMIT_ORDERS: tuple[Batch],
    SCHEDULE_RECONCILIATION: tuple[Batch],
    POLL_DUE: tuple[()],
    POLL_ORDERS: tuple[Batch],
    WATCH_TRADE_WINDOWS: tuple[()],
    APPLY_WEBHOOK: tuple[ExternalId, ...],
    RESUME_STUCK: Annotated[tuple[bool, ...], Meta(max_length=1)],
    CHECK_INVARIANTS: tuple[()],
    ERASE: tuple[()],
}


class OrderMessage(TypedDict):
    """The body of every message to the store."""

    eventId: str
    externalId: str
    sequence: int
    type: str
    occurredAt: str
    order: dict[str, Any]
