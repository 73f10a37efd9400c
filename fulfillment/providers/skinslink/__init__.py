"""Skinslink: the adapter's folder; the rest of the program knows only `build` and `REQUIRED`."""

from collections.abc import Callable

from fulfillment.providers.http import HTTPClient
from fulfillment.providers.skinslink.client import PURCHASE_S, Skinslink
from fulfillment.settings import AccountSettings

#: Account settings without which no request can be made; the secret verifies webhooks.
REQUIRED = ("api_key", "client_secret")


def build(account: AccountSettings, spend: Callable[[], None] | None) -> Skinslink:
    """Make the adapter of one account."""
    assert account.api_key is not None
    read_s = account.request_timeout_s
    # The purchase may block for 30 s; a time that a person set counts for it too.
    purchase_s = read_s if "request_timeout_s" in account.model_fields_set else PURCHASE_S
    return Skinslink(
        HTTPClient(account.url, timeout_s=purchase_s, spend=spend),
        account.api_key.get_secret_value(),
        account.webhook_secrets,
        read_s=read_s,
    )
