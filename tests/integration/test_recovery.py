"""A restored database, or another server that lacked the last commits: nothing is bought again."""

from collections.abc import Sequence
from datetime import datetime, timedelta

import pytest

from fulfillment.errors import ProviderDeniesAccount, ProviderNotReached, ProviderOutcomeUnknown
from fulfillment.providers.base import AfterUnknown, BeforeSend
from fulfillment.services import brakes, diagnosis, recovery, watchdog
from fulfillment.services.context import Context, register_accounts
from fulfillment.store import accounts, doubts, orders
from fulfillment.store.doubts import UNSEARCHED
from fulfillment.store.models import Order
from schemas.enums import OrderStatus as S
from schemas.provider import OrderReport
from schemas.provider import ReportState as R
from tests.conftest import MakeContext, empty_tables
from tests.support import (
    ITEM,
    NAME,
    FakeClock,
    FakeProvider,
    again,
    assert_invariants,
    attempt_of,
    checkout,
    entries,
    gather,
    messages_of,
    path_of,
    receive,
    rows,
    run_chain,
    run_sweep,
    run_ticks,
    submit,
)

ACCOUNT = {
    "provider": "skinsnode",
    "base_url": "http://127.0.0.1:9",
    "client_id": "c",
    "client_secret": "s",
}


@pytest.fixture
def backup() -> FakeProvider:
    return FakeProvider()


@pytest.fixture
def context(make_context: MakeContext, provider: FakeProvider, backup: FakeProvider) -> Context:
    """Give two accounts and a route over both."""
    made = make_context(
        provider,
        accounts={"main": ACCOUNT, "backup": ACCOUNT},
        routes={"both": ["main", "backup"]},
    )
    made._providers["backup"] = backup
    return made


def lose_everything(context: Context) -> None:
    """Put an empty database in the place of ours."""
    empty_tables(context.database)
    register_accounts(context)
    recovery.doubt(context, timedelta(hours=24))


def again_after_loss(context: Context, event: dict[str, object]) -> Order:
    (order,) = receive(context, event)
    run_chain(context)
    return again(context, order)


def settle(context: Context, clock: FakeClock, less_s: float = 0.0) -> None:
    """Let as much time pass as a purchase from before the loss may go untold of."""
    longest = max(context.longest_call(name) for name in context.settings.accounts)
    clock.advance((longest + context.cache_time).total_seconds() - less_s)


class SlowToTell(FakeProvider):
    """Knows nothing of an order for a while after it was bought.

    A lookup is answered out of a cache, or the purchase is worked on still.
    """

    def __init__(self, clock: FakeClock, hidden_s: float) -> None:
        super().__init__()
        self._clock = clock
        self._hidden = timedelta(seconds=hidden_s)
        self._bought_at: dict[str, datetime] = {}

    def purchase(self, body: bytes, before_send: BeforeSend | None = None) -> OrderReport:
        made = super().purchase(body, before_send)
        self._bought_at.setdefault(made.external_id, self._clock.now())
        return made

    def reports(self, external_ids: Sequence[str]) -> dict[str, OrderReport]:
        now = self._clock.now()
        found = super().reports(external_ids)
        return {n: r for n, r in found.items() if now - self._bought_at[n] >= self._hidden}


@pytest.mark.parametrize("after_s", [0, 2, 20, 40])
@pytest.mark.parametrize("policy", list(AfterUnknown))
def test_an_account_that_does_not_tell_of_a_purchase_yet_is_not_believed(
    make_context: MakeContext,
    backup: FakeProvider,
    clock: FakeClock,
    policy: AfterUnknown,
    after_s: float,
) -> None:
    slow = SlowToTell(clock, hidden_s=60)
    slow.after_unknown = policy
    context = make_context(
        slow,
        accounts={"main": ACCOUNT, "backup": ACCOUNT},
        routes={"both": ["main", "backup"]},
    )
    context._providers["backup"] = backup
    event = checkout(account="both", marketHashName=NAME)
    again_after_loss(context, event)
    lose_everything(context)
    del slow.prices[ITEM]  # we bought the last one there
    clock.advance(after_s)

    order = again_after_loss(context, event)
    for _ in range(15):
        clock.advance(10)
        run_sweep(context)

    assert (len(slow.bodies), backup.bodies) == (1, [])
    assert (again(context, order).account, again(context, order).status) == ("main", S.ACCEPTED)


