"""Claims and leases: an order belongs to one worker at a time, and a dead one is taken over."""

from datetime import timedelta

import pytest

from fulfillment.services import dispatch, submission, sweep
from fulfillment.services.context import Context
from fulfillment.store import claims, leases
from schemas.enums import OrderStatus as S
from schemas.messages import Batch
from tests.conftest import MakeContext
from tests.support import (
    FakeClock,
    FakeProvider,
    again,
    checkout,
    gather,
    in_threads,
    receive,
    receive_one,
    rows,
    run_chain,
    run_sweep,
)


def claim(context: Context, name: str, limit: int = 100, lease_s: float = 30) -> list[int]:
    until = context.now() + timedelta(seconds=lease_s)
    with context.database.transaction() as session:
        claimed = claims.claim_waiting(session, "main", name, context.now(), until, limit)
        return [order.id for order in claimed]


def take_over(context: Context, ids: list[int], old: str, new: str) -> list[int]:
    until = context.now() + timedelta(seconds=30)
    with context.database.transaction() as session:
        return [order.id for order in claims.take_over(session, ids, old, new, until)]


def renew(context: Context, ids: list[int], name: str) -> int:
    until = context.now() + timedelta(seconds=30)
    with context.database.transaction() as session:
        return len(claims.renew(session, ids, name, until))


def test_eight_dispatchers_put_each_order_into_exactly_one_batch(context: Context) -> None:
    placed = receive(context, *(checkout() for _ in range(100)))

    claimed = in_threads(8, lambda i: claim(context, f"{i}/claimed", limit=30))

    ids = sorted(order_id for batch in claimed for order_id in batch)
    assert ids == sorted(order.id for order in placed)


def test_one_dispatcher_of_many_gathers_at_a_time(context: Context) -> None:
    receive(context, *(checkout() for _ in range(5)))

    batches = in_threads(8, lambda _: dispatch.dispatch(context, "main"))

    found = [batch for batch in batches if batch is not None]
    assert len(found) == 1
    assert len(found[0]["ids"]) == 5


def test_orders_that_come_up_again_and_again_are_in_nobodys_way(
    context: Context, clock: FakeClock
) -> None:
    older = receive(context, *(checkout() for _ in range(3)))
    clock.advance(1)
    newer = receive_one(context)
    claim(context, "first", limit=3)
    clock.advance(1)
    with context.database.transaction() as session:
        claims.release(session, [order.id for order in older], "first", clock.now())

    assert claim(context, "second", limit=1) == [newer.id]


def test_eight_workers_on_the_same_orders_buy_each_once(
    context: Context, provider: FakeProvider
) -> None:
    placed = receive(context, *(checkout() for _ in range(20)))

    def work(_: int) -> None:
        for _ in range(10):
            run_chain(context)
            run_sweep(context)

    in_threads(8, work)

    run_sweep(context)
    assert len(provider.bodies) == len(placed)
    assert {again(context, order).status for order in placed} == {S.ACCEPTED}


def test_eight_copies_of_one_step_buy_each_order_once(
    context: Context, provider: FakeProvider
) -> None:
    receive(context, *(checkout() for _ in range(10)))
    batch = gather(context)
    assert batch is not None

    did = in_threads(8, lambda _: submission.submit_orders(context, batch))

    assert [len(found["ids"]) for found in did if found] == [10]
    assert len(provider.bodies) == 10


def test_eight_sweeps_hand_out_each_stuck_order_once(context: Context, clock: FakeClock) -> None:
    placed = receive(context, *(checkout() for _ in range(10)))
    assert gather(context) is not None
    clock.advance(31)

    found = in_threads(8, lambda _: sweep.resume_stuck(context))

    ids = sorted(i for each in found for batch in each.batches for i in batch["ids"])
    assert ids == [order.id for order in placed]


def test_the_oldest_orders_are_claimed_first(context: Context) -> None:
    placed = receive(context, *(checkout() for _ in range(5)))

    assert claim(context, "a/claimed", limit=3) == [order.id for order in placed[:3]]
    assert claim(context, "b/claimed", limit=3) == [order.id for order in placed[3:]]


def test_a_claim_that_runs_is_left_alone_and_a_lapsed_one_is_taken(
    context: Context, clock: FakeClock
) -> None:
    order = receive_one(context)
    claim(context, "dead/claimed")

    clock.advance(29)
    while_it_runs = claim(context, "next/claimed")
    clock.advance(1)
    when_lapsed = claim(context, "next/claimed")

    assert while_it_runs == []
    assert when_lapsed == [order.id]


def test_a_step_takes_its_orders_over_once(context: Context) -> None:
    order = receive_one(context)
    ids = claim(context, "t/claimed")

    once = take_over(context, ids, "t/claimed", "t/catalog")
    twice = take_over(context, ids, "t/claimed", "t/catalog")

    assert (once, twice) == ([order.id], [])


