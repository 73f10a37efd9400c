"""Claims: which worker may act on an order now, and until when.

A claim is a text `<batch token>/<step>`. A step takes its orders over by writing its own name into
the claim, so that a redelivered, doubled or late copy of the step finds nothing left to do; every
later write of the step is guarded by it.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from fulfillment.store.doubts import TO_SEARCH
from fulfillment.store.engine import Session
from fulfillment.store.models import ORDER_COLUMNS, Order, columns
from fulfillment.store.switches import STOPPED

# A claim's subselect stands in an array, which is built once: as a part of the join, a plan may run
# it again, and each run takes up to its limit.

# Due, and not claimed by a living worker.
_FREE = "o.next_attempt_at <= %(now)s AND (o.claimed_until IS NULL OR o.claimed_until <= %(now)s)"
# Waits for a catalog and a wallet answer; the rest of what is due is to be submitted. Told by the
# order's row alone: a condition on its attempts would be as old as the statement, and not as the
# lock on the row.
_BETWEEN = "(o.status = 'submitting' AND o.between_attempts)"
_WAITING = f"(o.status IN ('received', 'quoted', 'awaiting_funds') OR {_BETWEEN})"
_TO_SUBMIT = f"(o.status IN ('reserved', 'submitting') AND NOT {_BETWEEN})"
# Of an account `a`: it is not left alone; neither are its purchases, and nobody has stopped it.
_UNPAUSED = "coalesce(a.paused_until <= %(now)s, true)"
_UNRESTED = "coalesce(greatest(a.paused_until, a.purchases_paused_until) <= %(now)s, true)"
_BUYING = f"({_UNRESTED} AND NOT {STOPPED})"


def claim_waiting(
    session: Session,
    account: str,
    claim: str,
    now: datetime,
    until: datetime,
    limit: int,
    *,
    is_buying: bool = True,
) -> list[Order]:
    """Claim orders of an account that wait for a catalog and a wallet answer.

    The longest due first: those that come up again and again are in nobody's way. Where nothing is
    bought now, only what is to be looked for.
    """
    which = _WAITING if is_buying else f"{_WAITING} AND {TO_SEARCH}"
    rows = session.rows(
        f"""
            UPDATE orders SET claim = %(claim)s, claimed_until = %(until)s WHERE id = ANY(ARRAY(
                SELECT o.id FROM orders o
                 WHERE o.account = %(account)s AND {_FREE} AND {which}
                 ORDER BY o.next_attempt_at, o.id LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED))
            RETURNING {columns(ORDER_COLUMNS)}
            """,  # noqa: S608 - constants
        {"account": account, "claim": claim, "now": now, "until": until, "limit": limit},
    )
    return _in_order(rows)


def claim_stuck(
    session: Session,
    accounts: Iterable[str],
    claim: str,
    now: datetime,
    until: datetime,
    limit: int,
) -> list[tuple[int, str]]:
    """Claim orders of these accounts to be submitted again: never sent, or of unknown outcome.

    Where nothing is bought now, of those that were never sent only what is to be looked for. Of
    each account up to `limit`, the longest due first: none stands in another's way.
    """
    rows = session.execute(
        f"""
            UPDATE orders SET claim = %(claim)s, claimed_until = %(until)s WHERE id = ANY(ARRAY(
                SELECT due.id FROM accounts a CROSS JOIN LATERAL (
                    SELECT o.id FROM orders o
                     WHERE o.account = a.name AND {_FREE}
                       AND {_TO_SUBMIT} AND {_UNPAUSED}
                       AND (o.status = 'submitting' OR {_BUYING} OR {TO_SEARCH})
                     ORDER BY o.next_attempt_at, o.id LIMIT %(limit)s
                       FOR NO KEY UPDATE SKIP LOCKED) due
                 WHERE a.name = ANY(%(accounts)s)))
            RETURNING id, account
            """,  # noqa: S608 - constants
        {
            "accounts": list(accounts),
            "claim": claim,
            "now": now,
            "until": until,
            "limit": limit,
        },
    )
    return sorted((row.id, row.account) for row in rows)


def accounts_waiting(session: Session, now: datetime) -> list[str]:
    """Name the accounts that have something for `checkout.dispatch` to claim."""
    rows = session.execute(
        f"""
            SELECT a.name FROM accounts a WHERE {_BUYING} AND EXISTS (
                 SELECT 1 FROM orders o
                  WHERE o.account = a.name AND {_FREE} AND {_WAITING})
            UNION ALL
            SELECT a.name FROM accounts a WHERE {_UNPAUSED} AND NOT {_BUYING} AND EXISTS (
                 SELECT 1 FROM orders o
                  WHERE o.account = a.name AND {_FREE} AND {_WAITING} AND {TO_SEARCH})
            """,  # noqa: S608 - constants
        {"now": now},
    )
    return [row.name for row in rows]


def is_buying(session: Session, account: str, now: datetime) -> bool:
    """Say whether anything of the account may be priced and paid for: nobody has stopped it."""
    return bool(
        session.scalar(
            f"SELECT {_BUYING} FROM accounts a WHERE name = %(account)s",  # noqa: S608
            {"account": account, "now": now},
        )
    )


def is_to_search(session: Session, account: str, now: datetime) -> bool:
    """Say whether the account can be asked, and has waiting orders that are to be looked for."""
    return bool(
        session.scalar(
            f"""
            SELECT {_UNPAUSED} AND EXISTS (
                SELECT 1 FROM orders o
                 WHERE o.account = a.name AND {_FREE} AND {_WAITING} AND {TO_SEARCH})
              FROM accounts a WHERE name = %(account)s
            """,  # noqa: S608 - constants
            {"account": account, "now": now},
        )
    )


def is_waiting(session: Session, account: str, now: datetime) -> bool:
    """Say whether the account has something to claim."""
    # Of an EXISTS PostgreSQL may read the whole table, where many are expected to be due.
    return bool(
        session.scalar(
            f"""
            SELECT (SELECT true FROM orders o
                     WHERE o.account = %(account)s AND {_FREE} AND {_WAITING}
                     ORDER BY o.next_attempt_at LIMIT 1)
            """,  # noqa: S608 - constants
            {"account": account, "now": now},
        )
    )


def in_submission(session: Session, account: str, now: datetime) -> int:
    """Count the account's orders that wait for submission or that living workers are submitting."""
    return int(
        session.scalar(
            f"""
            SELECT count(*) FROM orders o WHERE o.account = %(account)s
               AND o.next_attempt_at IS NOT NULL AND {_TO_SUBMIT}
               AND (o.status = 'reserved' OR o.claimed_until > %(now)s)
            """,  # noqa: S608 - constants
            {"account": account, "now": now},
        )
    )


