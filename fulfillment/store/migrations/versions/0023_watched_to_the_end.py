"""Who was overdue before was watched no more: a day after the window it is a person's now."""

from alembic import op

revision = "0023"
down_revision = "0022"


def upgrade() -> None:
    op.execute(
        "UPDATE orders SET next_watch_at = trade_deadline_at + interval '1 day' "
        "WHERE status = 'sent' AND overdue AND next_watch_at IS NULL"
    )


def downgrade() -> None:
    """Code of before watches such an order once more, and leaves it then."""
