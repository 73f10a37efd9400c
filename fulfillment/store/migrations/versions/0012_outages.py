"""What tells of outages: purchases apart from reads, and names that a search found nothing of."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    until = sa.Column("purchases_paused_until", sa.DateTime(timezone=True), nullable=True)
    names = sa.ARRAY(sa.Text())
    for name in ("purchases_unanswered", "purchase_pauses"):
        op.add_column("accounts", sa.Column(name, sa.Integer(), nullable=False, server_default="0"))
    op.add_column("accounts", until)
    op.add_column("accounts", sa.Column("purchase_pause_reason", sa.Text(), nullable=True))
    op.add_column(
        "accounts", sa.Column("catalog_missed", names, nullable=False, server_default="{}")
    )


def downgrade() -> None:
    for name in (
        "catalog_missed",
        "purchase_pause_reason",
        "purchases_paused_until",
        "purchase_pauses",
        "purchases_unanswered",
    ):
        op.drop_column("accounts", name)