def quotes_taken(
    session: Session, account: str, names: Iterable[str], since: datetime
) -> list[tuple[str, str, int]]:
    """Give the item's id, its name and the price of what of these names is being bought now.

    And of what was bought `since`: a list that was asked for then may have it still. No balance
    tells of that yet, by which it is found.
    """
    quote = """
        SELECT coalesce(o.quoted_item_id, o.catalog_item_id), o.market_hash_name, o.quoted_mills
          FROM orders o
    """
    return session.rows(
        f"""
            {quote} WHERE o.account = %(account)s AND {_TO_SUBMIT}
               AND o.market_hash_name = ANY(%(names)s) AND o.quoted_mills IS NOT NULL
            UNION ALL
            {quote} JOIN attempts t ON t.order_id = o.id AND t.account = o.account
             WHERE t.account = %(account)s AND t.absorbed_at IS NULL AND t.confirmed_at >= %(since)s
               AND NOT {_TO_SUBMIT}
               AND o.market_hash_name = ANY(%(names)s) AND o.quoted_mills IS NOT NULL
            """,
        {"account": account, "names": list(names), "since": since},
    )


_TAKE_OVER = f"""
    UPDATE orders SET claim = %(new)s, claimed_until = %(until)s WHERE id = ANY(ARRAY(
        SELECT id FROM orders WHERE id = ANY(%(ids)s) AND claim = %(old)s
         ORDER BY id {{lock}}))
    RETURNING {columns(ORDER_COLUMNS)}
"""  # noqa: S608 - constants
_TAKE = _TAKE_OVER.format(lock="FOR NO KEY UPDATE")
_TAKE_UNLOCKED = _TAKE_OVER.format(lock="LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED")


