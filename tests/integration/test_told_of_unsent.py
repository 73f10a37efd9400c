"""Any word of an account about an order of which nothing was sent has it looked for first."""

from datetime import timedelta
from typing import Any

import pytest

from fulfillment.services import catalog, dispatch, funds, submission
from fulfillment.services.context import Context
from fulfillment.services.merchants import keep_own
from fulfillment.store.models import Order
from schemas.enums import OrderStatus as S
from schemas.messages import NEEDS_REVIEW, Batch
from schemas.provider import ReportState as R
from tests.conftest import MakeContext
from tests.integration.telling import NO, PRICE_MILLS, go_on, on_routes, tell
from tests.support import (
    NAME,
    FakeClock,
    FakeProvider,
    again,
    assert_invariants,
    checkout,
    entries,
    gather,
    hear,
    messages_of,
    receive,
    report,
    rows,
    run_chain,
    run_sweep,
    run_ticks,
    submit,
    view,
)


@pytest.fixture
def context(make_context: MakeContext, providers: dict[str, FakeProvider]) -> Context:
    return on_routes(make_context, providers)


def outcome(context: Context) -> str:
    return str(rows(context, "SELECT outcome FROM webhook_deliveries")[-1]["outcome"])


def unsent(context: Context, main: FakeProvider, state: str) -> tuple[Order, Batch | None]:
    """Give an order of which nothing was sent to its account, and the batch that it is in."""
    if state == "awaiting funds":
        main.balance_mills = 1
    if state == "between attempts":
        main.fail_purchase(NO)
    route = "both" if state == "between attempts" else "main"
    (order,) = receive(context, checkout(account=route, marketHashName=NAME))
    batch = None
    if state == "quoted":
        batch = dispatch.dispatch(context, "main")
        assert batch is not None
        assert catalog.refresh_catalog(context, batch).goes_on
    elif state == "reserved":
        batch = gather(context)
    elif state != "received":
        run_chain(context)
    found = again(context, order)
    assert found.is_unsent
    return found, batch


@pytest.mark.parametrize("is_there", [True, False])
@pytest.mark.parametrize("word", ["a hint", "a word of no contract"])
@pytest.mark.parametrize(
    "state", ["received", "quoted", "awaiting funds", "reserved", "between attempts"]
)
def test_whatever_an_account_tells_of_it_is_looked_for_once_before_it_is_bought(
    context: Context,
    providers: dict[str, FakeProvider],
    clock: FakeClock,
    state: str,
    word: str,
    is_there: bool,
) -> None:
    order, batch = unsent(context, providers["main"], state)
    teller = providers[order.account]
    if is_there:
        teller.says(order.external_id, R.SENT, charged_mills=PRICE_MILLS)

    is_hint = word == "a hint"
    teller.signs_what_it_is_about = not is_hint
    tell(context, order.account, order, None if is_hint else report(R.UNKNOWN, order.external_id))
    if is_hint:
        assert outcome(context) == "not applied; the order is looked for before it is bought"
    told = [message["type"] for message in messages_of(context, order)]
    assert (NEEDS_REVIEW in told) is not is_hint
    if state == "quoted" and batch is not None:
        assert funds.check_wallet(context, batch).goes_on
    if batch is not None:
        submit(context, batch)
    teller.balance_mills = 10 * PRICE_MILLS
    go_on(context, clock)

    found = again(context, order)
    assert (found.status, found.account) == (S.SENT if is_there else S.ACCEPTED, order.account)
    assert len(teller.bodies) == (0 if is_there else 1)
    assert teller.reads.count(f"order {order.external_id}") == 1
    others = [each for name, each in providers.items() if name != order.account]
    assert sum(len(each.bodies) for each in others) == (state == "between attempts")
    assert_invariants(context)


def test_a_second_hint_of_an_account_changes_nothing_and_delays_nothing(
    context: Context, providers: dict[str, FakeProvider], clock: FakeClock
) -> None:
    main = providers["main"]
    main.signs_what_it_is_about = False
    order, _ = unsent(context, main, "awaiting funds")
    main.balance_mills = 10 * PRICE_MILLS
    tell(context, "main", order, None)
    first, before = clock.now(), again(context, order)
    looked_up = f"order {order.external_id}"
    while looked_up not in main.reads and clock.now() < first + timedelta(minutes=5):
        after, steps = again(context, order), len(view(context, order).timeline)
        clock.advance(10)
        tell(context, "main", order, None)
        run_sweep(context)

    assert (after.told_early_at, after.late_words) == (first, before.late_words)
    assert clock.now() <= first + timedelta(seconds=130)
    assert steps == before.sequence
    assert outcome(context) == "not applied; the order is looked for before it is bought"
    assert again(context, order).status is S.ACCEPTED
    assert all(message["type"] != NEEDS_REVIEW for message in messages_of(context, order))


