"""The broker is wiped, restarted, cut off and filled under running processes; the books agree."""

import os
import pickle
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import kombu
import pytest

from fulfillment.broker import complaint
from schemas import messages
from tests.acceptance.driver import until
from tests.faults.brokers import CHAIN, FOLLOW, INTAKE, Broker, OwnRedis, RealRabbitMQ
from tests.faults.ground import Ground, breakable
from tests.servers import own_vhost

NoteS = Callable[[str, float], None]
#: How long a broker is away that is away for long.
AWAY_S = float(os.environ.get("FULFILLMENT_TEST_AWAY_S", "600"))
#: What a process may write of it, a minute.
LOG_BYTES = 50_000


@pytest.fixture(scope="module")
def rabbitmq_ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    home = tmp_path_factory.mktemp("rabbitmq")
    with own_vhost() as (url, vhost), breakable(home, url, vhost=vhost, seed=13) as made:
        yield made


@pytest.fixture(params=["redis_ground", "rabbitmq_ground"], ids=["redis", "rabbitmq"])
def ground(request: pytest.FixtureRequest) -> Ground:
    made = request.getfixturevalue(request.param)
    assert isinstance(made, Ground)
    return made


@pytest.fixture
def broker(ground: Ground) -> Broker:
    if ground.redis is not None:
        return OwnRedis(ground.redis, ground.broker_url)
    return RealRabbitMQ(ground.broker_url, ground.vhost)


def on_redis(broker: Broker) -> OwnRedis:
    if not isinstance(broker, OwnRedis):
        pytest.skip("done to a Redis that the test started itself; RabbitMQ is others' too")
    return broker


@pytest.mark.long
def test_orders_outlive_messages_that_are_lost_again_and_again(
    ground: Ground, broker: Broker
) -> None:
    with ground.flow(30, gap_s=0.1) as flow:
        while flow.is_alive():
            broker.wipe()
            time.sleep(0.3)

    ground.assert_settled()


def test_a_wiped_redis_knows_soon_again_where_checkouts_go(ground: Ground, broker: Broker) -> None:
    server = on_redis(broker)
    server.wipe()

    def is_bound() -> bool:
        """Say whether the intake's own queue is bound again: a store's may be there before it."""
        bound = server.client.smembers(f"_kombu.binding.{messages.STORE_EXCHANGE}")
        return any(messages.CHECKOUT_QUEUE in str(each) for each in bound)

    until("the binding", is_bound)
    event = ground.driver.checkout()
    server.send_checkout(event)

    assert ground.driver.wait_final([event["externalId"]]).popitem()[1] == "completed"