def take_over(
    session: Session, order_ids: Sequence[int], old: str, new: str, until: datetime
) -> list[Order]:
    """Move a batch's claim on to its next step; give the orders that were still under `old`."""
    values = {"ids": list(order_ids), "old": old, "new": new, "until": until}
    return _in_order(session.rows(_TAKE, values))


def take_over_some(
    session: Session,
    order_ids: Sequence[int],
    old: str,
    new: str,
    until: datetime,
    limit: int | None,
) -> list[Order]:
    """Do so with those that nobody has locked just now, the first `limit` of them."""
    values = {"ids": list(order_ids), "old": old, "new": new, "until": until, "limit": limit}
    return _in_order(session.rows(_TAKE_UNLOCKED, values))


def _in_order(rows: Iterable[Any]) -> list[Order]:
    return sorted(map(Order.of, rows), key=lambda order: order.id)


def is_any_left(session: Session, order_ids: Sequence[int], claim: str) -> bool:
    """Say whether any of these orders is under a claim, locked or not."""
    query = "SELECT EXISTS (SELECT FROM orders WHERE id = ANY(%(ids)s) AND claim = %(claim)s)"
    return bool(session.scalar(query, {"ids": list(order_ids), "claim": claim}))


def still_under(session: Session, order_ids: Sequence[int], claim: str) -> set[int]:
    """Give those of these orders that are under a claim, locked or not."""
    query = "SELECT id FROM orders WHERE id = ANY(%(ids)s) AND claim = %(claim)s"
    return {id_ for (id_,) in session.rows(query, {"ids": list(order_ids), "claim": claim})}


def renew(session: Session, order_ids: Sequence[int], claim: str, until: datetime) -> set[int]:
    """Lengthen a claim; give the orders of which it is longer now.

    Nobody is waited for: what somebody has locked keeps its time.
    """
    rows = session.rows(
        """
            UPDATE orders SET claimed_until = %(until)s WHERE id = ANY(ARRAY(
                SELECT id FROM orders WHERE id = ANY(%(ids)s) AND claim = %(claim)s
                 ORDER BY id FOR NO KEY UPDATE SKIP LOCKED))
            RETURNING id
            """,
        {"ids": list(order_ids), "claim": claim, "until": until},
    )
    return {id_ for (id_,) in rows}


def hurry(session: Session, account: str, now: datetime) -> None:
    """Let the account's orders that wait for its answers, and are nobody's now, wait no longer."""
    session.execute(
        f"""
            UPDATE orders o SET next_attempt_at = %(now)s WHERE o.id IN (
                   SELECT o.id FROM orders o
                    WHERE o.account = %(account)s AND o.next_attempt_at > %(now)s
                      AND ({_WAITING} OR NOT EXISTS (
                           SELECT FROM attempts t WHERE t.account = o.account
                              AND t.external_id = o.external_id AND t.unknown_since IS NOT NULL))
                      AND (o.claimed_until IS NULL OR o.claimed_until <= %(now)s)
                    ORDER BY o.id FOR NO KEY UPDATE)
            """,  # noqa: S608 - the part is a constant
        {"account": account, "now": now},
    )


_RELEASE = """
    UPDATE orders SET claim = NULL, claimed_until = NULL,
           next_attempt_at = coalesce(%(due_at)s, next_attempt_at)
     WHERE id IN (SELECT id FROM orders WHERE id = ANY(%(ids)s) AND claim = %(claim)s
                   ORDER BY id {lock})
"""
_RELEASE_ALL = _RELEASE.format(lock="FOR NO KEY UPDATE")
_RELEASE_UNLOCKED = _RELEASE.format(lock="FOR NO KEY UPDATE SKIP LOCKED")


def release(
    session: Session,
    order_ids: Sequence[int],
    claim: str,
    due_at: datetime | None = None,
    *,
    is_own: bool = True,
) -> None:
    """Give orders back, to be taken up again at `due_at`.

    Where it is not the caller's own claim, nobody is waited for: what is locked lapses.
    """
    values = {"ids": list(order_ids), "claim": claim, "due_at": due_at}
    session.execute(_RELEASE_ALL if is_own else _RELEASE_UNLOCKED, values)
