"""What a wallet's balance should be by our own books, so that nothing open can hide a gap."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

_INDEX = "ix_attempts_unabsorbed"
_OPEN = "absorbed_at IS NULL OR hold_closed_at IS NULL"


def upgrade() -> None:
    for name in ("opening_mills", "expected_mills"):
        op.add_column("wallets", sa.Column(name, sa.BigInteger(), nullable=True))
    credited = sa.Column("credited_mills", sa.BigInteger(), nullable=False, server_default="0")
    op.add_column("wallets", credited)
    booked = sa.Column("booked_mills", sa.BigInteger(), nullable=False, server_default="0")
    op.add_column("attempts", booked)
    op.add_column(
        "attempts", sa.Column("unbooked", sa.Integer(), nullable=False, server_default="0")
    )
    # A wallet's proof begins at the first balance that is read while nothing is open.
    op.execute(
        "UPDATE attempts a SET booked_mills = coalesce(s.amount_mills, a.hold_mills) "
        "- coalesce(r.amount_mills, 0) FROM attempts b "
        "LEFT JOIN wallet_entries s ON s.attempt_id = b.id AND s.kind = 'settle' "
        "LEFT JOIN wallet_entries r ON r.attempt_id = b.id AND r.kind = 'refund' "
        "WHERE a.id = b.id AND a.absorbed_at IS NOT NULL AND a.state <> 'refused' "
        "AND NOT (a.state = 'ended' AND a.hold_closed_at IS NOT NULL)"
    )
    _index(f"{_OPEN} OR unbooked > 0")


def downgrade() -> None:
    _index(_OPEN)
    for name in ("unbooked", "booked_mills"):
        op.drop_column("attempts", name)
    for name in ("credited_mills", "expected_mills", "opening_mills"):
        op.drop_column("wallets", name)


def _index(where: str) -> None:
    op.drop_index(_INDEX, table_name="attempts")
    op.create_index(_INDEX, "attempts", ["account"], postgresql_where=sa.text(where))
