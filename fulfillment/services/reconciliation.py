"""Ask the provider about orders that are under way, or delivered and still reversible."""

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple

from fulfillment.crash import crash_point
from fulfillment.errors import OverBudget, ProviderError
from fulfillment.log import get_logger
from fulfillment.services import backstop, merchants, outages, pulse, schedule
from fulfillment.services.budget import Grant
from fulfillment.services.context import Context
from fulfillment.services.decide import REVERSAL_WATCH
from fulfillment.services.dispatch import make_batch
from fulfillment.services.lookups import look_up, look_up_alone
from fulfillment.services.reports import apply_reports, begun_and_unsent, is_news
from fulfillment.states import BEFORE_OFFER, FINAL
from fulfillment.store import accounts, due, leases, ledger, orders
from fulfillment.store.accounts import Purpose
from fulfillment.store.due import Due, Polled
from fulfillment.store.engine import repeated
from fulfillment.store.models import Move, Order
from schemas.enums import OrderStatus, Source
from schemas.messages import NEEDS_REVIEW, Batch
from schemas.provider import OrderReport

log = get_logger(__name__)

#: So many are claimed by one statement, so many statements at once, and so many by one tick.
_CLAIM_LIMIT = 500
_CLAIMS_AT_ONCE = 2
_MOST_CLAIMED = 10_000
#: So many are asked about by one task, and written down together.
_BATCH = 100
_LOOKUPS_A_BATCH = 5
_THREADS = 16
#: Ticks come every two seconds.
_TICK_GAP = timedelta(seconds=1)
#: Webhooks are flowing where one came in this long ago or less.
_FLOWING = timedelta(minutes=2)
#: What could not be asked about is as if it had been due for so long: no longer, or it is overdue.
_BEFORE_OTHERS = timedelta(minutes=1)


def webhook_heartbeat(account: str) -> str:
    return f"webhook:{account}"


@repeated
def schedule_reconciliation(context: Context, batch: Batch) -> int:
    """See that each order that the provider has will be asked about; give how many were not to be.

    Its first poll is written with each accept, spread over time there: this is a second look.
    """
    with context.database.statement() as session:
        forgotten = due.follow(session, batch["ids"], context.now())
    crash_point("schedule.after_commit")
    if forgotten:
        log.error("reconcile.was_not_scheduled", orders=forgotten)
    return len(forgotten)


def poll_due(context: Context) -> Iterator[Batch]:
    """Claim the orders due for a poll, within the rate budget, as batches by account.

    What is claimed is handed out before more is.
    """
    now = context.now()
    with context.database.statement() as session:
        leases.beat(session, pulse.POLL, now)
    for account in context.settings.accounts:
        if not _is_next(context, account, now):
            continue
        lookup_limit = context.provider(account).lookup_limit
        size = _BATCH if lookup_limit == 1 else lookup_limit * _LOOKUPS_A_BATCH
        claimed, at_once, is_full = 0, 1, True
        while is_full and claimed < _MOST_CLAIMED:
            for members in _claim_at_once(context, account, claimed, at_once):
                crash_point("poll.claimed", members)
                for start in range(0, len(members), size):
                    yield make_batch(account, "", members[start : start + size])
                claimed += len(members)
                is_full = is_full and len(members) >= _CLAIM_LIMIT
            at_once = _CLAIMS_AT_ONCE  # there are many: claiming is not to be what they wait for


@repeated
def _is_next(context: Context, account: str, now: datetime) -> bool:
    """Say whether this tick may claim the account's orders."""
    with context.database.transaction() as session:
        if accounts.paused_until(session, account, now):
            return False
        if context.account(account).requests_per_minute is None:
            return True
        # Two ticks at once would each claim what the budget lets one of them ask.
        lease, holder = f"poll:{account}", uuid.uuid4().hex
        return leases.acquire(session, lease, holder, now, now + _TICK_GAP)


def _claim_at_once(context: Context, account: str, claimed: int, at_once: int) -> list[list[Due]]:
    if at_once == 1:
        return [_claim(context, account, claimed)]
    with context.threads.pool(at_once, "claim") as executor:
        flying = [
            executor.submit(_claim, context, account, claimed + place * _CLAIM_LIMIT)
            for place in range(at_once)
        ]
        context.threads.all_done(flying)
    errors = [error for future in flying if (error := future.exception())]
    if len(errors) == len(flying):
        raise errors[0]
    # What one has claimed is handed out though another failed.
    for error in errors:
        log.error("poll.claim_failed", account=account, reason=type(error).__name__)
    return [[] if future.exception() else future.result() for future in flying]


