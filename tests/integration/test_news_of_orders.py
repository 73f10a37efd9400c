"""News that nobody expects of an order: other things than asked for, none for ever, other sums."""

from typing import Any

import httpx
import msgspec
import pytest
from structlog.testing import capture_logs

from fulfillment.errors import ProviderNotReached, ProviderRefused
from fulfillment.providers.http import HTTPClient
from fulfillment.providers.skinsnode.client import SkinsNode
from fulfillment.services import invariants, operations, webhooks
from fulfillment.services.context import Context
from fulfillment.services.operations import Resolution
from fulfillment.services.reports import apply_reports
from fulfillment.store.models import Order
from schemas.enums import FailureCode, Source
from schemas.enums import OrderStatus as S
from schemas.messages import NEEDS_REVIEW
from schemas.provider import ReportState as R
from schemas.provider import WebhookNotice
from tests.conftest import MakeContext
from tests.support import (
    ITEM,
    NAME,
    PRICE_CENTS,
    TOKEN,
    TRADE_URL,
    FakeClock,
    FakeProvider,
    accepted,
    again,
    assert_invariants,
    attempt_of,
    entries,
    messages_of,
    receive_one,
    report,
    rows,
    run_chain,
    run_polls,
    run_ticks,
    take_figure,
    view,
)

PRICE_MILLS = PRICE_CENTS * 10
HOUR_S = 3600.0
STRANGER = "https://steamcommunity.com/tradeoffer/new/?partner=666&token=EvilEvil"


def alarms(context: Context, order: Order) -> int:
    return [message["type"] for message in messages_of(context, order)].count(NEEDS_REVIEW)


def webhook(context: Context, order: Order, word: R, **details: Any) -> Order:
    """Apply what the provider tells of its own accord."""
    said = report(word, order.external_id, **details)
    with context.database.transaction() as session:
        apply_reports(context, session, "main", {order.id: said}, Source.WEBHOOK)
    return again(context, order)


def let_pass(context: Context, clock: FakeClock, hours: float, step_s: float = HOUR_S) -> None:
    for _ in range(round(hours * HOUR_S / step_s)):
        clock.advance(step_s)
        run_ticks(context)


# --- another item, another recipient


