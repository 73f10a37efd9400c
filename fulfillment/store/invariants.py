"""What must always hold, each as one statement that finds whatever breaks it.

A statement sees the database at one instant, and whoever changes an order changes its log, its
attempt and its money in the same transaction: what is found is broken, not under way. Beside
`now` statements take the patience that the promise of a time allows. Those about `ids` look at
these orders alone, since nothing but the whole table would find every one that is broken; rows
without an order are looked for between the ids `after` and `to`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from string import Template
from typing import Any

import msgspec

from fulfillment.states import (
    BEFORE_OFFER,
    FINAL,
    FOLLOWED,
    RANK,
    TRANSITIONS,
    UNFULFILLED,
    WAITING,
)
from fulfillment.store import erasure
from fulfillment.store.engine import Session
from fulfillment.store.promises import PROMISES, Invariant
from schemas.enums import AttemptState as A
from schemas.enums import OrderStatus as S


def _words(members: Iterable[str]) -> str:
    return ", ".join(f"'{member}'" for member in sorted(members))


#: The columns of an order that its log tells. Not secrets, due times, who works on it and what was
#: told already.
LOGGED = frozenset(
    {
        *("external_id", "account", "route", "fallbacks", "between_attempts", "catalog_item_id"),
        *("market_hash_name", "expected_price_cents", "submit_by", "quoted_mills"),
        *("quoted_item_id", "charged_mills", "funds_deadline_at", "status", "provider_status"),
        *("provider_reference", "reported_at", "steam_offer_id", "sent_at", "trade_deadline_at"),
        *("overdue", "completed_at", "reversible_until", "failure_code", "failure_message"),
        *("failed_by", "told_status", "told_early_at", "contradictions", "sequence"),
    }
)
#: What `$name` stands for in a statement.
_WORDS = {
    "final": _words(FINAL),
    "waiting": _words([*WAITING, S.RESERVED]),
    "followed": _words([*FOLLOWED, S.NEEDS_REVIEW]),
    "early": _words(BEFORE_OFFER),
    "one_rank": _words(status for status in FOLLOWED if RANK[status] == RANK[S.ACCEPTED]),
    "unfulfilled": _words(UNFULFILLED),
    "live": _words([A.RESERVED, A.SENDING, A.ACCEPTED]),
    "edges": _words(f"{source}>{target}" for source, target in TRANSITIONS),
    # Delivered, and the provider is still asked what it charged.
    "uncharged": (
        "(o.status = 'completed' AND o.charged_mills IS NULL AND o.next_poll_at IS NOT NULL)"
    ),
    "readable": erasure.IS_READABLE,
    # Columns that another version of this code knows are its own business.
    "logged": f"ARRAY[{_words(LOGGED)}]",
}


INVARIANTS = (
    *PROMISES,
    Invariant(
        "final_order_open_hold",
        "the money of a final order is settled or released when the wallet tells of it",
        """
        SELECT o.external_id FROM attempts a JOIN orders o ON o.id = a.order_id
         WHERE a.hold_closed_at IS NULL AND o.status IN ($final) AND NOT $uncharged
           AND coalesce(a.ended_at, o.updated_at) + %(wallet_lag)s + %(patience)s <= %(now)s
        """,
    ),
    Invariant(
        "final_order_open_attempt",
        "nothing is bought for an order that is final",
        """
        SELECT o.external_id FROM attempts a JOIN orders o ON o.id = a.order_id
         WHERE a.state IN ($live) AND o.status IN ($final) AND NOT $uncharged
        """,
    ),
    Invariant(
        "under_way_without_hold",
        "what is being bought has money held for it",
        """
        SELECT o.external_id FROM orders o
         WHERE o.status IN ('reserved', 'submitting', $followed)
           AND NOT o.between_attempts
           AND NOT EXISTS (SELECT 1 FROM attempts a WHERE a.order_id = o.id
                              AND a.state IN ($live) AND a.hold_closed_at IS NULL)
        """,
    ),
    Invariant(
        "nothing_due",
        "an order that is not final has a time at which somebody looks at it",
        """
        SELECT o.external_id FROM orders o
         WHERE o.status IN ($waiting, 'submitting')
               AND o.next_attempt_at IS NULL
            OR o.status IN ($followed) AND o.next_poll_at IS NULL
            OR o.status = 'sent' AND o.next_watch_at IS NULL AND NOT o.overdue
        """,
    ),
    Invariant(
        "ended_and_due",
        "nothing more is tried for an order that has ended",
        """
        SELECT o.external_id FROM orders o
         WHERE o.status IN ($final) AND o.next_attempt_at IS NOT NULL
        """,
    ),
    Invariant(
        "followed_by_nobody",
        "what is bought is followed, and a delivery watched, where it was bought",
        """
        SELECT o.external_id FROM attempts a JOIN orders o ON o.id = a.order_id
         WHERE a.strange_since IS NOT NULL
           AND o.status <> 'needs_review' AND o.next_poll_at IS NOT NULL
        """,
    ),
    Invariant(
        "past_its_time",
        "an order comes on by the time that was promised",
        """
        SELECT o.external_id FROM orders o
         WHERE o.status IN ($waiting) AND o.submit_by + %(patience)s <= %(now)s
           AND (o.claimed_until IS NULL OR o.claimed_until <= %(now)s)
        UNION ALL
        SELECT o.external_id FROM orders o
          LEFT JOIN attempts a ON a.order_id = o.id AND a.state IN ($live)
         WHERE o.status = 'submitting'
           AND least(greatest(o.submit_by, a.unknown_since), a.unknown_since + %(longest_unknown)s)
               + %(review_after)s + %(patience)s <= %(now)s
        UNION ALL
        SELECT o.external_id FROM orders o
         WHERE o.status = 'sent' AND NOT o.overdue
           AND o.trade_deadline_at + %(overdue_grace)s + %(patience)s <= %(now)s
        UNION ALL
        SELECT o.external_id FROM orders o WHERE o.next_poll_at <= %(now)s - %(patience)s
        UNION ALL
        SELECT o.external_id FROM orders o
         WHERE o.status IN ($early) AND o.created_at + %(stalled_after)s + %(patience)s <= %(now)s
           AND (SELECT max(e.at) FROM order_events e
                 WHERE e.order_id = o.id AND e.from_status IS DISTINCT FROM e.to_status
                   AND NOT (e.from_status IN ($one_rank) AND e.to_status IN ($one_rank)))
               + %(stalled_after)s + %(patience)s <= %(now)s
        """,
    ),
    Invariant(
        "overcommitted",
        "holds that the wallet's figure cannot tell of yet never exceed it",
        """
        SELECT w.account FROM wallets w
         WHERE w.figure_mills < (
               SELECT sum(a.hold_mills) FROM attempts a
                WHERE a.account = w.account AND a.absorbed_at IS NULL AND a.hold_closed_at IS NULL
                  AND (a.sending_at IS NULL OR a.sending_at > w.requested_at))
        """,
    ),
    Invariant(
        "outbox_waits",
        "the store hears of every change",
        """
        SELECT o.external_id FROM outbox_messages m JOIN orders o ON o.id = m.order_id
         WHERE m.created_at + %(patience)s <= %(now)s
        """,
    ),
    Invariant(
        "inbox_waits",
        "a webhook that was taken is applied",
        """
        SELECT o.external_id FROM webhook_deliveries d JOIN orders o ON o.id = d.order_id
         WHERE d.next_apply_at + %(patience)s <= %(now)s
        """,
    ),
    Invariant(
        "not_erased",
        "trade URLs and sent bodies are erased when the order has been over for long enough",
        """
        SELECT o.external_id FROM orders o
         WHERE o.trade_url_sealed IS NOT NULL AND o.status IN ($final)
           -- Nobody may ask on for longer than a watch lasts, and keep it for that.
           AND (o.next_poll_at IS NULL OR greatest(o.updated_at, o.reversible_until)
                <= %(now)s - %(erase_after)s - %(longest_watch)s - %(erase_patience)s)
           AND o.updated_at <= %(now)s - %(erase_after)s - %(erase_patience)s
           AND (o.reversible_until IS NULL
                OR o.reversible_until <= %(now)s - %(erase_after)s - %(erase_patience)s)
           AND ($readable OR o.updated_at <=
                %(now)s - %(erase_after)s - %(others_turn)s - %(erase_patience)s)
        """,
    ),
    Invariant(
        "several_live_attempts",
        "one checkout is bought at most once",
        """
        SELECT o.external_id FROM orders o WHERE o.id = ANY(%(ids)s) AND 1 < (
               SELECT count(*) FROM attempts a
                WHERE a.order_id = o.id AND a.state IN ($live, 'completed'))
        """,
    ),
    Invariant(
        "delivery_not_watched",
        "a delivered order is asked about for as long as it can be undone; one that ended and that "
        "the provider has all the same, until it ends there",
        """
        SELECT o.external_id FROM orders o WHERE o.id = ANY(%(ids)s) AND o.next_poll_at IS NULL
           AND (o.status = 'completed' AND o.reversible_until > %(now)s
                OR o.status IN ($unfulfilled) AND o.told_status IN ('sent', $early))
        """,
    ),
    Invariant(
        "log_is_whole",
        "an order's log has no gap, and each step of it is a legal one",
        """
        SELECT o.external_id FROM orders o CROSS JOIN LATERAL (
               SELECT e.sequence, e.from_status, e.to_status,
                      lag(e.to_status) OVER (ORDER BY e.sequence) AS before,
                      row_number() OVER (ORDER BY e.sequence) AS place
                 FROM order_events e WHERE e.order_id = o.id) e
         WHERE o.id = ANY(%(ids)s)
         GROUP BY o.id HAVING o.sequence <> count(*)
             OR bool_or(e.sequence <> e.place OR e.from_status IS DISTINCT FROM e.before
                        OR e.from_status <> e.to_status
                           AND e.from_status || '>' || e.to_status NOT IN ($edges))
        UNION ALL
        SELECT o.external_id FROM orders o WHERE o.id = ANY(%(ids)s)
           AND NOT EXISTS (SELECT 1 FROM order_events e WHERE e.order_id = o.id)
        """,
    ),
    Invariant(
        "log_rebuilds_row",
        "an order's log alone rebuilds its row",
        """
        SELECT o.external_id FROM orders o CROSS JOIN LATERAL (
               SELECT coalesce(jsonb_object_agg(c.key, c.value ORDER BY e.sequence)
                                   FILTER (WHERE c.key IS NOT NULL), '{}')
                      || jsonb_build_object('sequence', max(e.sequence),
                             'status', (array_agg(e.to_status ORDER BY e.sequence DESC))[1]) AS row
                 FROM order_events e LEFT JOIN LATERAL jsonb_each(e.changes) c ON true
                WHERE e.order_id = o.id) log
         WHERE o.id = ANY(%(ids)s)
           AND (SELECT jsonb_object_agg(key, value) FROM jsonb_each(to_jsonb(o))
                 WHERE key = ANY($logged) AND value NOT IN ('null', 'false', '[]'))
               IS DISTINCT FROM
               (SELECT jsonb_object_agg(key, value)
                  FROM jsonb_each(to_jsonb(jsonb_populate_record(NULL::orders, log.row)))
                 WHERE key = ANY($logged) AND value NOT IN ('null', 'false', '[]'))
        """,
    ),
    Invariant(
        "booked_is_charged",
        "what is booked for a delivered order is what its provider says that it charged",
        """
        SELECT o.external_id FROM orders o
          JOIN attempts a ON a.account = o.account AND a.external_id = o.external_id
         WHERE o.id = ANY(%(ids)s)
           AND a.state = 'completed' AND o.charged_mills <> (
               SELECT coalesce(sum(e.amount_mills), 0) FROM wallet_entries e
                WHERE e.order_id = o.id AND e.account = a.account
                  AND e.kind IN ('settle', 'adjust'))
           -- After an end anything may be told, also of what was refunded.
           AND (o.status IN ('completed', 'reversed') OR NOT EXISTS (
               SELECT 1 FROM wallet_entries r WHERE r.attempt_id = a.id AND r.kind = 'refund'))
        """,
    ),
    Invariant(
        "money_is_explained",
        "the ledger's entries say of every attempt what became of its money",
        """
        SELECT o.external_id FROM orders o JOIN attempts a ON a.order_id = o.id
         CROSS JOIN LATERAL (
               SELECT count(*) FILTER (WHERE kind = 'hold' AND amount_mills = a.hold_mills) AS held,
                      count(*) FILTER (WHERE kind = 'settle') AS settled,
                      count(*) FILTER (WHERE kind = 'release'
                                         AND amount_mills = a.hold_mills) AS released,
                      count(*) FILTER (WHERE kind = 'refund') AS refunded,
                      coalesce(sum(amount_mills) FILTER (WHERE kind = 'refund'), 0)
                      - coalesce(sum(amount_mills) FILTER (WHERE kind = 'settle'), 0)
                      - (SELECT coalesce(sum(j.amount_mills), 0) FROM wallet_entries j
                          WHERE j.order_id = o.id AND j.account = a.account
                            AND j.kind = 'adjust') AS too_much,
                      count(*) FILTER (WHERE e.account <> a.account OR e.order_id <> a.order_id
                                          OR amount_mills < 0) AS foreign_ones
                 FROM wallet_entries e WHERE e.attempt_id = a.id) e
         WHERE o.id = ANY(%(ids)s) AND NOT (
               e.held = 1 AND e.foreign_ones = 0
               AND (e.settled = 1) = (a.state = 'completed')
               AND (a.hold_closed_at IS NOT NULL) = (e.settled + e.released > 0)
               AND (a.hold_closed_at IS NULL OR a.state NOT IN ($live))
               AND (e.released = 1 OR a.state <> 'refused')
               AND (a.ended_at IS NOT NULL OR a.state IN ($live)) AND a.unbooked >= 0
               -- All that is booked comes back, or nothing.
               AND e.refunded <= e.settled AND (e.refunded = 0 OR e.too_much = 0))
        """,
    ),
)


def plan_by_values(session: Session) -> None:
    """Have this transaction's statements planned for their values.

    Without them nobody would guess that hardly a row is that late.
    """
    session.execute("SET LOCAL plan_cache_mode = force_custom_plan")


def broken(
    session: Session, invariant: Invariant, parameters: Mapping[str, Any], limit: int
) -> list[str]:
    """Give for which orders or accounts an invariant does not hold, each once."""
    statement = Template(invariant.statement).substitute(_WORDS) + " LIMIT %(limit)s"
    rows = session.execute(statement, {**parameters, "limit": limit})
    return sorted({str(row[0]) for row in rows})


def ids_after(session: Session, after_id: int, limit: int) -> list[int]:
    """Give the next orders by our own ids."""
    rows = session.execute(
        "SELECT id FROM orders WHERE id > %(after)s ORDER BY id LIMIT %(limit)s",
        {"after": after_id, "limit": limit},
    )
    return [row.id for row in rows]


def ids_beside(session: Session, subjects: Sequence[str], limit: int) -> list[int]:
    """Give the newest orders and the named ones by our own ids, `#ID` that of no order included."""
    rows = session.execute(
        "(SELECT id FROM orders ORDER BY id DESC LIMIT %(limit)s) "
        "UNION SELECT id FROM orders WHERE external_id = ANY(%(names)s)",
        {"limit": limit, "names": list(subjects)},
    )
    return [row.id for row in rows] + [int(name[1:]) for name in subjects if name.startswith("#")]


def names_of(session: Session, ids: Sequence[int]) -> list[str]:
    """Give the store's ids of orders."""
    rows = session.execute(
        "SELECT external_id FROM orders WHERE id = ANY(%(ids)s)", {"ids": list(ids)}
    )
    return [row.external_id for row in rows]


