"""Read models of orders and wallets: the JSON that HTTP, CLI and messages show (DESIGN 7)."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from schemas.enums import OrderStatus


class ReadModel(BaseModel):
    """camelCase outside, snake_case inside."""

    model_config = ConfigDict(
        alias_generator=to_camel, validate_by_name=True, validate_by_alias=True, frozen=True
    )

    def as_json(self) -> dict[str, Any]:
        """Give the model as plain JSON values with its outside names."""
        return self.model_dump(mode="json", by_alias=True)


class Failure(ReadModel):
    """Why an order ended without the item, and whose decision that was."""

    code: str
    message: str
    by: str


class TimelineEntry(ReadModel):
    """One event of the order's log."""

    at: datetime
    source: str
    from_: OrderStatus | None = Field(alias="from")
    to: OrderStatus
    note: str


class OrderView(ReadModel):
    """One order as everybody may see it; it never holds the trade URL."""

    external_id: str
    account: str
    route: str | None
    status: OrderStatus
    provider_status: str | None
    catalog_item_id: str
    market_hash_name: str | None
    expected_price: int
    charged_price: int | None
    steam_offer_id: str | None
    trade_deadline: datetime | None
    overdue: bool
    reversible_until: datetime | None
    failure: Failure | None
    created_at: datetime
    updated_at: datetime
    timeline: list[TimelineEntry]


class WalletView(ReadModel):
    """One account's money in cents, the unit that stores think in; `available` is rounded down."""

    account: str
    balance: int | None
    balance_requested_at: datetime | None
    held: int
    available: int | None
    settled: int
    refunded: int
    paused_until: datetime | None
    pause_reason: str | None


class CheckoutResult(ReadModel):
    """Answer to one checkout of a call."""

    external_id: str
    status: OrderStatus
