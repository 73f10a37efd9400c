"""What services and provider adapters say to each other: plain frozen values, money in mills."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

import msgspec

from schemas.enums import OrderStatus


@dataclass(frozen=True, slots=True)
class Want:
    """One item that a batch wants a price for; `catalog_item_id` is the provider's own id.

    With `or_by_name` the cheapest of the name will do where the id is not an item of that name.
    """

    catalog_item_id: str
    market_hash_name: str | None = None
    or_by_name: bool = False


@dataclass(frozen=True, slots=True)
class Quote:
    """The provider's price of one item at the time of the request."""

    catalog_item_id: str
    market_hash_name: str
    price_mills: int


@dataclass(frozen=True, slots=True)
class Quotes:
    """Answer to a quoting request: what was found, and how large the whole list was.

    `unclear` are wants that are neither found nor gone, and why: the list contradicts itself about
    them, or their price is not exact. `unasked` are those for which the rate budget had no more
    requests. `is_whole` says that everything on sale was listed, and not only what was wanted.
    Where names were searched instead, `searched` says of each whether anything of it is on sale.
    Of a want that any item of a name will do for, `dearer` are the next ones on sale, the cheapest
    first.
    """

    found: dict[Want, Quote]
    listed: int
    unclear: Mapping[Want, str] = field(default_factory=dict)
    unasked: frozenset[Want] = frozenset()
    is_whole: bool = False
    searched: Mapping[str, bool] = field(default_factory=dict)
    dearer: Mapping[Want, Sequence[Quote]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PurchaseCommand:
    """Everything an adapter needs to write the body of one purchase request."""

    external_id: str
    catalog_item_id: str
    market_hash_name: str | None
    price_mills: int
    trade_url: str = field(repr=False)
    webhook_url: str


class ReportState(StrEnum):
    """What a provider's status word means to us; UNKNOWN is never taken for success."""

    ACCEPTED = "accepted"
    QUEUED = "queued"
    PROCESSING = "processing"
    PENDING = "pending"
    SENT = "sent"
    COMPLETED = "completed"
    REVERSED = "reversed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    UNKNOWN = "unknown"

    def order_status(self) -> OrderStatus | None:
        """Give the order status of the same name; None for UNKNOWN."""
        return None if self is ReportState.UNKNOWN else OrderStatus(self.value)


class OrderReport(msgspec.Struct, frozen=True):
    """What the provider says about one order, by poll, webhook or as the answer to a submit.

    `charged_mills` is the amount the provider says it charges; None where it did not say.
    `reported_at` is the provider's own time of the state where it gives one. `is_settled` says
    that a delivered order can be undone no more; `is_held` whether it is protected now, where "not
    held" may also mean: not yet. `alarm` is what a person is to look at although the report stands.
    `item_id` and `item_name` say what was bought, and `partner` for whom (the number in a trade
    URL), as far as the provider tells.
    """

    external_id: str
    state: ReportState
    raw_status: str
    charged_mills: int | None = None
    steam_offer_id: str | None = None
    failure_code: str | None = None
    failure_message: str | None = None
    reported_at: datetime | None = None
    refunded_at: datetime | None = None
    reversible_until: datetime | None = None
    provider_reference: str | None = None
    is_settled: bool = False
    is_held: bool | None = None
    alarm: str | None = None
    item_id: str | None = None
    item_name: str | None = None
    partner: int | None = None


@dataclass(frozen=True, slots=True)
class WebhookNotice:
    """A webhook whose signature was found good.

    `report` is None where the provider's signature does not cover the body: then it is only a
    hint to ask. `signed_at` is the signed timestamp, None where the provider signs none.
    `provider_reference` is the provider's own id of the order, which finds it before `external_id`
    does; one of the two may be missing. `identity` tells deliveries apart where bytes outside the
    signature would not.
    """

    external_id: str
    signed_at: datetime | None
    report: OrderReport | None
    provider_reference: str | None = None
    identity: str | None = None
