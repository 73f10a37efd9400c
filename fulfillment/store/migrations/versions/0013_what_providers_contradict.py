"""What providers tell beside an order's status, orders that stall, charges that are told anew.

An adjusting entry belongs to no attempt: the code before this one relies on each kind of entry
being there once an attempt, and a charge may be told anew more than once.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0013"
down_revision = "0012"

_KINDS = ("hold", "settle", "release", "refund")
_EARLY = "status IN ('accepted', 'queued', 'processing', 'pending') AND next_watch_at IS NULL"


def upgrade() -> None:
    op.add_column("orders", sa.Column("told_status", sa.String(length=32), nullable=True))
    op.add_column(
        "orders",
        sa.Column("contradictions", postgresql.JSONB(), nullable=False, server_default="[]"),
    )
    op.alter_column("wallet_entries", "attempt_id", nullable=True)
    _allow(*_KINDS, "adjust")
    # What is under way at a provider already may take a day from now.
    op.execute(f"UPDATE orders SET next_watch_at = now() + interval '1 day' WHERE {_EARLY}")  # noqa: S608


def downgrade() -> None:
    for name in ("contradictions", "told_status"):
        op.drop_column("orders", name)
    _allow(*_KINDS)


def _allow(*kinds: str) -> None:
    """Allow these kinds from now on; rows that are there are not read again for it."""
    words = ", ".join(f"'{kind}'" for kind in kinds)
    op.drop_constraint("entry_kind", "wallet_entries")
    op.execute(
        f"ALTER TABLE wallet_entries ADD CONSTRAINT entry_kind CHECK (kind IN ({words})) NOT VALID"
    )
