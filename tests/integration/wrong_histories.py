"""Wrong histories, one for each clause of an invariant: what it breaks, and how it is written.

And right ones that only a clause tells from wrong ones: what they do not break.

They are written into the orders of `test_invariants.ends`; an order's own number is put in as `id`.
"""

BOOK = (
    "INSERT INTO wallet_entries (account, order_id, attempt_id, kind, amount_mills, at, reason) "
    "SELECT account, order_id, id,"
)
_TOLD = (
    "INSERT INTO webhook_deliveries "
    "(account, order_id, digest, received_at, applied_at, outcome, report) "
    "VALUES (%(account)s, %(id)s, 'd', now(), now(), %(outcome)s, "
    """jsonb_build_object('state', CAST(%(state)s AS text), 'refunded_at', '2026-11-28'))"""
)


def _told(account: str = "main", outcome: str = "nothing new", state: str = "reversed") -> str:
    words = {"account": account, "outcome": outcome, "state": state}
    return _TOLD % ({name: f"'{word}'" for name, word in words.items()} | {"id": "%(id)s"})


def _sealed_elsewhere(days: int) -> str:
    """Have it over for so long, and sealed by a key that only others have."""
    return (
        f"UPDATE orders SET updated_at = now() - interval '{days} days', "
        "trade_url_sealed = convert_to('other:sealed', 'UTF8') WHERE id = %(id)s"
    )


