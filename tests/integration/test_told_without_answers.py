"""What an account tells of is heard, though it answers no question or answers slowly."""

import pytest

from fulfillment.services import webhooks
from fulfillment.services.context import Context
from fulfillment.store.models import Order
from schemas.enums import OrderStatus as S
from schemas.provider import ReportState as R
from schemas.provider import WebhookNotice
from tests.integration.telling import (
    DOWN,
    NO,
    bought,
    hint_later,
    one,
    pass_time,
    place,
)
from tests.support import FakeClock, FakeProvider, again, gather, report, run_chain, submit


@pytest.fixture
def main(providers: dict[str, FakeProvider]) -> FakeProvider:
    return providers["main"]


def gone_on(context: Context, main: FakeProvider, clock: FakeClock, count: int) -> list[Order]:
    """Give orders that main refused and backup has."""
    found = [one(context, "both") for _ in range(count)]
    for _ in found:
        main.fail_purchase(NO)
    run_chain(context)
    pass_time(context, clock, 3, 10)
    assert [place(context, order) for order in found] == [(S.ACCEPTED, "backup")] * count
    return found


@pytest.mark.parametrize("left", [0, 2, 3])
@pytest.mark.parametrize("signs", [True, False])
@pytest.mark.parametrize("word", ["a hint", "a hint and a report"])
def test_what_an_account_tells_of_its_own_order_is_heard_behind_hints_it_gives_no_answer_about(
    routed: Context,
    providers: dict[str, FakeProvider],
    main: FakeProvider,
    clock: FakeClock,
    word: str,
    signs: bool,
    left: int,
) -> None:
    main.signs_what_it_is_about = signs
    others = gone_on(routed, main, clock, left)
    own = one(routed, "main")
    batch = gather(routed)
    assert batch is not None
    main.says(own.external_id, R.SENT)
    sent = bought(providers)

    main.reads_fail(DOWN)
    for order in [*others, own]:
        hint_later(routed, "main", order)
    if word == "a hint and a report":
        said = report(R.SENT, own.external_id)
        main.notice = WebhookNotice(own.external_id, clock.now(), said)
        webhooks.take(routed, "main", {}, b"sent")
    webhooks.apply_deliveries(routed)
    main.reads_fail(None)
    submit(routed, batch)
    pass_time(routed, clock, 10, 20)

    assert bought(providers) == sent
    assert place(routed, own) == (S.SENT, "main")


def test_a_hint_at_what_is_held_and_unsent_elsewhere_is_heard_behind_those_it_leaves_unanswered(
    routed: Context, providers: dict[str, FakeProvider], main: FakeProvider, clock: FakeClock
) -> None:
    """Main says no to the last one, and has it all the same."""
    others = gone_on(routed, main, clock, 3)
    last = one(routed, "both")
    main.fail_purchase(NO, is_made=True)
    run_chain(routed)
    batch = gather(routed, "backup")
    assert batch is not None
    assert place(routed, last) == (S.SUBMITTING, "backup")
    sent = bought(providers)

    main.reads_fail(DOWN)
    for order in [*others, last]:
        hint_later(routed, "main", order)
    webhooks.apply_deliveries(routed)
    main.reads_fail(None)
    submit(routed, batch)
    pass_time(routed, clock, 10, 10)

    assert bought(providers) == sent


def test_an_account_that_answers_slowly_is_asked_for_half_a_lease_and_about_the_rest_later(
    routed: Context, main: FakeProvider, clock: FakeClock
) -> None:
    lease_s = routed.lease.total_seconds()
    others = gone_on(routed, main, clock, 5)
    for order in others:
        hint_later(routed, "main", order)
    main.on_read = lambda _: clock.advance(lease_s / 4)
    main.reads.clear()
    looked_up = [f"order {order.external_id}" for order in others]

    webhooks.apply_deliveries(routed)
    assert main.reads == looked_up[:2]
    webhooks.apply_deliveries(routed)
    assert main.reads == looked_up[:2]  # the others are claimed for a lease

    clock.advance(lease_s / 2)
    webhooks.apply_deliveries(routed)
    assert main.reads == looked_up[:4]
    clock.advance(lease_s / 2)
    webhooks.apply_deliveries(routed)
    assert main.reads == looked_up
    assert {again(routed, order).account for order in others} == {"backup"}


def test_a_hint_that_nobody_may_ask_about_in_time_keeps_what_is_unsent_from_being_bought(
    routed: Context, providers: dict[str, FakeProvider], main: FakeProvider, clock: FakeClock
) -> None:
    """Half a lease is over when it is its turn."""
    others = gone_on(routed, main, clock, 2)
    last = one(routed, "both")
    main.fail_purchase(NO, is_made=True)
    run_chain(routed)
    batch = gather(routed, "backup")
    assert batch is not None
    sent = bought(providers)

    main.on_read = lambda _: clock.advance(routed.lease.total_seconds() / 4)
    for order in [*others, last]:
        hint_later(routed, "main", order)
    main.reads.clear()
    webhooks.apply_deliveries(routed)
    assert main.reads == [f"order {order.external_id}" for order in others]
    main.on_read = lambda _: None
    submit(routed, batch)
    pass_time(routed, clock, 10, 10)

    assert bought(providers) == sent
    assert place(routed, last)[1] == "backup"
