"""What is doubted: a no that no contract knows, and whatever a restored database does not know."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.add_column("attempts", sa.Column("odd_refusal", sa.Text(), nullable=True))
    op.add_column("orders", sa.Column("searched_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("accounts", sa.Column("server", sa.Text(), nullable=True))
    for name in ("doubted_since", "doubted_until"):
        op.add_column("accounts", sa.Column(name, sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    for name in ("doubted_until", "doubted_since", "server"):
        op.drop_column("accounts", name)
    op.drop_column("orders", "searched_at")
    op.drop_column("attempts", "odd_refusal")
