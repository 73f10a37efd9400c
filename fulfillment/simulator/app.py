"""Puts market, dialect and control together and serves them with uvicorn on one event loop."""

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount

from fulfillment.clock import Clock, SystemClock
from fulfillment.simulator.control import Control, Dialect
from fulfillment.simulator.core import Market
from fulfillment.simulator.faults import problem
from fulfillment.simulator.options import SimulatorOptions
from fulfillment.simulator.skinsback import SkinsBack
from fulfillment.simulator.skinslink import Skinslink
from fulfillment.simulator.skinsnode import SkinsNode
from fulfillment.simulator.timeline import Timeline, VirtualClock

__all__ = ["SimulatorOptions", "build_app", "running", "serve"]

logger = logging.getLogger(__name__)

DIALECTS: dict[str, Callable[[Market], Dialect]] = {
    "skinsnode": SkinsNode,
    "skinsback": SkinsBack,
    "skinslink": Skinslink,
}


def build_app(*players: SimulatorOptions, clock: Clock | None = None) -> Starlette:
    """Build providers, each with its own catalog, wallet and ledger below its `path`."""
    dialects = [_dialect(options, clock or SystemClock()) for options in players]

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        engines = [
            asyncio.create_task(engine.run())
            for dialect in dialects
            for engine in (dialect.market.timeline, dialect.courier)
        ]
        for engine in engines:
            engine.add_done_callback(_report_death)
        yield
        for engine in engines:
            engine.cancel()
        await asyncio.gather(*engines, return_exceptions=True)
        for dialect in dialects:
            dialect.market.close()

    # The root, which takes whatever comes, stands last.
    dialects.sort(key=lambda dialect: dialect.market.options.path, reverse=True)
    return Starlette(
        routes=[
            Mount(each.market.options.path, routes=[*each.routes(), *Control(each).routes()])
            for each in dialects
        ],
        lifespan=lifespan,
        exception_handlers={HTTPException: _refuse},
    )


def _dialect(options: SimulatorOptions, clock: Clock) -> Dialect:
    virtual = VirtualClock(clock, options.speed, options.clock_offset_s)
    return DIALECTS[options.provider](Market(options, Timeline(virtual)))


def _report_death(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        logger.error("simulator.engine_died", exc_info=task.exception())


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return problem(error.status_code, "refused", error.detail)


def _server(
    *players: SimulatorOptions, clock: Clock | None = None
) -> tuple[uvicorn.Server, socket.socket, str]:
    options = players[0]
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    # With the protocol named, asyncio turns Nagle's algorithm off; else each answer takes 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((options.host, options.port))
    listener.listen(2048)
    config = uvicorn.Config(
        build_app(*players, clock=clock),
        access_log=False,
        log_level="warning",
        log_config=None,
        # Longer than clients keep idle connections, so that none is closed under a request.
        timeout_keep_alive=75,
        # Answers held back on purpose must not hold up the end.
        timeout_graceful_shutdown=1,
    )
    host = f"[{options.host}]" if ":" in options.host else options.host
    return uvicorn.Server(config), listener, f"http://{host}:{listener.getsockname()[1]}"


def serve(
    *players: SimulatorOptions,
    on_bound: Callable[[str], None] | None = None,
    clock: Clock | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM, where the first says; tell the URL once the port is bound.

    Raises OSError if the address cannot be bound, ValueError if the price file is wrong.
    """
    server, listener, url = _server(*players, clock=clock)
    if on_bound is not None:
        on_bound(url)
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])


@contextlib.contextmanager
def running(*players: SimulatorOptions) -> Iterator[str]:
    """Serve from a thread of this process, for tests; give the base URL."""
    server, listener, url = _server(*players)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        # The socket listens already: a request made now waits until the server answers.
        yield url
    finally:
        server.should_exit = True
        thread.join()
