"""What an operator may do and see: resolve an order, read orders and wallets, check readiness."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from fulfillment.crash import crash_point
from fulfillment.errors import FulfillmentError, InvalidInput, NotAllowedNow, OrderNotFound
from fulfillment.services import invariants, pulse
from fulfillment.services.context import Context
from fulfillment.services.reports import apply_reports
from fulfillment.states import FOLLOWED
from fulfillment.store import (
    accounts,
    leases,
    ledger,
    orders,
    outbox,
    schema,
    statistics,
    switches,
)
from fulfillment.store.engine import Session
from fulfillment.store.ledger import Posting
from fulfillment.store.models import NOTHING_DUE, Move, Order
from schemas.enums import FailedBy, FailureCode, OrderStatus, Source
from schemas.orders import OrderView, WalletView


class Resolution(StrEnum):
    """What a person found out about an order that needs review."""

    FOUND = "found"
    NOT_FOUND = "not-found"
    CANCELLED = "cancelled"


def resolve(context: Context, external_id: str, resolution: Resolution, reason: str) -> Order:
    """End an order's review with a person's finding.

    `found` asks the provider and adopts its answer. Raises OrderNotFound, NotAllowedNow,
    InvalidInput for an empty reason, ProviderError when the provider cannot be asked.
    """
    if not reason.strip():
        raise InvalidInput("reason", "expected why, for the order's log")
    with context.database.transaction() as session:
        order = orders.find(session, [external_id]).get(external_id)
        if order is None:
            raise OrderNotFound(external_id)
        attempt = ledger.attempts_of(session, [order.id]).get(order.id)
    # Of what is followed no more, because its account is another's now, a person alone knows.
    is_left = order.status in FOLLOWED and attempt is not None and attempt.strange_since is not None
    if order.status is not OrderStatus.NEEDS_REVIEW and not is_left:
        raise NotAllowedNow(f"{external_id} is {order.status}; only needs_review can be resolved")
    if resolution is Resolution.FOUND:
        return _adopt(context, order, reason)
    is_cancelled = resolution is Resolution.CANCELLED
    target = OrderStatus.CANCELLED if is_cancelled else OrderStatus.FAILED
    code = FailureCode.CANCELLED if is_cancelled else FailureCode.REFUSED
    move = Move(
        order.id,
        order.status,
        target,
        Source.OPERATOR,
        f"resolved as {resolution}: {reason}",
        {
            "failure_code": code.value,
            "failure_message": reason,
            "failed_by": FailedBy.US.value,
            "charged_mills": None,
        },
        NOTHING_DUE,
    )
    with context.database.transaction() as session:
        moved = orders.apply(session, [move], context.now())
        _free(session, context, moved, order.account)
        crash_point("resolve.before_commit")
    crash_point("resolve.after_commit")
    return _moved(moved, order)


def _free(session: Session, context: Context, moved: dict[int, Order], account: str) -> None:
    now = context.now()
    postings = [Posting(order_id, "resolved by a person") for order_id in moved]
    ledger.refuse(session, postings, now)
    ledger.end(session, list(moved), now)
    if account not in context.settings.accounts:
        ledger.release_ended(session, postings, now)  # no later figure will


def _moved(moved: dict[int, Order], order: Order) -> Order:
    if order.id not in moved:
        raise NotAllowedNow(f"{order.external_id} changed meanwhile; look again")
    return moved[order.id]


def _adopt(context: Context, order: Order, reason: str) -> Order:
    merchant = context.account(order.account).merchant
    found = context.provider(order.account).reports([order.external_id])
    if order.external_id not in found:
        raise NotAllowedNow(f"the provider does not know {order.external_id}")
    crash_point("adopt.answered")
    with context.database.transaction() as session:
        note = Move(
            order.id,
            order.status,
            order.status,
            Source.OPERATOR,
            f"resolved as found: {reason}",
        )
        _moved(orders.apply(session, [note], context.now()), order)
        moved = apply_reports(
            context,
            session,
            order.account,
            {order.id: found[order.external_id]},
            Source.OPERATOR,
        )
        ledger.note_own(session, order.account, [order.id], merchant)
        crash_point("adopt.before_commit")
    return _moved(moved, order)


def show(context: Context, external_id: str) -> OrderView:
    """Read one order with its timeline. Raises OrderNotFound."""
    with context.database.transaction() as session:
        view = orders.view(session, external_id)
    if view is None:
        raise OrderNotFound(external_id)
    return view


def page(
    context: Context,
    *,
    status: OrderStatus | None = None,
    account: str | None = None,
    before_id: int | None = None,
    limit: int = 100,
) -> tuple[list[OrderView], int | None]:
    """Read a page of orders, newest first, and the id to go on from (None at the end)."""
    with context.database.transaction() as session:
        found = orders.page(
            session, status=status, account=account, before_id=before_id, limit=limit + 1
        )
        views = orders.views(session, found[:limit])
    return views, found[limit - 1].id if len(found) > limit else None


def wallets(context: Context) -> list[WalletView]:
    """Show every account's money, and what stops it."""
    with context.database.transaction() as session:
        views = accounts.wallets(session, context.now())
        stops = {view.account: switches.stop_of(session, view.account) for view in views}
    return [
        view.model_copy(update={"stopped_at": stop.at, "stop_reason": stop.reason})
        if (stop := stops[view.account])
        else view
        for view in views
    ]


