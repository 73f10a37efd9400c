"""How a group of messages is sent to RabbitMQ: of one order one at a time."""

import json

import pytest

from fulfillment.messaging.publishing import Outgoing, _rounds


def of(*orders: str) -> list[Outgoing]:
    """Write a message about each of these orders."""
    return [("order.updated", json.dumps({"externalId": each}).encode(), {}) for each in orders]


@pytest.mark.parametrize(
    ("orders", "rounds"),
    [
        ("", []),
        ("abc", [0, 0, 0]),
        ("aaa", [0, 1, 2]),
        ("abacba", [0, 0, 1, 0, 1, 2]),
    ],
)
def test_a_message_comes_after_those_of_its_order_that_come_before_it(
    orders: str, rounds: list[int]
) -> None:
    assert _rounds(of(*orders)) == rounds


@pytest.mark.parametrize("key", ["order.needs_review", "trade.reminder"])
def test_messages_of_one_order_follow_each_other_whatever_their_keys(key: str) -> None:
    first, second = of("a", "a")

    assert _rounds([first, (key, *second[1:])]) == [0, 1]


@pytest.mark.parametrize("body", [b"", b"text", b"[]", b"{}", b'{"externalId": 5}', b"\xff"])
def test_messages_that_name_no_order_keep_their_order_among_themselves(body: bytes) -> None:
    odd: Outgoing = ("order.updated", body, {})

    assert _rounds([odd, *of("a"), odd, odd]) == [0, 0, 1, 2]
