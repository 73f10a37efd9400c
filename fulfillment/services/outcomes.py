"""Write what came of submits: accepted, refused, or still unknown and due again soon."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from msgspec.structs import replace

from fulfillment.crash import crash_point
from fulfillment.providers.base import AfterUnknown
from fulfillment.services import schedule, unknowns
from fulfillment.services.answers import Answer, Answered, NotSent, Refused, Unknown
from fulfillment.services.claiming import KeptClaim
from fulfillment.services.context import Context
from fulfillment.services.hearsay import is_told_of
from fulfillment.services.news import heard
from fulfillment.services.reports import apply_reports
from fulfillment.services.routes import is_tried_elsewhere, reroute
from fulfillment.store import ledger, orders, purchases
from fulfillment.store.engine import Session, repeated
from fulfillment.store.ledger import Posting
from fulfillment.store.models import NOTHING_DUE, UNCLAIMED, Move, Order
from schemas.enums import FailedBy, OrderStatus, Source
from schemas.messages import NEEDS_REVIEW

_NO_POLL = {"next_poll_at": None, "poll_wanted_at": None}


@repeated
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
            repeatable = _repeatable(context, claim, answers)
            apply_reports(
                context, session, claim.account, accepted, Source.SUBMIT, repeatable=repeatable
            )
        _write_refusals(context, session, claim, answers, now)
        _write_open(context, session, claim, answers, now)
        crash_point("outcome.before_commit")
    crash_point("outcome.after_commit")


def _repeatable(
    context: Context, claim: KeptClaim, answers: Sequence[tuple[Order, Answer]]
) -> Collection[int]:
    """Give the orders whose purchase was answered yes where it is repeated without a lookup."""
    if context.provider(claim.account).after_unknown is not AfterUnknown.REPLAY:
        return ()
    return {order.id for order, a in answers if isinstance(a, Answered) and a.is_of_a_post}


def _write_refusals(
    context: Context,
    session: Session,
    claim: KeptClaim,
    answers: Sequence[tuple[Order, Answer]],
    now: datetime,
) -> None:
    refused = {order.id: answer for order, answer in answers if isinstance(answer, Refused)}
    # Read anew: while they were asked for, their account may have told that there is news of them.
    moves = [
        _go_on(context, order, refused[order.id], claim)
        or _end(context, order, refused[order.id], claim)
        for order in orders.lock(session, list(refused))
    ]
    moved = orders.apply(session, moves, now)
    crash_point("outcome.refused", moved)
    postings = [Posting(order_id, "refused", account=claim.account) for order_id in moved]
    ledger.refuse(session, postings, now)


def _go_on(context: Context, order: Order, answer: Refused, claim: KeptClaim) -> Move | None:
    """Let an order with a route try its next account, if that could help.

    Also where another account has told of it meanwhile: this one's no is true all the same, and the
    next one looks for it first.
    """
    if not is_tried_elsewhere(answer.error):
        return None
    going_on = reroute(
        context,
        order,
        str(answer.error),
        Source.SUBMIT,
        claim.name,
        source=OrderStatus.SUBMITTING,
        is_doubtful=_was_unknown(order, claim),
    )
    return going_on and replace(going_on, unless_told=False)


def _was_unknown(order: Order, claim: KeptClaim) -> bool:
    """Say whether it may have been bought by an earlier request: a no may have come of that."""
    attempt = claim.attempts.get(order.id)
    return attempt is not None and attempt.unknown_since is not None


def _end(context: Context, order: Order, answer: Refused, claim: KeptClaim) -> Move:
    """End an order by a no; one that may have been bought before is asked about once more."""
    due = dict(NOTHING_DUE)
    if _was_unknown(order, claim):
        due |= schedule.last_look(context.now())
    return Move(
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
        due,
        claim=claim.name,
    )


def _decided_by(answer: Refused) -> FailedBy:
    return FailedBy.US if answer.error.is_ours else FailedBy.PROVIDER


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
    empty = {
        order.id: (answer.empty_at, answer.empty_told_at or answer.empty_at)
        for order, answer in open_answers.values()
        if isinstance(answer, Unknown) and answer.empty_at is not None
    }
    ledger.note_empty_lookups(session, claim.account, empty)
    odd = {
        order.id: answer.odd_refusal
        for order, answer in open_answers.values()
        if isinstance(answer, Unknown) and answer.odd_refusal is not None
    }
    if odd:
        ledger.note_odd_refusals(session, claim.account, odd)
    attempts = ledger.attempts_of(session, list(open_answers))
    policy = context.provider(claim.account).after_unknown
    longest_call = context.longest_call(claim.account)
    may_post = not purchases.gate(session, claim.account).is_shut
    not_sent = [order.id for order, answer in open_answers.values() if isinstance(answer, NotSent)]
    # Read anew: news of them that came meanwhile is of something that never left.
    fresh = {order.id: order for order in orders.lock(session, not_sent)}
    told = {id_: order for id_, order in fresh.items() if order.poll_wanted_at}
    moves, unsent = [], []
    for order, answer in open_answers.values():
        if order.id not in attempts:
            continue  # it has gone on to another account: whoever sent it there had the claim
        if isinstance(answer, NotSent):
            unsent.append(order.id)
            note = f"nothing was bought yet: {answer.reason}"
        else:
            note = f"outcome unknown: {answer.reason}"
        attempt, changes = attempts[order.id], dict[str, Any]()
        if order.id in fresh and is_told_of(fresh[order.id]):
            changes = {"told_early_at": now}
        if order.id in told:
            changes |= heard(context, told[order.id], order.account, now)
        if isinstance(answer, Unknown) and unknowns.is_for_a_person(
            policy, order, attempt, now, longest_call, is_empty=order.id in empty
        ):
            moves.append(review(context, order, note, claim))
            continue
        gap = unknowns.retry_gap(policy, attempt, now, context.jitter(), may_post=may_post)
        if isinstance(answer, Unknown) and answer.is_failed_lookup:
            gap = max(gap, unknowns.gap_after_failed_lookup(attempt, now, context.jitter()))
        if answer.error is not None and answer.error.retry_after is not None:
            gap = max(gap, answer.error.retry_after)
        due_at = now + gap
        moves.append(
            Move(
                order.id,
                OrderStatus.SUBMITTING,
                OrderStatus.SUBMITTING,
                Source.SUBMIT,
                note,
                changes,
                {**UNCLAIMED, "next_attempt_at": due_at, **(_NO_POLL if order.id in told else {})},
                claim=claim.name,
            )
        )
    moved = orders.apply(session, moves, now)
    ledger.not_sent(session, [order_id for order_id in unsent if order_id in moved])


def review(context: Context, order: Order, note: str, claim: KeptClaim) -> Move:
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
