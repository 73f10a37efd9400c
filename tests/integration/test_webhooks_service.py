"""Webhooks: verified bytes have one effect, and everything else has none but a question."""

import http.server
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import msgspec
import pytest

from fulfillment.errors import WebhookRejected
from fulfillment.services import webhooks
from fulfillment.services.context import Context
from fulfillment.services.webhooks import Taken, Verdict
from fulfillment.simulator.skinsnode import signed_headers
from fulfillment.store import orders
from fulfillment.store.engine import Session
from fulfillment.store.models import Move, Order
from schemas.enums import OrderStatus as S
from schemas.enums import Source
from schemas.provider import ReportState as R
from schemas.provider import WebhookNotice
from tests.conftest import SECRET, MakeContext
from tests.support import (
    FakeClock,
    FakeProvider,
    Simulator,
    again,
    attempt_of,
    entries,
    in_threads,
    messages_of,
    path_of,
    receive,
    receive_one,
    rows,
    run_chain,
    run_polls,
    run_sweep,
    shuffled,
    until,
    view,
)


@pytest.fixture
def shop(make_context: MakeContext, simulator: Simulator) -> Context:
    """Give a context with the real adapter, so that signatures are truly verified."""
    return make_context(base_url=simulator.url)


@pytest.fixture
def order(shop: Context, simulator: Simulator) -> Order:
    """Give an order that the provider has; the simulator itself stays silent about it."""
    (order,) = receive(shop, simulator.checkout("webhooks_lost"))
    run_chain(shop)
    return again(shop, order)


def stamp(context: Context, ago_s: float = 0) -> str:
    moment = context.now() - timedelta(seconds=ago_s)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def body_of(order: Order, status: str, **changes: object) -> bytes:
    fields = {
        "externalId": order.external_id,
        "status": status,
        "steamOfferId": "7193849201",
        "amount": str(order.expected_price_cents),
        "currency": "USD",
        "error": None,
        "timestamps": {"queuedAt": None, "updatedAt": None, "refundedAt": None},
    }
    return msgspec.json.encode(fields | changes)


def send(
    context: Context,
    body: bytes,
    *,
    delivery: str = "d-1",
    ago_s: float = 0,
    secret: str = SECRET,
    timestamp: str | None = None,
) -> Taken:
    headers = signed_headers(secret, timestamp or stamp(context, ago_s), delivery, body)
    return webhooks.take(context, "main", headers, body)


def inbox(context: Context) -> list[dict[str, object]]:
    return rows(context, "SELECT * FROM webhook_deliveries ORDER BY id")


def everything(context: Context) -> list[dict[str, object]]:
    """Give all that a delivery could have changed."""
    tables = ("orders", "order_events", "wallet_entries", "attempts", "webhook_deliveries")
    return [row for table in tables for row in rows(context, f"SELECT t::text FROM {table} t")]


def test_a_good_delivery_is_stored_first_and_applied_later(shop: Context, order: Order) -> None:
    taken = send(shop, body_of(order, "completed"))
    before = again(shop, order).status
    webhooks.apply_deliveries(shop)

    assert (taken.verdict, before) == (Verdict.STORED, S.ACCEPTED)
    assert again(shop, order).status is S.COMPLETED
    assert [entry.source for entry in view(shop, order).timeline][-1] == "webhook"
    assert entries(shop, order)[1] == ("settle", order.expected_price_cents * 10)


