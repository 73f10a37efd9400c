"""Submit a batch's reserved orders concurrently, and resolve submits of unknown outcome.

Intents are committed before a byte leaves; outcomes are written as they arrive, grouped by a few
tens of milliseconds, so that a slow answer delays only its own order.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from fulfillment.errors import ProviderDeniesAccount, ProviderNotReached
from fulfillment.services import outages
from fulfillment.services.answers import Answer, NotSent, ask
from fulfillment.services.claiming import SUBMIT, KeptClaim, take_over
from fulfillment.services.context import Context
from fulfillment.services.dispatch import overdue_refusal
from fulfillment.services.outcomes import write_outcomes
from fulfillment.services.unknowns import Step, next_step
from fulfillment.store import claims, ledger, orders
from fulfillment.store.accounts import Purpose
from fulfillment.store.ledger import Posting
from fulfillment.store.models import Attempt, Move, Order
from schemas.enums import OrderStatus, Source
from schemas.messages import Batch
from schemas.money import charge_in_cents
from schemas.provider import PurchaseCommand

#: How long to gather answers that come together, so that they share a transaction.
_GROUP_S = 0.02


#: Says something about the account and not about one order.
_AWAY = (ProviderNotReached, ProviderDeniesAccount)


@dataclass(frozen=True, slots=True)
class _Task:
    """One order to be posted, or whose unknown outcome is to be resolved."""

    order: Order
    attempt: Attempt
    body: bytes
    step: Step


def submit_orders(context: Context, batch: Batch) -> bool:
    """Submit the batch; say whether this copy of the step found anything to do."""
    with take_over(context, batch, SUBMIT) as claim:
        if claim is None:
            return False
        members, attempts = _read(context, claim)
        late = [o for o in members if o.status is OrderStatus.RESERVED and _is_late(context, o)]
        _refuse_late(context, late, claim)
        due = [o for o in members if o not in late and o.id in attempts]
        # Unknown outcomes first: where the budget ends, the end of the queue is put off.
        waiting = deque(sorted(due, key=lambda o: o.status is not OrderStatus.SUBMITTING))
        granted = _budget(context, batch["account"], waiting)
        _postpone(context, claim, [waiting.pop() for _ in range(len(waiting) - granted)])
        _run(context, claim, waiting, attempts)
    return True


def _read(context: Context, claim: KeptClaim) -> tuple[list[Order], dict[int, Attempt]]:
    with context.database.transaction() as session:
        members = [
            order
            for order in orders.get(session, claim.order_ids)
            if order.claim == claim.name
            and order.status in (OrderStatus.RESERVED, OrderStatus.SUBMITTING)
        ]
        return members, ledger.open_attempts(session, claim.order_ids)


def _budget(context: Context, account: str, waiting: Sequence[Order]) -> int:
    """Take the batch's requests out of the budget; what is unknown goes before what is new."""
    unknown = sum(order.status is OrderStatus.SUBMITTING for order in waiting)
    granted = outages.take_budget(context, account, Purpose.URGENT, unknown)
    cost = context.provider(account).requests_per_purchase
    wanted = (len(waiting) - unknown) * cost
    return granted + outages.take_budget(context, account, Purpose.SUBMIT, wanted) // cost


def _is_late(context: Context, order: Order) -> bool:
    return order.submit_by <= context.now()


def _refuse_late(context: Context, late: list[Order], claim: KeptClaim) -> None:
    if not late:
        return
    now = context.now()
    moves = [overdue_refusal(order, now, Source.SUBMIT, claim.name) for order in late]
    with context.database.transaction() as session:
        moved = orders.apply(session, [move for move in moves if move], now)
        ledger.refuse(session, [Posting(order_id, "never sent") for order_id in moved], now)


def _postpone(context: Context, claim: KeptClaim, rest: list[Order]) -> None:
    if rest:
        with context.database.transaction() as session:
            due_at = outages.budget_refilled_at(context)
            claims.release(session, [order.id for order in rest], claim.name, due_at)


