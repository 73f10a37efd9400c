"""How many polls of an order have failed since one was answered: it is asked about less often."""

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"


def upgrade() -> None:
    failed = sa.Column("failed_polls", sa.Integer(), nullable=False, server_default="0")
    op.add_column("orders", failed)


def downgrade() -> None:
    op.drop_column("orders", "failed_polls")
