"""From rows to the JSON that the outside sees."""

from collections.abc import Sequence

from fulfillment.store.models import Order
from schemas.money import charge_in_cents
from schemas.orders import Failure, OrderView, TimelineEntry


def order_view(order: Order, timeline: Sequence[TimelineEntry]) -> OrderView:
    """Show an order with these entries of its log; never its trade URL."""
    failure = None
    if order.failure_code is not None:
        failure = Failure(
            code=order.failure_code,
            message=order.failure_message or "",
            by=order.failed_by or "",
        )
    charged = None if order.charged_mills is None else charge_in_cents(order.charged_mills)
    return OrderView(
        external_id=order.external_id,
        account=order.account,
        route=order.route,
        status=order.status,
        provider_status=order.provider_status,
        catalog_item_id=order.catalog_item_id,
        market_hash_name=order.market_hash_name,
        expected_price=order.expected_price_cents,
        charged_price=charged,
        steam_offer_id=order.steam_offer_id,
        trade_deadline=order.trade_deadline_at,
        overdue=order.overdue,
        reversible_until=order.reversible_until,
        failure=failure,
        created_at=order.created_at,
        updated_at=order.updated_at,
        timeline=list(timeline),
    )
