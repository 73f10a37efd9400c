"""Erasing what must not be kept: trade URLs and sent bodies of orders that are over."""

from collections.abc import Mapping
from datetime import datetime

from fulfillment.store.engine import Session

# Over for good: final, nothing due any more, and no trade that could still be undone.
_DUE = """
    SELECT id, external_id, trade_url_sealed FROM orders
     WHERE trade_url_sealed IS NOT NULL
       AND status IN ('completed', 'reversed', 'failed', 'cancelled', 'expired')
       AND updated_at <= %(before)s AND coalesce(reversible_until, updated_at) <= %(before)s
       AND next_poll_at IS NULL
       AND (split_part(encode(trade_url_sealed, 'escape'), ':', 1) = ANY(%(key_ids)s)
            OR updated_at <= %(unreadable_before)s)
     ORDER BY updated_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
    """
_ERASE = """
    WITH erased AS (
        UPDATE orders o SET trade_url_sealed = NULL, trade_url_hash = h.hash
          FROM unnest(CAST(%(ids)s AS bigint[]), CAST(%(hashes)s AS text[])) AS h(id, hash)
         WHERE o.id = h.id)
    UPDATE attempts SET body_sealed = NULL
     WHERE order_id = ANY(CAST(%(ids)s AS bigint[])) AND body_sealed IS NOT NULL
    """
_KEY_IDS = """
    SELECT DISTINCT convert_from(
               substring(sealed FOR greatest(position(':'::bytea IN sealed) - 1, 0)), 'UTF8')
      FROM (SELECT trade_url_sealed FROM orders WHERE trade_url_sealed IS NOT NULL
            UNION ALL SELECT body_sealed FROM attempts WHERE body_sealed IS NOT NULL) AS s(sealed)
    """


def lock_due(
    session: Session, before: datetime, unreadable_before: datetime, key_ids: set[str], limit: int
) -> list[tuple[int, str, bytes]]:
    """Lock orders that were over `before`: id, external id and sealed trade URL, oldest first.

    What none of these keys has sealed is left until it was over `unreadable_before`.
    """
    values = {
        "before": before,
        "unreadable_before": unreadable_before,
        "key_ids": list(key_ids),
        "limit": limit,
    }
    rows = session.execute(_DUE, values)
    return [(row.id, row.external_id, bytes(row.trade_url_sealed)) for row in rows]


def erase(session: Session, hashes: Mapping[int, str | None]) -> None:
    """Erase the sealed data of orders, by id; their trade URLs' hashes stay."""
    session.execute(_ERASE, {"ids": list(hashes), "hashes": list(hashes.values())})


def key_ids(session: Session) -> set[str]:
    """Name the keys with which something is sealed that is still kept; reads all of it."""
    return {row[0] for row in session.execute(_KEY_IDS)}
