"""A claim is the poll: it stands for its time, and what brings no news writes nothing."""

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from fulfillment.services import reconciliation, webhooks
from fulfillment.services.context import Context
from fulfillment.services.reports import apply_reports
from fulfillment.store.models import Order
from schemas.enums import OrderStatus as S
from schemas.enums import Source
from schemas.provider import OrderReport, WebhookNotice
from schemas.provider import ReportState as R
from tests.conftest import MakeContext
from tests.integration.test_reconciliation import polls_of
from tests.support import (
    FakeClock,
    FakeProvider,
    accepted,
    again,
    checkout,
    receive,
    report,
    rows,
    run_chain,
    run_polls,
    run_ticks,
)

_COLUMNS = """
    SELECT column_name FROM information_schema.columns
     WHERE table_name = 'orders' AND column_name NOT IN ('id', 'external_id')
    """
#: Rows and which transaction wrote each.
VERSIONS = "SELECT xmin::text AS writer, o.* FROM orders o ORDER BY id"


def hint(context: Context, provider: FakeProvider, order: Order, identity: str) -> None:
    """Take in a webhook that only says that there is news of the order."""
    provider.notice = WebhookNotice(order.external_id, None, None, identity=identity)
    webhooks.take(context, "main", {}, b"{}")
    webhooks.apply_deliveries(context)


@pytest.mark.parametrize("late_s", [0.0, 0.9])
def test_an_answer_without_news_writes_nothing(
    context: Context, provider: FakeProvider, clock: FakeClock, late_s: float
) -> None:
    context = replace(context, jitter=random.random)
    placed = receive(context, *(checkout() for _ in range(64)))
    run_chain(context)
    for _ in range(6):
        clock.advance(600)
        batches = list(reconciliation.poll_due(context))
        before = rows(context, VERSIONS)
        clock.advance(late_s)
        for batch in batches:
            assert reconciliation.poll_orders(context, "main", batch["ids"]) == 0
        assert sum(len(batch["ids"]) for batch in batches) == len(placed)
        assert rows(context, VERSIONS) == before

    assert polls_of(provider) == 6 * len(placed)


@pytest.mark.parametrize(
    ("is_pushed", "is_stalled", "gap_s"),
    [(True, False, 600), (True, True, 600), (False, False, 100), (False, True, 300)],
)
def test_flowing_webhooks_make_polls_rarer_only_where_they_tell_that_an_offer_is_out(
    context: Context,
    provider: FakeProvider,
    clock: FakeClock,
    is_pushed: bool,
    is_stalled: bool,
    gap_s: int,
) -> None:
    provider.pushes_offers = is_pushed
    order, other = accepted(context), accepted(context)
    if is_stalled:
        clock.advance(context.settings.stalled_after_s)
        run_ticks(context)
        assert again(context, order).status is S.NEEDS_REVIEW
    for place in range(9):
        clock.advance(700)
        hint(context, provider, other, f"news {place}")
        (batch,) = reconciliation.poll_due(context)
        claimed = rows(context, f"{VERSIONS} LIMIT 1")
        reconciliation.poll_orders(context, "main", batch["ids"])

    after = again(context, order)
    assert after.next_poll_at is not None
    gap = after.next_poll_at - clock.now()
    assert timedelta(seconds=gap_s) <= gap <= timedelta(seconds=gap_s * 1.04)
    assert (rows(context, f"{VERSIONS} LIMIT 1") == claimed) is not is_pushed  # without news


def test_a_question_that_was_asked_late_moves_the_next_one(
    context: Context, clock: FakeClock
) -> None:
    order = accepted(context)
    clock.advance(31)
    (batch,) = reconciliation.poll_due(context)
    clock.advance(20)

    reconciliation.poll_orders(context, "main", batch["ids"])

    after = again(context, order)
    assert after.polled_at == clock.now()
    assert after.next_poll_at == clock.now() + timedelta(seconds=30)