def test_between_two_heartbeats_a_delivery_costs_one_statement(
    shop: Context, order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a burst each way to the database waits for a core."""
    send(shop, body_of(order, "processing"))
    monkeypatch.setattr(shop.database, "transaction", None)

    taken = send(shop, body_of(order, "pending"), delivery="d-2")
    monkeypatch.undo()

    assert taken.verdict is Verdict.STORED
    assert send(shop, body_of(order, "pending"), delivery="d-3").verdict is Verdict.KNOWN
    webhooks.apply_deliveries(shop)
    assert again(shop, order).status is S.PENDING


def test_a_delivery_waits_for_nobody_who_has_its_order_locked(shop: Context, order: Order) -> None:
    moved = Move(order.id, order.status, order.status, Source.POLL, "", changes={"late_words": "x"})
    with shop.database.transaction() as session, ThreadPoolExecutor(1) as pool:
        orders.lock(session, [order.id])
        assert orders.apply(session, [moved], shop.now())
        sent = pool.submit(send, shop, body_of(order, "completed"))

        assert sent.result(timeout=10).verdict is Verdict.STORED


def test_fifty_copies_at_once_have_one_effect(shop: Context, order: Order) -> None:
    body = body_of(order, "completed")
    headers = signed_headers(SECRET, stamp(shop), "d-1", body)

    def deliver(_: int) -> Verdict:
        taken = webhooks.take(shop, "main", headers, body)
        webhooks.apply_deliveries(shop)
        return taken.verdict

    verdicts = in_threads(50, deliver)

    assert verdicts.count(Verdict.STORED) == 1
    assert verdicts.count(Verdict.KNOWN) == 49
    assert len(inbox(shop)) == 1
    assert path_of(shop, order).count("completed") == 1
    assert [kind for kind, _ in entries(shop, order)] == ["hold", "settle"]


def test_the_same_bytes_under_another_delivery_id_are_known(shop: Context, order: Order) -> None:
    body = body_of(order, "sent")
    timestamp = stamp(shop)

    first = send(shop, body, delivery="d-1", timestamp=timestamp)
    second = send(shop, body, delivery="d-2", timestamp=timestamp)

    assert (first.verdict, second.verdict) == (Verdict.STORED, Verdict.KNOWN)
    assert second.delivery_id is None


def test_a_retry_with_a_new_timestamp_changes_nothing_more(
    shop: Context, order: Order, clock: FakeClock
) -> None:
    body = body_of(order, "completed")
    send(shop, body)
    webhooks.apply_deliveries(shop)
    before = view(shop, order)

    clock.advance(2)
    send(shop, body)
    webhooks.apply_deliveries(shop)

    assert len(inbox(shop)) == 2
    assert view(shop, order) == before


@pytest.mark.parametrize("ago_s", [3601, 86_400, 90 * 86_400, -3601])
def test_a_good_signature_over_an_old_or_future_time_asks_and_is_not_applied(
    shop: Context, order: Order, clock: FakeClock, ago_s: float
) -> None:
    clock.advance(31)
    taken = send(shop, body_of(order, "completed"), ago_s=ago_s)
    webhooks.apply_deliveries(shop)

    after = again(shop, order)
    assert taken.verdict is Verdict.STORED
    assert after.status is S.ACCEPTED
    assert after.next_poll_at is not None
    assert after.next_poll_at <= shop.now()


@pytest.mark.parametrize("ago_s", [3599, 0, -3599])
def test_a_time_within_the_tolerance_is_applied(shop: Context, order: Order, ago_s: float) -> None:
    send(shop, body_of(order, "sent"), ago_s=ago_s)
    webhooks.apply_deliveries(shop)

    assert again(shop, order).status is S.SENT


@pytest.mark.parametrize(
    "timestamp", ["2026-11-20T12:00:00", "soon", "2026-11-20T23:59:60Z", "1795000000", ""]
)
def test_a_malformed_signed_time_only_asks(shop: Context, order: Order, timestamp: str) -> None:
    body = body_of(order, "completed")
    headers = signed_headers(SECRET, timestamp, "d-1", body)

    webhooks.take(shop, "main", headers, body)
    webhooks.apply_deliveries(shop)

    assert again(shop, order).status is S.ACCEPTED


def test_a_stale_delivery_never_asks_sooner_than_the_cache_allows(
    shop: Context, order: Order, clock: FakeClock
) -> None:
    clock.advance(31)
    run_polls(shop)
    polled_at = again(shop, order).polled_at

    send(shop, body_of(order, "completed"), ago_s=7200)
    webhooks.apply_deliveries(shop)

    after = again(shop, order).next_poll_at
    assert polled_at is not None
    assert after is not None
    assert after >= polled_at + timedelta(seconds=30)


@pytest.mark.parametrize("secret", ["", "another", SECRET.upper(), SECRET + " "])
def test_a_forged_delivery_changes_nothing(shop: Context, order: Order, secret: str) -> None:
    before = everything(shop)

    with pytest.raises(WebhookRejected):
        send(shop, body_of(order, "completed"), secret=secret)

    assert everything(shop) == before


TAMPERED: dict[str, Callable[[bytes], bytes]] = {
    "one byte": lambda body: body.replace(b"completed", b"completec"),
    "blanks": lambda body: body.replace(b":", b": "),
    "a newline": lambda body: body + b"\n",
    "a byte order mark": lambda body: b"\xef\xbb\xbf" + body,
    "nothing": lambda body: b"",
}


@pytest.mark.parametrize("tamper", TAMPERED.values(), ids=TAMPERED)
def test_a_body_that_was_touched_changes_nothing(
    shop: Context, order: Order, tamper: Callable[[bytes], bytes]
) -> None:
    body = body_of(order, "completed")
    headers = signed_headers(SECRET, stamp(shop), "d-1", body)
    before = everything(shop)

    with pytest.raises(WebhookRejected):
        webhooks.take(shop, "main", headers, tamper(body))

    assert everything(shop) == before


def test_an_order_that_we_do_not_have_stores_nothing(shop: Context, order: Order) -> None:
    before = everything(shop)

    taken = send(shop, body_of(order, "completed", externalId="order_unknown"))

    assert taken == Taken(Verdict.UNKNOWN_ORDER)
    assert everything(shop) == before


def test_an_order_of_another_account_stores_nothing(
    make_context: MakeContext, simulator: Simulator
) -> None:
    secrets = {"client_id": "x", "client_secret": SECRET, "base_url": simulator.url}
    context = make_context(accounts={"main": secrets, "second": secrets})
    other = receive_one(context, account="second")
    before = everything(context)

    taken = send(context, body_of(other, "completed"))

    assert taken.verdict is Verdict.UNKNOWN_ORDER
    assert everything(context) == before


def test_both_secrets_count_during_a_rotation_and_the_old_one_no_longer_after_it(
    make_context: MakeContext, simulator: Simulator, shop: Context, order: Order
) -> None:
    rotating = make_context(
        base_url=simulator.url, main={"client_secret": "new", "previous_secret": SECRET}
    )
    rotated = make_context(base_url=simulator.url, main={"client_secret": "new"})

    verdicts = [
        send(rotating, body_of(order, "queued"), secret=SECRET).verdict,
        send(rotating, body_of(order, "processing"), secret="new").verdict,
    ]

    assert verdicts == [Verdict.STORED, Verdict.STORED]
    with pytest.raises(WebhookRejected):
        send(rotated, body_of(order, "sent"), secret=SECRET)


@pytest.mark.parametrize("seed", range(8))
def test_deliveries_in_any_order_and_number_end_in_the_same_place(
    shop: Context, order: Order, clock: FakeClock, seed: int
) -> None:
    words = ["accepted", "queued", "processing", "pending", "sent", "completed"] * 2

    for place, word in enumerate(shuffled(words, seed)):
        send(shop, body_of(order, word), delivery=str(place), ago_s=place)
        webhooks.apply_deliveries(shop)

    after = view(shop, order)
    assert after.status is S.COMPLETED
    assert after.charged_price == order.expected_price_cents
    assert [kind for kind, _ in entries(shop, order)] == ["hold", "settle"]


def test_many_workers_apply_each_delivery_once(shop: Context, order: Order) -> None:
    for place, word in enumerate(["queued", "pending", "sent", "completed"]):
        send(shop, body_of(order, word), delivery=str(place))

    in_threads(6, lambda _: webhooks.apply_deliveries(shop))

    assert all(row["applied_at"] is not None for row in inbox(shop))
    assert again(shop, order).status is S.COMPLETED
    assert path_of(shop, order).count("completed") == 1


def test_a_delivery_whose_worker_died_is_applied_after_the_lease(
    shop: Context, order: Order, clock: FakeClock
) -> None:
    send(shop, body_of(order, "completed"))
    claimed = "UPDATE webhook_deliveries SET next_apply_at = %(until)s RETURNING 1"
    rows(shop, claimed, until=shop.now() + timedelta(seconds=30))
    webhooks.apply_deliveries(shop)
    while_claimed = again(shop, order).status

    clock.advance(31)
    run_sweep(shop)

    assert while_claimed is S.ACCEPTED
    assert again(shop, order).status is S.COMPLETED


def test_a_delivery_whose_hint_was_lost_is_found_by_the_sweep(shop: Context, order: Order) -> None:
    send(shop, body_of(order, "completed"))

    run_sweep(shop)

    assert again(shop, order).status is S.COMPLETED


@pytest.mark.parametrize("amount", ["18.40", "-5", "1e400", "NaN", True, [], 1840.5])
def test_an_amount_that_is_not_exact_is_not_applied_but_asked_about(
    shop: Context, order: Order, amount: object
) -> None:
    send(shop, body_of(order, "completed", amount=amount))
    webhooks.apply_deliveries(shop)

    assert again(shop, order).status is S.ACCEPTED
    assert entries(shop, order) == [("hold", order.expected_price_cents * 10)]


def test_a_status_of_no_contract_is_recorded_and_moves_nothing(shop: Context, order: Order) -> None:
    send(shop, body_of(order, "delivered_maybe"))
    webhooks.apply_deliveries(shop)

    after = again(shop, order)
    assert (after.status, after.provider_status) == (S.ACCEPTED, "delivered_maybe")


def test_a_report_before_anything_was_sent_changes_no_status_and_no_money(shop: Context) -> None:
    order = receive_one(shop)

    send(shop, body_of(order, "completed"))
    webhooks.apply_deliveries(shop)

    assert again(shop, order).status is S.RECEIVED
    assert entries(shop, order) == []


class Receiver:
    """The web part in small: takes and applies each callback before it answers."""

    def __init__(self) -> None:
        self.url = ""
        self.context: Context | None = None
        self.seen: list[tuple[S, S]] = []
        self.rejected = 0

    def take(self, headers: dict[str, str], body: bytes) -> int:
        """Give the answer's status code."""
        assert self.context is not None
        external_id = msgspec.json.decode(body)["externalId"]
        before = status_of(self.context, external_id)
        try:
            webhooks.take(self.context, "main", headers, body)
        except WebhookRejected:
            self.rejected += 1
            return 401
        webhooks.apply_deliveries(self.context)
        self.seen.append((before, status_of(self.context, external_id)))
        return 204


def status_of(context: Context, external_id: str) -> S:
    query = "SELECT status FROM orders WHERE external_id = %(name)s"
    return S(rows(context, query, name=external_id)[0]["status"])


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found = Receiver()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            self.send_response(found.take(dict(self.headers.items()), body))
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    found.url = f"http://127.0.0.1:{server.server_port}"
    yield found
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("scenario", "end"),
    [("webhook_before_answer", S.PROCESSING), ("completed_before_answer", S.COMPLETED)],
)
def test_a_webhook_before_the_posts_answer_wins_and_the_answer_takes_nothing_back(
    make_context: MakeContext, simulator: Simulator, receiver: Receiver, scenario: str, end: S
) -> None:
    receiver.context = context = make_context(base_url=simulator.url, public_url=receiver.url)
    (order,) = receive(context, simulator.checkout(scenario))

    run_chain(context)

    assert receiver.seen[0][0] is S.SUBMITTING
    assert receiver.seen[-1][1] is end
    after = again(context, order)
    assert after.status is end
    assert after.next_attempt_at is None
    assert after.next_poll_at is not None
    outcome = view(context, order).timeline[-1]
    assert (outcome.source, outcome.note) == (Source.SUBMIT, "'accepted' comes late: ignored")
    assert attempt_of(context, order).unknown_since is None
    purchase = simulator.purchase(order)
    assert purchase is not None
    assert purchase["posts"] == 1