def _claim(context: Context, account: str, claimed: int) -> list[Due]:
    """Claim about as many orders as may be asked about, deadlines first; others stay due.

    `claimed` orders were claimed before by this tick, and are not asked about yet.
    """
    size = context.provider(account).lookup_limit
    members: list[Due] = []
    for purpose in (Purpose.URGENT, Purpose.POLL):
        requests = context.budget(account).left(purpose)
        room = _CLAIM_LIMIT if requests is None else min(requests * size - claimed, _CLAIM_LIMIT)
        if room > 0:
            members += _claim_polls(context, account, purpose, room)
    return members


@repeated
def _claim_polls(context: Context, account: str, purpose: Purpose, limit: int) -> list[Due]:
    is_over = purpose is Purpose.URGENT
    with context.database.transaction() as session:
        now, gap = context.now(), schedule.poll_gap(context, account)
        return due.claim_polls(session, account, now, gap, limit, is_over=is_over)


def poll_orders(context: Context, account: str, order_ids: Sequence[int]) -> int:
    """Ask about these orders and apply the answers; give how many changed."""
    now = context.now()
    with context.database.transaction() as session:
        members = due.to_poll(session, account, order_ids, now)
        beats = leases.heartbeats(session, now)
    strange = merchants.strangers(context, account, {o.id: o.merchant for o in members})
    if strange:
        merchants.leave(context, account, strange)
        members = [order for order in members if order.id not in strange]
    groups = _within_budget(context, account, members)
    round_ = _ask(context, account, groups)
    crash_point("poll.answered")
    reached = {order.id for _, group in groups for order in group}
    unasked = [*round_.unasked, *(order for order in members if order.id not in reached)]
    heartbeat = beats.get(webhook_heartbeat(account))
    flows = heartbeat is not None and now - heartbeat <= _FLOWING
    if unasked or round_.failed:
        _put_back(context, unasked, round_, now)

    # From here on, and not from when the first was asked, the provider's cache is reckoned.
    answered_at = context.now()

    def is_quiet(member: Polled) -> bool:
        report = round_.reports.get(member.external_id)
        if (
            report is None
            or member.is_strange
            or member.order.poll_wanted_at is not None
            or member.order.failed_polls
            or is_news(context, member.order, report, answered_at)
        ):
            return False
        following = _next(context, member.order, answered_at, flows)
        return following.is_claimed(member.order, answered_at)

    def write(members: Sequence[Polled]) -> int:
        # Quiet for the row as it was before the question: what changed since is newer.
        told: list[Polled] = []
        quiet: list[Polled] = []
        for member in members:
            (quiet if is_quiet(member) else told).append(member)
        least = schedule.least_claim(context)
        if late := [m.id for m in quiet if due.is_late(m.order, answered_at, least)]:
            _note_late(context, late, answered_at)
        if not told:
            return 0
        times = _Times(now, answered_at)
        return _write_polls(context, account, round_.reports, told, times, flows=flows)

    if not round_.asked:
        return 0
    return sum(backstop.apart(write, round_.asked, lambda order: order.external_id))


@repeated
def _put_back(context: Context, unasked: Sequence[Polled], round_: "_Round", now: datetime) -> None:
    """Make orders due again: before others those not asked about, soon those that failed.

    Where the others are answered a failure is the order's own: its polls become rare. Where a watch
    is over they are given up, also in an outage, which may have no end; a person is told.
    """
    gap = schedule.least_claim(context)
    failed = {member.id: member.order for member in round_.failed}
    again_at = {o.id: schedule.poll_after_failure(context, o, now) for o in failed.values()}
    with context.database.transaction() as session:
        if unasked:
            before_others = now - min(gap, _BEFORE_OTHERS)
            due.put_back(session, [order.id for order in unasked], before_others)
        if round_.is_outage:
            due.put_back(session, [id_ for id_, at in again_at.items() if at], now + gap)
            again_at = {id_: None for id_, at in again_at.items() if at is None}
        if again_at:
            polls = [(id_, failed[id_].next_poll_at, at) for id_, at in again_at.items()]
            given_up = due.put_off(session, polls)
            orders.apply(session, [_given_up(failed[id_]) for id_ in sorted(given_up)], now)


