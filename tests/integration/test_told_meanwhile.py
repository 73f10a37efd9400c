"""What accounts tell of an order while it is looked for, refused, or does not leave."""

from datetime import timedelta
from typing import Any

import pytest

from fulfillment.errors import (
    ConfigurationError,
    ProviderNotReached,
    ProviderOutcomeUnknown,
)
from fulfillment.providers.base import AfterUnknown
from fulfillment.services import catalog, recovery, webhooks
from fulfillment.services.claiming import KeptClaim
from fulfillment.services.context import Context
from fulfillment.store.models import Order
from schemas.enums import OrderStatus as S
from schemas.provider import ReportState as R
from schemas.provider import WebhookNotice
from tests.conftest import MakeContext
from tests.integration.telling import NO, bought, go_on, on_routes, one, say
from tests.support import (
    FakeClock,
    FakeProvider,
    again,
    assert_invariants,
    gather,
    report,
    run_chain,
    run_ticks,
    submit,
)


@pytest.fixture
def context(make_context: MakeContext, providers: dict[str, FakeProvider]) -> Context:
    return on_routes(make_context, providers)


@pytest.mark.parametrize("gap_s", [0.0, 0.001])
def test_a_word_that_came_after_the_row_was_read_is_looked_into(
    context: Context,
    providers: dict[str, FakeProvider],
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    gap_s: float,
) -> None:
    """A fallback tells of it when the search has taken the order over and not begun."""
    providers["main"].signs_what_it_is_about = False
    order = one(context, "both")
    say(context, "main", order, None)
    search_first, is_told = recovery.search_first, list[bool]()

    def late(asked: Context, claim: KeptClaim, members: list[Order]) -> list[Order]:
        if not is_told and clock.now() > order.created_at + timedelta(seconds=60):
            is_told.append(True)
            providers["backup"].says(order.external_id, R.SENT)
            say(asked, "backup", order, R.SENT)
            clock.advance(gap_s)
        return search_first(asked, claim, members)

    monkeypatch.setattr(catalog, "search_first", late)
    for _ in range(40):
        clock.advance(10)
        run_ticks(context)

    assert is_told
    assert (again(context, order).status, again(context, order).account) == (S.SENT, "backup")
    assert bought(providers) == {}
    assert_invariants(context)


@pytest.mark.parametrize("teller", ["main", "backup"])
def test_an_account_that_calls_it_failed_shows_that_it_went_on(
    context: Context, providers: dict[str, FakeProvider], clock: FakeClock, teller: str
) -> None:
    order = one(context, "all")
    providers["third"].says(order.external_id, R.SENT)
    say(context, teller, order, R.FAILED)
    go_on(context, clock)

    assert (again(context, order).status, again(context, order).account) == (S.SENT, "third")
    assert bought(providers) == {}
    assert_invariants(context)


@pytest.mark.parametrize("when", ["before the request", "refused", "not sent"])
def test_news_of_a_request_counts_the_same_whatever_becomes_of_it(
    context: Context, providers: dict[str, FakeProvider], clock: FakeClock, when: str
) -> None:
    main = providers["main"]
    order = one(context, "all")
    providers["third"].says(order.external_id, R.SENT)

    def act(fields: dict[str, Any]) -> None:
        say(context, "main", order, None)
        if when == "not sent":
            raise ProviderNotReached("connection refused")

    if when == "before the request":
        batch = gather(context)
        assert batch is not None
        say(context, "main", order, None)
        submit(context, batch)
    else:
        main.on_purchase = act
        if when == "refused":
            main.fail_purchase(NO)
        run_chain(context)
        main.on_purchase = lambda fields: None
    sent = bought(providers)
    go_on(context, clock)

    assert (again(context, order).status, again(context, order).account) == (S.SENT, "third")
    assert bought(providers) == sent
    assert_invariants(context)


