"""A part of each account's rate budget is kept for submits."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    # Code of the version before goes on to insert accounts without the column.
    op.add_column(
        "accounts", sa.Column("submit_budget", sa.Float(), nullable=False, server_default="0")
    )


def downgrade() -> None:
    op.drop_column("accounts", "submit_budget")
