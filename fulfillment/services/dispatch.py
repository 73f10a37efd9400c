"""Claim everything that waits for an account as one batch (DESIGN section 3, group commit)."""

import uuid
from collections.abc import Iterable
from datetime import datetime

from fulfillment.crash import crash_point
from fulfillment.services.claiming import CLAIMED, claim_name, gather_lease
from fulfillment.services.context import Context
from fulfillment.store import claims, doubts, leases, orders
from fulfillment.store.due import Due
from fulfillment.store.engine import repeated
from fulfillment.store.models import NOTHING_DUE, Move, Order
from schemas.enums import FailedBy, FailureCode, OrderStatus, Source
from schemas.messages import Batch

#: Batches of an account that may be in submission while another one gathers.
_BATCHES_AHEAD = 2


def make_batch(account: str, token: str, batch: Iterable[Order | Due]) -> Batch:
    """Write the argument of the chain's steps."""
    members = list(batch)
    return Batch(
        account=account,
        token=token,
        ids=[order.id for order in members],
        names=[order.external_id for order in members],
    )


def refusal(
    order: Order, code: FailureCode, message: str, by: Source, claim: str | None = None
) -> Move:
    """Write the move that ends an order by our own decision, before anything was bought."""
    return Move(
        order_id=order.id,
        source=order.status,
        target=OrderStatus.FAILED,
        by=by,
        note=f"{code}: {message}",
        changes={
            "failure_code": code.value,
            "failure_message": message,
            "failed_by": FailedBy.US.value,
        },
        due=NOTHING_DUE,
        claim=claim,
    )


@repeated
def dispatch(context: Context, account: str) -> Batch | None:
    """Claim the account's waiting orders, oldest first; None when there is nothing to do now.

    One batch an account gathers at a time, and only so many wait for submission; whoever finishes
    gathering or submitting asks again. Where nothing is bought now (the account is stopped, or its
    purchases rest), only what may be bought already is claimed, to be looked for.
    """
    context.account(account)
    now = context.now()
    until = now + context.lease
    token = uuid.uuid4().hex
    limit = context.settings.batch_limit
    with context.database.transaction() as session:
        is_buying = claims.is_buying(session, account, now)
        if not is_buying and not claims.is_to_search(session, account, now):
            return None
        if not leases.acquire(session, gather_lease(account), token, now, until):
            return None
        claim = claim_name(token, CLAIMED)
        claimed: list[Order] = []
        ahead = claims.in_submission(session, account, now) if is_buying else 0
        if ahead < _BATCHES_AHEAD * limit:
            claimed = claims.claim_waiting(
                session, account, claim, now, until, limit, is_buying=is_buying
            )
        # While our rows are in doubt, an order is looked for first: it may have been in time.
        doubt = doubts.condition(session, account, now).doubt
        judged = [order for order in claimed if order.was_searched(doubt)]
        late = [overdue_refusal(order, now, Source.DISPATCH, claim) for order in judged]
        refused = orders.apply(session, [move for move in late if move], now)
        batch = [order for order in claimed if order.id not in refused]
        if not batch:
            leases.give_up(session, gather_lease(account), token)
            return None
        crash_point("dispatch.before_commit")
    crash_point("dispatch.after_commit")
    return make_batch(account, token, batch)


def overdue_refusal(
    order: Order, now: datetime, by: Source, claim: str | None = None
) -> Move | None:
    """Write the end of an order whose time to be submitted is over.

    That to be paid for ends only where a balance was asked for after it (services/funds.py).
    """
    if order.submit_by > now:
        return None
    message = f"not submitted by {order.submit_by.isoformat()}"
    return refusal(order, FailureCode.TOO_LATE, message, by, claim)


@repeated
def is_buying(context: Context, account: str) -> bool:
    """Say whether what was claimed for the account may be priced and paid for."""
    with context.database.statement() as session:
        return claims.is_buying(session, account, context.now())


def is_waiting(context: Context, account: str) -> bool:
    """Say whether the account has orders to dispatch now."""
    with context.database.statement() as session:
        return claims.is_waiting(session, account, context.now())
