"""What is held back for minutes before it is sent is priced afresh; meanwhile its money is free."""

from datetime import timedelta

import pytest

from fulfillment.errors import ProviderNotReached, ProviderOutcomeUnknown
from fulfillment.services import brakes, routes, submission
from fulfillment.services.context import Context
from fulfillment.store.models import Order
from schemas.enums import FailedBy, FailureCode
from schemas.enums import OrderStatus as S
from schemas.provider import ReportState as R
from tests.conftest import MakeContext
from tests.support import (
    ITEM,
    PRICE_CENTS,
    FakeClock,
    FakeProvider,
    again,
    assert_invariants,
    available,
    entries,
    gather,
    hear,
    in_threads,
    receive_one,
    run_chain,
    run_sweep,
    run_ticks,
    take_figure,
    view,
)

PRICE_MILLS = PRICE_CENTS * 10
ANNA = "anna@host"


def held(context: Context, **fields: object) -> Order:
    """Give an order with money held whose account is then stopped."""
    order = receive_one(context, **fields)
    batch = gather(context, order.account)
    assert batch is not None
    brakes.stop(context, order.account, "lunch", ANNA)
    submission.submit_orders(context, batch)
    assert again(context, order).status is S.RESERVED
    return order


def pass_by(context: Context, clock: FakeClock, length: timedelta) -> None:
    for _ in range(int(length / timedelta(minutes=1))):
        clock.advance(60)
        run_ticks(context)


def go_on(context: Context, clock: FakeClock) -> None:
    brakes.resume(context, "main", "", ANNA)
    pass_by(context, clock, timedelta(minutes=2))


@pytest.mark.parametrize("price", [PRICE_MILLS - 500, PRICE_MILLS, PRICE_MILLS + 500])
def test_after_a_long_stop_an_order_is_bought_at_the_price_of_then(
    context: Context, provider: FakeProvider, clock: FakeClock, price: int
) -> None:
    order = held(context, expectedPrice=PRICE_CENTS + 100)
    pass_by(context, clock, timedelta(minutes=40))
    provider.prices[ITEM] = price
    go_on(context, clock)

    now = again(context, order)
    assert (now.status, now.quoted_mills) == (S.ACCEPTED, price)
    assert [b"%d" % price in body for body in provider.bodies] == [True]
    assert_invariants(context)


