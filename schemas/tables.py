"""The database, table by table. Imported by fulfillment.store only; rows never leave it.

Times are aware and in UTC. Amounts are cents or mills, as the name says. Every waiting thing is a
due time in a row, found by a partial index (DESIGN section 3).
"""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ARRAY, BigInteger, Column, DateTime, Index, String, Text, UniqueConstraint
from sqlalchemy import Enum as EnumType
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import Field, SQLModel

from schemas.enums import AttemptState, EntryKind, OrderStatus, Source


def _words(enum: type[StrEnum], name: str) -> EnumType:
    """Store an enum as its words with a check constraint, never as a Postgres enum of names."""
    return EnumType(
        enum,
        name=name,
        native_enum=False,
        create_constraint=True,
        length=32,
        values_callable=lambda members: [member.value for member in members],
    )


def _time(*, nullable: bool = False) -> Any:
    return Field(
        default=None if nullable else ...,
        sa_column=Column(DateTime(timezone=True), nullable=nullable),
    )


def _due(name: str, column: str, *lead: str) -> Index:
    """Index a due time where it is set, so that the index is as small as the work waiting."""
    return Index(name, *lead, column, postgresql_where=f"{column} IS NOT NULL")


class AccountRow(SQLModel, table=True):
    """What is shared by all processes about one provider account: pause and rate budget."""

    __tablename__ = "accounts"

    name: str = Field(primary_key=True, max_length=32)
    paused_until: datetime | None = _time(nullable=True)
    pause_reason: str | None = None
    #: Reads that failed in a row; the pause grows with them.
    failures: int = 0
    #: Requests that may be sent now; refilled continuously since `budget_at`.
    budget: float = 0.0
    submit_budget: float = 0.0
    poll_budget: float = 0.0
    budget_at: datetime | None = _time(nullable=True)
    catalog_items: int | None = None
    catalog_at: datetime | None = _time(nullable=True)
    #: Names that searches in a row found nothing of, without finding another (some of them).
    catalog_missed: list[str] = Field(
        default_factory=list, sa_column=Column(ARRAY(Text), nullable=False, server_default="{}")
    )
    #: Purchases in a row that had neither a yes nor a no; pauses of purchases in a row, the last
    #: one's end and its reason. Only an answered purchase resets them (store/purchases.py).
    purchases_unanswered: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    purchase_pauses: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    purchases_paused_until: datetime | None = _time(nullable=True)
    purchase_pause_reason: str | None = Field(default=None, sa_type=Text)
    #: Which server and database this was last, and while its rows may lack what was done
    #: (store/doubts.py).
    server: str | None = Field(default=None, sa_type=Text)
    doubted_since: datetime | None = _time(nullable=True)
    doubted_until: datetime | None = _time(nullable=True)
    #: What numbers of messages to the store begin at since the last restore.
    told_from: int | None = Field(default=None, sa_type=BigInteger)
    #: Whose account this is (provider, address, a hash of the client id), whose it was before, and
    #: when that was noticed.
    merchant: str | None = Field(default=None, sa_type=Text)
    merchant_before: str | None = Field(default=None, sa_type=Text)
    merchant_left_at: datetime | None = _time(nullable=True)


class AccountSwitchRow(SQLModel, table=True):
    """The kill switch's append-only log: the newest row of an account, or of `*`, counts."""

    __tablename__ = "account_switches"
    __table_args__ = (Index("ix_account_switches_account", "account", "id"),)

    id: int | None = Field(default=None, primary_key=True, sa_type=BigInteger)
    account: str = Field(max_length=32)
    is_stopped: bool
    at: datetime = _time()
    by: str = Field(sa_type=Text)
    reason: str = Field(sa_type=Text)


class WalletRow(SQLModel, table=True):
    """The provider's last figure of the spendable balance; the row to lock before allocating."""

    __tablename__ = "wallets"

    account: str = Field(primary_key=True, max_length=32)
    figure_mills: int | None = Field(default=None, sa_type=BigInteger)
    #: When the request that brought the figure was sent.
    requested_at: datetime | None = _time(nullable=True)
    #: What the first figure was, and what the last one should have been by our own books, but for
    #: what was open then (store/proof.py).
    opening_mills: int | None = Field(default=None, sa_type=BigInteger)
    expected_mills: int | None = Field(default=None, sa_type=BigInteger)
    #: What went since the first figure, and what came, without an order of ours.
    unexplained_mills: int = Field(sa_type=BigInteger, sa_column_kwargs={"server_default": "0"})
    credited_mills: int = Field(sa_type=BigInteger, sa_column_kwargs={"server_default": "0"})
    #: How much of `unexplained_mills` has stopped the account before.
    stopped_at_mills: int = Field(sa_type=BigInteger, sa_column_kwargs={"server_default": "0"})