_ADJUSTED = (
    "INSERT INTO wallet_entries (account, order_id, kind, amount_mills, at, reason) "
    "SELECT account, order_id, 'adjust', 10, now(), '' FROM attempts WHERE order_id = %(id)s"
)
_HELD_ABOVE = (
    "WITH a AS (UPDATE attempts SET hold_mills = hold_mills + 1 WHERE order_id = %(id)s) "
    "UPDATE wallet_entries SET amount_mills = amount_mills + 1 "
    "WHERE order_id = %(id)s AND kind = 'hold'"
)
#: The invariant, the order's name, the statement.
MORE: list[tuple[str, str, str]] = [
    (
        "final_order_open_hold",
        "completed",
        "WITH a AS (UPDATE attempts SET hold_closed_at = NULL, ended_at = NULL "
        "WHERE order_id = %(id)s) "
        "UPDATE orders SET updated_at = now() - interval '1 day' WHERE id = %(id)s",
    ),
    (
        "under_way_without_hold",
        "sent",
        "UPDATE attempts SET hold_closed_at = now() WHERE order_id = %(id)s",
    ),
    (
        "under_way_without_hold",
        "sent",
        "UPDATE attempts SET state = 'ended' WHERE order_id = %(id)s",
    ),
    ("nothing_due", "unknown", "UPDATE orders SET next_attempt_at = NULL WHERE id = %(id)s"),
    ("ended_and_due", "failed", "UPDATE orders SET next_attempt_at = now() WHERE id = %(id)s"),
    (
        "past_its_time",
        "waiting",
        "UPDATE orders SET submit_by = submit_by - interval '2 hours', "
        "claimed_until = now() - interval '1 hour' WHERE id = %(id)s",
    ),
    (
        "not_erased",
        "completed",
        "UPDATE orders SET updated_at = now() - interval '32 days', next_poll_at = NULL, "
        "reversible_until = now() - interval '32 days' WHERE id = %(id)s",
    ),
    ("not_erased", "failed", _sealed_elsewhere(days=39)),
    (
        "not_erased",
        "completed",
        "UPDATE orders SET updated_at = now() - interval '42 days', next_poll_at = now(), "
        "reversible_until = now() - interval '42 days' WHERE id = %(id)s",
    ),
    (
        "log_is_whole",
        "completed",
        "DELETE FROM order_events e USING orders o "
        "WHERE o.id = %(id)s AND e.order_id = o.id AND e.sequence = o.sequence",
    ),
    (
        "log_is_whole",
        "completed",
        "UPDATE order_events e SET sequence = e.sequence + 10 FROM orders o "
        "WHERE o.id = %(id)s AND e.order_id = o.id AND e.sequence = o.sequence",
    ),
    (
        "log_is_whole",
        "completed",
        "UPDATE order_events SET from_status = 'sent' "
        "WHERE order_id = %(id)s AND to_status = 'completed' AND from_status = 'accepted'",
    ),
    (
        "money_is_explained",
        "completed",
        "UPDATE wallet_entries SET account = 'other' WHERE order_id = %(id)s AND kind = 'settle'",
    ),
    (
        "money_is_explained",
        "completed",
        "UPDATE wallet_entries SET order_id = order_id + 1 "
        "WHERE order_id = %(id)s AND kind = 'settle'",
    ),
    (
        "money_is_explained",
        "completed",
        "UPDATE wallet_entries SET amount_mills = -1 WHERE order_id = %(id)s AND kind = 'settle'",
    ),
    (
        "money_is_explained",
        "completed",
        "UPDATE wallet_entries SET kind = 'release' WHERE order_id = %(id)s AND kind = 'settle'",
    ),
    (
        "money_is_explained",
        "declined",
        f"{BOOK} 'settle', hold_mills, now(), '' FROM attempts WHERE order_id = %(id)s",
    ),
    (
        "money_is_explained",
        "declined",
        "UPDATE wallet_entries SET amount_mills = 1 WHERE order_id = %(id)s AND kind = 'release'",
    ),
    (
        "money_is_explained",
        "sent",
        "WITH a AS (UPDATE attempts SET hold_closed_at = now() WHERE order_id = %(id)s) "
        f"{BOOK} 'release', hold_mills, now(), '' FROM attempts WHERE order_id = %(id)s",
    ),
    (
        "money_is_explained",
        "declined",
        "WITH e AS (DELETE FROM wallet_entries WHERE order_id = %(id)s AND kind = 'release') "
        "UPDATE attempts SET hold_closed_at = NULL WHERE order_id = %(id)s",
    ),
    (
        "money_is_explained",
        "declined",
        f"{BOOK} 'refund', 0, now(), '' FROM attempts WHERE order_id = %(id)s",
    ),
    (
        "attempt_under_way",
        "unknown",
        "UPDATE orders SET between_attempts = true WHERE id = %(id)s",
    ),
    (
        "attempt_under_way",
        "sent",
        "UPDATE attempts SET account = 'other' WHERE order_id = %(id)s",
    ),
    (
        "attempt_under_way",
        "sent",
        "UPDATE attempts SET external_id = 'other' WHERE order_id = %(id)s",
    ),
    ("attempt_under_way", "unknown", "UPDATE orders SET status = 'reserved' WHERE id = %(id)s"),
    (
        "attempt_under_way",
        "unknown",
        "UPDATE attempts SET sending_at = NULL WHERE order_id = %(id)s",
    ),
    (
        "attempt_under_way",
        "unknown",
        "UPDATE attempts SET body_sealed = NULL WHERE order_id = %(id)s",
    ),
    (
        "attempt_under_way",
        "unknown",
        "UPDATE attempts SET state = 'reserved' WHERE order_id = %(id)s",
    ),
    (
        "attempt_under_way",
        "unknown",
        "WITH o AS (UPDATE orders SET status = 'needs_review' WHERE id = %(id)s) "
        "UPDATE attempts SET state = 'refused' WHERE order_id = %(id)s",
    ),
    ("attempt_under_way", "sent", "UPDATE attempts SET state = 'sending' WHERE order_id = %(id)s"),
    ("attempt_under_way", "sent", "DELETE FROM attempts WHERE order_id = %(id)s"),
    (
        "attempt_of_its_end",
        "waiting",
        "INSERT INTO attempts "
        "(order_id, account, external_id, state, hold_mills, posts, created_at) "
        "SELECT id, account, external_id, 'refused', 1, 0, now() FROM orders WHERE id = %(id)s",
    ),
    ("attempt_of_its_end", "completed", "DELETE FROM attempts WHERE order_id = %(id)s"),
    (
        "attempt_of_its_end",
        "completed",
        "UPDATE attempts SET state = 'ended' WHERE order_id = %(id)s",
    ),
    (
        "attempt_of_its_end",
        "completed",
        "UPDATE attempts SET state = 'accepted' WHERE order_id = %(id)s",
    ),
    (
        "attempt_of_its_end",
        "reversed",
        "UPDATE attempts SET state = 'refused' WHERE order_id = %(id)s",
    ),
    (
        "attempt_of_its_end",
        "failed",
        "UPDATE attempts SET state = 'completed' WHERE order_id = %(id)s",
    ),
    (
        "attempt_of_its_end",
        "refused",
        "INSERT INTO attempts "
        "(order_id, account, external_id, state, hold_mills, posts, created_at) "
        "VALUES (%(id)s, 'other', 'x', 'ended', 1, 1, now())",
    ),
    (
        "intent_is_kept",
        "completed",
        "UPDATE attempts SET sending_at = NULL WHERE order_id = %(id)s",
    ),
    ("intent_is_kept", "sent", "UPDATE attempts SET last_post_at = NULL WHERE order_id = %(id)s"),
    ("intent_is_kept", "failed", "UPDATE attempts SET body_sealed = NULL WHERE order_id = %(id)s"),
    ("intent_is_kept", "unknown", "UPDATE attempts SET body_sealed = NULL WHERE order_id = %(id)s"),
    (
        "absorbed_too_early",
        "unknown",
        "UPDATE attempts SET absorbed_at = now() WHERE order_id = %(id)s",
    ),
    (
        "absorbed_too_early",
        "sent",
        "UPDATE attempts SET absorbed_at = confirmed_at - interval '1 second' "
        "WHERE order_id = %(id)s",
    ),
    (
        "absorbed_too_early",
        "sent",
        "UPDATE attempts SET confirmed_at = NULL, absorbed_at = NULL WHERE order_id = %(id)s",
    ),
    (
        "due_too_late",
        "waiting",
        "UPDATE orders SET claimed_until = now() + interval '1 hour' WHERE id = %(id)s",
    ),
    (
        "due_too_late",
        "unknown",
        "UPDATE orders SET next_attempt_at = now() + interval '1 day' WHERE id = %(id)s",
    ),
    (
        "due_too_late",
        "sent",
        "UPDATE orders SET next_poll_at = now() + interval '1 hour' WHERE id = %(id)s",
    ),
    (
        "due_too_late",
        "sent",
        "UPDATE orders SET next_watch_at = now() + interval '1 hour' WHERE id = %(id)s",
    ),
    (
        "due_too_late",
        "completed",
        "UPDATE orders SET next_poll_at = now() + interval '1 day' WHERE id = %(id)s",
    ),
    (
        "due_too_late",
        "completed",
        "INSERT INTO webhook_deliveries "
        "(account, order_id, digest, received_at, next_apply_at, outcome) "
        "VALUES ('main', %(id)s, 'd', now(), now() + interval '1 hour', '')",
    ),
    (
        "claimed_past_its_time",
        "waiting",
        "UPDATE orders SET submit_by = now() - interval '2 hours', "
        "claimed_until = now() + interval '20 seconds' WHERE id = %(id)s",
    ),
    ("cannot_go_on", "waiting", "UPDATE orders SET trade_url_sealed = NULL WHERE id = %(id)s"),
    ("cannot_go_on", "sent", "UPDATE orders SET trade_deadline_at = NULL WHERE id = %(id)s"),
    (
        "webhook_forgotten",
        "completed",
        "INSERT INTO webhook_deliveries (account, order_id, digest, received_at, outcome) "
        "VALUES ('main', %(id)s, 'd', now(), '')",
    ),
    (
        "money_fits_the_end",
        "completed",
        f"{BOOK} 'release', hold_mills, now(), '' FROM attempts WHERE order_id = %(id)s",
    ),
    (
        "money_fits_the_end",
        "completed",
        f"{BOOK} 'refund', 10, now(), '' FROM attempts WHERE order_id = %(id)s",
    ),
    ("money_fits_the_end", "reversed", _told()),
    ("money_fits_the_end", "failed", _ADJUSTED),
    ("money_fits_the_end", "sent", _ADJUSTED),
    ("held_above_quote", "sent", _HELD_ABOVE),
    ("held_above_quote", "completed", _HELD_ABOVE),
    ("money_is_explained", "sent", "UPDATE attempts SET unbooked = -1 WHERE order_id = %(id)s"),
    (
        "money_is_explained",
        "completed",
        "UPDATE attempts SET ended_at = NULL WHERE order_id = %(id)s",
    ),
    (
        "money_is_explained",
        "reversed",
        f"{BOOK} 'refund', hold_mills - 1, now(), '' FROM attempts WHERE order_id = %(id)s",
    ),
    (
        "charged_above_cap",
        "completed",
        "UPDATE orders SET charged_mills = 6121 WHERE id = %(id)s",
    ),
    (
        "rows_without_order",
        "completed",
        "WITH e AS (UPDATE wallet_entries SET kind = 'release', attempt_id = -1 "
        "WHERE order_id = %(id)s AND kind = 'settle') SELECT 1",
    ),
]
#: The same about accounts.
WRONG_WALLETS = [
    ("wallet_is_whole", "UPDATE wallets SET unexplained_mills = -1"),
    ("wallet_is_whole", "UPDATE wallets SET credited_mills = -1"),
    ("wallet_is_whole", "UPDATE wallets SET requested_at = NULL"),
    ("wallet_is_whole", "UPDATE wallets SET expected_mills = NULL"),
    ("wallet_is_whole", "UPDATE wallets SET requested_at = now() + interval '1 hour'"),
    ("wallet_is_whole", "UPDATE wallets SET stopped_at_mills = unexplained_mills + 1"),
    ("wallet_is_whole", "UPDATE wallets SET stopped_at_mills = -1"),
    ("wallet_is_whole", "DELETE FROM wallets"),
    ("due_too_late", "UPDATE accounts SET paused_until = now() + interval '3 hours'"),
    ("due_too_late", "UPDATE accounts SET purchases_paused_until = now() + interval '3 hours'"),
    ("wallet_adds_up", "UPDATE wallets SET opening_mills = opening_mills + 1"),
    ("wallet_adds_up", "UPDATE wallets SET expected_mills = expected_mills + 1"),
    ("wallet_adds_up", "UPDATE wallets SET credited_mills = credited_mills + 1"),
    ("wallet_adds_up", "UPDATE wallets SET unexplained_mills = unexplained_mills + 1"),
    ("wallet_adds_up", "UPDATE attempts SET booked_mills = booked_mills + 1 WHERE id = "
     "(SELECT min(id) FROM attempts)"),
    ("overcommitted", "UPDATE attempts SET sending_at = NULL, absorbed_at = NULL "
     "WHERE hold_closed_at IS NULL"),
    ("overcommitted", "UPDATE attempts SET sending_at = now() + interval '1 day', "
     "absorbed_at = NULL WHERE hold_closed_at IS NULL"),
]  # fmt: skip
_UNCHARGED = (
    "WITH a AS (UPDATE attempts SET state = 'accepted', hold_closed_at = NULL, "
    "ended_at = now() - interval '1 day' WHERE order_id = %(id)s) "
    "UPDATE orders SET charged_mills = NULL WHERE id = %(id)s"
)
RIGHT: list[tuple[str, str, str]] = [
    (
        "final_order_open_hold",
        "sent",
        "UPDATE orders SET updated_at = now() - interval '1 day' WHERE id = %(id)s",
    ),
    ("final_order_open_hold", "completed", _UNCHARGED),
    ("final_order_open_attempt", "completed", _UNCHARGED),
    ("attempt_of_its_end", "completed", _UNCHARGED),
    (
        "under_way_without_hold",
        "unknown",
        "WITH a AS (UPDATE attempts SET state = 'refused' WHERE order_id = %(id)s) "
        "UPDATE orders SET between_attempts = true WHERE id = %(id)s",
    ),
    (
        "nothing_due",
        "sent",
        "UPDATE orders SET overdue = true, next_watch_at = NULL WHERE id = %(id)s",
    ),
    (
        "past_its_time",
        "waiting",
        "UPDATE orders SET submit_by = now() - interval '1 hour', "
        "claimed_until = now() + interval '10 minutes' WHERE id = %(id)s",
    ),
    (
        "past_its_time",
        "sent",
        "UPDATE orders SET trade_deadline_at = now() - interval '1 day', overdue = true "
        "WHERE id = %(id)s",
    ),
    (
        "not_erased",
        "sent",
        "UPDATE orders SET updated_at = now() - interval '32 days', next_poll_at = NULL "
        "WHERE id = %(id)s",
    ),
    (
        "not_erased",
        "completed",
        "UPDATE orders SET updated_at = now() - interval '32 days', "
        "reversible_until = now() - interval '32 days' WHERE id = %(id)s",
    ),
    (
        "not_erased",
        "completed",
        "UPDATE orders SET updated_at = now() - interval '32 days', next_poll_at = NULL "
        "WHERE id = %(id)s",
    ),
    ("not_erased", "failed", _sealed_elsewhere(days=37)),
    (
        "delivery_not_watched",
        "reversed",
        "UPDATE orders SET reversible_until = now() + interval '1 day' WHERE id = %(id)s",
    ),
    (
        "held_above_quote",
        "sent",
        "WITH e AS (UPDATE order_events SET source = 'sweep' WHERE order_id = %(id)s "
        "AND changes ->> 'quoted_mills' IS NOT NULL) "
        "UPDATE attempts SET hold_mills = hold_mills + 1 WHERE order_id = %(id)s",
    ),
    (
        "due_too_late",
        "sent",
        "UPDATE accounts SET paused_until = now() + interval '20 minutes', "
        "purchases_paused_until = now() + interval '20 minutes'",
    ),
    ("money_fits_the_end", "reversed", _told(account="other")),
    ("money_fits_the_end", "reversed", _told(outcome="not applied")),
    ("money_fits_the_end", "reversed", _told(state="failed")),
    (
        "overcommitted",
        "sent",
        "UPDATE attempts SET sending_at = NULL, absorbed_at = now() WHERE hold_closed_at IS NULL",
    ),
    (
        "overcommitted",
        "sent",
        "UPDATE attempts SET sending_at = NULL, absorbed_at = NULL, hold_closed_at = now()",
    ),
    (
        "overcommitted",
        "sent",
        "UPDATE attempts SET absorbed_at = NULL, sending_at = now() - interval '1 hour'",
    ),
]
