"""Orders may have a route: accounts that are tried in turn."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    # Code of the version before goes on to insert orders without the columns.
    op.add_column("orders", sa.Column("route", sa.String(length=32), nullable=True))
    op.add_column(
        "orders",
        sa.Column("fallbacks", postgresql.JSONB(), nullable=False, server_default="[]"),
    )
    op.add_column(
        "orders",
        sa.Column("between_attempts", sa.Boolean(), nullable=False, server_default="false"),
    )
    op.add_column("orders", sa.Column("quoted_item_id", sa.String(), nullable=True))


def downgrade() -> None:
    op.drop_column("orders", "quoted_item_id")
    op.drop_column("orders", "between_attempts")
    op.drop_column("orders", "fallbacks")
    op.drop_column("orders", "route")