def _run(
    context: Context, claim: KeptClaim, waiting: deque[Order], attempts: Mapping[int, Attempt]
) -> None:
    """Keep up to the allowed number of requests in flight until the batch is through."""
    limit = context.account(claim.account).max_submits_in_flight
    flying: dict[Future[Answer], _Task] = {}
    is_stopped = False
    with context.threads.pool(min(limit, max(len(waiting), 1)), "submit") as executor:
        while flying or (waiting and not is_stopped):
            free = limit - len(flying)
            if waiting and free > 0 and not is_stopped:
                group = [waiting.popleft() for _ in range(min(free, len(waiting)))]
                for task in _begin(context, claim, group, attempts):
                    flying[executor.submit(_ask, context, claim, task)] = task
            if not flying:
                continue
            answers = _collect(context, flying)
            write_outcomes(context, claim, answers)
            down = next((a.error for _, a in answers if isinstance(a.error, _AWAY)), None)
            if not is_stopped and down is not None:
                outages.pause(context, claim.account, down)
            # What was not begun keeps its hold and becomes due again.
            is_stopped = is_stopped or down is not None or not claim.is_held
    _postpone(context, claim, list(waiting))


def _collect(context: Context, flying: dict[Future[Answer], _Task]) -> list[tuple[Order, Answer]]:
    """Wait for an answer, and a moment longer for those that come with it."""
    done = context.threads.first_done(flying, _GROUP_S)
    return [(flying.pop(future).order, future.result()) for future in done]


def _ask(context: Context, claim: KeptClaim, task: _Task) -> Answer:
    # The last look before the byte that cannot be called back; it narrows the race with a taker
    # of the claim, and the rules for unknown answers make what is left of it safe.
    if not claim.is_held:
        return NotSent("the claim was lost before the request")
    return ask(context, task.order, task.attempt, task.body, task.step)


def _begin(
    context: Context, claim: KeptClaim, group: list[Order], attempts: Mapping[int, Attempt]
) -> list[_Task]:
    """Commit the intent to send, with the exact bytes, before any of them leaves."""
    tasks = [_task(context, order, attempts[order.id]) for order in group]
    now = context.now()
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
    with context.database.transaction() as session:
        begun = orders.apply(session, moves, now)
        posts = [t for t in tasks if t.order.id in begun and t.step is Step.POST]
        sealed = {task.order.id: context.seal.seal(task.body) for task in posts}
        ledger.begin_posts(session, sealed, now)
    # Each task keeps the attempt as it was: that tells whether an earlier post is unresolved.
    return [task for task in tasks if task.order.id in begun]


def _task(context: Context, order: Order, attempt: Attempt) -> _Task:
    step = next_step(context.provider(order.account).after_unknown, attempt)
    return _Task(order, attempt, _body(context, order, attempt), step)


def _intent(task: _Task) -> str:
    if task.step is Step.LOOK_UP:
        return f"resolving an unknown outcome, lookup {task.attempt.empty_lookups + 1}"
    if task.order.status is OrderStatus.SUBMITTING:
        return f"resolving an unknown outcome, request {task.attempt.posts + 1}"
    return f"about to buy for {charge_in_cents(task.attempt.hold_mills)} cents"


def _body(context: Context, order: Order, attempt: Attempt) -> bytes:
    """Give the stored bytes of a post that was begun before, or write those of a new one."""
    if attempt.body_sealed is not None:
        return context.seal.open(attempt.body_sealed)
    assert order.trade_url_sealed is not None
    return context.provider(order.account).purchase_body(
        PurchaseCommand(
            external_id=order.external_id,
            catalog_item_id=order.catalog_item_id,
            market_hash_name=order.market_hash_name,
            price_mills=attempt.hold_mills,
            trade_url=context.seal.open(order.trade_url_sealed).decode(),
            webhook_url=context.webhook_url(order.account),
        )
    )