def test_webhooks_alone_bring_an_order_to_its_end_without_a_single_poll(
    make_context: MakeContext, simulator: Simulator, receiver: Receiver
) -> None:
    receiver.context = context = make_context(base_url=simulator.url, public_url=receiver.url)
    (order,) = receive(context, simulator.checkout("delivered"))

    run_chain(context)
    for _ in range(30):
        simulator.jump(1)
    until(lambda: again(context, order).status is S.COMPLETED)

    purchase = simulator.purchase(order)
    assert purchase is not None
    assert purchase["reads"] == 0
    assert [kind for kind, _ in entries(context, order)] == ["hold", "settle"]


@pytest.mark.parametrize(
    ("scenario", "status"),
    [
        ("webhooks_forged", S.SENT),
        ("webhooks_bad_signature", S.ACCEPTED),
        ("webhooks_reserialised", S.ACCEPTED),
    ],
)
def test_forged_callbacks_are_rejected_and_only_true_ones_count(
    make_context: MakeContext,
    simulator: Simulator,
    receiver: Receiver,
    scenario: str,
    status: S,
) -> None:
    receiver.context = context = make_context(base_url=simulator.url, public_url=receiver.url)
    (order,) = receive(context, simulator.checkout(scenario))

    run_chain(context)
    simulator.jump(10)
    simulator.until_status(order, "sent")
    until(lambda: receiver.rejected >= 4 and again(context, order).status is status)

    assert "completed" not in path_of(context, order)
    until(lambda: len(inbox(context)) == len(receiver.seen))


