"""What all processes share about one provider account: its pause, its rate budget, its money."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from fulfillment.store import doubts, leases
from fulfillment.store.engine import Session
from schemas.money import cap_in_cents, charge_in_cents
from schemas.orders import WalletView

#: The names under which the account's wallet is, or was, known: an account may have been renamed.
#: Of a merchant without a client id (`settings.AccountSettings.merchant`) that cannot be told.
SAME_WALLET = """ARRAY(SELECT n.name FROM accounts n JOIN accounts m ON m.name = %(account)s
    WHERE n.name = m.name OR n.merchant = m.merchant AND n.merchant NOT LIKE '%% -')"""


class Purpose(StrEnum):
    """Why the provider is asked; the budget serves them in this order (DESIGN section 6)."""

    URGENT = "urgent"  # unknown outcomes and deadlines
    SUBMIT = "submit"  # catalog, wallet and purchases: a tenth is kept for them
    POLL = "poll"  # routine: a tenth is kept for it


# A burst and the refill of a minute (and of the time for which a request may be under way) are the
# limit together: a tenth bursts, nine tenths flow in.
_BURST_SHARE = 0.1
#: How long after it was taken a request may still reach the provider: 2 s in the process
#: (services/budget.py) and 3 s on its way.
_UNDER_WAY_S = 5.0
# What is kept for each of submits and polls; unused, it flows over into what all share.
_KEPT_SHARE = 0.1
# Under a small limit the burst is larger and the refill smaller: a replay costs a lookup besides,
# a batch a catalog and a wallet request, and each must fit into what its purpose can save up.
_SMALLEST_BURST, _SMALLEST_FOR_SUBMITS, _SMALLEST_FOR_POLLS = 6.0, 2.0, 1.0
# The part of what is shared that only urgent requests may touch.
_URGENT_SHARE = 0.3

# For how long an account counts as configured after a process was last seen that has it.
_CONFIGURED_FOR = timedelta(minutes=5)
_CONFIGURED = "configured:"
#: Clocks that agree are no farther apart.
_WRONG = timedelta(seconds=5)


@dataclass
class _Levels:
    """How many requests may be sent now: out of what all share, and out of what is kept."""

    limit: int
    shared: float
    submit: float
    poll: float
    most_shared: float = field(default=0.0, init=False)

    def refill(self, elapsed_s: float) -> None:
        burst = max(self.limit * _BURST_SHARE, _SMALLEST_BURST)
        inflow = elapsed_s * (self.limit - burst) / (60 + _UNDER_WAY_S)
        most_submit = max(burst * _KEPT_SHARE, _SMALLEST_FOR_SUBMITS)
        most_poll = max(burst * _KEPT_SHARE, _SMALLEST_FOR_POLLS)
        submit, poll = self.submit + inflow * _KEPT_SHARE, self.poll + inflow * _KEPT_SHARE
        self.submit, self.poll = min(submit, most_submit), min(poll, most_poll)
        over = submit - self.submit + poll - self.poll
        self.most_shared = burst - most_submit - most_poll
        shared = self.shared + inflow * (1 - 2 * _KEPT_SHARE) + over
        self.shared = min(shared, self.most_shared)
        self.poll = min(self.poll + shared - self.shared, most_poll)

    def left(self, purpose: Purpose) -> int:
        for_urgent = self.most_shared * _URGENT_SHARE
        match purpose:
            case Purpose.URGENT:
                return int(self.shared)
            case Purpose.SUBMIT:
                return int(self.submit + max(self.shared - for_urgent, 0.0))
            case Purpose.POLL:
                # What the others leave over; never so much that a batch could not gather.
                for_batch = max(_SMALLEST_FOR_SUBMITS - self.submit, 0.0)
                floor = max(self.most_shared / 2, for_urgent + for_batch)
                return int(self.poll + max(self.shared - floor, 0.0))

    def spend(self, purpose: Purpose, count: float) -> None:
        """Take out what is kept for the purpose first; a negative count puts back."""
        if purpose is Purpose.SUBMIT:
            own = min(count, self.submit)
            self.submit -= own
        elif purpose is Purpose.POLL:
            own = min(count, self.poll)
            self.poll -= own
        else:
            own = 0.0
        self.shared -= count - own


def ensure(session: Session, merchants: Mapping[str, str], now: datetime) -> None:
    """Have a row for every configured account, which is this merchant's.

    While the others are doubted, a new one is as well.
    """
    added = session.rows(
        "INSERT INTO accounts (name, failures, budget, submit_budget, poll_budget) "
        "SELECT name, 0, 0, 0, 0 FROM unnest(CAST(%(names)s AS text[])) AS n(name) "
        "ON CONFLICT DO NOTHING RETURNING name",
        {"names": list(merchants)},
    )
    doubts.notice(session, now)
    names = [name for (name,) in added]
    if names:
        doubts.inherit(session, names)
    doubts.note_merchants(session, merchants, now)


def note_configured(session: Session, names: Iterable[str], now: datetime) -> None:
    """Note that a process of now is configured with these accounts."""
    for name in sorted(names):
        leases.acquire(session, _CONFIGURED + name, "", now, now + _CONFIGURED_FOR)


def gone(session: Session, configured: Iterable[str], now: datetime) -> list[str]:
    """Name the accounts that neither we nor, for some minutes, anybody else has configured.

    While processes are replaced one by one, those of before do not know a new account yet.
    """
    rows = session.rows(
        "SELECT a.name FROM accounts a LEFT JOIN leases l "  # noqa: S608 - a constant
        "ON l.name = %(prefix)s || a.name "
        "WHERE a.name <> ALL(%(configured)s) "
        f"AND coalesce(l.until <= %(now)s OR l.until > %(wrong)s AND {leases.IS_RIGHT}, true) "
        "ORDER BY a.name",
        {
            "prefix": _CONFIGURED,
            "configured": list(configured),
            "now": now,
            "wrong": now + _CONFIGURED_FOR + leases.APART,
        },
    )
    return [name for (name,) in rows]


def followed(session: Session) -> list[tuple[str, str | None, int, int]]:
    """Count the orders that are looked after, by account and by the merchant that may have them.

    Gives account, merchant, how many are under way, and how many deliveries are watched.
    """
    return session.rows(
        """
            SELECT o.account,
                   CASE WHEN a.unknown_since IS NOT NULL OR a.state NOT IN ('reserved', 'sending')
                        THEN a.merchant END AS merchant,
                   count(*) FILTER (WHERE o.status <> 'completed'),
                   count(*) FILTER (WHERE o.status = 'completed')
              FROM orders o
              LEFT JOIN attempts a ON a.account = o.account AND a.external_id = o.external_id
             WHERE o.next_attempt_at IS NOT NULL OR o.next_poll_at IS NOT NULL
             GROUP BY 1, 2 ORDER BY 1, 2
            """
    )


# Until when nothing is bought: the account is left alone, or only its purchases.
_BUYS_AGAIN_AT = "greatest(paused_until, purchases_paused_until)"
_WHY_NOT = """CASE WHEN purchases_paused_until >= coalesce(paused_until, '-infinity')
    THEN 'purchases: ' || purchase_pause_reason ELSE pause_reason END"""


def paused_until(session: Session, account: str, now: datetime) -> datetime | None:
    """Say until when the account is left alone; None when it is not."""
    until: datetime | None = session.scalar(
        "SELECT paused_until FROM accounts WHERE name = %(account)s", {"account": account}
    )
    return until if until is not None and until > now else None


def pauses(session: Session, now: datetime) -> dict[str, tuple[datetime, str | None]]:
    """Give at which accounts nothing is bought now: until when and why."""
    rows = session.execute(
        f"SELECT name, {_BUYS_AGAIN_AT} AS until, {_WHY_NOT} AS reason FROM accounts "  # noqa: S608
        f"WHERE {_BUYS_AGAIN_AT} > %(now)s",
        {"now": now},
    )
    return {row.name: (row.until, row.reason) for row in rows}


def pause(session: Session, account: str, until: datetime, reason: str) -> None:
    """Leave the account alone for a while; never shortens a pause."""
    session.execute(
        "UPDATE accounts "
        "SET paused_until = greatest(coalesce(paused_until, %(until)s), %(until)s), "
        "pause_reason = %(reason)s, failures = failures + 1 WHERE name = %(account)s",
        {"account": account, "until": until, "reason": reason},
    )


def failures(session: Session, account: str) -> int:
    """Count the requests that failed in a row."""
    return int(
        session.scalar(
            "SELECT failures FROM accounts WHERE name = %(account)s", {"account": account}
        )
    )


def works(session: Session, account: str) -> None:
    """Note that the provider answers again."""
    session.execute(
        "UPDATE accounts SET paused_until = NULL, pause_reason = NULL, failures = 0 "
        "WHERE name = %(account)s AND (failures > 0 OR paused_until IS NOT NULL)",
        {"account": account},
    )


def end_pause(session: Session, account: str, now: datetime) -> bool:
    """End the account's pause, and that of its purchases; False where it had none."""
    row = session.one(
        "UPDATE accounts SET paused_until = NULL, pause_reason = NULL, failures = 0, "
        "purchases_paused_until = CASE WHEN purchases_paused_until > %(now)s THEN %(now)s "
        "ELSE purchases_paused_until END WHERE name = %(account)s "
        "AND greatest(paused_until, purchases_paused_until) > %(now)s RETURNING name",
        {"account": account, "now": now},
    )
    return row is not None


