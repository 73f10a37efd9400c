"""A process whose clock is far ahead for a moment, and which is dead then, holds nobody up."""

from dataclasses import replace
from datetime import timedelta

from fulfillment.services import dispatch, invariants, standin, sweep
from fulfillment.services.context import Context
from fulfillment.store import leases, orders
from schemas.enums import OrderStatus as S
from schemas.provider import ReportState
from tests.support import FakeClock, FakeProvider, again, receive_one, run_chain, run_ticks


def test_what_it_took_and_put_off_comes_to_others(
    context: Context, provider: FakeProvider, clock: FakeClock
) -> None:
    month = clock.now() + timedelta(days=30)
    ahead = replace(context, clock=FakeClock(month), next_beats={})
    submit_by = (month + timedelta(days=30)).isoformat()
    followed = receive_one(context)
    run_chain(context)
    with ahead.database.transaction() as session:
        orders.set_due(session, [followed.id], next_poll_at=month)
        leases.acquire(session, "outbox.relay", "dead", month, month + timedelta(seconds=30))
    stuck = receive_one(context, submitBy=submit_by)
    assert dispatch.dispatch(ahead, "main") is not None
    sweep.resume_stuck(ahead)
    later = receive_one(context, submitBy=submit_by)

    run_chain(context)
    is_sold = again(context, later).status is S.ACCEPTED
    is_helped = standin.is_wanted(context)
    with context.database.transaction() as session:
        now = clock.now()
        is_leased = leases.acquire(session, "outbox.relay", "new", now, now + timedelta(seconds=30))
    invariants.check(context)
    clock.advance(31)
    provider.says(followed.external_id, ReportState.COMPLETED, charged_mills=6120)
    run_ticks(context)

    assert (is_sold, is_helped, is_leased) == (True, True, True)
    assert again(context, stuck).status is S.ACCEPTED
    assert again(context, followed).status is S.COMPLETED
    assert len(provider.bodies) == 3
