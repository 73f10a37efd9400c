"""What Skinslink's answers and webhooks look like: the market's truth in its words and types."""

import base64
import hashlib
import json
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import msgspec

from fulfillment.simulator.catalog import Item
from fulfillment.simulator.core import UNDELIVERED, Market, Order
from fulfillment.simulator.recipients import PROBLEMS
from fulfillment.simulator.webhooks import GARBAGE, Delivery

MOSCOW = timezone(timedelta(hours=3))
# the market's status -> Skinslink's; an unknown one is passed on as it is
STATUSES = {
    "accepted": "new",
    "queued": "pending",
    "processing": "pending",
    "pending": "pending",
    "sent": "active",
    "cancelled": "canceled",
    "expired": "canceled",
    "reversed": "reverted",
}
# the market's failure -> fail_reason; an unknown one is passed on as it is
REASONS = {
    "insufficient_funds": "insufficient_balance",
    "item_unavailable": "item_not_available",
}
CALLED_BACK = frozenset({"hold", "completed", "failed", "canceled", "reverted"})


def amount(mills: int) -> msgspec.Raw:
    """Write an amount as a JSON number, as short as it is exact."""
    text = f"{Decimal(mills).scaleb(-3):.3f}".rstrip("0").rstrip(".")
    return msgspec.Raw(text.encode())


def sign(purchase_id: int, secret: str) -> str:
    """Sign a webhook: base64 of SHA-256 over id and secret; nothing else is covered."""
    return base64.b64encode(hashlib.sha256(f"{purchase_id}{secret}".encode()).digest()).decode()


class Words:
    """Writes items, purchases and webhooks; also the letters of the courier."""

    retry_s: tuple[float, ...] = (1.0, 5.0, 30.0, 120.0)
    claim = "settled"

    def __init__(self, market: Market) -> None:
        self.market = market

    def state(self, order: Order) -> tuple[str, str | None]:
        """Give status and fail_reason; the reason only with `failed`."""
        if order.status == "completed":
            return ("hold" if order.is_held else "completed"), None
        if order.status != "failed":
            return STATUSES.get(order.status, order.status), None
        failure = order.failure or ""
        if failure == "cancelled":
            return self.market.options.declined_word, None
        # Of a recipient who turns out unable there are no reasons, only validation codes.
        is_recipient = failure.removeprefix("recipient_") in PROBLEMS
        if is_recipient or failure == "trade_not_created":
            return "canceled", None
        return "failed", REASONS.get(failure, failure)

    def time(self, moment: datetime) -> str:
        if self.market.options.dates == "offset":
            return moment.astimezone(MOSCOW).isoformat(timespec="microseconds")
        return moment.isoformat(timespec="seconds").replace("+00:00", "Z")

    def listed(self, item: Item, *, is_extended: bool) -> dict[str, Any]:
        """Write a single item; extras are null where there is no value."""
        row: dict[str, Any] = {
            "id": item.id,
            "name": item.name,
            "price": amount(item.price_mills),
            "image_url": f"https://cdn.example/{item.class_id}.png",
        }
        wear = item.name.rpartition(" (")[2].removesuffix(")")
        if item.float_value:
            row |= {"exterior": wear, "rarity": "Restricted", "rarity_color": item.rarity_color}
        if is_extended:
            row |= {
                "class_id": int(item.class_id),
                "instance_id": 302_028_390,
                "float": msgspec.Raw(item.float_value.encode()) if item.float_value else None,
                "inspect_url": None,
                "phase": item.phase,
            }
        return row

    def purchase(self, order: Order) -> dict[str, Any]:
        """Write a purchase; what has no value is left out."""
        word, reason = self.state(order)
        mills = order.amount_mills or order.item.price_mills or order.cap_mills or 0
        body: dict[str, Any] = {"id": order.number}
        if order.custom_id is not None:
            body["merchant_tx_id"] = order.custom_id
        body["status"] = word
        if reason is not None:
            body["fail_reason"] = reason
        body["steam_id"] = order.steam_id
        body["date"] = self.time(datetime.fromisoformat(order.accepted_at))
        body["amount"] = amount(mills)
        if order.steam_offer_id is not None:
            body["trade_offer_id"] = order.steam_offer_id
            body["steam_name"] = f"player {order.steam_id[-4:]}"
        if word == "hold" and order.hold_until is not None:
            body["hold_end_date"] = self.time(order.hold_until)
        if order.item.class_id:
            body["item"] = {
                "id": order.item.id,
                "name": order.item.name,
                "price": amount(order.item.price_mills),
                "image_url": f"https://cdn.example/{order.item.class_id}.png",
            }
        return body

    def balance(self) -> dict[str, Any]:
        available = self.market.balance_mills - self.market.reserved_mills
        settled = {*UNDELIVERED, "reversed"}
        held = self.market.reserved_mills + sum(
            order.charged_mills - order.refunded_mills
            for order in self.market.orders.values()
            if order.is_held or order.status not in (*settled, "completed")
        )
        return {
            "total": amount(available + held),
            "hold": amount(held),
            "available": amount(available),
        }

    # What the courier asks for

    def url_of(self, order: Order) -> str | None:
        return self.market.options.webhook_url

    def is_news(self, order: Order) -> bool:
        word = self.state(order)[0]
        if word == order.told or word not in CALLED_BACK:
            return False
        order.told = word
        return True

    def body_of(self, order: Order, status: str) -> bytes:
        # A claim that is not true is always of the end that a store waits for.
        word = self.state(order)[0] if status == order.status else "completed"
        body: dict[str, Any] = {
            "sign": sign(order.number, self.market.options.client_secret),
            "status": word,
            "purchase_id": order.number,
            "purchase_date": self.time(datetime.fromisoformat(order.accepted_at)),
        }
        if order.custom_id is not None:
            body["merchant_tx_id"] = order.custom_id
        body["steam_id"] = order.steam_id
        if order.steam_offer_id is not None:
            body["offer_id"] = order.steam_offer_id
        body["amount"] = amount(order.amount_mills or order.item.price_mills)
        return msgspec.json.encode({**body, "amount_currency": "usd"})

    def sealed(self, delivery: Delivery, secret: str, stamp: str) -> tuple[dict[str, str], bytes]:
        # Only a key that is not ours changes anything: the text is not signed.
        if delivery.tamper in ("key", "garbage"):
            body = json.loads(delivery.body)
            is_garbage = delivery.tamper == "garbage"
            body["sign"] = GARBAGE if is_garbage else sign(body["purchase_id"], secret)
            return {"content-type": "application/json"}, json.dumps(body).encode()
        return {"content-type": "application/json"}, delivery.body
