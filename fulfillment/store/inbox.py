"""The webhook inbox: a verified delivery is stored once, answered at once and applied later."""

from datetime import datetime
from typing import Any

from fulfillment.store.engine import Session


def add(
    session: Session,
    account: str,
    order_id: int,
    digest: str,
    signed_at: datetime | None,
    report: str | None,
    now: datetime,
) -> int | None:
    """Store a delivery and give its id; None where exactly these signed bytes are known.

    `report` is the report as JSON, or None where the body must not be applied.
    """
    row = session.one(
        """
            INSERT INTO webhook_deliveries (account, order_id, digest, signed_at, received_at,
                                            report, next_apply_at, outcome)
            VALUES (%(account)s, %(order_id)s, %(digest)s, %(signed_at)s, %(now)s,
                    CAST(%(report)s AS jsonb), %(now)s, '')
            ON CONFLICT (account, digest) DO NOTHING RETURNING id
            """,
        {
            "account": account,
            "order_id": order_id,
            "digest": digest,
            "signed_at": signed_at,
            "report": report,
            "now": now,
        },
    )
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


def is_due(session: Session, now: datetime) -> bool:
    """Say whether deliveries wait whose hint was lost."""
    # The smallest, and not EXISTS: without its values that is planned as a look at all rows.
    query = "SELECT min(next_apply_at) <= %(now)s FROM webhook_deliveries"
    return bool(session.scalar(query, {"now": now}))
