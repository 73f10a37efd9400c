"""Runs many seeds in a few processes, each with a database of its own on one server."""

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing import get_context, parent_process
from typing import Any, TypeVar
from uuid import uuid4

import psycopg
import structlog
from psycopg import sql
from sqlalchemy import create_engine, event
from sqlalchemy.engine import URL, Engine, make_url

from fulfillment.settings import PREFIX
from fulfillment.store.engine import Database
from fulfillment.store.migrate import migrate
from tests.faults.run import Report, run_seed
from tests.faults.world import TABLES

Job = TypeVar("Job")
Result = TypeVar("Result")
_engine: Engine | None = None


@contextmanager
def database_on(server_url: str) -> Iterator[Engine]:
    """Make a database with our tables on a server, and drop it afterwards."""
    server = make_url(server_url).set(drivername="postgresql")
    address = server.render_as_string(hide_password=False)
    name = f"fulfillment_faults_{uuid4().hex[:12]}"
    url = server.set(drivername="postgresql+psycopg", database=name)
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        # Nobody pulls the plug here, and a plan that changes would change the course of a seed.
        for setting in ("synchronous_commit = off", "plan_cache_mode = force_generic_plan"):
            statement = f"ALTER DATABASE {{}} SET {setting}"
            connection.execute(sql.SQL(statement).format(sql.Identifier(name)))
    try:
        database = Database(url.render_as_string(hide_password=False))
        migrate(database)
        with database.transaction() as session:
            for table in TABLES.split(", "):
                session.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
                session.execute(f"ALTER TABLE {table} SET UNLOGGED")
        database.close()
        engine = _connecting(url)
        yield engine
        engine.dispose()
    finally:
        with psycopg.connect(address, autocommit=True) as connection:
            drop = sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name))
            connection.execute(drop)


def _connecting(url: URL | str) -> Engine:
    """Plan each statement at its first use: planning takes longer than these small tables do."""
    engine = create_engine(url, hide_parameters=True, connect_args={"prepare_threshold": 0})
    event.listen(engine, "connect", _keep_all_plans)
    return engine


def _keep_all_plans(connection: Any, record: Any) -> None:
    del record
    connection.prepared_max = None


def run_seeds(
    server_url: str, seeds: Iterable[int], jobs: int, on_report: Callable[[Report], Any]
) -> None:
    """Run these seeds and hand over each report as it comes in, in no order."""
    run_all(server_url, _run_seed, seeds, jobs, on_report)


def run_all(
    server_url: str,
    act: Callable[[Job, Engine], Result],
    work: Iterable[Job],
    jobs: int,
    on_result: Callable[[Result], Any],
) -> None:
    """Do this work in `jobs` processes; `act` is a module's function, the results in no order."""
    waiting = iter(work)
    context = get_context("spawn")
    urls = context.Queue()
    with ExitStack() as stack:
        for _ in range(jobs):
            engine = stack.enter_context(database_on(server_url))
            urls.put(engine.url.render_as_string(hide_password=False))
        executor = stack.enter_context(ProcessPoolExecutor(jobs, context, _open, (urls,)))
        flying: set[Future[Result]] = set()
        while True:
            # No more than the processes can take up, so that an interruption loses little.
            with suppress(StopIteration):
                while len(flying) < jobs + 1:
                    flying.add(executor.submit(_act, act, next(waiting)))
            if not flying:
                return
            done, flying = wait(flying, return_when=FIRST_COMPLETED)
            for future in done:
                on_result(future.result())


def be_quiet() -> None:
    """Keep what the faults make the services say out of the way."""
    logging.disable(logging.CRITICAL)
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL),
        cache_logger_on_first_use=False,
    )


def _open(urls: Any) -> None:
    global _engine
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        del os.environ[name]
    be_quiet()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _engine = _connecting(urls.get())


def _end_with_parent() -> None:
    """Leave nothing behind where the one who handed out the work was killed."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _act(act: Callable[[Job, Engine], Result], job: Job) -> Result:
    assert _engine is not None
    return act(job, _engine)


def _run_seed(seed: int, engine: Engine) -> Report:
    report = run_seed(seed, engine)
    if not report.violations:
        report.trace.clear()
    return report
