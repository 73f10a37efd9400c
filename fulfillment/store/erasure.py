"""Erasing what must not be kept of orders that are over: trade URLs, sent bodies, what was told."""

from collections.abc import Collection, Mapping
from datetime import datetime
from itertools import starmap
from typing import NamedTuple

from fulfillment.store.engine import Session

_KEY_ID = "substring({0} FOR greatest(position(':'::bytea IN {0}) - 1, 0))"
#: Whether one of `key_ids`, as bytes, is named as the key of an order's trade URL.
IS_READABLE = f"{_KEY_ID.format('trade_url_sealed')} = ANY(CAST(%(key_ids)s AS bytea[]))"
# Over for good: final, nothing due any more, and no trade that could still be undone. What is asked
# about for longer than any watch lasts, since nobody answers or it never ends, is over as well.
_DUE = f"""
    SELECT id, external_id, trade_url_sealed, updated_at <= %(unreadable_before)s AS is_long_over
      FROM orders
     WHERE trade_url_sealed IS NOT NULL
       AND status IN ('completed', 'reversed', 'failed', 'cancelled', 'expired')
       AND updated_at <= %(before)s AND coalesce(reversible_until, updated_at) <= %(before)s
       AND (next_poll_at IS NULL OR greatest(updated_at, reversible_until) <= %(asked_before)s)
       AND ({IS_READABLE} OR updated_at <= %(unreadable_before)s)
       AND id <> ALL(%(left)s)
     ORDER BY updated_at LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED
    """  # noqa: S608 - constants
_ERASE = """
    WITH erased AS (
        UPDATE orders o SET trade_url_sealed = NULL, trade_url_hash = h.hash
          FROM unnest(CAST(%(ids)s AS bigint[]), CAST(%(hashes)s AS text[])) AS h(id, hash)
         WHERE o.id = h.id
    ), heard AS (
        UPDATE webhook_deliveries SET report = NULL
         WHERE order_id = ANY(CAST(%(ids)s AS bigint[])) AND report IS NOT NULL
           AND applied_at IS NOT NULL AND next_apply_at IS NULL)
    UPDATE attempts SET body_sealed = NULL
     WHERE order_id = ANY(CAST(%(ids)s AS bigint[])) AND body_sealed IS NOT NULL
    """
_KEY_IDS = f"""
    SELECT DISTINCT convert_from({_KEY_ID.format("sealed")}, 'UTF8')
      FROM (SELECT trade_url_sealed FROM orders WHERE trade_url_sealed IS NOT NULL
            UNION ALL SELECT body_sealed FROM attempts WHERE body_sealed IS NOT NULL) AS s(sealed)
    """  # noqa: S608 - constants


class Erasable(NamedTuple):
    """An order whose sealed data is to go, be it only readable by others if it is long over."""

    id: int
    external_id: str
    trade_url_sealed: bytes
    is_long_over: bool


def lock_due(
    session: Session,
    before: datetime,
    asked_before: datetime,
    unreadable_before: datetime,
    key_ids: Collection[str],
    limit: int,
    left: Collection[int] = (),
) -> list[Erasable]:
    """Lock orders that were over `before`, oldest first, but those that are `left` this time.

    What is still asked about is left until it was over `asked_before`, and what none of these keys
    has sealed until it was over `unreadable_before`.
    """
    values = {
        "before": before,
        "asked_before": asked_before,
        "unreadable_before": unreadable_before,
        "key_ids": [each.encode() for each in key_ids],
        "limit": limit,
        "left": list(left),
    }
    return list(starmap(Erasable, session.rows(_DUE, values)))


def erase(session: Session, hashes: Mapping[int, str | None]) -> None:
    """Erase the sealed data of orders, by id, and what webhooks told of them.

    Their trade URLs' hashes stay, and the deliveries' digests: what comes again is known. What a
    delivery that waits has told goes when it is applied.
    """
    session.execute(_ERASE, {"ids": list(hashes), "hashes": list(hashes.values())})


def key_ids(session: Session) -> set[str]:
    """Name the keys with which something is sealed that is still kept; reads all of it."""
    return {row[0] for row in session.execute(_KEY_IDS)}
