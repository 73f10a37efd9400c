"""Checkout events of items on sale."""

from collections.abc import Sequence
from typing import Any

TRADE_URL = "https://steamcommunity.com/tradeoffer/new/?partner=123456789&token=Kq7-x_2z"


def checkout(
    prefix: str, place: int, items: Sequence[dict[str, Any]], scenario: str = "stuck"
) -> dict[str, Any]:
    """Write one event; the simulator reads from its id what happens to the order.

    In the scenario `stuck` it is accepted and never moved on.
    """
    item = items[place % len(items)]
    return {
        "externalId": f"{prefix}-{place}.{scenario}",
        "catalogItemId": item["id"],
        "marketHashName": item["marketHashName"],
        "expectedPrice": item["price"],
        "tradeUrl": TRADE_URL,
    }
