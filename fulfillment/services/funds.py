"""Check the wallet for a batch: hold money for the orders it covers, in the order of arrival."""

import uuid
from collections.abc import Iterable
from datetime import timedelta

from sqlmodel import Session

from fulfillment.errors import ProviderError
from fulfillment.services import outages
from fulfillment.services.claiming import (
    WALLET,
    KeptClaim,
    StepOutcome,
    finish_gathering,
    give_back,
    take_over,
)
from fulfillment.services.context import Context
from fulfillment.services.dispatch import refusal
from fulfillment.services.routes import leave_unreachable, reroute, rerouted_to
from fulfillment.store import accounts, leases, ledger, orders
from fulfillment.store.accounts import Purpose
from fulfillment.store.ledger import Figure
from fulfillment.store.models import UNCLAIMED, Move, Order
from schemas.enums import FailureCode, OnInsufficientFunds, OrderStatus, Source
from schemas.messages import Batch
from schemas.money import cap_in_cents, charge_in_cents

#: How often a waiting account's balance is looked at; one probe serves all its waiting orders.
_PROBE_S = 10.0
_READ_GAP = timedelta(seconds=5)


def allocate(available_mills: int, waiting: Iterable[tuple[int, int]]) -> set[int]:
    """Say which of (id, price in mills) the money covers, first come first served.

    One that does not fit is skipped, so that it does not hold up smaller ones behind it.
    """
    funded: set[int] = set()
    for order_id, price in waiting:
        if price <= available_mills:
            available_mills -= price
            funded.add(order_id)
    return funded


def check_wallet(context: Context, batch: Batch) -> StepOutcome:
    """Read the wallet once and reserve the batch's quoted orders as far as the money reaches."""
    account = batch["account"]
    with take_over(context, batch, WALLET) as claim:
        if claim is None:
            return StepOutcome(goes_on=False)
        grant = context.budget(account).take(Purpose.SUBMIT)
        if not grant.size:
            give_back(context, batch, claim)
            return StepOutcome(goes_on=False)
        try:
            with grant:
                figure = read_figure(context, account)
        except ProviderError as error:
            due_at = outages.pause(context, account, error)
            left_for = leave_unreachable(context, claim, error, Source.WALLET)
            give_back(context, batch, claim, due_at)
            return StepOutcome(goes_on=False, rerouted_to=left_for)
        with context.database.transaction() as session:
            reserved, left_for = _allocate(context, session, account, claim, figure)
        return StepOutcome(reserved > 0, finish_gathering(context, batch), left_for)


def read_figure(context: Context, account: str) -> Figure:
    """Ask the provider for the balance. Raises ProviderError."""
    requested_at = context.now()
    return Figure(context.provider(account).wallet_mills(), requested_at)


def refresh_wallet(context: Context, account: str) -> None:
    """Read the wallet outside any batch, so that ended orders' money is released."""
    now = context.now()
    with context.database.transaction() as session:
        # One read at a time: sweeps come faster than a slow provider answers.
        lease = f"wallet:{account}"
        if not leases.acquire(session, lease, uuid.uuid4().hex, now, now + _READ_GAP):
            return
    grant = context.budget(account).take(Purpose.POLL)
    if not grant.size:
        return
    try:
        with grant:
            figure = read_figure(context, account)
    except ProviderError as error:
        outages.pause(context, account, error)
        return
    with context.database.transaction() as session:
        ledger.lock_wallet(session, account)
        _record(context, session, account, figure)


def _record(context: Context, session: Session, account: str, figure: Figure) -> None:
    debits_at = context.account(account).debits_at
    ledger.record_figure(session, account, figure, debits_at, context.wallet_lag)
    accounts.works(session, account)


