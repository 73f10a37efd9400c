"""The hold ledger: what may be spent is never more than the provider's figure proves."""

from collections.abc import Callable
from datetime import timedelta

import psycopg
import pytest

from fulfillment.services import funds, operations
from fulfillment.services.context import Context
from fulfillment.services.reports import apply_reports
from fulfillment.store import ledger, orders, proof
from fulfillment.store.ledger import Posting
from fulfillment.store.models import Move, Order
from fulfillment.store.proof import Figure
from schemas.enums import DebitsAt, Source
from schemas.enums import OrderStatus as S
from schemas.provider import ReportState
from tests.conftest import MakeContext
from tests.support import (
    PRICE_CENTS,
    FakeClock,
    FakeProvider,
    accepted,
    attempt_of,
    available,
    entries,
    in_threads,
    receive_one,
    report,
    rows,
    take_figure,
)

LAG_S = 35.0
PRICE = 6120
BALANCE = 100_000


class Wallet:
    """The ledger of `main` in single steps, each in a transaction of its own."""

    def __init__(self, context: Context, clock: FakeClock) -> None:
        self.context = context
        self.clock = clock
        self.debits_at = DebitsAt.ACCEPT

    def figure(self, mills: int, *, asked_s_ago: float = 0.0) -> None:
        """Let the provider have answered a request of so many seconds ago."""
        figure = Figure(mills, self.clock.now() - timedelta(seconds=asked_s_ago))
        with self.context.database.transaction() as session:
            ledger.lock_wallet(session, "main")
            lag = timedelta(seconds=LAG_S)
            proof.record_figure(session, "main", figure, self.debits_at, lag)

    def hold(self, mills: int = PRICE) -> Order:
        order = receive_one(self.context)
        self.hold_for(order, mills)
        return order

    def hold_for(self, order: Order, mills: int = PRICE, name: str | None = None) -> None:
        with self.context.database.transaction() as session:
            ledger.lock_wallet(session, "main")
            names = {order.id: name or order.external_id}
            ledger.hold(session, "main", {order.id: mills}, names, self.clock.now())

    def send(self, order: Order) -> None:
        with self.context.database.transaction() as session:
            ledger.begin_posts(session, {order.id: b"sealed"}, "m", self.clock.now())

    def confirm(self, order: Order) -> None:
        with self.context.database.transaction() as session:
            ledger.confirm(session, [order.id], "m", self.clock.now())

    def accepted(self, mills: int = PRICE) -> Order:
        """Hold money for an order that the provider confirms at once."""
        order = self.hold(mills)
        self.send(order)
        self.confirm(order)
        return order

    def settle(self, order: Order, mills: int | None = None) -> None:
        with self.context.database.transaction() as session:
            ledger.settle(session, [Posting(order.id, "delivered", mills)], self.clock.now())

    def end(self, order: Order) -> None:
        with self.context.database.transaction() as session:
            ledger.end(session, [order.id], self.clock.now())

    def refuse(self, order: Order) -> None:
        with self.context.database.transaction() as session:
            ledger.refuse(session, [Posting(order.id, "refused")], self.clock.now())

    def refund(self, order: Order) -> None:
        with self.context.database.transaction() as session:
            ledger.refund(session, [Posting(order.id, "undone")], self.clock.now())

    @property
    def available(self) -> int:
        return available(self.context)


@pytest.fixture
def wallet(context: Context, clock: FakeClock) -> Wallet:
    return Wallet(context, clock)


def test_nothing_can_be_spent_before_a_figure_was_ever_read(wallet: Wallet) -> None:
    assert wallet.available == 0


def test_money_that_is_held_cannot_be_held_again(wallet: Wallet) -> None:
    wallet.figure(BALANCE)

    wallet.hold()

    assert wallet.available == BALANCE - PRICE


def test_a_figure_writes_no_hold_that_an_earlier_figure_told_of(
    wallet: Wallet, clock: FakeClock
) -> None:
    order = wallet.accepted()
    versions = []
    for _ in range(2):
        clock.advance(LAG_S)
        wallet.figure(BALANCE)
        query = "SELECT xmin::text AS version FROM attempts WHERE order_id = %(id)s"
        versions += rows(wallet.context, query, id=order.id)

    assert versions[0] == versions[1]


@pytest.mark.parametrize(("later_s", "is_inside"), [(0, False), (34.9, False), (35, True)])
def test_a_hold_is_inside_a_figure_asked_for_long_enough_after_the_accept(
    wallet: Wallet, clock: FakeClock, later_s: float, is_inside: bool
) -> None:
    wallet.figure(BALANCE)
    wallet.accepted()

    clock.advance(later_s or 0.001)
    wallet.figure(BALANCE - PRICE)

    assert wallet.available == BALANCE - PRICE - (0 if is_inside else PRICE)