class Store:
    """A store's queue of updates, and what was heard of each order: sequences, each once."""

    def __init__(self, url: str) -> None:
        exchange = kombu.Exchange(messages.STORE_EXCHANGE, type="topic", durable=True)
        self._queue = kombu.Queue("store.updates", exchange, routing_key="order.#", durable=True)
        self._url = url
        self._stop = threading.Event()
        self._heard: dict[str, list[int]] = {}
        self.connections = 0

    def declare(self) -> None:
        with kombu.Connection(self._url) as connection:
            self._queue(connection.default_channel).declare()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Consume beside the block, on one connection for as long as it lives."""
        self._stop.clear()
        thread = threading.Thread(target=self._listen, daemon=True)
        thread.start()
        try:
            until("a store that listens", lambda: self.connections)
            yield
        finally:
            self._stop.set()
            thread.join(10)

    def heard(self, external_ids: Iterable[str]) -> dict[str, list[int]]:
        return {name: list(self._heard.get(name, [])) for name in external_ids}

    def _listen(self) -> None:
        with (
            kombu.Connection(self._url) as connection,
            connection.Consumer([self._queue], on_message=self._take),
        ):
            self.connections += 1
            while not self._stop.is_set():
                with suppress(TimeoutError):
                    connection.drain_events(timeout=0.2)

    def _take(self, message: kombu.Message) -> None:
        update: Any = message.payload
        known = self._heard.setdefault(update["externalId"], [])
        if update["sequence"] not in known:
            known.append(update["sequence"])
        message.ack()


def told(ground: Ground, ids: Iterable[str]) -> dict[str, list[int]]:
    """Give what the store must hear of these orders: the events of their logs that are news."""
    rows = ground.sql(
        "SELECT external_id, e.sequence FROM orders o JOIN order_events e ON e.order_id = o.id "
        "WHERE external_id = ANY(%(ids)s) AND from_status IS DISTINCT FROM to_status "
        "ORDER BY o.id, e.sequence",
        ids=list(ids),
    )
    found: dict[str, list[int]] = {}
    for row in rows:
        found.setdefault(row["external_id"], []).append(row["sequence"])
    return found


def has_heard(store: Store, ground: Ground, ids: Iterable[str]) -> bool:
    heard, news = store.heard(ids), told(ground, ids)
    return all(set(news[name]) <= set(heard[name]) for name in news)


def test_a_store_whose_connection_lives_hears_of_orders_after_a_wipe_and_a_new_intake(
    ground: Ground, broker: Broker
) -> None:
    server = on_redis(broker)
    store = Store(ground.broker_url)
    with store.listening():
        first = ground.send(2)
        ground.assert_settled()
        until("the first updates", lambda: has_heard(store, ground, first))

        ground.kill("intake")
        server.wipe()
        second = ground.send(2)
        ground.assert_settled()
        until("the other updates", lambda: has_heard(store, ground, second))

    assert store.connections == 1
    for name, heard in store.heard(first + second).items():
        assert heard == sorted(heard), name


def test_updates_that_waited_in_a_redis_that_is_wiped_reach_the_store_all_the_same(
    ground: Ground, broker: Broker
) -> None:
    server = on_redis(broker)
    store = Store(ground.broker_url)
    store.declare()
    bound = "SELECT count(*) FROM store_bindings WHERE queue = 'store.updates'"
    until("the binding is known", lambda: ground.one(bound))
    ids = ground.send(3)
    ground.assert_settled()
    assert server.client.llen("store.updates")

    server.wipe()
    with store.listening():
        until("all that was lost", lambda: has_heard(store, ground, ids))

    for name, heard in store.heard(ids).items():
        assert heard == sorted(heard), name


@pytest.mark.long
def test_orders_outlive_connections_that_are_cut_again_and_again(
    ground: Ground, broker: Broker
) -> None:
    with ground.flow(30, gap_s=0.2):
        for _ in range(4):
            broker.cut_clients()
            time.sleep(0.5)
            assert ground.broker.reset()
            time.sleep(0.5)

    ground.assert_settled()


def test_a_killed_redis_comes_back_and_work_goes_on(
    ground: Ground, broker: Broker, note_s: NoteS
) -> None:
    server = on_redis(broker)
    with ground.flow(30, gap_s=0.2):
        for _ in range(2):
            ground.until_busy()
            note_s("Redis killed", ground.recovery_s(server.restart))

    ground.assert_settled()


def test_a_black_hole_of_some_seconds_delays_and_loses_nothing(
    ground: Ground, broker: Broker
) -> None:
    with ground.broker.stalled():
        ids = ground.send(10)
        time.sleep(3)
        assert set(ground.statuses(ids).values()) == {"received"}

    ground.assert_settled()


@pytest.mark.long
@pytest.mark.timeout(AWAY_S + 300)
def test_a_broker_that_is_away_for_minutes_delays_and_loses_nothing(
    ground: Ground, broker: Broker, note_s: NoteS
) -> None:
    with ground.flow(20, gap_s=0.2):
        ground.until_busy()
        ground.broker.down()
    before = log_sizes(ground)
    ids = ground.send(20)
    time.sleep(AWAY_S)
    grown = {name: size - before.get(name, 0) for name, size in log_sizes(ground).items()}

    assert set(ground.statuses(ids).values()) == {"received"}
    assert {name: n for name, n in grown.items() if n > LOG_BYTES * (1 + AWAY_S / 60)} == {}
    recovery_s = ground.recovery_s(ground.broker.up)
    note_s(f"{broker.name} was away for {AWAY_S:.0f} s", recovery_s)
    ground.assert_settled()


def log_sizes(ground: Ground) -> dict[str, int]:
    folder = ground.driver.stack.data_dir / "logs"
    return {path.name: path.stat().st_size for path in folder.glob("*.log")}


@pytest.mark.long
@pytest.mark.timeout(300)
def test_connections_that_fell_silent_for_good_are_given_up_and_made_anew(
    ground: Ground, broker: Broker, note_s: NoteS
) -> None:
    recovery_s = ground.recovery_s(ground.broker.swallow, 150)

    note_s(f"connections to {broker.name} fell silent for good", recovery_s)
    ground.assert_settled()


@pytest.mark.long
def test_a_redis_that_is_full_stops_hints_and_no_order(ground: Ground, broker: Broker) -> None:
    server = on_redis(broker)
    with server.full():
        with ground.flow(10):
            pass
        time.sleep(2)
        assert set(ground.statuses(ground.ids[-10:]).values()) == {"received"}

    ground.assert_settled()


@pytest.mark.long
def test_a_redis_that_evicts_whatever_it_was_given_stops_hints_and_no_order(
    ground: Ground, broker: Broker
) -> None:
    """Queues, bindings and what is not acknowledged: all of them are keys like any other."""
    server = on_redis(broker)
    settings = ground.driver.stack.settings
    before = complaint(settings)
    with server.full("allkeys-random"):
        with ground.flow(10, gap_s=0.1):
            pass
        told = complaint(settings)

    ground.assert_settled()
    assert before == ""
    assert "noeviction" in told


class _Bomb:
    """Touches a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)

    def __reduce__(self) -> Any:
        return (Path.touch, (Path(self._path),))