#: The invariants are looked at every minute.
_CHECK_PATIENCE = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must work, and what is wrong with it if it does not."""

    name: str
    is_ok: bool
    detail: str = ""
    #: Without it no order can be worked on; the others are for people to look at.
    is_needed: bool = True


def check_readiness(context: Context) -> list[Check]:
    """Look at the database, its schema and the periodic ticks; and at the checks of our rows."""
    try:
        context.database.ping()
        is_current = schema.is_current(context.database)
    except FulfillmentError as error:
        return [Check("database", is_ok=False, detail=str(error))]
    checks = [
        Check("database", is_ok=True),
        Check("schema", is_current, "" if is_current else "run `fulfillment migrate`"),
    ]
    if not is_current:
        return checks
    with context.database.transaction() as session:
        beats = leases.heartbeats(session)
    checks += [_check_pulse(context, beats, part) for part in _TURNING]
    return [*checks, _check_checks(context)]


def _check_checks(context: Context) -> Check:
    """Say whether the invariants were looked at lately.

    Nobody is taken out of service for it: orders go on, and somebody else is to be told.
    """
    age = invariants.age(context)
    is_ok = age <= _CHECK_PATIENCE
    detail = f"{round(age.total_seconds())} s ago or never: nobody would notice a broken promise"
    return Check("invariants checked", is_ok, "" if is_ok else detail, is_needed=False)


@dataclass(frozen=True, slots=True)
class _Turning:
    """Something that must turn: its heartbeat, how old that may be, and what is dead if older."""

    title: str
    heartbeat: str
    patience: timedelta
    dead: str
    since: str = "last_seen_at"
    #: The heartbeat of those who do it meanwhile.
    substitute: str = ""


_TURNING = (
    _Turning(
        "ticks",
        pulse.SWEEP,
        timedelta(seconds=15),  # the sweep ticks every second
        "beat or the workers are dead",
        "last_tick_at",
        pulse.STAND_IN,
    ),
    _Turning("intake", pulse.CONSUMER, timedelta(seconds=30), "`fulfillment intake` is dead"),
    _Turning("relay", pulse.RELAY, timedelta(seconds=30), "`fulfillment intake` is dead"),
)


def _check_pulse(context: Context, beats: Mapping[str, datetime], part: _Turning) -> Check:
    last, helped = beats.get(part.heartbeat), beats.get(part.substitute)
    if last is None:
        return Check(part.title, is_ok=False, detail=f"not seen yet: {part.dead}")
    age = context.now() - last
    detail = f"{part.since} {last.isoformat()}"
    if age > part.patience:
        detail += f", {round(age.total_seconds())} s ago: {part.dead}"
        if helped is not None and context.now() - helped <= part.patience:
            detail += "; the workers stand in, more slowly"
    return Check(part.title, age <= part.patience, detail)


def gauges(context: Context) -> statistics.Gauges:
    """Measure what the metrics page shows of the database."""
    now = context.now()
    with context.database.transaction() as session:
        waiting, age = outbox.lag(session, now)
        return statistics.measure(session, now, waiting, age)
