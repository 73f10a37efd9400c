"""Where no beat ticks, workers do, one at a time; and it stays to be seen that no beat ticks."""

from fulfillment.services import operations, pulse, standin, sweep
from fulfillment.services.context import Context
from tests.support import FakeClock, in_threads


def test_nobody_stands_in_for_a_beat_that_ticks(context: Context, clock: FakeClock) -> None:
    sweep.resume_stuck(context)
    clock.advance(9)

    assert not standin.is_wanted(context)


def test_of_many_workers_one_at_a_time_stands_in_for_a_dead_beat(
    context: Context, clock: FakeClock
) -> None:
    sweep.resume_stuck(context)
    clock.advance(11)
    first = in_threads(8, lambda _: standin.is_wanted(context))
    at_once = standin.is_wanted(context)
    clock.advance(standin.EVERY_S)
    second = in_threads(8, lambda _: standin.is_wanted(context))

    assert (first.count(True), at_once, second.count(True)) == (1, False, 1)


def test_ticks_of_a_worker_do_not_hide_that_the_beat_is_dead(
    context: Context, clock: FakeClock
) -> None:
    sweep.resume_stuck(context)
    clock.advance(20)
    sweep.resume_stuck(context, pulse.STAND_IN)

    (ticks,) = (each for each in operations.check_readiness(context) if each.name == "ticks")

    assert not ticks.is_ok
    assert ticks.detail.endswith("see their logs; the workers stand in, more slowly")
    assert standin.is_wanted(context)