def test_what_counts_is_when_the_figure_was_asked_for_not_when_it_came(
    wallet: Wallet, clock: FakeClock
) -> None:
    wallet.figure(BALANCE)
    wallet.accepted()

    clock.advance(60)
    wallet.figure(BALANCE, asked_s_ago=30)

    assert wallet.available == BALANCE - PRICE


def test_a_figure_asked_for_before_the_stored_one_changes_nothing(
    wallet: Wallet, clock: FakeClock
) -> None:
    wallet.accepted()
    clock.advance(40)
    wallet.figure(BALANCE)

    wallet.figure(BALANCE * 5, asked_s_ago=1)

    assert wallet.available == BALANCE


def test_a_charge_is_proven_by_the_next_newer_figure_whatever_older_ones_come_between(
    wallet: Wallet, clock: FakeClock
) -> None:
    """Less was charged than was held, and a figure from before the stored one comes late."""
    wallet.figure(BALANCE)
    order = wallet.accepted()
    clock.advance(40)
    wallet.figure(BALANCE - PRICE + 590)
    wallet.settle(order, PRICE - 590)
    wallet.figure(BALANCE - PRICE + 590, asked_s_ago=1)
    clock.advance(LAG_S)
    wallet.figure(BALANCE - PRICE + 590)

    (proven,) = rows(wallet.context, "SELECT expected_mills, credited_mills FROM wallets")
    assert proven == {"expected_mills": BALANCE - PRICE + 590, "credited_mills": 0}


@pytest.mark.parametrize("steps", [("hold",), ("hold", "send")])
def test_an_attempt_that_is_not_confirmed_is_subtracted_for_ever(
    wallet: Wallet, clock: FakeClock, steps: tuple[str, ...]
) -> None:
    wallet.figure(BALANCE)
    order = wallet.hold()
    if "send" in steps:
        wallet.send(order)

    clock.advance(30 * 86_400)
    wallet.figure(BALANCE)

    assert wallet.available == BALANCE - PRICE


def test_a_charge_above_its_hold_is_subtracted_in_full_until_a_figure_tells_of_it(
    wallet: Wallet, clock: FakeClock
) -> None:
    wallet.figure(BALANCE)
    order = wallet.accepted()
    charge = "UPDATE orders SET charged_mills = %(mills)s WHERE id = %(id)s RETURNING 1"
    rows(wallet.context, charge, mills=2 * PRICE, id=order.id)

    assert available(wallet.context) == BALANCE - 2 * PRICE

    clock.advance(LAG_S + 1)
    wallet.figure(BALANCE - 2 * PRICE)
    assert available(wallet.context) == BALANCE - 2 * PRICE


def test_a_refusal_frees_the_money_at_once(wallet: Wallet) -> None:
    wallet.figure(BALANCE)
    order = wallet.hold()
    wallet.send(order)

    wallet.refuse(order)

    assert wallet.available == BALANCE
    assert entries(wallet.context, order) == [("hold", PRICE), ("release", PRICE)]


def test_an_order_that_the_provider_has_cannot_be_refused(wallet: Wallet) -> None:
    wallet.figure(BALANCE)
    order = wallet.accepted()

    wallet.refuse(order)

    assert wallet.available == BALANCE - PRICE
    assert entries(wallet.context, order) == [("hold", PRICE)]


@pytest.mark.parametrize(("later_s", "is_released"), [(1, False), (34.9, False), (35, True)])
def test_a_failure_after_the_accept_frees_its_hold_only_at_a_later_figure(
    wallet: Wallet, clock: FakeClock, later_s: float, is_released: bool
) -> None:
    wallet.figure(BALANCE)
    order = wallet.accepted()
    wallet.end(order)

    clock.advance(later_s)
    before = wallet.available
    wallet.figure(BALANCE)

    assert before == BALANCE - PRICE
    assert wallet.available == BALANCE - (0 if is_released else PRICE)
    assert (("release", PRICE) in entries(wallet.context, order)) is is_released


def test_a_figure_that_shows_the_debit_but_not_yet_the_refund_keeps_the_hold(
    wallet: Wallet, clock: FakeClock
) -> None:
    wallet.figure(BALANCE)
    order = wallet.accepted()
    clock.advance(LAG_S + 5)
    wallet.end(order)
    clock.advance(1)

    wallet.figure(BALANCE - PRICE)

    assert entries(wallet.context, order) == [("hold", PRICE)]
    clock.advance(LAG_S)
    wallet.figure(BALANCE)
    assert entries(wallet.context, order) == [("hold", PRICE), ("release", PRICE)]
    assert available(wallet.context) == BALANCE


