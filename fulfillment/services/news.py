"""News that an account has of an order of which nothing was sent there, as far as we know."""

from contextlib import suppress
from datetime import datetime
from typing import Any

from fulfillment.errors import ConfigurationError
from fulfillment.services.context import Context
from fulfillment.services.hearsay import ENDED_BY, HAD_BY, HINTED_BY, with_account
from fulfillment.states import UNFULFILLED
from fulfillment.store.models import Order
from schemas.provider import OrderReport


def heard(
    context: Context, order: Order, account: str, now: datetime, report: OrderReport | None = None
) -> dict[str, Any]:
    """Give the changes that have the order looked for before it is bought, and say by whom.

    None for a hint that may be anybody's where another waits to be looked into.
    """
    settings = context.settings.accounts.get(account)
    kind, is_hint = HAD_BY, report is None and is_anybodys(context, account)
    if is_hint:
        kind = HINTED_BY
    elif report is not None and not is_alive(report):
        kind = ENDED_BY
    words = with_account(order, kind, account, settings.merchant if settings else "")
    if is_hint and words is None:
        return {}
    return {"told_early_at": now, **({} if words is None else {"late_words": words})}


def is_alive(report: OrderReport) -> bool:
    """Say whether it tells of a purchase that did not end without the item."""
    return report.state.order_status() not in UNFULFILLED


def is_anybodys(context: Context, account: str) -> bool:
    """Say whether a webhook of the account may be anybody's, about an order of his choice."""
    with suppress(ConfigurationError):
        return not context.provider(account).signs_what_it_is_about
    return False