def _given_up(order: Order) -> Move:
    """Tell a person of an order about which its provider gives no answer, for ever."""
    log.error("poll.given_up", order_id=order.external_id, status=order.status)
    note = "it was asked about for long, without an answer, and is asked about no more"
    return Move(order.id, order.status, order.status, Source.POLL, note, tell=(NEEDS_REVIEW,))


@repeated
def _note_late(context: Context, order_ids: list[int], now: datetime) -> None:
    with context.database.transaction() as session:
        due.asked_late(session, order_ids, now, schedule.gap_before_news(context))


@repeated
def _write_polls(
    context: Context,
    account: str,
    reports: Mapping[str, OrderReport],
    asked: Sequence[Polled],
    times: "_Times",
    *,
    flows: bool,
) -> int:
    """Apply a round's answers; give how many orders changed."""
    now = times.answered_at
    answers_until = times.asked_at - context.cache_time
    with context.database.transaction() as session:
        locked = orders.lock(session, [order.id for order in asked])
        by_id = {o.id: reports[o.external_id] for o in locked if o.external_id in reports}
        known = [order for order in locked if order.id in by_id]
        moved = apply_reports(
            context, session, account, by_id, Source.POLL, locked=known, as_of=answers_until
        )
        locked = [order for order in locked if order.account == account]  # it may have gone on
        for order in locked:
            if order.id not in by_id:
                log.warning("poll.unknown_to_provider", order_id=order.external_id)
        was_due = {member.id: member.order.next_poll_at for member in asked}
        nexts: dict[int, datetime | None] = {}
        unsent = begun_and_unsent(session, locked)
        for order in locked:
            after = moved.get(order.id, order)
            if order.id in unsent and after.status is OrderStatus.SUBMITTING:
                nexts[order.id] = None  # what was told is looked into before it is sent again
                continue
            at = _next(context, after, now, flows).after(after, now)
            # Of code of before, that knows no such time, a wish only moves the next poll.
            wanted_at = now if order.next_poll_at not in (None, was_due[order.id]) else None
            if after.poll_wanted_at is not None and after.poll_wanted_at > answers_until:
                wanted_at = max(now, min(after.poll_wanted_at, context.now()))
            if wanted_at is not None:
                at = schedule.soon_for_news(context, at, wanted_at)
            nexts[order.id] = at
        due.polled(session, nexts, now, answers_until, context.now())
        if back := [order.id for order in asked if order.is_strange]:
            ledger.note_own(session, account, back, context.account(account).merchant)
        crash_point("poll.before_commit")
    crash_point("poll.after_commit")
    return len(moved)


def _next(context: Context, order: Order, now: datetime, flows: bool) -> due.NextPoll:
    until = order.reversible_until
    if order.status is OrderStatus.COMPLETED:
        completed_at = order.completed_at or now
        # Whatever is told of the end of its protection, its charge is to be learned.
        is_charge_awaited = now < max(until or completed_at, completed_at + REVERSAL_WATCH)
        if order.charged_mills is None and is_charge_awaited:
            return schedule.next_poll(context, order, now, webhooks_flow=flows)
        return due.NextPoll(
            until and schedule.next_reversal_poll(context, completed_at, now, until)
        )
    if order.status in FINAL and not order.lives_on:
        return due.NextPoll(None)
    return schedule.next_poll(
        context, order, now, webhooks_flow=flows and _is_pushed(context, order)
    )


def _is_pushed(context: Context, order: Order) -> bool:
    """Say whether the provider tells by webhook of what comes next of the order."""
    if order.status in BEFORE_OFFER or order.status is OrderStatus.NEEDS_REVIEW:
        return context.provider(order.account).pushes_offers
    return True


