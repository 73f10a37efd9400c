"""Check the wallet for a batch: hold money for the orders it covers, in the order of arrival."""

import uuid
from collections.abc import Callable, Container, Iterable
from contextlib import suppress
from datetime import datetime, timedelta
from typing import TypeVar

from msgspec.structs import replace

from fulfillment.crash import crash_point
from fulfillment.errors import OverBudget, ProviderError
from fulfillment.log import get_logger
from fulfillment.services import backstop, brakes, outages, purchases
from fulfillment.services.budget import Grant
from fulfillment.services.claiming import (
    WALLET,
    KeptClaim,
    StepOutcome,
    give_back,
    give_up_gathering,
    is_more_waiting,
    take_over,
    take_over_within,
)
from fulfillment.services.context import Context
from fulfillment.services.dispatch import refusal
from fulfillment.services.routes import apply_ours, leave_unreachable, reroute, rerouted_to
from fulfillment.store import accounts, in_line, leases, ledger, orders, proof
from fulfillment.store.accounts import Purpose
from fulfillment.store.engine import Session, repeated
from fulfillment.store.models import UNCLAIMED, Move, Order
from fulfillment.store.proof import Figure
from schemas.enums import FailureCode, OnInsufficientFunds, OrderStatus, Source
from schemas.messages import Batch
from schemas.money import cap_in_cents, charge_in_cents

log = get_logger(__name__)

#: How often a waiting account's balance is looked at; one probe serves all its waiting orders.
_PROBE_S = 10.0
#: Who has looked comes after those that have not; more of them than its microseconds never wait.
_BEHIND = timedelta(milliseconds=100)
_READ_GAP = timedelta(seconds=5)
_FAILED_GAP = timedelta(seconds=30)
_PROOF_GAP = timedelta(minutes=1)
#: A figure that was read beside the catalog longer ago than this is asked for again.
_FRESH = timedelta(seconds=2)

T = TypeVar("T")


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


def likely_mills(context: Context, session: Session, account: str, ids: Container[int]) -> int:
    """Give what the stored figure and the spend caps leave for these orders (mills), by their ids.

    Not what others wait for. Nothing is locked: `check_wallet` reckons anew.
    """
    available = ledger.available_mills(session, account)
    room = brakes.room(context, session, account, is_exact=False).mills
    line = in_line.waiting_for_funds(session, account, context.now())
    others = sum(price for order_id, price, _ in line if order_id not in ids)
    return (available if room is None else min(available, room)) - others


def check_wallet(context: Context, batch: Batch) -> StepOutcome:
    """Read the wallet once and reserve the batch's quoted orders as far as the money reaches."""
    at_once = _allocate_with(context, batch, None, None)
    if at_once is not None:
        return at_once
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
            due_at = _rest(context, account, error)
            left_for = leave_unreachable(context, claim, error, Source.WALLET)
            give_back(context, batch, claim, due_at)
            return StepOutcome(goes_on=False, rerouted_to=left_for)
        crash_point("wallet.answered")
        return _allocate_with(context, batch, claim, figure) or StepOutcome(goes_on=False)


def _rest(context: Context, account: str, error: ProviderError) -> datetime | None:
    """Buy nothing for a while where the balance cannot be read; give until when.

    All else may be answered, as the catalog just was: orders under way are asked about meanwhile.
    """
    if isinstance(error, OverBudget):
        return None
    if outages.of_the_account([error], is_answered=False) is not None:
        return outages.pause(context, account, error)
    return purchases.fail(context, account, [error], is_read=True)


def read_beside(
    context: Context, account: str, act: Callable[[], T], grant: Grant
) -> tuple[T, Figure | None]:
    """Ask for the balance while `act` asks for something else; give both answers.

    Both may serve the orders that are claimed by now. No figure where it could not be had:
    `check_wallet` asks again and sees to the reason. Raises what `act` raises.
    """

    def ask() -> Figure | None:
        with grant, suppress(ProviderError):
            return read_figure(context, account)
        return None

    with context.threads.pool(1, "wallet") as executor:
        flying = executor.submit(ask)
        answer = act()
        context.threads.all_done([flying])
    return answer, flying.result()


def record_figure(context: Context, session: Session, account: str, figure: Figure) -> None:
    """Store a figure that no batch's allocation waits for; see `proof.record_figure`."""
    ledger.lock_wallet(session, account)
    _record(context, session, account, figure)


def read_figure(context: Context, account: str) -> Figure:
    """Ask the provider for the balance. Raises ProviderError."""
    requested_at = context.now()
    ask = context.provider(account).wallet_mills
    return Figure(backstop.read(ask, f"the wallet of {account}"), requested_at)


