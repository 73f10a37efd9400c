"""Bugs that buy twice, lose an order or overspend (I1 to I3)."""

from tests.faults.mutants.mutant import SERVICES, STORE, UNIT, Mutant, integration, within

BUYING = (
    # Never buy twice
    Mutant(
        "unknown_is_no", "I1", "a purchase without an answer is taken for refused",
        SERVICES + "answers.py",
        "        return Unknown(str(error), error, was_answered=False)\n"
        "    except (ProviderNotReached, ProviderDeniesAccount)",
        '        return Refused(ProviderRefused(FailureCode.ITEM_UNAVAILABLE, "no answer"))\n'
        "    except (ProviderNotReached, ProviderDeniesAccount)",
        integration("chain", "outcomes"),
    ),
    Mutant(
        "last_look_is_left_out", "I1", "a claim that lapsed while something else was asked is held",
        SERVICES + "answers.py",
        "    if not is_held():",
        "    if not is_held() and order.id < 0:",
        integration("other_providers"),
    ),
    Mutant(
        "refused_replay_is_believed", "I1", "a no to a replay ends what the first post bought",
        SERVICES + "answers.py",
        "_confirm(context, order, attempt, error) if was_unknown else Refused(error)",
        "Refused(error)",
        integration("outcomes"),
    ),
    Mutant(
        "young_lookup_is_believed", "I1", "a cached 404 counts as proof of absence",
        SERVICES + "answers.py",
        "context.now() - attempt.last_post_at < context.cache_time:",
        "context.now() < attempt.last_post_at:",
        integration("outcomes"),
    ),
    Mutant(
        "skinslink_is_posted_again", "I1", "a purchase that must not be repeated is repeated",
        SERVICES + "unknowns.py",
        "        case AfterUnknown.LOOKUP_ONLY:\n            return Step.LOOK_UP",
        "        case AfterUnknown.LOOKUP_ONLY:\n            return Step.POST",
        integration("unknown_policies"),
    ),
    Mutant(
        "one_lookup_is_enough", "I1", "SkinsBack is posted again after one empty lookup",
        SERVICES + "unknowns.py",
        "attempt.empty_lookups >= 2 and attempt.empty_at - attempt.empty_since >= LOOKUPS_APART",
        "attempt.empty_lookups >= 1",
        integration("unknown_policies"),
    ),
    Mutant(
        "other_bytes_are_replayed", "I1", "a replay is written anew instead of sent as it was",
        SERVICES + "submission.py",
        "    if attempt.body_sealed is not None and is_own:",
        "    if attempt.body_sealed is not None and attempt.posts > 1000:",
        integration("outcomes"),
    ),
    Mutant(
        "sent_is_left", "I1", "an order goes on from an account at which it may have been bought",
        STORE + "models.py",
        "        return is_open and self.unknown_since is None",
        "        return is_open",
        integration("routes_faults", "routes"),
    ),
    Mutant(
        "another_merchant_is_asked", "I1", "what one merchant may have is bought at another",
        SERVICES + "submission.py",
        "        members = keep_own(context, claim, members)\n",
        "",
        integration("merchants"),
    ),
    Mutant(
        "claim_is_no_guard", "I1", "a worker that lost its claim writes all the same",
        STORE + "orders.py",
        "         WHERE o.id = m.id AND o.id IN (SELECT id FROM locked)\n"
        "           AND o.status = m.source AND (m.claim IS NULL OR o.claim = m.claim)",
        "         WHERE o.id = m.id AND o.status = m.source",
        integration("orders_store"),
    ),
    Mutant(
        "claim_keeps_its_name", "I1", "a doubled step finds its batch as the first left it",
        STORE + "claims.py",
        "            UPDATE orders SET claim = %(new)s, claimed_until = %(until)s WHERE id IN (\n"
        "                SELECT id FROM orders WHERE id = ANY(%(ids)s) AND claim = %(old)s",
        "            UPDATE orders SET claim = %(new)s, claimed_until = %(until)s WHERE id IN (\n"
        "                SELECT id FROM orders WHERE id = ANY(%(ids)s) "
        "AND claim IN (%(old)s, %(new)s)",
        integration("claims", "workers"),
    ),
    Mutant(
        "lapsed_lease_is_held", "I1", "a worker that slept past its lease sends its request",
        SERVICES + "claiming.py",
        "        return not self._lapses.is_over", "        return self._lapses is not None",
        integration("workers"),
    ),
    Mutant(
        "living_claim_is_taken", "I1", "what a living worker holds is handed out again",
        STORE + "claims.py",
        "o.next_attempt_at <= %(now)s AND (o.claimed_until IS NULL OR o.claimed_until <= %(now)s)",
        "o.next_attempt_at <= %(now)s",
        integration("claims", "sweep"),
    ),
    Mutant(
        "other_content_is_known", "I1", "other content under a known id is no conflict",
        SERVICES + "intake.py",
        "    return context.seal.matches(order.fingerprint, _content(event))",
        "    return order.external_id == event.external_id",
        integration("intake"),
    ),
    # Never lose an order
    Mutant(
        "intent_forgets_the_body", "I2", "a replay after a crash has no bytes to send",
        STORE + "ledger.py",
        "SET state = 'sending', body_sealed = b.body, posts = posts + 1,",
        "SET state = 'sending', posts = posts + 1,",
        integration("outcomes"),
    ),
    Mutant(
        "stuck_is_not_found", "I2", "submissions of dead workers are never taken up",
        STORE + "claims.py",
        """_TO_SUBMIT = f"(o.status IN ('reserved', 'submitting') AND NOT {_BETWEEN})\"""",
        """_TO_SUBMIT = f"(o.status IN ('reserved') AND NOT {_BETWEEN})\"""",
        integration("sweep", "workers"),
    ),
    Mutant(
        "empty_catalog_is_gone", "I2", "an order whose price is unclear fails as unavailable",
        SERVICES + "catalog.py",
        "        if order.id in unquoted:\n            continue\n",
        "",
        integration("chain", "other_providers", "rate_budget"),
    ),
    Mutant(
        "denied_is_refused", "I2", "revoked credentials end the order and not the account's work",
        SERVICES + "answers.py",
        "        kept = Unknown(str(error), error) if was_unknown else NotSent(str(error), error)",
        '        return Refused(ProviderRefused(FailureCode.ITEM_UNAVAILABLE, "denied"))',
        integration("workers"),
    ),
    Mutant(
        "watchdog_invents_expired", "I2", "our clock ends what the provider still has",
        SERVICES + "watchdog.py",
        "            if now >= order.trade_deadline_at:\n                over.append(order.id)\n",
        "            if now >= order.trade_deadline_at:\n"
        "                moves.append(Move(order.id, order.status, OrderStatus.EXPIRED,"
        " Source.WATCHDOG))\n                continue\n",
        integration("watchdog"),
    ),
    # Never spend what is not there
    Mutant(
        "holds_are_free", "I3", "money that is held is spent again",
        STORE + "ledger.py",
        "a.account = ANY({SAME_WALLET}) AND a.absorbed_at IS NULL)",
        "a.account = ANY({SAME_WALLET}) AND a.absorbed_at IS NULL AND false)",
        integration("ledger", "funds"),
    ),
    Mutant(
        "former_name_is_forgotten", "I3", "what was held under an account's former name is free",
        STORE + "accounts.py",
        "    WHERE n.name = m.name OR n.merchant",
        "    WHERE n.name = m.name AND n.merchant",
        integration("gone_accounts"),
    ),
    Mutant(
        "cap_of_yesterday", "I3", "a price that the settings allowed once is paid still",
        SERVICES + "answers.py",
        "    if attempt.hold_mills > cents_to_mills(_limit_cents(context, order)):",
        "    if attempt.hold_mills < 0:",
        integration("outcomes"),
    ),
    Mutant(
        "figure_is_believed_at_once", "I3", "a 30 s old balance is taken for one of now",
        STORE + "proof.py",
        "absorbed_at IS NULL AND {debited} + %(lag)s <= %(at)s\n",
        "absorbed_at IS NULL AND {debited} <= %(at)s\n",
        integration("ledger", "funds"),
    ),
    Mutant(
        "failed_hold_is_free_at_once", "I3", "a failed order's money is free before it is back",
        STORE + "proof.py",
        "               hold_closed_at = CASE WHEN ended_at + %(lag)s <= %(at)s",
        "               hold_closed_at = CASE WHEN ended_at <= %(at)s",
        integration("ledger"),
    ),
    Mutant(
        "price_is_no_limit", "I3", "a price above the agreed one is bought",
        SERVICES + "catalog.py",
        "        elif quote.price_mills > cents_to_mills(limit_cents):",
        "        elif quote.price_mills > 2 * cents_to_mills(limit_cents):",
        integration("chain"),
    ),
    Mutant(
        "slippage_is_added", "I3", "both slippages together are allowed",
        "fulfillment/settings.py",
        "        slippage = max(expected_cents * self.slippage_bps // 10_000, self.slippage_cents)",
        "        slippage = expected_cents * self.slippage_bps // 10_000 + self.slippage_cents",
        within(UNIT, "settings") + integration("chain"),
    ),
    Mutant(
        "cap_is_rounded_up", "I3", "a cap shown in cents is more than the cap",
        "schemas/money.py",
        "    return mills // MILLS_PER_CENT",
        "    return -(-mills // MILLS_PER_CENT)",
        within(UNIT, "money"),
    ),
    Mutant(
        "floats_are_money", "I3", "amounts come through binary fractions",
        "schemas/money.py",
        "    value = _EXACT.multiply(Decimal(text), factor)",
        "    value = _EXACT.multiply(Decimal(float(text)), factor)",
        within(UNIT, "money"),
    ),
    Mutant(
        "spend_cap_is_endless", "I3", "the cap an hour stops nothing",
        SERVICES + "funds.py",
        "    within = available if room is None else min(available, room)",
        "    within = available",
        integration("brakes"),
    ),
    Mutant(
        "switch_is_not_looked_at", "I3", "a stopped account still sends what was gathered",
        SERVICES + "submission.py",
        "    if gate.is_stopped or (gate.are_broken and not is_ahead):",
        "    if gate.are_broken and not is_ahead:",
        integration("brakes"),
    ),
    Mutant(
        "switch_has_no_last_look", "I3", "what was let go waits, and leaves a stopped account",
        SERVICES + "answers.py",
        "    if not is_at_once and (why := why_stopped()):",
        "    if not is_at_once and order.id < 0 and (why := why_stopped()):",
        integration("kill_switch"),
    ),
    Mutant(
        "any_stop_is_resumed", "I3", "a stop that nobody has seen is resumed with the one before",
        SERVICES + "brakes.py",
        "    if ends is not None and switches.stops(session).get(name) != ends:",
        "    if ends is not None and name not in switches.stops(session):",
        integration("kill_switch"),
    ),
    Mutant(
        "any_turn_forgets_reversals", "I3", "a stop for another reason begins their count anew",
        STORE + "switches.py",
        "WHERE account = %(account)s AND by = %(watch)s\n         UNION ALL",
        "WHERE account = %(account)s AND %(watch)s <> ''\n         UNION ALL",
        integration("watches"),
    ),
    Mutant(
        "news_is_written_over", "I2", "a person's finding ends what turned up meanwhile",
        SERVICES + "operations.py",
        "    if present.sequence == order.sequence:",
        "    if present.status is order.status:",
        integration("resolve"),
    ),
    Mutant(
        "late_is_bought", "I3", "an order is bought for a customer who was refunded",
        SERVICES + "answers.py",
        "    return order.submit_by <= context.now()",
        "    return order.submit_by <= context.now() and order.id < 0",
        integration("outcomes"),
    ),
)  # fmt: skip
