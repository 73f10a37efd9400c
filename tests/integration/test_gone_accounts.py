"""Orders of an account that was taken out of the settings: each comes on, or to a person."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest

from fulfillment.errors import NotAllowedNow, ProviderNotReached, ProviderOutcomeUnknown
from fulfillment.providers.base import AfterUnknown
from fulfillment.services import (
    brakes,
    diagnosis,
    funds,
    invariants,
    merchants,
    operations,
    reconciliation,
)
from fulfillment.services.context import Context
from fulfillment.services.operations import Resolution
from fulfillment.store import switches
from fulfillment.store.models import Order
from schemas.enums import OrderStatus as S
from schemas.messages import NEEDS_REVIEW
from schemas.provider import ReportState as R
from tests.conftest import MakeContext
from tests.integration.test_orders_store import assert_rebuilds
from tests.support import (
    NAME,
    PRICE_CENTS,
    FakeClock,
    FakeProvider,
    again,
    assert_invariants,
    available,
    entries,
    gather,
    in_threads,
    messages_of,
    receive_one,
    rows,
    run_chain,
    run_polls,
    run_sweep,
    run_ticks,
    until,
)

OLD: dict[str, Any] = {"client_id": "one", "client_secret": "s"}
A_WHILE = timedelta(minutes=10)
LEFT: dict[str, Any] = {"client_id": "two", "client_secret": "s"}


@pytest.fixture
def before(make_context: MakeContext, provider: FakeProvider) -> Context:
    accounts = {"old": OLD, "left": LEFT}
    return make_context(provider, accounts=accounts, routes={"any": "old,left"})


@pytest.fixture
def after(before: Context, make_context: MakeContext, provider: FakeProvider) -> Context:
    """Give a process that has one account less."""
    del before
    return make_context(provider, accounts={"left": LEFT}, routes={"any": "left"})


def routed(context: Context) -> Order:
    return receive_one(context, account="any", marketHashName=NAME)


def pass_time(context: Context, clock: FakeClock, seconds: float, rounds: int = 6) -> None:
    for _ in range(rounds):
        clock.advance(seconds)
        run_ticks(context)


def alarms(context: Context, order: Order) -> int:
    return sum(message["type"] == NEEDS_REVIEW for message in messages_of(context, order))


@pytest.mark.parametrize("is_reserved", [False, True])
def test_an_order_that_was_surely_not_sent_goes_on_along_its_route(
    before: Context, after: Context, clock: FakeClock, provider: FakeProvider, is_reserved: bool
) -> None:
    order = routed(before)
    if is_reserved:
        gather(before, "old")

    pass_time(after, clock, 120)

    assert (again(after, order).status, again(after, order).account) == (S.ACCEPTED, "left")
    assert len(provider.bodies) == 1
    assert_rebuilds(after, again(after, order))
    assert_invariants(after)


def test_an_order_stays_while_another_process_still_has_its_account(
    before: Context, after: Context, clock: FakeClock, provider: FakeProvider
) -> None:
    unknown = routed(before)
    provider.fail_purchase(ProviderOutcomeUnknown("timeout"))
    run_chain(before, "old")
    waiting = routed(before)

    for _ in range(20):
        clock.advance(60)
        with before.database.transaction() as session:  # it is there, and does nothing else
            merchants.note_configured(before, session)
        run_sweep(after)

    assert again(after, unknown).status is S.SUBMITTING
    assert (again(after, waiting).status, again(after, waiting).account) == (S.RECEIVED, "old")


def test_what_may_have_been_bought_comes_to_a_person_once_and_keeps_its_hold(
    before: Context, after: Context, clock: FakeClock, provider: FakeProvider
) -> None:
    provider.fail_purchase(ProviderOutcomeUnknown("timeout"), is_made=True)
    order = routed(before)
    run_chain(before, "old")

    pass_time(after, clock, 120, rounds=30)

    assert again(after, order).status is S.NEEDS_REVIEW
    assert [kind for kind, _ in entries(after, order)] == ["hold"]
    assert alarms(after, order) == 1
    assert len(provider.bodies) == 1
    assert_invariants(after)

    pass_time(before, clock, 600, rounds=2)

    assert again(before, order).status is S.ACCEPTED


def test_an_account_under_a_new_name_does_not_spend_what_its_former_name_holds(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock
) -> None:
    provider.balance_mills = 10_000
    before = make_context(provider, accounts={"old": OLD})
    held = receive_one(before, account="old")
    provider.fail_purchase(ProviderOutcomeUnknown("timeout"))
    run_chain(before, "old")
    after = make_context(provider, accounts={"new": OLD})
    clock.advance(1)

    order = receive_one(after, account="new")
    run_chain(after, "new")

    assert again(after, held).status is S.SUBMITTING
    assert again(after, order).status is S.AWAITING_FUNDS
    assert available(after, "new") == 10_000 - 10 * PRICE_CENTS


def test_a_debit_of_an_order_of_the_former_name_is_no_strangers(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock
) -> None:
    """It comes to the balance after the rename."""
    before = make_context(provider, accounts={"old": OLD})
    receive_one(before, account="old")
    run_chain(before, "old")
    provider.balance_mills += 10 * PRICE_CENTS
    after = make_context(provider, accounts={"new": OLD})
    clock.advance(6)
    receive_one(after, account="new")
    run_chain(after, "new")
    provider.balance_mills -= 10 * PRICE_CENTS
    for _ in range(4):
        clock.advance(60)
        run_ticks(after)
        funds.refresh_wallet(after, "new")

    wallets = operations.wallets(after)
    assert [(each.unexplained, each.credited) for each in wallets] == [(0, 0)] * len(wallets)


def test_an_account_that_is_stopped_stays_so_under_a_new_name(
    make_context: MakeContext, provider: FakeProvider
) -> None:
    before = make_context(provider, accounts={"old": OLD, "left": LEFT})
    brakes.stop(before, "old", "it pays too much", "a person")
    after = make_context(provider, accounts={"new": OLD, "left": LEFT})

    stopped = {view.account: view.stop_reason for view in brakes.show_accounts(after)}
    order = receive_one(after, account="new")
    run_chain(after, "new")

    assert stopped == {"new": "stopped as old: it pays too much", "left": None}
    assert again(after, order).status is S.RECEIVED
    assert brakes.resume(after, "new", "it does not", "a person")
    assert {view.stop_reason for view in brakes.show_accounts(after)} == {None}
    brakes.stop(before, "old", "once more", "a person who has not heard of the new name")
    assert {view.account for view in brakes.show_accounts(after) if view.stop_reason} == {"new"}
    run_chain(after, "new")
    assert again(after, order).status is S.RECEIVED
    brakes.resume(before, "old", "all is well", "a person")
    run_chain(after, "new")
    assert again(after, order).status is S.ACCEPTED


def test_a_stop_and_a_resume_of_two_names_of_one_merchant_wait_for_each_other(
    make_context: MakeContext, provider: FakeProvider
) -> None:
    before = make_context(provider, accounts={"old": OLD})
    after = make_context(provider, accounts={"new": OLD})
    brakes.stop(before, "old", "first", "anna")
    with ThreadPoolExecutor(1) as executor:
        with before.database.transaction() as session:
            switches.turn(
                session, "old", is_stopped=True, by="anna", reason="again", now=before.now()
            )
            flying = executor.submit(brakes.resume, after, "new", "all is well", "ben")
            until(lambda: rows(before, "SELECT 1 FROM pg_locks WHERE NOT granted"))
        flying.result()

    # The second stop is another one than that which was to be resumed.
    assert [view.stop_reason for view in brakes.show_accounts(after)] == ["stopped as old: again"]


def test_an_account_that_is_stopped_stays_so_with_a_merchant_that_was_resumed(
    make_context: MakeContext, provider: FakeProvider
) -> None:
    before = make_context(provider, accounts={"one": OLD, "two": LEFT})
    brakes.stop(before, "two", "no", "anna")
    brakes.stop(before, "one", "no", "anna")
    brakes.resume(before, "one", "yes", "anna")
    after = make_context(provider, accounts={"two": OLD})

    assert [view.stop_reason for view in brakes.show_accounts(after)] == ["no"]


def test_a_process_that_lacks_an_account_leaves_what_is_stuck_there_to_those_that_have_it(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock
) -> None:
    both = make_context(provider, accounts={"old": OLD, "left": LEFT})
    order = receive_one(both, account="old")
    provider.fail_purchase(ProviderOutcomeUnknown("timeout"), is_made=True)
    run_chain(both, "old")
    one = make_context(provider, accounts={"left": LEFT})
    clock.advance(5)

    run_sweep(one)
    untouched = again(both, order).claim
    run_sweep(both)

    assert untouched is None
    assert again(both, order).status is S.ACCEPTED


def test_two_names_of_one_wallet_are_allocated_from_by_one_at_a_time(
    make_context: MakeContext, provider: FakeProvider
) -> None:
    """While processes are replaced one by one, those of before know it by its former name."""
    provider.balance_mills = 10_000
    names = ("old", "new")
    contexts = [make_context(provider, accounts={name: OLD}) for name in names]
    placed = [receive_one(c, account=name) for c, name in zip(contexts, names, strict=True)]

    in_threads(2, lambda place: gather(contexts[place], names[place]))

    assert sorted(again(contexts[0], order).status for order in placed) == [
        S.AWAITING_FUNDS,
        S.RESERVED,
    ]
    assert [available(contexts[0], name) for name in names] == [10_000 - 10 * PRICE_CENTS] * 2


def test_what_is_accepted_is_told_of_once_and_a_person_may_end_it(
    before: Context, after: Context, clock: FakeClock, provider: FakeProvider
) -> None:
    order = routed(before)
    run_chain(before, "old")

    pass_time(after, clock, 600, rounds=20)

    found = {each.invariant: each.subjects for each in invariants.violations(after)}
    assert again(after, order).status is S.ACCEPTED
    assert alarms(after, order) == 1
    assert set(found) == {"followed_by_nobody", "outbox_waits"}
    assert found["followed_by_nobody"] == (order.external_id,)

    name, reason = order.external_id, "asked their support"
    with pytest.raises(NotAllowedNow, match="nobody can be asked: the account old is not"):
        operations.resolve(after, name, Resolution.NOT_FOUND, reason)
    operations.resolve(after, name, Resolution.NOT_FOUND, reason, is_insisted=True)
    pass_time(after, clock, 600)

    assert [kind for kind, _ in entries(after, order)] == ["hold", "release"]
    assert_invariants(after)


def test_an_order_of_an_account_that_comes_back_is_followed_again(
    before: Context, after: Context, clock: FakeClock, provider: FakeProvider
) -> None:
    order = routed(before)
    run_chain(before, "old")
    pass_time(after, clock, 600, rounds=3)
    provider.says(order.external_id, R.COMPLETED, charged_mills=PRICE_CENTS * 10)

    pass_time(before, clock, 600, rounds=2)

    assert again(before, order).status is S.COMPLETED
    assert_invariants(before)


def test_a_delivery_is_looked_at_once_more_whose_watch_ended_while_its_account_was_gone(
    before: Context, after: Context, clock: FakeClock, provider: FakeProvider
) -> None:
    order = routed(before)
    run_chain(before, "old")
    told = {"charged_mills": PRICE_CENTS * 10, "reversible_until": clock.now() + A_WHILE}
    provider.says(order.external_id, R.COMPLETED, **told)
    pass_time(before, clock, 60)
    assert again(before, order).status is S.COMPLETED
    pass_time(after, clock, 3600, rounds=24)
    provider.says(order.external_id, R.REVERSED)

    pass_time(before, clock, 600, rounds=2)

    assert again(before, order).status is S.REVERSED
    assert_invariants(before)


def ended_in_doubt(context: Context, clock: FakeClock, provider: FakeProvider) -> Order:
    """Give an order that a person has just ended although it may have been bought."""
    provider.after_unknown = AfterUnknown.LOOKUP_ONLY
    provider.fail_purchase(ProviderOutcomeUnknown("timeout"))
    order = receive_one(context, account="old")
    run_chain(context, "old")
    pass_time(context, clock, 60, rounds=15)
    assert again(context, order).status is S.NEEDS_REVIEW
    operations.resolve(context, order.external_id, Resolution.NOT_FOUND, "gone", is_insisted=True)
    return order


@pytest.mark.parametrize("is_known_to_live", [False, True])
def test_what_is_to_be_looked_at_after_its_end_is_once_its_account_is_back(
    before: Context,
    after: Context,
    clock: FakeClock,
    provider: FakeProvider,
    is_known_to_live: bool,
) -> None:
    order = ended_in_doubt(before, clock, provider)
    if is_known_to_live:
        provider.says(order.external_id, R.SENT)
        pass_time(before, clock, 200)
        assert again(before, order).told_status is S.SENT
    pass_time(after, clock, 600)
    provider.says(order.external_id, R.COMPLETED, charged_mills=PRICE_CENTS * 10)

    pass_time(before, clock, 400)

    found = again(before, order)
    assert (found.status, found.told_status) == (S.FAILED, S.COMPLETED)
    assert found.charged_mills == PRICE_CENTS * 10


def test_a_person_is_told_where_the_account_of_what_is_to_be_looked_at_stays_away(
    before: Context, after: Context, clock: FakeClock, provider: FakeProvider
) -> None:
    order = ended_in_doubt(before, clock, provider)
    told_before = alarms(after, order)

    pass_time(after, clock, 3600, rounds=30)
    in_time = alarms(after, order)
    pass_time(after, clock, 3600, rounds=40)

    assert (in_time - told_before, alarms(after, order) - told_before) == (0, 1)
    found = again(after, order)
    assert (found.status, found.next_poll_at, found.poll_wanted_at) == (S.FAILED, None, None)


def test_a_purchase_that_never_left_and_can_go_nowhere_ends_too_late(
    before: Context, after: Context, clock: FakeClock, provider: FakeProvider
) -> None:
    provider.fail_purchase(ProviderNotReached("connection refused"))
    order = receive_one(before, account="old")
    run_chain(before, "old")

    pass_time(after, clock, 600, rounds=7)

    assert again(after, order).failure_code == "too_late"
    assert [kind for kind, _ in entries(after, order)] == ["hold", "release"]
    assert available(after, "old") >= 0
    assert_invariants(after)


def test_the_doctor_names_accounts_that_have_orders_and_are_not_configured(
    before: Context, after: Context
) -> None:
    routed(before)

    checks = {check.name: check for check in diagnosis.examine(after.settings)}

    assert not checks["orders at old"].is_ok
    assert "1 orders under way" in checks["orders at old"].detail
    assert "not configured" in checks["orders at old"].detail


def test_what_was_charged_under_a_former_name_is_not_held_for_ever(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock
) -> None:
    before = make_context(provider, accounts={"old": OLD})
    order = receive_one(before, account="old")
    run_chain(before, "old")
    clock.advance(45)
    funds.refresh_wallet(before, "old")
    provider.says(order.external_id, R.COMPLETED, charged_mills=PRICE_CENTS * 10 + 20_000)
    reconciliation.reconcile_now(before, [order.external_id])
    run_polls(before)
    after = make_context(provider, accounts={"new": OLD})
    clock.advance(7)
    run_ticks(after)
    funds.refresh_wallet(after, "new")  # out of the provider's cache
    cached = available(after, "new") - provider.balance_mills
    provider.balance_mills -= 20_000

    for hours in (1, 24):
        clock.advance(hours * 3600)
        run_ticks(after)
        funds.refresh_wallet(after, "new")

    assert cached == -20_000
    assert available(after, "new") == provider.balance_mills
