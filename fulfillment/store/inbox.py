"""The webhook inbox: a verified delivery is stored once, answered at once and applied later."""

from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlmodel import Session


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
    row = session.execute(
        text(
            """
            INSERT INTO webhook_deliveries (account, order_id, digest, signed_at, received_at,
                                            report, next_apply_at, outcome)
            VALUES (:account, :order_id, :digest, :signed_at, :now, CAST(:report AS jsonb),
                    :now, '')
            ON CONFLICT (account, digest) DO NOTHING RETURNING id
            """
        ),
        {
            "account": account,
            "order_id": order_id,
            "digest": digest,
            "signed_at": signed_at,
            "report": report,
            "now": now,
        },
    ).first()
    return row.id if row else None


def claim(
    session: Session, delivery_id: int | None, now: datetime, until: datetime, limit: int
) -> list[tuple[int, str, int, dict[str, Any] | None]]:
    """Claim due deliveries (or the one named): id, account, order id, report."""
    rows = session.execute(
        text(
            """
            UPDATE webhook_deliveries SET next_apply_at = :until WHERE id IN (
                SELECT id FROM webhook_deliveries WHERE next_apply_at <= :now
                   AND (CAST(:id AS bigint) IS NULL OR id = :id)
                 ORDER BY id LIMIT :limit FOR UPDATE SKIP LOCKED)
            RETURNING id, account, order_id, report
            """
        ),
        {"id": delivery_id, "now": now, "until": until, "limit": limit},
    )
    return sorted((row.id, row.account, row.order_id, row.report) for row in rows)


def mark_applied(session: Session, outcomes: dict[int, str], now: datetime) -> None:
    """Note what came of deliveries."""
    session.execute(
        text(
            "UPDATE webhook_deliveries d SET applied_at = :now, next_apply_at = NULL, "
            "outcome = o.outcome FROM unnest(CAST(:ids AS bigint[]), CAST(:outcomes AS text[])) "
            "AS o(id, outcome) WHERE d.id = o.id"
        ),
        {"ids": list(outcomes), "outcomes": list(outcomes.values()), "now": now},
    )


def is_due(session: Session, now: datetime) -> bool:
    """Say whether deliveries wait whose hint was lost."""
    row = session.execute(
        text("SELECT EXISTS (SELECT 1 FROM webhook_deliveries WHERE next_apply_at <= :now)"),
        {"now": now},
    )
    return bool(row.scalar_one())
