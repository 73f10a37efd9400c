"""Messages to the store that are newer than any before a restore, and late words told once."""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"


def upgrade() -> None:
    op.add_column("accounts", sa.Column("told_from", sa.BigInteger(), nullable=True))
    op.add_column("order_events", sa.Column("told_from", sa.BigInteger(), nullable=True))
    op.add_column("orders", sa.Column("late_words", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("orders", "late_words")
    op.drop_column("order_events", "told_from")
    op.drop_column("accounts", "told_from")
