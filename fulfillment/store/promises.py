"""More of what must always hold, beside `invariants.py`: attempts, dues, ledger and wallets.

Written in the same form: each statement finds whatever breaks its promise.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Invariant:
    """A promise, and the statement that gives the orders or accounts for which it is broken."""

    name: str
    promise: str
    statement: str
    #: It reads a whole table that grows for ever: asked every hour only.
    is_dear: bool = False

    @property
    def is_about_ids(self) -> bool:
        return "%(ids)s" in self.statement


#: What an order's attempts must be like.
_ATTEMPTS = (
    Invariant(
        "attempt_under_way",
        "an order that is being bought has the attempt that its status tells of, and its intent",
        """
        SELECT o.external_id FROM orders o
          LEFT JOIN attempts a ON a.order_id = o.id AND a.state IN ($live)
         WHERE o.status IN ('reserved', 'submitting', $followed) AND NOT coalesce(CASE
               WHEN o.between_attempts THEN a.id IS NULL
               WHEN (a.account, a.external_id) <> (o.account, o.external_id) THEN false
               WHEN o.status = 'reserved' THEN a.state = 'reserved'
               WHEN o.status = 'submitting' AND a.state = 'sending'
                   THEN a.sending_at IS NOT NULL AND a.body_sealed IS NOT NULL
               -- At a route's next account, after another one's no.
               WHEN o.status = 'submitting' THEN a.state = 'reserved' AND EXISTS (
                   SELECT 1 FROM attempts b WHERE b.order_id = o.id AND b.state = 'refused')
               WHEN o.status = 'needs_review' THEN a.id IS NOT NULL
               ELSE a.state = 'accepted' END, false)
        """,
    ),
    Invariant(
        "attempt_of_its_end",
        "what became of an order's attempts is what its status says",
        """
        SELECT o.external_id FROM orders o LEFT JOIN attempts a
            ON a.account = o.account AND a.external_id = o.external_id AND a.order_id = o.id
         WHERE o.id = ANY(%(ids)s) AND (NOT CASE
               WHEN o.status IN ('received', 'quoted', 'awaiting_funds') THEN a.id IS NULL
               WHEN o.status = 'completed' THEN coalesce(
                   a.state = 'completed' OR a.state = 'accepted' AND o.charged_mills IS NULL, false)
               WHEN o.status = 'reversed' THEN coalesce(a.state = 'completed', false)
               -- The provider may tell of a delivery, and of its charge, after the end.
               WHEN o.status IN ('failed', 'cancelled', 'expired') THEN coalesce(
                   a.state <> 'completed' OR o.charged_mills IS NOT NULL, true)
               ELSE true END
            OR EXISTS (SELECT 1 FROM attempts b WHERE b.order_id = o.id AND b.state <> 'refused'
                          AND (b.account, b.external_id) <> (o.account, o.external_id)))
        """,
    ),
    Invariant(
        "intent_is_kept",
        "whatever was bought was written down before it was sent",
        # What a restored database had forgotten is adopted without (services/recovery.py): its
        # price is then told by the sweep, as nobody else does. So is what was told of and ended.
        """
        SELECT o.external_id FROM orders o JOIN attempts a ON a.order_id = o.id
         WHERE o.id = ANY(%(ids)s) AND a.state IN ('sending', 'accepted', 'completed', 'ended')
           AND (a.sending_at IS NULL OR a.last_post_at IS NULL
                OR a.body_sealed IS NULL AND o.trade_url_sealed IS NOT NULL)
           AND NOT (a.posts = 0 AND o.told_early_at IS NOT NULL)
           AND NOT EXISTS (SELECT 1 FROM order_events e WHERE e.order_id = o.id
                              AND e.source = 'sweep' AND e.changes ->> 'quoted_mills' IS NOT NULL)
        """,
    ),
    Invariant(
        "absorbed_too_early",
        "a balance tells of an order's money only when its provider has confirmed the order",
        """
        SELECT o.external_id FROM attempts a JOIN orders o ON o.id = a.order_id
         WHERE a.state IN ($live) AND (a.absorbed_at < coalesce(a.confirmed_at, 'infinity')
                                       OR a.state = 'accepted' AND a.confirmed_at IS NULL)
        """,
    ),
)
#: What would keep an order from ever being looked at.
_DUES = (
    Invariant(
        "due_too_late",
        "no claim, no due time and no pause lies farther ahead than one is ever set",
        """
        SELECT o.external_id FROM orders o WHERE o.status IN ($waiting, 'submitting')
           AND (o.claimed_until > %(now)s + %(lease)s + %(patience)s
                OR o.next_attempt_at > %(now)s + %(longest_pause)s + %(patience)s)
        UNION ALL
        SELECT o.external_id FROM orders o WHERE o.status IN ($followed)
           AND (o.next_poll_at > %(now)s + %(longest_poll_gap)s + %(patience)s
                OR o.status = 'sent' AND o.next_watch_at > greatest(%(now)s, o.trade_deadline_at)
                   + CASE WHEN o.trade_deadline_at + %(overdue_grace)s <= %(now)s
                          THEN %(stalled_after)s ELSE %(overdue_grace)s END + %(patience)s)
        UNION ALL
        SELECT o.external_id FROM orders o
         WHERE o.next_poll_at > %(now)s + %(longest_watch_gap)s + %(patience)s
        UNION ALL
        SELECT o.external_id FROM webhook_deliveries d JOIN orders o ON o.id = d.order_id
         WHERE d.next_apply_at > %(now)s + %(lease)s + %(patience)s
        UNION ALL
        SELECT a.name FROM accounts a
         WHERE greatest(a.paused_until, a.purchases_paused_until)
               > %(now)s + %(longest_pause)s + %(patience)s
        """,
    ),
    Invariant(
        "claimed_past_its_time",
        "no claim keeps an order that was not submitted in time",
        """
        SELECT o.external_id FROM orders o WHERE o.status IN ($waiting)
           AND o.submit_by + %(review_after)s + %(patience)s <= %(now)s
        """,
    ),
    Invariant(
        "cannot_go_on",
        "an order that is not final has its trade URL, and one that is sent its deadline",
        """
        SELECT o.external_id FROM orders o WHERE o.status IN ($waiting, 'submitting', $followed)
           AND (o.trade_url_sealed IS NULL OR o.status = 'sent' AND o.trade_deadline_at IS NULL)
        """,
    ),
    Invariant(
        "webhook_forgotten",
        "a webhook that was taken is applied, or due to be",
        """
        SELECT o.external_id FROM orders o WHERE o.id = ANY(%(ids)s) AND EXISTS (
               SELECT 1 FROM webhook_deliveries d WHERE d.order_id = o.id
                  AND d.applied_at IS NULL AND d.next_apply_at IS NULL)
        """,
    ),
)
#: What money must be like. What is booked for a delivered order, and which entries may follow its
#: settlement, is told in `invariants.py`.
_MONEY = (
    Invariant(
        "money_fits_the_end",
        "money came back only where the order's end says so, and where the provider told of it; a "
        "charge is told anew only of what was delivered",
        """
        SELECT o.external_id FROM orders o JOIN attempts a ON a.order_id = o.id
         CROSS JOIN LATERAL (
               SELECT count(*) FILTER (WHERE kind = 'settle') AS settled,
                      count(*) FILTER (WHERE kind = 'release') AS released,
                      count(*) FILTER (WHERE kind = 'refund') AS refunded
                 FROM wallet_entries e WHERE e.attempt_id = a.id) e
         WHERE o.id = ANY(%(ids)s) AND (
               o.status NOT IN ('failed', 'cancelled', 'expired')
               AND (e.settled > 0 AND e.released > 0
                    OR e.refunded > 0 AND o.status <> 'reversed')
            OR a.state <> 'completed' AND a.external_id = o.external_id AND EXISTS (
               SELECT 1 FROM wallet_entries j
                WHERE j.order_id = o.id AND j.account = a.account AND j.kind = 'adjust')
            -- A count, and not EXISTS: that is answered by reading the whole inbox.
            OR o.status = 'reversed' AND e.settled > 0 AND e.refunded = 0 AND 0 < (
               SELECT count(*) FROM webhook_deliveries d
                WHERE d.order_id = o.id AND d.account = o.account
                  AND d.outcome IN ('applied', 'nothing new')
                  AND d.report ->> 'state' = 'reversed'
                  AND d.report ->> 'refunded_at' IS NOT NULL))
        """,
    ),
    Invariant(
        "held_above_quote",
        "no more is held, and so paid unquestioned, than the item was quoted at",
        # What is found bought by the sweep is quoted at what is told of it (services/recovery.py).
        """
        SELECT o.external_id FROM orders o
          JOIN attempts a ON a.account = o.account AND a.external_id = o.external_id
         WHERE o.id = ANY(%(ids)s) AND a.hold_mills > o.quoted_mills
           AND NOT EXISTS (SELECT 1 FROM order_events e WHERE e.order_id = o.id
                              AND e.source = 'sweep' AND e.changes ->> 'quoted_mills' IS NOT NULL)
        """,
    ),
    Invariant(
        "charged_above_cap",
        "no order is charged above its price cap without a word in its log",
        """
        SELECT o.external_id FROM orders o
          JOIN unnest(CAST(%(accounts)s AS text[]), CAST(%(slippage_bps)s AS bigint[]),
                      CAST(%(slippage_cents)s AS bigint[])) AS s(account, bps, cents)
            ON s.account = o.account
         WHERE o.id = ANY(%(ids)s) AND o.charged_mills > 10 * (o.expected_price_cents
                   + greatest(o.expected_price_cents * s.bps / 10000, s.cents))
           -- A cap that was lowered since then is none of what was bought before.
           AND o.charged_mills > coalesce((SELECT max(a.hold_mills) FROM attempts a
                                            WHERE a.order_id = o.id), 0)
           AND NOT EXISTS (SELECT 1 FROM order_events e WHERE e.order_id = o.id
                              AND position(%(above_cap)s IN e.note) > 0)
        """,
    ),
    Invariant(
        "rows_without_order",
        "the log and the ledger tell of orders and attempts that exist",
        """
        SELECT '#' || r.order_id FROM (
               SELECT order_id FROM order_events WHERE order_id > %(after)s AND order_id <= %(to)s
               UNION
               SELECT order_id FROM order_events WHERE order_id = ANY(%(ids)s)
               UNION
               SELECT order_id FROM attempts WHERE order_id > %(after)s AND order_id <= %(to)s
               UNION
               SELECT order_id FROM attempts WHERE order_id = ANY(%(ids)s)
               UNION
               SELECT order_id FROM wallet_entries WHERE order_id > %(after)s AND order_id <= %(to)s
               UNION
               SELECT order_id FROM wallet_entries WHERE order_id = ANY(%(ids)s)) r
         WHERE NOT EXISTS (SELECT 1 FROM orders o WHERE o.id = r.order_id)
        UNION ALL
        SELECT o.external_id FROM orders o JOIN wallet_entries e ON e.order_id = o.id
         WHERE o.id = ANY(%(ids)s) AND e.kind IN ('hold', 'settle', 'release', 'refund')
           AND NOT EXISTS (SELECT 1 FROM attempts a WHERE a.id = e.attempt_id)
        """,
    ),
    Invariant(
        "wallet_is_whole",
        "a wallet that money is held in has its row, and its figures can be true",
        """
        SELECT w.account FROM wallets w
         WHERE w.unexplained_mills < 0 OR w.credited_mills < 0
            -- What goes from now on would stop nobody.
            OR w.stopped_at_mills > w.unexplained_mills OR w.stopped_at_mills < 0
            OR (w.figure_mills IS NULL) <> (w.requested_at IS NULL)
            OR (w.opening_mills IS NULL) <> (w.expected_mills IS NULL)
            -- No newer balance would ever be taken for one.
            OR w.requested_at > %(now)s + %(patience)s
        UNION ALL
        SELECT a.account FROM attempts a WHERE a.state IN ($live)
           AND NOT EXISTS (SELECT 1 FROM wallets w WHERE w.account = a.account)
        """,
    ),
    Invariant(
        "wallet_adds_up",
        "a wallet is expected to hold what it began with, less what was booked, plus what is told",
        """
        SELECT w.account FROM wallets w
          LEFT JOIN (SELECT account, sum(booked_mills) AS mills FROM attempts GROUP BY account) b
            ON b.account = w.account
         WHERE w.expected_mills <> w.opening_mills - coalesce(b.mills, 0)
                                   + w.credited_mills - w.unexplained_mills
        """,
        is_dear=True,
    ),
)
PROMISES = (*_ATTEMPTS, *_DUES, *_MONEY)
