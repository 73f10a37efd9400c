"""Ask the provider about orders that are under way, or delivered and still reversible."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from fulfillment.errors import ProviderDeniesAccount, ProviderError
from fulfillment.log import get_logger
from fulfillment.services import outages, pulse, schedule
from fulfillment.services.context import Context
from fulfillment.services.dispatch import make_batch
from fulfillment.services.reports import apply_reports
from fulfillment.states import FINAL, WAITING
from fulfillment.store import due, leases, orders
from fulfillment.store.accounts import Purpose
from fulfillment.store.models import Order
from schemas.enums import OrderStatus, Source
from schemas.messages import Batch
from schemas.provider import OrderReport

log = get_logger(__name__)

_CLAIM_LIMIT = 500
_BATCH = 100
_THREADS = 16
#: Webhooks are flowing where one came in this long ago or less.
_FLOWING = timedelta(minutes=2)


def webhook_heartbeat(account: str) -> str:
    return f"webhook:{account}"


def schedule_reconciliation(context: Context, batch: Batch) -> int:
    """Spread the batch's first polls, so that a burst of accepts is no burst of polls later.

    The first poll was written with each accept already; this only moves it within its interval.
    """
    now = context.now()
    with context.database.transaction() as session:
        fresh = [
            order
            for order in orders.get(session, batch["ids"])
            if order.next_poll_at is not None and order.polls == 0 and order.status not in FINAL
        ]
        for place, order in enumerate(fresh):
            spread = context.settings.poll_min_interval_s * 0.5 * place / max(len(fresh), 1)
            at = schedule.first_poll(context, now) + timedelta(seconds=spread)
            orders.set_due(session, [order.id], next_poll_at=at)
    return len(fresh)


def poll_due(context: Context) -> list[Batch]:
    """Claim the orders due for a poll, within the rate budget, as batches by account."""
    now = context.now()
    # A lost message costs one interval: the claim is the due time moved on.
    until = now + timedelta(seconds=max(context.settings.poll_min_interval_s, 5.0))
    with context.database.transaction() as session:
        leases.beat(session, pulse.POLL, now)
        claimed = due.claim_polls(session, now, until, _CLAIM_LIMIT)
    by_account: dict[str, list[Order]] = defaultdict(list)
    for order in claimed:
        by_account[order.account].append(order)
    batches: list[Batch] = []
    for account, members in by_account.items():
        if account not in context.settings.accounts:
            log.error("poll.unknown_account", account=account)
            continue
        # Deadlines go before routine.
        members.sort(key=lambda o: (not _is_urgent(o, now), o.next_poll_at or now))
        batches.extend(
            make_batch(account, "", members[start : start + _BATCH])
            for start in range(0, len(members), _BATCH)
        )
    return batches


def _is_urgent(order: Order, now: datetime) -> bool:
    deadline = order.trade_deadline_at
    return order.status is OrderStatus.SENT and deadline is not None and deadline <= now


def poll_orders(context: Context, account: str, order_ids: Sequence[int]) -> int:
    """Ask about these orders and apply the answers; give how many changed."""
    now = context.now()
    with context.database.transaction() as session:
        members = [o for o in orders.get(session, order_ids) if o.account == account]
        beats = leases.heartbeats(session)
    members = _within_budget(context, account, members, now)
    reports, asked = _ask(context, account, members)
    heartbeat = beats.get(webhook_heartbeat(account))
    flows = heartbeat is not None and now - heartbeat <= _FLOWING
    with context.database.transaction() as session:
        locked = orders.lock(session, [order.id for order in asked])
        by_id = {o.id: reports[o.external_id] for o in locked if o.external_id in reports}
        known = [order for order in locked if order.id in by_id]
        moved = apply_reports(context, session, by_id, Source.POLL, locked=known)
        for order in locked:
            if order.id not in by_id:
                log.warning("poll.unknown_to_provider", order_id=order.external_id)
        after = [moved.get(order.id, order) for order in locked]
        due.polled(session, {o.id: _next(context, o, now, flows) for o in after}, now)
    return len(moved)


def _next(context: Context, order: Order, now: datetime, flows: bool) -> datetime | None:
    until = order.reversible_until
    if order.status is OrderStatus.COMPLETED:
        if order.charged_mills is None and (until is None or now < until):
            return schedule.next_poll(context, order, now, webhooks_flow=flows)
        completed_at = order.completed_at or now
        return until and schedule.next_reversal_poll(context, completed_at, now, until)
    if order.status in FINAL:
        return None
    return schedule.next_poll(context, order, now, webhooks_flow=flows)


def _within_budget(
    context: Context, account: str, members: list[Order], now: datetime
) -> list[Order]:
    """Choose whom to ask about: the budget counts requests, of which one may serve many orders."""
    size = context.provider(account).lookup_limit
    urgent = [order for order in members if _is_urgent(order, now)]
    routine = [order for order in members if not _is_urgent(order, now)]
    granted = outages.take_budget(context, account, Purpose.URGENT, -(-len(urgent) // size))
    # What the last urgent request has room for rides along.
    free = max(granted * size - len(urgent), 0)
    chosen = urgent[: granted * size] + routine[:free]
    routine = routine[free:]
    granted = outages.take_budget(context, account, Purpose.POLL, -(-len(routine) // size))
    return chosen + routine[: granted * size]


def _ask(
    context: Context, account: str, members: Sequence[Order]
) -> tuple[dict[str, OrderReport], list[Order]]:
    """Ask concurrently; give the reports by external id, and the orders that were asked about."""
    provider = context.provider(account)
    size = provider.lookup_limit
    groups = [members[i : i + size] for i in range(0, len(members), size)]
    reports: dict[str, OrderReport] = {}
    asked: list[Order] = []
    if not groups:
        return reports, asked

    def look_up(group: Sequence[Order]) -> dict[str, OrderReport] | ProviderError:
        try:
            return provider.reports([order.external_id for order in group])
        except ProviderError as error:
            return error

    with context.threads.pool(min(_THREADS, len(groups)), "poll") as executor:
        flying = [executor.submit(look_up, group) for group in groups]
        context.threads.all_done(flying)
    answers = [future.result() for future in flying]
    for group, answer in zip(groups, answers, strict=True):
        if isinstance(answer, ProviderError):
            log.warning("poll.failed", account=account, reason=str(answer))
        else:
            asked.extend(group)
            reports.update(answer)
    denied = next((a for a in answers if isinstance(a, ProviderDeniesAccount)), None)
    if denied is not None:
        outages.pause(context, account, denied)
    return reports, asked


def reconcile_now(context: Context, external_ids: Iterable[str] | None) -> int:
    """Make the named orders (or all that are followed) due for a poll now; give how many."""
    now = context.now()
    with context.database.transaction() as session:
        if external_ids is None:
            return due.poll_all(session, now, context.settings.poll_min_interval_s)
        found = orders.find(session, list(external_ids))
        asked = [o.id for o in found.values() if o.status not in WAITING | {OrderStatus.RESERVED}]
        return due.poll_at(session, asked, now, 0.0, is_asked_for=True)