def test_a_price_of_ours_is_never_taken_for_the_charge(shop: Context, order: Order) -> None:
    cents = order.expected_price_cents - 3

    send(shop, body_of(order, "completed", amount=str(cents)))
    webhooks.apply_deliveries(shop)

    assert view(shop, order).charged_price == cents
    assert entries(shop, order)[1] == ("settle", cents * 10)


@pytest.mark.parametrize("long_ago", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"])
def test_a_time_with_which_nobody_can_reckon_holds_up_no_other_delivery(
    make_context: MakeContext, simulator: Simulator, long_ago: str
) -> None:
    shop = make_context(base_url=simulator.url, main={"trade_window_s": 200})
    odd, good = receive(shop, *(simulator.checkout("webhooks_lost") for _ in range(2)))
    run_chain(shop)

    times = {"updatedAt": long_ago, "acceptedAt": long_ago}
    send(shop, body_of(odd, "sent", timestamps=times))
    send(shop, body_of(good, "completed", amount=str(good.expected_price_cents)))
    webhooks.apply_deliveries(shop)

    assert again(shop, odd).status is S.SENT
    assert again(shop, good).status is S.COMPLETED


def test_what_nobody_can_apply_is_set_aside_alone(
    shop: Context, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug of ours in one order's way must not keep the news of all others."""
    odd, good = receive(shop, *(simulator.checkout("webhooks_lost") for _ in range(2)))
    run_chain(shop)
    apply = orders.apply

    def failing(session: Session, moves: Sequence[Move], now: datetime) -> dict[int, Order]:
        if any(move.order_id == odd.id for move in moves):
            raise OverflowError
        return apply(session, moves, now)

    monkeypatch.setattr(orders, "apply", failing)
    for order in (odd, good):
        send(shop, body_of(order, "completed", amount=str(order.expected_price_cents)))
    webhooks.apply_deliveries(shop)

    assert again(shop, odd).status is S.ACCEPTED
    assert again(shop, good).status is S.COMPLETED


def test_a_hint_about_an_order_that_has_ended_is_looked_into(
    make_context: MakeContext, provider: FakeProvider, clock: FakeClock
) -> None:
    """Money may be attached to it that we believe free."""
    context = make_context(provider)
    order = receive_one(context)
    run_chain(context)
    provider.says(order.external_id, R.FAILED)
    clock.advance(60)
    run_polls(context)
    ended = again(context, order).status
    provider.says(order.external_id, R.COMPLETED, charged_mills=6120)
    provider.notice = WebhookNotice(order.external_id, None, None, identity="a hint")

    webhooks.take(context, "main", {}, b"{}")
    webhooks.apply_deliveries(context)
    clock.advance(60)
    run_polls(context)

    assert (ended, again(context, order).status) == (S.FAILED, S.FAILED)
    assert entries(context, order)[-1] == ("settle", 6120)
    assert [m["type"] for m in messages_of(context, order)].count("order.needs_review") == 1
