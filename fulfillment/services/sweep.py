"""Find work whose message was lost or whose worker died, and set it going again."""

import uuid
from collections import defaultdict
from dataclasses import dataclass, field

from fulfillment.crash import crash_point
from fulfillment.services import funds, merchants, pulse, routes
from fulfillment.services.claiming import WALLET, claim_name
from fulfillment.services.context import Context
from fulfillment.services.dispatch import make_batch
from fulfillment.services.watchdog import expire_waiting
from fulfillment.store import claims, doubts, inbox, leases, orders, proof
from fulfillment.store.engine import repeated
from schemas.enums import DebitsAt
from schemas.messages import Batch

_LIMIT = 256


@dataclass(frozen=True, slots=True)
class Found:
    """What the sweep wants to be sent."""

    accounts: list[str] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)
    has_webhooks: bool = False


def resume_stuck(context: Context, heartbeat: str = pulse.SWEEP) -> Found:
    """Claim submissions that are due again, and name accounts with orders to be dispatched.

    That the sweep runs is noted as `heartbeat`.
    """
    with context.database.transaction() as session:
        doubts.notice(session, context.now())
        gone = merchants.note_configured(context, session)
    routes.leave_paused(context, gone)
    routes.price_afresh(context)
    expire_waiting(context)
    merchants.leave_gone(context, gone)
    configured = context.settings.accounts
    at_end = [n for n, account in configured.items() if account.debits_at is DebitsAt.FINAL]
    with context.database.transaction() as session:
        to_read = proof.accounts_to_read(session, context.now(), context.wallet_lag, at_end)
    for account in to_read:
        if account in configured:
            funds.refresh_wallet(context, account)
    funds.prove_wallets(context)
    # Last: what is claimed here and not sent, because something else fails, waits for a lease.
    return _claim(context, heartbeat)


@repeated
def _claim(context: Context, heartbeat: str) -> Found:
    now = context.now()
    token = uuid.uuid4().hex
    configured = context.settings.accounts
    with context.database.transaction() as session:
        leases.beat(session, heartbeat, now)
        claim = claim_name(token, WALLET)
        until = now + context.lease
        stuck = claims.claim_stuck(session, configured, claim, now, until, _LIMIT)
        members = orders.get(session, [order_id for order_id, _ in stuck])
        waiting = claims.accounts_waiting(session, now)
        has_webhooks = inbox.is_due(session, now)
    crash_point("sweep.claimed", members)
    by_account = defaultdict(list)
    for order in members:
        by_account[order.account].append(order)
    return Found(
        accounts=[account for account in waiting if account in configured],
        batches=[make_batch(account, token, group) for account, group in by_account.items()],
        has_webhooks=has_webhooks,
    )
