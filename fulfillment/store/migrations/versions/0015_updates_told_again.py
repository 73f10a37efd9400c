"""Where the store listens, and what it is to be told again."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    op.add_column("order_events", sa.Column("told", postgresql.JSONB(), nullable=True))
    op.create_table(
        "store_bindings",
        sa.Column("broker", sa.String(length=16), nullable=False),
        sa.Column("routing_key", sa.Text(), nullable=False),
        sa.Column("pattern", sa.Text(), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("missing_since", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("broker", "routing_key", "pattern", "queue"),
    )
    op.create_table(
        "replays",
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("order_id", sa.BigInteger(), nullable=True),
        sa.Column("before_id", sa.BigInteger(), nullable=False),
        sa.Column("rounds", sa.Integer(), server_default="0", nullable=False),
        sa.Column("messages", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("requested_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_replays_open", "replays", ["id"], postgresql_where="finished_at IS NULL")


def downgrade() -> None:
    op.drop_table("replays")
    op.drop_table("store_bindings")
    op.drop_column("order_events", "told")
