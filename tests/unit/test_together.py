"""Threads that come at once are served by one call, and a lone one waits for nobody."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from fulfillment.web.together import Together
from tests.support import until

MOST = 5


class Act:
    """Doubles numbers; stands still while it is told to, and fails for groups with a 13."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.goes_on = threading.Event()

    def __call__(self, numbers: Sequence[int]) -> list[int]:
        self.groups.append(list(numbers))
        assert self.goes_on.wait(10)
        if 13 in numbers:
            raise ValueError(13)
        return [2 * number for number in numbers]


@pytest.fixture
def act() -> Act:
    return Act()


def test_one_that_comes_alone_is_served_at_once_and_alone(act: Act) -> None:
    act.goes_on.set()
    together = Together(act, MOST)

    assert [together(number) for number in (1, 2)] == [2, 4]
    assert act.groups == [[1], [2]]


def test_those_that_come_meanwhile_go_as_one_of_limited_size_and_each_gets_its_own(
    act: Act,
) -> None:
    together = Together(act, MOST)
    with ThreadPoolExecutor(13) as pool:
        first = pool.submit(together, 0)
        until(lambda: act.groups)
        others = [pool.submit(together, number) for number in range(1, 13)]
        until(lambda: len(together._waiting) == len(others))
        act.goes_on.set()

        assert first.result(10) == 0
        assert [each.result(10) for each in others] == [2 * n for n in range(1, 13)]
    assert [len(group) for group in act.groups] == [1, MOST, MOST, 2]
    assert sorted(number for group in act.groups for number in group) == list(range(13))


def test_an_error_is_everybodys_of_the_group_and_the_next_one_is_served(act: Act) -> None:
    together = Together(act, MOST)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(together, 0)
        until(lambda: act.groups)
        failing = [pool.submit(together, number) for number in (13, 1)]
        until(lambda: len(together._waiting) == len(failing))
        act.goes_on.set()
        first.result(10)
        errors = [each.exception(10) for each in failing]

    assert [type(error) for error in errors] == [ValueError, ValueError]
    assert together(4) == 8


def test_threads_without_end_are_all_served(act: Act) -> None:
    act.goes_on.set()
    together = Together(act, MOST)
    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(together, range(100, 2100)))

    assert results == [2 * number for number in range(100, 2100)]
