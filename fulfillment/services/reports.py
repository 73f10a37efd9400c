"""Apply what providers report to many orders at once: events, hold ledger and next due times."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from msgspec.structs import replace

from fulfillment.crash import crash_point
from fulfillment.errors import ConfigurationError
from fulfillment.log import get_logger
from fulfillment.providers.reading import HIDDEN
from fulfillment.services import brakes, schedule
from fulfillment.services.context import Context
from fulfillment.services.contradictions import is_of_another_item
from fulfillment.services.decide import Decision, Money, decide
from fulfillment.services.news import heard, is_alive, is_anybodys
from fulfillment.states import FINAL, FOLLOWED, RANK, UNFULFILLED
from fulfillment.store import ledger, orders
from fulfillment.store.engine import Session
from fulfillment.store.ledger import Posting
from fulfillment.store.models import NOTHING_DUE, UNCLAIMED, Move, Order
from fulfillment.store.sealing import Seal
from schemas.checkout import trade_url_parts
from schemas.enums import FailureCode, OrderStatus, Source
from schemas.messages import NEEDS_REVIEW
from schemas.money import cents_to_mills
from schemas.provider import OrderReport, ReportState

log = get_logger(__name__)

#: What of a report may be in a provider's own words, whatever its state.
_TEXTS = ("failure_code", "failure_message", "alarm")
_ALL_TEXTS = (*_TEXTS, "raw_status")
#: Somebody's token may be a part of one of these by chance.
_OWN_WORDS = frozenset(FailureCode)
#: By the last bytes of the sealed trade URL, which are its own: what a worker keeps is small.
_partners: dict[bytes, int] = {}
_MARK_BYTES, _MOST_PARTNERS = 16, 10_000
#: Steam's are eight characters long; what is far shorter is no secret, but part of many words.
_SHORTEST_TOKEN = 6


@dataclass
class _Money:
    """The postings of a batch, by kind."""

    confirmed: list[int] = field(default_factory=list)
    charged: list[int] = field(default_factory=list)
    settled: list[Posting] = field(default_factory=list)
    adjusted: list[Posting] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)
    refunded: list[Posting] = field(default_factory=list)

    def add(self, order: Order, decision: Decision) -> None:
        if Money.CONFIRM in decision.money:
            self.confirmed.append(order.id)
        if Money.CHARGE in decision.money:
            self.charged.append(order.id)
        charged = decision.changes.get("charged_mills", order.charged_mills)
        if Money.SETTLE in decision.money:
            self.settled.append(Posting(order.id, "delivered", charged))
        if Money.ADJUST in decision.money:
            self.adjusted.append(Posting(order.id, "the provider tells another charge", charged))
        if Money.END in decision.money:
            self.ended.append(order.id)
        if Money.REFUND in decision.money:
            self.refunded.append(Posting(order.id, "refunded by the provider"))

    def post(self, session: Session, merchant: str | None, now: datetime) -> None:
        if self.confirmed:
            ledger.confirm(session, self.confirmed, merchant, now)
        if self.charged:
            ledger.note_charges(session, self.charged)
        ledger.settle(session, self.settled, now)
        if self.adjusted:
            ledger.adjust(session, self.adjusted, now)
        if self.ended:
            ledger.end(session, self.ended, now)
        if self.refunded:
            ledger.refund(session, self.refunded, now)


def apply_reports(
    context: Context,
    session: Session,
    account: str,
    reports: Mapping[int, OrderReport],
    by: Source,
    *,
    locked: Sequence[Order] | None = None,
    as_of: datetime | None = None,
    repeatable: Collection[int] = (),
) -> dict[int, Order]:
    """Apply an account's reports by order id; give the orders that changed.

    The orders are locked first, so what is decided is decided about the row as it is; whichever
    of webhook, poll and submit comes first wins and the others find nothing new. Reports of the
    `repeatable` answer a purchase request, which may not have been the first.
    """
    now = context.now()
    before = locked if locked is not None else orders.lock(session, list(reports))
    gone = [(o, account, reports[o.id]) for o in before if o.account != account]
    moves, money = strays(context, session, gone, by, now), _Money()
    is_told = by in (Source.WEBHOOK, Source.POLL)
    unsent = begun_and_unsent(session, before) if is_told else frozenset()
    repeated = _ended_and_repeated(session, before, repeatable)
    for order in before:
        if order.account != account:
            continue
        report = _without_token(context, order, reports[order.id])
        decision = _decided(context, order, report, now, by, as_of, is_unsent=order.id in unsent)
        if by is Source.SUBMIT and decision.target is None:
            # A webhook was faster; the log still has an outcome for every request of ours.
            note = f"our request is answered {report.raw_status!r}: known already"
            decision = replace(decision, target=order.status, note=note)
        if order.id in repeated and is_alive(report) and "told_status" not in decision.changes:
            note = f"{decision.note}; it is asked whether it was made anew"
            decision = replace(decision, note=note, is_doubtful=True)
        if decision.is_alarm:
            log.warning("order.alarm", order_id=order.external_id, note=decision.note)
        if decision.target is not None:
            moves.append(_move(context, order, decision, by, now))
        money.add(order, decision)
    moved = orders.apply(session, moves, now)
    crash_point("report.moved", moved)
    known = context.settings.accounts.get(account)
    money.post(session, known.merchant if known else None, now)
    if any(m.target is OrderStatus.REVERSED is not m.source for m in moves if m.order_id in moved):
        brakes.watch_reversals(context, session, account)
    changed = {move.order_id for move in moves if move.changes or move.source is not move.target}
    return {order_id: order for order_id, order in moved.items() if order_id in changed}


def begun_and_unsent(session: Session, locked: Sequence[Order]) -> Collection[int]:
    """Give the orders whose purchase was begun and surely has not left, by their attempts."""
    begun = [order for order in locked if order.status is OrderStatus.SUBMITTING]
    attempts = ledger.attempts_of(session, [order.id for order in begun]) if begun else {}
    return {order.id for order in begun if order.is_surely_unsent(attempts.get(order.id))}


def _ended_and_repeated(
    session: Session, locked: Sequence[Order], answered: Collection[int]
) -> Collection[int]:
    """Give the answered orders that the provider has ended while a repetition was out.

    Nothing promises that what has failed is not made anew under its id (contracts/skinsnode.md 5):
    a yes may be younger than that end. That to a first request is of the purchase that ended.
    """
    ended = [o.id for o in locked if o.id in answered and o.told_status in UNFULFILLED]
    attempts = ledger.attempts_of(session, ended) if ended else {}
    return {order_id for order_id, attempt in attempts.items() if attempt.posts > 1}


def is_news(context: Context, order: Order, report: OrderReport, now: datetime) -> bool:
    """Say whether the report changes anything of the order, which is at the account that told."""
    decision = _decided(context, order, _without_token(context, order, report), now)
    return decision.target is not None or bool(decision.money)


def _decided(
    context: Context,
    order: Order,
    report: OrderReport,
    now: datetime,
    by: Source = Source.POLL,
    as_of: datetime | None = None,
    *,
    is_unsent: bool = False,
) -> Decision:
    settings = context.account(order.account)
    cap_mills = cents_to_mills(settings.price_limit_cents(order.expected_price_cents))
    if by is not Source.SWEEP:
        # A cap that was lowered since is none of what was bought before. Of what the sweep found
        # bought the quote is what is told of it (services/recovery.py).
        cap_mills = max(cap_mills, order.quoted_mills or 0)
    return decide(
        order,
        report,
        now,
        timedelta(seconds=settings.trade_window_s),
        cap_mills,
        partner=_partner(context.seal, order.trade_url_sealed) if report.partner else None,
        is_by_a_person=by is Source.OPERATOR,
        as_of=as_of,
        merchant=settings.merchant if order.is_unsent or is_unsent else "",
        is_unsent=is_unsent,
    )


def _partner(seal: Seal, trade_url_sealed: bytes | None) -> int | None:
    """Give the recipient's number, which is remembered: an order under way is told of again."""
    mark = trade_url_sealed[-_MARK_BYTES:] if trade_url_sealed else b""
    if (known := _partners.get(mark)) is not None:
        return known
    partner = _recipient(seal, trade_url_sealed)[0]
    if len(_partners) >= _MOST_PARTNERS:
        _partners.clear()
    if partner is not None:
        _partners[mark] = partner
    return partner


