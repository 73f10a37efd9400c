"""News that an account has of an order of which nothing was sent there, as far as we know."""

from contextlib import suppress
from datetime import datetime
from typing import Any

from fulfillment.errors import ConfigurationError
from fulfillment.services.context import Context
from fulfillment.services.hearsay import HAD_BY, with_account, with_hint
from fulfillment.store.models import Order


def heard(
    context: Context, order: Order, account: str, now: datetime, *, is_report: bool = False
) -> dict[str, Any]:
    """Give the changes that have the order looked for before it is bought, and say by whom.

    None for a hint that may be anybody's where the account was named, or asked, before.
    """
    settings = context.settings.accounts.get(account)
    merchant = settings.merchant if settings else ""
    if not is_report and is_anybodys(context, account):
        words = with_hint(order, account, merchant)
        return {} if words is None else {"told_early_at": now, "late_words": words}
    words = with_account(order, HAD_BY, account, merchant)
    return {"told_early_at": now, **({} if words is None else {"late_words": words})}


def is_anybodys(context: Context, account: str) -> bool:
    """Say whether a webhook of the account may be anybody's, about an order of his choice."""
    with suppress(ConfigurationError):
        return not context.provider(account).signs_what_it_is_about
    return False