class OrderRow(SQLModel, table=True):
    """One checkout of the store."""

    __tablename__ = "orders"
    __table_args__ = (
        _due("ix_orders_next_attempt", "next_attempt_at", "account"),
        _due("ix_orders_next_poll", "next_poll_at"),
        _due("ix_orders_next_watch", "next_watch_at"),
        Index("ix_orders_status", "status", "id"),
        Index("ix_orders_account", "account", "id"),
        Index(
            "ix_orders_provider_reference",
            "account",
            "provider_reference",
            postgresql_where="provider_reference IS NOT NULL",
        ),
        Index(
            "ix_orders_erasable",
            "updated_at",
            postgresql_where="trade_url_sealed IS NOT NULL AND status IN "
            "('completed', 'reversed', 'failed', 'cancelled', 'expired')",
        ),
    )

    id: int | None = Field(default=None, primary_key=True, sa_type=BigInteger)
    external_id: str = Field(unique=True, max_length=64)
    #: The account that is to buy it now; of a route, the one that is being tried.
    account: str = Field(max_length=32)
    #: The route that the checkout named, and its accounts that were not tried yet.
    route: str | None = Field(default=None, max_length=32)
    fallbacks: list[str] = Field(
        default_factory=list, sa_column=Column(JSONB, nullable=False, server_default="[]")
    )
    #: The account before said no after a submit began, and no attempt is open at the next one.
    between_attempts: bool = Field(default=False, sa_column_kwargs={"server_default": "false"})
    #: Keyed hash of the checkout's content; tells a repetition from a conflict.
    fingerprint: str
    catalog_item_id: str
    market_hash_name: str | None = None
    expected_price_cents: int = Field(sa_type=BigInteger)
    trade_url_sealed: bytes | None = None
    #: Keyed hash of the trade URL, kept when the URL itself was erased.
    trade_url_hash: str | None = None
    submit_by: datetime = _time()

    status: OrderStatus = Field(
        sa_column=Column(_words(OrderStatus, "order_status"), nullable=False)
    )
    provider_status: str | None = None
    #: The provider's own id of its order, by which some webhooks name it.
    provider_reference: str | None = None
    #: The provider's own time of `provider_status`; tells news from older answers of one rank.
    reported_at: datetime | None = _time(nullable=True)
    quoted_mills: int | None = Field(default=None, sa_type=BigInteger)
    #: The item at the account that quoted it, where it is not `catalog_item_id`.
    quoted_item_id: str | None = None
    charged_mills: int | None = Field(default=None, sa_type=BigInteger)
    steam_offer_id: str | None = None
    failure_code: str | None = None
    failure_message: str | None = None
    failed_by: str | None = None
    funds_deadline_at: datetime | None = _time(nullable=True)
    sent_at: datetime | None = _time(nullable=True)
    trade_deadline_at: datetime | None = _time(nullable=True)
    overdue: bool = False
    completed_at: datetime | None = _time(nullable=True)
    reversible_until: datetime | None = _time(nullable=True)
    #: How far the provider said it was where `status` does not tell: while a person decides, and
    #: after an end that was ours. At an end of the provider's own, that end.
    told_status: str | None = Field(default=None, max_length=32)
    #: What the provider told that is not what was asked of it; once the order goes on, what a
    #: person took for right.
    contradictions: list[str] = Field(
        default_factory=list, sa_column=Column(JSONB, nullable=False, server_default="[]")
    )

    #: We must act: dispatch, submit or resolve.
    next_attempt_at: datetime | None = _time(nullable=True)
    #: The provider is to be asked.
    next_poll_at: datetime | None = _time(nullable=True)
    polled_at: datetime | None = _time(nullable=True)
    #: When somebody last said that there is news, until a question was asked so long after it that
    #: its answer cannot be from before.
    poll_wanted_at: datetime | None = _time(nullable=True)
    polls: int = 0
    #: Of these the last ones, so many, failed.
    failed_polls: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    #: The trade-window watchdog is to look.
    next_watch_at: datetime | None = _time(nullable=True)
    claim: str | None = None
    claimed_until: datetime | None = _time(nullable=True)
    #: When it was last looked for at all accounts of its route, and found nowhere.
    searched_at: datetime | None = _time(nullable=True)
    #: When a provider told of a purchase of it although nothing had been sent.
    told_early_at: datetime | None = _time(nullable=True)
    #: Words of the provider that came late or that nobody knows, one a line: each is logged once.
    late_words: str | None = Field(default=None, sa_type=Text)

    #: The sequence number of the last event in `order_events`.
    sequence: int = 0
    created_at: datetime = _time()
    updated_at: datetime = _time()


