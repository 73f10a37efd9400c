"""A provider tells of a purchase although nothing was sent: it is looked for first."""

from datetime import timedelta

import pytest

from fulfillment.errors import ProviderNotReached, ProviderOutcomeUnknown, ProviderRefused
from fulfillment.providers.base import AfterUnknown
from fulfillment.services import brakes, invariants, recovery
from fulfillment.services.context import Context, register_accounts
from fulfillment.store import accounts, purchases
from fulfillment.store.models import Order
from schemas.enums import FailureCode
from schemas.enums import OrderStatus as S
from schemas.money import cents_to_mills
from schemas.provider import ReportState as R
from tests.conftest import MakeContext, empty_tables
from tests.integration.test_recovery import ACCOUNT
from tests.support import (
    ITEM,
    NAME,
    PRICE_CENTS,
    FakeClock,
    FakeProvider,
    again,
    checkout,
    entries,
    gather,
    hear,
    messages_of,
    receive,
    run_chain,
    run_polls,
    run_sweep,
    run_ticks,
    submit,
    take_figure,
    view,
)


@pytest.fixture
def main() -> FakeProvider:
    return FakeProvider()


@pytest.fixture
def backup() -> FakeProvider:
    return FakeProvider()


@pytest.fixture
def context(make_context: MakeContext, main: FakeProvider, backup: FakeProvider) -> Context:
    made = make_context(
        main,
        accounts={"main": ACCOUNT, "backup": ACCOUNT | {"client_id": "other"}},
        routes={"both": ["main", "backup"]},
    )
    made._providers["backup"] = backup
    return made


def go_on(context: Context, clock: FakeClock) -> None:
    for _ in range(20):
        clock.advance(10)
        run_chain(context)
        run_chain(context, "backup")
        run_sweep(context)


def broken(context: Context) -> set[str]:
    """Name the invariants that do not hold, but for what a relay would see to."""
    return {each.invariant for each in invariants.violations(context)} - {"outbox_waits"}


@pytest.mark.parametrize("state", [R.PENDING, R.COMPLETED])
def test_what_its_rows_do_not_know_of_is_adopted_and_bought_nowhere_else(
    context: Context, main: FakeProvider, backup: FakeProvider, clock: FakeClock, state: R
) -> None:
    event = checkout(account="both", marketHashName=NAME)
    receive(context, event)
    run_chain(context)
    # A snapshot of the disk that nobody notices: nothing is in doubt.
    empty_tables(context.database)
    register_accounts(context)
    del main.prices[ITEM]
    clock.advance(100)
    (order,) = receive(context, event)

    main.says(order.external_id, state, charged_mills=cents_to_mills(PRICE_CENTS))
    hear(context, main, order.external_id, state, charged_mills=cents_to_mills(PRICE_CENTS))
    go_on(context, clock)

    assert len(main.bodies) + len(backup.bodies) == 1
    assert again(context, order).status is state.order_status()
    assert broken(context) == set()


def test_an_order_that_was_refused_there_and_is_there_is_not_bought_at_the_next_account(
    context: Context, main: FakeProvider, backup: FakeProvider, clock: FakeClock
) -> None:
    main.fail_purchase(ProviderRefused(FailureCode.ITEM_UNAVAILABLE, "gone"), is_made=True)
    (order,) = receive(context, checkout(account="both", marketHashName=NAME))
    run_chain(context)
    assert again(context, order).account == "backup"

    hear(context, main, order.external_id, R.SENT)
    go_on(context, clock)

    assert backup.bodies == []
    assert any("it may have been bought there" in e.note for e in view(context, order).timeline)
    clock.advance(timedelta(hours=2).total_seconds())
    go_on(context, clock)
    assert backup.bodies == []
    assert again(context, order).status is S.FAILED
    assert broken(context) == set()


def test_a_word_that_turns_out_to_be_about_nothing_only_delays_the_purchase(
    context: Context, main: FakeProvider, backup: FakeProvider, clock: FakeClock
) -> None:
    (order,) = receive(context, checkout(account="both", marketHashName=NAME))

    hear(context, main, order.external_id, R.PENDING)
    run_chain(context)
    assert main.bodies == []
    go_on(context, clock)

    assert again(context, order).status is S.ACCEPTED
    assert (len(main.bodies), backup.bodies) == (1, [])


