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
    #: What went since the first balance, and what came (a top-up), without an order of ours.
    unexplained: int
    credited: int
    paused_until: datetime | None
    pause_reason: str | None
    #: Set while an operator has stopped the account, or all.
    stopped_at: datetime | None = None
    stop_reason: str | None = None


class AccountView(ReadModel):
    """One provider account's brakes; `spend_cap` and `spent_last_hour` are cents.

    Those of all accounts together are None where no such cap is set. `paused_until` is the
    automatic pause of an account whose provider is away.
    """

    account: str
    provider: str
    stopped_at: datetime | None
    stopped_by: str | None
    stop_reason: str | None
    is_stopped_with_all: bool
    paused_until: datetime | None
    pause_reason: str | None
    requests_per_minute: int | None
    spend_cap: int | None
    spent_last_hour: int
    spend_cap_of_all: int | None = None
    spent_last_hour_by_all: int | None = None
    #: Set while rows that are newer than the database's copy may be missing: stops too.
    doubted_since: datetime | None = None
    doubted_until: datetime | None = None


class CheckoutResult(ReadModel):
    """Answer to one checkout of a call."""

    external_id: str
    status: OrderStatus