def test_a_hold_is_released_once_however_many_figures_come(
    wallet: Wallet, clock: FakeClock
) -> None:
    order = wallet.accepted()
    wallet.end(order)

    for _ in range(3):
        clock.advance(40)
        wallet.figure(BALANCE)

    assert entries(wallet.context, order) == [("hold", PRICE), ("release", PRICE)]
    assert wallet.available == BALANCE


def test_a_failure_of_money_inside_the_figure_waits_for_the_figure_that_has_it_back(
    wallet: Wallet, clock: FakeClock
) -> None:
    order = wallet.accepted()
    clock.advance(40)
    wallet.figure(BALANCE - PRICE)

    wallet.end(order)
    clock.advance(40)
    wallet.figure(BALANCE)

    assert wallet.available == BALANCE
    assert ("release", PRICE) in entries(wallet.context, order)


@pytest.mark.parametrize(("later_s", "is_inside"), [(34.9, False), (35, True)])
def test_where_the_wallet_is_debited_at_the_end_the_hold_stays_until_then(
    wallet: Wallet, clock: FakeClock, later_s: float, is_inside: bool
) -> None:
    wallet.debits_at = DebitsAt.FINAL
    order = wallet.accepted()
    clock.advance(3600)
    wallet.figure(BALANCE)
    while_under_way = wallet.available

    wallet.settle(order)
    clock.advance(later_s)
    wallet.figure(BALANCE - PRICE)

    assert while_under_way == BALANCE - PRICE
    assert wallet.available == BALANCE - PRICE - (0 if is_inside else PRICE)


def test_a_delivery_before_the_figure_shows_it_is_still_subtracted(
    wallet: Wallet, clock: FakeClock
) -> None:
    wallet.figure(BALANCE)
    order = wallet.accepted()

    wallet.settle(order)
    clock.advance(10)
    wallet.figure(BALANCE)

    assert wallet.available == BALANCE - PRICE


def test_what_was_charged_is_booked_and_not_what_was_held(wallet: Wallet) -> None:
    order = wallet.accepted()

    wallet.settle(order, PRICE - 50)

    assert entries(wallet.context, order) == [("hold", PRICE), ("settle", PRICE - 50)]


def test_where_the_provider_names_no_charge_the_held_amount_is_booked(wallet: Wallet) -> None:
    order = wallet.accepted()

    wallet.settle(order)

    assert entries(wallet.context, order) == [("hold", PRICE), ("settle", PRICE)]


def test_a_delivery_is_booked_once(wallet: Wallet) -> None:
    order = wallet.accepted()

    for _ in range(3):
        wallet.settle(order, 6000)
        wallet.end(order)

    assert entries(wallet.context, order) == [("hold", PRICE), ("settle", 6000)]


def test_a_refund_gives_back_once_what_was_charged(wallet: Wallet) -> None:
    order = wallet.accepted()
    wallet.settle(order, 6000)

    wallet.refund(order)
    wallet.refund(order)

    assert entries(wallet.context, order)[1:] == [("settle", 6000), ("refund", 6000)]


def test_nothing_is_refunded_that_was_never_charged(wallet: Wallet) -> None:
    order = wallet.accepted()

    wallet.refund(order)

    assert entries(wallet.context, order) == [("hold", PRICE)]


def test_an_order_has_at_most_one_open_hold(wallet: Wallet) -> None:
    order = wallet.hold()

    with pytest.raises(psycopg.IntegrityError, match="uq_attempts_open"):
        wallet.hold_for(order, name="other")


def test_an_id_is_bought_once_at_an_account_even_after_it_failed(wallet: Wallet) -> None:
    order = wallet.hold()
    wallet.refuse(order)

    with pytest.raises(psycopg.IntegrityError, match="attempts_account_external_id"):
        wallet.hold_for(order)