@dataclass(frozen=True, slots=True)
class Catalog:
    """What is known of an account's catalog.

    How many items the last whole list had (0 without one), and the first names that searches in a
    row found nothing of, while they found nothing else. And whether there is a lease by which the
    list is doubted, be it over.
    """

    items: int
    missed: tuple[str, ...]
    is_doubted: bool = False


def catalog_doubt(account: str) -> str:
    """Name the lease by which the account's whole list is doubted."""
    return f"catalog:{account}"


def note_catalog(session: Session, account: str, catalog: Catalog, requested_at: datetime) -> None:
    """Keep what is known of the catalog and when it was last asked for."""
    session.execute(
        "UPDATE accounts SET catalog_items = %(items)s, catalog_missed = %(missed)s, "
        "catalog_at = %(at)s WHERE name = %(account)s",
        {
            "account": account,
            "items": catalog.items,
            "missed": list(catalog.missed),
            "at": requested_at,
        },
    )


def last_catalog(session: Session, account: str) -> Catalog:
    """Give what was noted of the catalog."""
    row = session.one(
        "SELECT catalog_items, catalog_missed, "
        "EXISTS (SELECT 1 FROM leases WHERE leases.name = %(doubt)s) AS is_doubted "
        "FROM accounts WHERE name = %(account)s",
        {"account": account, "doubt": catalog_doubt(account)},
    )
    return Catalog(row.catalog_items or 0, tuple(row.catalog_missed), row.is_doubted)


