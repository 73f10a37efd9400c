"""Look for orders at their providers before anything is bought, when our own rows are in doubt.

After a restore, or a failover to a server that lacked the last commits, an order may be bought of
which no row tells: at its own account, or at a later one of its route.
"""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from fulfillment.crash import crash_point
from fulfillment.errors import ProviderError
from fulfillment.log import get_logger
from fulfillment.services import outages
from fulfillment.services.adoption import adopt, is_left_to_a_person
from fulfillment.services.claiming import KeptClaim
from fulfillment.services.clock_guard import APART
from fulfillment.services.context import Context
from fulfillment.services.hearsay import (
    ENDED_BY,
    HAD_BY,
    accounts_named,
    tellers,
    without_accounts,
)
from fulfillment.services.lookups import look_up, look_up_alone
from fulfillment.services.merchants import why_strange
from fulfillment.services.news import is_alive
from fulfillment.services.outcomes import review
from fulfillment.store import accounts, claims, doubts, ledger, orders
from fulfillment.store.accounts import Purpose
from fulfillment.store.engine import Session, repeated
from fulfillment.store.models import Doubt, Move, Order
from schemas.enums import OrderStatus as S
from schemas.enums import Source
from schemas.provider import OrderReport

log = get_logger(__name__)

#: How soon to look again where an account could not be asked.
_AGAIN, _SLOWEST_AGAIN = timedelta(seconds=10), timedelta(minutes=5)
#: How soon where an account cannot tell, until somebody sees to it.
_MUTE_GAP = timedelta(minutes=1)
ACT = doubts.ACT
MUTE_ACT = (
    "put the account's settings back; or say `fulfillment accounts same` where it is the same "
    "merchant; or, of a restored database, end the doubt with `fulfillment accounts doubt --hours "
    "0` once it is known that the former one has none of the orders that wait"
)
_THREADS = 16


@dataclass
class _Found:
    """What accounts know: order -> account -> report; and for which orders not all were asked."""

    reports: dict[int, dict[str, OrderReport]] = field(default_factory=dict)
    unasked: set[int] = field(default_factory=set)
    #: Why nobody can be asked who may know an order.
    mute: dict[int, str] = field(default_factory=dict)

    def note(
        self,
        account: str,
        members: Sequence[Order],
        answer: Mapping[str, OrderReport] | ProviderError,
    ) -> None:
        """Add what an account answered when it was asked for these orders."""
        if isinstance(answer, ProviderError):
            self.unasked |= {order.id for order in members}
            return
        for order in members:
            if order.external_id in answer:
                self.reports.setdefault(order.id, {})[account] = answer[order.external_id]


def search_first(context: Context, claim: KeptClaim, members: Sequence[Order]) -> list[Order]:
    """Give the orders that surely nobody has bought; those that are bought are adopted.

    An order that it is too early to ask for is given back until then, and one of which not every
    account could be asked for a moment. Where only one account told of an order, what may have been
    sent at another is not searched: the way of unknown outcomes ends it, whoever can be asked.
    """
    fresh = [order for order in members if not order.was_searched(claim.doubt)]
    # What may have been sent is looked up where it is, and not posted (`intents.begin_within`).
    unknown = {id_ for id_, a in claim.attempts.items() if a.unknown_since is not None}
    fresh = [o for o in fresh if o.id not in unknown or o.is_doubted(claim.doubt)]
    if not fresh:
        return list(members)
    began = context.now()
    places = _places(context, claim, fresh)
    settled = {
        order.id: _settled_at(context, order.doubted_since(claim.doubt) or began, places[order.id])
        for order in fresh
    }
    early = {id_: at for id_, at in settled.items() if began < at}
    if early:
        _put_off(context, claim, early)
    ripe = [order for order in fresh if order.id not in early]
    gone = set(early)
    if ripe:
        found = _search(context, claim, ripe, places)
        crash_point("recovery.answered")
        _leave_refusals(context, ripe, found, claim.doubt)
        _write(context, claim, ripe, found, began)
        gone |= found.unasked | found.reports.keys() | found.mute.keys()
    return [order for order in members if order.id not in gone]


def _leave_refusals(
    context: Context, members: Sequence[Order], found: _Found, doubt: Doubt | None
) -> None:
    """Forget purchases that ended at another account, which is known already or matters no more.

    But where our rows are in doubt: there it was bought last.
    """
    ended = [
        (order, account)
        for order in members
        for account, report in found.reports.get(order.id, {}).items()
        if account != order.account and not is_alive(report)
    ]
    if not ended:
        return
    with context.database.transaction() as session:
        tried = ledger.tried_at(session, [order.id for order, _ in ended])
    for order, account in ended:
        if account in tried.get(order.id, ()) or not order.is_doubted(doubt):
            del found.reports[order.id][account]
            if not found.reports[order.id]:
                del found.reports[order.id]


