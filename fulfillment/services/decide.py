"""What a provider's report means for an order: one pure function for webhook, poll and submit.

It reads like a table and changes nothing. Status only moves forward; unknown words and illegal
news are recorded and alarmed, never applied.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from fulfillment.states import FINAL, FOLLOWED, RANK, UNFULFILLED, is_legal
from fulfillment.store.models import Order
from schemas.enums import FailedBy, FailureCode, OrderStatus
from schemas.money import charge_in_cents
from schemas.provider import OrderReport, ReportState

#: Steam Trade Protection undoes trades for 7 days; a day of margin (contracts/skinsnode.md 6).
REVERSAL_WATCH = timedelta(days=8)


class Money(StrEnum):
    """What a decision does to the order's hold."""

    NOTHING = "nothing"
    CONFIRM = "confirm"  # the provider has the order
    SETTLE = "settle"  # delivered: the charge is booked
    END = "end"  # ended without the item: a later figure releases the hold
    REFUND = "refund"  # delivered and undone, and the provider gave the money back


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do about a report. `target` None means: nothing at all is to be recorded."""

    target: OrderStatus | None = None
    note: str = ""
    changes: Mapping[str, Any] = field(default_factory=dict)
    money: tuple[Money, ...] = ()
    is_alarm: bool = False


NOTHING = Decision()


def decide(
    order: Order, report: OrderReport, now: datetime, window: timedelta, cap_mills: int
) -> Decision:
    """Say what a report means for the order as it is now.

    `window` is the account's trade window, `cap_mills` the most that may be charged.
    """
    target = report.state.order_status()
    news = _news(order, report)
    if target is None:
        if order.provider_status == report.raw_status:
            return NOTHING
        note = f"unknown provider status {report.raw_status!r}: nothing is concluded from it"
        return Decision(order.status, note, {"provider_status": report.raw_status}, is_alarm=True)
    if order.status in FINAL:
        return _after_the_end(order, report, target, cap_mills)
    if order.status not in FOLLOWED | {OrderStatus.SUBMITTING, OrderStatus.NEEDS_REVIEW}:
        # Only a foreign use of our ids explains a report of what we never sent.
        return Decision(
            order.status,
            f"the provider reports {report.raw_status!r} for an order that was never submitted",
            is_alarm=True,
        )
    if order.status is not OrderStatus.NEEDS_REVIEW and RANK[target] < RANK[order.status]:
        return NOTHING  # an older answer than what is known already (K6)
    if RANK.get(order.status) == RANK[target] and _is_older(order, report, target):
        return NOTHING
    if target is order.status:
        return _same(order, news, now, cap_mills)
    assert is_legal(order.status, target)
    return _forward(order, report, target, news, now, window, cap_mills)


def _is_older(order: Order, report: OrderReport, target: OrderStatus) -> bool:
    """Say whether a report of the same rank is no news: accepted, queued and processing may come
    in any order, and doubled or late webhooks must not send an order to and fro among them."""
    if target is order.status:
        return False
    if report.reported_at is not None and order.reported_at is not None:
        return report.reported_at <= order.reported_at
    steps = list(OrderStatus)
    return steps.index(target) < steps.index(order.status)


def _news(order: Order, report: OrderReport) -> dict[str, Any]:
    """Collect what the report adds to the row, whatever its status."""
    news: dict[str, Any] = {}
    if report.state is not ReportState.UNKNOWN and order.provider_status != report.raw_status:
        news["provider_status"] = report.raw_status
    if report.charged_mills is not None and order.charged_mills != report.charged_mills:
        news["charged_mills"] = report.charged_mills
    if report.steam_offer_id is not None and order.steam_offer_id != report.steam_offer_id:
        news["steam_offer_id"] = report.steam_offer_id
    return news


def _same(order: Order, news: dict[str, Any], now: datetime, cap_mills: int) -> Decision:
    overdue = order.trade_deadline_at is not None and now >= order.trade_deadline_at
    if order.status is OrderStatus.SENT and overdue and not order.overdue:
        note = "the trade window is over and the provider still says sent"
        # No alarm yet: the watchdog raises it after the grace time.
        return Decision(order.status, note, news | {"overdue": True})
    if not news:
        return NOTHING
    above = _above_the_cap(news, cap_mills)
    note = above or "the provider adds " + ", ".join(sorted(news))
    return Decision(order.status, note, news, is_alarm=bool(above))


def _above_the_cap(news: Mapping[str, Any], cap_mills: int) -> str:
    charged = news.get("charged_mills")
    if charged is None or charged <= cap_mills:
        return ""
    return f"charged {charge_in_cents(charged)} cents, above the agreed price"


def _after_the_end(
    order: Order, report: OrderReport, target: OrderStatus, cap_mills: int
) -> Decision:
    if order.status is OrderStatus.COMPLETED and target is OrderStatus.REVERSED:
        money: tuple[Money, ...] = (Money.SETTLE,) if order.charged_mills is None else ()
        money += (Money.REFUND,) if report.refunded_at else ()
        note = "the delivered trade was undone" + (" and refunded" if report.refunded_at else "")
        return Decision(target, note, {"provider_status": report.raw_status}, money, is_alarm=True)
    if order.status is OrderStatus.REVERSED and target is OrderStatus.REVERSED:
        return Decision(None, money=(Money.REFUND,) if report.refunded_at else ())
    if target is order.status is OrderStatus.COMPLETED:
        return _charge_after_all(order, report, cap_mills)
    # An older word that comes late is no news, unless we ended the order and the provider has it:
    # then money is attached to an order that we believe free.
    is_late = RANK[target] < RANK[order.status] and order.failed_by != FailedBy.US
    contradicts = target is not order.status and not is_late
    if contradicts and order.provider_status != report.raw_status:
        note = (
            f"the provider says {report.raw_status!r} after the end ({order.status}): not applied"
        )
        changes: dict[str, Any] = {"provider_status": report.raw_status}
        if target is OrderStatus.COMPLETED and report.charged_mills is not None:
            # The status stays, but the money was spent on this order and on no other.
            changes["charged_mills"] = report.charged_mills
            return Decision(order.status, note, changes, (Money.SETTLE,), is_alarm=True)
        # Money that came back is booked where it was booked as spent before.
        is_refund = target is OrderStatus.REVERSED and report.refunded_at is not None
        money = (Money.REFUND,) if is_refund else ()
        return Decision(order.status, note, changes, money, is_alarm=True)
    return NOTHING


def _charge_after_all(order: Order, report: OrderReport, cap_mills: int) -> Decision:
    """Book a charge that is told after the delivery; one booked before is not rewritten."""
    charged = report.charged_mills
    if charged is None or charged == order.charged_mills:
        return NOTHING
    note = f"the provider says that it charged {charge_in_cents(charged)} cents"
    changes = {"charged_mills": charged}
    if order.charged_mills is None:
        above = _above_the_cap(changes, cap_mills)
        note = f"{note}; {above}" if above else note
        return Decision(order.status, note, changes, (Money.SETTLE,), is_alarm=bool(above))
    note += f"; booked were {charge_in_cents(order.charged_mills)}"
    return Decision(order.status, note, changes, is_alarm=True)


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
    if report.reported_at is not None:
        changes["reported_at"] = report.reported_at
    confirm = order.status not in FOLLOWED
    money: tuple[Money, ...] = (Money.CONFIRM,) if confirm else ()
    note, is_alarm = "", False
    # A provider's clock may run ahead of ours; nothing has happened later than now.
    reported = min(report.reported_at or now, now)
    if target is OrderStatus.SENT:
        changes |= {"sent_at": reported, "trade_deadline_at": reported + window}
        note = "the Steam offer is out"
    elif target is OrderStatus.COMPLETED:
        until = report.reversible_until or reported + REVERSAL_WATCH
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
        note = f"ended without the item: {changes['failure_code']}"
    if above := _above_the_cap(changes, cap_mills):
        note, is_alarm = f"{note}; {above}" if note else above, True
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