def take(
    session: Session,
    account: str,
    limit_per_minute: int,
    purpose: Purpose,
    wanted: int,
    now: datetime | None,
    *,
    leaving: int = 0,
) -> int:
    """Take requests out of the account's budget; give how many may be sent now (0 to wanted).

    At least `leaving` stay behind for the same purpose, so that what has to follow can. `now` None
    is the database's time.
    """
    with _levels(session, account, limit_per_minute, now) as levels:
        granted = min(wanted, max(levels.left(purpose) - leaving, 0))
        levels.spend(purpose, granted)
    return granted


def give_back(
    session: Session,
    account: str,
    limit_per_minute: int,
    purpose: Purpose,
    count: int,
    now: datetime | None,
) -> None:
    """Put back requests that were taken and not sent."""
    with _levels(session, account, limit_per_minute, now) as levels:
        levels.spend(purpose, -count)
        levels.refill(0.0)


def left(
    session: Session, account: str, limit_per_minute: int, purpose: Purpose, now: datetime | None
) -> int:
    """Say how many requests could be taken now."""
    with _levels(session, account, limit_per_minute, now) as levels:
        return levels.left(purpose)


def glance(
    session: Session, account: str, limit_per_minute: int, purpose: Purpose, now: datetime | None
) -> int:
    """Say about how many requests could be taken now, without waiting for who takes some."""
    levels, _, _ = _read(session, account, limit_per_minute, now, lock="")
    return levels.left(purpose)


