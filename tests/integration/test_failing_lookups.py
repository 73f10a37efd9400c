"""Orders whose lookups fail, or answer now so and now so: rare questions, and nobody else waits."""

from collections.abc import Callable, Sequence
from datetime import timedelta

import pytest

from fulfillment.errors import ProviderNotReached, ProviderRefused
from fulfillment.services import reconciliation, webhooks
from fulfillment.services.context import Context
from fulfillment.store.models import Order
from schemas.enums import FailureCode
from schemas.enums import OrderStatus as S
from schemas.messages import NEEDS_REVIEW
from schemas.provider import OrderReport, WebhookNotice
from schemas.provider import ReportState as R
from tests.conftest import MakeContext
from tests.support import (
    NAME,
    PRICE_CENTS,
    FakeClock,
    FakeProvider,
    accepted,
    again,
    messages_of,
    receive_one,
    rows,
    run_chain,
    run_polls,
    run_sweep,
    run_ticks,
    view,
)

PRICE_MILLS = PRICE_CENTS * 10
END = timedelta(minutes=30)
APPLIED = "SELECT applied_at FROM webhook_deliveries"


def test_polls_of_one_order_that_fail_become_rare_and_end_with_its_watch(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    broken, good = accepted(context), accepted(context)
    answer = provider.reports
    asked = 0

    def reports(external_ids: Sequence[str]) -> dict[str, OrderReport]:
        nonlocal asked
        if broken.external_id in external_ids:
            asked += 1
            raise ProviderNotReached("HTTP 500", is_outage=True)
        return answer(external_ids)

    for order in (broken, good):
        provider.says(order.external_id, R.COMPLETED, charged_mills=PRICE_MILLS)
    provider.reports = reports  # type: ignore[method-assign]
    under_way = _asked_within(context, clock, 3600, lambda: asked)
    del provider.reports
    run_polls_now(context, broken)
    assert again(context, broken).status is S.COMPLETED

    provider.reports = reports  # type: ignore[method-assign]
    delivered = _asked_within(context, clock, 3600, lambda: asked)
    clock.advance(11 * 24 * 3600)
    run_polls(context)
    over = _asked_within(context, clock, 3600, lambda: asked)

    assert 10 <= under_way <= 25
    assert delivered <= 15
    assert (over, again(context, broken).next_poll_at) == (0, None)
    told = [message["type"] for message in messages_of(context, broken)]
    assert told.count(NEEDS_REVIEW) == 1


def blink(context: Context, provider: FakeProvider, clock: FakeClock) -> None:
    """Let the next question that is asked fail, and no further one."""
    provider.reads_fail(ProviderNotReached("HTTP 502", is_outage=True))
    asked = len(provider.reads)
    for _ in range(3600):
        run_polls(context)
        if len(provider.reads) > asked:
            break
        clock.advance(1)
    provider.reads_fail(None)
    assert len(provider.reads) > asked


@pytest.mark.parametrize("count", [1, 5])
def test_the_last_look_at_a_delivery_is_repeated_where_it_fails(
    context: Context, provider: FakeProvider, clock: FakeClock, count: int
) -> None:
    provider.lookup_limit = 100
    placed = [accepted(context) for _ in range(count)]
    for order in placed:
        provider.says(order.external_id, R.COMPLETED, charged_mills=PRICE_MILLS)
    run_polls_now(context, *placed)
    _asked_within(context, clock, 60, lambda: 0)
    last = max(again(context, each).reversible_until or clock.now() for each in placed) + END
    while clock.now() < last:
        ahead = max(again(context, each).next_poll_at or last for each in placed) - clock.now()
        clock.advance(max(ahead.total_seconds(), 0) + 1)
        if clock.now() < last:
            run_polls(context)

    for order in placed:
        provider.says(order.external_id, R.REVERSED)
    blink(context, provider, clock)
    _asked_within(context, clock, 60, lambda: 0)

    assert {again(context, each).status for each in placed} == {S.REVERSED}


@pytest.mark.parametrize("what", ["deadline", "hint"])
def test_a_question_that_fails_once_is_asked_again_within_the_minute(
    context: Context, provider: FakeProvider, clock: FakeClock, what: str
) -> None:
    order = accepted(context)
    provider.says(order.external_id, R.PENDING)
    for _ in range(14):  # so that its polls have become rare
        clock.advance(400)
        run_polls(context)
    provider.says(order.external_id, R.SENT)
    run_polls_now(context, order)
    _asked_within(context, clock, 120, lambda: 0)
    deadline = again(context, order).trade_deadline_at
    assert deadline is not None
    if what == "hint":
        provider.notice = WebhookNotice(order.external_id, None, None, identity="h")
        webhooks.take(context, "main", {}, b"{}")
        webhooks.apply_deliveries(context)
    else:
        clock.advance((deadline - clock.now()).total_seconds())

    blink(context, provider, clock)
    provider.says(order.external_id, R.COMPLETED, charged_mills=PRICE_MILLS)
    _asked_within(context, clock, 60, lambda: 0)

    assert again(context, order).status is S.COMPLETED


@pytest.mark.parametrize("end", [S.FAILED, S.COMPLETED])
def test_a_hint_to_an_ended_order_that_is_never_answered_is_told_to_a_person(
    context: Context, provider: FakeProvider, clock: FakeClock, end: S
) -> None:
    if end is S.FAILED:
        refusal = ProviderRefused(FailureCode.ITEM_UNAVAILABLE, "sold")
        provider.fail_purchase(refusal, is_made=True)
    order = receive_one(context)
    run_chain(context)
    if end is S.COMPLETED:
        provider.says(order.external_id, R.COMPLETED, charged_mills=PRICE_MILLS)
        run_polls_now(context, order)
        for _ in range(20):  # until long after its watch is over
            clock.advance(24 * 3600)
            run_polls(context)
        assert again(context, order).next_poll_at is None
    assert again(context, order).status is end
    provider.notice = WebhookNotice(order.external_id, None, None, identity="h")
    webhooks.take(context, "main", {}, b"{}")
    webhooks.apply_deliveries(context)
    provider.reads_fail(ProviderNotReached("HTTP 500", is_outage=True))

    asked = len(provider.reads)
    for _ in range(6 * 24):
        clock.advance(1800)
        run_polls(context)
    assert len(provider.reads) - asked > 10

    told = [message["type"] for message in messages_of(context, order)]
    assert told.count(NEEDS_REVIEW) == 1
    assert again(context, order).next_poll_at is None
    asked = len(provider.reads)
    _asked_within(context, clock, 3600, lambda: 0)
    assert len(provider.reads) == asked


def _asked_within(
    context: Context, clock: FakeClock, seconds: int, asked: Callable[[], int]
) -> int:
    before = asked()
    for _ in range(seconds // 20):
        clock.advance(20)
        run_polls(context)
    return asked() - before


def run_polls_now(context: Context, *placed: Order) -> None:
    reconciliation.reconcile_now(context, [order.external_id for order in placed])
    run_polls(context)


@pytest.mark.parametrize("words", [[R.SENT, R.FAILED], [R.PENDING, R.FAILED], [R.ACCEPTED]])
def test_a_provider_that_says_both_in_turns_after_its_own_end_is_told_of_once(
    context: Context, provider: FakeProvider, clock: FakeClock, words: list[R]
) -> None:
    """Two servers of it, of which one is behind; anybody may hint as often as he likes."""
    order = accepted(context)
    provider.says(order.external_id, R.FAILED, failure_code="x")
    clock.advance(60)
    run_polls(context)

    for n in range(60):
        clock.advance(60)
        provider.says(order.external_id, words[n % len(words)])
        run_polls_now(context, order)

    told = [message["type"] for message in messages_of(context, order)]
    assert told.count(NEEDS_REVIEW) == 1
    assert len(view(context, order).timeline) < 20


def test_what_lives_again_after_its_second_end_is_followed_and_booked(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = accepted(context)
    for state in (R.FAILED, R.SENT, R.FAILED, R.SENT):
        clock.advance(60)
        provider.says(order.external_id, state, failure_code="x")
        run_polls_now(context, order)
        _asked_within(context, clock, 300, lambda: 0)

    provider.says(order.external_id, R.COMPLETED, charged_mills=PRICE_MILLS)
    _asked_within(context, clock, 3600, lambda: 0)

    assert again(context, order).charged_mills == PRICE_MILLS
    told = [message["type"] for message in messages_of(context, order)]
    assert told.count(NEEDS_REVIEW) == 2  # of its life, and of its money


def test_a_life_after_the_end_is_told_though_many_odd_words_were(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = accepted(context)
    for n in range(12):
        clock.advance(60)
        provider.says(order.external_id, R.UNKNOWN, raw_status=f"blue moon {n}")
        run_polls_now(context, order)
    provider.says(order.external_id, R.FAILED, failure_code="x")
    run_polls_now(context, order)
    before = len(messages_of(context, order))
    clock.advance(60)
    provider.says(order.external_id, R.SENT)
    run_polls_now(context, order)

    assert again(context, order).told_status is S.SENT
    told = [message["type"] for message in messages_of(context, order)[before:]]
    assert told.count(NEEDS_REVIEW) == 1


def test_a_hint_about_an_order_that_went_on_stops_no_other_where_our_reader_fails_at_it(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock
) -> None:
    second = FakeProvider()
    account = {"provider": "skinsnode", "base_url": "http://127.0.0.1:9", "client_secret": "s"}
    accounts = {name: account | {"client_id": name} for name in ("main", "second")}
    context = make_context(provider, accounts=accounts, routes={"any": "main,second"})
    context._providers.update(second=second)
    provider.fail_purchase(ProviderRefused(FailureCode.ITEM_UNAVAILABLE, "sold"))
    gone = receive_one(context, account="any", marketHashName=NAME)
    run_chain(context)
    run_chain(context, "second")
    other = accepted(context)
    answer = provider.reports

    def reports(external_ids: Sequence[str]) -> dict[str, OrderReport]:
        if gone.external_id in external_ids:
            raise UnicodeDecodeError("utf-8", b"x", 0, 1, "canary")
        return answer(external_ids)

    provider.reports = reports  # type: ignore[method-assign]
    for order in (gone, other):
        provider.notice = WebhookNotice(order.external_id, None, None, identity=order.external_id)
        webhooks.take(context, "main", {}, b"{}")
    webhooks.apply_deliveries(context)
    run_sweep(context)

    assert again(context, gone).account == "second"
    assert again(context, other).poll_wanted_at is not None
    assert {row["applied_at"] is None for row in rows(context, APPLIED)} == {False}


def test_an_order_past_its_window_is_asked_about_every_half_minute_though_that_fails(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = accepted(context)
    provider.says(order.external_id, R.SENT)
    run_polls_now(context, order)
    provider.on_read = _no_order
    for _ in range(360):
        clock.advance(10)
        run_ticks(context)
    before = _lookups(provider)
    for _ in range(90):
        clock.advance(10)
        run_ticks(context)

    assert again(context, order).overdue
    assert 15 <= _lookups(provider) - before <= 30


def _no_order(what: str) -> None:
    if what.startswith("order"):
        raise ProviderNotReached("HTTP 500", is_outage=True)


def _lookups(provider: FakeProvider) -> int:
    return sum(what.startswith("order") for what in provider.reads)