def _recipient(seal: Seal, trade_url_sealed: bytes | None) -> tuple[int, str] | tuple[None, None]:
    """Give number and token of the recipient asked for; nothing where nobody can read it now."""
    if trade_url_sealed is None:
        return None, None
    with suppress(ConfigurationError, ValueError):
        return trade_url_parts(seal.open(trade_url_sealed).decode())
    return None, None


def _without_token(context: Context, order: Order, report: OrderReport) -> OrderReport:
    """Take the recipient's trade token out of what a provider says in words of its own.

    What no word of its contract says is kept, shown and logged.
    """
    names = _TEXTS if report.state is not ReportState.UNKNOWN else _ALL_TEXTS
    if is_of_another_item(order, report):
        names = (*names, "item_name")
    texts = {
        name: text for name in names if (text := getattr(report, name)) and text not in _OWN_WORDS
    }
    token = _recipient(context.seal, order.trade_url_sealed)[1] if texts else None
    if token is None or len(token) < _SHORTEST_TOKEN:
        return report
    found = {name: text.replace(token, HIDDEN) for name, text in texts.items()}
    return report if found == texts else replace(report, **found)


def strays(
    context: Context,
    session: Session,
    told: Sequence[tuple[Order, str, OrderReport | None]],
    by: Source,
    now: datetime,
    denied: Collection[int] = (),
) -> list[Move]:
    """Note what accounts say of orders that went on from them to another one, and are locked:
    (order, account, report).

    Nothing is concluded from it; but where it does not say that nothing was bought, money may have
    been spent twice, and a person is told. Where nothing is bought at the other one yet, nothing
    is, unless the first turns out to know nothing of it. A report of None: it is not known; of
    those `denied` it was asked just now, and knew nothing.
    """
    if not told:
        return []
    attempts = ledger.attempts_of(session, [order.id for order, *_ in told])
    moves = []
    for order, account, report in told:
        is_unsent = order.is_surely_unsent(attempts.get(order.id))
        is_denied = order.id in denied and account in order.fallbacks
        if is_denied and not is_unsent and order.status is not OrderStatus.SUBMITTING:
            continue  # who may be next, and knows nothing, has nothing to do with it
        said = report and _without_token(context, order, report)
        move = _stray(
            context, order, account, said, by, now, is_unsent=is_unsent, is_denied=is_denied
        )
        moves.append(move)
    return moves


