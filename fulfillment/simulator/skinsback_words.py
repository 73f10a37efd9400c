"""What SkinsBack's answers and events look like: the market's truth in its words and types."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Any

import msgspec

from fulfillment.simulator.catalog import Item
from fulfillment.simulator.core import UNDELIVERED, Market, Order
from fulfillment.simulator.recipients import PROBLEMS
from fulfillment.simulator.skinsback_signature import sign_event
from fulfillment.simulator.webhooks import GARBAGE, Delivery

ROUBLES = 75  # to a dollar, about as in the contract's old examples

# the market's status -> offer_status; an unknown one is passed on as it is
STATUSES = {
    "accepted": "creating_trade",
    "queued": "creating_trade",
    "processing": "creating_trade",
    "pending": "creating_trade",
    "sent": "waiting_accept",
    "completed": "accepted",
    "cancelled": "canceled",
    "expired": "timeout",
    "reversed": "rollback_user",
}
# the market's failure -> offer_status, error_reason
FAILURES: dict[str, tuple[str, str | None]] = {
    "cancelled": ("canceled", None),
    "item_unavailable": ("trade_create_error", "skin_unavailable"),
    "price_changed": ("trade_create_error", None),
    "insufficient_funds": ("trade_create_error", None),
    "trade_not_created": ("trade_create_error", None),
    **{f"recipient_{problem.name}": problem.offer for problem in PROBLEMS.values()},
}


def mills_in(text: Any) -> int | None:
    """Read a cap in dollars as whole mills, rounded down; None if it is no number."""
    try:
        value = Decimal(str(text))
    except InvalidOperation:
        return None
    if not value.is_finite():
        return None
    # Beyond every price, and small enough to be an integer.
    value = max(min(value, Decimal(10**12)), Decimal(-1))
    return int((value * 1000).to_integral_value("ROUND_FLOOR"))


def dollars(mills: int) -> str:
    """Write an amount as short as it is exact, with at least two decimals."""
    whole, part = divmod(abs(mills), 1000)
    text = f"{'-' if mills < 0 else ''}{whole}.{part:03}"
    return text.removesuffix("0") if text.endswith("0") else text


def number(text: str) -> msgspec.Raw:
    """Put a number into JSON exactly as it is written here."""
    return msgspec.Raw(text.encode())


def offer_of(order: Order) -> tuple[str, str | None]:
    """Give offer_status and error_reason."""
    if order.status == "failed":
        failure = order.failure or ""
        return FAILURES.get(failure, ("trade_create_error", failure))
    if order.status == "reversed" and "supplier" in (order.failure, order.scenario.undone_by):
        return "rollback_supplier", None
    return STATUSES.get(order.status, order.status), None


def unix_date(order: Order) -> int:
    return _unix_seconds(order.accepted_at)


@lru_cache(100_000)
def _unix_seconds(time: str) -> int:
    return int(datetime.fromisoformat(time).timestamp())


class Words:
    """Writes items, purchases and events; also the letters of the courier."""

    retry_s: tuple[float, ...] = ()
    claim = "completed"

    def __init__(self, market: Market) -> None:
        self.market = market

    def loose(self, text: str) -> Any:
        """Write a number of a purchase: as a string in the examples, a number in the table."""
        return number(text) if self.market.options.numbers == "numbers" else text

    def firm(self, text: str) -> Any:
        """Write a number of a list: the examples have numbers here."""
        return text if self.market.options.numbers == "strings" else number(text)

    def skin(self, item: Item) -> dict[str, Any]:
        return {
            "id": self.loose(item.id),
            "name": item.name,
            "price": self.loose(dollars(item.price_mills)),
            "classid": item.class_id,
        }

    def listed(self, item: Item) -> dict[str, Any]:
        return {
            "id": self.firm(item.id),
            "name": item.name,
            "price": self.firm(dollars(item.price_mills)),
            "classid": item.class_id,
        }

    def debited(self, order: Order) -> Any:
        mills = order.amount_mills * (ROUBLES if self.market.options.old_currency else 1)
        return self.loose(dollars(mills))

    def bought(self, order: Order) -> dict[str, Any]:
        """Write the answer to a purchase."""
        body = {
            "item": self.skin(order.item),
            "buy_id": self.loose(str(order.number)),
            "offer_status": "creating_trade",
            "balance_debited_sum": self.debited(order),
        }
        if self.market.options.buy_echoes_custom_id and order.custom_id is not None:
            body["custom_id"] = order.custom_id
        return body

    def info(self, order: Order) -> dict[str, Any]:
        """Write a purchase as lookups and the history give it."""
        word, reason = offer_of(order)
        body: dict[str, Any] = {
            "item": self.skin(order.item),
            "buy_id": self.loose(str(order.number)),
            "offer_status": word,
        }
        if order.status == "completed":
            # The page does not say whether the flag is taken back by itself.
            stays = self.market.options.hold_flag_stays and order.hold_until is not None
            body["in_hold"] = order.is_held or stays
            if body["in_hold"] and order.hold_until is not None:
                until = order.hold_until.astimezone(UTC) + timedelta(seconds=0.999999)
                body["in_hold_until"] = until.strftime("%Y-%m-%d %H:%M:%S")
        body |= {
            "error_reason": reason,
            "steamid": order.steam_id,
            "date": self.loose(str(unix_date(order))),
            "balance_debited_sum": self.debited(order),
        }
        if order.steam_offer_id is not None:
            body["tradeofferid"] = order.steam_offer_id
        if order.custom_id is not None:
            body["custom_id"] = order.custom_id
        return body

    def balance(self) -> dict[str, Any]:
        market = self.market
        orders = market.orders.values()
        dealt = sum(
            o.charged_mills - o.refunded_mills for o in orders if o.status not in UNDELIVERED
        )
        body: dict[str, Any] = {}
        for name, mills in (
            ("balance", market.balance_mills),
            ("deals_sum", dealt),
            ("withdraw_sum", 0),
        ):
            bare = mills * ROUBLES if market.options.old_currency and name == "balance" else mills
            body[name] = self.loose(f"{Decimal(bare).scaleb(-3):.3f}")
            rates = {"usd": Decimal(1), "eur": Decimal("0.92"), "rub": Decimal(ROUBLES)}
            key = "balance_in_currencies" if name == "balance" else f"{name}_in_currencies"
            body[key] = {
                currency: self.loose(f"{Decimal(mills).scaleb(-3) * rate:.3f}")
                for currency, rate in rates.items()
            }
        return body

    # What the courier asks for

    def url_of(self, order: Order) -> str | None:
        return self.market.options.webhook_url

    def is_news(self, order: Order) -> bool:
        word = offer_of(order)[0]
        if word == order.told or (
            word.startswith("rollback_") and not self.market.options.pushes_rollbacks
        ):
            return False
        order.told = word
        return True

    def body_of(self, order: Order, status: str) -> bytes:
        if status == "balance":
            event, data = "balance_change", self._buy_item(order)
            data["balance_value"] = dollars(self.market.balance_mills)
        elif status == "accepted":
            event, data = "buy_item", self._buy_item(order)
        else:
            event, data = "status_change", self._status_change(order, status)
        return msgspec.json.encode({"event": event, "data": data})

    def _buy_item(self, order: Order) -> dict[str, Any]:
        item = order.item
        return {
            "item": {
                "id": item.id,
                "name": item.name,
                "price": dollars(item.price_mills),
                "classid": item.class_id,
            },
            "buy_id": str(order.number),
            "offer_status": "creating_trade",
            "balance_debited_sum": dollars(order.amount_mills),
            "custom_id": order.custom_id,
        }

    def _status_change(self, order: Order, status: str) -> dict[str, Any]:
        word, reason = offer_of(order)
        if status != order.status:
            word, reason = STATUSES.get(status, status), None
        return {
            "item": {"id": order.item.id},
            "buy_id": str(order.number),
            "offer_status": word,
            "error_reason": reason,
            "tradeofferid": order.steam_offer_id,
            "custom_id": order.custom_id,
        }

    def sealed(self, delivery: Delivery, secret: str, stamp: str) -> tuple[dict[str, str], bytes]:
        signature = sign_event(secret, delivery.signed_body)
        if delivery.tamper == "garbage":
            signature = GARBAGE
        return {"content-type": "application/json", "signature": signature}, delivery.body
