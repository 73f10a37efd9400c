"""Routes: after a definite no, an order goes on to the next account that its checkout allows.

At most one attempt of an order is ever open: nothing here moves an order of which a byte may have
left and no clear answer came back.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from msgspec.structs import replace

from fulfillment.crash import crash_point
from fulfillment.errors import OverBudget, ProviderError, ProviderRefused
from fulfillment.services.claiming import KeptClaim
from fulfillment.services.context import Context
from fulfillment.services.dispatch import refusal
from fulfillment.services.hearsay import UNKNOWN_BY, is_told_of, with_account
from fulfillment.services.news import heard
from fulfillment.store import claims, ledger, orders
from fulfillment.store.engine import Session, repeated
from fulfillment.store.ledger import Posting
from fulfillment.store.models import UNCLAIMED, Move, Order
from schemas.enums import FailureCode, OrderStatus, Source

#: A purchase refused for these reasons may succeed elsewhere; the others are about the customer.
TRIED_ELSEWHERE = frozenset(
    {
        FailureCode.ITEM_UNAVAILABLE,
        FailureCode.PRICE_CHANGED,
        FailureCode.INSUFFICIENT_FUNDS,
        FailureCode.PROVIDER_UNAVAILABLE,
    }
)
#: So long money may be held for an order of which nothing was sent; its price may be another then.
HELD_FOR = timedelta(minutes=5)
_LIMIT = 500


def is_tried_elsewhere(error: ProviderRefused) -> bool:
    """Say whether a purchase refused like this may succeed at another account."""
    # A trade URL that we refuse ourselves only breaks this provider's own rule.
    is_own_rule = error.is_ours and error.code == FailureCode.INVALID_TRADE_URL
    return is_own_rule or error.code in TRIED_ELSEWHERE


def reroute(
    context: Context,
    order: Order,
    why: str,
    by: Source,
    claim: str | None = None,
    *,
    source: OrderStatus | None = None,
    is_doubtful: bool = False,
) -> Move | None:
    """Write the move to the order's next account; None where there is none left.

    `source` is the order's status where it changed since it was read. Money that is held for it is
    to be released in the same transaction. Who says no and has news of it all the same, or said it
    after an outcome that was unknown (`is_doubtful`), is asked once more before anything is bought
    elsewhere.
    """
    left = _left(context, order)
    if not left:
        return None
    source = source or order.status
    has_begun = source in (OrderStatus.RESERVED, OrderStatus.SUBMITTING)
    told_early: dict[str, Any] = {}
    if order.poll_wanted_at is not None:
        told_early = heard(context, order, order.account, context.now())
    if is_doubtful:
        known = replace(order, late_words=told_early.get("late_words", order.late_words))
        words = with_account(known, UNKNOWN_BY, order.account)
        told_early |= {"late_words": words} if words is not None else {}
    # What was heard of others meanwhile was of no use while it could be bought here.
    if is_doubtful or order.poll_wanted_at is not None or is_told_of(order):
        told_early["told_early_at"] = context.now()
    nothing_due = {"next_poll_at": None, "poll_wanted_at": None}
    return Move(
        order.id,
        source,
        OrderStatus.SUBMITTING if has_begun else source,
        by,
        f"{order.account}: {why}; trying {left[0]}",
        {
            "account": left[0],
            # With those that are not in the settings now: they may be back, or have been told of.
            "fallbacks": list(order.fallbacks[order.fallbacks.index(left[0]) + 1 :]),
            "between_attempts": has_begun,
            "quoted_mills": None,
            "quoted_item_id": None,
            "funds_deadline_at": None,
            **told_early,
        },
        {**UNCLAIMED, **nothing_due, "next_attempt_at": context.now()},
        claim=claim,
        unless_told=True,
    )


def has_next(context: Context, order: Order) -> bool:
    """Say whether another account is left that may be tried for the order."""
    return bool(_left(context, order))


def _left(context: Context, order: Order) -> list[str]:
    return [name for name in order.fallbacks if name in context.settings.accounts]


def reroute_or_refuse(
    context: Context, order: Order, code: FailureCode, message: str, by: Source, claim: str
) -> Move:
    """Write what follows our own no to an order that nothing is under way for.

    It is carried out by `apply_ours`.
    """
    going_on = reroute(context, order, f"{code}: {message}", by, claim)
    return going_on or replace(refusal(order, code, message, by, claim), unless_told=True)


def apply_ours(
    session: Session, moves: Sequence[Move], claim: KeptClaim, now: datetime
) -> dict[int, Order]:
    """Carry out what a step makes of its orders; give those moved.

    Of which an account has told meanwhile, is given back: it is looked for first.
    """
    moved = orders.apply(session, moves, now)
    told = [move.order_id for move in moves if move.unless_told and move.order_id not in moved]
    if told:
        claims.release(session, told, claim.name)
    return moved


def rerouted_to(account: str, moved: Mapping[int, Order]) -> tuple[str, ...]:
    """Name the accounts to dispatch for: those that orders of this one went on to."""
    return tuple(sorted({order.account for order in moved.values()} - {account}))


@repeated
def leave_unreachable(
    context: Context, claim: KeptClaim, error: ProviderError, by: Source
) -> tuple[str, ...]:
    """Let the batch's orders go on that can, when their account cannot be asked; name where to."""
    if isinstance(error, OverBudget):
        return ()  # our own restraint is no word of the provider
    with context.database.transaction() as session:
        members = [order for order in orders.get(session, claim.order_ids) if order.is_waiting]
        why = f"cannot be asked: {error}"
        moves = [reroute(context, order, why, by, claim.name) for order in members]
        moved = orders.apply(session, [move for move in moves if move], context.now())
        crash_point("reroute.before_commit", moved)
    crash_point("reroute.after_commit", moved)
    return rerouted_to(claim.account, moved)


