"""Bugs by which an order, a run or a message harms those beside it, or what is looked at is not
what was asked for.
"""

from tests.faults.mutants.mutant import SERVICES, STORE, UNIT, Mutant, integration, within

#: Of files of which the others take long, or depend on who is quicker.
LISTINGS = "tests/integration/test_listings.py::"
POISON = "tests/acceptance/test_poison.py::"

BESIDE = (
    # Listings
    Mutant(
        "any_chooses_first", "I2", "who would take any listing has the one that another must have",
        SERVICES + "listings.py",
        "    return bool(quotes.dearer.get(bid.want)), bid.limit_mills, bid.order_id",
        "    return False, bid.limit_mills, bid.order_id",
        within(UNIT, "listings"),
    ),
    Mutant(
        "one_is_passed_by", "I2", "of listings that are taken only the cheapest is left out",
        SERVICES + "listings.py",
        "        while self.offers and used[self.offers[0]] > self.passed[self.offers[0]]:",
        "        if self.offers and used[self.offers[0]] > self.passed[self.offers[0]]:",
        within(UNIT, "listings"),
    ),
    Mutant(
        "free_is_cheap_enough", "I2", "an order gets what is free although it is too dear for it",
        SERVICES + "listings.py",
        "        if free is not None and free.price_mills <= bid.limit_mills:",
        "        if free is not None:",
        within(UNIT, "listings"),
    ),
    Mutant(
        "name_is_bid_for_apart", "I2", "who buys a name bids for its own listing alone",
        SERVICES + "listings.py",
        "        all_prices = others | {quote.price_mills}",
        "        all_prices = {quote.price_mills}",
        (LISTINGS + "test_those_of_a_batch_that_buy_by_name_may_come_in_any_order",),
    ),
    Mutant(
        "name_is_taken_at_its_price", "I2", "who is buying a name has the listing of its bid",
        SERVICES + "listings.py",
        "        _use(used, free if free and free.price_mills <= quote.price_mills else quote)",
        "        _use(used, quote)",
        within(UNIT, "listings"),
    ),
    Mutant(
        "just_bought_is_on_sale", "I2", "what was bought while the catalog came is priced again",
        STORE + "claims.py",
        "t.absorbed_at IS NULL AND t.confirmed_at >= %(since)s",
        "t.absorbed_at IS NULL AND t.created_at >= %(since)s",
        (LISTINGS + "test_what_was_bought_while_the_catalog_came_is_taken",),
    ),
    # Runs
    Mutant(
        "unwritten_is_forgotten", "I2", "an outcome that fails to be written takes others with it",
        SERVICES + "submission.py",
        "                unwritten += answers",
        "                continue",
        integration("submit_runs"),
    ),
    Mutant(
        "begun_is_left", "I5", "what was begun is not sent where a look at the others fails",
        SERVICES + "submission.py",
        "        due = found or []\n",
        "        if has_failed:\n"
        "            return _Turn(claim.orders, is_stopped=True, is_to_be_continued=False)\n"
        "        due = found or []\n",
        integration("submit_runs"),
    ),
    Mutant(
        "end_is_not_heard", "I9", "a run of a worker that is told to stop begins what waits",
        SERVICES + "submission.py",
        "            is_stopped |= context.threads.is_ending\n",
        "",
        integration("submit_runs"),
    ),
    Mutant(
        "places_are_endless", "I2", "runs that wait for one account's slots take every thread",
        SERVICES + "submission.py",
        "    return max(1, context.settings.worker_threads // _THREADS_A_PLACE)",
        "    return context.settings.worker_threads",
        integration("submit_runs"),
    ),
    # Money
    Mutant(
        "asked_before_counts", "I2", "a balance asked for before its time was over ends an order",
        SERVICES + "funds.py",
        "{i for i, at in over.items() if at <= asked_at}",
        "set(over)",
        integration("time_for_funds"),
    ),
    Mutant(
        "unknown_is_sure", "I2", "money that an unknown purchase may have taken counts twice",
        STORE + "proof.py",
        "                   a.last_post_at > w.requested_at - %(lag)s\n"
        "                   OR a.unknown_since IS NOT NULL AND o.status = 'submitting')))",
        "                   a.last_post_at > w.requested_at - %(lag)s)))",
        integration("time_for_funds"),
    ),
    # What is followed
    Mutant(
        "short_window_hurries", "I9", "a short trade window has orders asked about all the time",
        SERVICES + "schedule.py",
        "    return min(max(most, 1.0), _MOST_BACKOFF)",
        "    return min(most, _MOST_BACKOFF)",
        within(UNIT, "schedule"),
    ),
    Mutant(
        "first_yes_is_of_a_new_life", "I7", "a yes that is late brings a failed order in doubt",
        SERVICES + "reports.py",
        "if attempt.posts > 1}",
        "if attempt.posts > 0}",
        integration("made_anew"),
    ),
    Mutant(
        "overdue_is_kept", "I9", "what is a person's is asked about every half minute for good",
        SERVICES + "watchdog.py",
        '{"told_status": order.status.value, "overdue": False},',
        '{"told_status": order.status.value},',
        integration("watchdog"),
    ),
    # Messages
    Mutant(
        "odd_limit_is_kept", "I2", "a checkout with an odd time limit is kept by its worker",
        "tasks/base.py",
        "        self.time_limits = (None, None)\n",
        "",
        (POISON + "test_a_checkout_for_later_with_an_odd_header_is_taken_and_kept_by_no_worker",),
    ),
    Mutant(
        "put_back_at_once", "I9", "what cannot be put aside goes round as fast as it can",
        "tasks/base.py",
        "        time.sleep(_PAUSE_S)\n        put_back()",
        "        put_back()",
        within(UNIT, "tasks"),
    ),
    Mutant(
        "right_is_not_asked_for", "I8", "a right to take out told messages is lacking unnoticed",
        STORE + "rights.py",
        '    "outbox_messages": (*_ADDED_TO, "DELETE"),',
        '    "outbox_messages": _ADDED_TO,',
        within(UNIT, "rights"),
    ),
)  # fmt: skip
