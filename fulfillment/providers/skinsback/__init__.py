"""SkinsBack: the adapter's folder; the rest of the program knows only `build` and `REQUIRED`."""

from collections.abc import Callable

from fulfillment.providers.http import HTTPClient
from fulfillment.providers.skinsback.client import SkinsBack
from fulfillment.settings import AccountSettings

#: Account settings without which no request can be made.
REQUIRED = ("client_id", "client_secret")


def build(account: AccountSettings, spend: Callable[[], None] | None) -> SkinsBack:
    """Make the adapter of one account."""
    return SkinsBack(
        HTTPClient(account.url, timeout_s=account.request_timeout_s, spend=spend),
        account.client_id,
        account.client_secret.get_secret_value(),
        account.webhook_secrets,
        is_signing=account.sign_requests,
        is_checking_recipient=account.check_recipient,
    )
