"""How much of a wallet's money went without an order of ours, so that metrics can show it."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    column = sa.Column("unexplained_mills", sa.BigInteger(), nullable=False, server_default="0")
    op.add_column("wallets", column)


def downgrade() -> None:
    op.drop_column("wallets", "unexplained_mills")
