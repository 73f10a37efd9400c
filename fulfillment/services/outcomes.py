"""Write what came of submits: accepted, refused, or still unknown and due again soon."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlmodel import Session

from fulfillment.errors import ProviderError
from fulfillment.services import schedule
from fulfillment.services.answers import Answer, Answered, NotSent, Refused, Unknown
from fulfillment.services.claiming import KeptClaim
from fulfillment.services.context import Context
from fulfillment.services.reports import apply_reports
from fulfillment.store import ledger, orders
from fulfillment.store.ledger import Posting
from fulfillment.store.models import NOTHING_DUE, UNCLAIMED, Move, Order
from schemas.enums import FailedBy, FailureCode, OrderStatus, Source
from schemas.messages import NEEDS_REVIEW

#: How long after its last time of submission an unknown outcome is left to automatic lookups.
REVIEW_AFTER = timedelta(hours=1)
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
            f"nothing was bought: {answer.error}",
            {
                "failure_code": answer.error.code,
                "failure_message": answer.error.message,
                "failed_by": _decided_by(answer).value,
            },
            NOTHING_DUE,
            claim=claim.name,
        )
        for order, answer in answers
        if isinstance(answer, Refused)
    ]
    moved = orders.apply(session, moves, now)
    ledger.refuse(session, [Posting(order_id, "refused") for order_id in moved], now)


def _decided_by(answer: Refused) -> FailedBy:
    return FailedBy.US if answer.error.code == FailureCode.TOO_LATE else FailedBy.PROVIDER


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
        attempt = attempts[order.id]
        if attempt.unknown_since is not None and isinstance(answer, Unknown):
            is_hopeless = now - max(attempt.unknown_since, order.submit_by) >= REVIEW_AFTER
        else:
            is_hopeless = False
        if is_hopeless:
            moves.append(_review(context, order, note, claim))
            continue
        due_at = now + _retry_gap(context, attempt.posts, answer.error)
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
    moved = orders.apply(session, moves, now)
    ledger.not_sent(session, [order_id for order_id in unsent if order_id in moved])


def _review(context: Context, order: Order, note: str, claim: KeptClaim) -> Move:
    """Hand an order to a person; its hold stays, and it is adopted should it turn up in a poll."""
    return Move(
        order.id,
        OrderStatus.SUBMITTING,
        OrderStatus.NEEDS_REVIEW,
        Source.SUBMIT,
        f"the outcome stays unknown: {note}",
        due={**NOTHING_DUE, "next_poll_at": schedule.first_poll(context, context.now())},
        tell=(NEEDS_REVIEW,),
        claim=claim.name,
    )


def _retry_gap(context: Context, posts: int, error: ProviderError | None) -> timedelta:
    """Give the pause before the next try: about 1 s, doubling to 30 s, with jitter."""
    seconds = min(_FIRST_RETRY_S * 2 ** max(posts - 1, 0), _SLOWEST_RETRY_S)
    gap = timedelta(seconds=seconds * (0.8 + 0.4 * context.jitter()))
    if error is not None and error.retry_after is not None:
        return max(gap, error.retry_after)
    return gap
