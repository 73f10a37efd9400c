"""What `/metrics` shows: requests, verdicts and, measured at the scrape, how the database stands.

Labels come from closed sets only: route templates, configured accounts, our own words.
"""

import asyncio
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial

import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fulfillment.clock import Clock
from fulfillment.log import get_logger
from fulfillment.services import brakes, invariants, operations, updates
from fulfillment.services.context import Context
from fulfillment.web.errors import DATABASE_ERRORS, UNEXPECTED, reason_of, refusal
from schemas.money import charge_in_cents

log = get_logger(__name__)

_CACHE_S = 2.0
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
_CLIENT_GONE = 499


class Metrics:
    """The counters of one application, in a registry of its own."""

    def __init__(self, context: Context) -> None:
        self.registry = registry = CollectorRegistry()
        count = partial(Counter, namespace="fulfillment", registry=registry)
        self.requests = count("http_requests", "Requests answered", ["method", "route", "status"])
        self.checkouts = count("checkouts", "Checkouts that came by HTTP", ["result"])
        self.calls = count("api_calls", "Calls by the name of their token", ["token"])
        self.webhooks = count("webhooks", "Webhook deliveries", ["account", "verdict"])
        about = "From a request's head to the end of its answer"
        name = "fulfillment_http_request_duration_seconds"
        self.latency = Histogram(name, about, ["route"], registry=registry)
        registry.register(DatabaseCollector(context))
        ProcessCollector(registry=registry)


class DatabaseCollector(Collector):
    """Measures at a scrape, at most every other second; says so when the database is away."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._families: list[GaugeMetricFamily] = []
        self._valid_until = float("-inf")

    def collect(self) -> Iterable[GaugeMetricFamily]:
        with self._lock:
            if self._context.clock.monotonic() >= self._valid_until:
                self._families = list(self._measure())
                self._valid_until = self._context.clock.monotonic() + _CACHE_S
            return self._families

    def _measure(self) -> Iterator[GaugeMetricFamily]:
        try:
            found = operations.gauges(self._context)
            brakes_now = brakes.show_accounts(self._context)
            broken = invariants.last_counts(self._context)
            unchecked_for = invariants.age(self._context)
            unread = updates.unread(self._context)[:1]
            unheard = float(updates.audience(self._context).missing_since is not None)
        except DATABASE_ERRORS as error:
            log.warning("metrics.database_error", reason=reason_of(error))
            yield _gauge("database_up", "Whether the database answers", [((), 0)])
            return
        yield _gauge("database_up", "Whether the database answers", [((), 1)])
        yield _gauge("orders", "Orders by status", found.orders.items(), "account", "status")
        ticks = _by_one(found.tick_age_s)
        yield _gauge("tick_age_seconds", "Since a periodic activity last ran", ticks, "name")
        about = "What breaks an invariant, by the last check"
        yield _gauge("invariant_violations", about, _by_one(broken), "invariant")
        about = "Since the invariants were last looked at, or since the first order where never"
        yield _gauge("invariants_age_seconds", about, [((), unchecked_for.total_seconds())])
        stopped = {view.account: float(view.stopped_at is not None) for view in brakes_now}
        yield _gauge("account_stopped", "Stopped by an operator", _by_one(stopped), "account")
        spent = {view.account: view.spent_last_hour for view in brakes_now if view.spend_cap}
        about = "Spent or held within the hour before, of accounts with a spend cap"
        yield _gauge("spent_last_hour_cents", about, _by_one(spent), "account")
        by_all = {cents for v in brakes_now if (cents := v.spent_last_hour_by_all) is not None}
        about = "Spent or held within the hour before by all accounts, under a cap of all"
        yield _gauge("spent_last_hour_by_all_cents", about, [((), cents) for cents in by_all])
        about = "Orders that only the spend cap keeps waiting"
        yield _gauge("orders_capped", about, _by_one(found.capped), "account")
        missing = {name: charge_in_cents(mills) for name, mills in found.unexplained_mills.items()}
        about = "Gone from the wallet since its first balance, by no order of ours"
        yield _gauge("wallet_unexplained_cents", about, _by_one(missing), "account")
        ages = _by_one(found.balance_age_s)
        yield _gauge("balance_age_seconds", "Since a balance was asked for", ages, "account")
        for name, about, value in (
            ("orders_overdue", "Offers that outlived their trade window", found.overdue),
            ("oldest_attempt_age_seconds", "Longest wait for our act", found.oldest_attempt_age_s),
            ("oldest_poll_age_seconds", "Longest wait to be polled", found.oldest_poll_age_s),
            ("outbox_waiting", "Messages that the store has not got yet", found.outbox_waiting),
            ("outbox_age_seconds", "Age of the oldest of them", found.outbox_age_s),
            ("updates_unheard", "Whether they wait for a queue that the store had", unheard),
        ):
            yield _gauge(name, about, [((), value)])
        about = "Messages in the longest queue of the store, by the last look; none where not known"
        yield _gauge("updates_unread", about, [((), each.messages) for each in unread])


def _by_one(values: Mapping[str, float]) -> Iterator[tuple[list[str], float]]:
    return (([label], value) for label, value in values.items())


def _gauge(
    name: str, about: str, values: Iterable[tuple[Sequence[str], float]], *labels: str
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"fulfillment_{name}", about, labels=labels)
    for key, value in values:
        family.add_metric(key, value)
    return family


class Observed:
    """ASGI middleware: counts and times every request, and answers what nobody else caught."""

    def __init__(self, app: ASGIApp, metrics: Metrics, clock: Clock) -> None:
        self._app = app
        self._metrics = metrics
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # asyncio runs it in the context of whoever last resumed the connection's reading.
        structlog.contextvars.clear_contextvars()
        status = 0

        async def noting(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        started = self._clock.monotonic()
        try:
            await self._app(scope, receive, noting)
        except asyncio.CancelledError:  # the server stops, and waits for this request no longer
            if not status:
                await refusal(503, "the server stops; send it again")(scope, receive, noting)
        except Exception:  # the last place before the client, who learns no more than "500"
            log.exception("web.unexpected_error", route=_route(scope))
            if not status:
                await refusal(500, UNEXPECTED)(scope, receive, noting)
        finally:
            method = scope["method"] if scope["method"] in _METHODS else "other"
            labels = (method, _route(scope), str(status or _CLIENT_GONE))
            self._metrics.requests.labels(*labels).inc()
            self._metrics.latency.labels(labels[1]).observe(self._clock.monotonic() - started)


def _route(scope: Scope) -> str:
    """Give the route's template; a path of the client's own making must not become a label."""
    return str(getattr(scope.get("route"), "path", "unmatched"))
