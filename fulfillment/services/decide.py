"""What a provider's report means for an order: one pure function for webhook, poll and submit.

It reads like a table and changes nothing. Status only moves forward; unknown words and illegal
news are recorded and alarmed, never applied.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

import msgspec
from msgspec.structs import replace

from fulfillment.services import charges, contradictions
from fulfillment.services.hearsay import (
    HAD_BY,
    as_word,
    late_words,
    with_account,
    with_late,
)
from fulfillment.states import FINAL, FOLLOWED, RANK, UNFULFILLED, is_legal
from fulfillment.store.models import Order
from schemas.enums import FailedBy, FailureCode, OrderStatus
from schemas.provider import OrderReport, ReportState

#: Steam Trade Protection undoes trades for 7 days; a day of margin (contracts/skinsnode.md 6).
REVERSAL_WATCH = timedelta(days=8)
#: No delivery is watched for longer, whatever its provider says: dates may be wrong.
_LONGEST_WATCH = timedelta(days=30)
#: So long after the told end of a hold the provider is to say what came of it; clocks differ.
AFTER_PROTECTION = timedelta(minutes=30)
#: So often an order that the provider has ended is followed again, though it was told before.
_MOST_LIVES = 4
_AFTER_THE_END = " after the end"
#: The provider has not yet been heard to have the order: its next report may adopt it.
UNCONFIRMED = frozenset({OrderStatus.SUBMITTING, OrderStatus.NEEDS_REVIEW})


class Money(StrEnum):
    """What a decision does to the order's hold."""

    NOTHING = "nothing"
    CONFIRM = "confirm"  # the provider has the order
    CHARGE = "charge"  # above its hold, told before the delivery
    SETTLE = "settle"  # delivered: the charge is booked
    END = "end"  # ended without the item: a later figure releases the hold
    REFUND = "refund"  # delivered and undone, and the provider gave the money back
    ADJUST = "adjust"  # the charge was told anew: the difference is booked


class Decision(msgspec.Struct, frozen=True):
    """What to do about a report. `target` None means: nothing at all is to be recorded."""

    target: OrderStatus | None = None
    note: str = ""
    changes: Mapping[str, Any] = msgspec.field(default_factory=dict)
    money: tuple[Money, ...] = ()
    is_alarm: bool = False
    is_doubtful: bool = False  # the provider is to be asked whether it is still so


NOTHING = Decision()


def decide(
    order: Order,
    report: OrderReport,
    now: datetime,
    window: timedelta,
    cap_mills: int,
    *,
    partner: int | None = None,
    is_by_a_person: bool = False,
    as_of: datetime | None = None,
    merchant: str = "",
    is_unsent: bool = False,
) -> Decision:
    """Say what a report means for the order as it is now.

    `window` is the account's trade window, `cap_mills` the most that may be charged, `partner` the
    recipient's number that was asked for. What a person has looked at is not held against it.
    `as_of` is a time that the report is surely younger than, where one is known; `merchant` is
    whose account tells; `is_unsent`: its purchase was begun, and surely no byte of it has left.
    """
    if report.charged_mills == 0:
        report = replace(report, charged_mills=None)  # nothing is free: it is not told yet
    if order.is_unsent:
        return _told_early(order, report, now, merchant)
    if is_by_a_person:
        return _adopted(order, report, now, window, cap_mills, partner)
    contradicted = _contradicted(order, report, partner)
    decision = contradicted or _apply(order, report, now, window, cap_mills, as_of=as_of)
    # What lives is the order's purchase; of any other it is not known what came of it.
    if is_unsent and decision.target in {*UNFULFILLED, OrderStatus.NEEDS_REVIEW}:
        return _told_early(order, report, now, merchant)
    return decision


def _told_early(order: Order, report: OrderReport, now: datetime, merchant: str) -> Decision:
    """Take note that its account knows an order of which nothing was sent, whatever it says of it.

    Somebody else uses our ids, or our rows were lost: it is looked for before it is bought, here
    too where it goes on to another account. A search that was begun before its last word is none.
    """
    words = with_account(order, HAD_BY, order.account, merchant)
    changes = {"told_early_at": now, **({} if words is None else {"late_words": words})}
    note = f"the provider reports {report.raw_status!r} for an order that was never submitted"
    return Decision(order.status, note, changes, is_alarm=True)