def skinsnode(**told: Any) -> SkinsNode:
    """Give the real adapter at a provider that tells these fields of each order it has taken."""

    def respond(request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if path == "/v1/catalog":
            item = {"id": ITEM, "marketHashName": NAME, "price": PRICE_CENTS, "currency": "USD"}
            return httpx.Response(200, json={"items": [item]})
        if path == "/v1/wallet":
            wallet = {"clientId": "c", "currency": "USD", "availableBalance": "100000"}
            return httpx.Response(200, json=wallet)
        if request.method == "POST":
            name = msgspec.json.decode(request.content)["externalId"]
            return httpx.Response(202, json={"externalId": name, "status": "accepted"})
        order = {
            "externalId": path.rpartition("/")[2],
            "status": "completed",
            "tradeUrl": TRADE_URL,
            "item": {"id": ITEM, "marketHashName": NAME, "price": PRICE_CENTS, "currency": "USD"},
            "pricing": {"currency": "USD", "amount": str(PRICE_CENTS)},
        }
        return httpx.Response(200, json=order | told)

    http = HTTPClient("http://provider.test", transport=httpx.MockTransport(respond))
    return SkinsNode(http, "c", "s", ["s"])


@pytest.mark.parametrize(
    ("told", "status", "word"),
    [
        ({}, S.COMPLETED, ""),
        ({"tradeUrl": None}, S.COMPLETED, ""),
        ({"item": {"id": "9", "marketHashName": "Sticker"}}, S.NEEDS_REVIEW, "another item"),
        ({"tradeUrl": STRANGER}, S.NEEDS_REVIEW, "another recipient"),
    ],
)
def test_what_was_not_asked_for_is_kept_from_a_person_by_no_poll(
    make_context: MakeContext, clock: FakeClock, told: dict[str, Any], status: S, word: str
) -> None:
    context = make_context(skinsnode(**told))
    order = accepted(context)

    let_pass(context, clock, 2)

    found = again(context, order)
    notes = " ".join(entry.note for entry in view(context, order).timeline)
    assert found.status is status
    assert alarms(context, order) == (status is S.NEEDS_REVIEW)
    assert word in notes
    assert [kind for kind, _ in entries(context, order)] == (
        ["hold", "settle"] if status is S.COMPLETED else ["hold"]
    )
    kept = rows(context, "SELECT * FROM orders") + rows(context, "SELECT * FROM order_events")
    assert "EvilEvil" not in str(kept)
    assert TOKEN not in str(kept)
    assert_invariants(context)


@pytest.mark.parametrize("token", ["trade", "a", "invalid_", "_trade_"])
def test_a_code_that_holds_somebodys_token_by_chance_stays_whole(
    context: Context, provider: FakeProvider, clock: FakeClock, token: str
) -> None:
    order = receive_one(context, tradeUrl=TRADE_URL.replace(TOKEN, token))
    run_chain(context)
    code = FailureCode.INVALID_TRADE_URL.value
    provider.says(order.external_id, R.FAILED, failure_code=code, failure_message="a bad trade")

    let_pass(context, clock, 2)

    assert again(context, order).failure_code == code


@pytest.mark.parametrize("words", ["bad link 123456789/{} given", "bad link_{}_1", "bad link{}-"])
@pytest.mark.parametrize(
    "field", ["failure_code", "failure_message", "alarm", "raw_status", "item_name"]
)
def test_a_trade_token_in_a_providers_own_words_is_kept_nowhere(
    context: Context, provider: FakeProvider, clock: FakeClock, field: str, words: str
) -> None:
    order = accepted(context)
    details = {"failure_code": "odd", "item_id": "999", field: words.format(TOKEN)}
    state = R.UNKNOWN if field == "raw_status" else R.FAILED
    provider.says(order.external_id, state, **details)

    with capture_logs() as logs:
        let_pass(context, clock, 2)

    kept = [rows(context, f"SELECT * FROM {t}") for t in ("orders", "order_events", "attempts")]
    told = messages_of(context, order)
    assert "bad link" in str([kept, told])
    assert TOKEN not in str([kept, told, logs, view(context, order)])


def test_another_purchase_under_the_id_fails_nothing(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = accepted(context)
    provider.says(order.external_id, R.SENT, provider_reference="9012")
    clock.advance(60)
    run_polls(context)

    provider.says(order.external_id, R.FAILED, provider_reference="9999")
    let_pass(context, clock, 2)

    found = again(context, order)
    assert (found.status, found.provider_reference) == (S.NEEDS_REVIEW, "9012")
    assert alarms(context, order) == 1
    assert attempt_of(context, order).state == "accepted"
    assert_invariants(context)


def test_a_webhook_that_tells_of_no_item_ends_no_quarantine_and_a_person_does(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = accepted(context)
    other = {"item_id": "999", "item_name": "Sticker | Other", "charged_mills": PRICE_MILLS}
    provider.says(order.external_id, R.SENT, **other)
    clock.advance(60)
    run_polls(context)

    by_webhook = webhook(context, order, R.COMPLETED, charged_mills=PRICE_MILLS)
    provider.says(order.external_id, R.COMPLETED, **other)
    operations.resolve(context, order.external_id, Resolution.FOUND, "a better one")
    let_pass(context, clock, 2)

    assert by_webhook.status is S.NEEDS_REVIEW
    assert again(context, order).status is S.COMPLETED
    assert alarms(context, order) == 1
    assert entries(context, order)[1:] == [("settle", PRICE_MILLS)]
    assert_invariants(context)


# --- no news for ever


def unreadable(what: str) -> None:
    if what.startswith("order"):
        raise ProviderNotReached("GET: expected a whole number of US cents")


@pytest.mark.parametrize("word", [R.ACCEPTED, R.PROCESSING, R.PENDING, None, "unreadable"])
def test_an_order_that_does_not_come_on_is_brought_to_a_person_once_and_still_followed(
    context: Context, provider: FakeProvider, clock: FakeClock, word: R | str | None
) -> None:
    order = accepted(context)
    if isinstance(word, R):
        provider.says(order.external_id, word, charged_mills=PRICE_MILLS)
        clock.advance(60)
        run_polls(context)
    elif word is None:
        del provider.orders[order.external_id]
    else:
        provider.on_read = unreadable

    let_pass(context, clock, 23)
    before = alarms(context, order)
    let_pass(context, clock, 72)
    stalled = again(context, order)
    told = alarms(context, order)
    provider.on_read = lambda what: None
    provider.says(order.external_id, R.COMPLETED, charged_mills=PRICE_MILLS)
    let_pass(context, clock, 1)

    assert (before, told) == (0, 1)
    assert stalled.status is S.NEEDS_REVIEW
    assert again(context, order).status is S.COMPLETED
    assert entries(context, order)[1:] == [("settle", PRICE_MILLS)]
    assert_invariants(context)


def test_a_stalled_order_says_for_how_long_it_has_stood(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock
) -> None:
    context = make_context(provider, stalled_after_s=600)
    order = accepted(context)
    let_pass(context, clock, 0.25, step_s=HOUR_S / 12)

    notes = [entry.note for entry in view(context, order).timeline]
    assert "still accepted after 10 minutes; a person may ask the provider" in notes


def test_time_counts_from_the_last_step_and_not_among_words_of_one_rank(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock
) -> None:
    context = make_context(provider, stalled_after_s=7200)
    placed = [receive_one(context) for _ in range(2)]
    run_chain(context)
    courses = []
    for words in ((R.PROCESSING, R.ACCEPTED), (R.PROCESSING, R.PENDING), (None, None)):
        for order, word in zip(placed, words, strict=True):
            if word is not None:
                provider.says(order.external_id, word)
        let_pass(context, clock, 1.25, step_s=HOUR_S / 4)
        courses.append([again(context, order).status for order in placed])

    assert courses == [
        [S.PROCESSING, S.ACCEPTED],
        [S.NEEDS_REVIEW, S.PENDING],  # two hours after the accept, whatever it was called since
        [S.NEEDS_REVIEW, S.NEEDS_REVIEW],
    ]


def test_a_stalled_order_is_noticed_without_a_watchdog_and_without_polls(
    context: Context, clock: FakeClock
) -> None:
    order = accepted(context)
    never = clock.now().replace(year=clock.now().year + 1)
    update = "UPDATE orders SET next_watch_at = NULL, next_poll_at = %(at)s RETURNING 1"
    rows(context, update, at=never)

    def broken() -> list[tuple[str, ...]]:
        found = invariants.violations(context)
        return [each.subjects for each in found if each.invariant == "past_its_time"]

    clock.advance(24 * HOUR_S)
    early = broken()
    clock.advance(HOUR_S)

    assert early == []
    assert broken() == [(order.external_id,)]


def test_a_person_ends_a_stalled_order_and_hears_of_it_should_it_live_on(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = accepted(context)
    provider.says(order.external_id, R.PROCESSING)
    let_pass(context, clock, 25)
    operations.resolve(
        context, order.external_id, Resolution.CANCELLED, "refunded", is_insisted=True
    )
    let_pass(context, clock, 1)
    resolved = alarms(context, order), entries(context, order)[-1]

    webhook(context, order, R.PENDING)
    provider.says(order.external_id, R.COMPLETED, charged_mills=PRICE_MILLS)
    let_pass(context, clock, 2)

    assert resolved == (2, ("release", PRICE_MILLS))  # it is asked about once more
    assert again(context, order).status is S.CANCELLED
    assert alarms(context, order) == 3
    assert entries(context, order)[-1] == ("settle", PRICE_MILLS)


# --- life after the end


def hint(context: Context, provider: FakeProvider, order: Order, what: str) -> None:
    """Take in a webhook that only says that there is news of the order."""
    provider.notice = WebhookNotice(order.external_id, None, None, identity=what)
    webhooks.take(context, "main", {}, b"{}")
    webhooks.apply_deliveries(context)


@pytest.mark.parametrize("after_s", [1, 3600])
@pytest.mark.parametrize("how", ["a hint", "a word"])
def test_another_try_after_the_providers_own_end_is_told_once_and_seen_to_its_end(
    context: Context, provider: FakeProvider, clock: FakeClock, how: str, after_s: int
) -> None:
    """The customer has an offer of an order that is over for the store."""
    order = accepted(context)
    provider.says(order.external_id, R.FAILED, raw_status="trade_create_error")
    clock.advance(60)
    run_polls(context)
    clock.advance(after_s)

    provider.says(order.external_id, R.SENT)
    if how == "a hint":
        hint(context, provider, order, "waiting_accept")
    else:
        webhook(context, order, R.SENT)
    let_pass(context, clock, 0.1, step_s=10)
    told = again(context, order), alarms(context, order)
    provider.says(order.external_id, R.COMPLETED, charged_mills=PRICE_MILLS)
    let_pass(context, clock, 1)

    assert (told[0].status, told[0].told_status, told[1]) == (S.FAILED, S.SENT, 1)
    after = again(context, order)
    assert (after.status, after.told_status) == (S.FAILED, S.COMPLETED)
    assert entries(context, order)[-1] == ("settle", PRICE_MILLS)
    assert (after.next_poll_at, after.poll_wanted_at) == (None, None)
    assert_invariants(context)


def test_a_late_word_after_the_providers_own_end_costs_one_question_and_no_alarm(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = accepted(context)
    provider.says(order.external_id, R.CANCELLED)
    clock.advance(60)
    run_polls(context)
    asked = len(provider.reads)

    for _ in range(3):
        for word in (R.QUEUED, R.PENDING, R.SENT):
            webhook(context, order, word)
        let_pass(context, clock, 0.1, step_s=10)

    after = again(context, order)
    assert (after.status, after.told_status) == (S.CANCELLED, S.CANCELLED)
    assert len([read for read in provider.reads[asked:] if read.startswith("order")]) == 1
    assert (after.next_poll_at, after.poll_wanted_at) == (None, None)
    assert alarms(context, order) == 0


def test_an_answer_that_the_end_overtook_is_no_sign_of_life(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = accepted(context)
    provider.says(order.external_id, R.SENT)

    def end(_: str) -> None:
        provider.on_read = lambda what: None
        webhook(context, order, R.CANCELLED)

    provider.on_read = end
    clock.advance(60)
    run_polls(context)
    overtaken = again(context, order)
    provider.says(order.external_id, R.CANCELLED)
    let_pass(context, clock, 0.1, step_s=10)

    after = again(context, order)
    assert overtaken.status is S.CANCELLED
    assert overtaken.next_poll_at is not None  # it may have been the other way round
    assert (after.told_status, after.next_poll_at) == (S.CANCELLED, None)
    assert alarms(context, order) == 0


@pytest.mark.parametrize("end", [R.COMPLETED, R.FAILED])
def test_a_refused_order_that_the_provider_has_is_told_of_and_asked_about_to_its_end(
    context: Context, provider: FakeProvider, clock: FakeClock, end: R
) -> None:
    refusal = ProviderRefused(FailureCode.ITEM_UNAVAILABLE, "HTTP 404")
    provider.fail_purchase(refusal, is_made=True)
    order = receive_one(context)
    run_chain(context)
    assert again(context, order).status is S.FAILED
    provider.reads.clear()

    for word in (R.ACCEPTED, R.PENDING, R.SENT, R.ACCEPTED):
        webhook(context, order, word, charged_mills=PRICE_MILLS)
        provider.says(order.external_id, word, charged_mills=PRICE_MILLS)
        let_pass(context, clock, 1)
    living = alarms(context, order), len(provider.reads)
    provider.says(order.external_id, end, charged_mills=PRICE_MILLS)
    let_pass(context, clock, 1)
    provider.reads.clear()
    let_pass(context, clock, 3)

    assert living[0] == 1
    assert living[1] >= 4
    assert [what for what in provider.reads if what.startswith("order")] == []
    assert again(context, order).status is S.FAILED
    is_bought = end is R.COMPLETED
    assert alarms(context, order) == 1 + is_bought
    assert (entries(context, order)[-1] == ("settle", PRICE_MILLS)) is is_bought
    assert_invariants(context)


# --- other sums


def cost(context: Context, order: Order) -> tuple[int, int, int]:
    """Give what is booked, and what the wallet's proof cannot explain: gone, and come."""
    signs = {"settle": 1, "adjust": 1, "refund": -1}
    booked = sum(signs.get(kind, 0) * mills for kind, mills in entries(context, order))
    (wallet,) = rows(context, "SELECT unexplained_mills, credited_mills FROM wallets")
    return booked, wallet["unexplained_mills"], wallet["credited_mills"]


@pytest.mark.parametrize("is_seen_late", [False, True])
@pytest.mark.parametrize(
    "charges",
    [
        [0, PRICE_MILLS],
        [PRICE_MILLS, PRICE_MILLS - 1000],
        [PRICE_MILLS - 1000, PRICE_MILLS],
        [PRICE_MILLS - 1000, PRICE_MILLS, PRICE_MILLS - 2000],
    ],
)
def test_a_charge_that_is_told_anew_is_booked_and_the_wallet_proves_it(
    context: Context,
    provider: FakeProvider,
    clock: FakeClock,
    charges: list[int],
    is_seen_late: bool,
) -> None:
    opening = provider.balance_mills
    order = accepted(context)
    provider.balance_mills = opening - (charges[0] or PRICE_MILLS)
    clock.advance(60)
    for charged in charges:
        provider.says(order.external_id, R.COMPLETED, charged_mills=charged)
        if not is_seen_late:
            provider.balance_mills = opening - (charged or PRICE_MILLS)
        run_polls(context)
        clock.advance(10)
        take_figure(context)
        provider.balance_mills = opening - (charged or PRICE_MILLS)
        for _ in range(2):
            clock.advance(60)
            take_figure(context)
        clock.advance(2 * HOUR_S)
    run_polls(context)

    found = again(context, order)
    assert found.status is S.COMPLETED
    assert found.charged_mills == charges[-1]
    assert cost(context, order) == (charges[-1], 0, 0)
    (wallet,) = operations.wallets(context)
    assert wallet.settled == -(-charges[-1] // 10)
    assert_invariants(context)


def test_a_refund_gives_back_what_the_charge_was_told_to_be_at_last(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = accepted(context)
    for charged in (PRICE_MILLS, PRICE_MILLS - 1000):
        provider.says(order.external_id, R.COMPLETED, charged_mills=charged)
        clock.advance(2 * HOUR_S)
        run_polls(context)

    provider.says(order.external_id, R.REVERSED, refunded_at=clock.now())
    clock.advance(2 * HOUR_S)
    run_polls(context)

    assert again(context, order).status is S.REVERSED
    assert entries(context, order)[1:] == [
        ("settle", PRICE_MILLS),
        ("adjust", -1000),
        ("refund", PRICE_MILLS - 1000),
    ]
    assert_invariants(context)
