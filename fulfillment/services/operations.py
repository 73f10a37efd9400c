"""What an operator may do and see: resolve an order, read orders and wallets, check readiness."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from functools import partial
from typing import Any

from fulfillment.crash import crash_point
from fulfillment.errors import (
    FulfillmentError,
    NotAllowedNow,
    OrderNotFound,
    ProviderError,
    WrongClock,
)
from fulfillment.services import clock_guard, invariants, pulse, reasons, schedule, updates
from fulfillment.services.context import Context
from fulfillment.services.merchants import why_strange
from fulfillment.services.reports import apply_reports
from fulfillment.states import FOLLOWED, UNFULFILLED
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
from fulfillment.store.engine import Session, repeated
from fulfillment.store.ledger import Posting
from fulfillment.store.models import NOTHING_DUE, Attempt, Move, Order
from schemas.enums import FailedBy, FailureCode, OrderStatus, Source
from schemas.money import charge_in_cents
from schemas.orders import OrderView, WalletView
from schemas.provider import OrderReport, ReportState


class Resolution(StrEnum):
    """What a person found out about an order that needs review."""

    FOUND = "found"
    NOT_FOUND = "not-found"
    CANCELLED = "cancelled"


def resolve(
    context: Context,
    external_id: str,
    resolution: Resolution,
    reason: str,
    *,
    is_insisted: bool = False,
) -> Order:
    """End an order's review with a person's finding.

    The provider is asked first. `found` adopts its answer; the others are refused while it has the
    order alive, or cannot tell, unless the person insists. Their money is free at a balance that
    shows what became of it. Raises OrderNotFound, NotAllowedNow, InvalidInput for an empty or
    long reason, ProviderError when the provider cannot be asked for what was found.
    """
    reason = reasons.written(reason, "why, for the order's log")
    order, attempt = _reviewed(context, external_id)
    note = f"resolved as {resolution}: {reason}"
    if resolution is Resolution.FOUND:
        changed = _adopt(context, order, note, _found(context, order))
    else:
        is_over = not is_insisted and _is_over(context, order, attempt)
        due = {} if is_over else _last_look(context, order, attempt)
        changed = _end(context, order, resolution, reason, note, due)
    if changed is None:
        raise NotAllowedNow(
            f"{external_id} has changed meanwhile; nothing was done: look at it again, and resolve "
            "it by what you find then"
        )
    return changed


def _reviewed(context: Context, external_id: str) -> tuple[Order, Attempt | None]:
    with context.database.transaction() as session:
        order = orders.find(session, [external_id]).get(external_id)
        if order is None:
            raise OrderNotFound(external_id)
        attempt = ledger.attempts_of(session, [order.id]).get(order.id)
    # Of what is followed no more, because its account is another's now, a person alone knows.
    is_left = order.status in FOLLOWED and attempt is not None and attempt.strange_since is not None
    if order.status is not OrderStatus.NEEDS_REVIEW and not is_left:
        raise NotAllowedNow(f"{external_id} is {order.status}; only needs_review can be resolved")
    return order, attempt


def _found(context: Context, order: Order) -> OrderReport:
    report = _ask(context, order)
    if report is None:
        raise NotAllowedNow(f"the provider does not know {order.external_id}")
    if report.state is ReportState.UNKNOWN:
        word = f"{report.raw_status!r}, a status that nobody knows"
        raise NotAllowedNow(f"the provider has {order.external_id} as {word}")
    return report


def _ask(context: Context, order: Order) -> OrderReport | None:
    found = context.provider(order.account).reports([order.external_id])
    crash_point("adopt.answered")
    return found.get(order.external_id)


def _is_over(context: Context, order: Order, attempt: Attempt | None) -> bool:
    """Say whether the provider has ended its purchase; it may also know of none.

    Raises NotAllowedNow, with what the provider says, where that is alive.
    """
    insist = "nothing was changed; use --force where you know better"
    begun_at = attempt.merchant if attempt else None
    if why := why_strange(context, order.account, begun_at):
        raise NotAllowedNow(f"nobody can be asked: {why}; {insist}")
    try:
        report = _ask(context, order)
    except ProviderError as error:
        raise NotAllowedNow(f"{order.account} cannot be asked: {error}; {insist}") from error
    told = _what_is_alive(report) if report else _what_is_too_young(context, order, attempt)
    if told:
        raise NotAllowedNow(f"{order.account} {told}; {insist}")
    return report is not None


def _last_look(context: Context, order: Order, attempt: Attempt | None) -> Mapping[str, Any]:
    """Give when an order that may have been bought is asked about once more, if anybody can be."""
    if attempt is None or attempt.is_unsent:
        return {}
    if why_strange(context, order.account, attempt.merchant):
        return {}
    return schedule.last_look(context.now())


def _what_is_alive(report: OrderReport) -> str | None:
    """Say what the provider has of an order, unless that ended without the item."""
    if report.state.order_status() in UNFULFILLED:
        return None
    charged, advice = report.charged_mills, "; it can be resolved as found"
    cost = "" if charged is None else f", charged {charge_in_cents(charged)} cents"
    is_known = report.state is not ReportState.UNKNOWN
    return f"has {report.external_id} as {report.raw_status!r}{cost}{advice if is_known else ''}"


def _what_is_too_young(context: Context, order: Order, attempt: Attempt | None) -> str | None:
    """Say why it proves nothing that the provider does not know an order, while it does not."""
    if attempt is None or attempt.last_post_at is None:
        return None
    doubtful_for = context.longest_call(order.account) + context.cache_time
    wait = attempt.last_post_at + doubtful_for - context.now()
    if wait <= timedelta(0):
        return None
    return (
        f"does not know {order.external_id}, which proves nothing for another "
        f"{wait.total_seconds():.0f} s: the request may still be on its way"
    )


@repeated
def _end(
    context: Context,
    order: Order,
    resolution: Resolution,
    reason: str,
    note: str,
    due: Mapping[str, Any],
) -> Order | None:
    """End the order without the item; None where it has moved on."""
    is_cancelled = resolution is Resolution.CANCELLED
    code = FailureCode.CANCELLED if is_cancelled else FailureCode.REFUSED
    move = Move(
        order.id,
        order.status,
        OrderStatus.CANCELLED if is_cancelled else OrderStatus.FAILED,
        Source.OPERATOR,
        note,
        {
            "failure_code": code.value,
            "failure_message": reason,
            "failed_by": FailedBy.US.value,
            "charged_mills": None,
            "told_status": None,
        },
        {**NOTHING_DUE, **due},
    )
    now = context.now()
    with context.database.transaction() as session:
        if not _is_still_as_seen(session, order, note, now):
            return None
        moved = orders.apply(session, [move], now)
        # Nobody's finding tells when its money is back: only a balance does.
        ledger.end(session, list(moved), now, is_confirmed=False)
        if due:
            ledger.note_own(
                session, order.account, [order.id], context.account(order.account).merchant
            )
        if order.account not in context.settings.accounts:
            postings = [Posting(order.id, "resolved by a person")]
            ledger.release_ended(session, postings, now)  # no later balance will
        crash_point("resolve.before_commit")
    crash_point("resolve.after_commit")
    return moved[order.id]


def _is_still_as_seen(session: Session, order: Order, note: str, now: datetime) -> bool:
    """Lock the order, and note in its log where a person's finding comes too late.

    Any event since it was read may be news that the person does not know of.
    """
    (present,) = orders.lock(session, [order.id])
    if present.sequence == order.sequence:
        return True
    if present.status is order.status:
        late = f"{note}; not applied, since there was news of the order meanwhile"
    else:
        late = f"{note}; not applied, since the order is {present.status} by now"
    status = present.status
    orders.apply(session, [Move(order.id, status, status, Source.OPERATOR, late)], now)
    return False


@repeated
def _adopt(context: Context, order: Order, note: str, report: OrderReport) -> Order | None:
    """Apply what the provider says; None where the order has moved on."""
    now = context.now()
    with context.database.transaction() as session:
        if not _is_still_as_seen(session, order, note, now):
            return None
        told = Move(order.id, order.status, order.status, Source.OPERATOR, note)
        moved = orders.apply(session, [told], now)
        moved |= apply_reports(context, session, order.account, {order.id: report}, Source.OPERATOR)
        if moved[order.id].status is OrderStatus.NEEDS_REVIEW:
            raise NotAllowedNow(_why_late(order, report))
        merchant = context.account(order.account).merchant
        ledger.note_own(session, order.account, [order.id], merchant)
        crash_point("adopt.before_commit")
    return moved[order.id]


def _why_late(order: Order, report: OrderReport) -> str:
    return (
        f"the provider says {report.raw_status!r} of {order.external_id}, which is older than what "
        f"it said before ({order.told_status}); nothing was changed: look again later"
    )


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
        views = accounts.wallets(session, context.now(), partial(ledger.available_mills, session))
        stops = {view.account: switches.stop_of(session, view.account) for view in views}
    return [
        view.model_copy(update={"stopped_at": stop.at, "stop_reason": stop.reason})
        if (stop := stops[view.account])
        else view
        for view in views
    ]


#: Longer than a worker takes to try again.
_PUT_BACK_FOR = timedelta(seconds=30)
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


def check_readiness(context: Context, *, is_broker_ill: bool = False) -> list[Check]:
    """Look at the database, its schema and the periodic ticks; and at the checks of our rows.

    Where the broker is known to be ill, nobody else is called dead for a heartbeat that is missing.
    """
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
        beats = leases.heartbeats(session, context.now())
        checks.append(_check_clock(clock_guard.ahead(context, session)))
    for part in _TURNING:
        why = "the broker may be why, see there" if is_broker_ill else part.dead
        checks.append(_check_pulse(context, beats, part, why))
    checks += _check_dead_letters(context, beats)
    return [*checks, *_check_refused(context, beats), _check_checks(context)]


def _check_clock(by: timedelta) -> Check:
    is_right = abs(by) <= clock_guard.APART
    return Check("clock", is_right, "" if is_right else str(WrongClock(by)))


def _check_dead_letters(context: Context, beats: Mapping[str, datetime]) -> list[Check]:
    """Tell of checkouts that workers can neither take in nor put aside.

    Of those that intake cannot, its own heartbeat tells.
    """
    last = beats.get(pulse.NOT_PUT_ASIDE)
    if last is None or context.now() - last > _PUT_BACK_FOR:
        return []
    detail = "checkouts that cannot be taken in go round: see `dead_letter.not_taken` in the log"
    return [Check("dead letters", is_ok=False, detail=detail)]


def _check_refused(context: Context, beats: Mapping[str, datetime]) -> list[Check]:
    """Tell of queues of the store that refuse what they are told. Orders go on without them."""
    keys = ", ".join(updates.refused(context, beats))
    if not keys:
        return []
    detail = f"{keys} wait and are tried again: {updates.REFUSED}"
    return [Check("updates taken", is_ok=False, detail=detail, is_needed=False)]


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


_DEAD = "`fulfillment intake` is dead, or gets nowhere: see its log"
_TURNING = (
    _Turning(
        "ticks",
        pulse.SWEEP,
        timedelta(seconds=15),  # the sweep ticks every second
        "beat or the workers are dead, or get nowhere: see their logs",
        "last_tick_at",
        pulse.STAND_IN,
    ),
    _Turning("intake", pulse.CONSUMER, timedelta(seconds=30), _DEAD),
    _Turning("relay", pulse.RELAY, timedelta(seconds=30), _DEAD),
)


def _check_pulse(
    context: Context, beats: Mapping[str, datetime], part: _Turning, why: str
) -> Check:
    last, helped = beats.get(part.heartbeat), beats.get(part.substitute)
    if last is None:
        return Check(part.title, is_ok=False, detail=f"not seen yet: {why}")
    age = context.now() - last
    detail = f"{part.since} {last.isoformat()}"
    if age > part.patience:
        detail += f", {round(age.total_seconds())} s ago: {why}"
        if helped is not None and context.now() - helped <= part.patience:
            detail += "; the workers stand in, more slowly"
    return Check(part.title, age <= part.patience, detail)


def gauges(context: Context) -> statistics.Gauges:
    """Measure what the metrics page shows of the database."""
    now = context.now()
    with context.database.transaction() as session:
        waiting, age = outbox.lag(session, now)
        return statistics.measure(session, now, waiting, age)