@pytest.mark.parametrize("less_s", [1, 0])
def test_an_absence_counts_when_the_longest_call_and_the_cache_are_over(
    context: Context, provider: FakeProvider, clock: FakeClock, less_s: float
) -> None:
    lose_everything(context)
    settle(context, clock, less_s)

    order = again_after_loss(context, checkout(account="main"))

    is_early = less_s > 0
    assert order.status is (S.RECEIVED if is_early else S.ACCEPTED)
    assert provider.reads.count(f"order {order.external_id}") == (0 if is_early else 1)


@pytest.mark.parametrize("policy", list(AfterUnknown))
def test_a_checkout_that_was_bought_before_the_restore_is_adopted(
    context: Context, provider: FakeProvider, clock: FakeClock, policy: AfterUnknown
) -> None:
    provider.after_unknown = policy
    event = checkout(account="main")
    again_after_loss(context, event)
    lose_everything(context)
    settle(context, clock)
    del provider.prices[ITEM]  # we bought the last one

    order = again_after_loss(context, event)

    assert len(provider.bodies) == 1
    assert path_of(context, order) == ["received", "quoted", "reserved", "submitting", "accepted"]
    assert [kind for kind, _ in entries(context, order)] == ["hold"]
    assert attempt_of(context, order).state == "accepted"
    assert_invariants(context)


def test_an_order_that_was_bought_at_a_later_account_is_not_bought_at_the_first(
    context: Context, provider: FakeProvider, backup: FakeProvider, clock: FakeClock
) -> None:
    price = provider.prices.pop(ITEM)
    event = checkout(account="both", marketHashName=NAME)
    (first,) = receive(context, event)
    for account in ("main", "backup"):
        run_chain(context, account)
    bought_at = again(context, first).account
    lose_everything(context)
    settle(context, clock)
    provider.prices[ITEM] = price

    order = again_after_loss(context, event)

    assert (bought_at, order.account, order.fallbacks) == ("backup", "backup", ())
    assert (len(provider.bodies), len(backup.bodies)) == (0, 1)
    assert order.status is S.ACCEPTED
    assert_invariants(context)


def test_what_was_not_bought_is_bought_after_one_look_at_each_account(
    context: Context, provider: FakeProvider, backup: FakeProvider, clock: FakeClock
) -> None:
    lose_everything(context)
    order = again_after_loss(context, checkout(account="both", marketHashName=NAME))
    assert (order.status, provider.reads, backup.reads) == (S.RECEIVED, [], [])

    settle(context, clock)
    run_sweep(context)
    order = again(context, order)

    assert order.status is S.ACCEPTED
    assert len(provider.bodies) == 1
    looked = f"order {order.external_id}"
    assert (provider.reads.count(looked), backup.reads) == (1, [looked])


@pytest.mark.parametrize("requests_per_minute", [None, 60])
def test_what_a_lookup_of_many_leaves_out_is_bought_nowhere_before_it_was_asked_for_alone(
    make_context: MakeContext,
    provider: FakeProvider,
    backup: FakeProvider,
    clock: FakeClock,
    requests_per_minute: int | None,
) -> None:
    limited = {**ACCOUNT, "rate_per_minute": requests_per_minute}
    context = make_context(
        provider,
        accounts={"main": limited, "backup": limited},
        routes={"both": ["main", "backup"]},
    )
    context._providers["backup"] = backup
    provider.lookup_limit, provider.told_at_once = 100, 20
    events = [checkout(account="both", marketHashName=NAME) for _ in range(30)]
    for event in events:  # bought before the restore
        provider.says(str(event["externalId"]), R.ACCEPTED)
    fresh = checkout(account="both", marketHashName=NAME)
    lose_everything(context)
    del provider.prices[ITEM]

    placed = receive(context, *events, fresh)
    settle(context, clock)
    for _ in range(12):
        run_sweep(context)
        clock.advance(11)

    assert {(again(context, o).account, again(context, o).status) for o in placed[:-1]} == {
        ("main", S.ACCEPTED)
    }
    assert [fresh["externalId"]] == list(backup.orders)
    assert again(context, placed[-1]).status is S.ACCEPTED
    assert_invariants(context)


