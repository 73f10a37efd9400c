"""PostgreSQL is stopped, cut off, locked and filled under running processes; the books agree."""

import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import kombu
import psycopg
import pytest

from fulfillment.messaging.store_client import send_checkout
from schemas.messages import CHECKOUT_KEY, STORE_EXCHANGE
from tests.acceptance.driver import until
from tests.faults.ground import ROLE, Ground, breakable
from tests.faults.proxy import is_commit

NoteS = Callable[[str, float], None]


@pytest.fixture
def ground(redis_ground: Ground) -> Ground:
    return redis_ground


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


@contextmanager
def server_setting(ground: Ground, name: str, value: str) -> Iterator[None]:
    ground.sql(f"ALTER SYSTEM SET {name} = {value}")
    ground.sql("SELECT pg_reload_conf()")
    try:
        yield
    finally:
        # The superuser's own session would be read-only too.
        options = "-c default_transaction_read_only=off"
        with psycopg.connect(ground.address, autocommit=True, options=options) as connection:
            connection.execute(f"ALTER SYSTEM RESET {name}")
            connection.execute("SELECT pg_reload_conf()")


@pytest.mark.long
def test_a_read_only_database_refuses_clearly_and_loses_nothing(ground: Ground) -> None:
    with ground.flow(20, gap_s=0.05) as flow:
        ground.until_busy()
        with server_setting(ground, "default_transaction_read_only", "on"):
            until("refusals", lambda: flow.answers[503] >= 5)

    ground.assert_settled()


@pytest.mark.long
def test_a_server_with_too_few_connections_delays_and_loses_nothing(ground: Ground) -> None:
    with ground.flow(20, gap_s=0.05):
        ground.until_busy()
        ground.sql(f"ALTER ROLE {ROLE} CONNECTION LIMIT 2")
        ground.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %(role)s",
            role=ROLE,
        )
        time.sleep(5)
        ground.sql(f"ALTER ROLE {ROLE} CONNECTION LIMIT -1")

    ground.assert_settled()


@pytest.mark.long
def test_a_lock_on_everything_is_answered_in_time_and_over_when_it_is_over(
    ground: Ground,
) -> None:
    with psycopg.connect(ground.address) as holder:
        holder.execute("LOCK TABLE orders, webhook_deliveries IN ACCESS EXCLUSIVE MODE")
        with ground.flow(10, gap_s=0.05) as flow:
            until("refusals", lambda: flow.answers[503] >= 2, 30)
            holder.rollback()

    assert flow.slowest_s < 10
    ground.assert_settled()


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_full_disk_stops_and_recovers_without_half_of_anything(tmp_path: Path) -> None:
    """On a file system in memory of its own, which only root can mount."""
    mount, home = shutil.which("mount"), tmp_path / "small"
    home.mkdir(mode=0o755)
    if os.geteuid() or mount is None:
        pytest.skip("only root can mount the small file system that is to be filled")
    options = "size=200m,mode=0700"
    command = [mount, "-t", "tmpfs", "-o", options, "tmpfs", str(home)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a file system")
    try:
        with breakable(home, seed=15) as ground:
            filler = home / "filler"
            with ground.flow(30, gap_s=0.1) as flow:
                ground.until_busy()
                with filler.open("wb") as file:
                    free = os.statvfs(home).f_bavail * os.statvfs(home).f_frsize
                    os.posix_fallocate(file.fileno(), 0, free - 64 * 1024)
                until("refusals", lambda: flow.answers[503] >= 3, 30)
                filler.unlink()
            ground.assert_settled()
    finally:
        subprocess.run(["umount", "--lazy", str(home)], check=False)  # noqa: S607
