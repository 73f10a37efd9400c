"""The outbox keeps what waits only, as the text that is sent; rows that change often have room.

A page with room for an order's next versions takes them without touching the indexes. The outbox
needs no foreign key: its rows are written with the order's and live for a moment.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.execute("DELETE FROM outbox_messages WHERE published_at IS NOT NULL")
    op.drop_index("ix_outbox_unpublished", table_name="outbox_messages")
    op.drop_column("outbox_messages", "published_at")
    op.alter_column("outbox_messages", "body", type_=sa.Text(), postgresql_using="body::text")
    op.drop_constraint("outbox_messages_order_id_fkey", "outbox_messages")
    for table in ("orders", "attempts"):
        op.execute(f"ALTER TABLE {table} SET (fillfactor = 60)")


def downgrade() -> None:
    for table in ("orders", "attempts"):
        op.execute(f"ALTER TABLE {table} RESET (fillfactor)")
    op.create_foreign_key(
        "outbox_messages_order_id_fkey", "outbox_messages", "orders", ["order_id"], ["id"]
    )
    op.alter_column(
        "outbox_messages", "body", type_=postgresql.JSONB(), postgresql_using="body::jsonb"
    )
    op.add_column(
        "outbox_messages", sa.Column("published_at", sa.DateTime(timezone=True), nullable=True)
    )
    op.create_index(
        "ix_outbox_unpublished",
        "outbox_messages",
        ["id"],
        postgresql_where="published_at IS NULL",
    )
