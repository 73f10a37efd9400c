"""Bugs in what is written down, shown, told and asked (I4 to I10)."""

from tests.faults.mutants.mutant import SERVICES, STORE, UNIT, Mutant, integration, within

TELLING = (
    # Status only moves forward
    Mutant(
        "ranks_are_ignored", "I4", "a cached answer takes an order back",
        SERVICES + "decide.py",
        "    if order.status is not OrderStatus.NEEDS_REVIEW"
        " and RANK[target] < RANK[order.status]:",
        "    if order.status is not OrderStatus.NEEDS_REVIEW and RANK[target] < 0:",
        within(UNIT, "decide"),
    ),
    Mutant(
        "an_end_is_left", "I4", "news after the end is applied like any other",
        SERVICES + "decide.py",
        "    if order.status in FINAL:\n        return _after_the_end",
        "    if order.status in FINAL and target is OrderStatus.REVERSED:\n"
        "        return _after_the_end",
        within(UNIT, "decide"),
    ),
    Mutant(
        "source_is_no_guard", "I4", "of two writers both move the order",
        STORE + "orders.py",
        "         WHERE o.id = m.id AND o.id IN (SELECT id FROM locked)\n"
        "           AND o.status = m.source AND (m.claim IS NULL OR o.claim = m.claim)",
        "         WHERE o.id = m.id AND (m.claim IS NULL OR o.claim = m.claim)",
        integration("orders_store"),
    ),
    Mutant(
        "unknown_word_is_delivered", "I4", "a word of no contract is success",
        SERVICES + "decide.py",
        "    target = report.state.order_status()\n    news = _news(order, report)",
        "    target = report.state.order_status() or OrderStatus.COMPLETED\n"
        "    news = _news(order, report)",
        within(UNIT, "decide"),
    ),
    # Everything is explained
    Mutant(
        "event_without_changes", "I5", "the log no longer rebuilds the row",
        STORE + "orders.py",
        "by, source, status, note, changes, tell, told_from",
        "by, source, status, note, jsonb_build_object(), tell, told_from",
        integration("orders_store", "invariants"),
    ),
    Mutant(
        "hold_without_its_entry", "I5", "a release has no entry in the money log",
        STORE + "proof.py",
        "      FROM known WHERE state = 'ended' AND hold_closed_at = %(at)s",
        "      FROM known WHERE state = 'ended' AND hold_closed_at > %(at)s",
        integration("ledger", "chain"),
    ),
    # No secret leaks
    Mutant(
        "token_is_logged", "I6", "trade tokens stand in log lines",
        "fulfillment/log.py",
        "        return masked(super().format(record))",
        "        return super().format(record)",
        within(UNIT, "log"),
    ),
    Mutant(
        "arguments_are_shown", "I6", "a foreign sender's trade token is seen in Flower",
        "tasks/base.py",
        'return f"externalId={found} ***" if is_id else "***"',
        'return str(arg) if is_id else "***"',
        within(UNIT, "tasks"),
    ),
    Mutant(
        "erased_too_early", "I6", "a trade that can still be undone has lost its trade URL",
        STORE + "erasure.py",
        "AND coalesce(reversible_until, updated_at) <= %(before)s\n       AND next_poll_at IS NULL",
        "AND true",
        integration("erasure"),
    ),
    # We agree with the provider
    Mutant(
        "expected_is_booked", "I7", "the held amount is booked and not what was charged",
        STORE + "ledger.py",
        "        RETURNING a.*, coalesce(p.amount, a.hold_mills) AS amount, p.reason",
        "        RETURNING a.*, a.hold_mills AS amount, p.reason",
        integration("ledger", "chain"),
    ),
    Mutant(
        "older_figure_books", "I7", "a balance that comes late books a charge and expects nothing",
        STORE + "proof.py",
        "a.unbooked > 0 AND {_IS_NEWER}",
        "a.unbooked > 0",
        integration("ledger"),
    ),
    Mutant(
        "numbers_begin_anew", "I8", "after a restore the store takes news for what it knows",
        STORE + "orders.py",
        "    return rows[0][0] if rows else None",
        "    return None if rows else None",
        integration("another_server"),
    ),
    Mutant(
        "refund_is_lost", "I7", "money that came back is not booked",
        SERVICES + "decide.py",
        "        money += (Money.REFUND,) if report.refunded_at else ()\n"
        "        note = \"the delivered trade was undone\"",
        "        note = \"the delivered trade was undone\"",
        within(UNIT, "decide") + integration("reconciliation"),
    ),
    Mutant(
        "reversal_is_not_watched", "I7", "nobody looks at a delivered order again",
        SERVICES + "reports.py",
        "        return {**NOTHING_DUE, \"next_poll_at\": at}",
        "        return dict(NOTHING_DUE)",
        integration("reconciliation"),
    ),
    Mutant(
        "another_item_is_adopted", "I7", "a purchase of another item under our id is ours",
        SERVICES + "decide.py",
        "    if order.status not in FOLLOWED | UNCONFIRMED | {OrderStatus.COMPLETED}:",
        "    if order.status is not OrderStatus.COMPLETED:",
        within(UNIT, "decide_item") + integration("unknown_policies"),
    ),
    Mutant(
        "quarantine_is_forgotten", "I7", "news that tell of no item let another item pass",
        SERVICES + "contradictions.py",
        "    return [each for each in order.contradictions if not set_right[each.split()[0]]]",
        "    return []",
        within(UNIT, "decide_item"),
    ),
    Mutant(
        "refused_is_forgotten", "I7", "nobody asks how a refused order ends that was bought",
        SERVICES + "reconciliation.py",
        "    if order.status in FINAL and not order.lives_on:",
        "    if order.status in FINAL:",
        integration("news_of_orders"),
    ),
    Mutant(
        "stalled_is_followed_for_ever", "I2", "an order that never ends is brought to nobody",
        SERVICES + "reports.py",
        "        due[\"next_watch_at\"] = now + context.stalled_after",
        "        due[\"next_watch_at\"] = None",
        integration("news_of_orders"),
    ),
    Mutant(
        "other_charge_is_not_booked", "I7", "a charge that is told anew stays as it was booked",
        SERVICES + "reports.py",
        "        if self.adjusted:\n",
        "        if not self.adjusted:\n",
        integration("news_of_orders", "reconciliation"),
    ),
    # The store hears everything
    Mutant(
        "silent_alarm", "I8", "nobody hears that an order needs a person",
        SERVICES + "reports.py",
        "        tell=(NEEDS_REVIEW,) if decision.is_alarm else (),",
        "        tell=(),",
        integration("reconciliation", "outcomes"),
    ),
    Mutant(
        "moves_without_news", "I8", "the store does not hear of changes of status",
        STORE + "orders.py",
        "    is_news = source is not target or not",
        "    is_news = not",
        integration("orders_store"),
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
        integration("reconciliation") + within(UNIT, "schedule"),
    ),
    Mutant(
        "no_pause_after_failures", "I9", "a provider that is down is asked without pause",
        STORE + "accounts.py",
        "    longest = min(60.0, 2.0 ** min(failed, 6))",
        "    longest = 0.0",
        integration("rate_budget", "funds"),
    ),
    Mutant(
        "budget_is_endless", "I9", "requests are granted beyond the account's limit",
        STORE + "accounts.py",
        "        granted = min(wanted, max(levels.left(purpose) - leaving, 0))",
        "        granted = wanted",
        integration("rate_budget"),
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
        (*within(UNIT, "signing"), "tests/contract"),
    ),
    Mutant(
        "stale_is_applied", "I10", "an old delivery is applied and not asked about",
        "fulfillment/providers/base.py",
        "signed_at is not None and abs((now - signed_at).total_seconds()) <= tolerance_s",
        "signed_at is not None and tolerance_s >= 0",
        integration("webhooks_service"),
    ),
    Mutant(
        "known_by_delivery_alone", "I10", "the same bytes at another time are the same delivery",
        SERVICES + "webhooks.py",
        "    return hashlib.sha256(signed_at.encode() + b\".\" + body).hexdigest()",
        "    return hashlib.sha256(signed_at.encode()).hexdigest()",
        integration("webhooks_service", "hostile_webhooks"),
    ),
    Mutant(
        "strangers_webhook_is_ours", "I10", "an account speaks of another account's order",
        SERVICES + "webhooks.py",
        "    return order if ledger.is_tried(session, account, order.external_id) else None",
        "    return order",
        integration("web_webhooks", "webhooks_service"),
    ),
    Mutant(
        "any_token_comes_in", "I10", "the API asks for a token and takes each",
        "fulfillment/web/tokens.py",
        "            if hmac.compare_digest(digest, known):",
        "            if len(digest) == len(known):",
        integration("web_limits"),
    ),
    Mutant(
        "news_is_quiet", "I7", "a poll's news is taken for none",
        SERVICES + "reconciliation.py",
        "            or is_news(context, member.order, report, answered_at)",
        "            or False",
        integration("reconciliation"),
    ),
    Mutant(
        "hint_is_heard_once", "I7", "who says early what becomes true keeps it from being heard",
        SERVICES + "webhooks.py",
        "    if notice.identity is None or order.account != account:",
        "    if notice.identity is not None or order.account != account:",
        integration("hints"),
    ),
    Mutant(
        "later_ones_overtake", "I8", "of one order's messages a full queue takes the second first",
        "fulfillment/messaging/publishing.py",
        "        before[name] += 1",
        "        before[name] += 0",
        within(UNIT, "publishing"),
    ),
    Mutant(
        "what_comes_back_is_unwanted", "I8", "a queue that is away for a moment wants nothing more",
        "fulfillment/messaging/publishing.py",
        "        return {key for key, message in doubtful.items() if again[message[:2]] == 2}",
        "        return set(doubtful)",
        within(UNIT, "publishing"),
    ),
    Mutant(
        "hint_leaves_no_trace", "I7", "a hint beside a poll is forgotten where the claim ends soon",
        STORE + "due.py",
        "coalesce(next_poll_at, 'infinity') - interval '1 microsecond',",
        "coalesce(next_poll_at, 'infinity'),",
        integration("hints"),
    ),
    Mutant(
        "claimed_is_asked", "I9", "the time of a claim is taken for that of a later question",
        STORE + "due.py",
        "    return order.polled_at is None or now - order.polled_at > least * _LAG",
        "    return order.polled_at is None",
        integration("poll_claims"),
    ),
    Mutant(
        "known_is_a_sign_of_life", "I10", "who repeats an old webhook makes polls rare",
        SERVICES + "webhooks.py",
        "        if delivery_id is not None and (fresh or notice.signed_at is None):",
        "        if True:",
        integration("hints"),
    ),
)  # fmt: skip