@repeated
def leave_paused(context: Context, gone: Sequence[str] = ()) -> list[str]:
    """Let orders at paused accounts go on of which surely nothing was sent; give their ids.

    Those at accounts that are `gone` from the settings as well.
    """
    now = context.now()
    configured = list(context.settings.accounts)
    with context.database.transaction() as session:
        stuck = orders.lock_routed_at_unusable(session, configured, gone, now, _LIMIT)
        if not stuck:
            return []
        # Read after the orders were locked: only a holder of the lock commits an intent to send.
        attempts = ledger.attempts_of(session, [order.id for order in stuck])
        moves = [
            reroute(context, order, _why_left(order, gone), Source.SWEEP)
            for order in stuck
            if (attempt := attempts.get(order.id)) is None or attempt.is_unsent
        ]
        # What somebody told of is looked for at the next one before it is bought there.
        going_on = [replace(move, unless_told=False) for move in moves if move]
        moved = orders.apply(session, going_on, now)
        held = {order.id: order.account for order in stuck}
        postings = [Posting(id_, "never sent", account=held[id_]) for id_ in moved]
        ledger.refuse(session, postings, now)
        crash_point("leave_paused.before_commit", moved)
    crash_point("leave_paused.after_commit", moved)
    return [order.external_id for order in moved.values()]


@repeated
def price_afresh(context: Context) -> list[str]:
    """Let orders begin anew at their accounts that were held back for minutes; give their ids.

    Their account is stopped, or its purchases are answered by nobody, or it has no requests left.
    Their money is free until they are priced by a fresh catalog, but for none that came later.
    """
    now = context.now()
    with context.database.transaction() as session:
        configured = list(context.settings.accounts)
        held = orders.lock_held_back(session, configured, now - HELD_FOR, now, _LIMIT)
        if not held:
            return []
        # Read after the orders were locked, as above.
        attempts = ledger.attempts_of(session, [order.id for order in held])
        moves = [
            Move(
                order.id,
                order.status,
                OrderStatus.SUBMITTING,
                Source.SWEEP,
                "held back and not sent: it is priced afresh",
                {
                    "between_attempts": True,
                    "quoted_mills": None,
                    "quoted_item_id": None,
                    # News that is waited for is of something that was never sent.
                    **(heard(context, order, order.account, now) if order.poll_wanted_at else {}),
                },
                {**UNCLAIMED, "next_poll_at": None, "poll_wanted_at": None},
            )
            for order in held
            if (attempt := attempts.get(order.id)) is not None and attempt.is_untouched
        ]
        moved = orders.apply(session, moves, now)
        ledger.refuse(session, [Posting(order_id, "never sent") for order_id in moved], now)
        ledger.put_aside(session, list(moved))
        crash_point("price_afresh.before_commit", moved)
    crash_point("price_afresh.after_commit", moved)
    return [order.external_id for order in moved.values()]


def _why_left(order: Order, gone: Sequence[str]) -> str:
    is_gone = order.account in gone
    return "the account is not configured any more" if is_gone else "the account is paused"
