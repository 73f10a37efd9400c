"""What an account tells of an order that our rows have at an earlier one of its route."""

import pytest

from fulfillment.errors import ProviderDeniesAccount, ProviderError, ProviderNotReached
from fulfillment.services import brakes, webhooks
from fulfillment.services.context import Context
from schemas.enums import OrderStatus as S
from schemas.messages import NEEDS_REVIEW
from schemas.provider import ReportState as R
from schemas.provider import WebhookNotice
from tests.conftest import MakeContext
from tests.integration.telling import (
    DOWN,
    NO,
    PRICE_MILLS,
    Act,
    bought,
    go_on,
    meanwhile,
    on_routes,
    one,
    pass_time,
    place,
    say,
    tell,
)
from tests.support import (
    FakeClock,
    FakeProvider,
    again,
    assert_invariants,
    entries,
    gather,
    messages_of,
    report,
    run_chain,
)


@pytest.fixture
def context(make_context: MakeContext, providers: dict[str, FakeProvider]) -> Context:
    return on_routes(make_context, providers)


@pytest.fixture
def main(providers: dict[str, FakeProvider]) -> FakeProvider:
    return providers["main"]


def assert_only_request(
    context: Context, providers: dict[str, FakeProvider], clock: FakeClock, act: Act, then: str
) -> None:
    """Have `act` done during a request that is refused or not sent; nothing else is bought."""
    main = providers["main"]
    meanwhile(main, act, leaves=then == "refused")
    if then == "refused":
        main.fail_purchase(NO)
    run_chain(context)
    sent = bought(providers)
    pass_time(context, clock, 15, 20)
    assert bought(providers) == sent


@pytest.mark.parametrize("teller", ["backup", "third"])
@pytest.mark.parametrize("then", ["refused", "not sent"])
@pytest.mark.parametrize("how", ["cannot be asked", "denies it once", "has it"])
@pytest.mark.parametrize("signs", [True, False])
def test_a_hint_during_a_request_has_it_looked_for_once_that_bought_nothing(
    context: Context,
    providers: dict[str, FakeProvider],
    clock: FakeClock,
    teller: str,
    then: str,
    how: str,
    signs: bool,
) -> None:
    other = providers[teller]
    other.signs_what_it_is_about = signs
    order = one(context, "all")
    if how == "has it":
        other.says(order.external_id, R.SENT)

    def hint() -> None:
        other.reads_fail(DOWN if how == "cannot be asked" else None)
        say(context, teller, order, None)
        other.reads_fail(None)
        other.says(order.external_id, R.SENT)

    assert_only_request(context, providers, clock, hint, then)

    assert place(context, order) == (S.SENT, teller)
    assert_invariants(context)


@pytest.mark.parametrize("then", ["refused", "not sent"])
def test_a_fallback_that_it_ended_at_during_a_request_has_the_later_ones_looked_at(
    context: Context,
    providers: dict[str, FakeProvider],
    clock: FakeClock,
    then: str,
) -> None:
    """It went on from there to the third, of which our rows know nothing."""
    order = one(context, "all")
    providers["third"].says(order.external_id, R.SENT)
    providers["backup"].says(order.external_id, R.FAILED)
    assert_only_request(
        context, providers, clock, lambda: say(context, "backup", order, R.FAILED), then
    )

    assert place(context, order) == (S.SENT, "third")


@pytest.mark.parametrize("how", ["away", "gone", "revoked"])
@pytest.mark.parametrize("state", ["received", "reserved", "not sent", "denied before"])
@pytest.mark.parametrize("word", ["a hint that it denies", "its failed"])
def test_what_a_fallback_told_and_does_not_have_leaves_an_account_that_is_of_no_use(
    make_context: MakeContext,
    context: Context,
    providers: dict[str, FakeProvider],
    main: FakeProvider,
    clock: FakeClock,
    word: str,
    state: str,
    how: str,
) -> None:
    """To which nothing was sent: what it knows is of no interest."""
    providers["backup"].signs_what_it_is_about = word == "its failed"
    order = one(context, "both")
    if state == "reserved":
        gather(context)
    elif state == "not sent":
        meanwhile(main, lambda: None, leaves=False)
        run_chain(context)
    elif state == "denied before":
        say(context, "main", order, None)
        brakes.stop(context, "main", "not yet", "test")
        pass_time(context, clock, 14, 10)
        assert (again(context, order).late_words or "").startswith("denied by main")
    say(context, "backup", order, R.FAILED if word == "its failed" else None)
    after = context
    if how == "gone":
        after = on_routes(make_context, {n: each for n, each in providers.items() if n != "main"})
    else:
        main.reads_fail(DOWN if how == "away" else ProviderDeniesAccount("HTTP 401"))
        brakes.resume(context, "main", "now", "test")
    pass_time(after, clock, 24, 300)

    assert place(after, order) == (S.ACCEPTED, "backup")


@pytest.mark.parametrize("error", [DOWN, ProviderDeniesAccount("HTTP 401")])
@pytest.mark.parametrize("teller", ["main", "backup"])
def test_who_says_that_it_has_it_is_followed_though_another_is_silent(
    context: Context,
    providers: dict[str, FakeProvider],
    clock: FakeClock,
    teller: str,
    error: ProviderError,
) -> None:
    order = one(context, "all")
    providers[teller].says(order.external_id, R.SENT)
    say(context, teller, order, R.SENT)
    providers["third"].reads_fail(error)
    pass_time(context, clock, 15, 60)

    assert place(context, order) == (S.SENT, teller)
    providers[teller].says(order.external_id, R.COMPLETED, charged_mills=PRICE_MILLS)
    pass_time(context, clock, 12, 400)
    assert place(context, order) == (S.COMPLETED, teller)
    assert bought(providers) == {}


