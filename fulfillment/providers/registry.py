"""Which adapter serves an account: the package of the provider's name, where there is one."""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec

import httpx
from pydantic import SecretStr

from fulfillment.errors import ConfigurationError
from fulfillment.providers.base import Provider
from fulfillment.settings import PREFIX, AccountSettings
from schemas.enums import ProviderName

#: Each package offers `build(account, spend)` and `REQUIRED`, the settings it cannot do without.
ADAPTERS = {name: package for name in ProviderName if find_spec(package := f"{__package__}.{name}")}


def build(name: str, account: AccountSettings, spend: Callable[[], None] | None = None) -> Provider:
    """Make the adapter of the account called `name`. Raises ConfigurationError.

    `spend` counts each request that it sends, as `HTTPClient` says.
    """
    setting = f"{PREFIX}ACCOUNTS__{name.upper()}__"
    if account.provider not in ADAPTERS:
        raise ConfigurationError(
            f"{setting}PROVIDER", f"expected {' or '.join(ADAPTERS)}, found {account.provider}"
        )
    if not _is_plain_address(account.url):
        raise ConfigurationError(
            f"{setting}BASE_URL", "expected http(s)://host[:port][/path] without user or query"
        )
    adapter = import_module(ADAPTERS[account.provider])
    for field in adapter.REQUIRED:
        value = getattr(account, field)
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        # Such a value goes into a header; refused there, it would be quoted in the exception.
        if not text or not (text.isascii() and text.isprintable()) or text != text.strip():
            raise ConfigurationError(
                f"{setting}{field.upper()}",
                f"expected printable ASCII without outer blanks; {account.provider} needs it",
            )
    provider: Provider = adapter.build(account, spend)
    return provider


def _is_plain_address(text: str) -> bool:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        return False
    is_reachable = bool(url.host) and (url.port is None or url.port < 65_536)
    return is_reachable and not (url.userinfo or url.query or url.fragment)
