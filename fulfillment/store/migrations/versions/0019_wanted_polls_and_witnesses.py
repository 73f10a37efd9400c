"""When somebody last wanted an order to be asked about, until a question surely answers that.

And of each of the store's routing keys a message that was heard, which tells whether it still is.
"""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"


def upgrade() -> None:
    op.add_column("orders", sa.Column("poll_wanted_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("store_bindings", sa.Column("told", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("store_bindings", "told")
    op.drop_column("orders", "poll_wanted_at")
