"""Whether an account sells: kept apart from its reads, which may work while no purchase does.

From an outage of purchases on until one is answered again they are `broken`: paused at first, and
after each pause one may go ahead. Only an answered purchase mends them.
"""

from dataclasses import dataclass
from datetime import datetime

from fulfillment.store.engine import Session
from fulfillment.store.switches import STOPPED


@dataclass(frozen=True, slots=True)
class Purchases:
    """What was last heard of an account's purchases.

    `unanswered` of them, in a row, had neither a yes nor a no. `paused_until` is the end of the
    last pause, which may be over; None where they are not broken. `pauses` are counted in a row.
    """

    unanswered: int = 0
    pauses: int = 0
    paused_until: datetime | None = None

    @property
    def are_broken(self) -> bool:
        return self.paused_until is not None

    def are_paused(self, now: datetime) -> bool:
        return self.paused_until is not None and self.paused_until > now


@dataclass(frozen=True, slots=True)
class Gate:
    """What keeps an account from being sent purchases: the switch, or that they are broken."""

    is_stopped: bool
    are_broken: bool

    @property
    def is_shut(self) -> bool:
        return self.is_stopped or self.are_broken


def gate(session: Session, account: str) -> Gate:
    """Look at both, as they are now."""
    row = session.one(
        f"SELECT {STOPPED} AS is_stopped, purchases_paused_until IS NOT NULL AS are_broken "  # noqa: S608
        "FROM accounts a WHERE name = %(account)s",
        {"account": account},
    )
    return Gate(row.is_stopped, row.are_broken)


def count_unanswered(session: Session, account: str, count: int) -> Purchases:
    """Add purchases without a yes or a no; give how the account stands with them, locked."""
    row = session.one(
        "UPDATE accounts SET purchases_unanswered = purchases_unanswered + %(count)s "
        "WHERE name = %(account)s "
        "RETURNING purchases_unanswered, purchase_pauses, purchases_paused_until",
        {"account": account, "count": count},
    )
    return Purchases(row.purchases_unanswered, row.purchase_pauses, row.purchases_paused_until)


def pause(session: Session, account: str, until: datetime, reason: str) -> None:
    """Send no purchases for a while."""
    session.execute(
        "UPDATE accounts SET purchases_paused_until = %(until)s, "
        "purchase_pauses = purchase_pauses + 1, purchase_pause_reason = %(reason)s "
        "WHERE name = %(account)s",
        {"account": account, "until": until, "reason": reason},
    )


def mend(session: Session, account: str) -> None:
    """Note that a purchase which went ahead was answered."""
    session.execute(
        "UPDATE accounts SET purchases_unanswered = 0, purchase_pauses = 0, "
        "purchases_paused_until = NULL, purchase_pause_reason = NULL WHERE name = %(account)s",
        {"account": account},
    )


def note_answered(session: Session, account: str) -> None:
    """Count the unanswered anew, unless they are broken.

    What was sent before an outage says nothing about it, however late its answer comes.
    """
    session.execute(
        "UPDATE accounts SET purchases_unanswered = 0 "
        "WHERE name = %(account)s AND purchases_paused_until IS NULL",
        {"account": account},
    )


def go_ahead(session: Session, account: str, now: datetime, until: datetime) -> bool:
    """Let one go ahead where a pause is over, and keep the others until its answer is known.

    `until` is when that is at the latest. False where it is not over, or another has gone ahead.
    """
    row = session.one(
        "UPDATE accounts SET purchases_paused_until = %(until)s "
        "WHERE name = %(account)s AND purchases_paused_until <= %(now)s RETURNING name",
        {"account": account, "now": now, "until": until},
    )
    return row is not None


def come_back(session: Session, account: str, until: datetime, now: datetime) -> None:
    """Let another go ahead in the place of one that was not sent."""
    session.execute(
        "UPDATE accounts SET purchases_paused_until = %(now)s "
        "WHERE name = %(account)s AND purchases_paused_until = %(until)s",
        {"account": account, "until": until, "now": now},
    )
