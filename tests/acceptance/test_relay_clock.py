"""A relay whose machine's clock is ahead waits for its lease from its first turn on."""

import threading
from dataclasses import replace
from datetime import timedelta
from unittest import mock

import pytest

from fulfillment.messaging.relay import OutboxRelay
from fulfillment.services.context import Context
from fulfillment.store import leases
from tests.conftest import MakeContext
from tests.integration.test_clocks_apart import MachineClock
from tests.support import FakeProvider, checkout, receive, rows, until


@pytest.mark.parametrize("ahead_s", [0, 1.9])
def test_a_relay_that_has_just_begun_publishes_nothing_while_another_has_the_lease(
    make_context: MakeContext, provider: FakeProvider, broker: str, ahead_s: float
) -> None:
    context: Context = make_context(provider, broker_url=broker)
    receive(context, checkout())
    with context.database.transaction() as session:
        now = context.now()
        leases.acquire(session, "outbox.relay", "another", now, now + timedelta(seconds=20))
    own = replace(context, clock=MachineClock(ahead_s), clock_seen=None, next_beats={})
    stop = threading.Event()
    relay = threading.Thread(target=OutboxRelay(own, stop).run)

    with mock.patch.object(OutboxRelay, "_note_audience") as turned:  # the end of each turn
        relay.start()
        until(lambda: turned.call_count >= 4)
        stop.set()
        relay.join()

    assert len(rows(context, "SELECT 1 FROM outbox_messages")) == 1