def refresh_wallet(context: Context, account: str) -> None:
    """Read the wallet outside any batch, so that ended orders' money is released.

    That it cannot be read is no reason to ask about no order: it is left alone for a while.
    """
    holder = uuid.uuid4().hex
    try:
        _read_alone(context, account, holder)
    except OverBudget:
        return
    except ProviderError as error:
        if outages.of_the_account([error], is_answered=False) is not None:
            outages.pause(context, account, error)
            return
        log.warning("wallet.not_read", account=account, reason=str(error))
        _have_alone(context, account, holder, _FAILED_GAP)


def prove_wallets(context: Context) -> None:
    """Read the wallets that nobody has read for an hour; one that cannot be read stops nothing.

    It is tried once a minute.
    """
    now = context.now()
    with context.database.transaction() as session:
        overdue = [
            account
            for account in proof.overdue(session, now)
            if account in context.settings.accounts
            and leases.acquire(session, f"proof:{account}", uuid.uuid4().hex, now, now + _PROOF_GAP)
        ]
    for account in overdue:
        try:
            _read_alone(context, account, uuid.uuid4().hex)
        except ProviderError as error:
            log.warning("wallet.not_read", account=account, reason=str(error))


@repeated
def _have_alone(context: Context, account: str, holder: str, length: timedelta) -> bool:
    """Say whether the wallet is the holder's to read for so long, and nobody else's."""
    now = context.now()
    with context.database.transaction() as session:
        return leases.acquire(session, f"wallet:{account}", holder, now, now + length)


def _read_alone(context: Context, account: str, holder: str) -> None:
    # One read at a time: sweeps come faster than a slow provider answers.
    if not _have_alone(context, account, holder, _READ_GAP):
        return
    grant = context.budget(account).take(Purpose.POLL)
    if not grant.size:
        return
    with grant:
        figure = read_figure(context, account)
    crash_point("refresh.answered")
    _record_alone(context, account, figure)


@repeated
def _record_alone(context: Context, account: str, figure: Figure) -> None:
    with context.database.transaction() as session:
        record_figure(context, session, account, figure)
        crash_point("refresh.before_commit")


def _record(context: Context, session: Session, account: str, figure: Figure) -> None:
    debits_at = context.account(account).debits_at
    missing = proof.record_figure(session, account, figure, debits_at, context.wallet_lag)
    if missing:
        # Somebody else spends from this wallet, or the provider took what it did not tell of.
        log.error("wallet.unexplained", account=account, missing_mills=missing)
    # Also where nothing is missing now: what went while the account was stopped is judged after it.
    brakes.watch_unexplained(context, session, account)
    accounts.works(session, account)


def _allocate_with(
    context: Context, batch: Batch, claim: KeptClaim | None, figure: Figure | None
) -> StepOutcome | None:
    allocated = _allocate_now(context, batch, claim, figure)
    if allocated is None:
        return None
    reserved, left_for = allocated
    crash_point("wallet.after_commit")
    return StepOutcome(reserved > 0, is_more_waiting(context, batch), left_for)


@repeated
def _allocate_now(
    context: Context, batch: Batch, claim: KeptClaim | None, figure: Figure | None
) -> tuple[int, tuple[str, ...]] | None:
    """Allocate and let another batch gather, all in one transaction.

    Without a claim also take the batch over, unless the provider has to be asked first: then None.
    It need not be where the stored figure was asked for after the batch's orders had arrived. It
    was if that was after their catalog was asked for: one batch gathers at a time.
    """
    account = batch["account"]
    with context.database.transaction() as session:
        ledger.lock_wallet(session, account)
        if claim is None:
            since = context.now() - _FRESH
            if not ledger.has_figure_since_catalog(session, account, since):
                return None
            claim = take_over_within(context, session, batch, WALLET)
            if claim is None:
                return 0, ()
        if figure is not None:
            _record(context, session, account, figure)
            members = orders.lock(session, claim.order_ids)
        else:
            members = claim.orders  # as they are: they were taken over just now
        allocated = _allocate(context, session, account, claim, members)
        give_up_gathering(session, batch)
        crash_point("wallet.before_commit")
    return allocated