@pytest.mark.parametrize("policy", [AfterUnknown.REPLAY, AfterUnknown.LOOKUP_THEN_REPLAY])
def test_a_hint_of_an_account_that_is_not_tried_yet_and_denies_it_keeps_no_unknown_outcome_open(
    context: Context, providers: dict[str, FakeProvider], clock: FakeClock, policy: AfterUnknown
) -> None:
    main = providers["main"]
    main.after_unknown = policy
    order = one(context, "both")
    main.fail_purchase(ProviderOutcomeUnknown("lost"))
    run_chain(context)
    say(context, "backup", order, None)

    assert again(context, order).told_early_at is None
    for _ in range(20):
        clock.advance(30)
        run_ticks(context)
    assert again(context, order).status is S.ACCEPTED
    assert providers["backup"].bodies == []


def test_an_account_that_is_gone_and_cannot_have_it_holds_nothing_up(
    make_context: MakeContext,
    context: Context,
    providers: dict[str, FakeProvider],
    clock: FakeClock,
) -> None:
    """It stands before the last that told."""
    order = one(context, "all")
    after = on_routes(make_context, {n: each for n, each in providers.items() if n != "backup"})
    say(after, "third", order, R.SENT)
    go_on(after, clock)

    assert again(after, order).status is S.ACCEPTED
    assert list(bought(providers)) == ["main"]


@pytest.mark.parametrize("is_signed", [True, False])
def test_a_fallback_that_denies_its_hint_at_once_is_asked_again_before_anything_is_bought(
    context: Context, providers: dict[str, FakeProvider], clock: FakeClock, is_signed: bool
) -> None:
    """It does not know a fresh order for some seconds."""
    providers["backup"].signs_what_it_is_about = is_signed
    order = one(context, "both")
    say(context, "backup", order, None)
    for _ in range(2):
        run_ticks(context)
        clock.advance(10)
    providers["backup"].says(order.external_id, R.SENT)
    for _ in range(20):
        run_ticks(context)
        clock.advance(10)

    assert (again(context, order).status, again(context, order).account) == (S.SENT, "backup")
    assert bought(providers) == {}
    assert_invariants(context)


@pytest.mark.parametrize("is_forged_before", [True, False])
def test_a_hint_that_was_looked_into_makes_a_later_one_count_no_less(
    context: Context, providers: dict[str, FakeProvider], clock: FakeClock, is_forged_before: bool
) -> None:
    main = providers["main"]
    main.signs_what_it_is_about = False
    order = one(context, "both")
    if is_forged_before:
        say(context, "main", order, None)

    def act(fields: dict[str, Any]) -> None:
        clock.advance(1)
        main.on_purchase = lambda fields: None
        say(context, "main", order, None)

    main.on_purchase = act
    main.fail_purchase(NO, is_made=True)
    for _ in range(40):
        run_ticks(context)
        clock.advance(10)

    assert bought(providers) == {"main": 1}


def test_a_fallbacks_failed_leaves_an_unknown_outcome_and_what_is_not_bought_to_their_account(
    context: Context, providers: dict[str, FakeProvider], clock: FakeClock
) -> None:
    unsent, unknown = one(context, "all"), one(context, "both")
    providers["main"].fail_purchase(ProviderOutcomeUnknown("lost"))
    providers["backup"].says(unsent.external_id, R.FAILED)
    say(context, "backup", unsent, R.FAILED)
    run_chain(context)
    clock.advance(1)
    say(context, "backup", unknown, R.FAILED)
    for _ in range(40):
        run_ticks(context)
        clock.advance(20)

    for order in (unsent, unknown):
        assert (again(context, order).status, again(context, order).account) == (S.ACCEPTED, "main")


def test_an_account_that_cannot_be_used_keeps_no_other_news_from_being_applied(
    context: Context, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    hinted, told = one(context, "both"), one(context, "main")
    run_chain(context)
    for name, order, state in (("backup", hinted, None), ("main", told, R.SENT)):
        provider: Any = context.provider(name)
        said = report(state, order.external_id) if state else None
        provider.notice = WebhookNotice(order.external_id, clock.now(), said)
        webhooks.take(context, name, {}, name.encode())
    usable = Context.provider

    def unusable(self: Context, name: str) -> Any:
        if name == "backup":
            raise ConfigurationError("FULFILLMENT_X", "expected another")
        return usable(self, name)

    monkeypatch.setattr(Context, "provider", unusable)
    webhooks.apply_deliveries(context)

    assert again(context, told).status is S.SENT