@pytest.mark.parametrize("is_answered", [True, False])
def test_what_waits_for_funds_does_not_end_unasked_where_it_is_said_to_be_bought(
    context: Context, main: FakeProvider, clock: FakeClock, is_answered: bool
) -> None:
    main.balance_mills = 1
    (order,) = receive(context, checkout(account="main", marketHashName=NAME))
    run_chain(context)
    assert again(context, order).status is S.AWAITING_FUNDS
    main.says(order.external_id, R.SENT)
    if not is_answered:
        main.reads_fail(ProviderNotReached("HTTP 500", is_outage=True))

    hear(context, main, order.external_id, R.SENT)
    for _ in range(5):  # its deadlines are over long before the end
        clock.advance(2400)
        go_on(context, clock)
    while_away = again(context, order).status
    main.reads_fail(None)
    for _ in range(10):
        go_on(context, clock)
        run_polls(context)

    assert main.bodies == []
    if is_answered:
        assert while_away is S.SENT
        return
    # An hour after its time a person is told, and it is asked about until there is an answer.
    assert while_away is S.FAILED
    assert again(context, order).told_status is S.SENT
    told = [message["type"] for message in messages_of(context, order)]
    assert told.count("order.needs_review") >= 2


@pytest.mark.parametrize("why", ["the worker died", "stopped", "broken"])
def test_what_is_held_at_the_next_account_and_not_sent_is_not_bought_where_the_first_has_it(
    context: Context, main: FakeProvider, backup: FakeProvider, clock: FakeClock, why: str
) -> None:
    main.fail_purchase(ProviderRefused(FailureCode.ITEM_UNAVAILABLE, "gone"), is_made=True)
    (order,) = receive(context, checkout(account="both", marketHashName=NAME))
    run_chain(context)
    batch = gather(context, "backup")
    assert batch is not None
    if why == "broken":
        with context.database.transaction() as session:
            purchases.pause(session, "backup", clock.now() + timedelta(seconds=90), "x")
    if why == "stopped":
        brakes.stop(context, "backup", "x", "test")
    if why != "the worker died":
        submit(context, batch)
    assert again(context, order).status is S.SUBMITTING
    assert not again(context, order).between_attempts
    clock.advance(60)

    hear(context, main, order.external_id, R.SENT)
    if why == "stopped":
        brakes.resume(context, "backup", "x", "test")
    go_on(context, clock)

    assert backup.bodies == []
    assert "it may have been bought there" in str(view(context, order).timeline)


def keep_from_buying(context: Context, how: str) -> None:
    """Let the account buy nothing more."""
    if how == "stopped":
        brakes.stop(context, "main", "x", "test")
    else:
        with context.database.transaction() as session:
            purchases.pause(session, "main", context.now() + timedelta(hours=9), "x")


def lookups(provider: FakeProvider) -> int:
    return sum(what.startswith("order") for what in provider.reads)


@pytest.mark.parametrize("kept_at", [S.RECEIVED, S.AWAITING_FUNDS, S.RESERVED, S.SUBMITTING])
@pytest.mark.parametrize("how", ["stopped", "its purchases rest"])
def test_an_account_that_buys_nothing_looks_for_what_it_was_told_of(
    context: Context, main: FakeProvider, clock: FakeClock, kept_at: S, how: str
) -> None:
    if kept_at is S.AWAITING_FUNDS:
        main.balance_mills = 1
    (order,) = receive(context, checkout(account="main", marketHashName=NAME))
    batch = None if kept_at is S.RECEIVED else gather(context)
    keep_from_buying(context, how)
    if batch is not None:
        submit(context, batch)
    if kept_at is S.SUBMITTING:  # it begins anew, between two attempts
        for _ in range(2):
            clock.advance(301)
            run_sweep(context)
        assert again(context, order).between_attempts
    assert again(context, order).status is kept_at
    main.says(order.external_id, R.SENT)

    hear(context, main, order.external_id, R.SENT)
    main.reads.clear()
    for _ in range(20):
        clock.advance(10)
        run_sweep(context)

    assert again(context, order).status is S.SENT
    assert (main.bodies, main.reads.count("catalog"), lookups(main)) == ([], 0, 1)
    assert broken(context) - {"due_too_late"} == set()  # no rest is as long as the one here