class AttemptRow(SQLModel, table=True):
    """One purchase attempt at one account, with the money held for it."""

    __tablename__ = "attempts"
    __table_args__ = (
        UniqueConstraint("account", "external_id"),
        Index("ix_attempts_order", "order_id"),
        Index(
            "ix_attempts_spent", "account", "confirmed_at", postgresql_where="state <> 'refused'"
        ),
        Index(
            "uq_attempts_open",
            "order_id",
            unique=True,
            postgresql_where="state IN ('reserved', 'sending', 'accepted')",
        ),
        Index(
            "uq_attempts_open_hold",
            "order_id",
            unique=True,
            postgresql_where="hold_closed_at IS NULL",
        ),
        Index("ix_attempts_strange", "order_id", postgresql_where="strange_since IS NOT NULL"),
        # By these a balance that is read looks at no attempt that only waits for its end.
        Index("ix_attempts_unabsorbed", "account", postgresql_where="absorbed_at IS NULL"),
        Index(
            "ix_attempts_unreleased",
            "account",
            postgresql_where="hold_closed_at IS NULL AND ended_at IS NOT NULL",
        ),
        Index("ix_attempts_unbooked", "account", postgresql_where="unbooked > 0"),
    )

    id: int | None = Field(default=None, primary_key=True, sa_type=BigInteger)
    order_id: int = Field(foreign_key="orders.id", sa_type=BigInteger)
    account: str = Field(max_length=32)
    external_id: str = Field(max_length=64)
    state: AttemptState = Field(
        sa_column=Column(_words(AttemptState, "attempt_state"), nullable=False)
    )
    hold_mills: int = Field(sa_type=BigInteger)
    body_sealed: bytes | None = None
    posts: int = 0
    created_at: datetime = _time()
    sending_at: datetime | None = _time(nullable=True)
    last_post_at: datetime | None = _time(nullable=True)
    #: Set while the outcome of a post is not known.
    unknown_since: datetime | None = _time(nullable=True)
    #: Lookups since the last post that did not find the order: how many, the first, the last.
    empty_lookups: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    empty_since: datetime | None = _time(nullable=True)
    empty_at: datetime | None = _time(nullable=True)
    #: What the last post was refused with, where no contract knows of such a no.
    odd_refusal: str | None = Field(default=None, sa_type=Text)
    #: Who may have it: provider, address and a hash of the client id at its first post.
    merchant: str | None = Field(default=None, sa_type=Text)
    #: Since when its account is known not to be that merchant's any more.
    strange_since: datetime | None = _time(nullable=True)
    confirmed_at: datetime | None = _time(nullable=True)
    ended_at: datetime | None = _time(nullable=True)
    #: The hold was settled or released in the ledger.
    hold_closed_at: datetime | None = _time(nullable=True)
    #: From here on the provider's own figure tells of this money, and it is subtracted no more.
    absorbed_at: datetime | None = _time(nullable=True)
    #: By how much it has lowered what the wallet is expected to hold, and what has happened to its
    #: money since that was written.
    booked_mills: int = Field(
        default=0, sa_type=BigInteger, sa_column_kwargs={"server_default": "0"}
    )
    unbooked: int = Field(default=0, sa_column_kwargs={"server_default": "0"})


class OrderEventRow(SQLModel, table=True):
    """The append-only log: replaying `changes` in sequence rebuilds the order's row."""

    __tablename__ = "order_events"

    order_id: int = Field(primary_key=True, sa_type=BigInteger)
    sequence: int = Field(primary_key=True)
    at: datetime = _time()
    source: Source = Field(sa_column=Column(_words(Source, "event_source"), nullable=False))
    from_status: str | None = None
    to_status: str
    note: str = Field(default="", sa_type=Text)
    changes: dict[str, Any] = Field(default_factory=dict, sa_type=JSONB)
    #: On which routing keys beside `order.updated` the store was told; null: on none.
    told: list[str] | None = Field(default=None, sa_type=JSONB)
    #: What `sequence` is added to in messages; null: to nothing (store/doubts.py).
    told_from: int | None = Field(default=None, sa_type=BigInteger)


class WalletEntryRow(SQLModel, table=True):
    """The append-only money log; an attempt has each kind at most once, but for `adjust`."""

    __tablename__ = "wallet_entries"
    __table_args__ = (
        UniqueConstraint("attempt_id", "kind"),
        Index("ix_wallet_entries_order", "order_id"),
    )

    id: int | None = Field(default=None, primary_key=True, sa_type=BigInteger)
    account: str = Field(max_length=32)
    order_id: int = Field(sa_type=BigInteger)
    #: None for `adjust`, of which there may be several: they are their order's at the account.
    attempt_id: int | None = Field(default=None, foreign_key="attempts.id", sa_type=BigInteger)
    kind: EntryKind = Field(sa_column=Column(_words(EntryKind, "entry_kind"), nullable=False))
    amount_mills: int = Field(sa_type=BigInteger)
    at: datetime = _time()
    reason: str = Field(default="", sa_type=Text)


