"""What Flower and logs get to see of a task's arguments."""

from tasks.base import shown

EVENT = {"externalId": "order_1", "tradeUrl": "https://steamcommunity.com/?token=canaryTk"}


def test_a_batch_shows_its_orders_names() -> None:
    batch = {"account": "main", "token": "t", "ids": [1, 2], "names": ["a.1", "b-2"]}

    assert shown([batch], is_foreign=False) == "main: a.1 b-2"


def test_a_foreign_event_shows_its_id_and_nothing_else() -> None:
    assert shown([EVENT], is_foreign=True) == "externalId=order_1 ***"
    assert shown([EVENT, "canaryTk"], is_foreign=True) == "externalId=order_1 ***, ***"
    assert shown(["canaryTk"], is_foreign=True) == "***"
    assert shown([EVENT | {"externalId": "x canaryTk"}], is_foreign=True) == "***"
    assert shown({"any": "canaryTk"}, is_foreign=True) == "***"
