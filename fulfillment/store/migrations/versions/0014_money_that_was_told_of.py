"""How much of the money that nobody of us took has stopped the account already."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    column = sa.Column("stopped_at_mills", sa.BigInteger(), nullable=False, server_default="0")
    op.add_column("wallets", column)
    # Whoever resumed an account after its wallet stopped it is not to be stopped for the same.
    op.execute(
        "UPDATE wallets SET stopped_at_mills = unexplained_mills "
        "WHERE account IN (SELECT account FROM account_switches WHERE by = 'wallet watch')"
    )


def downgrade() -> None:
    op.drop_column("wallets", "stopped_at_mills")