class WebhookDeliveryRow(SQLModel, table=True):
    """The inbox: verified deliveries of known orders, once each."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        UniqueConstraint("account", "digest"),
        _due("ix_webhook_deliveries_due", "next_apply_at"),
    )

    id: int | None = Field(default=None, primary_key=True, sa_type=BigInteger)
    account: str = Field(max_length=32)
    order_id: int = Field(foreign_key="orders.id", sa_type=BigInteger, index=True)
    #: Hash over the signed timestamp and the raw body: the delivery id is not signed (K1).
    digest: str = Field(max_length=64)
    signed_at: datetime | None = _time(nullable=True)
    received_at: datetime = _time()
    #: The report as read from the body; null where the body must not be applied, or is erased.
    report: dict[str, Any] | None = Field(default=None, sa_type=JSONB)
    next_apply_at: datetime | None = _time(nullable=True)
    applied_at: datetime | None = _time(nullable=True)
    outcome: str = ""


class OutboxMessageRow(SQLModel, table=True):
    """Messages to the store, written with the change that they tell of; gone once published."""

    __tablename__ = "outbox_messages"

    id: int | None = Field(default=None, primary_key=True, sa_type=BigInteger)
    order_id: int = Field(sa_type=BigInteger)
    routing_key: str = Field(max_length=64)
    #: JSON, kept as the text that is signed and sent.
    body: str = Field(sa_type=Text)
    created_at: datetime = _time()


class StoreBindingRow(SQLModel, table=True):
    """Where a queue of the store is bound, or was when somebody last listened.

    RabbitMQ tells nobody where queues are bound: there it is a routing key that reached one.
    """

    __tablename__ = "store_bindings"

    broker: str = Field(primary_key=True, max_length=16)
    routing_key: str = Field(primary_key=True, sa_type=Text)
    pattern: str = Field(primary_key=True, sa_type=Text)
    queue: str = Field(primary_key=True, sa_type=Text)
    #: Set while messages wait because no queue is bound any more.
    missing_since: datetime | None = _time(nullable=True)
    #: On RabbitMQ a message that reached one, which may be told again to see whether it still does.
    told: str | None = Field(default=None, sa_type=Text)


class StoreQueueRow(SQLModel, table=True):
    """How much waited in a queue of the store when the relay last looked."""

    __tablename__ = "store_queues"

    broker: str = Field(primary_key=True, max_length=16)
    queue: str = Field(primary_key=True, sa_type=Text)
    unread: int = Field(sa_type=BigInteger)
    looked_at: datetime = _time()


class ReplayRow(SQLModel, table=True):
    """A wish that the store be told again what the log says, and how far it is done."""

    __tablename__ = "replays"
    __table_args__ = (Index("ix_replays_open", "id", postgresql_where="finished_at IS NULL"),)

    id: int | None = Field(default=None, primary_key=True, sa_type=BigInteger)
    reason: str = Field(sa_type=Text)
    #: Events from here on are told.
    since: datetime = _time()
    #: The only order that it is about; null: all.
    order_id: int | None = Field(default=None, sa_type=BigInteger)
    #: Orders below this id are still to be told of: the newest come first.
    before_id: int = Field(sa_type=BigInteger)
    #: How often it was begun anew, since the broker was wiped.
    rounds: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    messages: int = Field(sa_type=BigInteger, sa_column_kwargs={"server_default": "0"})
    requested_at: datetime = _time()
    finished_at: datetime | None = _time(nullable=True)


class LeaseRow(SQLModel, table=True):
    """Who alone may do something for now: gather a batch of an account, publish the outbox."""

    __tablename__ = "leases"

    name: str = Field(primary_key=True, max_length=64)
    holder: str = Field(max_length=64)
    until: datetime = _time()


class HeartbeatRow(SQLModel, table=True):
    """When a periodic activity last ran, for `/readyz` and the metrics."""

    __tablename__ = "heartbeats"

    name: str = Field(primary_key=True, sa_type=String(64))
    at: datetime = _time()


class InvariantRow(SQLModel, table=True):
    """What the last check of one invariant found, and how far along the orders it has come."""

    __tablename__ = "invariants"

    name: str = Field(primary_key=True, max_length=64)
    #: External ids of orders, or names of accounts.
    violations: list[str] = Field(default_factory=list, sa_type=JSONB)
    after_id: int = Field(default=0, sa_type=BigInteger)
    checked_at: datetime = _time()