@pytest.mark.parametrize("word", ["a word of no contract", "another item"])
def test_what_is_told_between_two_attempts_is_in_the_books_once_it_is_delivered(
    context: Context, providers: dict[str, FakeProvider], clock: FakeClock, word: str
) -> None:
    backup = providers["backup"]
    order, _ = unsent(context, providers["main"], "between attempts")
    state, item = (R.UNKNOWN, None) if word != "another item" else (R.SENT, "AK-47 | Slate")
    tell(context, "backup", order, report(state, order.external_id, item_name=item))

    backup.balance_mills -= PRICE_MILLS
    backup.says(order.external_id, R.COMPLETED, charged_mills=PRICE_MILLS, item_name=NAME)
    for _ in range(20):
        clock.advance(40)
        run_ticks(context)

    assert again(context, order).status is S.COMPLETED
    assert [kind for kind, _ in entries(context, order)] == ["hold", "release", "hold", "settle"]
    accounts = rows(context, "SELECT account FROM wallet_entries ORDER BY id")
    assert [row["account"] for row in accounts] == ["main", "main", "backup", "backup"]
    assert backup.bodies == []
    assert_invariants(context)


@pytest.mark.parametrize("is_there", [True, False])
def test_an_accounts_own_no_is_written_while_the_first_one_tells_of_the_order(
    context: Context, providers: dict[str, FakeProvider], clock: FakeClock, is_there: bool
) -> None:
    main, backup, third = providers.values()
    main.fail_purchase(NO, is_made=is_there)
    (order,) = receive(context, checkout(account="all", marketHashName=NAME))
    run_chain(context)
    backup.fail_purchase(NO)
    backup.on_purchase = lambda fields: hear(context, main, order.external_id, R.SENT)
    run_chain(context, "backup")

    found = again(context, order)
    assert (found.account, found.is_unsent, found.claim) == ("third", True, None)
    attempts = rows(context, "SELECT account, state FROM attempts ORDER BY id")
    assert [tuple(row.values()) for row in attempts] == [("main", "refused"), ("backup", "refused")]
    assert [kind for kind, _ in entries(context, order)] == ["hold", "release"] * 2
    assert_invariants(context)

    main.reads.clear()
    go_on(context, clock)
    assert f"order {order.external_id}" in main.reads
    assert len(third.bodies) == (0 if is_there else 1)
    if is_there:
        clock.advance(timedelta(hours=2).total_seconds())
        go_on(context, clock)
        assert third.bodies == []
    assert again(context, order).status is (S.FAILED if is_there else S.ACCEPTED)
    assert_invariants(context)


def test_an_order_that_is_told_of_while_it_is_found_too_late_is_looked_for_and_not_ended(
    context: Context,
    providers: dict[str, FakeProvider],
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    submit_by = clock.now() + timedelta(seconds=60)
    event = checkout(account="main", marketHashName=NAME, submitBy=submit_by.isoformat())
    (order,) = receive(context, event)
    batch = gather(context)
    assert batch is not None
    main = providers["main"]
    charged: dict[str, Any] = {"charged_mills": PRICE_MILLS}
    main.says(order.external_id, R.COMPLETED, **charged)

    def tell_first(*taken: Any) -> list[Order]:
        hear(context, main, order.external_id, R.COMPLETED, **charged)
        return keep_own(*taken)

    clock.advance(65)
    with monkeypatch.context() as patched:
        patched.setattr(submission, "keep_own", tell_first)
        submit(context, batch)
    at_once = again(context, order)
    assert (at_once.status, at_once.claim) == (S.RESERVED, None)

    go_on(context, clock)
    assert again(context, order).status is S.COMPLETED
    assert [kind for kind, _ in entries(context, order)] == ["hold", "settle"]
    assert main.bodies == []
    assert_invariants(context)
