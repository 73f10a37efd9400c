"""Figures for `/metrics` and the console, read from the tables."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from fulfillment.store import leases
from fulfillment.store.engine import Session


@dataclass(frozen=True, slots=True)
class Gauges:
    """How things stand now; ages are in seconds."""

    orders: dict[tuple[str, str], int]
    overdue: int
    capped: dict[str, int]
    unexplained_mills: dict[str, int]
    balance_age_s: dict[str, float]
    oldest_attempt_age_s: float
    oldest_poll_age_s: float
    outbox_waiting: int
    outbox_age_s: float
    tick_age_s: dict[str, float]


def measure(session: Session, now: datetime, outbox_waiting: int, outbox_age: timedelta) -> Gauges:
    """Count orders by account and status, and how long the longest waiting thing is overdue."""
    counted = session.execute(
        "SELECT account, status, count(*) AS n FROM orders GROUP BY account, status"
    )
    row = session.one(
        """
            SELECT (SELECT count(*) FROM orders WHERE status = 'sent' AND overdue) AS overdue,
                   (SELECT min(next_attempt_at) FROM orders
                     WHERE next_attempt_at IS NOT NULL) AS attempt,
                   (SELECT min(next_poll_at) FROM orders WHERE next_poll_at IS NOT NULL) AS poll
            """
    )

    # Without a deadline for funds it is the spend cap that an order waits for.
    capped = session.execute(
        "SELECT account, count(*) AS n FROM orders WHERE status = 'awaiting_funds' "
        "AND funds_deadline_at IS NULL GROUP BY account"
    )
    wallets = session.execute("SELECT account, unexplained_mills, requested_at FROM wallets")

    def age(due: datetime | None) -> float:
        return max((now - due).total_seconds(), 0.0) if due else 0.0

    return Gauges(
        orders={(r.account, r.status): r.n for r in counted},
        overdue=row.overdue,
        capped={r.account: r.n for r in capped},
        unexplained_mills={r.account: r.unexplained_mills for r in wallets},
        balance_age_s={r.account: age(r.requested_at) for r in wallets if r.requested_at},
        oldest_attempt_age_s=age(row.attempt),
        oldest_poll_age_s=age(row.poll),
        outbox_waiting=outbox_waiting,
        outbox_age_s=outbox_age.total_seconds(),
        tick_age_s={name: age(at) for name, at in leases.heartbeats(session, now).items()},
    )
