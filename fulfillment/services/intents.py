"""Commit what is about to be sent to a provider, with its exact bytes, before a byte leaves."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from datetime import datetime

from fulfillment.crash import crash_point
from fulfillment.errors import ConfigurationError
from fulfillment.log import get_logger
from fulfillment.services import backstop
from fulfillment.services.brakes import STOPPED_GAP
from fulfillment.services.claiming import KeptClaim
from fulfillment.services.context import Context
from fulfillment.services.merchants import why_strange
from fulfillment.services.unknowns import Step, next_step
from fulfillment.store import claims, ledger, orders, purchases
from fulfillment.store.engine import Session, repeated
from fulfillment.store.models import Attempt, Move, Order
from schemas.checkout import plain_trade_url
from schemas.enums import OrderStatus, Source
from schemas.money import charge_in_cents
from schemas.provider import PurchaseCommand

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Task:
    """One order to be posted, or whose unknown outcome is to be resolved."""

    order: Order
    attempt: Attempt
    body: bytes
    step: Step
    #: Before the switch was looked at for it, by the monotonic clock.
    made_at_s: float


@repeated
def begin(context: Context, claim: KeptClaim, group: list[Order], *, is_ahead: bool) -> list[Task]:
    """Commit the intent to send, with the exact bytes, before any of them leaves."""
    with context.database.transaction() as session:
        now = context.now()
        tasks = begin_within(context, session, claim, group, now, is_ahead=is_ahead)
    committed(tasks)
    return tasks


def committed(tasks: Sequence[Task]) -> None:
    crash_point("intent.after_commit", tasks)


def begin_within(
    context: Context,
    session: Session,
    claim: KeptClaim,
    group: Sequence[Order],
    now: datetime,
    *,
    is_ahead: bool = False,
) -> list[Task]:
    """Write the intents; what is given back may be sent once they are committed.

    What goes ahead is sent although purchases are broken.
    """
    tasks, unwritten = _tasks(context, group, claim.attempts)
    if unwritten:
        claims.release(session, unwritten, claim.name, now + STOPPED_GAP)
    gate = purchases.gate(session, claim.account)
    if gate.is_stopped or (gate.are_broken and not is_ahead):
        tasks = _without_posts(session, claim, tasks, now, is_stopped=gate.is_stopped)
    moves = [
        Move(
            task.order.id,
            task.order.status,
            OrderStatus.SUBMITTING,
            Source.SUBMIT,
            _intent(task),
            claim=claim.name,
        )
        for task in tasks
    ]
    begun = orders.apply(session, moves, now)
    if told := _told_early(begun, claim):
        tasks = _without_told(session, claim, tasks, told)
    posts = [t for t in tasks if t.order.id in begun and t.step is Step.POST]
    sealed = {task.order.id: context.seal.seal(task.body) for task in posts}
    ledger.begin_posts(session, sealed, context.account(claim.account).merchant, now)
    crash_point("intent.before_commit", tasks)
    # Each task keeps the attempt as it was: that tells whether an earlier post is unresolved.
    return [task for task in tasks if task.order.id in begun]


def _told_early(begun: Mapping[int, Order], claim: KeptClaim) -> set[int]:
    """Give the orders that somebody has been heard to have since they were looked for."""
    return {id_ for id_, order in begun.items() if not order.was_searched(claim.doubt)}


def _without_told(
    session: Session, claim: KeptClaim, tasks: Sequence[Task], told: Set[int]
) -> list[Task]:
    """Send nothing of these: what may have been sent is looked up, all else searched first."""
    fresh = [t.order.id for t in tasks if t.order.id in told and t.attempt.unknown_since is None]
    claims.release(session, fresh, claim.name)
    return [
        replace(task, step=Step.LOOK_UP) if task.order.id in told else task
        for task in tasks
        if task.order.id not in fresh
    ]


def _without_posts(
    session: Session, claim: KeptClaim, tasks: list[Task], now: datetime, *, is_stopped: bool
) -> list[Task]:
    """Leave out what must not be sent now; what may have been sent is looked up.

    What is too late is kept: of that nothing is posted anyway.
    """
    kept: list[Task] = []
    held: list[Order] = []
    for task in tasks:
        if task.step is Step.LOOK_UP or task.order.submit_by <= now:
            kept.append(task)
        elif task.attempt.unknown_since is not None:
            kept.append(replace(task, step=Step.LOOK_UP))
        else:
            held.append(task.order)
    if is_stopped:
        claims.release(session, [order.id for order in held], claim.name, now + STOPPED_GAP)
    else:
        hold_back_within(session, claim, held, now)
    return kept


def _tasks(
    context: Context, group: Sequence[Order], attempts: Mapping[int, Attempt]
) -> tuple[list[Task], list[int]]:
    """Give the tasks, and the ids of orders of which nothing can be sent: for want of their key, or
    because no request can be written of them.

    Such an order waits for its key or its end. What may have been sent is looked up all the same.
    """
    tasks, unwritten = [], []
    for order in group:
        attempt = attempts[order.id]
        try:
            task = _task(context, order, attempt)
        except ConfigurationError as error:
            log.error("submit.cannot_open", order_id=order.external_id, reason=str(error))
            task = None
        if task is not None:
            tasks.append(task)
        elif attempt.unknown_since is not None:
            made_at_s = context.clock.monotonic()
            tasks.append(Task(order, attempt, b"", Step.LOOK_UP, made_at_s))
        else:
            unwritten.append(order.id)
    return tasks, unwritten


def _task(context: Context, order: Order, attempt: Attempt) -> Task | None:
    """Give the task; None where its request cannot be written, as nobody expects."""

    def write() -> Task | None:
        step = next_step(context.provider(order.account).after_unknown, attempt)
        body = _body(context, order, attempt)
        return Task(order, attempt, body, step, context.clock.monotonic())

    return backstop.alone(write, order.external_id, lambda _: None)


def _intent(task: Task) -> str:
    if task.step is Step.LOOK_UP:
        return f"resolving an unknown outcome, lookup {task.attempt.empty_lookups + 1}"
    if task.attempt.unknown_since is not None:
        return f"resolving an unknown outcome, request {task.attempt.posts + 1}"
    return f"about to buy for {charge_in_cents(task.attempt.hold_mills)} cents"


def _body(context: Context, order: Order, attempt: Attempt) -> bytes:
    """Give the stored bytes of a post that was begun before, or write those of a new one.

    Bytes that never left, for a merchant that the account is no more, are written anew.
    """
    is_own = why_strange(context, order.account, attempt.merchant) is None
    if attempt.body_sealed is not None and is_own:
        return context.seal.open(attempt.body_sealed)
    assert order.trade_url_sealed is not None
    return context.provider(order.account).purchase_body(
        PurchaseCommand(
            external_id=order.external_id,
            catalog_item_id=order.quoted_item_id or order.catalog_item_id,
            market_hash_name=order.market_hash_name,
            price_mills=attempt.hold_mills,
            trade_url=plain_trade_url(context.seal.open(order.trade_url_sealed).decode()),
            webhook_url=context.webhook_url(order.account),
        )
    )


def hold_back_within(
    session: Session, claim: KeptClaim, rest: Sequence[Order], now: datetime
) -> None:
    """Leave orders until purchases are answered again; the sweep sees by itself when that is.

    Of one whose submit has begun it cannot tell whether it only has to be looked up.
    """
    begun = [order.id for order in rest if order.status is OrderStatus.SUBMITTING]
    fresh = [order.id for order in rest if order.status is not OrderStatus.SUBMITTING]
    if fresh:
        claims.release(session, fresh, claim.name)
    if begun:
        claims.release(session, begun, claim.name, now + STOPPED_GAP)
