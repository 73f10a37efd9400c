"""PostgreSQL is stopped, cut off, locked and filled under running processes; the books agree."""

import random
import time
from collections.abc import Callable, Iterator

import kombu
import pytest

from fulfillment.messaging.store_client import send_checkout
from schemas.messages import CHECKOUT_KEY, STORE_EXCHANGE
from tests.acceptance.driver import until
from tests.faults.ground import ROLE, Ground, breakable
from tests.faults.proxy import is_commit

NoteS = Callable[[str, float], None]


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    with breakable(tmp_path_factory.mktemp("database"), seed=11) as made:
        yield made


def test_an_immediate_stop_in_the_middle_of_batches_costs_a_moment(
    ground: Ground, note_s: NoteS
) -> None:
    with ground.flow(40, gap_s=0.1) as flow:
        for _ in range(2):
            ground.until_busy()
            note_s("PostgreSQL stopped at once", ground.recovery_s(ground.stop_database))

    ground.assert_settled()
    assert flow.answers[503]


def test_commits_whose_answers_are_lost_are_found_done(ground: Ground) -> None:
    before = ground.database.lost_answers

    with ground.database.lose_answers(is_commit, chance=0.05), ground.flow(40) as flow:
        until("twenty lost answers", lambda: ground.database.lost_answers >= before + 20)

    ground.assert_settled()
    assert flow.answers.keys() <= {200, 202, 503}


@pytest.mark.long
def test_terminated_backends_leave_nothing_half_done(ground: Ground) -> None:
    source = random.Random(5)
    killed = 0

    with ground.flow(40, gap_s=0.05) as flow:
        while flow.is_alive():
            busy = ground.sql(
                "SELECT pid FROM pg_stat_activity WHERE usename = %(role)s", role=ROLE
            )
            for row in source.sample(busy, min(2, len(busy))):
                killed += ground.one("SELECT pg_terminate_backend(%(pid)s)", pid=row["pid"])
            time.sleep(0.05)

    ground.assert_settled()
    assert killed > 20


def test_checkouts_that_come_while_the_database_is_away_wait_for_it(ground: Ground) -> None:
    events = [ground.driver.checkout() for _ in range(8)]
    broker = ground.broker_url
    ground.database.down()

    for event in events[:4]:
        send_checkout(broker, event)
    with kombu.Connection(broker) as connection:
        producer = connection.Producer(exchange=kombu.Exchange(STORE_EXCHANGE, type="topic"))
        for event in events[4:]:
            producer.publish(event, routing_key=CHECKOUT_KEY)
    until("tasks that met no database", lambda: "checkout.receive" in ground.driver.logs())
    ground.database.up()

    ground.ids += [event["externalId"] for event in events]
    ground.assert_settled()
