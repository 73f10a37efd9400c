"""Who may have what was begun, so that a changed account is no witness of it."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"

_INDEX = "ix_attempts_strange"


def upgrade() -> None:
    op.add_column("attempts", sa.Column("merchant", sa.Text(), nullable=True))
    since = sa.Column("strange_since", sa.DateTime(timezone=True), nullable=True)
    op.add_column("attempts", since)
    where = sa.text("strange_since IS NOT NULL")
    op.create_index(_INDEX, "attempts", ["order_id"], postgresql_where=where)


def downgrade() -> None:
    op.drop_index(_INDEX, table_name="attempts")
    for name in ("strange_since", "merchant"):
        op.drop_column("attempts", name)