def test_the_money_of_a_lost_purchase_stops_its_account_and_not_the_search_for_it(
    make_context: MakeContext, clock: FakeClock
) -> None:
    provider = FakeProvider()
    context = make_context(provider, main={"stop_at_unexplained_cents": 100})
    take_figure(context)
    (order,) = receive(context, checkout())
    charged = cents_to_mills(PRICE_CENTS)
    provider.says(order.external_id, R.COMPLETED, charged_mills=charged)
    provider.balance_mills -= charged
    hear(context, provider, order.external_id, R.SENT)
    clock.advance(10)
    take_figure(context)
    assert brakes.show_accounts(context)[0].stopped_by == "wallet watch"

    for _ in range(20):
        clock.advance(10)
        run_sweep(context)

    assert again(context, order).status is S.COMPLETED
    assert [kind for kind, _ in entries(context, order)] == ["hold", "settle"]
    assert provider.bodies == []


@pytest.mark.parametrize("kept_at", [S.RECEIVED, S.RESERVED])
@pytest.mark.parametrize("how", ["stopped", "its purchases rest"])
def test_an_account_that_buys_nothing_looks_once_for_what_is_not_there(
    context: Context, main: FakeProvider, clock: FakeClock, kept_at: S, how: str
) -> None:
    (order, other) = receive(context, *(checkout(account="main") for _ in range(2)))
    batch = None if kept_at is S.RECEIVED else gather(context)
    keep_from_buying(context, how)
    if batch is not None:
        submit(context, batch)
    hear(context, main, order.external_id, R.SENT)
    main.reads.clear()

    for _ in range(120):
        clock.advance(2)
        run_sweep(context)

    assert (main.bodies, main.reads.count("catalog"), lookups(main)) == ([], 0, 1)
    assert again(context, order).status is kept_at
    if how == "stopped":
        brakes.resume(context, "main", "x", "test")
    else:
        with context.database.transaction() as session:
            purchases.mend(session, "main")
    for _ in range(3):
        clock.advance(11)
        run_sweep(context)
    assert {again(context, each).status for each in (order, other)} == {S.ACCEPTED}
    assert len(main.bodies) == 2


@pytest.mark.parametrize("kept_at", [S.RECEIVED, S.RESERVED])
def test_what_the_first_account_told_of_goes_on_to_no_other_while_it_rests(
    context: Context, main: FakeProvider, backup: FakeProvider, clock: FakeClock, kept_at: S
) -> None:
    (order,) = receive(context, checkout(account="both", marketHashName=NAME))
    if kept_at is S.RESERVED:
        assert gather(context) is not None
    main.says(order.external_id, R.SENT)
    hear(context, main, order.external_id, R.SENT)
    keep_from_buying(context, "its purchases rest")
    go_on(context, clock)

    found = again(context, order)
    assert (found.status, found.account, backup.bodies) == (S.SENT, "main", [])


@pytest.mark.parametrize("kept_at", [S.RECEIVED, S.RESERVED])
def test_lookups_that_fail_at_a_stopped_account_become_rare(
    context: Context, main: FakeProvider, clock: FakeClock, kept_at: S
) -> None:
    (order,) = receive(context, checkout(account="main"))
    batch = None if kept_at is S.RECEIVED else gather(context)
    keep_from_buying(context, "stopped")
    if batch is not None:
        submit(context, batch)
    hear(context, main, order.external_id, R.SENT)
    main.reads_fail(ProviderNotReached("HTTP 500", is_outage=True))
    clock.advance(1800)
    main.reads.clear()

    for _ in range(60):
        run_sweep(context)
        clock.advance(5)

    assert again(context, order).status is kept_at
    assert 5 <= lookups(main) <= 10


def test_an_account_that_does_not_answer_at_all_is_not_asked_for_what_it_was_told_of(
    context: Context, main: FakeProvider, clock: FakeClock
) -> None:
    (order,) = receive(context, checkout(account="main"))
    keep_from_buying(context, "stopped")
    hear(context, main, order.external_id, R.SENT)
    with context.database.transaction() as session:
        accounts.pause(session, "main", clock.now() + timedelta(minutes=10), "down")
    main.reads.clear()

    for _ in range(50):
        clock.advance(10)
        run_sweep(context)

    assert main.reads == []
    assert again(context, order).status is S.RECEIVED


