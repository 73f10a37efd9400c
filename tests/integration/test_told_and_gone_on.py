"""An order that may have gone on to an account that is gone from the settings is not bought."""

import pytest

from fulfillment.services import routes
from fulfillment.services.context import Context
from schemas.enums import OrderStatus as S
from schemas.provider import ReportState as R
from tests.conftest import MakeContext
from tests.integration.telling import DOWN, NO, bought, one, pass_time, place, say, without
from tests.support import FakeClock, FakeProvider, again, run_chain


@pytest.mark.parametrize("teller", ["main", "backup"])
@pytest.mark.parametrize("word", [R.FAILED, R.SENT])
def test_who_told_of_it_and_does_not_have_it_may_have_let_it_go_on_to_who_is_gone(
    make_context: MakeContext,
    routed: Context,
    providers: dict[str, FakeProvider],
    clock: FakeClock,
    word: R,
    teller: str,
) -> None:
    order = one(routed, "all")
    providers["third"].says(order.external_id, R.SENT)
    if word is R.FAILED:
        providers[teller].says(order.external_id, R.FAILED)
    say(routed, teller, order, word)

    pass_time(without(make_context, providers, "third"), clock, 30, 10)

    assert bought(providers) == {}


@pytest.mark.parametrize("is_left", [False, True])
def test_who_is_gone_while_it_leaves_its_account_is_a_fallback_all_the_same(
    make_context: MakeContext,
    routed: Context,
    providers: dict[str, FakeProvider],
    clock: FakeClock,
    is_left: bool,
) -> None:
    """Backup told of it, and the third has it."""
    order = one(routed, "all")
    providers["third"].says(order.external_id, R.SENT)
    providers["backup"].reads_fail(DOWN)
    say(routed, "backup", order, None)
    providers["backup"].reads_fail(None)
    meantime = without(make_context, providers, "third")
    if is_left:
        providers["main"].reads_fail(DOWN)
        one(meantime, "main")
        run_chain(meantime)
        routes.leave_paused(meantime)
        assert place(meantime, order) == (S.RECEIVED, "backup")
        assert again(meantime, order).fallbacks == ("third",)
    pass_time(meantime, clock, 15, 20)
    pass_time(routed, clock, 15, 20)

    assert bought(providers) == {}


def test_who_was_gone_while_its_account_refused_it_is_heard_once_it_is_back(
    make_context: MakeContext,
    routed: Context,
    providers: dict[str, FakeProvider],
    clock: FakeClock,
) -> None:
    order = one(routed, "all")
    providers["third"].says(order.external_id, R.SENT)
    providers["main"].fail_purchase(NO)
    meantime = without(make_context, providers, "third")
    run_chain(meantime)
    assert place(meantime, order) == (S.SUBMITTING, "backup")

    say(routed, "third", order, R.SENT)
    pass_time(routed, clock, 15, 20)

    assert bought(providers) == {"main": 1}
    assert place(routed, order) == (S.SENT, "third")
