"""Orders flow for minutes while everything around them dies, freezes and restarts, by a seed."""

import itertools
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import psycopg
import pytest
import redis

from tests.conftest import TEST_PREFIX
from tests.faults.brokers import OwnRedis
from tests.faults.ground import ROLE, Ground, breakable
from tests.faults.proxy import is_commit

SEED = int(os.environ.get(f"{TEST_PREFIX}SOAK_SEED", "1"))
#: So long strikes go on. A strike comes every other half of a second on the average.
LASTS_S = float(os.environ.get(f"{TEST_PREFIX}SOAK_S", "150"))
_GAP_S = 0.5
#: The store sends about so many checkouts a second.
_PER_S = 3


class Chaos:
    """What strikes, and how often each has struck."""

    def __init__(self, ground: Ground, seed: int) -> None:
        assert ground.redis is not None
        self.struck: Counter[str] = Counter()
        self._ground = ground
        self._broker = OwnRedis(ground.redis, ground.broker_url)
        self._source = random.Random(seed)
        self._frozen: list[tuple[float, int]] = []
        processes = ("worker-1", "worker-2", "web", "beat", "intake")
        self._acts: dict[str, Callable[[], object]] = {
            **{f"kill {name}": partial(self._kill, name) for name in processes},
            **{f"freeze {name}": partial(self._freeze, name) for name in processes},
            "kill all workers": partial(self._kill, *processes[:2]),
            "wipe Redis": self._broker.wipe,
            "kill Redis": self._kill_redis,
            "cut Redis' clients": self._broker.cut_clients,
            "reset connections to Redis": ground.broker.reset,
            "stop PostgreSQL at once": self._stop_database,
            "terminate backends": self._terminate,
            "reset connections to PostgreSQL": ground.database.reset,
            "lose answers of commits": self._lose_commits,
        }

    def strike(self) -> None:
        self._thaw(time.monotonic())
        name = self._source.choice(list(self._acts))
        # What it would strike is away already: then it strikes nobody.
        with suppress(psycopg.Error, redis.RedisError, ProcessLookupError, KeyError):
            self._acts[name]()
            self.struck[name] += 1
        time.sleep(self._source.uniform(0, 2 * _GAP_S))

    def end(self) -> None:
        self._thaw(float("inf"))

    def _kill(self, *names: str) -> None:
        for name in names:
            os.kill(self._ground.pids[name], signal.SIGKILL)

    def _freeze(self, name: str) -> None:
        pid = self._ground.pids[name]
        os.kill(pid, signal.SIGSTOP)
        # Often longer than the lease, which is 5 s.
        self._frozen.append((time.monotonic() + self._source.uniform(0.5, 9), pid))

    def _thaw(self, now: float) -> None:
        for until, pid in [each for each in self._frozen if each[0] <= now]:
            self._frozen.remove((until, pid))
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def _kill_redis(self) -> None:
        pid = self._broker.server.pid
        if pid is not None:
            os.kill(pid, signal.SIGKILL)

    def _stop_database(self) -> None:
        if self._ground.postgres.pid is not None:
            self._ground.stop_database()

    def _terminate(self) -> None:
        query = "SELECT pid FROM pg_stat_activity WHERE usename = %(role)s"
        busy = self._ground.sql(query, role=ROLE)
        for row in self._source.sample(busy, min(4, len(busy))):
            self._ground.sql("SELECT pg_terminate_backend(%(pid)s)", pid=row["pid"])

    def _lose_commits(self) -> None:
        with self._ground.database.lose_answers(is_commit, chance=0.2):
            time.sleep(1)


@pytest.mark.long
@pytest.mark.timeout(1200 + 3 * LASTS_S)
def test_hundreds_of_deaths_lose_and_double_nothing(tmp_path: Path) -> None:
    with breakable(tmp_path, seed=SEED) as ground:
        driver = ground.driver
        driver.provider.post("/_sim/options", json={"reusable_items": True}).raise_for_status()
        driver.provider.post("/_sim/wallet", json={"deltaCents": 10_000_000}).raise_for_status()
        driver.items["main"] = itertools.cycle(list(driver.items["main"]))
        chaos = Chaos(ground, SEED)
        count = int(LASTS_S * _PER_S)
        with ground.flow(count, gap_s=1 / _PER_S, within_s=3 * LASTS_S + 120) as flow:
            ends_at = time.monotonic() + LASTS_S
            while time.monotonic() < ends_at:
                chaos.strike()
            chaos.end()

        ground.assert_settled(within_s=400)
    print(f"seed {SEED}: {chaos.struck.total()} strikes {dict(chaos.struck)}, {flow.answers}")  # noqa: T201
    assert chaos.struck.total() > LASTS_S / 3
