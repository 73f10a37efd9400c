"""The kill switch, what the invariants' checks found, and erased trade URLs' hashes."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"

_GUARD = """
CREATE TRIGGER account_switches_append_only BEFORE UPDATE OR DELETE ON account_switches
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
"""
_OVER = """
trade_url_sealed IS NOT NULL
AND status IN ('completed', 'reversed', 'failed', 'cancelled', 'expired')
"""


def upgrade() -> None:
    op.create_table(
        "account_switches",
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("account", sa.String(length=32), nullable=False),
        sa.Column("is_stopped", sa.Boolean(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_account_switches_account", "account_switches", ["account", "id"])
    op.execute(_GUARD)
    op.create_table(
        "invariants",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("violations", postgresql.JSONB(), nullable=False),
        sa.Column("after_id", sa.BigInteger(), nullable=False),
        sa.Column("checked_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.add_column("orders", sa.Column("trade_url_hash", sa.String(), nullable=True))
    op.create_index("ix_orders_erasable", "orders", ["updated_at"], postgresql_where=_OVER)
    op.create_index("ix_attempts_order", "attempts", ["order_id"])
    op.create_index(
        "ix_attempts_spent",
        "attempts",
        ["account", "confirmed_at"],
        postgresql_where="state <> 'refused'",
    )


def downgrade() -> None:
    op.drop_index("ix_attempts_spent", table_name="attempts")
    op.drop_index("ix_attempts_order", table_name="attempts")
    op.drop_index("ix_orders_erasable", table_name="orders")
    op.drop_column("orders", "trade_url_hash")
    op.drop_table("invariants")
    op.drop_table("account_switches")