def test_poison_stops_nobody_and_is_never_unpickled(
    ground: Ground, broker: Broker, tmp_path: Path
) -> None:
    bomb = tmp_path / "unpickled"
    json = {"content_type": "application/json", "content_encoding": "utf-8"}
    body = b'[[], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]'

    def headers(task: str) -> dict[str, Any]:
        return {"headers": {"task": task, "id": f"poison-{task}", "lang": "py"}}

    for queue in (CHAIN, FOLLOW, INTAKE):
        broker.publish(b"\x00junk{", queue, **json, **headers(messages.RESUME_STUCK))
        broker.publish(b"no envelope at all", queue, content_type="text/plain")
        broker.publish(body, queue, **json)
        broker.publish(body, queue, **json, **headers("no.such.task"))
        for task in (messages.REFRESH_CATALOG, messages.POLL_ORDERS, messages.APPLY_WEBHOOK):
            broker.publish(body, queue, **json, **headers(task))
            broker.publish(body.replace(b"[]", b"[7, [], {}]"), queue, **json, **headers(task))
        broker.publish(
            {"task": messages.RESUME_STUCK, "args": ["x"], "kwargs": {"y": 1}, "id": "old"},
            queue,
            serializer="json",
        )
        broker.publish(
            pickle.dumps([[_Bomb(bomb)], {}, {}]),
            queue,
            content_type="application/x-python-serialize",
            content_encoding="binary",
            **headers(messages.RECEIVE),
        )
    if isinstance(broker, OwnRedis):
        for queue in (CHAIN, FOLLOW, INTAKE):
            broker.client.lpush(queue, b"not even an envelope")

    ground.send(10)
    ground.assert_settled()
    assert not bomb.exists()
    until("all workers", lambda: {"worker-1", "worker-2"} <= set(ground.pids))