def _within_budget(
    context: Context, account: str, members: Sequence[Polled]
) -> list[tuple[Grant, Sequence[Polled]]]:
    """Choose whom to ask about together: the budget counts requests, of which one may serve many.

    What the last urgent request has room for rides along.
    """
    size = context.provider(account).lookup_limit
    members = sorted(members, key=lambda order: not order.is_urgent)
    urgent = sum(order.is_urgent for order in members)
    groups: list[tuple[Grant, Sequence[Polled]]] = []
    for purpose in (Purpose.URGENT, Purpose.POLL):
        wanted = urgent if purpose is Purpose.URGENT else len(members)
        grant = context.budget(account).take(purpose, -(-wanted // size))
        for _ in range(grant.size):
            groups.append((grant, members[:size]))
            members = members[size:]
    return groups


class _Times(NamedTuple):
    """By when a round's questions were asked at the earliest, and all answered."""

    asked_at: datetime
    answered_at: datetime


@dataclass
class _Round:
    """What came of asking: reports by external id, and who was asked about, not, and in vain."""

    reports: dict[str, OrderReport] = field(default_factory=dict)
    asked: list[Polled] = field(default_factory=list)
    unasked: list[Polled] = field(default_factory=list)
    failed: list[Polled] = field(default_factory=list)
    #: The account is to be left alone; what failed tells nothing of its orders.
    is_outage: bool = False


def _ask(
    context: Context, account: str, groups: Sequence[tuple[Grant, Sequence[Polled]]]
) -> _Round:
    """Ask concurrently about all groups."""
    found = _Round()
    if not groups:
        return found

    with context.threads.pool(_THREADS, "poll") as executor:
        flying = [
            executor.submit(look_up, context, account, grant, [o.external_id for o in group])
            for grant, group in groups
        ]
        context.threads.all_done(flying)
        answers = [future.result() for future in flying]
        members = [group for _, group in groups]
        members, answers = _ask_alone(context, account, executor, members, answers)
    for group, answer in zip(members, answers, strict=True):
        if isinstance(answer, OverBudget):
            found.unasked.extend(group)
        elif isinstance(answer, ProviderError):
            found.failed.extend(group)
            log.warning("poll.failed", account=account, reason=str(answer))
        else:
            found.asked.extend(group)
            found.reports.update(answer)
    # One question about many is as much as several: it was asked in parts before it failed.
    errors = [
        answer
        for group, answer in zip(members, answers, strict=True)
        if isinstance(answer, ProviderError)
        for _ in group[:2]
    ]
    told = outages.of_the_account(errors, is_answered=bool(found.asked))
    found.is_outage = told is not None
    if told is not None:
        outages.pause(context, account, told)
    return found


def _ask_alone(
    context: Context,
    account: str,
    executor: Executor,
    groups: Sequence[Sequence[Polled]],
    answers: Sequence[Mapping[str, OrderReport] | ProviderError],
) -> tuple[list[Sequence[Polled]], list[Mapping[str, OrderReport] | ProviderError]]:
    """Ask for each order alone that is expected and that its answer to many leaves out.

    Gives the groups and answers with those apart; one that the rate budget has no room for is
    answered by that.
    """
    left_out: list[Polled] = []
    kept: list[Sequence[Polled]] = []
    for group, answer in zip(groups, answers, strict=True):
        lost: list[Polled] = []
        if len(group) > 1 and not isinstance(answer, ProviderError):
            lost = [o for o in group if o.is_expected and o.external_id not in answer]
        left_out += lost
        kept.append([order for order in group if order not in lost])
    if not left_out:
        return list(groups), list(answers)
    names = [order.external_id for order in left_out]
    log.warning("lookup.partial", account=account, left_out=len(names), orders=names[:5])
    alone = look_up_alone(context, account, executor, Purpose.POLL, names)
    kept += [[order] for order in left_out]
    return kept, [*answers, *(alone.get(name, OverBudget()) for name in names)]


def reconcile_now(context: Context, external_ids: Iterable[str] | None) -> int:
    """Make the named orders (or all that are followed) due for a poll now; give how many.

    One that is being asked about at this moment is, once the provider's cache is over.
    """
    now = context.now()
    with context.database.transaction() as session:
        if external_ids is None:
            return due.poll_all(session, now, context.settings.poll_min_interval_s)
        found = orders.find(session, list(external_ids))
        asked = [order.id for order in found.values() if not order.is_unsent]
        return due.poll_at(session, asked, now, 0.0, is_asked_for=True)
