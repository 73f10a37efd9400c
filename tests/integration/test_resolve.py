"""A person ends an order's review: the provider is asked first, and money is free when it shows."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from fulfillment.errors import NotAllowedNow, ProviderNotReached, ProviderOutcomeUnknown
from fulfillment.services import operations, reconciliation, webhooks
from fulfillment.services.context import Context
from fulfillment.services.operations import Resolution
from fulfillment.services.reports import apply_reports
from fulfillment.store import orders
from fulfillment.store.models import Order
from schemas.enums import OrderStatus as S
from schemas.enums import Source
from schemas.provider import ReportState as R
from schemas.provider import WebhookNotice
from tests.support import (
    PRICE_CENTS,
    FakeClock,
    FakeProvider,
    again,
    assert_invariants,
    attempt_of,
    entries,
    in_threads,
    messages_of,
    receive_one,
    report,
    rows,
    run_chain,
    run_sweep,
    run_ticks,
    until,
    view,
)

PRICE_MILLS = PRICE_CENTS * 10
#: So long after the request its answer, and any cached one, is surely in.
SURELY_KNOWN_S = 120


def in_review(
    context: Context, provider: FakeProvider, clock: FakeClock, *, is_made: bool = False
) -> Order:
    """Give an order of which nobody knows what came of it; `is_made` is the provider's truth."""
    provider.fail_purchase(ProviderOutcomeUnknown("no answer"), is_made=is_made)
    order = receive_one(context)
    run_chain(context)
    with context.database.transaction() as session:
        word = {order.id: report(R.UNKNOWN, order.external_id, raw_status="frozen")}
        apply_reports(context, session, "main", word, Source.WEBHOOK)
    clock.advance(SURELY_KNOWN_S)
    order = again(context, order)
    assert order.status is S.NEEDS_REVIEW
    return order


def notes_of(context: Context, order: Order) -> list[str]:
    return [entry.note for entry in view(context, order).timeline]


def test_an_order_that_a_person_found_is_adopted(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = in_review(context, provider, clock)
    provider.says(order.external_id, R.SENT)

    operations.resolve(context, order.external_id, Resolution.FOUND, "seen in their panel")

    assert again(context, order).status is S.SENT
    assert any("seen in their panel" in note for note in notes_of(context, order))


@pytest.mark.parametrize(
    ("resolution", "status"),
    [(Resolution.NOT_FOUND, S.FAILED), (Resolution.CANCELLED, S.CANCELLED)],
)
@pytest.mark.parametrize("told", [None, R.FAILED, R.EXPIRED])
def test_an_order_that_a_person_ended_frees_its_money_when_a_balance_shows_it(
    context: Context,
    provider: FakeProvider,
    clock: FakeClock,
    resolution: Resolution,
    status: S,
    told: R | None,
) -> None:
    order = in_review(context, provider, clock)
    if told is not None:
        provider.says(order.external_id, told)

    operations.resolve(context, order.external_id, resolution, "asked support")

    after = again(context, order)
    assert (after.status, after.failed_by, after.failure_message) == (status, "us", "asked support")
    assert [kind for kind, _ in entries(context, order)] == ["hold"]

    clock.advance(36)
    run_sweep(context)
    assert entries(context, order) == [("hold", PRICE_MILLS), ("release", PRICE_MILLS)]
    assert_invariants(context)


def test_money_of_a_purchase_that_a_person_gave_up_is_not_spent_again(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    """The provider has it, and its balance is 30 s old."""
    provider.balance_mills = PRICE_MILLS
    order = in_review(context, provider, clock, is_made=True)
    truth, provider.balance_mills = provider.balance_mills, PRICE_MILLS

    reason = "the customer was refunded"
    name = order.external_id
    operations.resolve(context, name, Resolution.CANCELLED, reason, is_insisted=True)
    clock.advance(5)
    after = receive_one(context)
    run_chain(context)
    at_first = again(context, after).status
    provider.balance_mills = truth
    for _ in range(4):
        clock.advance(30)
        run_sweep(context)

    assert truth == 0
    assert at_first is again(context, after).status is S.AWAITING_FUNDS
    assert len(provider.bodies) == 1
    assert [wallet.unexplained for wallet in operations.wallets(context)] == [PRICE_CENTS]


@pytest.mark.parametrize("resolution", [Resolution.NOT_FOUND, Resolution.CANCELLED])
@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"state": R.PROCESSING}, "as 'processing'; it can be resolved as found"),
        ({"state": R.COMPLETED, "charged_mills": 6_120}, "as 'completed', charged 612 cents"),
        ({"state": R.UNKNOWN, "raw_status": "frozen"}, "as 'frozen'; nothing was changed"),
    ],
)
def test_an_order_that_the_provider_has_alive_is_ended_only_by_who_insists(
    context: Context,
    provider: FakeProvider,
    clock: FakeClock,
    resolution: Resolution,
    told: dict[str, Any],
    words: str,
) -> None:
    order = in_review(context, provider, clock, is_made=True)
    provider.says(order.external_id, **told)

    with pytest.raises(NotAllowedNow, match="use --force") as refused:
        operations.resolve(context, order.external_id, resolution, "asked support")
    untouched = again(context, order)
    operations.resolve(context, order.external_id, resolution, "they lie", is_insisted=True)

    assert words in str(refused.value)
    assert untouched == order
    assert again(context, order).status in (S.FAILED, S.CANCELLED)