def _allocate(
    context: Context, session: Session, account: str, claim: KeptClaim, figure: Figure
) -> tuple[int, tuple[str, ...]]:
    """Hold money under the wallet's lock; give how many orders of the batch got it.

    And the accounts that others of it have gone on to.
    """
    ledger.lock_wallet(session, account)
    _record(context, session, account, figure)
    available = ledger.available_mills(session, account)
    members = {
        order.id: order
        for order in orders.lock(session, claim.order_ids)
        if order.claim == claim.name and order.is_waiting and order.quoted_mills is not None
    }
    # Orders that wait outside this batch came earlier or later than its members; the money is
    # shared out over all of them by arrival, and who got some outside is made due at once.
    waiting = dict(ledger.waiting_for_funds(session, account))
    waiting |= {order.id: order.quoted_mills or 0 for order in members.values()}
    funded = allocate(available, sorted(waiting.items()))
    now = context.now()
    woken = [order_id for order_id in funded if order_id not in members]
    if woken:
        orders.set_due(session, woken, next_attempt_at=now)
    asleep = [i for i in waiting if i not in funded and i not in members]
    if asleep:
        orders.set_due(session, asleep, next_attempt_at=now + _probe_gap(context))
    _reserve(context, session, [o for o in members.values() if o.id in funded], claim)
    left = available - sum(price for order_id, price in waiting.items() if order_id in funded)
    short = [order for order in members.values() if order.id not in funded]
    left_for = _wait(context, session, short, claim, left)
    return sum(order_id in members for order_id in funded), left_for


def _probe_gap(context: Context) -> timedelta:
    return timedelta(seconds=min(_PROBE_S, context.settings.poll_min_interval_s))


def _reserve(context: Context, session: Session, funded: list[Order], claim: KeptClaim) -> None:
    now = context.now()
    requoted = [
        Move(
            order.id,
            order.status,
            OrderStatus.QUOTED,
            Source.WALLET,
            "the balance rose; priced afresh",
            {"quoted_mills": order.quoted_mills, "funds_deadline_at": None},
            claim=claim.name,
        )
        for order in funded
        if order.status is OrderStatus.AWAITING_FUNDS
    ]
    orders.apply(session, requoted, now)
    moves = [
        Move(
            order.id,
            *_edge_of(order),
            Source.WALLET,
            f"{charge_in_cents(order.quoted_mills or 0)} cents held",
            {"between_attempts": False, "funds_deadline_at": None}
            if order.between_attempts
            else {},
            claim=claim.name,
        )
        for order in funded
    ]
    reserved = orders.apply(session, moves, now)
    if reserved:
        amounts = {order.id: order.quoted_mills or 0 for order in reserved.values()}
        names = {order.id: order.external_id for order in reserved.values()}
        ledger.hold(session, claim.account, amounts, names, now)


def _edge_of(order: Order) -> tuple[OrderStatus, OrderStatus]:
    """Say from where to where its money takes it: a submit that has begun at another account
    stays one."""
    if order.status is OrderStatus.SUBMITTING:
        return OrderStatus.SUBMITTING, OrderStatus.SUBMITTING
    return OrderStatus.QUOTED, OrderStatus.RESERVED


def _wait(
    context: Context, session: Session, short: list[Order], claim: KeptClaim, left: int
) -> tuple[str, ...]:
    """Let orders wait for money, go on or fail; name the accounts that some have gone on to."""
    settings = context.account(claim.account)
    now = context.now()
    moves = []
    for order in short:
        note = (
            f"{cap_in_cents(max(left, 0))} cents are left in the wallet beside other orders, "
            f"needed are {charge_in_cents(order.quoted_mills or 0)}"
        )
        deadline = order.funds_deadline_at or now + timedelta(
            seconds=context.settings.await_funds_s
        )
        due = {**UNCLAIMED, "next_attempt_at": min(now + _probe_gap(context), deadline)}
        code = FailureCode.INSUFFICIENT_FUNDS
        going_on = reroute(context, order, f"{code}: {note}", Source.WALLET, claim.name)
        if going_on is not None:
            moves.append(going_on)
        elif settings.on_insufficient_funds is OnInsufficientFunds.FAIL:
            moves.append(refusal(order, code, note, Source.WALLET, claim.name))
        elif order.funds_deadline_at is None:
            is_quoted = order.status is OrderStatus.QUOTED
            moves.append(
                Move(
                    order.id,
                    order.status,
                    OrderStatus.AWAITING_FUNDS if is_quoted else order.status,
                    Source.WALLET,
                    note,
                    {"funds_deadline_at": deadline},
                    due,
                    claim=claim.name,
                )
            )
        else:
            orders.set_due(session, [order.id], **due)
    return rerouted_to(claim.account, orders.apply(session, moves, now))
