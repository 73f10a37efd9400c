"""Indexes by which a balance that is read looks at no attempt that only waits for its end."""

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"

_UNABSORBED = "ix_attempts_unabsorbed"
_OPEN = {
    _UNABSORBED: "absorbed_at IS NULL",
    "ix_attempts_unreleased": "hold_closed_at IS NULL AND ended_at IS NOT NULL",
    "ix_attempts_unbooked": "unbooked > 0",
}


def upgrade() -> None:
    op.drop_index(_UNABSORBED, table_name="attempts")
    for name, where in _OPEN.items():
        _index(name, where)


def downgrade() -> None:
    for name in _OPEN:
        op.drop_index(name, table_name="attempts")
    _index(_UNABSORBED, "absorbed_at IS NULL OR hold_closed_at IS NULL OR unbooked > 0")


def _index(name: str, where: str) -> None:
    op.create_index(name, "attempts", ["account"], postgresql_where=sa.text(where))
