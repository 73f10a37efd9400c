"""Slots that blocks of a process share: never more than there are, and none is lost."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from fulfillment.services.threads import Threads


def test_shares_of_one_name_are_parts_of_the_same_slots() -> None:
    threads = Threads()
    with threads.share("submit main", 4) as first, threads.share("submit main", 4) as second:
        assert first.take(3) == 3
        assert second.take(3) == 1
        assert second.take(3) == 0
        first.give_back(2)
        assert second.take(3) == 2


def test_slots_of_another_name_are_others() -> None:
    threads = Threads()
    with threads.share("submit main", 1) as first, threads.share("submit other", 1) as second:
        assert (first.take(1), second.take(1)) == (1, 1)


def test_a_block_that_fails_gives_back_what_it_has() -> None:
    threads = Threads()

    def fail() -> None:
        with threads.share("s", 2) as share:
            share.take(2)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()

    with threads.share("s", 2) as share:
        assert share.take(2) == 2


def test_what_is_given_back_twice_counts_once() -> None:
    threads = Threads()
    with threads.share("s", 2) as share:
        share.take(1)
        share.give_back()
        share.give_back()
        assert share.take(5) == 2
    share.give_back(2)

    with threads.share("s", 2) as share:
        assert share.take(5) == 2


def test_who_waits_goes_on_when_a_slot_is_given_back() -> None:
    threads = Threads()
    went_on = threading.Event()

    def wait() -> None:
        with threads.share("s", 1) as share:
            while not share.take(1):
                share.wait()
            went_on.set()

    with threads.share("s", 1) as share:
        share.take(1)
        waiter = threading.Thread(target=wait)
        waiter.start()
        assert not went_on.wait(0.05)
        share.give_back()
        assert went_on.wait(10)
    waiter.join(10)


def test_many_threads_never_have_more_than_there_are() -> None:
    threads, lock = Threads(), threading.Lock()
    size, held, most = 5, 0, 0

    def work(turns: int) -> None:
        nonlocal held, most
        with threads.share("s", size) as share:
            for turn in range(turns):
                while not (taken := share.take(1 + turn % 3)):
                    share.wait()
                with lock:
                    held += taken
                    most = max(most, held)
                with lock:
                    held -= taken
                share.give_back(taken)

    with ThreadPoolExecutor(8) as executor:
        list(executor.map(work, [200] * 8))

    assert held == 0
    assert 0 < most <= size
    with threads.share("s", size) as share:
        assert share.take(99) == size


def test_of_blocks_of_one_name_the_first_hears_that_it_is_the_only_one() -> None:
    threads = Threads()

    with threads.named("a") as first:
        with threads.named("a") as second, threads.named("b") as other:
            assert (first, second, other) == (True, False, True)
        with threads.named("a") as third:
            assert not third
    with pytest.raises(LookupError), threads.named("a"):
        raise LookupError
    with threads.named("a") as last:
        assert last
