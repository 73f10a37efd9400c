"""The brakes on buying: the operator's kill switch, and each account's spend cap an hour.

A stopped account buys nothing new: no batch is gathered and no request to buy is sent. Unknown
outcomes are still looked up, and orders that the provider has are followed to their ends.
"""

from datetime import timedelta

from fulfillment.errors import InvalidInput
from fulfillment.log import get_logger
from fulfillment.services.context import Context
from fulfillment.store import accounts, ledger, proof, switches
from fulfillment.store.engine import Session
from fulfillment.store.switches import ALL
from schemas.money import cents_to_mills, charge_in_cents
from schemas.orders import AccountView

log = get_logger(__name__)

#: How soon to look at an order again that only the switch keeps from being sent.
STOPPED_GAP = timedelta(seconds=10)
_HOUR = timedelta(hours=1)


def stop(context: Context, account: str | None, reason: str, by: str) -> None:
    """Stop an account, or all where none is named. Raises InvalidInput, ConfigurationError."""
    if not reason.strip():
        raise InvalidInput("reason", "expected why, for whoever finds the account stopped")
    _turn(context, account, reason.strip(), by, is_stopped=True)


def resume(context: Context, account: str | None, reason: str, by: str) -> bool:
    """Turn the switch of an account, or of all, back; say whether it was turned.

    Accounts that are stopped by themselves stay so when all are resumed. Raises ConfigurationError.
    """
    with context.database.transaction() as session:
        is_stopped = (account or ALL) in switches.stops(session)
    if is_stopped:
        _turn(context, account, reason.strip(), by, is_stopped=False)
    return is_stopped


def _turn(context: Context, account: str | None, reason: str, by: str, *, is_stopped: bool) -> None:
    name = ALL
    if account is not None:
        context.account(account)
        name = account
    with context.database.transaction() as session:
        now = context.now()
        switches.turn(session, name, is_stopped=is_stopped, by=by, reason=reason, now=now)
    event = "account.stopped" if is_stopped else "account.resumed"
    log.warning(event, account=name, by=by, reason=reason)


def show_accounts(context: Context) -> list[AccountView]:
    """Show every configured account: what stops it, and what it may spend."""
    views = []
    with context.database.transaction() as session:
        pauses = accounts.pauses(session, context.now())
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
                )
            )
    return views


def _spent_mills(context: Context, session: Session, account: str) -> int:
    return ledger.spent_mills(session, account, context.now() - _HOUR)


def watch_reversals(context: Context, session: Session, account: str) -> None:
    """Stop the account, once, where many of its deliveries were undone within an hour.

    Whoever undoes many at a time would undo the next ones too. A person resumes; from then on the
    count begins anew.
    """
    if switches.stop_of(session, account):
        return
    now = context.now()
    undone = switches.reversals_since_turn(session, account, now - _HOUR)
    if undone < context.account(account).stop_at_reversals or switches.stop_of(session, account):
        return
    reason = f"{undone} deliveries were undone within an hour"
    switches.turn(session, account, is_stopped=True, by="reversal watch", reason=reason, now=now)
    log.error("reversals.mass", account=account, undone=undone)


def watch_unexplained(context: Context, session: Session, account: str, missing_mills: int) -> None:
    """Stop the account where money goes from its wallet that no order of ours took.

    `missing_mills` is what a figure has just shown; it stops where all that is unexplained reaches
    the account's limit. A person resumes; what goes after that stops it again.
    """
    limit = context.account(account).stop_at_unexplained_cents
    if limit is None or switches.stop_of(session, account):
        return
    cents = charge_in_cents(proof.unexplained_mills(session, account))
    if cents < limit:
        return
    reason = f"{cents} cents went from the wallet without an order of ours"
    now = context.now()
    switches.turn(session, account, is_stopped=True, by="wallet watch", reason=reason, now=now)
    log.error("wallet.stopped", account=account, missing_mills=missing_mills)


def room_mills(context: Context, session: Session, account: str) -> int | None:
    """Give what the cap lets the account commit now; None without a cap.

    Exact only under the wallet's lock.
    """
    cap = context.account(account).spend_cap_cents_per_hour
    return None if cap is None else cents_to_mills(cap) - _spent_mills(context, session, account)
