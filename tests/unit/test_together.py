"""Calls that come at once are served by one, and a lone one waits for nobody."""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from fulfillment.web.together import Together

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


@pytest.fixture
def together(act: Act) -> Iterator[Together[int, int]]:
    with ThreadPoolExecutor(2) as executor:
        yield Together(act, MOST, executor)
        act.goes_on.set()


async def begin(together: Together[int, int], numbers: Sequence[int]) -> list[asyncio.Task[int]]:
    """Call for each number, and wait until every call is on its way or waits."""
    tasks = [asyncio.create_task(together(number)) for number in numbers]
    await asyncio.sleep(0)
    return tasks


def test_one_that_comes_alone_is_served_at_once_and_alone(
    act: Act, together: Together[int, int]
) -> None:
    act.goes_on.set()

    async def run() -> list[int]:
        return [await together(number) for number in (1, 2)]

    assert asyncio.run(run()) == [2, 4]
    assert act.groups == [[1], [2]]


def test_those_that_come_meanwhile_go_as_one_of_limited_size_and_each_gets_its_own(
    act: Act, together: Together[int, int]
) -> None:
    async def run() -> list[int]:
        tasks = await begin(together, range(13))
        act.goes_on.set()
        return await asyncio.gather(*tasks)

    assert asyncio.run(run()) == [2 * n for n in range(13)]
    assert act.groups == [[0], [1, 2, 3, 4, 5], [6, 7, 8, 9, 10], [11, 12]]


def test_an_error_is_everybodys_of_the_group_and_the_next_one_is_served(
    act: Act, together: Together[int, int]
) -> None:
    async def run() -> None:
        first, *failing = await begin(together, (0, 13, 1))
        act.goes_on.set()
        assert await first == 0
        errors = await asyncio.gather(*failing, return_exceptions=True)
        assert [type(error) for error in errors] == [ValueError, ValueError]
        assert await together(4) == 8

    asyncio.run(run())


def test_who_gives_up_before_the_group_begins_is_never_acted_on(
    act: Act, together: Together[int, int]
) -> None:
    async def run() -> None:
        first, second, third = await begin(together, (0, 1, 2))
        second.cancel()
        act.goes_on.set()
        assert [await first, await third] == [0, 4]
        assert second.cancelled()

    asyncio.run(run())
    assert act.groups == [[0], [2]]


def test_who_gives_up_meanwhile_takes_nothing_from_the_others(
    act: Act, together: Together[int, int]
) -> None:
    async def run() -> None:
        first, second = await begin(together, (0, 1))
        first.cancel()
        await asyncio.sleep(0)
        act.goes_on.set()
        assert await second == 2

    asyncio.run(run())
    assert act.groups == [[0], [1]]


def test_calls_without_end_are_all_served(act: Act, together: Together[int, int]) -> None:
    act.goes_on.set()

    async def run() -> list[int]:
        return await asyncio.gather(*(together(number) for number in range(100, 2100)))

    assert asyncio.run(run()) == [2 * number for number in range(100, 2100)]
    assert sum(len(group) for group in act.groups) == 2000
