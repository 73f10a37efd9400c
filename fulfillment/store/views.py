"""From rows to the JSON that the outside sees (DESIGN section 7)."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from fulfillment.store.models import NewOrder, Order
from schemas.enums import OrderStatus
from schemas.money import charge_in_cents

Entry = dict[str, Any]


def timeline_entry(
    at: datetime, source: str, before: OrderStatus | None, after: OrderStatus, note: str
) -> Entry:
    """Show one event of an order's log."""
    return {"at": at, "source": source, "from": before, "to": after, "note": note}


def received_fields(new: NewOrder, now: datetime, timeline: Sequence[Entry]) -> dict[str, Any]:
    """Show an order as it is when it is taken in: to the byte what `order_fields` shows of it."""
    return {
        "externalId": new.external_id,
        "account": new.account,
        "route": new.route,
        "status": OrderStatus.RECEIVED,
        "providerStatus": None,
        "catalogItemId": new.catalog_item_id,
        "marketHashName": new.market_hash_name,
        "expectedPrice": new.expected_price_cents,
        "chargedPrice": None,
        "steamOfferId": None,
        "tradeDeadline": None,
        "overdue": False,
        "reversibleUntil": None,
        "failure": None,
        "createdAt": now,
        "updatedAt": now,
        "timeline": list(timeline),
    }


def order_fields(order: Order, timeline: Sequence[Entry]) -> dict[str, Any]:
    """Show an order with these entries of its log, under the names of `OrderView`.

    Never its trade URL. Each change of each order is written so for the store, hence no model.
    """
    failure = None
    if order.failure_code is not None:
        failure = {
            "code": order.failure_code,
            "message": order.failure_message or "",
            "by": order.failed_by or "",
        }
    charged = order.charged_mills
    return {
        "externalId": order.external_id,
        "account": order.account,
        "route": order.route,
        "status": order.status,
        "providerStatus": order.provider_status,
        "catalogItemId": order.catalog_item_id,
        "marketHashName": order.market_hash_name,
        "expectedPrice": order.expected_price_cents,
        "chargedPrice": None if charged is None else charge_in_cents(charged),
        "steamOfferId": order.steam_offer_id,
        "tradeDeadline": order.trade_deadline_at,
        "overdue": order.overdue,
        "reversibleUntil": order.reversible_until,
        "failure": failure,
        "createdAt": order.created_at,
        "updatedAt": order.updated_at,
        "timeline": list(timeline),
    }
