"""The webhook inbox: a verified delivery is stored once, answered at once and applied later."""

from collections.abc import Collection
from datetime import datetime
from typing import Any, NamedTuple

from fulfillment.store.engine import Session

_ADD = """
    INSERT INTO webhook_deliveries (account, order_id, digest, signed_at, received_at, report,
                                    next_apply_at, outcome)
    SELECT CAST(%(account)s AS text), id, %(digest)s, %(signed_at)s, %(now)s,
           CAST(%(report)s AS jsonb), %(now)s, ''
      FROM orders WHERE {which}
    ON CONFLICT (account, digest) DO NOTHING RETURNING id
"""
_ADD_TO = _ADD.format(which="id = %(order_id)s")
_ADD_BY_NAME = _ADD.format(which="external_id = %(external_id)s AND account = %(account)s")


class Delivery(NamedTuple):
    """What is kept of a verified delivery: `digest` identifies its signed bytes.

    `report` is the report as JSON, or None where the body must not be applied.
    """

    account: str
    digest: str
    signed_at: datetime | None
    report: str | None
    now: datetime


def add(session: Session, order_id: int, delivery: Delivery) -> int | None:
    """Store a delivery and give its id; None where exactly these signed bytes are known."""
    row = session.one(_ADD_TO, {"order_id": order_id, **delivery._asdict()})
    return row.id if row else None


def add_by_name(session: Session, external_id: str, delivery: Delivery) -> int | None:
    """Store one about the account's own order of that name; None where it is known or has none."""
    row = session.one(_ADD_BY_NAME, {"external_id": external_id, **delivery._asdict()})
    return row.id if row else None


def add_again(session: Session, account: str, digest: str, now: datetime) -> int | None:
    """Have a delivery that was applied applied once more; give its id, None where it waits.

    Each time half as long again after it came first, so that repetitions without end cost little.
    """
    row = session.one(
        """
            UPDATE webhook_deliveries SET next_apply_at = %(now)s
             WHERE account = %(account)s AND digest = %(digest)s AND applied_at IS NOT NULL
               AND next_apply_at IS NULL
               AND %(now)s - applied_at >= (applied_at - received_at) / 2 RETURNING id
            """,
        {"account": account, "digest": digest, "now": now},
    )
    return row.id if row else None


def claim(
    session: Session, now: datetime, until: datetime, limit: int
) -> list[tuple[int, str, int, dict[str, Any] | None]]:
    """Claim due deliveries, the longest due first: id, account, order id, report."""
    rows = session.execute(
        """
            UPDATE webhook_deliveries SET next_apply_at = %(until)s WHERE id = ANY(ARRAY(
                SELECT id FROM webhook_deliveries WHERE next_apply_at <= %(now)s
                 ORDER BY next_apply_at, id LIMIT %(limit)s FOR UPDATE SKIP LOCKED))
            RETURNING id, account, order_id, report
            """,
        {"now": now, "until": until, "limit": limit},
    )
    return sorted((row.id, row.account, row.order_id, row.report) for row in rows)


def mark_applied(session: Session, outcomes: dict[int, str], now: datetime) -> None:
    """Note what came of deliveries."""
    session.execute(
        "UPDATE webhook_deliveries d SET applied_at = %(now)s, next_apply_at = NULL, "
        "outcome = o.outcome "
        "FROM unnest(CAST(%(ids)s AS bigint[]), CAST(%(outcomes)s AS text[])) "
        "AS o(id, outcome) WHERE d.id = o.id",
        {"ids": list(outcomes), "outcomes": list(outcomes.values()), "now": now},
    )


def erase_reports(session: Session, delivery_ids: Collection[int]) -> None:
    """Erase what applied deliveries told of orders that are erased; that they came is kept."""
    query = "UPDATE webhook_deliveries SET report = NULL WHERE id = ANY(%(ids)s)"
    session.execute(query, {"ids": list(delivery_ids)})


def is_due(session: Session, now: datetime) -> bool:
    """Say whether deliveries wait whose hint was lost."""
    # The smallest, and not EXISTS: without its values that is planned as a look at all rows.
    query = "SELECT min(next_apply_at) <= %(now)s FROM webhook_deliveries"
    return bool(session.scalar(query, {"now": now}))
