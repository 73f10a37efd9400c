"""The first tables."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None


# The log and the ledger are append-only, and a final status has one exit: also for whoever writes
# by hand. The trigger fires only on a change out of a final status, so it costs nothing else.
_GUARDS = """
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% on %: this table is append-only', TG_OP, TG_TABLE_NAME;
END $$;
CREATE TRIGGER order_events_append_only BEFORE UPDATE OR DELETE ON order_events
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER wallet_entries_append_only BEFORE UPDATE OR DELETE ON wallet_entries
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE FUNCTION refuse_exit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'order %: % is final, not followed by %', OLD.id, OLD.status, NEW.status;
END $$;
CREATE TRIGGER orders_final_status BEFORE UPDATE OF status ON orders FOR EACH ROW
    WHEN (OLD.status IN ('completed', 'reversed', 'failed', 'cancelled', 'expired')
          AND NEW.status <> OLD.status
          AND NOT (OLD.status = 'completed' AND NEW.status = 'reversed'))
    EXECUTE FUNCTION refuse_exit();
"""


def upgrade() -> None:
    op.create_table(
        "accounts",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("paused_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("pause_reason", sa.String(), nullable=True),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("budget", sa.Float(), nullable=False),
        sa.Column("poll_budget", sa.Float(), nullable=False),
        sa.Column("budget_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("catalog_items", sa.Integer(), nullable=True),
        sa.Column("catalog_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "heartbeats",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "leases",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("holder", sa.String(length=64), nullable=False),
        sa.Column("until", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "orders",
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("external_id", sa.String(length=64), nullable=False),
        sa.Column("account", sa.String(length=32), nullable=False),
        sa.Column("fingerprint", sa.String(), nullable=False),
        sa.Column("catalog_item_id", sa.String(), nullable=False),
        sa.Column("market_hash_name", sa.String(), nullable=True),
        sa.Column("expected_price_cents", sa.BigInteger(), nullable=False),
        sa.Column("trade_url_sealed", sa.LargeBinary(), nullable=True),
        sa.Column("submit_by", sa.DateTime(timezone=True), nullable=False),
        sa.Column(
            "status",
            sa.Enum(
                "received",
                "quoted",
                "awaiting_funds",
                "reserved",
                "submitting",
                "accepted",
                "queued",
                "processing",
                "pending",
                "sent",
                "completed",
                "reversed",
                "failed",
                "cancelled",
                "expired",
                "needs_review",
                name="order_status",
                native_enum=False,
                create_constraint=True,
                length=32,
            ),
            nullable=False,
        ),
        sa.Column("provider_status", sa.String(), nullable=True),
        sa.Column("reported_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("quoted_mills", sa.BigInteger(), nullable=True),
        sa.Column("charged_mills", sa.BigInteger(), nullable=True),
        sa.Column("steam_offer_id", sa.String(), nullable=True),
        sa.Column("failure_code", sa.String(), nullable=True),
        sa.Column("failure_message", sa.String(), nullable=True),
        sa.Column("failed_by", sa.String(), nullable=True),
        sa.Column("funds_deadline_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("sent_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("trade_deadline_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("overdue", sa.Boolean(), nullable=False),
        sa.Column("completed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("reversible_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("next_attempt_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("next_poll_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("polled_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("polls", sa.Integer(), nullable=False),
        sa.Column("next_watch_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("claim", sa.String(), nullable=True),
        sa.Column("claimed_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("external_id"),
    )
    op.create_index("ix_orders_account", "orders", ["account", "id"], unique=False)
    op.create_index(
        "ix_orders_next_attempt",
        "orders",
        ["account", "next_attempt_at"],
        unique=False,
        postgresql_where="next_attempt_at IS NOT NULL",
    )
    op.create_index(
        "ix_orders_next_poll",
        "orders",
        ["next_poll_at"],
        unique=False,
        postgresql_where="next_poll_at IS NOT NULL",
    )
    op.create_index(
        "ix_orders_next_watch",
        "orders",
        ["next_watch_at"],
        unique=False,
        postgresql_where="next_watch_at IS NOT NULL",
    )
    op.create_index("ix_orders_status", "orders", ["status", "id"], unique=False)
    op.create_table(
        "wallets",
        sa.Column("account", sa.String(length=32), nullable=False),
        sa.Column("figure_mills", sa.BigInteger(), nullable=True),
        sa.Column("requested_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("account"),
    )
    op.create_table(
        "attempts",
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("order_id", sa.BigInteger(), nullable=False),
        sa.Column("account", sa.String(length=32), nullable=False),
        sa.Column("external_id", sa.String(length=64), nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "reserved",
                "sending",
                "accepted",
                "completed",
                "refused",
                "ended",
                name="attempt_state",
                native_enum=False,
                create_constraint=True,
                length=32,
            ),
            nullable=False,
        ),
        sa.Column("hold_mills", sa.BigInteger(), nullable=False),
        sa.Column("body_sealed", sa.LargeBinary(), nullable=True),
        sa.Column("posts", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("sending_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_post_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("unknown_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("confirmed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("hold_closed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("absorbed_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["order_id"],
            ["orders.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("account", "external_id"),
    )
    op.create_index(
        "ix_attempts_unabsorbed",
        "attempts",
        ["account"],
        unique=False,
        postgresql_where="absorbed_at IS NULL OR hold_closed_at IS NULL",
    )
    op.create_index(
        "uq_attempts_open",
        "attempts",
        ["order_id"],
        unique=True,
        postgresql_where="state IN ('reserved', 'sending', 'accepted')",
    )
    op.create_index(
        "uq_attempts_open_hold",
        "attempts",
        ["order_id"],
        unique=True,
        postgresql_where="hold_closed_at IS NULL",
    )
    op.create_table(
        "order_events",
        sa.Column("order_id", sa.BigInteger(), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column(
            "source",
            sa.Enum(
                "intake",
                "dispatch",
                "catalog",
                "wallet",
                "submit",
                "webhook",
                "poll",
                "watchdog",
                "sweep",
                "operator",
                name="event_source",
                native_enum=False,
                create_constraint=True,
                length=32,
            ),
            nullable=False,
        ),
        sa.Column("from_status", sa.String(), nullable=True),
        sa.Column("to_status", sa.String(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("changes", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.ForeignKeyConstraint(
            ["order_id"],
            ["orders.id"],
        ),
        sa.PrimaryKeyConstraint("order_id", "sequence"),
    )
    op.create_table(
        "outbox_messages",
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("order_id", sa.BigInteger(), nullable=False),
        sa.Column("routing_key", sa.String(length=64), nullable=False),
        sa.Column("body", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("published_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["order_id"],
            ["orders.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "ix_outbox_unpublished",
        "outbox_messages",
        ["id"],
        unique=False,
        postgresql_where="published_at IS NULL",
    )
    op.create_table(
        "webhook_deliveries",
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("account", sa.String(length=32), nullable=False),
        sa.Column("order_id", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("signed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("report", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("next_apply_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("applied_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("outcome", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["order_id"],
            ["orders.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("account", "digest"),
    )
    op.create_index(
        "ix_webhook_deliveries_due",
        "webhook_deliveries",
        ["next_apply_at"],
        unique=False,
        postgresql_where="next_apply_at IS NOT NULL",
    )
    op.create_index(
        op.f("ix_webhook_deliveries_order_id"), "webhook_deliveries", ["order_id"], unique=False
    )
    op.create_table(
        "wallet_entries",
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("account", sa.String(length=32), nullable=False),
        sa.Column("order_id", sa.BigInteger(), nullable=False),
        sa.Column("attempt_id", sa.BigInteger(), nullable=False),
        sa.Column(
            "kind",
            sa.Enum(
                "hold",
                "settle",
                "release",
                "refund",
                name="entry_kind",
                native_enum=False,
                create_constraint=True,
                length=32,
            ),
            nullable=False,
        ),
        sa.Column("amount_mills", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["attempt_id"],
            ["attempts.id"],
        ),
        sa.ForeignKeyConstraint(
            ["order_id"],
            ["orders.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("attempt_id", "kind"),
    )
    op.create_index("ix_wallet_entries_order", "wallet_entries", ["order_id"], unique=False)
    op.execute(_GUARDS)


def downgrade() -> None:
    op.drop_index("ix_wallet_entries_order", table_name="wallet_entries")
    op.drop_table("wallet_entries")
    op.drop_index(op.f("ix_webhook_deliveries_order_id"), table_name="webhook_deliveries")
    op.drop_index(
        "ix_webhook_deliveries_due",
        table_name="webhook_deliveries",
        postgresql_where="next_apply_at IS NOT NULL",
    )
    op.drop_table("webhook_deliveries")
    op.drop_index(
        "ix_outbox_unpublished",
        table_name="outbox_messages",
        postgresql_where="published_at IS NULL",
    )
    op.drop_table("outbox_messages")
    op.drop_table("order_events")
    op.drop_index(
        "uq_attempts_open_hold", table_name="attempts", postgresql_where="hold_closed_at IS NULL"
    )
    op.drop_index(
        "uq_attempts_open",
        table_name="attempts",
        postgresql_where="state IN ('reserved', 'sending', 'accepted')",
    )
    op.drop_index(
        "ix_attempts_unabsorbed",
        table_name="attempts",
        postgresql_where="absorbed_at IS NULL OR hold_closed_at IS NULL",
    )
    op.drop_table("attempts")
    op.drop_table("wallets")
    op.drop_index("ix_orders_status", table_name="orders")
    op.drop_index(
        "ix_orders_next_watch", table_name="orders", postgresql_where="next_watch_at IS NOT NULL"
    )
    op.drop_index(
        "ix_orders_next_poll", table_name="orders", postgresql_where="next_poll_at IS NOT NULL"
    )
    op.drop_index(
        "ix_orders_next_attempt",
        table_name="orders",
        postgresql_where="next_attempt_at IS NOT NULL",
    )
    op.drop_index("ix_orders_account", table_name="orders")
    op.drop_table("orders")
    op.drop_table("leases")
    op.drop_table("heartbeats")
    op.drop_table("accounts")
    op.execute("DROP FUNCTION refuse_change, refuse_exit")
