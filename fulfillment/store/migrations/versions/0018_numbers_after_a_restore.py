"""Messages to the store that are newer than any that it had before a restore."""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"


def upgrade() -> None:
    op.add_column("order_events", sa.Column("told_from", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    op.drop_column("order_events", "told_from")
