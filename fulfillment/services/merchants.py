"""Whose ledger an attempt is in: what was begun at one merchant is concluded at no other.

An account whose provider, address or client id was changed is another merchant's, and knows nothing
of what was bought before; one that was taken out of the settings can be asked by nobody.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta

from fulfillment.log import get_logger
from fulfillment.services import reasons, schedule
from fulfillment.services.claiming import KeptClaim
from fulfillment.services.context import Context
from fulfillment.services.dispatch import overdue_refusal
from fulfillment.services.hearsay import under
from fulfillment.states import FINAL, FOLLOWED
from fulfillment.store import accounts, doubts, due, ledger, orders
from fulfillment.store.due import Due
from fulfillment.store.engine import Session, repeated
from fulfillment.store.ledger import Posting
from fulfillment.store.models import NOTHING_DUE, Attempt, Move, Order
from schemas.enums import OrderStatus, Source
from schemas.messages import NEEDS_REVIEW

log = get_logger(__name__)

#: How often to look whether an account is again what it was.
_LOOK_GAP = timedelta(minutes=10)
_BEAT_S = 30.0
_LIMIT = 500


def why_strange(context: Context, account: str, begun_at: str | None) -> str | None:
    """Say why the account can tell nothing of what was begun at the merchant; None if it can.

    `begun_at` None: begun by code that did not keep whom it asked, or surely by nobody.
    """
    settings = context.settings.accounts.get(account)
    if settings is None:
        return f"the account {account} is not configured any more"
    changed = settings.changed_since(begun_at) if begun_at else ()
    if not changed:
        return None
    return f"{' and '.join(changed)} of the account {account} changed, so it is another merchant's"


def is_strange(context: Context, account: str, attempt: Attempt | None) -> bool:
    """Say whether the attempt may have left, and the account cannot tell what became of it."""
    if attempt is None or attempt.is_unsent:
        return False
    return why_strange(context, account, attempt.merchant) is not None


def keep_own(context: Context, claim: KeptClaim, members: Sequence[Order]) -> list[Order]:
    """Give the orders that their account can tell of; the others are a person's.

    To post one of those again could buy it twice, and a lookup of it would prove nothing.
    """
    strange: dict[int, str] = {}
    for order in members:
        attempt = claim.attempts.get(order.id)
        if attempt is None or attempt.unknown_since is None:
            continue
        if why := why_strange(context, order.account, attempt.merchant):
            strange[order.id] = why
    if strange:
        left = [order for order in members if order.id in strange]
        _hand_over(context, left, strange, claim.name)
    return [order for order in members if order.id not in strange]


@repeated
def _hand_over(context: Context, left: Sequence[Order], why: Mapping[int, str], claim: str) -> None:
    with context.database.transaction() as session:
        _review(context, session, left, why, Source.SUBMIT, claim)


def _review(
    context: Context,
    session: Session,
    left: Iterable[Order],
    why: Mapping[int, str],
    by: Source,
    claim: str | None = None,
) -> dict[int, Order]:
    """Hand purchases of unknown outcome to a person; their holds stay."""
    now = context.now()
    moves = [
        Move(
            order.id,
            OrderStatus.SUBMITTING,
            OrderStatus.NEEDS_REVIEW,
            by,
            _note("whether it was bought cannot be found out", why[order.id]),
            due={**NOTHING_DUE, "next_poll_at": now + _LOOK_GAP},
            tell=(NEEDS_REVIEW,),
            claim=claim,
        )
        for order in left
    ]
    moved = orders.apply(session, moves, now)
    ledger.note_strange(session, list(moved), now)
    for order in moved.values():
        log.warning("order.alarm", order_id=order.external_id, note=why[order.id])
    return moved


def _note(what: str, why: str) -> str:
    return f"{what}: {why}; put the settings back, or look it up where it was begun and resolve it"


def strangers(
    context: Context, account: str, merchants: Mapping[int, str | None]
) -> dict[int, str]:
    """Say of which orders the account can tell nothing, and why: by order, as who may have it."""
    found = {order_id: why_strange(context, account, who) for order_id, who in merchants.items()}
    return {order_id: why for order_id, why in found.items() if why}


@repeated
def leave(context: Context, account: str, why: Mapping[int, str]) -> None:
    """Put off polls of orders that the account can tell nothing of; a person is told, once.

    Not of each delivery, which stays one: that nobody watches it, the invariants tell.
    """
    now = context.now()
    with context.database.transaction() as session:
        locked = [o for o in orders.lock(session, list(why)) if o.account == account]
        attempts = ledger.attempts_of(session, [order.id for order in locked])
        fresh = [o for o in locked if o.id in attempts and attempts[o.id].strange_since is None]
        open_ones = FOLLOWED | {OrderStatus.NEEDS_REVIEW}
        moves = [_told(order, why[order.id]) for order in fresh if order.status in open_ones]
        nexts = {order.id: _next_look(order, now) for order in locked}
        awaited = [o for o in locked if nexts[o.id] is None and o.poll_wanted_at is not None]
        moves += [_given_up(order, why[order.id]) for order in awaited]
        orders.apply(session, moves, now)
        left = [order.id for order in fresh if order.status is not OrderStatus.SUBMITTING]
        ledger.note_strange(session, left, now)
        due.spread(session, nexts)


def _told(order: Order, why: str) -> Move:
    note = _note("it is not asked about any more", why)
    log.warning("order.alarm", order_id=order.external_id, note=note)
    return Move(order.id, order.status, order.status, Source.POLL, note, tell=(NEEDS_REVIEW,))


def _given_up(order: Order, why: str) -> Move:
    """Tell a person of an order of which there was news, and nobody could be asked for it."""
    log.error("poll.given_up", order_id=order.external_id, status=order.status)
    note = f"news of it was waited for, and it is asked about no more: {why}; look it up there"
    due = {"poll_wanted_at": None}
    return Move(order.id, order.status, order.status, Source.POLL, note, {}, due, (NEEDS_REVIEW,))


def _next_look(order: Order, now: datetime) -> datetime | None:
    if order.status not in FINAL or order.lives_on:
        return now + _LOOK_GAP
    # The last look at a delivery is made up for, as where nobody answers.
    is_awaited = order.poll_wanted_at is not None or order.status is OrderStatus.COMPLETED
    return now + _LOOK_GAP if is_awaited and not schedule.is_given_up(order, now) else None


def note_configured(context: Context, session: Session) -> list[str]:
    """Let others know which accounts we have; name those that nobody has any more."""
    clock, name = context.clock.monotonic(), "configured"
    if clock >= context.next_beats.get(name, 0.0):
        context.next_beats[name] = clock + _BEAT_S
        accounts.note_configured(session, context.settings.accounts, context.now())
    return accounts.gone(session, context.settings.accounts, context.now())


def leave_gone(context: Context, gone: Sequence[str]) -> None:
    """Hand what may have been bought at accounts that are gone to a person.

    What surely was not, and has no other account to go on to, waits until its time is over.
    """
    if not gone:
        return
    _end_submits(context, gone)
    for account in gone:
        members = _claim_gone(context, account)
        if members:
            leave(context, account, strangers(context, account, {o.id: None for o in members}))


@repeated
def _end_submits(context: Context, gone: Sequence[str]) -> None:
    now = context.now()
    with context.database.transaction() as session:
        begun = orders.lock_submitting_at(session, gone, now, _LIMIT)
        # Read after the orders were locked: only a holder of the lock commits an intent to send.
        attempts = ledger.attempts_of(session, [order.id for order in begun])
        strange = [o for o in begun if is_strange(context, o.account, attempts.get(o.id))]
        why = {o.id: why_strange(context, o.account, None) or "" for o in strange}
        _review(context, session, strange, why, Source.SWEEP)
        doubted = doubts.of_accounts(session) if begun else {}
        unsent = [o for o in begun if o.id not in why and o.was_searched(doubted.get(o.account))]
        late = [overdue_refusal(order, now, Source.SWEEP) for order in unsent]
        ended = orders.apply(session, [move for move in late if move], now)
        ledger.refuse(session, [Posting(order_id, "never sent") for order_id in ended], now)


@repeated
def _claim_gone(context: Context, account: str) -> list[Due]:
    now = context.now()
    with context.database.transaction() as session:
        return due.claim_polls(session, account, now, due.Gap(_LOOK_GAP), _LIMIT)


def is_same(context: Context, account: str, reason: str, by: str) -> int:
    """Take a person's word that the account is still the merchant that it was; give for how many.

    What was begun there under its former settings is followed from now on. Raises InvalidInput for
    an empty or long reason, ConfigurationError.
    """
    settings = context.account(account)
    reason = reasons.written(reason, "why, for the orders' logs")
    note, found = f"{account} is still the same merchant, says {by}: {reason}", set[int]()
    with context.database.transaction() as session:
        doubts.trust(session, account)
        merchants = ledger.merchants_of(session, account)
    for merchant in merchants:
        if not settings.changed_since(merchant):
            continue
        while some := _trust(context, account, merchant, note):
            found |= some
    found |= _trust_words(context, account, note)
    log.warning("account.same_merchant", account=account, by=by, reason=reason, orders=len(found))
    return len(found)


@repeated
def _trust_words(context: Context, account: str, note: str) -> set[int]:
    """Let the account be asked for orders that it told of while it was called otherwise."""
    present = context.account(account).merchant
    with context.database.transaction() as session:
        named = orders.lock_with_words(session, f"by {account} at ")
        words = {order.id: under(order, account, present) for order in named}
        moves = [
            Move(o.id, o.status, o.status, Source.OPERATOR, note, {"late_words": words[o.id]})
            for o in named
            if words[o.id] != o.late_words
        ]
        return set(orders.apply(session, moves, context.now()))


@repeated
def _trust(context: Context, account: str, merchant: str, note: str) -> set[int]:
    now = context.now()
    with context.database.transaction() as session:
        ids = ledger.begun_at(session, account, merchant, _LIMIT)
        locked = orders.lock(session, ids)
        moves = [Move(o.id, o.status, o.status, Source.OPERATOR, note) for o in locked]
        orders.apply(session, moves, now)
        ledger.note_own(session, account, ids, context.account(account).merchant)
        here = [order.id for order in locked if order.account == account]
        due.poll_at(session, here, now, context.settings.poll_min_interval_s)
    return set(ids)
