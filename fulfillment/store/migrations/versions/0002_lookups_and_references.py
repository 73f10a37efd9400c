"""Empty lookups of unknown attempts are counted, and the provider's own order ids are kept."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_REFERENCE = "ix_orders_provider_reference"


def upgrade() -> None:
    # Code of the version before goes on to insert attempts without the column.
    op.add_column(
        "attempts", sa.Column("empty_lookups", sa.Integer(), nullable=False, server_default="0")
    )
    op.add_column("attempts", sa.Column("empty_since", sa.DateTime(timezone=True), nullable=True))
    op.add_column("attempts", sa.Column("empty_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("orders", sa.Column("provider_reference", sa.String(), nullable=True))
    op.create_index(
        _REFERENCE,
        "orders",
        ["account", "provider_reference"],
        unique=False,
        postgresql_where="provider_reference IS NOT NULL",
    )


def downgrade() -> None:
    op.drop_index(_REFERENCE, table_name="orders")
    op.drop_column("orders", "provider_reference")
    op.drop_column("attempts", "empty_at")
    op.drop_column("attempts", "empty_since")
    op.drop_column("attempts", "empty_lookups")
