"""What the database's user may do with our tables, for whoever wants to know before work fails."""

from fulfillment.store.engine import Session
from schemas.tables import OrderRow

#: Of the others some are only added to, and some only added to and emptied.
_CHANGED = ("accounts", "attempts", "orders", "wallets")


def lacking(session: Session) -> dict[str, str]:
    """Name tables and sequences, by the right to them that is lacking; none that are not there."""
    found = session.execute(
        "SELECT may, string_agg(name, ', ' ORDER BY name) "
        "FROM unnest(%(names)s::text[]) name, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE']) may "
        "WHERE NOT has_table_privilege(to_regclass(name), may) "
        "AND (may <> 'UPDATE' OR name = ANY(%(changed)s)) GROUP BY may "
        "UNION ALL SELECT 'USAGE', string_agg(name, ', ' ORDER BY name) "
        "FROM (SELECT name || '_id_seq' AS name FROM unnest(%(names)s::text[]) name) numbered "
        "WHERE NOT has_sequence_privilege(to_regclass(name), 'USAGE') HAVING count(*) > 0 "
        "ORDER BY 1",
        {"names": list(OrderRow.metadata.tables), "changed": list(_CHANGED)},
    )
    return dict(found)