def _places(
    context: Context, claim: KeptClaim, members: Sequence[Order]
) -> dict[int, dict[str, str | None]]:
    """Give the accounts at which each order may have been bought, those of its route first.

    And at which merchant, where it was sent there and that was kept.

    Where our rows are doubted a route may have named any account when it was bought; where one
    provider told of it too early, it is one that the order's attempts tell of, or that one, or one
    that may have followed; where one only hinted, not that. Its own account, to which nothing was
    sent, is none of them. A checkout that names an account is bought there and nowhere else.
    """
    configured = context.settings.accounts
    with context.database.transaction() as session:
        tried = ledger.tried_at(session, [order.id for order in members])
    places = {}
    for order in members:
        merchants = tried.get(order.id, {})
        is_doubted = order.is_doubted(claim.doubt)
        ended = accounts_named(order, ENDED_BY)
        may_follow = is_doubted or ended or accounts_named(order, HAD_BY)
        told = [name for name, _ in (*tellers(order), *ended)]
        named = [order.account] if is_doubted or not told else []
        sent = [name for name, who in merchants.items() if who is not None or is_doubted]
        named += [*(order.fallbacks if may_follow else ()), *sent, *told]
        if order.route is not None and is_doubted:
            named += configured
        places[order.id] = {name: merchants.get(name) for name in named}
    return places


def _may_follow(order: Order) -> list[str]:
    """Name the accounts to which it may have gone on from those that told anything of it."""
    told = [name for word in (HAD_BY, ENDED_BY) for name, _ in accounts_named(order, word)]
    places = [order.fallbacks.index(name) + 1 for name in told if name in order.fallbacks]
    return list(order.fallbacks[max(places, default=0) :]) if told else []


def _mute(
    context: Context,
    claim: KeptClaim,
    members: Sequence[Order],
    places: Mapping[int, Mapping[str, str | None]],
) -> dict[int, str]:
    """Say of which orders a place cannot tell whether they were bought there, and why.

    Not where it refused them, and nothing else was ever heard of it.
    """
    changed = mute_accounts(context)
    found = {}
    for order in members:
        told, sent = tellers(order), places[order.id]
        named = (order.account, *(name for name, _ in told))
        asked = [(name, sent[name]) for name in named if name in sent]
        asked += told
        asked += [(name, None) for name in _may_follow(order)]
        why: Mapping[str, str] = {}
        if order.is_doubted(claim.doubt):
            known = (name for name in sent if name in context.settings.accounts)
            asked += [(name, None) for name in (*known, *order.fallbacks)]
            why = changed
        reasons = [
            reason
            for name, merchant in asked
            if (reason := why.get(name) or why_strange(context, name, merchant))
        ]
        if reasons:
            found[order.id] = "; ".join(dict.fromkeys(reasons))
    return found


def mute_accounts(context: Context) -> dict[str, str]:
    """Say of which accounts the merchant was changed while our rows lack what was bought there."""
    with context.database.transaction() as session:
        left = doubts.left(session)
    found = {name: why_strange(context, name, merchant) for name, merchant in left.items()}
    return {name: why for name, why in found.items() if why and name in context.settings.accounts}


def _settled_at(context: Context, since: datetime, places: Iterable[str]) -> datetime:
    """Say when a purchase that was begun before `since` is over, and no older answer is kept.

    Asked earlier, an account that knows nothing proves nothing.
    """
    known = [name for name in places if name in context.settings.accounts]
    longest = max(map(context.longest_call, known), default=timedelta())
    return since + longest + context.cache_time


@repeated
def _put_off(context: Context, claim: KeptClaim, early: Mapping[int, datetime]) -> None:
    with context.database.transaction() as session:
        _release(session, claim, early)


def _release(session: Session, claim: KeptClaim, due: Mapping[int, datetime]) -> None:
    """Give orders back, each until its time."""
    for due_at in sorted(set(due.values())):
        ids = sorted(order_id for order_id, at in due.items() if at == due_at)
        claims.release(session, ids, claim.name, due_at)


def _search(
    context: Context,
    claim: KeptClaim,
    members: Sequence[Order],
    places: Mapping[int, Mapping[str, str | None]],
) -> _Found:
    found = _Found()
    by_account: dict[str, list[Order]] = {}
    for order in members:
        for account in places[order.id]:
            if account in context.settings.accounts:
                by_account.setdefault(account, []).append(order)
    with context.threads.pool(_THREADS, "search") as executor:
        for account, group in by_account.items():
            _ask(context, executor, account, group, found)
    found.mute = _mute(context, claim, members, places)
    for order_id in found.unasked | found.mute.keys():
        # A purchase that failed here may have been followed by one that lives there.
        if not any(map(is_alive, found.reports.get(order_id, {}).values())):
            found.reports.pop(order_id, None)
    found.unasked -= found.reports.keys()
    return found