def test_an_account_that_cannot_be_asked_keeps_the_order_until_it_can(
    context: Context, provider: FakeProvider, backup: FakeProvider, clock: FakeClock
) -> None:
    lose_everything(context)
    settle(context, clock)
    backup.reads_fail(ProviderNotReached("timeout"))
    order = again_after_loss(context, checkout(account="both", marketHashName=NAME))
    waiting = (order.status, len(provider.bodies))

    backup.reads_fail(None)
    clock.advance(61)
    run_sweep(context)
    run_chain(context)

    assert waiting == (S.RECEIVED, 0)
    assert again(context, order).status is S.ACCEPTED


def test_an_order_that_no_lookup_tells_of_keeps_no_other_from_being_looked_for(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    provider.lookup_limit = 100
    lose_everything(context)
    odd, *others = receive(context, *(checkout() for _ in range(4)))

    def fail(what: str) -> None:
        if what == f"order {odd.external_id}":
            raise ProviderNotReached("HTTP 500", is_outage=True)

    provider.on_read = fail
    settle(context, clock)
    run_sweep(context)
    clock.advance(11)
    run_sweep(context)

    with context.database.transaction() as session:
        assert accounts.paused_until(session, "main", context.now()) is None
    assert {again(context, order).status for order in others} == {S.ACCEPTED}
    assert again(context, odd).status is S.RECEIVED


def let_pass(context: Context, clock: FakeClock, hours: float) -> None:
    """Let time pass with all ticks, ten minutes apart."""
    for _ in range(int(hours * 6)):
        clock.advance(600)
        run_ticks(context)


@pytest.mark.parametrize("why", ["denied", "nothing runs"])
@pytest.mark.parametrize("policy", list(AfterUnknown))
def test_an_order_that_nobody_could_look_for_in_all_the_time_is_looked_for_all_the_same(
    make_context: MakeContext,
    provider: FakeProvider,
    clock: FakeClock,
    policy: AfterUnknown,
    why: str,
) -> None:
    provider.after_unknown = policy
    context = make_context(provider, submit_within_s=3 * 86400)
    (order,) = receive(context, checkout())
    provider.says(order.external_id, R.SENT)  # what our rows lack
    recovery.doubt(context, timedelta(hours=24))
    if why == "denied":
        provider.reads_fail(ProviderDeniesAccount("HTTP 401"))
        let_pass(context, clock, 25)
    else:
        clock.advance(25 * 3600)
    check = {c.name: c for c in diagnosis.examine(context.settings)}["database in doubt"]
    told = brakes.show_accounts(context)[0].doubted_since
    provider.reads_fail(None)
    for _ in range(6):
        clock.advance(120)
        run_ticks(context)

    assert provider.bodies == []
    assert again(context, order).status is S.SENT
    assert "is looked for before it is bought" in check.detail
    assert told is not None
    assert brakes.show_accounts(context)[0].doubted_since is None


@pytest.mark.parametrize("kept_at", [S.RECEIVED, S.RESERVED])
@pytest.mark.parametrize("is_there", [True, False])
def test_an_order_in_doubt_is_looked_for_once_where_its_account_is_stopped(
    make_context: MakeContext,
    provider: FakeProvider,
    clock: FakeClock,
    kept_at: S,
    is_there: bool,
) -> None:
    context = make_context(provider)
    (order,) = receive(context, checkout())
    if kept_at is S.RESERVED:
        assert gather(context) is not None
        clock.advance(60)
    brakes.stop(context, "main", "x", "test")
    recovery.doubt(context, timedelta(hours=24))
    if is_there:
        provider.says(order.external_id, R.SENT)
    provider.reads.clear()
    for _ in range(20):
        clock.advance(10)
        run_sweep(context)

    assert again(context, order).status is (S.SENT if is_there else kept_at)
    asked = [what for what in provider.reads if what != "wallet"]
    assert (provider.bodies, asked) == ([], [f"order {order.external_id}"])


def test_once_the_time_is_over_what_was_searched_or_came_later_costs_no_lookup(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock
) -> None:
    context = make_context(provider, submit_within_s=3 * 86400, await_funds_s=3 * 86400)
    recovery.doubt(context, timedelta(hours=24))
    balance, provider.balance_mills = provider.balance_mills, 1
    (searched,) = receive(context, checkout())
    let_pass(context, clock, 1)
    assert again(context, searched).status is S.AWAITING_FUNDS
    (unsearched,) = receive(context, checkout())
    clock.advance(23 * 3600)
    (later,) = receive(context, checkout())
    provider.balance_mills = balance
    for _ in range(3):
        run_sweep(context)
        clock.advance(31)

    looked = [what for what in provider.reads if what.startswith("order")]
    assert looked == [f"order {order.external_id}" for order in (searched, unsearched)]
    assert {again(context, o).status for o in (searched, unsearched, later)} == {S.ACCEPTED}


def test_a_person_who_ends_the_doubt_ends_it_for_every_order(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock
) -> None:
    context = make_context(provider, submit_within_s=3 * 86400)
    (order,) = receive(context, checkout())
    recovery.doubt(context, timedelta(hours=24))
    provider.reads_fail(ProviderDeniesAccount("HTTP 401"))
    let_pass(context, clock, 25)
    provider.reads_fail(None)
    clock.advance(601)
    provider.reads.clear()

    recovery.doubt(context, timedelta())
    run_sweep(context)

    assert provider.reads == ["catalog", "wallet"]
    assert again(context, order).status is S.ACCEPTED


@pytest.mark.parametrize("length_h", [0, 24])
def test_a_row_and_its_copy_say_the_same_of_whether_it_is_in_doubt(
    context: Context, clock: FakeClock, length_h: int
) -> None:
    since = clock.now()
    placed = receive(context, *(checkout(account="main") for _ in range(12)))
    ages_h, searches_h = (-1, 23.9, 24, 25), (None, -0.1, 0)
    cases = [(age, searched) for age in ages_h for searched in searches_h]
    for order, (age_h, searched_h) in zip(placed, cases, strict=True):
        rows(
            context,
            "UPDATE orders SET created_at = %(created)s, searched_at = %(searched)s "
            "WHERE id = %(id)s RETURNING 1",
            id=order.id,
            created=since + timedelta(hours=age_h),
            searched=None if searched_h is None else since + timedelta(hours=searched_h),
        )
    recovery.doubt(context, timedelta(hours=length_h))
    clock.advance(30 * 3600)

    query = f"SELECT id FROM orders WHERE {UNSEARCHED}"
    by_row = {row["id"] for row in rows(context, query)}
    with context.database.transaction() as session:
        doubt = doubts.condition(session, "main", clock.now()).doubt
        by_copy = {o.id for o in orders.get(session, [o.id for o in placed]) if o.is_doubted(doubt)}

    expected = [(-1, None), (-1, -0.1), (23.9, None), (23.9, -0.1)] if length_h else []
    assert by_row == by_copy == {placed[cases.index(case)].id for case in expected}


@pytest.mark.parametrize("kept_at", ["waiting", "held", "begun", "unknown"])
def test_an_order_that_nobody_can_look_for_at_all_ends_with_a_person(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock, kept_at: str
) -> None:
    context = make_context(provider)
    (order,) = receive(context, checkout())
    if kept_at != "waiting":
        batch = gather(context)
        assert batch is not None
        if kept_at == "unknown":
            provider.fail_purchase(ProviderOutcomeUnknown("lost"))
            submit(context, batch)
        if kept_at == "begun":  # an intent, and a worker that died then
            rows(context, "UPDATE orders SET status = 'submitting' RETURNING 1")
    recovery.doubt(context, timedelta(hours=24))
    provider.reads_fail(ProviderDeniesAccount("HTTP 401"))
    let_pass(context, clock, 23)
    in_time = again(context, order).status
    let_pass(context, clock, 3)

    assert in_time not in (S.FAILED, S.COMPLETED)
    found = again(context, order)
    assert found.status is (S.NEEDS_REVIEW if kept_at == "unknown" else S.FAILED)
    assert "order.needs_review" in [message["type"] for message in messages_of(context, order)]
    provider.reads_fail(None)
    provider.says(order.external_id, R.SENT)
    let_pass(context, clock, 1)
    found = again(context, order)
    assert S.SENT in (found.status, found.told_status)


@pytest.mark.parametrize("status", [S.RESERVED, S.SUBMITTING])
def test_an_order_whose_submit_the_backup_lacks_is_looked_for_before_it_is_sent(
    context: Context, provider: FakeProvider, clock: FakeClock, status: S
) -> None:
    provider.after_unknown = AfterUnknown.LOOKUP_ONLY
    order = again_after_loss(context, checkout(account="main"))
    # As an older copy of the database has it.
    with context.database.transaction() as session:
        session.execute(
            "UPDATE orders SET status = %(status)s, next_attempt_at = updated_at, "
            "next_poll_at = NULL, provider_status = NULL, claim = NULL, claimed_until = NULL",
            {"status": status.value},
        )
        session.execute(
            "UPDATE attempts SET state = 'reserved', posts = 0, confirmed_at = NULL, "
            "body_sealed = NULL, last_post_at = NULL, unknown_since = NULL"
        )
    recovery.doubt(context, timedelta(hours=24))
    settle(context, clock)

    run_sweep(context)

    assert len(provider.bodies) == 1
    assert again(context, order).status is S.ACCEPTED


def test_no_order_is_ended_as_late_before_it_was_looked_for(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    event = checkout(account="main")
    again_after_loss(context, event)
    lose_everything(context)
    (order,) = receive(context, event)
    clock.advance(2 * 3600)
    ended = watchdog.expire_waiting(context)

    run_chain(context)

    assert ended == []
    assert again(context, order).status is S.ACCEPTED
    assert len(provider.bodies) == 1


def test_a_purchase_that_failed_at_the_provider_ends_the_order(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    event = checkout(account="main")
    order = again_after_loss(context, event)
    provider.says(order.external_id, R.FAILED)
    lose_everything(context)
    settle(context, clock)

    assert again_after_loss(context, event).status is S.FAILED
    assert_invariants(context)


def test_an_order_that_was_bought_twice_already_is_brought_to_a_person(
    context: Context, provider: FakeProvider, backup: FakeProvider, clock: FakeClock
) -> None:
    event = checkout(account="both", marketHashName=NAME)
    order = again_after_loss(context, event)
    backup.orders[order.external_id] = provider.orders[order.external_id]
    lose_everything(context)
    settle(context, clock)

    order = again_after_loss(context, event)

    assert (order.account, order.status) == ("main", S.ACCEPTED)
    assert "order.needs_review" in [message["type"] for message in messages_of(context, order)]


@pytest.mark.parametrize("left", [["backup"], ["main", "third"]])
def test_a_route_that_was_changed_since_buys_nothing_again(
    make_context: MakeContext,
    provider: FakeProvider,
    backup: FakeProvider,
    clock: FakeClock,
    left: list[str],
) -> None:
    accounts = dict.fromkeys(("main", "backup", "third"), ACCOUNT)
    before = make_context(provider, accounts=accounts, routes={"both": ["main", "backup"]})
    after = make_context(provider, accounts=accounts, routes={"both": left})
    (bought_at,) = {"main", "backup"} - set(left)
    elsewhere = FakeProvider()
    for context in (before, after):
        context._providers |= dict.fromkeys(accounts, elsewhere) | {bought_at: backup}
    event = checkout(account="both", marketHashName=NAME)
    if bought_at == "backup":
        elsewhere.prices, sold = {}, elsewhere.prices
    receive(before, event)
    for account in ("main", "backup"):
        run_chain(before, account)
    if bought_at == "backup":
        elsewhere.prices = sold
    lose_everything(after)

    (order,) = receive(after, event)
    settle(after, clock)
    for _ in range(3):
        run_sweep(after)
        clock.advance(11)

    assert (len(backup.bodies), elsewhere.bodies) == (1, [])
    assert (again(after, order).account, again(after, order).fallbacks) == (bought_at, ())
    assert again(after, order).status is S.ACCEPTED
    assert_invariants(after)