def _adopted(
    order: Order,
    report: OrderReport,
    now: datetime,
    window: timedelta,
    cap_mills: int,
    partner: int | None,
) -> Decision:
    """Apply what a person found: the purchase that is told of is the order's, as it is."""
    told = contradictions.told_by(order, report, partner)
    told += contradictions.left_open(order, report, partner)
    taken = [each for each in dict.fromkeys(told) if not each.startswith(contradictions.PURCHASE)]
    if report.provider_reference is not None:
        order = replace(order, provider_reference=None)  # it is called so from now on
    decision = _apply(order, report, now, window, cap_mills, is_by_a_person=True)
    if decision.target in (None, order.status) or not (taken or order.contradictions):
        return decision
    return replace(decision, changes={**decision.changes, "contradictions": taken})


def _contradicted(order: Order, report: OrderReport, partner: int | None) -> Decision | None:
    """Keep away what is about something else than was asked for; a person is told once.

    Of a delivered order it is told, and no more: there is nothing left to stop.
    """
    if order.status not in FOLLOWED | UNCONFIRMED | {OrderStatus.COMPLETED}:
        return None
    is_open = order.status is OrderStatus.NEEDS_REVIEW
    found = contradictions.told_by(order, report, partner)
    fresh = contradictions.not_told(order, found)
    if not fresh and not (is_open and (found or contradictions.left_open(order, report, partner))):
        return None
    known = {"provider_status": report.raw_status}
    if not fresh:
        is_news = order.provider_status != report.raw_status
        note = f"{report.raw_status!r} is not applied: a person is to look first"
        return Decision(order.status, note, known) if is_news else NOTHING
    note = f"{contradictions.why(order, fresh)}; its {report.raw_status!r} is not applied"
    changes: dict[str, Any] = {"contradictions": [*order.contradictions, *fresh]}
    if order.status is OrderStatus.COMPLETED:
        return Decision(order.status, note, changes, is_alarm=True)
    if order.status in FOLLOWED:
        changes["told_status"] = order.status.value
    return Decision(OrderStatus.NEEDS_REVIEW, note, known | changes, is_alarm=True)


def _apply(
    order: Order,
    report: OrderReport,
    now: datetime,
    window: timedelta,
    cap_mills: int,
    *,
    is_by_a_person: bool = False,
    as_of: datetime | None = None,
) -> Decision:
    target = report.state.order_status()
    news = _news(order, report)
    if target is None:
        note = f"unknown provider status {report.raw_status!r}: nothing is concluded from it"
        note += f"; {report.alarm}" if report.alarm else ""
        return _quarantine(order, report, note)
    if order.status in UNFULFILLED and target not in FINAL:
        return _life_after_the_end(order, report, target, as_of)
    if order.status in FINAL:
        return _after_the_end(order, report, target, now, cap_mills)
    if order.status is not OrderStatus.NEEDS_REVIEW and RANK[target] < RANK[order.status]:
        return _late(order, report)  # cached answers may be older than what is known (K6)
    if RANK.get(order.status) == RANK[target] and _is_older(order, report, target):
        return _late(order, report)
    if order.status is OrderStatus.NEEDS_REVIEW and order.told_status is not None:
        if RANK[target] < RANK[order.told_status]:
            return _late(order, report)
        is_settled = is_by_a_person or order.contradictions
        if RANK[target] == RANK[order.told_status] and not is_settled:
            # It was no news that brought it to a person, and this is none either.
            return _same(order, report, news, now, cap_mills)
    if target is order.status:
        return _same(order, report, news, now, cap_mills)
    assert is_legal(order.status, target)
    return _forward(order, report, target, news, now, window, cap_mills)


def _quarantine(order: Order, report: OrderReport, note: str) -> Decision:
    """Record news that is not applied, once; a purchase that it should have resolved is reviewed.

    The provider has an order of this id: to post it again could teach nothing, and only a later
    report or a person can say what came of it.
    """
    changes = {"provider_status": report.raw_status}
    if order.status is OrderStatus.SUBMITTING:
        return Decision(OrderStatus.NEEDS_REVIEW, note, changes, is_alarm=True)
    if order.provider_status == report.raw_status and not _is_refused(order):
        return NOTHING
    words = with_late(order, report.raw_status)
    if words is None and not _is_refused(order):
        return NOTHING  # a provider may say it in turns with one that is known
    changes |= {"late_words": words} if words is not None else {}
    if _is_refused(order):
        changes["told_status"] = OrderStatus.ACCEPTED.value  # it has it, whatever that word means
    return Decision(order.status, note, changes, is_alarm=True)


