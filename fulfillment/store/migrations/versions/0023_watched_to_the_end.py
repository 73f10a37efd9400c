"""Who was overdue before was watched no more: it is looked at once, and in the end a person's."""

from alembic import op

revision = "0023"
down_revision = "0022"


def upgrade() -> None:
    op.execute(
        "UPDATE orders SET next_watch_at = now() "
        "WHERE status = 'sent' AND overdue AND next_watch_at IS NULL"
    )


def downgrade() -> None:
    """Code of before watches such an order once more, and leaves it then."""