def test_an_order_is_followed_where_it_is_though_its_own_account_is_gone(
    make_context: MakeContext,
    context: Context,
    providers: dict[str, FakeProvider],
    clock: FakeClock,
) -> None:
    order = one(context, "both")
    backup = providers["backup"]
    backup.says(order.external_id, R.SENT)
    say(context, "backup", order, R.SENT)
    clock.advance(1)
    after = on_routes(make_context, {n: each for n, each in providers.items() if n != "main"})
    pass_time(after, clock, 24, 60)
    assert place(after, order) == (S.SENT, "backup")

    backup.balance_mills -= PRICE_MILLS
    backup.says(order.external_id, R.COMPLETED, charged_mills=PRICE_MILLS)
    pass_time(after, clock, 12, 60)
    assert place(after, order) == (S.COMPLETED, "backup")
    assert [kind for kind, _ in entries(after, order)] == ["hold", "settle"]


@pytest.mark.parametrize("state", ["reserved", "not sent"])
@pytest.mark.parametrize("how", ["revoked", "gone"])
def test_money_of_what_a_silent_fallback_told_of_is_free_for_later_orders(
    make_context: MakeContext,
    context: Context,
    providers: dict[str, FakeProvider],
    main: FakeProvider,
    clock: FakeClock,
    state: str,
    how: str,
) -> None:
    main.balance_mills = PRICE_MILLS + 5
    order = one(context, "all")
    if state == "reserved":
        gather(context)
    else:
        meanwhile(main, lambda: None, leaves=False)
        run_chain(context)
    say(context, "third", order, R.SENT)
    after = context
    if how == "gone":
        after = on_routes(make_context, {n: each for n, each in providers.items() if n != "third"})
    else:
        providers["third"].reads_fail(ProviderDeniesAccount("HTTP 401"))
    clock.advance(1)
    later = one(after, "main")
    pass_time(after, clock, 60, 30)

    assert place(after, later) == (S.ACCEPTED, "main")


@pytest.mark.parametrize("word", ["failed", "no word of its contract", "another item"])
def test_what_its_account_tells_of_a_purchase_that_never_left_has_it_looked_for(
    context: Context,
    providers: dict[str, FakeProvider],
    main: FakeProvider,
    clock: FakeClock,
    word: str,
) -> None:
    order = one(context, "all")
    meanwhile(main, lambda: None, leaves=False)
    run_chain(context)
    told = report(R.FAILED if word == "failed" else R.UNKNOWN, order.external_id)
    if word == "another item":
        told = report(R.SENT, order.external_id, item_name="AK-47 | Slate (Field-Tested)")
    if word == "failed":
        providers["third"].says(order.external_id, R.SENT)
        main.says(order.external_id, R.FAILED)
    tell(context, "main", order, told)
    pass_time(context, clock, 15, 20)

    expected = (S.SENT, "third") if word == "failed" else (S.ACCEPTED, "main")
    assert place(context, order) == expected
    assert_invariants(context)


def test_an_account_that_hangs_holds_up_no_delivery_of_another(
    context: Context, providers: dict[str, FakeProvider], main: FakeProvider, clock: FakeClock
) -> None:
    third = providers["third"]
    third.signs_what_it_is_about = False
    hinted = [one(context, "all") for _ in range(5)]
    told = one(context, "main")
    run_chain(context)
    asked: list[S] = []

    def hang(what: str) -> None:
        if what.startswith("order"):
            asked.append(again(context, told).status)
            raise DOWN

    third.on_read = hang
    for order in hinted:
        third.notice = WebhookNotice(order.external_id, clock.now(), None)
        webhooks.take(context, "third", {}, order.external_id.encode())
    completed = report(R.COMPLETED, told.external_id, charged_mills=PRICE_MILLS)
    main.notice = WebhookNotice(told.external_id, clock.now(), completed)
    webhooks.take(context, "main", {}, b"delivered")
    webhooks.apply_deliveries(context)

    assert asked == [S.COMPLETED] * 3  # not for each, and after what was behind them
    third.on_read = lambda _: None
    third.reads.clear()
    clock.advance(60)
    webhooks.apply_deliveries(context)
    assert len(third.reads) == 2


def test_one_answer_that_fails_calls_nobody_for_other_orders(
    context: Context, providers: dict[str, FakeProvider], main: FakeProvider, clock: FakeClock
) -> None:
    main.signs_what_it_is_about = False
    left = [one(context, "both") for _ in range(3)]
    for order in left:
        main.fail_purchase(NO)
        main.says(order.external_id, R.FAILED)
    run_chain(context)
    pass_time(context, clock, 3, 10)
    assert [place(context, order) for order in left] == [(S.ACCEPTED, "backup")] * 3

    def fail_first(what: str) -> None:
        if left[0].external_id in what:
            raise ProviderNotReached("an answer that makes us fail")

    main.on_read = fail_first
    for order in left:
        main.notice = WebhookNotice(order.external_id, clock.now(), None)
        webhooks.take(context, "main", {}, order.external_id.encode())
    webhooks.apply_deliveries(context)

    for order in left[1:]:
        assert NEEDS_REVIEW not in [message["type"] for message in messages_of(context, order)]


def test_nobody_is_called_for_anybodys_hint_at_a_fallback_that_cannot_be_asked(
    context: Context, providers: dict[str, FakeProvider], clock: FakeClock
) -> None:
    third = providers["third"]
    third.signs_what_it_is_about = False
    order = one(context, "all")
    third.reads_fail(DOWN)
    say(context, "third", order, None)

    assert NEEDS_REVIEW not in [message["type"] for message in messages_of(context, order)]
    third.reads_fail(None)
    go_on(context, clock)
    assert place(context, order) == (S.ACCEPTED, "main")
