"""Bring orders that a search found bought to where a purchase of theirs would have them."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from msgspec.structs import replace

from fulfillment.log import get_logger
from fulfillment.services.claiming import KeptClaim
from fulfillment.services.context import Context
from fulfillment.services.dispatch import overdue_refusal
from fulfillment.services.hearsay import FOUND_AT, with_account
from fulfillment.services.news import is_alive
from fulfillment.services.outcomes import review
from fulfillment.services.reports import apply_reports, strays
from fulfillment.services.unknowns import is_for_a_person
from fulfillment.store import claims, ledger, orders
from fulfillment.store.engine import Session
from fulfillment.store.ledger import Posting
from fulfillment.store.models import Attempt, Move, Order
from schemas.enums import OrderStatus as S
from schemas.enums import Source
from schemas.messages import NEEDS_REVIEW
from schemas.money import cents_to_mills
from schemas.provider import OrderReport

log = get_logger(__name__)

#: How soon where one was asked that had refused the order and has it all the same.
_REFUSED_AGAIN = timedelta(minutes=1)
#: The way of an order that turns out to be bought, from where our rows have it.
_WAY = {
    S.RECEIVED: (S.QUOTED, S.RESERVED, S.SUBMITTING),
    S.AWAITING_FUNDS: (S.QUOTED, S.RESERVED, S.SUBMITTING),
    S.QUOTED: (S.RESERVED, S.SUBMITTING),
    S.RESERVED: (S.SUBMITTING,),
    S.SUBMITTING: (),
}


def adopt(
    context: Context,
    session: Session,
    claim: KeptClaim,
    reports: Mapping[int, Mapping[str, OrderReport]],
    now: datetime,
) -> None:
    """Bring orders to where a purchase of theirs would have them, and apply what is told of it."""
    for account in sorted({account for told in reports.values() for account in told}):
        ledger.lock_wallet(session, account)
    locked = [o for o in orders.lock(session, list(reports)) if o.claim == claim.name]
    where = {order.id: _chosen(order, reports[order.id]) for order in locked}
    tried = ledger.tried_at(session, [order.id for order in locked])
    refused = [
        order
        for order in locked
        if where[order.id] != order.account
        and tried.get(order.id, {}).get(where[order.id]) is not None
    ]
    if refused:
        # What that account refused once is not made good again: a person is told once, nothing more
        # is bought, and the order ends when its time is over.
        of_refused = [
            (o, where[o.id], reports[o.id][where[o.id]])
            for o in refused
            if with_account(o, FOUND_AT, where[o.id]) is not None
        ]
        noted = strays(context, session, of_refused, Source.SWEEP, now)
        orders.apply(
            session,
            [_found(move, o, where[o.id]) for move, (o, *_) in zip(noted, of_refused, strict=True)],
            now,
        )
        attempts = ledger.attempts_of(session, [order.id for order in refused])
        over, reviewed = [], []
        for order in refused:
            if (attempt := attempts.get(order.id)) is None or attempt.is_unsent:
                over.append(overdue_refusal(order, now, Source.SWEEP, claim.name))
            elif is_left_to_a_person(context, order, attempt, now):
                note = f"another account has it: {where[order.id]}"
                reviewed.append(review(context, order, note, claim))
        ended = orders.apply(session, [move for move in over if move], now)
        ledger.refuse(session, [Posting(order_id, "never sent") for order_id in ended], now)
        ended |= orders.apply(session, reviewed, now)
        waiting = [order.id for order in refused if order.id not in ended]
        claims.release(session, waiting, claim.name, now + _REFUSED_AGAIN)
        locked = [order for order in locked if order not in refused]
    left = [order for order in locked if where[order.id] != order.account]
    postings = [Posting(order.id, "found elsewhere", account=order.account) for order in left]
    ledger.refuse(session, postings, now)
    moves = [_moved(context, order, where[order.id], reports[order.id], claim) for order in locked]
    present = orders.apply(session, moves, now)
    for place in range(max(map(len, _WAY.values()))):
        steps = [
            Move(order.id, present[order.id].status, way[place], Source.SWEEP, claim=claim.name)
            for order in locked
            if len(way := _WAY[order.status]) > place
        ]
        present |= orders.apply(session, steps, now)
    ledger.put_aside(session, list(present))
    known = ledger.attempts_of(session, list(present))
    for account in sorted(set(where.values())):
        members = [order for order in present.values() if order.account == account]
        fresh = {o.id: o.quoted_mills or 0 for o in members if o.id not in known}
        if fresh:
            names = {order.id: order.external_id for order in members}
            ledger.hold(session, account, fresh, names, now)
        told = {order.id: reports[order.id][account] for order in members}
        apply_reports(context, session, account, told, Source.SWEEP)
    for order in present.values():
        log.error("order.found_bought", order_id=order.external_id, account=order.account)


def _found(stray: Move, order: Order, account: str) -> Move:
    """Keep with an order that a person was told where it was found."""
    known = replace(order, late_words=stray.changes.get("late_words", order.late_words))
    words = with_account(known, FOUND_AT, account)
    return replace(stray, changes={**stray.changes, "late_words": words})


def is_left_to_a_person(context: Context, order: Order, attempt: Attempt, now: datetime) -> bool:
    policy, longest = context.provider(order.account).after_unknown, context.longest_call
    return is_for_a_person(policy, order, attempt, now, longest(order.account), is_empty=False)


def _chosen(order: Order, told: Mapping[str, OrderReport]) -> str:
    """Choose the account whose purchase is the order's: one that lives, in the route's order."""
    named = [name for name in (order.account, *order.fallbacks) if name in told]
    places = list(dict.fromkeys([*named, *told]))
    living = [name for name in places if is_alive(told[name])]
    return (living or places)[0]


def _moved(
    context: Context,
    order: Order,
    account: str,
    told: Mapping[str, OrderReport],
    claim: KeptClaim,
) -> Move:
    """Write where the order was found, and have a person look where that is more than one place."""
    limit = context.account(account).price_limit_cents(order.expected_price_cents)
    known = order.quoted_mills if account == order.account else None
    changes: dict[str, Any] = {
        "quoted_mills": told[account].charged_mills or known or cents_to_mills(limit),
        "between_attempts": False,
        "funds_deadline_at": None,
    }
    if account != order.account:
        is_named = account in order.fallbacks
        later = order.fallbacks[order.fallbacks.index(account) + 1 :] if is_named else ()
        changes |= {"account": account, "fallbacks": list(later)}
    note = f"found at {account}: bought, and our rows did not tell of it"
    living = [name for name in told if is_alive(told[name])]
    tell: tuple[str, ...] = ()
    if len(living) > 1:
        note, tell = (
            f"{note}; and also at {', '.join(sorted(set(living) - {account}))}",
            (NEEDS_REVIEW,),
        )
    return Move(
        order.id, order.status, order.status, Source.SWEEP, note, changes, tell=tell,
        claim=claim.name,
    )  # fmt: skip
