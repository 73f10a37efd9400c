"""The web application: intake, reads, webhooks and health over one context."""

import asyncio
import errno
import logging
import os
import resource
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from functools import partial

import anyio.to_thread
import uvicorn
from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from fulfillment import broker
from fulfillment.errors import ConfigurationError
from fulfillment.log import configure, get_logger
from fulfillment.services.context import Context, build_context, register_accounts
from fulfillment.services.intake import receive_bodies
from fulfillment.settings import PREFIX, Settings
from fulfillment.web import checkouts, errors, health, orders, webhooks
from fulfillment.web.connection import Connection
from fulfillment.web.hints import Hints
from fulfillment.web.limits import Bounded, Buckets, Lane
from fulfillment.web.metrics import Metrics, Observed
from fulfillment.web.requests import (
    CHECKOUT_THREADS,
    MEGABYTE,
    READ_THREADS,
    STATEMENT_TIMEOUT_S,
    THREADS,
    Web,
)
from fulfillment.web.tokens import Tokens

log = get_logger(__name__)

_TRY_AGAIN_S = 2.0
#: By which the system says that it is the port that cannot be had.
_OF_PORTS = (errno.EADDRINUSE, errno.EACCES)
#: Longer than clients keep idle connections, so that none is closed under a request.
_KEPT_IDLE_S = 75
#: So many single checkouts share a transaction at the most.
_MOST_TOGETHER = 100


def create_app(context: Context, hint: Callable[..., object]) -> FastAPI:
    """Build the application; `hint(task, *args)` enqueues a task by name and never raises.

    The context stays the caller's to close. Raises ConfigurationError without an API token.
    """
    settings = context.settings
    lane = Lane(CHECKOUT_THREADS, 1000, 64 * MEGABYTE)
    web = Web(
        context,
        lane,
        lane.together(partial(receive_bodies, context), _MOST_TOGETHER),
        Hints(hint),
        Metrics(context),
        Tokens(settings),
        calls=Buckets(context.clock, settings.web_calls_per_s, burst_s=2),
        failures=Buckets(context.clock, settings.web_failures_per_s, burst_s=50),
    )

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = READ_THREADS
        registration = asyncio.create_task(_register_accounts(context))
        yield
        registration.cancel()
        web.hints.close()

    app = FastAPIOffline(
        title="Fulfillment",
        description="Send a paid checkout: it is bought once, for at most `expectedPrice` cents.",
        version="1",
        lifespan=lifespan,
        redoc_url=None,
        static_url="/docs/static",  # the page must load no script of another host
        redirect_slashes=False,
    )
    app.state.web = web
    for part in (checkouts, orders, webhooks, health):
        app.include_router(part.router)
    errors.install(app)
    app.add_middleware(Bounded)
    app.add_middleware(Observed, metrics=web.metrics, clock=context.clock)
    return app


async def _register_accounts(context: Context) -> None:
    """Register the accounts as soon as the database is there; `/readyz` says why it is not."""
    while True:
        try:
            # Abandoned when the process stops: a dead database must not hold it up.
            return await anyio.to_thread.run_sync(
                register_accounts, context, abandon_on_cancel=True
            )
        except errors.DATABASE_ERRORS as error:
            log.warning("web.database_not_ready", reason=errors.reason_of(error))
            await asyncio.sleep(_TRY_AGAIN_S)


def build_server(app: FastAPI, trusted_proxies: str = "") -> uvicorn.Server:
    """Configure uvicorn for an open port: bounded heads, and an end within three seconds."""
    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="error",  # it warns of every malformed request, and anybody can send those
        access_log=False,
        server_header=False,
        proxy_headers=bool(trusted_proxies),
        forwarded_allow_ips=trusted_proxies,
        timeout_keep_alive=_KEPT_IDLE_S,
        timeout_graceful_shutdown=2,
    )
    return uvicorn.Server(config)


def listen(host: str, port: int) -> socket.socket:
    """Take the address. Raises ConfigurationError that names the setting."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with ExitStack() as failing:
        try:
            # With the protocol named, asyncio turns Nagle's algorithm off; else each answer takes
            # 40 ms.
            listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
            failing.callback(listener.close)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen(2048)
        except OSError as error:
            setting = "WEB_PORT" if error.errno in _OF_PORTS else "WEB_HOST"
            text = f"cannot listen on {host}:{port}: {error.strerror}"
            raise ConfigurationError(PREFIX + setting, text) from None
        except (TypeError, UnicodeError):  # Python cannot write it as the name of a host
            text = "expected the name or the address of a host"
            raise ConfigurationError(f"{PREFIX}WEB_HOST", text) from None
        failing.pop_all()
    return listener


def serve(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM. Raises ConfigurationError for a setting or a taken port."""
    configure(settings.log_level, settings.log_format)
    # Idle connections of strangers must not use up the files that may be open.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    context = build_context(settings, threads=THREADS, statement_timeout_s=STATEMENT_TIMEOUT_S)
    try:
        server = build_server(create_app(context, broker.hint), settings.web_trusted_proxies)
        listener = listen(settings.web_host, settings.web_port)
        log.info("web.listening", host=settings.web_host, port=listener.getsockname()[1])
        # uvicorn raises the signal that ended it again; what is left to do here must still be done.
        signal.signal(signal.SIGTERM, lambda *_: None)
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listener])
    finally:
        context.close()
    # A hint on its way to a dead broker is not worth waiting for: the sweep sends it again.
    logging.shutdown()
    os._exit(0)