def test_fifty_threads_reserve_the_money_of_one_order_exactly_once(wallet: Wallet) -> None:
    context, clock = wallet.context, wallet.clock
    wallet.figure(PRICE + PRICE // 2)
    waiting = [receive_one(context) for _ in range(50)]

    def reserve(place: int) -> bool:
        order = waiting[place]
        with context.database.transaction() as session:
            ledger.lock_wallet(session, "main")
            spendable = ledger.available_mills(session, "main")
            is_funded = bool(funds.allocate(spendable, [(order.id, PRICE)]))
            if is_funded:
                names = {order.id: order.external_id}
                ledger.hold(session, "main", {order.id: PRICE}, names, clock.now())
        return is_funded

    reserved = in_threads(50, reserve)

    assert sum(reserved) == 1
    assert wallet.available == PRICE // 2


def test_many_threads_on_one_order_open_one_attempt(wallet: Wallet) -> None:
    context = wallet.context
    order = receive_one(context)
    first = Move(order.id, S.RECEIVED, S.QUOTED, Source.CATALOG)
    with context.database.transaction() as session:
        orders.apply(session, [first], wallet.clock.now())

    def reserve(_: int) -> bool:
        with context.database.transaction() as session:
            move = Move(order.id, S.QUOTED, S.RESERVED, Source.WALLET)
            won = bool(orders.apply(session, [move], wallet.clock.now()))
            if won:
                names = {order.id: order.external_id}
                ledger.hold(session, "main", {order.id: PRICE}, names, wallet.clock.now())
        return won

    assert sum(in_threads(20, reserve)) == 1
    assert len(rows(context, "SELECT 1 FROM attempts")) == 1


def test_the_money_log_cannot_be_rewritten(wallet: Wallet) -> None:
    order = wallet.hold()

    with pytest.raises(Exception, match="append-only"):
        rows(
            wallet.context,
            "UPDATE wallet_entries SET amount_mills = 0 WHERE order_id = %(id)s RETURNING id",
            id=order.id,
        )


Step = Callable[[Wallet, Order], None]
ENDINGS: list[tuple[list[Step], list[str]]] = [
    ([Wallet.refuse], ["hold", "release"]),
    ([Wallet.send, Wallet.confirm, Wallet.settle], ["hold", "settle"]),
    ([Wallet.send, Wallet.confirm, Wallet.settle, Wallet.refund], ["hold", "settle", "refund"]),
    ([Wallet.send, Wallet.confirm, Wallet.end], ["hold", "release"]),
]


@pytest.mark.parametrize(("steps", "kinds"), ENDINGS)
def test_every_hold_is_closed_by_exactly_one_entry(
    wallet: Wallet, clock: FakeClock, steps: list[Step], kinds: list[str]
) -> None:
    order = wallet.hold()
    for step in steps:
        step(wallet, order)
    clock.advance(40)
    wallet.figure(BALANCE)

    assert [kind for kind, _ in entries(wallet.context, order)] == kinds
    assert wallet.available == BALANCE


def test_the_wallet_page_shows_what_is_held_settled_and_free(
    wallet: Wallet, clock: FakeClock
) -> None:
    wallet.accepted(1005)
    wallet.settle(wallet.accepted(2000), 2000)
    clock.advance(1)
    wallet.figure(BALANCE)

    (shown,) = [each.as_json() for each in operations.wallets(wallet.context)]

    assert (shown["held"], shown["settled"]) == (101, 200)
    assert (shown["balance"], shown["available"]) == (10_000, 9_699)


@pytest.mark.parametrize("is_absorbed", [False, True])
def test_the_wallet_page_shows_what_may_be_spent_where_a_charge_is_above_its_hold(
    context: Context, provider: FakeProvider, clock: FakeClock, is_absorbed: bool
) -> None:
    provider.balance_mills = 100_000
    order = accepted(context)
    if is_absorbed:
        clock.advance(60)
        take_figure(context)
    with context.database.transaction() as session:
        said = report(ReportState.PENDING, order.external_id, charged_mills=50_000)
        apply_reports(context, session, "main", {order.id: said}, Source.WEBHOOK)

    (shown,) = operations.wallets(context)

    assert shown.balance is not None
    assert shown.available == available(context) // 10 < shown.balance - 4_000


def test_the_wallet_page_of_a_renamed_account_shows_what_may_be_spent(
    make_context: MakeContext, provider: FakeProvider
) -> None:
    before = make_context(provider)
    accepted(before)
    after = make_context(provider, accounts={"prime": before.settings.accounts["main"]})
    provider.balance_mills = 10_000  # out of the provider's cache
    funds.refresh_wallet(after, "prime")

    shown = {wallet.account: wallet.available for wallet in operations.wallets(after)}

    assert shown["prime"] == available(after, "prime") // 10 == 1_000 - PRICE_CENTS


def test_an_unsent_post_leaves_an_attempt_as_if_it_had_never_been_begun(wallet: Wallet) -> None:
    order = wallet.hold()
    wallet.send(order)

    with wallet.context.database.transaction() as session:
        ledger.not_sent(session, [order.id])

    attempt = attempt_of(wallet.context, order)
    assert (attempt.posts, attempt.unknown_since) == (0, None)


def test_an_attempt_of_unknown_outcome_stays_unknown_when_a_later_post_never_left(
    wallet: Wallet,
) -> None:
    order = wallet.hold()
    wallet.send(order)
    wallet.send(order)

    with wallet.context.database.transaction() as session:
        ledger.not_sent(session, [order.id])

    assert attempt_of(wallet.context, order).unknown_since is not None