def _read(
    session: Session, account: str, limit_per_minute: int, now: datetime | None, *, lock: str
) -> tuple[_Levels, datetime | None, datetime]:
    """Give the budget brought up to date, when that was done last, and the present."""
    row = session.one(
        "SELECT budget, submit_budget, poll_budget, budget_at, clock_timestamp() AS present "  # noqa: S608
        f"FROM accounts WHERE name = %(account)s {lock}",
        {"account": account},
    )
    at: datetime = now or row.present
    last: datetime | None = row.budget_at
    if last is not None and last > at + _WRONG:
        last = at  # that clock was wrong; nothing is gained by it, and nobody waits for it
    levels = _Levels(limit_per_minute, row.budget, row.submit_budget, row.poll_budget)
    levels.refill(max((at - last).total_seconds(), 0.0) if last else 3600.0)
    return levels, last, at


@contextmanager
def _levels(
    session: Session, account: str, limit_per_minute: int, now: datetime | None
) -> Iterator[_Levels]:
    """Lock the budget and bring it up to date; keep what the block makes of it."""
    levels, last, at = _read(session, account, limit_per_minute, now, lock="FOR UPDATE")
    yield levels
    session.execute(
        "UPDATE accounts SET budget = %(shared)s, submit_budget = %(submit)s, "
        "poll_budget = %(poll)s, budget_at = %(at)s WHERE name = %(account)s",
        {
            "account": account,
            "shared": levels.shared,
            "submit": levels.submit,
            "poll": levels.poll,
            "at": max(last or at, at),
        },
    )


def wallets(
    session: Session, now: datetime, available_mills: Callable[[str], int]
) -> list[WalletView]:
    """Show every account's money, and whether it buys nothing for now.

    `available_mills` tells of an account what may be committed (store/ledger.py).
    """
    paused = pauses(session, now)
    rows = session.execute(
        """
            SELECT a.name, w.figure_mills, w.requested_at,
                   coalesce(w.unexplained_mills, 0) AS unexplained,
                   coalesce(w.credited_mills, 0) AS credited,
                   (SELECT coalesce(sum(hold_mills), 0) FROM attempts t
                     WHERE t.account = a.name AND t.hold_closed_at IS NULL) AS held,
                   coalesce(sum(e.amount_mills) FILTER (WHERE e.kind IN ('settle', 'adjust')), 0)
                       AS settled,
                   coalesce(sum(e.amount_mills) FILTER (WHERE e.kind = 'refund'), 0) AS refunded
              FROM accounts a
              LEFT JOIN wallets w ON w.account = a.name
              LEFT JOIN wallet_entries e ON e.account = a.name
             GROUP BY a.name, w.account ORDER BY a.name
            """
    )
    views = []
    for row in rows:
        known = row.figure_mills is not None
        until, why = paused.get(row.name, (None, None))
        views.append(
            WalletView(
                account=row.name,
                balance=cap_in_cents(row.figure_mills) if known else None,
                balance_requested_at=row.requested_at,
                held=charge_in_cents(int(row.held)),
                available=max(cap_in_cents(available_mills(row.name)), 0) if known else None,
                settled=charge_in_cents(int(row.settled)),
                refunded=charge_in_cents(int(row.refunded)),
                unexplained=charge_in_cents(row.unexplained),
                credited=cap_in_cents(row.credited),
                paused_until=until,
                pause_reason=why,
            )
        )
    return views


def pause_length(failed: int, jitter: float) -> timedelta:
    """Give the pause after this many failures in a row: 1 s doubling to 60 s, half to all of it.

    `jitter` is between 0 and 1.
    """
    longest = min(60.0, 2.0 ** min(failed, 6))
    return timedelta(seconds=longest * (0.5 + jitter / 2))
