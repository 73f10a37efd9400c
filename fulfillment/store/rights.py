"""What the database's user may do with our tables, for whoever wants to know before work fails."""

from fulfillment.errors import RightMissing
from fulfillment.store.engine import Session

_ADDED_TO = ("SELECT", "INSERT")
_CHANGED = (*_ADDED_TO, "UPDATE")
_PASSING = (*_CHANGED, "DELETE")
#: What our statements do with each table, and nothing more.
NEEDED = {
    "account_switches": _ADDED_TO,
    "accounts": _CHANGED,
    "alembic_version": ("SELECT",),
    "attempts": _CHANGED,
    "heartbeats": _CHANGED,
    "invariants": _CHANGED,
    "leases": _PASSING,
    "order_events": _ADDED_TO,
    "orders": _CHANGED,
    "outbox_messages": (*_ADDED_TO, "DELETE"),
    "replays": _CHANGED,
    "store_bindings": _PASSING,
    "store_queues": _PASSING,
    "wallet_entries": _ADDED_TO,
    "wallets": _CHANGED,
    "webhook_deliveries": _CHANGED,
}


def lacking(session: Session) -> dict[str, str]:
    """Name tables and sequences, by the right to them that is lacking; none that are not there."""
    pairs = [(name, right) for name, rights in NEEDED.items() for right in rights]
    found = session.execute(
        "SELECT may, string_agg(name, ', ' ORDER BY name) "
        "FROM unnest(%(tables)s::text[], %(rights)s::text[]) needed(name, may) "
        "WHERE NOT has_table_privilege(to_regclass(name), may) GROUP BY may "
        "UNION ALL SELECT 'USAGE', string_agg(name, ', ' ORDER BY name) "
        "FROM (SELECT name || '_id_seq' AS name FROM unnest(%(names)s::text[]) name) numbered "
        "WHERE NOT has_sequence_privilege(to_regclass(name), 'USAGE') HAVING count(*) > 0 "
        "ORDER BY 1",
        {
            "tables": [name for name, _ in pairs],
            "rights": [right for _, right in pairs],
            "names": list(NEEDED),
        },
    )
    return dict(found)


def require(session: Session, right: str, table: str) -> None:
    """Raise RightMissing, which names both, where the user may not do this with the table."""
    query = "SELECT has_table_privilege(to_regclass(%(table)s), %(right)s)"
    if session.scalar(query, {"table": table, "right": right}) is False:
        raise RightMissing(f"{right} on {table}")
