"""Frozen copies of rows: what the store gives away.

Every step reads its orders anew, so these are Structs: made twenty times as fast as frozen
dataclasses of so many fields.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Self

import msgspec

from fulfillment.states import FINAL, UNFULFILLED, WAITING
from schemas.enums import AttemptState, OrderStatus, Source


class NewOrder(msgspec.Struct, frozen=True):
    """What intake stores of one accepted checkout."""

    external_id: str
    account: str
    route: str | None
    fallbacks: Sequence[str]
    fingerprint: str
    catalog_item_id: str
    market_hash_name: str | None
    expected_price_cents: int
    trade_url_sealed: bytes
    submit_by: datetime


class Doubt(msgspec.Struct, frozen=True):
    """Since when our rows may lack what was done; of orders that came before `until`."""

    since: datetime
    until: datetime

    @classmethod
    def of(cls, since: datetime | None, until: datetime | None) -> Self | None:
        """Give the doubt of a row; None where there was none, or a person has ended it at once."""
        return cls(since, until) if since and until and since < until else None


class Order(msgspec.Struct, frozen=True):
    """One order as it was when it was read."""

    id: int
    external_id: str
    account: str
    route: str | None
    fallbacks: tuple[str, ...]
    between_attempts: bool
    fingerprint: str
    catalog_item_id: str
    market_hash_name: str | None
    expected_price_cents: int
    submit_by: datetime
    status: OrderStatus
    provider_status: str | None
    provider_reference: str | None
    reported_at: datetime | None
    quoted_mills: int | None
    quoted_item_id: str | None
    charged_mills: int | None
    steam_offer_id: str | None
    failure_code: str | None
    failure_message: str | None
    failed_by: str | None
    funds_deadline_at: datetime | None
    sent_at: datetime | None
    trade_deadline_at: datetime | None
    overdue: bool
    completed_at: datetime | None
    reversible_until: datetime | None
    told_status: OrderStatus | None
    contradictions: tuple[str, ...]
    next_attempt_at: datetime | None
    next_poll_at: datetime | None
    polled_at: datetime | None
    poll_wanted_at: datetime | None
    polls: int
    failed_polls: int
    next_watch_at: datetime | None
    claim: str | None
    claimed_until: datetime | None
    searched_at: datetime | None
    told_early_at: datetime | None
    late_words: str | None
    sequence: int
    created_at: datetime
    updated_at: datetime
    trade_url_sealed: bytes | None

    def __repr__(self) -> str:
        return f"Order({self.external_id!r}, {self.status.value!r})"

    @classmethod
    def of(cls, row: Sequence[Any]) -> Self:
        """Copy a row that begins with `ORDER_COLUMNS`."""
        values = list(row[: len(ORDER_COLUMNS)])
        values[_STATUS] = OrderStatus(values[_STATUS])
        values[_FALLBACKS] = tuple(values[_FALLBACKS])
        values[_TOLD] = values[_TOLD] and OrderStatus(values[_TOLD])
        values[_CONTRADICTIONS] = tuple(values[_CONTRADICTIONS])
        return cls(*values)

    def was_searched(self, doubt: Doubt | None) -> bool:
        """Say whether it was looked for at its accounts since it is doubted, or need not be.

        And since a provider told of it too early.
        """
        wanted = self.doubted_since(doubt)
        return wanted is None or (self.searched_at is not None and self.searched_at >= wanted)

    def doubted_since(self, doubt: Doubt | None) -> datetime | None:
        """Say since when a purchase may be made of which its row does not tell."""
        since = doubt.since if doubt is not None and self.is_doubted(doubt) else None
        return max(filter(None, (since, self.told_early_at)), default=None)

    def is_doubted(self, doubt: Doubt | None) -> bool:
        """Say whether it is one of the orders in doubt, and nobody has looked for it since.

        Only a search ends that, or a person: nobody may have been able to look in all the time.
        """
        if doubt is None or self.created_at >= doubt.until:
            return False
        return self.searched_at is None or self.searched_at < doubt.since

    @property
    def lives_on(self) -> bool:
        """Say whether it ended without the item and the provider has it all the same.

        Until the provider's own end of it, or what that cost, is known.
        """
        if self.status not in UNFULFILLED or self.told_status is None:
            return False
        is_uncharged = self.told_status is OrderStatus.COMPLETED and self.charged_mills is None
        return is_uncharged or self.told_status not in FINAL

    @property
    def is_unsent(self) -> bool:
        """Say whether surely no byte of a purchase at its account has left."""
        return self.is_waiting or self.status is OrderStatus.RESERVED

    def is_surely_unsent(self, attempt: "Attempt | None") -> bool:
        """Say the same with its attempt at hand; both were read after its row was locked."""
        is_begun = self.status is OrderStatus.SUBMITTING
        return self.is_unsent or (is_begun and attempt is not None and attempt.is_unsent)

    @property
    def is_waiting(self) -> bool:
        """Say whether it waits for a catalog and a wallet answer: nothing is under way for it."""
        is_between = self.status is OrderStatus.SUBMITTING and self.between_attempts
        return is_between or self.status in WAITING


class Attempt(msgspec.Struct, frozen=True):
    """One purchase attempt as it was when it was read."""

    id: int
    order_id: int
    account: str
    external_id: str
    state: AttemptState
    hold_mills: int
    created_at: datetime
    posts: int
    last_post_at: datetime | None
    unknown_since: datetime | None
    empty_lookups: int
    empty_since: datetime | None
    empty_at: datetime | None
    odd_refusal: str | None
    merchant: str | None
    strange_since: datetime | None
    confirmed_at: datetime | None
    body_sealed: bytes | None

    def __repr__(self) -> str:
        return f"Attempt({self.external_id!r}, {self.state.value!r})"

    @classmethod
    def of(cls, row: Sequence[Any]) -> Self:
        """Copy a row that begins with `ATTEMPT_COLUMNS`."""
        values = list(row[: len(ATTEMPT_COLUMNS)])
        values[_STATE] = AttemptState(values[_STATE])
        return cls(*values)

    @property
    def is_unsent(self) -> bool:
        """Say whether surely no byte of it has left."""
        is_open = self.state in (AttemptState.RESERVED, AttemptState.SENDING)
        return is_open and self.unknown_since is None

    @property
    def is_untouched(self) -> bool:
        """Say whether surely none ever has."""
        return self.is_unsent and self.posts == 0


#: Columns in the order of the fields: rows are read by place, several times cheaper than by name.
ORDER_COLUMNS = Order.__struct_fields__
ATTEMPT_COLUMNS = Attempt.__struct_fields__
_STATUS, _FALLBACKS = ORDER_COLUMNS.index("status"), ORDER_COLUMNS.index("fallbacks")
_TOLD = ORDER_COLUMNS.index("told_status")
_CONTRADICTIONS = ORDER_COLUMNS.index("contradictions")
_STATE = ATTEMPT_COLUMNS.index("state")


def columns(names: Sequence[str], table: str = "") -> str:
    """Write columns for a statement, of one table where it is named."""
    return ", ".join(f"{table}.{name}" if table else name for name in names)


class Move(msgspec.Struct, frozen=True):
    """A guarded change of one order: applied only while it is still in `source`.

    `changes` are columns that the event log keeps; `due` are due times and claims, which it does
    not. `target` equal to `source` records an event without a change of status. `tell` names
    routing keys on which the store hears of it. `unless_told`: not where an account has told of the
    order, and nobody has looked for it since.
    """

    order_id: int
    source: OrderStatus
    target: OrderStatus
    by: Source
    note: str = ""
    changes: Mapping[str, Any] = msgspec.field(default_factory=dict)
    due: Mapping[str, Any] = msgspec.field(default_factory=dict)
    tell: tuple[str, ...] = ()
    claim: str | None = None
    unless_told: bool = False


#: What every move that leaves our own hands sets back.
UNCLAIMED: Mapping[str, Any] = {"claim": None, "claimed_until": None}
NOTHING_DUE: Mapping[str, Any] = {
    **UNCLAIMED,
    "next_attempt_at": None,
    "next_poll_at": None,
    "next_watch_at": None,
}