def _late(order: Order, report: OrderReport) -> Decision:
    """Record an answer that is older than what is known, once, and ignore it."""
    words = with_late(order, report.raw_status)
    if words is None:
        return NOTHING
    note = f"{report.raw_status!r} comes late: ignored"
    return Decision(order.status, note, {"late_words": words})


def _is_older(order: Order, report: OrderReport, target: OrderStatus) -> bool:
    """Say whether a report of the same rank is no news: accepted, queued and processing may come
    in any order, and doubled or late webhooks must not send an order to and fro among them."""
    if target is order.status:
        return False
    if report.reported_at is not None and order.reported_at is not None:
        return report.reported_at <= order.reported_at
    steps = list(OrderStatus)
    return steps.index(target) < steps.index(order.status)


def _is_behind(order: Order, report: OrderReport, now: datetime) -> bool:
    """Say whether the provider has told of the order since: a charge or an offer is not undone.

    A time that is not over yet is a wrong clock's, and says nothing.
    """
    if order.reported_at is None or report.reported_at is None or order.reported_at > now:
        return False
    return report.reported_at < order.reported_at


def _told_at(report: OrderReport) -> dict[str, Any]:
    """Give the provider's own time of its news: what it told before is none any more."""
    return {} if report.reported_at is None else {"reported_at": report.reported_at}


#: What is told of an order besides its status, as people call it.
_WORDS = {
    "provider_status": "another word for it",
    "charged_mills": "what it charged",
    "steam_offer_id": "the Steam offer",
    "provider_reference": "its own id",
}


def _news(order: Order, report: OrderReport) -> dict[str, Any]:
    """Collect what the report adds to the row, whatever its status."""
    news: dict[str, Any] = {}
    if report.state is not ReportState.UNKNOWN and order.provider_status != report.raw_status:
        news["provider_status"] = report.raw_status
    if report.charged_mills is not None and order.charged_mills != report.charged_mills:
        news["charged_mills"] = report.charged_mills
    if report.steam_offer_id is not None and order.steam_offer_id != report.steam_offer_id:
        news["steam_offer_id"] = report.steam_offer_id
    if report.provider_reference is not None and order.provider_reference is None:
        news["provider_reference"] = report.provider_reference
    return news


def _same(
    order: Order, report: OrderReport, news: dict[str, Any], now: datetime, cap_mills: int
) -> Decision:
    is_behind = _is_behind(order, report, now)
    if is_behind:
        # It takes nothing back; but what nobody has told yet is news all the same.
        known = ("charged_mills", "steam_offer_id", "provider_reference")
        news = {k: v for k, v in news.items() if k in known and getattr(order, k) is None}
    overdue = order.trade_deadline_at is not None and now >= order.trade_deadline_at
    if order.status is OrderStatus.SENT and overdue and not order.overdue:
        note = "the trade window is over and the provider still says sent"
        # No alarm yet: the watchdog raises it after the grace time.
        return Decision(order.status, note, news | {"overdue": True})
    if not news:
        return NOTHING
    worry = charges.worry(report, news, cap_mills)
    note = worry or f"the provider tells {' and '.join(_WORDS[name] for name in sorted(news))}"
    money = (Money.CHARGE,) if charges.is_above_its_hold(order, news) else ()
    told_at = {} if is_behind else _told_at(report)
    return Decision(order.status, note, news | told_at, money, is_alarm=bool(worry))


def _joined(*notes: str) -> str:
    return "; ".join(filter(None, notes))