def _stray(
    context: Context,
    order: Order,
    account: str,
    report: OrderReport | None,
    by: Source,
    now: datetime,
    *,
    is_unsent: bool,
    is_denied: bool,
) -> Move:
    word = f"reports {report.raw_status!r} of" if report else "has news of"
    is_next = account in order.fallbacks
    where = "is yet at" if is_next else "went on from there to"
    note = f"{account} {word} this order, which {where} {order.account}: not applied"
    changes = heard(context, order, account, now, report)
    is_anybodys_hint = report is None and is_anybodys(context, account)
    # A denial may be an older answer, out of a cache.
    may_live = bool(changes) and (report is None or is_alive(report)) and not is_denied
    is_alarm = may_live and not (is_next and is_anybodys_hint)
    if is_alarm:
        note += "; it may have been bought " + ("there" if is_unsent else "twice")
        log.warning("order.alarm", order_id=order.external_id, note=note)
    # What has been sent may turn out not to have left, or to be refused there.
    is_open = is_unsent or order.status is OrderStatus.SUBMITTING
    if not may_live and not (is_next and is_open):
        changes = {}  # it ended there, and went on as our rows tell
    # Until then a mere hint, or a purchase that ended there, holds nothing up.
    is_weak = is_next and (is_anybodys_hint or not may_live)
    if not is_open or (is_weak and not is_unsent):
        changes.pop("told_early_at", None)
    tell = (NEEDS_REVIEW,) if is_alarm else ()
    return Move(order.id, order.status, order.status, by, note, changes, tell=tell)


def _move(context: Context, order: Order, decision: Decision, by: Source, now: datetime) -> Move:
    assert decision.target is not None
    due: dict[str, Any] = {}
    if decision.target is not order.status:
        due = _due(context, order, decision, now)
    elif decision.is_doubtful:
        at = schedule.soon_for_news(context, order.next_poll_at, now)
        due = {"next_poll_at": at, "poll_wanted_at": now}
    elif "told_status" in decision.changes:
        due = {"next_poll_at": _next_after_the_end(context, order, decision, now)}
    if "next_poll_at" in due and order.poll_wanted_at is not None:
        due["next_poll_at"] = schedule.soon_for_news(context, due["next_poll_at"], now)
    return Move(
        order_id=order.id,
        source=order.status,
        target=decision.target,
        by=by,
        note=decision.note,
        changes=decision.changes,
        due=due,
        tell=(NEEDS_REVIEW,) if decision.is_alarm else (),
    )


def _next_after_the_end(
    context: Context, order: Order, decision: Decision, now: datetime
) -> datetime | None:
    """Give the next poll of an ended order that the provider has, until its end is known there."""
    after = replace(
        order,
        told_status=OrderStatus(decision.changes["told_status"]),
        charged_mills=decision.changes.get("charged_mills", order.charged_mills),
    )
    if not after.lives_on:
        return None
    return order.next_poll_at or schedule.first_poll(context, now)


def _due(context: Context, order: Order, decision: Decision, now: datetime) -> dict[str, Any]:
    target = decision.target
    assert target is not None
    if target is OrderStatus.COMPLETED:
        until = decision.changes["reversible_until"]
        at = until and schedule.next_reversal_poll(context, now, now, until)
        if Money.SETTLE not in decision.money:
            at = schedule.first_poll(context, now)  # the charge is still to be learned
        return {**NOTHING_DUE, "next_poll_at": at}
    if target in FINAL:
        return dict(NOTHING_DUE)
    due: dict[str, Any] = {**UNCLAIMED, "next_attempt_at": None}
    if order.status not in FOLLOWED:
        due["next_poll_at"] = schedule.first_poll(context, now)
    if target is OrderStatus.SENT:
        deadline = decision.changes["trade_deadline_at"]
        # Of a window that was over before we heard of it, the watchdog is to tell at once.
        at = schedule.next_watch(now, decision.changes["sent_at"], deadline)
        # What a person has had for a day, and found to be so, is not brought back at once.
        is_left = order.told_status is OrderStatus.SENT
        is_left &= now >= deadline + context.stalled_after
        due["next_watch_at"] = at or (now + context.stalled_after if is_left else now)
    elif target is OrderStatus.NEEDS_REVIEW:
        due["next_watch_at"] = None
    elif RANK.get(order.status) != RANK[target]:
        due["next_watch_at"] = now + context.stalled_after
    return due
