"""Where the store's queues are bound, kept for when the broker does not know it any more.

And how much waits in them, which only the relay sees.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import NamedTuple

from fulfillment.store.engine import Session

#: A routing key, its pattern, a queue. RabbitMQ does not tell the last two: "".
Binding = tuple[str, str, str]

_FORGET = """
    DELETE FROM store_bindings
     WHERE broker = %(broker)s AND (routing_key, pattern, queue) NOT IN (
           SELECT * FROM unnest(CAST(%(keys)s AS text[]), CAST(%(patterns)s AS text[]),
                                CAST(%(queues)s AS text[])))
    """
_KEEP = """
    INSERT INTO store_bindings AS b (broker, routing_key, pattern, queue, missing_since, told)
    SELECT %(broker)s, n.routing_key, n.pattern, n.queue, CAST(%(missing_since)s AS timestamptz),
           n.told
      FROM unnest(CAST(%(keys)s AS text[]), CAST(%(patterns)s AS text[]),
                  CAST(%(queues)s AS text[]), CAST(%(told)s AS text[]))
           AS n(routing_key, pattern, queue, told)
    ON CONFLICT (broker, routing_key, pattern, queue) DO UPDATE
       SET told = coalesce(excluded.told, b.told),
           missing_since = CASE WHEN excluded.missing_since IS NOT NULL
                                THEN coalesce(b.missing_since, excluded.missing_since) END
    """


@dataclass(frozen=True, slots=True)
class Audience:
    """Where the store's queues are bound, or last were.

    `missing_since` is set while messages wait because none of them is bound any more. `told` has
    the body of a message that was heard, by routing key, where the broker tells no bindings.
    """

    known: frozenset[Binding] = frozenset()
    missing_since: datetime | None = None
    told: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Name the queues; where their names are not known, the routing keys."""
        return sorted({queue or key for key, _, queue in self.known})


def read(session: Session, broker: str) -> Audience:
    """Give what is known of the broker's bindings.

    Of one at which none was seen yet, what was bound at another: the broker was changed, and the
    store comes after us.
    """
    rows = session.rows(
        "SELECT routing_key, pattern, queue, "
        "CASE WHEN broker = %(broker)s THEN missing_since END, told FROM store_bindings "
        "WHERE broker = (SELECT broker FROM store_bindings "
        "ORDER BY broker <> %(broker)s, broker LIMIT 1)",
        {"broker": broker},
    )
    known = frozenset((key, pattern, queue) for key, pattern, queue, *_ in rows)
    told = {row[0]: row[4].encode() for row in rows if row[4] is not None}
    return Audience(known, min((row[3] for row in rows if row[3]), default=None), told)


def keep(
    session: Session,
    broker: str,
    known: Collection[Binding],
    missing_since: datetime | None,
    told: Mapping[str, bytes] = MappingProxyType({}),
) -> None:
    """Keep these bindings and no others; a time since which they are missing stays the first.

    `told` has the body of a message that was heard, by routing key.
    """
    ordered = sorted(known)
    parameters = {
        "broker": broker,
        "keys": [key for key, _, _ in ordered],
        "patterns": [pattern for _, pattern, _ in ordered],
        "queues": [queue for _, _, queue in ordered],
        "missing_since": missing_since,
        "told": [told[key].decode() if key in told else None for key, _, _ in ordered],
    }
    session.execute(_FORGET, parameters)
    session.execute(_KEEP, parameters)


def forget_missing(session: Session, broker: str) -> list[str]:
    """Wait for the queues that are missing no longer, at any broker; give their names."""
    rows = session.rows(
        "DELETE FROM store_bindings WHERE broker = %(broker)s AND missing_since IS NOT NULL "
        "RETURNING routing_key, queue",
        {"broker": broker},
    )
    if rows:
        query = "DELETE FROM store_bindings WHERE broker <> %(broker)s"
        session.execute(query, {"broker": broker})
    return sorted({queue or key for key, queue in rows})


class Unread(NamedTuple):
    """How much waited in a queue of the store when it was last looked at."""

    queue: str
    messages: int
    looked_at: datetime


def keep_unread(session: Session, broker: str, unread: Mapping[str, int], now: datetime) -> None:
    """Keep how much waits in these queues, and of no others."""
    session.execute(
        "DELETE FROM store_queues WHERE broker = %(broker)s AND queue <> ALL(%(queues)s)",
        {"broker": broker, "queues": list(unread)},
    )
    session.execute(
        """
            INSERT INTO store_queues (broker, queue, unread, looked_at)
            SELECT %(broker)s, n.queue, n.unread, %(now)s
              FROM unnest(CAST(%(queues)s AS text[]), CAST(%(unread)s AS bigint[]))
                   AS n(queue, unread)
            ON CONFLICT (broker, queue) DO UPDATE
               SET unread = excluded.unread, looked_at = excluded.looked_at
            """,
        {
            "broker": broker,
            "queues": list(unread),
            "unread": list(unread.values()),
            "now": now,
        },
    )


def unread(session: Session, broker: str, since: datetime) -> list[Unread]:
    """Give how much waits in the store's queues, the longest first, as looked at since then."""
    rows = session.rows(
        "SELECT queue, unread, looked_at FROM store_queues "
        "WHERE broker = %(broker)s AND looked_at >= %(since)s ORDER BY unread DESC, queue",
        {"broker": broker, "since": since},
    )
    return [Unread(*row) for row in rows]