def test_a_provider_that_cannot_be_asked_is_told_of_and_asked_of_nobody_who_insists(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = in_review(context, provider, clock)
    provider.reads_fail(ProviderNotReached("connection refused"))
    name = order.external_id

    with pytest.raises(NotAllowedNow, match="main cannot be asked: connection refused"):
        operations.resolve(context, name, Resolution.NOT_FOUND, "asked support")
    before = list(provider.reads)
    operations.resolve(context, name, Resolution.NOT_FOUND, "asked support", is_insisted=True)

    assert provider.reads == before
    assert again(context, order).status is S.FAILED


def test_that_the_provider_does_not_know_an_order_yet_ends_nothing(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = in_review(context, provider, clock)
    clock.advance(20 - SURELY_KNOWN_S)

    with pytest.raises(NotAllowedNow, match="proves nothing for another 80 s"):
        operations.resolve(context, order.external_id, Resolution.NOT_FOUND, "not in their panel")

    assert again(context, order).status is S.NEEDS_REVIEW


def test_what_nobody_knows_or_has_cannot_be_found(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = in_review(context, provider, clock)

    with pytest.raises(NotAllowedNow, match="does not know"):
        operations.resolve(context, order.external_id, Resolution.FOUND, "seen in their panel")
    provider.says(order.external_id, R.UNKNOWN, raw_status="frozen")
    with pytest.raises(NotAllowedNow, match="'frozen', a status that nobody knows"):
        operations.resolve(context, order.external_id, Resolution.FOUND, "seen in their panel")

    assert again(context, order) == order


def test_only_a_review_can_be_resolved(context: Context) -> None:
    order = receive_one(context)
    run_chain(context)

    with pytest.raises(NotAllowedNow, match="accepted"):
        operations.resolve(context, order.external_id, Resolution.CANCELLED, "because")


def try_to_resolve(context: Context, order: Order, resolution: Resolution) -> Order | NotAllowedNow:
    try:
        return operations.resolve(context, order.external_id, resolution, "why", is_insisted=True)
    except NotAllowedNow as error:
        return error


def test_of_people_who_resolve_at_once_one_wins(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = in_review(context, provider, clock)

    answers = in_threads(4, lambda _: try_to_resolve(context, order, Resolution.CANCELLED))

    assert sum(isinstance(answer, Order) for answer in answers) == 1
    assert again(context, order).status is S.CANCELLED
    assert attempt_of(context, order).state == "ended"


def by_webhook(context: Context, order: Order) -> None:
    webhooks.apply_deliveries(context)


def by_poll(context: Context, order: Order) -> None:
    reconciliation.poll_orders(context, "main", [order.id])


@pytest.mark.parametrize("rival", [by_webhook, by_poll])
@pytest.mark.parametrize("is_person_first", [True, False])
@pytest.mark.parametrize("resolution", [Resolution.NOT_FOUND, Resolution.FOUND])
def test_of_a_person_and_the_provider_at_once_one_wins_and_the_log_tells_of_both(
    context: Context,
    provider: FakeProvider,
    clock: FakeClock,
    rival: Callable[[Context, Order], None],
    is_person_first: bool,
    resolution: Resolution,
) -> None:
    """Both wait for the order's row, which a third holds; who came first gets it first."""
    order = in_review(context, provider, clock, is_made=True)
    provider.says(order.external_id, R.PROCESSING)
    said = report(R.PROCESSING, order.external_id)
    provider.notice = WebhookNotice(order.external_id, clock.now(), said)
    webhooks.take(context, "main", {}, b"{}")
    acts: list[Callable[[], Any]] = [
        lambda: try_to_resolve(context, order, resolution),
        lambda: rival(context, order),
    ]
    with ThreadPoolExecutor(2) as executor:
        with context.database.transaction() as session:
            orders.lock(session, [order.id])
            flying = []
            for act in acts if is_person_first else reversed(acts):
                flying.append(executor.submit(act))
                until(lambda: waiters(context) == len(flying))
        told = [each.result() for each in flying][0 if is_person_first else 1]

    is_ended = is_person_first and resolution is Resolution.NOT_FOUND
    mine, log = f"resolved as {resolution}: why", notes_of(context, order)
    assert isinstance(told, Order) is is_person_first
    assert again(context, order).status is (S.FAILED if is_ended else S.PROCESSING)
    if is_person_first:
        assert mine in log
    else:
        assert f"{mine}; not applied, since the order is processing by now" in log
    if is_ended:
        late = "the provider says 'processing' after the end (failed): not applied"
        assert any(note.startswith(late) for note in log)
        assert messages_of(context, order)[-1]["type"] == "order.needs_review"
    assert_invariants(context)


@pytest.mark.parametrize("resolution", Resolution)
def test_news_between_the_question_and_the_finding_is_not_written_over(
    context: Context, provider: FakeProvider, clock: FakeClock, resolution: Resolution
) -> None:
    """What the person is answered is older; the order's status stays as it was."""
    order = in_review(context, provider, clock)
    told = report(R.PENDING, order.external_id, item_name="Another | Item", item_id="another")
    if resolution is Resolution.FOUND:
        provider.says(order.external_id, R.PENDING)

    def news(_: str) -> None:
        with context.database.transaction() as session:
            apply_reports(context, session, "main", {order.id: told}, Source.WEBHOOK)

    provider.on_read = news
    with pytest.raises(NotAllowedNow, match="has changed meanwhile; nothing was done: look at it"):
        operations.resolve(context, order.external_id, resolution, "asked support")
    provider.on_read = lambda what: None
    after = again(context, order)

    note = f"resolved as {resolution}: asked support; not applied, since there was news of the"
    assert after.status is S.NEEDS_REVIEW
    assert after.contradictions
    assert after.next_poll_at is not None
    assert notes_of(context, order)[-1].startswith(note)
    assert entries(context, order) == [("hold", PRICE_MILLS)]

    provider.orders[order.external_id] = told
    operations.resolve(context, order.external_id, Resolution.FOUND, "another one is fine")
    assert again(context, order).status is S.PENDING
    assert_invariants(context)


def waiters(context: Context) -> int:
    query = "SELECT count(DISTINCT pid) AS n FROM pg_locks WHERE NOT granted"
    return int(rows(context, query)[0]["n"])


def test_a_closed_order_that_turns_out_bought_after_all_is_an_alarm(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = in_review(context, provider, clock)
    operations.resolve(context, order.external_id, Resolution.NOT_FOUND, "not in their panel")

    provider.says(order.external_id, R.COMPLETED, charged_mills=PRICE_MILLS)
    reconciliation.reconcile_now(context, [order.external_id])
    clock.advance(31)
    run_ticks(context)

    assert again(context, order).status is S.FAILED
    assert messages_of(context, order)[-1]["type"] == "order.needs_review"
    assert entries(context, order)[-1] == ("settle", PRICE_MILLS)


@pytest.mark.parametrize(
    ("resolution", "status"),
    [(Resolution.NOT_FOUND, S.FAILED), (Resolution.CANCELLED, S.CANCELLED)],
)
@pytest.mark.parametrize(
    ("told", "alarms"),
    [(None, 1), (R.SENT, 2), (R.COMPLETED, 2), (R.FAILED, 1)],
)
def test_an_order_that_a_person_ended_in_doubt_is_asked_about_once_more(
    context: Context,
    provider: FakeProvider,
    clock: FakeClock,
    resolution: Resolution,
    status: S,
    told: R | None,
    alarms: int,
) -> None:
    order = in_review(context, provider, clock)
    operations.resolve(context, order.external_id, resolution, "refunded", is_insisted=True)
    if told is not None:
        provider.says(order.external_id, told, charged_mills=PRICE_MILLS)
    provider.reads.clear()
    for _ in range(12):
        clock.advance(60)
        run_ticks(context)

    asked = provider.reads.count(f"order {order.external_id}")
    types = [message["type"] for message in messages_of(context, order)]
    assert again(context, order).status is status
    assert asked > 1 if told is R.SENT else asked == 1
    assert types.count("order.needs_review") == alarms
    assert (entries(context, order)[-1] == ("settle", PRICE_MILLS)) is (told is R.COMPLETED)
    assert_invariants(context)


def test_of_an_order_that_its_provider_has_ended_nobody_asks_again(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = in_review(context, provider, clock)
    provider.says(order.external_id, R.EXPIRED)

    operations.resolve(context, order.external_id, Resolution.NOT_FOUND, "asked support")

    assert again(context, order).next_poll_at is None


@pytest.mark.parametrize("word", ["frozen", "completed"])
def test_a_word_that_was_known_before_a_person_ended_the_order_is_told_of_all_the_same(
    context: Context, provider: FakeProvider, clock: FakeClock, word: str
) -> None:
    order = in_review(context, provider, clock)
    state = R.COMPLETED if word == "completed" else R.UNKNOWN
    of_another = {"item_name": "Another | Item", "item_id": "another", "raw_status": word}
    with context.database.transaction() as session:
        said = {order.id: report(state, order.external_id, **of_another)}
        apply_reports(context, session, "main", said, Source.WEBHOOK)
    assert again(context, order).provider_status == word
    operations.resolve(
        context, order.external_id, Resolution.CANCELLED, "not wanted", is_insisted=True
    )
    before = len(messages_of(context, order))

    provider.says(order.external_id, state, raw_status=word)
    for _ in range(12):
        clock.advance(60)
        run_ticks(context)

    told = [message["type"] for message in messages_of(context, order)[before:]]
    assert told.count("order.needs_review") == 1
    assert again(context, order).lives_on
    assert again(context, order).next_poll_at is not None
    assert_invariants(context)


def test_what_is_older_than_what_is_known_is_not_found(
    context: Context, provider: FakeProvider
) -> None:
    order = receive_one(context)
    run_chain(context)
    for partner in (None, 5):
        with context.database.transaction() as session:
            said = {order.id: report(R.SENT, order.external_id, partner=partner)}
            apply_reports(context, session, "main", said, Source.WEBHOOK)
    before = again(context, order)
    provider.says(order.external_id, R.PROCESSING)

    with pytest.raises(NotAllowedNow, match=r"'processing' .* before \(sent\); nothing"):
        operations.resolve(context, order.external_id, Resolution.FOUND, "seen in their panel")

    assert before.status is S.NEEDS_REVIEW
    assert again(context, order) == before