def test_after_a_long_stop_an_order_that_is_too_dear_now_is_not_sent(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = held(context)
    pass_by(context, clock, timedelta(minutes=10))
    provider.prices[ITEM] = PRICE_MILLS + 10
    go_on(context, clock)

    now = again(context, order)
    assert (now.status, now.failure_code) == (S.FAILED, FailureCode.PRICE_CHANGED)
    assert now.failed_by == FailedBy.US
    assert not provider.bodies
    assert_invariants(context)


def test_after_a_short_stop_it_is_sent_as_it_was(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = held(context)
    pass_by(context, clock, timedelta(minutes=2))
    reads = provider.reads.count("catalog")
    go_on(context, clock)

    assert again(context, order).status is S.ACCEPTED
    assert provider.reads.count("catalog") == reads


def test_what_a_stopped_account_holds_is_free_for_others_after_minutes(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock
) -> None:
    accounts = {name: {"client_id": name, "client_secret": "x" * 20} for name in ("main", "other")}
    context = make_context(provider, accounts=accounts, spend_cap_cents_per_hour=PRICE_CENTS + 1)
    stopped = held(context, account="main")
    order = receive_one(context, account="other")
    run_chain(context, "other")
    assert again(context, order).status is S.AWAITING_FUNDS
    pass_by(context, clock, timedelta(minutes=7))

    assert again(context, order).status is S.ACCEPTED
    assert again(context, stopped).status is S.SUBMITTING
    assert [kind for kind, *_ in entries(context, stopped)] == ["hold", "release"]
    assert available(context, "main") == FakeProvider().balance_mills


def test_an_order_is_held_back_any_number_of_times(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = held(context)
    for _ in range(3):
        pass_by(context, clock, timedelta(minutes=6))
        brakes.resume(context, "main", "", ANNA)
        batch = gather(context)
        assert batch is not None
        brakes.stop(context, "main", "once more", ANNA)
        submission.submit_orders(context, batch)
    pass_by(context, clock, timedelta(minutes=6))
    go_on(context, clock)

    assert again(context, order).status is S.ACCEPTED
    assert len(provider.bodies) == 1
    assert_invariants(context)


def test_a_worker_that_slept_through_it_sends_nothing(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = receive_one(context)
    batch = gather(context)
    assert batch is not None
    clock.advance(600)
    assert routes.price_afresh(context) == [order.external_id]

    submission.submit_orders(context, batch)  # wakes up
    assert not provider.bodies
    run_chain(context)
    assert len(provider.bodies) == 1
    assert again(context, order).status is S.ACCEPTED


def test_of_many_that_look_one_begins_it_anew(context: Context, clock: FakeClock) -> None:
    order = receive_one(context)
    assert gather(context) is not None
    clock.advance(600)

    found = in_threads(8, lambda place: routes.price_afresh(context))

    assert sorted(name for names in found for name in names) == [order.external_id]
    assert [kind for kind, *_ in entries(context, order)] == ["hold", "release"]


def test_what_may_have_been_sent_keeps_its_bytes_and_its_money(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    provider.fail_purchase(ProviderOutcomeUnknown("timeout"))
    order = receive_one(context)
    run_chain(context)
    brakes.stop(context, "main", "lunch", ANNA)
    clock.advance(600)

    assert routes.price_afresh(context) == []
    assert available(context) == provider.balance_mills - PRICE_MILLS
    assert not again(context, order).between_attempts


def test_what_waits_for_purchases_that_nobody_answers_is_priced_afresh(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = receive_one(context)
    for _ in range(30):
        provider.fail_purchase(ProviderNotReached("nothing was sent"))
    pass_by(context, clock, timedelta(minutes=20))
    provider.purchase_script.clear()
    provider.prices[ITEM] = PRICE_MILLS - 500
    pass_by(context, clock, timedelta(minutes=8))

    now = again(context, order)
    assert (now.status, now.quoted_mills) == (S.ACCEPTED, PRICE_MILLS - 500)
    assert len(view(context, order).timeline) < 80
    run_sweep(context)
    assert_invariants(context)


def test_none_that_came_later_gets_the_money_that_is_free_meanwhile(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock
) -> None:
    provider.balance_mills = 2 * PRICE_MILLS
    context = make_context(provider, batch_limit=1)
    provider.purchase_script.extend([(ProviderNotReached("nothing was sent"), False)] * 99)
    first = [receive_one(context) for _ in range(2)]
    pass_by(context, clock, timedelta(minutes=1))
    later = [receive_one(context) for _ in range(2)]
    pass_by(context, clock, timedelta(minutes=9))
    provider.purchase_script.clear()
    pass_by(context, clock, timedelta(minutes=20))

    assert [again(context, order).status for order in first] == [S.ACCEPTED] * 2
    assert {again(context, order).failure_code for order in later} == {
        FailureCode.INSUFFICIENT_FUNDS
    }


def test_news_of_what_was_put_aside_and_is_bought_all_the_same_is_looked_into(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    take_figure(context)
    order = held(context)
    pass_by(context, clock, timedelta(minutes=8))
    provider.says(order.external_id, R.SENT)  # as after a restore from a backup of that moment
    provider.balance_mills -= PRICE_MILLS
    brakes.resume(context, "main", "", ANNA)
    hear(context, provider, order.external_id, R.SENT)
    told = again(context, order)
    assert (told.status, told.between_attempts) == (S.SUBMITTING, True)
    assert "never submitted" in str(view(context, order).timeline)

    provider.says(order.external_id, R.COMPLETED, charged_mills=PRICE_MILLS)
    pass_by(context, clock, timedelta(minutes=15))
    assert again(context, order).status is S.COMPLETED
    assert entries(context, order)[-2:] == [("hold", PRICE_MILLS), ("settle", PRICE_MILLS)]
    assert not provider.bodies
    assert_invariants(context)