def oldest_order_at(session: Session) -> datetime | None:
    """Say when the first order came; None where there is none."""
    at: datetime | None = session.scalar("SELECT created_at FROM orders ORDER BY id LIMIT 1")
    return at


@dataclass(frozen=True, slots=True)
class Finding:
    """What the last check of an invariant found, and how far along the orders it came."""

    violations: list[str]
    after_id: int
    checked_at: datetime


def found_before(session: Session) -> dict[str, Finding]:
    """Give what the last checks found, by invariant."""
    rows = session.execute("SELECT name, violations, after_id, checked_at FROM invariants")
    return {row[0]: Finding(*row[1:]) for row in rows}


def keep(
    session: Session, found: Mapping[str, Sequence[str]], after_id: int, now: datetime
) -> None:
    """Keep what a check found, and how far along the orders it came."""
    session.execute(
        """
            INSERT INTO invariants (name, violations, after_id, checked_at)
            SELECT f.key, f.value, %(after_id)s, %(now)s FROM jsonb_each(CAST(%(found)s AS jsonb)) f
            ON CONFLICT (name) DO UPDATE SET violations = excluded.violations,
                   after_id = excluded.after_id, checked_at = excluded.checked_at
            """,
        {"found": msgspec.json.encode(found).decode(), "after_id": after_id, "now": now},
    )