def _ask(
    context: Context, executor: Executor, account: str, group: Sequence[Order], found: _Found
) -> None:
    """Ask one account for orders: for many at once, then for each that this left out alone."""
    size = context.provider(account).lookup_limit
    parts = [group[start : start + size] for start in range(0, len(group), size)]
    grant = context.budget(account).take(Purpose.URGENT, len(parts))
    flying = [
        executor.submit(look_up, context, account, grant, [o.external_id for o in part])
        for part in parts[: grant.size]
    ]
    context.threads.all_done(flying)
    grant.give_back()
    found.unasked |= {order.id for part in parts[grant.size :] for order in part}
    answers = [future.result() for future in flying]
    left_out: dict[str, Order] = {}
    for part, answer in zip(parts, answers, strict=False):
        found.note(account, part, answer)
        if len(part) > 1 and not isinstance(answer, ProviderError):
            left_out |= {o.external_id: o for o in part if o.external_id not in answer}
    # In their order: of a route, the budgets of all its accounts reach to the same orders.
    names = [name for name, order in left_out.items() if order.id not in found.unasked]
    alone = look_up_alone(context, account, executor, Purpose.URGENT, names)
    for name in names:
        if name in alone:
            found.note(account, [left_out[name]], alone[name])
        else:
            found.unasked.add(left_out[name].id)
    told = (*answers, *alone.values())
    errors = [answer for answer in told if isinstance(answer, ProviderError)]
    failure = outages.of_the_account(errors, is_answered=len(errors) < len(told))
    if failure is not None:
        outages.pause(context, account, failure)


def _gap_unasked(since: datetime | None, now: datetime) -> timedelta:
    """Give how soon to look again where an account could not be asked: rarer with the time."""
    return min(max(_AGAIN, (now - (since or now)) / 60), _SLOWEST_AGAIN)


@repeated
def _write(
    context: Context,
    claim: KeptClaim,
    members: Sequence[Order],
    found: _Found,
    began: datetime,
) -> None:
    now = context.now()
    absent = [o.id for o in members if o.id not in found.unasked and o.id not in found.reports]
    mute = [order_id for order_id in absent if order_id in found.mute]
    absent = [order_id for order_id in absent if order_id not in found.mute]
    with context.database.transaction() as session:
        if found.reports:
            adopt(context, session, claim, found.reports, now)
        # Of which more was told since it was read, it was not asked with that in mind.
        present = {order.id: _told_of(order) for order in orders.lock(session, absent)}
        news = {o.id for o in members if o.id in present and present[o.id] != _told_of(o)}
        found.unasked |= news
        absent = [order_id for order_id in absent if order_id not in news]
        if absent:
            # What is told from now on counts as later, by whichever of two machines' clocks.
            doubts.note_searched(session, absent, began - 2 * APART)
            denied = {o.id: without_accounts(o) for o in members if o.id in absent}
            note = "nobody has it who may have had it"
            moves = [
                Move(o.id, o.status, o.status, Source.SWEEP, note, {"late_words": denied[o.id]},
                     claim=claim.name)
                for o in members
                if o.id in denied and denied[o.id] != o.late_words
            ]  # fmt: skip
            orders.apply(session, moves, now)
        unfound = [o for o in members if o.id in found.unasked or o.id in mute]
        _give_up(context, session, claim, unfound, now)
        if found.unasked:
            unasked = [order for order in members if order.id in found.unasked]
            since = {order.id: order.doubted_since(claim.doubt) for order in unasked}
            again_at = {id_: now + _gap_unasked(at, now) for id_, at in since.items()}
            _release(session, claim, again_at)
        if mute:
            claims.release(session, mute, claim.name, now + _MUTE_GAP)
        crash_point("recovery.before_commit")
    crash_point("recovery.after_commit")
    if mute:
        why = {o.external_id: found.mute[o.id] for o in members if o.id in mute}
        log.error("order.not_searchable", account=claim.account, orders=why, act=MUTE_ACT)


def _told_of(order: Order) -> tuple[datetime | None, str | None]:
    return order.told_early_at, order.late_words


def _give_up(
    context: Context, session: Session, claim: KeptClaim, unfound: Sequence[Order], now: datetime
) -> None:
    """Hand unknown outcomes to a person that nobody could look for until long after their time."""
    note = "its row is in doubt, and it could not be looked for"
    moves = [
        review(context, order, note, claim)
        for order in unfound
        if (attempt := claim.attempts.get(order.id)) is not None
        and order.status is S.SUBMITTING
        and is_left_to_a_person(context, order, attempt, now)
    ]
    orders.apply(session, moves, now)


def describe(since: datetime, until: datetime) -> str:
    """Say what a doubt means, and what a person has to see to."""
    return (
        f"since {since:%Y-%m-%d %H:%M:%S} UTC this is another server or a restored database: each "
        f"order of before {until:%Y-%m-%d %H:%M:%S} UTC is looked for before it is bought; {ACT}"
    )


def doubt(context: Context, length: timedelta) -> datetime:
    """Say that the database was restored: until the time given, nothing is bought unsearched."""
    now = context.now()
    with context.database.transaction() as session:
        configured = context.settings.accounts.items()
        accounts.ensure(session, {name: each.merchant for name, each in configured}, now)
        doubts.doubt(session, now, now + length)
    if length:
        hours = length.total_seconds() / 3600
        log.error("database.is_restored", doubted_for_h=hours, act=ACT)
    return now + length