@pytest.mark.parametrize("interval_s", [25, 30])
@pytest.mark.parametrize(
    ("waited_s", "takes_s", "is_meanwhile"),
    [(7, 0, False), (7, 0, True), (40, 0, True), (0, 8, False), (0, 8, True), (0, 40, True)],
)
def test_a_hint_at_a_question_that_was_asked_or_answered_late_waits_for_the_providers_cache(
    make_context: MakeContext,
    provider: FakeProvider,
    clock: FakeClock,
    waited_s: int,
    takes_s: int,
    is_meanwhile: bool,
    interval_s: int,
) -> None:
    """Until then the provider could only repeat its answer, and what is hinted at would be lost."""
    context = make_context(provider, poll_min_interval_s=interval_s)
    order = accepted(context)
    for _ in range(8):
        clock.advance(600)
        run_polls(context)
    clock.advance(600)
    (batch,) = reconciliation.poll_due(context)

    def answer(_: str) -> None:
        clock.advance(takes_s)
        if is_meanwhile:
            hint(context, provider, order, "a hint")

    clock.advance(waited_s)  # its message lay in a queue
    provider.on_read = answer
    reconciliation.poll_orders(context, "main", batch["ids"])
    answered_at = clock.now()
    if not is_meanwhile:
        clock.advance(2)
        hint(context, provider, order, "a hint")

    next_poll_at = again(context, order).next_poll_at
    assert next_poll_at is not None
    assert 30 <= (next_poll_at - answered_at).total_seconds() <= 37  # LOOKUP_CACHE_S, and a little


class Repeating(FakeProvider):
    """Answers after a while, and with what it said of an order before, for 30 seconds."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self.takes_s = 0.0
        self._clock = clock
        self._said: dict[str, tuple[datetime, OrderReport]] = {}

    def reports(self, external_ids: Sequence[str]) -> dict[str, OrderReport]:
        self._clock.advance(self.takes_s)
        now = self._clock.now()
        for name in external_ids:
            if name not in self._said or now - self._said[name][0] >= timedelta(seconds=30):
                self._said[name] = now, self.orders[name]
        self._read(f"order {' '.join(external_ids)}")  # what happens now is in no answer of before
        return {name: self._said[name][1] for name in external_ids}


@pytest.mark.parametrize("is_meanwhile", [False, True])
@pytest.mark.parametrize(("takes_s", "interval_s"), [(4, 30), (20, 30), (0, 10)])
def test_a_hint_at_a_question_that_took_long_is_not_answered_out_of_the_providers_cache(
    make_context: MakeContext, clock: FakeClock, takes_s: int, interval_s: int, is_meanwhile: bool
) -> None:
    """It would be for good: an order that is over is not asked about by itself."""
    provider = Repeating(clock)
    context = make_context(provider, poll_min_interval_s=interval_s)
    order = accepted(context)
    provider.says(order.external_id, R.EXPIRED)
    clock.advance(60)
    run_polls(context)
    assert again(context, order).status is S.EXPIRED

    def deliver(_: str = "") -> None:
        provider.on_read = lambda what: None
        provider.says(order.external_id, R.COMPLETED, charged_mills=6120)
        hint(context, provider, order, "it is delivered after all")

    clock.advance(3600)
    hint(context, provider, order, "something is new")
    (batch,) = reconciliation.poll_due(context)
    provider.takes_s = takes_s
    if is_meanwhile:
        provider.on_read = deliver
    reconciliation.poll_orders(context, "main", batch["ids"])
    provider.takes_s = 0
    if not is_meanwhile:
        clock.advance(2)
        deliver()
    for _ in range(30):
        clock.advance(2)
        run_polls(context)

    assert again(context, order).charged_mills == 6120


@pytest.mark.parametrize("is_known", [False, True])
@pytest.mark.parametrize("how", ["comes twice", "by a person", "poller dies"])
def test_a_hint_is_heard_whatever_else_has_asked_the_provider_just_before(
    make_context: MakeContext, clock: FakeClock, how: str, is_known: bool
) -> None:
    """The provider's cache may have been filled by a question that no row tells of."""
    provider = Repeating(clock)
    context = make_context(provider)
    order = accepted(context)
    provider.says(order.external_id, R.EXPIRED)
    clock.advance(60)
    run_polls(context)

    clock.advance(3600)
    hint(context, provider, order, "something is new")
    (batch,) = reconciliation.poll_due(context)
    if how == "poller dies":  # its message lay in a queue, and nobody heard the answer
        clock.advance(20)
        provider.reports([order.external_id])
    else:
        reconciliation.poll_orders(context, "main", batch["ids"])
    clock.advance(2)
    provider.says(order.external_id, R.COMPLETED, charged_mills=6120)
    identity = "something is new" if is_known else "it is delivered after all"
    hint(context, provider, order, identity)
    clock.advance(3)
    if how == "comes twice":
        reconciliation.poll_orders(context, "main", batch["ids"])
    if how == "by a person":
        reconciliation.reconcile_now(context, [order.external_id])
    for _ in range(60):
        run_polls(context)
        clock.advance(2)

    assert again(context, order).charged_mills == 6120
    clock.advance(60)
    run_polls(context)
    assert again(context, order).poll_wanted_at is None
    assert again(context, order).next_poll_at is None