def _allocate(
    context: Context, session: Session, account: str, claim: KeptClaim, locked: list[Order]
) -> tuple[int, tuple[str, ...]]:
    """Hold money under the wallet's lock; give how many orders of the batch got it.

    And the accounts that others of it have gone on to.
    """
    available = ledger.available_mills(session, account)
    members = {
        order.id: order
        for order in locked
        if order.claim == claim.name and order.is_waiting and order.quoted_mills is not None
    }
    # Orders that wait outside this batch came earlier or later than its members; the money is
    # shared out over all of them by arrival, and who got some outside is made due at once.
    now = context.now()
    line = in_line.waiting_for_funds(session, account, now)
    waiting = {order_id: price for order_id, price, _ in line}
    waiting |= {order.id: order.quoted_mills or 0 for order in members.values()}
    caps = brakes.room(context, session, account)
    room = caps.mills
    within = available if room is None else min(available, room)
    funded = allocate(within, sorted(waiting.items()))
    committed = sum(price for order_id, price in waiting.items() if order_id in funded)
    left = available - committed
    # Only a spend cap stands in the way of those that the wallet would still cover.
    capped = {i for i, price in waiting.items() if i not in funded and price <= left}
    # What is put aside is woken by no money: what it waits for beside has its own time.
    for_money = {i: due_at for i, _, due_at in line if due_at and i not in members}
    woken = sorted(funded & for_money.keys())
    # Whoever waited for the wallet until now is to wait for the cap, without a deadline for funds.
    if outside := sorted(capped - members.keys()):
        seen = orders.get(session, outside)
        woken += [order.id for order in seen if order.funds_deadline_at is not None]
    if woken:
        orders.set_due(session, woken, next_attempt_at=now)
    # Where one looked in vain whether there is money by now, it did so for all. They keep their
    # places before those that looked, so that each of them comes to see its price again.
    short = [order for order in members.values() if order.id not in funded]
    if any(o.status is OrderStatus.AWAITING_FUNDS or o.funds_deadline_at for o in short):
        asleep = sorted((due_at, i) for i, due_at in for_money.items() if i not in funded)
        in_order = [i for _, i in asleep if i not in woken]
        in_line.line_up(session, in_order, now + _probe_gap(context))
    _reserve(context, session, [o for o in members.values() if o.id in funded], claim)
    left_for = _wait(context, session, short, claim, left, capped, caps.less(committed))
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
            "the balance rose; priced afresh"
            if order.funds_deadline_at
            else "there is room for it now; priced afresh",
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


def _over(session: Session, account: str, short: list[Order], now: datetime) -> set[int]:
    """Give those whose time for money was over when the balance was asked for."""
    over = {o.id: at for o in short if (at := o.funds_deadline_at) is not None and at <= now}
    asked_at = proof.asked_at(session, account) if over else None
    return set() if asked_at is None else {i for i, at in over.items() if at <= asked_at}


def _wait(
    context: Context,
    session: Session,
    short: list[Order],
    claim: KeptClaim,
    left: int,
    capped: set[int],
    room: brakes.Room,
) -> tuple[str, ...]:
    """Let orders wait for money, go on or fail; name the accounts that some have gone on to.

    Those that the wallet covers and a spend cap does not (`capped`, by id) have no deadline for
    funds: they wait for `room` until their time of submission is over. The others end at the first
    balance that was asked for after their deadline, since money may have come while nobody could
    ask, and that surely does not cover them.
    """
    settings = context.account(claim.account)
    now = context.now()
    is_fatal = settings.on_insufficient_funds is OnInsufficientFunds.FAIL
    over = _over(session, claim.account, short, now)
    lag = context.wallet_lag
    unsure = proof.unsure_mills(session, claim.account, settings.debits_at, lag) if over else 0
    moves = []
    for order in short:
        is_capped, price = order.id in capped, order.quoted_mills or 0
        what_is_left = (
            brakes.shortage(context, claim.account, room, price)
            if is_capped
            else f"{cap_in_cents(max(left, 0))} cents are left in the wallet"
        )
        note = f"{what_is_left} beside other orders, needed are {charge_in_cents(price)}"
        gap = _probe_gap(context) + _BEHIND
        patience = timedelta(seconds=context.settings.await_funds_s)
        deadline = None if is_capped else order.funds_deadline_at or now + patience
        is_over = order.id in over and not is_capped
        if is_over and price <= left + unsure:
            is_over, deadline = False, now + lag + gap
            note += "; what is being bought may be counted twice, so it is looked at again"
        # Whose time is over by a balance that was asked for before it looks again at once: until
        # then none that came later is to have its money (store/in_line.py).
        at = max(deadline, now) if deadline is not None else now + gap
        due = {**UNCLAIMED, "next_attempt_at": min(at, now + gap)}
        code = FailureCode.INSUFFICIENT_FUNDS
        going_on = None
        if not (is_capped and room.is_over_all(price)):  # which no other account could change
            going_on = reroute(context, order, f"{code}: {note}", Source.WALLET, claim.name)
        if going_on is not None:
            moves.append(going_on)
        elif is_over or (is_fatal and not is_capped):
            why = "the wallet did not cover the order in time" if is_over else note
            end = refusal(order, code, why, Source.WALLET, claim.name)
            moves.append(replace(end, unless_told=True))
        elif order.status is OrderStatus.QUOTED or deadline != order.funds_deadline_at:
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
    moved = apply_ours(session, moves, claim, now)
    if names := [moved[order_id].external_id for order_id in capped if order_id in moved]:
        log.warning(
            "spend_cap.reached",
            account=claim.account,
            cap_cents=settings.spend_cap_cents_per_hour,
            cap_of_all_cents=context.settings.spend_cap_cents_per_hour,
            orders=names,
        )
    return rerouted_to(claim.account, moved)
