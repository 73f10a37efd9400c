"""An order that we sent to nobody and that an account has is followed where it is found."""

from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event

import pytest

from fulfillment.errors import NotAllowedNow, ProviderDeniesAccount
from fulfillment.services import operations, reconciliation, routes
from fulfillment.services.context import Context
from schemas.enums import OrderStatus as S
from schemas.provider import ReportState as R
from tests.conftest import MakeContext
from tests.integration.telling import (
    DOWN,
    PRICE_MILLS,
    bought,
    meanwhile,
    one,
    pass_time,
    place,
    say,
    tell,
)
from tests.integration.test_recovery import ACCOUNT
from tests.support import (
    WAIT_S,
    FakeClock,
    FakeProvider,
    again,
    assert_invariants,
    attempt_of,
    entries,
    gather,
    report,
    run_chain,
    submit,
)


def of_merchant(make_context: MakeContext, name: str, provider: FakeProvider) -> Context:
    """Give a process of settings in which `main` is an account of this merchant."""
    return make_context(provider, accounts={"main": ACCOUNT | {"client_id": name}})


@pytest.mark.parametrize("word", [R.SENT, None], ids=["a report", "a hint"])
@pytest.mark.parametrize("merchant", ["mistyped", "right"])
def test_what_did_not_leave_for_a_mistyped_merchant_is_followed_at_the_right_one(
    make_context: MakeContext, clock: FakeClock, merchant: str, word: R | None
) -> None:
    nobody, right = FakeProvider(), FakeProvider()
    before = of_merchant(make_context, merchant, nobody)
    order = one(before, "main")

    def turn_away(_fields: object) -> None:
        raise ProviderDeniesAccount("HTTP 401")

    nobody.on_purchase = turn_away
    run_chain(before)
    assert attempt_of(before, order).posts == 0

    after = of_merchant(make_context, "right", right)
    right.balance_mills -= PRICE_MILLS
    right.says(order.external_id, R.SENT)
    say(after, "main", order, word)
    pass_time(after, clock, 15, 20)
    assert place(after, order) == (S.SENT, "main")

    completed = report(R.COMPLETED, order.external_id, charged_mills=PRICE_MILLS)
    tell(after, "main", order, completed)
    assert place(after, order) == (S.COMPLETED, "main")
    assert bought({"nobody": nobody, "right": right}) == {}
    assert_invariants(after)


@pytest.mark.parametrize("how", ["bought", "found"])
def test_an_order_is_not_ended_by_what_another_merchant_than_its_own_knows_of_it(
    make_context: MakeContext, clock: FakeClock, how: str
) -> None:
    own, other = FakeProvider(), FakeProvider()
    context = of_merchant(make_context, "own", own)
    order = one(context, "main")
    if how == "bought":
        run_chain(context)
    else:
        own.balance_mills -= PRICE_MILLS
        own.says(order.external_id, R.ACCEPTED)
        say(context, "main", order, None)
        pass_time(context, clock, 15, 10)
    assert place(context, order) == (S.ACCEPTED, "main")

    after = of_merchant(make_context, "other", other)
    pass_time(after, clock, 6, 600)
    pass_time(after, clock, 3, after.stalled_after.total_seconds())
    assert again(after, order).status is S.NEEDS_REVIEW
    not_found = operations.Resolution.NOT_FOUND
    with pytest.raises(NotAllowedNow, match="nobody can be asked"):
        operations.resolve(after, order.external_id, not_found, "it knows nothing of it")


def test_an_order_that_left_its_account_unsent_is_followed_there_where_that_has_it(
    routed: Context, providers: dict[str, FakeProvider], clock: FakeClock
) -> None:
    main = providers["main"]
    order = one(routed, "both")
    assert gather(routed) is not None
    main.reads_fail(DOWN)
    clock.advance(routed.lease.total_seconds() + 1)
    one(routed, "main")
    run_chain(routed)
    routes.leave_paused(routed)
    assert place(routed, order) == (S.SUBMITTING, "backup")

    main.reads_fail(None)
    main.balance_mills -= PRICE_MILLS
    main.says(order.external_id, R.SENT)
    say(routed, "main", order, R.SENT)
    pass_time(routed, clock, 15, 20)
    assert place(routed, order) == (S.SENT, "main")

    main.says(order.external_id, R.COMPLETED, charged_mills=PRICE_MILLS)
    pass_time(routed, clock, 10, 300)
    assert place(routed, order) == (S.COMPLETED, "main")
    assert [kind for kind, _ in entries(routed, order)] == ["hold", "release", "hold", "settle"]
    assert_invariants(routed)


def test_a_poll_that_finds_it_failed_once_its_purchase_did_not_leave_has_the_others_asked(
    routed: Context, providers: dict[str, FakeProvider], clock: FakeClock
) -> None:
    """It is asked for while the purchase is under way, and answered after that."""
    main = providers["main"]
    order = one(routed, "all")
    main.says(order.external_id, R.FAILED)
    providers["third"].says(order.external_id, R.SENT)
    batch = gather(routed)
    assert batch is not None
    is_asked, has_not_left = Event(), Event()
    polls: list[Future[int]] = []

    def wait(_what: str) -> None:
        is_asked.set()
        assert has_not_left.wait(WAIT_S)

    with ThreadPoolExecutor(1) as executor:

        def poll() -> None:
            say(routed, "main", order, None)
            clock.advance(2)
            main.on_read = wait
            (due,) = reconciliation.poll_due(routed)
            polls.append(executor.submit(reconciliation.poll_orders, routed, "main", due["ids"]))
            assert is_asked.wait(WAIT_S)

        meanwhile(main, poll, leaves=False)
        submit(routed, batch)
        main.on_read = lambda _: None
        has_not_left.set()
    assert [each.result() for each in polls] == [1]
    # To be polled again would put the search off, and call a person each time.
    assert again(routed, order).next_poll_at is None
    pass_time(routed, clock, 15, 20)

    assert place(routed, order) == (S.SENT, "third")
    assert bought(providers) == {}