def test_a_step_takes_over_only_what_is_still_its_own(context: Context) -> None:
    first, second = receive(context, checkout(), checkout())
    ids = claim(context, "t/claimed")
    rows(context, "UPDATE orders SET claim = 'x/claimed' WHERE id = %(i)s RETURNING 1", i=first.id)

    assert take_over(context, ids, "t/claimed", "t/catalog") == [second.id]


def test_a_renewed_claim_lasts_a_lease_from_now_on(context: Context, clock: FakeClock) -> None:
    receive_one(context)
    ids = claim(context, "t/claimed")

    clock.advance(29)
    held = renew(context, ids, "t/claimed")
    clock.advance(29)

    assert held == 1
    assert claim(context, "next/claimed") == []


def test_a_claim_that_somebody_else_has_cannot_be_renewed(
    context: Context, clock: FakeClock
) -> None:
    receive_one(context)
    ids = claim(context, "dead/claimed")
    clock.advance(30)
    claim(context, "next/claimed")

    assert renew(context, ids, "dead/claimed") == 0


def test_an_order_given_back_is_due_when_it_was_said(context: Context, clock: FakeClock) -> None:
    order = receive_one(context)
    ids = claim(context, "t/claimed")

    with context.database.transaction() as session:
        due_at = context.now() + timedelta(seconds=5)
        claims.release(session, ids, "t/claimed", due_at)
    at_once = claim(context, "u/claimed")
    clock.advance(5)

    assert at_once == []
    assert claim(context, "u/claimed") == [order.id]


def test_only_its_holder_can_give_an_order_back(context: Context) -> None:
    order = receive_one(context)
    ids = claim(context, "t/claimed")

    with context.database.transaction() as session:
        claims.release(session, ids, "x/claimed", context.now())

    assert again(context, order).claim == "t/claimed"


def acquire(context: Context, holder: str, name: str = "gather:main") -> bool:
    until = context.now() + timedelta(seconds=30)
    with context.database.transaction() as session:
        return leases.acquire(session, name, holder, context.now(), until)


def test_a_lease_has_one_holder(context: Context) -> None:
    got = in_threads(8, lambda i: acquire(context, f"holder-{i}"))

    assert got.count(True) == 1


def test_each_account_has_a_lease_of_its_own(context: Context) -> None:
    assert acquire(context, "a", "gather:main")
    assert acquire(context, "b", "gather:second")


def test_a_lease_is_renewed_by_its_holder_and_taken_when_it_lapsed(
    context: Context, clock: FakeClock
) -> None:
    acquire(context, "a")
    clock.advance(20)
    renewed = acquire(context, "a")
    clock.advance(20)
    too_early = acquire(context, "b")
    clock.advance(10)

    assert (renewed, too_early) == (True, False)
    assert acquire(context, "b")


def test_only_its_holder_gives_a_lease_up(context: Context) -> None:
    acquire(context, "a")

    with context.database.transaction() as session:
        leases.give_up(session, "gather:main", "b")

    assert not acquire(context, "b")


def test_what_came_in_while_a_batch_gathered_is_the_next_batch(
    context: Context, provider: FakeProvider
) -> None:
    early = receive_one(context)
    first = dispatch.dispatch(context, "main")
    late = receive_one(context)

    second_while_first_gathers = dispatch.dispatch(context, "main")

    assert first is not None
    assert first["ids"] == [early.id]
    assert second_while_first_gathers is None
    assert again(context, late).claim is None


def test_the_next_batch_gathers_while_the_first_is_submitted(
    context: Context, provider: FakeProvider
) -> None:
    receive_one(context)
    first = gather(context)
    late = receive_one(context)

    second = dispatch.dispatch(context, "main")

    assert first is not None
    assert second is not None
    assert second["ids"] == [late.id]


def test_a_batch_is_no_larger_than_the_limit(make_context: MakeContext) -> None:
    context = make_context(FakeProvider(), batch_limit=3)
    receive(context, *(checkout() for _ in range(5)))

    batch = dispatch.dispatch(context, "main")

    assert batch is not None
    assert len(batch["ids"]) == 3


def test_a_batch_names_its_orders_and_never_their_state(context: Context) -> None:
    order = receive_one(context)

    batch = dispatch.dispatch(context, "main")

    assert batch is not None
    assert set(batch) == Batch.__required_keys__
    assert (batch["account"], batch["ids"], batch["names"]) == (
        "main",
        [order.id],
        [order.external_id],
    )


@pytest.mark.parametrize("count", [1, 7])
def test_an_account_hears_of_its_own_orders_only(make_context: MakeContext, count: int) -> None:
    context = make_context(FakeProvider(), accounts={"main": {}, "second": {}})
    mine = receive(context, *(checkout() for _ in range(count)))
    other = receive_one(context, account="second")

    batch = dispatch.dispatch(context, "second")

    assert batch is not None
    assert batch["ids"] == [other.id]
    assert {again(context, order).claim for order in mine} == {None}
