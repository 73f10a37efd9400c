"""How much waits in each of the store's queues: a store that stops reading is told of."""

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"


def upgrade() -> None:
    op.create_table(
        "store_queues",
        sa.Column("broker", sa.String(length=16), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("unread", sa.BigInteger(), nullable=False),
        sa.Column("looked_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("broker", "queue"),
    )


def downgrade() -> None:
    op.drop_table("store_queues")
