"""A word that comes right after an order was looked for counts, by whichever machine's clock."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import pytest

from fulfillment.services.context import Context
from fulfillment.store.models import Order
from schemas.enums import OrderStatus as S
from schemas.messages import Batch
from schemas.provider import ReportState as R
from tests.integration.telling import bought, one, pass_time, place, say
from tests.support import FakeClock, FakeProvider, again, gather, submit


@dataclass
class ClockBehind:
    """The clock of a machine that is behind the others'."""

    others: FakeClock
    by_s: float

    def now(self) -> datetime:
        return self.others.now() - timedelta(seconds=self.by_s)

    def monotonic(self) -> float:
        return self.others.monotonic()


def on_machine_behind(context: Context, clock: FakeClock, by_s: float) -> Context:
    return replace(context, clock=ClockBehind(clock, by_s), next_beats={}, _budgets={})


def held_after_a_search(context: Context, clock: FakeClock, order: Order) -> Batch:
    """Let time pass until the order was looked for, in vain; give the batch that is to buy it."""
    batch = None
    while batch is None:
        clock.advance(1)
        batch = gather(context)
    found = again(context, order)
    assert found.searched_at is not None
    assert found.status is S.RESERVED
    return batch


@pytest.mark.parametrize("behind_s", [0.0, 1.9])
@pytest.mark.parametrize(
    ("route", "first_teller", "first_word", "teller"),
    [
        pytest.param("main", "main", None, "main", id="its own account"),
        pytest.param("all", "third", R.FAILED, "backup", id="a fallback"),
    ],
)
def test_who_tells_of_an_order_that_was_just_looked_for_has_it_looked_for_again(
    routed: Context,
    providers: dict[str, FakeProvider],
    clock: FakeClock,
    route: str,
    first_teller: str,
    first_word: R | None,
    teller: str,
    behind_s: float,
) -> None:
    web = on_machine_behind(routed, clock, behind_s)
    order = one(routed, route)
    say(web, first_teller, order, first_word)
    batch = held_after_a_search(routed, clock, order)
    clock.advance(1)

    providers[teller].says(order.external_id, R.SENT)
    say(web, teller, order, R.SENT)
    submit(routed, batch)
    pass_time(routed, clock, 15, 20)

    assert bought(providers) == {}
    assert place(routed, order) == (S.SENT, teller)
