"""SkinsNode: the adapter's folder; the rest of the program knows only `build` and `REQUIRED`."""

from collections.abc import Callable

from fulfillment.providers.http import HTTPClient
from fulfillment.providers.skinsnode.client import SkinsNode
from fulfillment.settings import AccountSettings

#: Account settings without which no request can be made.
REQUIRED = ("client_id", "client_secret")


def build(account: AccountSettings, spend: Callable[[], None] | None) -> SkinsNode:
    """Make the adapter of one account."""
    return SkinsNode(
        HTTPClient(account.url, timeout_s=account.request_timeout_s, spend=spend),
        account.client_id,
        account.client_secret.get_secret_value(),
        account.webhook_secrets,
    )
