"""Checkout events of items on sale, which the provider accepts and never moves on."""

from collections.abc import Sequence
from typing import Any

TRADE_URL = "https://steamcommunity.com/tradeoffer/new/?partner=123456789&token=Kq7-x_2z"


def checkout(prefix: str, place: int, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Write one event; the simulator reads the scenario `stuck` from its id."""
    item = items[place % len(items)]
    return {
        "externalId": f"{prefix}-{place}.stuck",
        "catalogItemId": item["id"],
        "marketHashName": item["marketHashName"],
        "expectedPrice": item["price"],
        "tradeUrl": TRADE_URL,
    }
