"""The brakes on buying: the operator's kill switch, and the spend caps an hour.

A stopped account buys nothing new: no batch is gathered and no request to buy is sent. Unknown
outcomes are still looked up, and orders that the provider has are followed to their ends.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from fulfillment.clock import time_of_day
from fulfillment.errors import ServerUnreachable
from fulfillment.log import get_logger
from fulfillment.services import reasons
from fulfillment.services.context import Context
from fulfillment.store import accounts, claims, doubts, due, proof, spending, switches
from fulfillment.store.engine import Session
from fulfillment.store.switches import ALL, Stop
from schemas.money import cap_in_cents, cents_to_mills, charge_in_cents
from schemas.orders import AccountView

log = get_logger(__name__)

#: How soon to look at an order again that only the switch keeps from being sent.
STOPPED_GAP = timedelta(seconds=10)
_HOUR = timedelta(hours=1)
#: Who has turned a switch where no person did.
WATCHES = _REVERSALS, _WALLET = "reversal watch", "wallet watch"
#: So many deliveries undone within an hour may be of one act that has undone more.
_SUSPICIOUS = 3
#: The others are asked about with a twentieth of the rate budget; without one, once a second.
_EARLY_SHARE = 0.05
_EARLY_GAP = timedelta(seconds=1)
_MOST_EARLY = 2000


def stop(context: Context, account: str | None, reason: str, by: str) -> Stop | None:
    """Stop an account, or all where none is named; give the stop that this replaces.

    Raises InvalidInput, ConfigurationError.
    """
    reason = reasons.written(reason, "why, for whoever finds the account stopped")
    return _turn(context, account, reason, by)


def stop_now(context: Context, account: str | None) -> Stop | None:
    """Give what stops an account by its own switch, or all where none is named.

    Raises ConfigurationError.
    """
    with context.database.transaction() as session:
        found = switches.stops(session)
    return found.get(_name(context, account))


def resume(context: Context, account: str | None, reason: str, by: str) -> Stop | None:
    """Turn the switch of an account, or of all, back; give the stop that this has ended.

    None where nothing was turned: it was not stopped, or was stopped anew meanwhile, which nobody
    has looked at. Accounts that are stopped by themselves stay so when all are resumed. Raises
    InvalidInput, ConfigurationError.
    """
    reason = reasons.bounded(reason)
    seen = stop_now(context, account)
    return seen and _turn(context, account, reason, by, ends=seen)


def ask_again(context: Context, account: str) -> bool:
    """End the pause that came of an account's failures, or of its provider's wish for one.

    As a person knows that it is over. False where there was none. Raises ConfigurationError.
    """
    context.account(account)
    now = context.now()
    with context.database.transaction() as session:
        is_ended = accounts.end_pause(session, account, now)
        if is_ended:
            claims.hurry(session, account, now)
    if is_ended:
        log.warning("account.asked_again", account=account)
    return is_ended


def _turn(
    context: Context, account: str | None, reason: str, by: str, *, ends: Stop | None = None
) -> Stop | None:
    """Stop the account, or end that stop of it; give the stop that this has replaced or ended.

    Where it is not what stops the account any more, nothing is ended.
    """
    name = _name(context, account)
    with context.database.transaction() as session:
        switches.lock(session, name)
        if ends is not None and switches.stops(session).get(name) != ends:
            return None
        before = ends or switches.stops(session).get(name)
        now = context.now()
        switches.turn(session, name, is_stopped=ends is None, by=by, reason=reason, now=now)
    event = "account.stopped" if ends is None else "account.resumed"
    log.warning(event, account=name, by=by, reason=reason)
    return before


def _name(context: Context, account: str | None) -> str:
    if account is None:
        return ALL
    context.account(account)
    return account


def show_accounts(context: Context) -> list[AccountView]:
    """Show every configured account: what stops it, and what it may spend."""
    views = []
    with context.database.transaction() as session:
        pauses = accounts.pauses(session, context.now())
        doubt = doubts.standing(session, context.now())
        cap = context.settings.spend_cap_cents_per_hour
        spent = None if cap is None else charge_in_cents(_spent_mills(context, session, None))
        for name, settings in context.settings.accounts.items():
            stopped = switches.stop_of(session, name)
            views.append(
                AccountView(
                    account=name,
                    provider=settings.provider,
                    stopped_at=stopped and stopped.at,
                    stopped_by=stopped and stopped.by,
                    stop_reason=stopped and stopped.reason,
                    is_stopped_with_all=stopped is not None and stopped.account == ALL,
                    paused_until=pauses[name][0] if name in pauses else None,
                    pause_reason=pauses[name][1] if name in pauses else None,
                    requests_per_minute=settings.requests_per_minute,
                    spend_cap=settings.spend_cap_cents_per_hour,
                    spent_last_hour=charge_in_cents(_spent_mills(context, session, name)),
                    spend_cap_of_all=cap,
                    spent_last_hour_by_all=spent,
                    doubted_since=doubt and doubt.since,
                    doubted_until=doubt and doubt.until,
                )
            )
    return views


def what_stops(view: AccountView, now: datetime) -> str:
    """Say who has stopped the account, since when and why, or until when it pauses; "" where it
    buys."""
    if view.stopped_at:
        scope = " with all" if view.is_stopped_with_all else ""
        since = f"since {view.stopped_at:%Y-%m-%d %H:%M:%S} UTC"
        return f"paused{scope} {since} by {view.stopped_by}: {view.stop_reason}"
    if view.paused_until:
        until = time_of_day(view.paused_until, now)
        return f"provider away until {until} UTC: {view.pause_reason}"
    return ""


def _spent_mills(context: Context, session: Session, account: str | None) -> int:
    accounts_set = context.settings.accounts
    longest_call = max(map(context.longest_call, accounts_set), default=timedelta())
    return spending.spent_mills(session, account, context.now() - _HOUR, longest_call)


def watch_reversals(context: Context, session: Session, account: str) -> None:
    """Stop the account, once, where many of its deliveries were undone within an hour.

    Whoever undoes many at a time would undo the next ones too. A person resumes; from then on the
    count begins anew, while it goes on through stops for other reasons. Where a few were undone
    the others are asked about before their time: what was undone in one act is to be found within
    the hour that is counted over.
    """
    if _is_stopped_by(session, account, _REVERSALS):
        return
    now = context.now()
    undone = switches.unjudged_reversals(session, account, now - _HOUR, _REVERSALS)
    limit = context.account(account).stop_at_reversals
    if undone >= min(limit, _SUSPICIOUS):
        _look_at_others(context, session, account, now)
    reason = f"{undone} deliveries were undone within an hour"
    if undone >= limit and _stop_by_itself(session, account, _REVERSALS, reason, now):
        log.error("reversals.mass", account=account, undone=undone)


def _look_at_others(context: Context, session: Session, account: str, now: datetime) -> None:
    """Have delivered orders polled within the hour, in step with the rate budget."""
    per_minute = context.account(account).requests_per_minute
    gap = _EARLY_GAP if per_minute is None else timedelta(minutes=1) / (per_minute * _EARLY_SHARE)
    size = context.provider(account).lookup_limit
    limit = min(_HOUR // gap * size, _MOST_EARLY)
    count = due.poll_early(session, account, now, _HOUR, gap, size, limit)
    if count:
        log.warning("reversals.suspected", account=account, asked_about=count)


def watch_unexplained(context: Context, session: Session, account: str) -> None:
    """Stop the account where money goes from its wallet that no order of ours took.

    It stops where what is unexplained reaches the account's limit. A person resumes; what has
    stopped it then counts no more. The wallet's row must be locked.
    """
    limit = context.account(account).stop_at_unexplained_cents
    if limit is None:
        return
    cents = charge_in_cents(proof.unexplained_since_stop(session, account))
    reason = f"{cents} cents went from the wallet without an order of ours"
    if cents >= limit and _stop_by_itself(session, account, _WALLET, reason, context.now()):
        proof.note_stop(session, account)
        log.error("wallet.stopped", account=account, unexplained_cents=cents)


def _is_stopped_by(session: Session, account: str, watch: str) -> bool:
    """Say whether this watch has turned the account's own switch: any other stop, as one of all
    accounts, ends without a word of what the watch has seen."""
    stopped = switches.stops(session).get(account)
    return stopped is not None and stopped.by == watch


def _stop_by_itself(session: Session, account: str, by: str, reason: str, now: datetime) -> bool:
    """Turn the account's own switch; False where this watch has done so already.

    Whoever resumes it is told what had stopped it before too.
    """
    switches.lock(session, account)
    if _is_stopped_by(session, account, by):
        return False
    if before := switches.stops(session).get(account):
        reason = f"{reason}; stopped before that by {before.by}: {before.reason}"
    switches.turn(session, account, is_stopped=True, by=by, reason=reason, now=now)
    return True


class LastLook:
    """The account's switch, for threads that look at it right before their requests leave.

    Those that come while one looks share the next look, which begins after they came.
    """

    def __init__(self, context: Context, account: str) -> None:
        self._context = context
        self._account = account
        self._looking = context.threads.lock()
        self._begun = 0
        self._why_not: str | None = None

    def why_not(self) -> str | None:
        """Say why nothing may be bought; None where it may."""
        seen = self._begun
        with self._looking:
            if self._begun == seen:
                self._begun += 1
                self._why_not = "nobody knows whether the account is stopped"
                self._why_not = self._look()
            return self._why_not

    def _look(self) -> str | None:
        try:
            with self._context.database.transaction() as session:
                stopped = switches.stop_of(session, self._account)
        except ServerUnreachable as error:
            return f"nobody can say whether the account is stopped: {error}"
        return None if stopped is None else f"the account was stopped by {stopped.by}"


@dataclass(frozen=True, slots=True)
class Room:
    """What the spend caps let an account commit, in mills: its own, and that of all accounts.

    None without a cap.
    """

    own: int | None
    of_all: int | None

    @property
    def mills(self) -> int | None:
        return min((room for room in (self.own, self.of_all) if room is not None), default=None)

    def less(self, committed: int) -> "Room":
        own = None if self.own is None else self.own - committed
        return Room(own, None if self.of_all is None else self.of_all - committed)

    def is_over_all(self, price: int) -> bool:
        """Say whether the price is over the cap of all accounts, whichever account would buy."""
        return self.of_all is not None and price > self.of_all


def room(context: Context, session: Session, account: str, *, is_exact: bool = True) -> Room:
    """Give what the caps let the account commit now.

    Exact only under the wallet's lock; what all accounts share is locked here, unless that is not
    asked for.
    """
    own, of_all = _caps(context, account)
    if of_all is not None:
        if is_exact:
            spending.lock_spending(session)
        of_all = cents_to_mills(of_all) - _spent_mills(context, session, None)
    if own is not None:
        own = cents_to_mills(own) - _spent_mills(context, session, account)
    return Room(own, of_all)


def _caps(context: Context, account: str) -> tuple[int | None, int | None]:
    """Give the caps in cents: the account's, and that of all."""
    of_all = context.settings.spend_cap_cents_per_hour
    return context.account(account).spend_cap_cents_per_hour, of_all


def shortage(context: Context, account: str, room: Room, price: int) -> str:
    """Say how little is left within the cap that a price (mills) is over."""
    own, of_all = _caps(context, account)
    is_over_all = room.is_over_all(price)
    left = (room.of_all if is_over_all else room.own) or 0
    return (
        f"{cap_in_cents(max(left, 0))} cents are left of {of_all if is_over_all else own} "
        f"an hour within the spend cap{' of all accounts' if is_over_all else ''}"
    )