def _after_the_end(
    order: Order, report: OrderReport, target: OrderStatus, now: datetime, cap_mills: int
) -> Decision:
    if order.status is OrderStatus.COMPLETED and target is OrderStatus.REVERSED:
        money: tuple[Money, ...] = (Money.SETTLE,) if order.charged_mills is None else ()
        money += (Money.REFUND,) if report.refunded_at else ()
        note = "the delivered trade was undone" + (" and refunded" if report.refunded_at else "")
        undone: dict[str, Any] = {"provider_status": report.raw_status}
        if order.charged_mills is None and report.charged_mills is not None:
            undone["charged_mills"] = report.charged_mills
        note = _joined(note, charges.worry(report, undone, cap_mills))
        return Decision(target, note, undone, money, is_alarm=True)
    if order.status is OrderStatus.REVERSED and target is OrderStatus.REVERSED:
        return Decision(None, money=(Money.REFUND,) if report.refunded_at else ())
    if target is order.status is OrderStatus.COMPLETED:
        return _after_delivery(order, report, now, cap_mills)
    if RANK[target] < RANK[order.status]:
        return _late(order, report)
    is_given_up = order.status is OrderStatus.CANCELLED and _is_refused(order)
    if (order.lives_on or is_given_up) and target in UNFULFILLED:
        ended = {"provider_status": report.raw_status, "told_status": target.value}
        return Decision(order.status, "the provider ended it too, without the item", ended)
    charged = report.charged_mills if target is OrderStatus.COMPLETED else None
    is_first, is_behind = order.charged_mills is None, _is_behind(order, report, now)
    is_charge_news = charged not in (None, order.charged_mills) and (is_first or not is_behind)
    is_news = order.provider_status != report.raw_status or is_charge_news or _is_refused(order)
    if target is not order.status and is_news:
        note = (
            f"the provider says {report.raw_status!r} after the end ({order.status}): not applied"
        )
        changes: dict[str, Any] = {"provider_status": report.raw_status}
        if order.status in UNFULFILLED:
            changes["told_status"] = target.value
        if is_charge_news:
            # The status stays, but the money was spent on this order and on no other.
            changes |= {"charged_mills": charged} | ({} if is_behind else _told_at(report))
            booked = charges.told_anew(order, report)
            note = _joined(note, booked, charges.worry(report, changes, cap_mills))
            money = (Money.SETTLE if is_first else Money.ADJUST,)
            return Decision(order.status, note, changes, money, is_alarm=True)
        # Money that came back is booked where it was booked as spent before.
        is_refund = target is OrderStatus.REVERSED and report.refunded_at is not None
        money = (Money.REFUND,) if is_refund else ()
        return Decision(order.status, note, changes, money, is_alarm=True)
    return NOTHING


def _is_refused(order: Order) -> bool:
    """Say whether it ended by a no of ours, or of a provider that was not heard to have it."""
    if order.status not in UNFULFILLED or order.told_status is not None:
        return False
    return order.provider_status is None or order.failed_by == FailedBy.US


def _life_after_the_end(
    order: Order, report: OrderReport, target: OrderStatus, as_of: datetime | None
) -> Decision:
    """Tell once that the provider has what is over for us, and see how it goes on there.

    Money is attached to an order that we believe free. Of one that the provider has ended itself,
    its older words only come late: that an offer is out of which nobody has heard, may be one, and
    may be another try. Only what was surely said after the end tells.
    """
    changes = {"provider_status": report.raw_status, "told_status": target.value}
    is_ended_there = order.told_status in UNFULFILLED
    is_since = as_of is not None and order.updated_at <= as_of
    is_another_life, is_told = is_ended_there and is_since, False
    if is_another_life and not _is_refused(order):
        words, word = late_words(order), f"{as_word(report.raw_status)}{_AFTER_THE_END}"
        if sum(each.endswith(_AFTER_THE_END) for each in words) >= _MOST_LIVES:
            return NOTHING  # a provider may say both in turns
        is_told = word in words
        changes["late_words"] = "\n".join([*words, word])
    if _is_refused(order) or is_another_life:
        note = f"the provider says {report.raw_status!r} after the end ({order.status})"
        note += ": not applied; it is asked how that ends"
        return Decision(order.status, note, changes, is_alarm=not is_told)
    if not order.lives_on or order.told_status is None:
        is_unheard = target is OrderStatus.SENT and order.sent_at is None
        # What is noted here makes the row younger than the answer that is waited for.
        is_doubtful = is_ended_there and (is_unheard or order.poll_wanted_at is not None)
        return replace(_late(order, report), is_doubtful=is_doubtful)
    if RANK[target] > RANK[order.told_status]:
        return Decision(order.status, f"it goes on at the provider: {report.raw_status!r}", changes)
    return NOTHING


