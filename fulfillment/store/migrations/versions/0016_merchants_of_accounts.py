"""Which merchant an account was last, and which one it was before that."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    for name in ("merchant", "merchant_before"):
        op.add_column("accounts", sa.Column(name, sa.Text(), nullable=True))
    column = sa.Column("merchant_left_at", sa.DateTime(timezone=True), nullable=True)
    op.add_column("accounts", column)


def downgrade() -> None:
    for name in ("merchant_left_at", "merchant_before", "merchant"):
        op.drop_column("accounts", name)
