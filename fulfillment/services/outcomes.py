"""Write what came of submits: accepted, refused, or still unknown and due again soon."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlmodel import Session

from fulfillment.errors import ProviderError
from fulfillment.log import get_logger
from fulfillment.services.answers import Answer, Answered, NotSent, Refused, Unknown
from fulfillment.services.claiming import KeptClaim
from fulfillment.services.context import Context
from fulfillment.services.reports import apply_reports
from fulfillment.store import ledger, orders
from fulfillment.store.ledger import Posting
from fulfillment.store.models import NOTHING_DUE, UNCLAIMED, Move, Order
from schemas.enums import FailedBy, OrderStatus, Source

log = get_logger(__name__)

_FIRST_RETRY_S = 1.0
_SLOWEST_RETRY_S = 30.0


def write_outcomes(
    context: Context, claim: KeptClaim, answers: Sequence[tuple[Order, Answer]]
) -> None:
    """Write a group of answers in one transaction.

    A webhook may have moved an order on while its answer was under way; the guards leave it so.
    """
    now = context.now()
    accepted = {order.id: a.report for order, a in answers if isinstance(a, Answered)}
    with context.database.transaction() as session:
        if accepted:
            apply_reports(context, session, accepted, Source.SUBMIT)
        _write_refusals(session, claim, answers, now)
        _write_open(context, session, claim, answers, now)


def _write_refusals(
    session: Session, claim: KeptClaim, answers: Sequence[tuple[Order, Answer]], now: datetime
) -> None:
    moves = [
        Move(
            order.id,
            OrderStatus.SUBMITTING,
            OrderStatus.FAILED,
            Source.SUBMIT,
            f"refused by the provider: {answer.error}",
            {
                "failure_code": answer.error.code,
                "failure_message": answer.error.message,
                "failed_by": FailedBy.PROVIDER.value,
            },
            NOTHING_DUE,
            claim=claim.name,
        )
        for order, answer in answers
        if isinstance(answer, Refused)
    ]
    moved = orders.apply(session, moves, now)
    ledger.refuse(session, [Posting(order_id, "refused") for order_id in moved], now)


def _write_open(
    context: Context,
    session: Session,
    claim: KeptClaim,
    answers: Sequence[tuple[Order, Answer]],
    now: datetime,
) -> None:
    open_answers = {o.id: (o, a) for o, a in answers if isinstance(a, NotSent | Unknown)}
    if not open_answers:
        return
    attempts = ledger.open_attempts(session, list(open_answers))
    moves, unsent = [], []
    for order, answer in open_answers.values():
        if isinstance(answer, NotSent):
            unsent.append(order.id)
            note = f"nothing was sent: {answer.reason}"
        else:
            note = f"outcome unknown: {answer.reason}"
        due_at = now + _retry_gap(context, attempts[order.id].posts, answer.error)
        moves.append(
            Move(
                order.id,
                OrderStatus.SUBMITTING,
                OrderStatus.SUBMITTING,
                Source.SUBMIT,
                note,
                due={**UNCLAIMED, "next_attempt_at": due_at},
                claim=claim.name,
            )
        )
        log.info("submit.open", order_id=order.external_id, note=note)
    moved = orders.apply(session, moves, now)
    ledger.not_sent(session, [order_id for order_id in unsent if order_id in moved])


def _retry_gap(context: Context, posts: int, error: ProviderError | None) -> timedelta:
    """Give the pause before the next try: about 1 s, doubling to 30 s, with jitter."""
    seconds = min(_FIRST_RETRY_S * 2 ** max(posts - 1, 0), _SLOWEST_RETRY_S)
    gap = timedelta(seconds=seconds * (0.8 + 0.4 * context.random.random()))
    if error is not None and error.retry_after is not None:
        return max(gap, error.retry_after)
    return gap