def test_a_hint_whose_polls_message_is_lost_waits_for_no_more_than_the_smallest_interval(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = accepted(context)
    for _ in range(9):
        clock.advance(600)
        run_polls(context)
    clock.advance(60)
    provider.says(order.external_id, R.SENT)
    hint(context, provider, order, "the offer is out")

    assert [batch["ids"] for batch in reconciliation.poll_due(context)] == [[order.id]]  # and lost
    clock.advance(31)
    run_polls(context)

    assert again(context, order).status is S.SENT


def test_a_wish_of_code_of_before_is_heard_though_it_knows_no_time_for_it(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    """It moves the next poll, be it by a microsecond, while the order is asked about."""
    order = accepted(context)
    provider.says(order.external_id, R.EXPIRED)
    clock.advance(60)
    batches = list(reconciliation.poll_due(context))

    def wish(_: str) -> None:
        moved = "UPDATE orders SET next_poll_at = next_poll_at - interval '1 us' RETURNING 1"
        assert rows(context, moved)

    provider.on_read = wish
    for batch in batches:
        reconciliation.poll_orders(context, "main", batch["ids"])

    after = again(context, order)
    assert after.status is S.EXPIRED
    assert after.next_poll_at is not None


def test_an_answer_that_a_webhook_overtook_takes_nothing_back(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    order = accepted(context)
    clock.advance(31)
    (batch,) = reconciliation.poll_due(context)

    def overtake(_: str) -> None:
        with context.database.transaction() as session:
            apply_reports(context, session, "main", {order.id: report(R.SENT)}, Source.WEBHOOK)

    provider.on_read = overtake
    reconciliation.poll_orders(context, "main", batch["ids"])

    assert again(context, order).status is S.SENT


@pytest.mark.parametrize("urgent", [0, 1])
def test_one_tick_hands_out_all_that_is_due_also_where_a_window_is_over(
    context: Context, provider: FakeProvider, clock: FakeClock, urgent: int
) -> None:
    provider.lookup_limit = 100
    placed = receive(context, *(checkout() for _ in range(2)))
    run_chain(context)
    provider.says(placed[0].external_id, R.SENT)
    clock.advance(60)
    run_polls(context)
    clock.advance(601 * urgent)
    columns = [row["column_name"] for row in rows(context, _COLUMNS)]
    names = ", ".join(columns)
    many = (
        f"INSERT INTO orders (external_id, {names}) SELECT 'x' || n, {names} FROM orders, "
        "generate_series(1, 1700) n WHERE id = %(id)s RETURNING 1"
    )
    assert len(rows(context, many, id=placed[1].id)) == 1700
    rows(context, "UPDATE orders SET next_poll_at = %(now)s RETURNING 1", now=clock.now())

    assert sum(len(batch["ids"]) for batch in reconciliation.poll_due(context)) == 1702


def test_what_one_of_two_claims_got_is_handed_out_though_the_other_failed(
    context: Context, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciliation, "_CLAIM_LIMIT", 4)
    placed = receive(context, *(checkout() for _ in range(12)))
    run_chain(context)
    clock.advance(31)
    claim, calls = reconciliation._claim_polls, itertools.count()

    def claim_or_fail(*args: Any) -> Any:
        if next(calls) == 3:  # each asks for the urgent ones and for the others
            raise RuntimeError("a bug")
        return claim(*args)

    monkeypatch.setattr(reconciliation, "_claim_polls", claim_or_fail)
    handed_out = [id_ for batch in reconciliation.poll_due(context) for id_ in batch["ids"]]

    claimed = rows(context, "SELECT id FROM orders WHERE polls > 0")
    assert sorted(handed_out) == sorted(row["id"] for row in claimed)
    assert 4 < len(handed_out) < len(placed)
