"""Who told of an order is asked as whose account it was; nothing else holds the order up."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest

from fulfillment.errors import ProviderNotReached, ProviderOutcomeUnknown
from fulfillment.providers.base import AfterUnknown
from fulfillment.services import brakes, merchants, recovery
from fulfillment.services.context import Context
from fulfillment.store import due
from fulfillment.store.models import Order
from schemas.enums import OrderStatus as S
from schemas.messages import NEEDS_REVIEW
from schemas.provider import OrderReport
from schemas.provider import ReportState as R
from tests.conftest import MakeContext
from tests.integration.telling import NO, PRICE_MILLS, go_on, tell
from tests.integration.test_recovery import ACCOUNT
from tests.support import (
    NAME,
    FakeClock,
    FakeProvider,
    again,
    assert_invariants,
    attempt_of,
    checkout,
    messages_of,
    receive,
    report,
    run_chain,
    run_polls,
    run_sweep,
    run_ticks,
    view,
)

OTHER = ACCOUNT | {"client_id": "other"}
CHANGED = ACCOUNT | {"client_id": "changed"}
WORDS = ["a signed report", "a hint"]

Configure = Callable[..., Context]
Story = Callable[[Context, FakeProvider, FakeClock], Order]


@pytest.fixture
def main() -> FakeProvider:
    return FakeProvider()


@pytest.fixture
def backup() -> FakeProvider:
    return FakeProvider()


@pytest.fixture
def configure(make_context: MakeContext, main: FakeProvider, backup: FakeProvider) -> Configure:
    """Give a process of these accounts, all of which are on the route `both`."""

    def make(at_main: FakeProvider = main, **accounts: dict[str, Any]) -> Context:
        made = make_context(at_main, accounts=accounts, routes={"both": list(accounts)})
        made._providers["backup"] = backup
        return made

    return make


def one(context: Context, account: str) -> Order:
    (order,) = receive(context, checkout(account=account, marketHashName=NAME))
    return order


def say(context: Context, account: str, order: Order, word: str) -> None:
    said = report(R.SENT, order.external_id) if word == "a signed report" else None
    tell(context, account, order, said)


def lookup(order: Order) -> str:
    return f"order {order.external_id}"


def refused_at_main(context: Context, main: FakeProvider) -> Order:
    main.fail_purchase(NO)
    order = one(context, "both")
    run_chain(context)
    assert again(context, order).account == "backup"
    return order


@pytest.mark.parametrize("is_there", [True, False])
@pytest.mark.parametrize("policy", AfterUnknown)
def test_a_hint_of_what_was_begun_and_never_left_has_it_looked_for_and_not_posted(
    configure: Configure, main: FakeProvider, clock: FakeClock, policy: AfterUnknown, is_there: bool
) -> None:
    main.after_unknown = policy
    context = configure(main=ACCOUNT)
    main.fail_purchase(ProviderNotReached("connection refused"))
    order = one(context, "main")
    run_chain(context)
    begun = again(context, order)
    assert (begun.status, begun.is_unsent) == (S.SUBMITTING, False)
    assert attempt_of(context, order).is_unsent

    main.bodies.clear()
    searched_before: list[bool] = []
    main.on_purchase = lambda fields: searched_before.append(lookup(order) in main.reads)
    if is_there:
        main.says(order.external_id, R.PENDING, charged_mills=PRICE_MILLS)
    tell(context, "main", order, None)
    for _ in range(60):
        clock.advance(3)
        run_ticks(context)

    assert again(context, order).status is (S.PENDING if is_there else S.ACCEPTED)
    assert searched_before == ([] if is_there else [True])
    assert_invariants(context)


@pytest.mark.parametrize("is_there", [True, False])
@pytest.mark.parametrize("was_doubted", [False, True])
@pytest.mark.parametrize("word", WORDS)
def test_what_a_merchant_told_of_is_bought_at_no_other_and_searched_once_it_is_back(
    configure: Configure,
    main: FakeProvider,
    clock: FakeClock,
    word: str,
    was_doubted: bool,
    is_there: bool,
) -> None:
    earlier = configure(main=OTHER)
    if was_doubted:
        recovery.doubt(earlier, timedelta(hours=24))
    clock.advance(timedelta(days=3).total_seconds())
    before = configure(main=ACCOUNT)
    clock.advance(timedelta(days=4).total_seconds())
    order = one(before, "main")
    if is_there:
        main.says(order.external_id, R.SENT, charged_mills=PRICE_MILLS)
    say(before, "main", order, word)
    clock.advance(5)
    anybody = FakeProvider()
    changed = configure(anybody, main=CHANGED)
    for _ in range(3):
        go_on(changed, clock)
    assert (again(changed, order).status, anybody.bodies) == (S.RECEIVED, [])

    back = configure(main=ACCOUNT)
    go_on(back, clock)

    assert again(back, order).status is (S.SENT if is_there else S.ACCEPTED)
    assert main.reads.count(lookup(order)) == 1
    assert len(main.bodies) == (0 if is_there else 1)
    assert_invariants(back)


@pytest.mark.parametrize("is_put_back", [True, False])
@pytest.mark.parametrize("word", WORDS)
def test_who_tells_as_the_merchant_that_it_is_now_is_asked_whosoever_it_was_before(
    configure: Configure, main: FakeProvider, clock: FakeClock, word: str, is_put_back: bool
) -> None:
    order = one(configure(main=ACCOUNT), "main")
    clock.advance(5)
    context = configure(main=CHANGED)
    if is_put_back:
        clock.advance(5)
        context = configure(main=ACCOUNT)
    say(context, "main", order, word)
    go_on(context, clock)

    assert again(context, order).status is S.ACCEPTED
    assert main.reads.count(lookup(order)) == 1
    assert_invariants(context)


def told_by_signed_report(context: Context, main: FakeProvider, clock: FakeClock) -> Order:
    order = one(context, "main")
    say(context, "main", order, "a signed report")
    return order


def hinted_at(context: Context, main: FakeProvider, clock: FakeClock) -> Order:
    order = one(context, "main")
    say(context, "main", order, "a hint")
    return order


def unknown_then_refused(context: Context, main: FakeProvider, clock: FakeClock) -> Order:
    main.fail_purchase(ProviderOutcomeUnknown("lost"))
    for _ in range(30):
        main.fail_purchase(NO)
    order = one(context, "both")
    run_chain(context)
    while again(context, order).account == "main":
        clock.advance(5)
        run_sweep(context)
    main.purchase_script.clear()
    return order


def hinted_at_while_it_refuses(context: Context, main: FakeProvider, clock: FakeClock) -> Order:
    main.fail_purchase(NO)
    order = one(context, "both")
    main.on_purchase = lambda fields: say(context, "main", order, "a hint")
    run_chain(context)
    return order


@pytest.mark.parametrize(
    "story",
    [told_by_signed_report, hinted_at, unknown_then_refused, hinted_at_while_it_refuses],
)
def test_who_may_have_an_order_is_asked_again_once_a_person_knows_it_to_be_the_same(
    configure: Configure, main: FakeProvider, backup: FakeProvider, clock: FakeClock, story: Story
) -> None:
    order = story(configure(main=ACCOUNT, backup=OTHER), main, clock)
    clock.advance(1)
    context = configure(main=CHANGED, backup=OTHER)
    main.bodies.clear()
    go_on(context, clock)
    held = again(context, order)
    assert (held.is_waiting, main.bodies, backup.bodies) == (True, [], [])
    main.reads.clear()

    count = merchants.is_same(context, "main", "only the id was rotated", "anna")
    assert again(context, order).next_poll_at is None
    go_on(context, clock)

    assert count == 1
    assert (again(context, order).status, again(context, order).account) == (
        S.ACCEPTED,
        held.account,
    )
    assert lookup(order) in main.reads
    assert len(main.bodies + backup.bodies) == 1
    assert any("says anna" in entry.note for entry in view(context, order).timeline)
    assert merchants.is_same(context, "main", "once more", "anna") == 0
    assert_invariants(context)


@pytest.mark.parametrize("why", [*WORDS, "a doubt"])
def test_an_account_that_refused_an_order_and_is_gone_holds_it_up_no_more(
    configure: Configure, main: FakeProvider, backup: FakeProvider, clock: FakeClock, why: str
) -> None:
    order = refused_at_main(configure(main=ACCOUNT, backup=OTHER), main)
    context = configure(backup=OTHER)
    if why == "a doubt":
        recovery.doubt(context, timedelta(hours=24))
    else:
        say(context, "backup", order, why)
    go_on(context, clock)

    assert again(context, order).status is S.ACCEPTED
    assert lookup(order) in backup.reads
    assert len(backup.bodies) == 1
    assert_invariants(context)


def test_a_fallback_that_was_never_tried_and_is_gone_holds_up_nothing_that_is_hinted_at(
    configure: Configure, main: FakeProvider, clock: FakeClock
) -> None:
    order = one(configure(main=ACCOUNT, backup=OTHER), "both")
    context = configure(main=ACCOUNT)
    main.signs_what_it_is_about = False
    tell(context, "main", order, None)
    go_on(context, clock)

    assert again(context, order).status is S.ACCEPTED
    assert main.reads.count(lookup(order)) == 1
    assert_invariants(context)


def test_a_hint_at_an_account_hangs_on_no_other_that_fails(
    configure: Configure, main: FakeProvider, backup: FakeProvider, clock: FakeClock
) -> None:
    main.signs_what_it_is_about = False
    context = configure(main=ACCOUNT, backup=OTHER)
    order = one(context, "both")
    tell(context, "main", order, None)
    backup.reads_fail(ProviderNotReached("HTTP 500", is_outage=True))
    go_on(context, clock)

    assert (again(context, order).status, again(context, order).account) == (S.ACCEPTED, "main")
    assert main.reads.count(lookup(order)) == 1
    assert lookup(order) not in backup.reads
    assert_invariants(context)


@pytest.mark.parametrize("is_news", [True, False])
def test_what_is_priced_afresh_is_polled_no_more_and_news_of_it_has_it_looked_for(
    configure: Configure, main: FakeProvider, clock: FakeClock, is_news: bool
) -> None:
    context = configure(main=ACCOUNT)
    main.fail_purchase(ProviderNotReached("connection refused"))
    order = one(context, "main")
    run_chain(context)
    main.bodies.clear()
    brakes.stop(context, "main", "drill", "anna")
    with context.database.transaction() as session:
        due.poll_at(session, [order.id], clock.now(), 1, is_asked_for=is_news)
    assert again(context, order).next_poll_at is not None
    main.says(order.external_id, R.SENT, charged_mills=PRICE_MILLS)
    clock.advance(301)
    run_sweep(context)

    afresh = again(context, order)
    assert afresh.between_attempts
    assert (afresh.next_poll_at, afresh.poll_wanted_at) == (None, None)
    assert afresh.told_early_at == (clock.now() if is_news else None)
    run_polls(context)
    assert lookup(order) not in main.reads
    brakes.resume(context, "main", "over", "anna")
    for _ in range(15):
        clock.advance(10)
        run_sweep(context)

    assert again(context, order).status is S.SENT
    assert main.reads.count(lookup(order)) == (1 if is_news else 0)
    assert len(main.bodies) == (0 if is_news else 1)
    assert_invariants(context)


@pytest.mark.parametrize("when", ["while it is looked for", "out of its cache"])
def test_a_search_that_a_word_came_after_is_none(
    configure: Configure,
    main: FakeProvider,
    backup: FakeProvider,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    when: str,
) -> None:
    """What is told first is not true any more; then the item is sold out there."""
    context = configure(main=ACCOUNT, backup=OTHER)
    order = one(context, "both")
    tell(context, "main", order, report(R.FAILED, order.external_id))
    found = main.reports
    is_told: list[bool] = []

    def tell_more() -> None:
        main.says(order.external_id, R.SENT, charged_mills=PRICE_MILLS)
        main.prices.clear()
        tell(context, "main", order, report(R.SENT, order.external_id))

    def answer(names: Sequence[str]) -> dict[str, OrderReport]:
        if when == "out of its cache":
            return {} if clock.now() < told_at + timedelta(seconds=25) else found(names)
        answers = found(names)
        if not is_told:
            is_told.append(True)
            clock.advance(0.5)
            tell_more()
        return answers

    monkeypatch.setattr(main, "reports", answer)
    if when == "out of its cache":
        clock.advance(95)
        tell_more()
    told_at = clock.now()
    for _ in range(40):
        clock.advance(10)
        run_ticks(context)

    assert (again(context, order).status, again(context, order).account) == (S.SENT, "main")
    assert main.bodies == backup.bodies == []
    assert_invariants(context)


@pytest.mark.parametrize("word", ["a signed report", "a hint"])
def test_who_denied_an_order_that_it_had_told_of_holds_it_up_no_more(
    configure: Configure, main: FakeProvider, backup: FakeProvider, clock: FakeClock, word: str
) -> None:
    context = configure(main=ACCOUNT, backup=OTHER)
    order = one(context, "both")
    say(context, "main", order, word)
    main.fail_purchase(NO)
    go_on(context, clock)
    after = configure(backup=OTHER)
    run_chain(after, "backup")
    assert again(after, order).account == "backup"
    say(after, "backup", order, "a hint")
    go_on(after, clock)

    assert again(after, order).status is S.ACCEPTED
    assert_invariants(after)


def test_a_fallback_that_is_gone_may_have_what_the_first_account_told_of(
    configure: Configure, main: FakeProvider, clock: FakeClock
) -> None:
    order = one(configure(main=ACCOUNT, backup=OTHER), "both")
    context = configure(main=ACCOUNT)
    tell(context, "main", order, report(R.FAILED, order.external_id))
    go_on(context, clock)

    assert again(context, order).status is S.RECEIVED
    assert main.bodies == []


@pytest.mark.parametrize("word", ["a signed report", "a hint"])
def test_a_later_account_of_its_route_that_has_an_order_is_heard(
    configure: Configure, main: FakeProvider, backup: FakeProvider, clock: FakeClock, word: str
) -> None:
    context = configure(main=ACCOUNT, backup=OTHER)
    order = one(context, "both")
    backup.says(order.external_id, R.SENT, charged_mills=PRICE_MILLS)
    say(context, "backup", order, word)
    go_on(context, clock)

    assert (again(context, order).status, again(context, order).account) == (S.SENT, "backup")
    assert main.bodies == backup.bodies == []
    assert_invariants(context)


@pytest.mark.parametrize("policy", list(AfterUnknown))
def test_news_of_a_request_that_turns_out_not_to_have_left_has_the_order_looked_for(
    configure: Configure, main: FakeProvider, clock: FakeClock, policy: AfterUnknown
) -> None:
    main.after_unknown = policy
    context = configure(main=ACCOUNT)
    order = one(context, "main")
    main.says(order.external_id, R.SENT, charged_mills=PRICE_MILLS)

    def fail(fields: dict[str, Any]) -> None:
        tell(context, "main", order, None)
        raise ProviderNotReached("connection refused")

    main.on_purchase = fail
    run_chain(context)
    main.on_purchase = lambda fields: None
    go_on(context, clock)

    assert again(context, order).status is S.SENT
    assert main.bodies == []
    assert_invariants(context)


def test_hints_of_an_account_that_denies_each_time_put_nothing_off(
    configure: Configure, main: FakeProvider, backup: FakeProvider, clock: FakeClock
) -> None:
    main.signs_what_it_is_about = False
    context = configure(main=ACCOUNT, backup=OTHER)
    order = refused_at_main(context, main)
    for _ in range(20):
        clock.advance(30)
        tell(context, "main", order, None)
        run_sweep(context)

    assert again(context, order).status is S.ACCEPTED
    assert len(backup.bodies) == 1
    alarms = [each for each in messages_of(context, order) if each["type"] == NEEDS_REVIEW]
    assert len(alarms) <= 2  # before it was bought and after it
