"""Planted bugs: each breaks a promise by a few characters, and some test must find it out.

A mutant is data: where it is, what stands there, what is written in its place, which promise it
breaks, and the tests that are asked first. `python -m tests.faults.mutate` plants them.
"""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
UNIT, INTEGRATION = "tests/unit/test_", "tests/integration/test_"


@dataclass(frozen=True)
class Mutant:
    """One bug; `old` stands exactly once in `path`, and `tests` are pytest's arguments."""

    name: str
    promise: str
    why: str
    path: str
    old: str
    new: str
    tests: tuple[str, ...]

    def applied(self, text: str) -> str:
        """Plant the bug. Raises ValueError where the code has changed under it."""
        if text.count(self.old) != 1:
            found = text.count(self.old)
            raise ValueError(f"{self.name}: expected its place once in {self.path}, found {found}")
        return text.replace(self.old, self.new)


def _in(package: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{package}{name}.py" for name in names)


def _integration(*names: str) -> tuple[str, ...]:
    return _in(INTEGRATION, *names)


SERVICES, STORE = "fulfillment/services/", "fulfillment/store/"

MUTANTS = (
    # Never buy twice
    Mutant(
        "unknown_is_no", "I1", "a purchase without an answer is taken for refused",
        SERVICES + "answers.py",
        "        return Unknown(str(error), error, was_answered=False)\n"
        "    except (ProviderNotReached, ProviderDeniesAccount)",
        '        return Refused(ProviderRefused(FailureCode.ITEM_UNAVAILABLE, "no answer"))\n'
        "    except (ProviderNotReached, ProviderDeniesAccount)",
        _integration("chain", "outcomes"),
    ),
    Mutant(
        "last_look_is_left_out", "I1", "a claim that lapsed while something else was asked is held",
        SERVICES + "answers.py",
        "    if not is_held():",
        "    if not is_held() and order.id < 0:",
        _integration("other_providers"),
    ),
    Mutant(
        "refused_replay_is_believed", "I1", "a no to a replay ends what the first post bought",
        SERVICES + "answers.py",
        "_confirm(context, order, attempt, error) if was_unknown else Refused(error)",
        "Refused(error)",
        _integration("outcomes"),
    ),
    Mutant(
        "young_lookup_is_believed", "I1", "a cached 404 counts as proof of absence",
        SERVICES + "answers.py",
        "context.now() - attempt.last_post_at < context.cache_time:",
        "context.now() < attempt.last_post_at:",
        _integration("outcomes"),
    ),
    Mutant(
        "skinslink_is_posted_again", "I1", "a purchase that must not be repeated is repeated",
        SERVICES + "unknowns.py",
        "        case AfterUnknown.LOOKUP_ONLY:\n            return Step.LOOK_UP",
        "        case AfterUnknown.LOOKUP_ONLY:\n            return Step.POST",
        _integration("unknown_policies"),
    ),
    Mutant(
        "one_lookup_is_enough", "I1", "SkinsBack is posted again after one empty lookup",
        SERVICES + "unknowns.py",
        "attempt.empty_lookups >= 2 and attempt.empty_at - attempt.empty_since >= LOOKUPS_APART",
        "attempt.empty_lookups >= 1",
        _integration("unknown_policies"),
    ),
    Mutant(
        "other_bytes_are_replayed", "I1", "a replay is written anew instead of sent as it was",
        SERVICES + "submission.py",
        "    if attempt.body_sealed is not None and is_own:",
        "    if attempt.body_sealed is not None and attempt.posts > 1000:",
        _integration("outcomes"),
    ),
    Mutant(
        "sent_is_left", "I1", "an order goes on from an account at which it may have been bought",
        STORE + "models.py",
        "        return is_open and self.unknown_since is None",
        "        return is_open",
        _integration("routes_faults", "routes"),
    ),
    Mutant(
        "another_merchant_is_asked", "I1", "what one merchant may have is bought at another",
        SERVICES + "submission.py",
        "        members = keep_own(context, claim, members)\n",
        "",
        _integration("merchants"),
    ),
    Mutant(
        "claim_is_no_guard", "I1", "a worker that lost its claim writes all the same",
        STORE + "orders.py",
        "         WHERE o.id = m.id AND o.id IN (SELECT id FROM locked)\n"
        "           AND o.status = m.source AND (m.claim IS NULL OR o.claim = m.claim)",
        "         WHERE o.id = m.id AND o.status = m.source",
        _integration("orders_store"),
    ),
    Mutant(
        "claim_keeps_its_name", "I1", "a doubled step finds its batch as the first left it",
        STORE + "claims.py",
        "            UPDATE orders SET claim = %(new)s, claimed_until = %(until)s WHERE id IN (\n"
        "                SELECT id FROM orders WHERE id = ANY(%(ids)s) AND claim = %(old)s",
        "            UPDATE orders SET claim = %(new)s, claimed_until = %(until)s WHERE id IN (\n"
        "                SELECT id FROM orders WHERE id = ANY(%(ids)s) "
        "AND claim IN (%(old)s, %(new)s)",
        _integration("claims", "workers"),
    ),
    Mutant(
        "lapsed_lease_is_held", "I1", "a worker that slept past its lease sends its request",
        SERVICES + "claiming.py",
        "        return not self._lapses.is_over", "        return self._lapses is not None",
        _integration("workers"),
    ),
    Mutant(
        "living_claim_is_taken", "I1", "what a living worker holds is handed out again",
        STORE + "claims.py",
        "o.next_attempt_at <= %(now)s AND (o.claimed_until IS NULL OR o.claimed_until <= %(now)s)",
        "o.next_attempt_at <= %(now)s",
        _integration("claims", "sweep"),
    ),
    Mutant(
        "other_content_is_known", "I1", "other content under a known id is no conflict",
        SERVICES + "intake.py",
        "    return context.seal.matches(order.fingerprint, _content(event))",
        "    return order.external_id == event.external_id",
        _integration("intake"),
    ),
    # Never lose an order
    Mutant(
        "intent_forgets_the_body", "I2", "a replay after a crash has no bytes to send",
        STORE + "ledger.py",
        "SET state = 'sending', body_sealed = b.body, posts = posts + 1,",
        "SET state = 'sending', posts = posts + 1,",
        _integration("outcomes"),
    ),
    Mutant(
        "stuck_is_not_found", "I2", "submissions of dead workers are never taken up",
        STORE + "claims.py",
        """_TO_SUBMIT = f"(o.status IN ('reserved', 'submitting') AND NOT {_BETWEEN})\"""",
        """_TO_SUBMIT = f"(o.status IN ('reserved') AND NOT {_BETWEEN})\"""",
        _integration("sweep", "workers"),
    ),
    Mutant(
        "empty_catalog_is_gone", "I2", "an order whose price is unclear fails as unavailable",
        SERVICES + "catalog.py",
        "        if order.id in unquoted:\n            continue\n",
        "",
        _integration("chain", "other_providers", "rate_budget"),
    ),
    Mutant(
        "denied_is_refused", "I2", "revoked credentials end the order and not the account's work",
        SERVICES + "answers.py",
        "        kept = Unknown(str(error), error) if was_unknown else NotSent(str(error), error)",
        '        return Refused(ProviderRefused(FailureCode.ITEM_UNAVAILABLE, "denied"))',
        _integration("workers"),
    ),
    Mutant(
        "watchdog_invents_expired", "I2", "our clock ends what the provider still has",
        SERVICES + "watchdog.py",
        "            if now >= order.trade_deadline_at:\n                over.append(order.id)\n",
        "            if now >= order.trade_deadline_at:\n"
        "                moves.append(Move(order.id, order.status, OrderStatus.EXPIRED,"
        " Source.WATCHDOG))\n                continue\n",
        _integration("watchdog"),
    ),
    # Never spend what is not there
    Mutant(
        "holds_are_free", "I3", "money that is held is spent again",
        STORE + "ledger.py",
        "                 WHERE a.account = %(account)s AND a.absorbed_at IS NULL)",
        "                 WHERE a.account = %(account)s AND a.absorbed_at IS NULL AND false)",
        _integration("ledger", "funds"),
    ),
    Mutant(
        "figure_is_believed_at_once", "I3", "a 30 s old balance is taken for one of now",
        STORE + "proof.py",
        "absorbed_at IS NULL AND {debited} + %(lag)s <= %(at)s\n",
        "absorbed_at IS NULL AND {debited} <= %(at)s\n",
        _integration("ledger", "funds"),
    ),
    Mutant(
        "failed_hold_is_free_at_once", "I3", "a failed order's money is free before it is back",
        STORE + "proof.py",
        "               hold_closed_at = CASE WHEN ended_at + %(lag)s <= %(at)s",
        "               hold_closed_at = CASE WHEN ended_at <= %(at)s",
        _integration("ledger"),
    ),
    Mutant(
        "price_is_no_limit", "I3", "a price above the agreed one is bought",
        SERVICES + "catalog.py",
        "        elif quote.price_mills > cents_to_mills(limit_cents):",
        "        elif quote.price_mills > 2 * cents_to_mills(limit_cents):",
        _integration("chain"),
    ),
    Mutant(
        "slippage_is_added", "I3", "both slippages together are allowed",
        "fulfillment/settings.py",
        "        slippage = max(expected_cents * self.slippage_bps // 10_000, self.slippage_cents)",
        "        slippage = expected_cents * self.slippage_bps // 10_000 + self.slippage_cents",
        _in(UNIT, "settings") + _integration("chain"),
    ),
    Mutant(
        "cap_is_rounded_up", "I3", "a cap shown in cents is more than the cap",
        "schemas/money.py",
        "    return mills // MILLS_PER_CENT",
        "    return -(-mills // MILLS_PER_CENT)",
        _in(UNIT, "money"),
    ),
    Mutant(
        "floats_are_money", "I3", "amounts come through binary fractions",
        "schemas/money.py",
        "    value = _EXACT.multiply(Decimal(text), factor)",
        "    value = _EXACT.multiply(Decimal(float(text)), factor)",
        _in(UNIT, "money"),
    ),
    Mutant(
        "spend_cap_is_endless", "I3", "the cap an hour stops nothing",
        SERVICES + "funds.py",
        "    within = available if room is None else min(available, room)",
        "    within = available",
        _integration("brakes"),
    ),
    Mutant(
        "switch_is_not_looked_at", "I3", "a stopped account still sends what was gathered",
        SERVICES + "submission.py",
        "    if gate.is_stopped or (gate.are_broken and not is_ahead):",
        "    if gate.are_broken and not is_ahead:",
        _integration("brakes"),
    ),
    Mutant(
        "switch_has_no_last_look", "I3", "what was let go waits, and leaves a stopped account",
        SERVICES + "answers.py",
        "    if not is_at_once and (why := why_stopped()):",
        "    if not is_at_once and order.id < 0 and (why := why_stopped()):",
        _integration("kill_switch"),
    ),
    Mutant(
        "any_stop_is_resumed", "I3", "a stop that nobody has seen is resumed with the one before",
        SERVICES + "brakes.py",
        "    if ends is not None and switches.stops(session).get(name) != ends:",
        "    if ends is not None and name not in switches.stops(session):",
        _integration("kill_switch"),
    ),
    Mutant(
        "any_turn_forgets_reversals", "I3", "a stop for another reason begins their count anew",
        STORE + "switches.py",
        "WHERE account = %(account)s AND by = %(watch)s\n         UNION ALL",
        "WHERE account = %(account)s AND %(watch)s <> ''\n         UNION ALL",
        _integration("watches"),
    ),
    Mutant(
        "news_is_written_over", "I2", "a person's finding ends what turned up meanwhile",
        SERVICES + "operations.py",
        "    if present.sequence == order.sequence:",
        "    if present.status is order.status:",
        _integration("resolve"),
    ),
    Mutant(
        "late_is_bought", "I3", "an order is bought for a customer who was refunded",
        SERVICES + "answers.py",
        "    return order.submit_by <= context.now()",
        "    return order.submit_by <= context.now() and order.id < 0",
        _integration("outcomes"),
    ),
    # Status only moves forward
    Mutant(
        "ranks_are_ignored", "I4", "a cached answer takes an order back",
        SERVICES + "decide.py",
        "    if order.status is not OrderStatus.NEEDS_REVIEW"
        " and RANK[target] < RANK[order.status]:",
        "    if order.status is not OrderStatus.NEEDS_REVIEW and RANK[target] < 0:",
        _in(UNIT, "decide"),
    ),
    Mutant(
        "an_end_is_left", "I4", "news after the end is applied like any other",
        SERVICES + "decide.py",
        "    if order.status in FINAL:\n        return _after_the_end",
        "    if order.status in FINAL and target is OrderStatus.REVERSED:\n"
        "        return _after_the_end",
        _in(UNIT, "decide"),
    ),
    Mutant(
        "source_is_no_guard", "I4", "of two writers both move the order",
        STORE + "orders.py",
        "         WHERE o.id = m.id AND o.id IN (SELECT id FROM locked)\n"
        "           AND o.status = m.source AND (m.claim IS NULL OR o.claim = m.claim)",
        "         WHERE o.id = m.id AND (m.claim IS NULL OR o.claim = m.claim)",
        _integration("orders_store"),
    ),
    Mutant(
        "unknown_word_is_delivered", "I4", "a word of no contract is success",
        SERVICES + "decide.py",
        "    target = report.state.order_status()\n    news = _news(order, report)",
        "    target = report.state.order_status() or OrderStatus.COMPLETED\n"
        "    news = _news(order, report)",
        _in(UNIT, "decide"),
    ),
    # Everything is explained
    Mutant(
        "event_without_changes", "I5", "the log no longer rebuilds the row",
        STORE + "orders.py",
        "by, source, status, note, changes, tell FROM moved",
        "by, source, status, note, jsonb_build_object(), tell FROM moved",
        _integration("orders_store", "invariants"),
    ),
    Mutant(
        "hold_without_its_entry", "I5", "a release has no entry in the money log",
        STORE + "proof.py",
        "      FROM known WHERE state = 'ended' AND hold_closed_at = %(at)s",
        "      FROM known WHERE state = 'ended' AND hold_closed_at > %(at)s",
        _integration("ledger", "chain"),
    ),
    # No secret leaks
    Mutant(
        "token_is_logged", "I6", "trade tokens stand in log lines",
        "fulfillment/log.py",
        "        return masked(super().format(record))",
        "        return super().format(record)",
        _in(UNIT, "log"),
    ),
    Mutant(
        "arguments_are_shown", "I6", "a foreign sender's trade token is seen in Flower",
        "tasks/base.py",
        'return f"externalId={found} ***" if is_id else "***"',
        'return str(arg) if is_id else "***"',
        _in(UNIT, "tasks"),
    ),
    Mutant(
        "erased_too_early", "I6", "a trade that can still be undone has lost its trade URL",
        STORE + "erasure.py",
        "AND coalesce(reversible_until, updated_at) <= %(before)s\n       AND next_poll_at IS NULL",
        "AND true",
        _integration("erasure"),
    ),
    # We agree with the provider
    Mutant(
        "expected_is_booked", "I7", "the held amount is booked and not what was charged",
        STORE + "ledger.py",
        "        RETURNING a.*, coalesce(p.amount, a.hold_mills) AS amount, p.reason",
        "        RETURNING a.*, a.hold_mills AS amount, p.reason",
        _integration("ledger", "chain"),
    ),
    Mutant(
        "refund_is_lost", "I7", "money that came back is not booked",
        SERVICES + "decide.py",
        "        money += (Money.REFUND,) if report.refunded_at else ()\n"
        "        note = \"the delivered trade was undone\"",
        "        note = \"the delivered trade was undone\"",
        _in(UNIT, "decide") + _integration("reconciliation"),
    ),
    Mutant(
        "reversal_is_not_watched", "I7", "nobody looks at a delivered order again",
        SERVICES + "reports.py",
        "        return {**NOTHING_DUE, \"next_poll_at\": at}",
        "        return dict(NOTHING_DUE)",
        _integration("reconciliation"),
    ),
    Mutant(
        "another_item_is_adopted", "I7", "a purchase of another item under our id is ours",
        SERVICES + "decide.py",
        "    if order.status not in FOLLOWED | UNCONFIRMED | {OrderStatus.COMPLETED}:",
        "    if order.status is not OrderStatus.COMPLETED:",
        _in(UNIT, "decide_item") + _integration("unknown_policies"),
    ),
    Mutant(
        "quarantine_is_forgotten", "I7", "news that tell of no item let another item pass",
        SERVICES + "contradictions.py",
        "    return [each for each in order.contradictions if not set_right[each.split()[0]]]",
        "    return []",
        _in(UNIT, "decide_item"),
    ),
    Mutant(
        "refused_is_forgotten", "I7", "nobody asks how a refused order ends that was bought",
        SERVICES + "reconciliation.py",
        "    if order.status in FINAL and not order.lives_on:",
        "    if order.status in FINAL:",
        _integration("news_of_orders"),
    ),
    Mutant(
        "stalled_is_followed_for_ever", "I2", "an order that never ends is brought to nobody",
        SERVICES + "reports.py",
        "        due[\"next_watch_at\"] = now + context.stalled_after",
        "        due[\"next_watch_at\"] = None",
        _integration("news_of_orders"),
    ),
    Mutant(
        "other_charge_is_not_booked", "I7", "a charge that is told anew stays as it was booked",
        SERVICES + "reports.py",
        "        if self.adjusted:\n",
        "        if not self.adjusted:\n",
        _integration("news_of_orders", "reconciliation"),
    ),
    # The store hears everything
    Mutant(
        "silent_alarm", "I8", "nobody hears that an order needs a person",
        SERVICES + "reports.py",
        "        tell=(NEEDS_REVIEW,) if decision.is_alarm else (),",
        "        tell=(),",
        _integration("reconciliation", "outcomes"),
    ),
    Mutant(
        "moves_without_news", "I8", "the store does not hear of changes of status",
        STORE + "orders.py",
        "    is_news = source is not target or not",
        "    is_news = not",
        _integration("orders_store"),
    ),
    Mutant(
        "unsigned_updates", "I8", "updates bear a signature that anybody can make",
        "fulfillment/messaging/relay.py",
        '    return hmac.digest(secret.encode(), body, "sha256").hex()',
        '    return hmac.digest(b"", body, "sha256").hex()',
        ("tests/unit/test_signing.py",),
    ),
    # Bounded effort
    Mutant(
        "polls_without_a_gap", "I9", "an order is asked about all the time",
        SERVICES + "schedule.py",
        "    at = now + _jittered(context, smallest * factor)",
        "    at = now + _jittered(context, factor)",
        _integration("reconciliation") + _in(UNIT, "schedule"),
    ),
    Mutant(
        "no_pause_after_failures", "I9", "a provider that is down is asked without pause",
        STORE + "accounts.py",
        "    longest = min(60.0, 2.0 ** min(failed, 6))",
        "    longest = 0.0",
        _integration("rate_budget", "funds"),
    ),
    Mutant(
        "budget_is_endless", "I9", "requests are granted beyond the account's limit",
        STORE + "accounts.py",
        "        granted = min(wanted, max(levels.left(purpose) - leaving, 0))",
        "        granted = wanted",
        _integration("rate_budget"),
    ),
    # Unverified bytes change nothing
    Mutant(
        "any_signature_is_good", "I10", "a signature of the right form is enough",
        "fulfillment/providers/signing.py",
        "    return any(matches)",
        "    return any(matches) or len(found) > 0",
        ("tests/contract/test_webhook_contract.py",),
    ),
    Mutant(
        "empty_secret_signs", "I10", "an account without a secret takes anybody's webhooks",
        "fulfillment/providers/signing.py",
        "(hmac_hex(s, message, digest) for s in secrets if s)",
        "(hmac_hex(s, message, digest) for s in secrets)",
        (*_in(UNIT, "signing"), "tests/contract"),
    ),
    Mutant(
        "stale_is_applied", "I10", "an old delivery is applied and not asked about",
        "fulfillment/providers/base.py",
        "signed_at is not None and abs((now - signed_at).total_seconds()) <= tolerance_s",
        "signed_at is not None and tolerance_s >= 0",
        _integration("webhooks_service"),
    ),
    Mutant(
        "known_by_delivery_alone", "I10", "the same bytes at another time are the same delivery",
        SERVICES + "webhooks.py",
        "    return hashlib.sha256(signed_at.encode() + b\".\" + body).hexdigest()",
        "    return hashlib.sha256(signed_at.encode()).hexdigest()",
        _integration("webhooks_service", "hostile_webhooks"),
    ),
    Mutant(
        "strangers_webhook_is_ours", "I10", "an account speaks of another account's order",
        SERVICES + "webhooks.py",
        "    return order if ledger.is_tried(session, account, order.external_id) else None",
        "    return order",
        _integration("web_webhooks", "webhooks_service"),
    ),
    Mutant(
        "any_token_comes_in", "I10", "the API asks for a token and takes each",
        "fulfillment/web/tokens.py",
        "            if hmac.compare_digest(digest, known):",
        "            if len(digest) == len(known):",
        _integration("web_limits"),
    ),
)  # fmt: skip
