"""What is to be said of a charge that a provider tells: whether anybody has to know."""

from collections.abc import Mapping
from typing import Any

from fulfillment.store.models import Order
from schemas.money import charge_in_cents
from schemas.provider import OrderReport


def is_above_its_hold(order: Order, news: Mapping[str, Any]) -> bool:
    """Say whether more is charged than was held for it."""
    return (news.get("charged_mills") or 0) > (order.quoted_mills or 0)


def worry(report: OrderReport, news: Mapping[str, Any], cap_mills: int) -> str:
    """Say what is wrong with a charge or an end that is news; each is told once."""
    if "charged_mills" not in news:
        return ""
    charged = news["charged_mills"]
    worries = [report.alarm] if report.alarm else []
    if charged is not None and charged > cap_mills:
        worries.append(f"charged {charge_in_cents(charged)} cents, above the agreed price")
    return "; ".join(worries)


def told_anew(order: Order, report: OrderReport) -> str:
    """Say what a charge is that is told after the end, and what was booked before, if anything."""
    assert report.charged_mills is not None
    note = f"the provider says that it charged {charge_in_cents(report.charged_mills)} cents"
    if order.charged_mills is None:
        return note
    return f"{note}; booked were {charge_in_cents(order.charged_mills)}"
