"""The logs are checked against their orders no more: orders cannot be deleted instead.

For each row the check read and locked the order's row once more, just after the statement that
writes the row had changed it: a third of what an event cost.
"""

from alembic import op

revision = "0007"
down_revision = "0006"

_KEYS = (
    ("order_events_order_id_fkey", "order_events"),
    ("wallet_entries_order_id_fkey", "wallet_entries"),
)


def upgrade() -> None:
    for name, table in _KEYS:
        op.drop_constraint(name, table)
    op.execute(
        "CREATE TRIGGER orders_stay BEFORE DELETE ON orders "
        "FOR EACH ROW EXECUTE FUNCTION refuse_change()"
    )


def downgrade() -> None:
    op.execute("DROP TRIGGER orders_stay ON orders")
    for name, table in _KEYS:
        op.create_foreign_key(name, table, "orders", ["order_id"], ["id"])