def _after_delivery(order: Order, report: OrderReport, now: datetime, cap_mills: int) -> Decision:
    """Take note of what is told after the delivery: its charge, and how long it can be undone.

    A charge that was not told before is booked now; of one that was booked, the difference.
    """
    changes: dict[str, Any] = {}
    notes: list[str] = []
    money: tuple[Money, ...] = ()
    is_alarm = False
    is_behind = _is_behind(order, report, now)
    if is_behind:
        if order.charged_mills is not None:
            return NOTHING
        report = replace(report, reversible_until=None, is_held=None, is_settled=False)
    charged = report.charged_mills
    if charged is not None and charged != order.charged_mills:
        changes["charged_mills"] = charged
        worry = charges.worry(report, changes, cap_mills)
        notes += [charges.told_anew(order, report), worry]
        if order.charged_mills is None:
            money, is_alarm = (Money.SETTLE,), bool(worry)
        else:
            money, is_alarm = (Money.ADJUST,), True
    if _is_settled(order, report) and order.reversible_until is not None:
        changes |= {"reversible_until": None, "provider_status": report.raw_status}
        notes.append("settled: the provider says that it can be undone no more")
    elif until := report.reversible_until or (order.reversible_until if report.is_held else None):
        completed_at = order.completed_at or order.created_at
        latest = completed_at + _LONGEST_WATCH
        until, note = min(until, latest), "the provider says until when it can be undone"
        if report.is_held and now >= max(until, completed_at) + AFTER_PROTECTION:
            until, note = latest, "the provider holds it for longer than it said"
        if until != order.reversible_until:
            changes["reversible_until"] = until
            notes.append(note)
    if not notes:
        return NOTHING
    changes |= {} if is_behind else _told_at(report)
    return Decision(order.status, _joined(*notes), changes, money, is_alarm)


def _is_settled(order: Order, report: OrderReport) -> bool:
    """Say whether a delivery stands for good: by the provider's word, or since a hold is over.

    "Not held" ends only a hold that the provider told of before: else it may be yet to come.
    """
    if report.is_held is not False or order.completed_at is None:
        return report.is_settled
    return report.is_settled or order.reversible_until != order.completed_at + REVERSAL_WATCH


def _forward(
    order: Order,
    report: OrderReport,
    target: OrderStatus,
    news: dict[str, Any],
    now: datetime,
    window: timedelta,
    cap_mills: int,
) -> Decision:
    changes = dict(news)
    if order.told_status is not None:
        changes["told_status"] = None
    if order.contradictions and order.status is OrderStatus.NEEDS_REVIEW:
        changes["contradictions"] = []  # set right, or taken for right by a person
    changes |= _told_at(report)
    confirm = order.status not in FOLLOWED
    money: tuple[Money, ...] = (Money.CONFIRM,) if confirm else ()
    if target in FOLLOWED and charges.is_above_its_hold(order, news):
        money += (Money.CHARGE,)
    note, is_alarm = "", False
    # A provider's clock may be wrong: nothing has happened later than now, or before the order.
    reported = min(max(report.reported_at or now, order.created_at), now)
    if target is OrderStatus.SENT:
        sent_at = order.sent_at or reported  # of one that was under review: when it went out
        changes |= {"sent_at": sent_at, "trade_deadline_at": sent_at + window}
        note = "the Steam offer is out"
    elif target is OrderStatus.COMPLETED:
        told = report.reversible_until or reported + REVERSAL_WATCH
        until = None if report.is_settled else min(told, reported + _LONGEST_WATCH)
        changes |= {"completed_at": reported, "reversible_until": until, "overdue": False}
        # The charged amount is booked, never the expected one: without it the hold stays open
        # and the provider is asked again.
        is_charge_known = order.charged_mills is not None or "charged_mills" in changes
        money += (Money.SETTLE,) if is_charge_known else ()
        note = "delivered" if is_charge_known else "delivered; the charge is not told yet"
    elif target is OrderStatus.REVERSED:
        money += (Money.SETTLE, *((Money.REFUND,) if report.refunded_at else ()))
        changes["overdue"] = False
        note, is_alarm = "delivered and undone", True
    elif target in UNFULFILLED:
        money += (Money.END,)
        changes |= _failure(report, target) | {"charged_mills": None, "overdue": False}
        changes["told_status"] = target.value
        note = f"ended without the item: {changes['failure_code']}"
    if worry := charges.worry(report, changes, cap_mills):
        note, is_alarm = _joined(note, worry), True
    return Decision(target, note, changes, money, is_alarm)


def _failure(report: OrderReport, target: OrderStatus) -> dict[str, Any]:
    fallback = {
        OrderStatus.CANCELLED: FailureCode.CANCELLED.value,
        OrderStatus.EXPIRED: "expired",
    }
    return {
        "failure_code": report.failure_code or fallback.get(target, "unknown"),
        "failure_message": report.failure_message or f"the provider reports {report.raw_status}",
        "failed_by": FailedBy.PROVIDER.value,
    }