@pytest.mark.parametrize("policy", list(AfterUnknown))
def test_an_unknown_outcome_at_the_next_account_is_not_ended_by_what_the_first_has(
    context: Context,
    main: FakeProvider,
    backup: FakeProvider,
    clock: FakeClock,
    policy: AfterUnknown,
) -> None:
    backup.after_unknown = policy
    main.fail_purchase(ProviderRefused(FailureCode.ITEM_UNAVAILABLE, "gone"), is_made=True)
    backup.fail_purchase(ProviderOutcomeUnknown("lost"), is_made=True)
    (order,) = receive(context, checkout(account="both", marketHashName=NAME))
    run_chain(context)
    run_chain(context, "backup")
    bought = backup.orders.pop(order.external_id)  # its lookups do not show it yet
    recovery.doubt(context, timedelta(hours=24))
    for _ in range(40):
        clock.advance(200)
        run_sweep(context)

    found = again(context, order)
    assert found.status in (S.SUBMITTING, S.NEEDS_REVIEW)
    assert [kind for kind, _ in entries(context, order)] == ["hold", "release", "hold"]
    backup.orders[order.external_id] = bought


def _refused_after_unknown(context: Context, main: FakeProvider, clock: FakeClock) -> Order:
    """Give an order that went on to the next account, though the first one may have it."""
    main.fail_purchase(ProviderOutcomeUnknown("lost"))
    for _ in range(30):
        main.fail_purchase(ProviderRefused(FailureCode.ITEM_UNAVAILABLE, "gone"))
    (order,) = receive(context, checkout(account="both", marketHashName=NAME))
    run_chain(context)
    while again(context, order).account == "main":
        clock.advance(5)
        run_sweep(context)
    return order


def test_who_was_sent_nothing_and_told_nothing_is_not_waited_for(
    context: Context, main: FakeProvider, backup: FakeProvider, clock: FakeClock
) -> None:
    order = _refused_after_unknown(context, main, clock)

    def fail(what: str) -> None:
        if what.startswith("order"):
            raise ProviderNotReached("down")

    backup.on_read = fail
    go_on(context, clock)

    assert (again(context, order).status, len(backup.bodies)) == (S.ACCEPTED, 1)


@pytest.mark.parametrize("what", ["the next is stopped", "the first is away"])
def test_an_order_that_cannot_be_searched_ends_an_hour_after_its_time_and_is_told(
    context: Context, main: FakeProvider, backup: FakeProvider, clock: FakeClock, what: str
) -> None:
    order = _refused_after_unknown(context, main, clock)
    if what == "the next is stopped":
        brakes.stop(context, "backup", "x", "test")
    else:
        main.reads_fail(ProviderNotReached("down", is_outage=True))
    asked = len(main.reads)
    for _ in range(12):
        clock.advance(900)
        run_ticks(context)

    assert again(context, order).status is S.FAILED
    assert backup.bodies == []
    told = [message["type"] for message in messages_of(context, order)]
    # A stopped account is searched all the same, and has nothing to tell a person of.
    assert ("order.needs_review" in told) is (what != "the next is stopped")
    assert len(main.reads) - asked < 100


@pytest.mark.parametrize("route", ["both", "main"])
@pytest.mark.parametrize("no", ["not there", "dear", "catalog fails", "no money", "wallet fails"])
def test_what_is_told_while_an_account_says_no_is_looked_for_there(
    context: Context,
    main: FakeProvider,
    backup: FakeProvider,
    clock: FakeClock,
    no: str,
    route: str,
) -> None:
    (order,) = receive(context, checkout(account=route, marketHashName=NAME))
    asked = "wallet" if no in ("no money", "wallet fails") else "catalog"

    def tell(what: str) -> None:
        if what != asked:
            return
        if again(context, order).told_early_at is None:
            main.says(order.external_id, R.SENT)
            hear(context, main, order.external_id, R.SENT)
        if no.endswith("fails"):
            raise ProviderNotReached("HTTP 502", is_outage=True)

    main.on_read = tell
    if no == "not there":
        del main.prices[ITEM]
    elif no == "dear":
        main.prices[ITEM] *= 2
    elif no == "no money":
        main.balance_mills = 1
    run_chain(context)
    assert again(context, order).told_early_at is not None
    main.on_read = lambda what: None
    go_on(context, clock)

    now = again(context, order)
    assert (now.status, now.account) == (S.SENT, "main")
    assert not main.bodies
    assert not backup.bodies
