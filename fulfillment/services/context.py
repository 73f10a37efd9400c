"""What every service needs of its process: settings, clock, database, keys and providers."""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit

from fulfillment import crash
from fulfillment.clock import Clock, SystemClock
from fulfillment.errors import ConfigurationError
from fulfillment.providers import registry
from fulfillment.providers.base import Provider
from fulfillment.services.budget import RateBudget
from fulfillment.services.threads import Threads
from fulfillment.settings import PREFIX, AccountSettings, Settings
from fulfillment.store import accounts
from fulfillment.store.engine import Database
from fulfillment.store.sealing import Seal
from schemas.enums import ProviderName

# The longest that a provider is known to block a purchase, and a margin (contracts/skinslink.md 4).
LONGEST_CALL_S = 35.0


@dataclass
class Context:
    """Built once a process and handed to every service."""

    settings: Settings
    database: Database
    seal: Seal
    clock: Clock = field(default_factory=SystemClock)
    #: Gives a number from 0 to 1; spreads retries and polls.
    jitter: Callable[[], float] = random.random
    threads: Threads = field(default_factory=Threads)
    #: When this process next writes a heartbeat that it could write all the time; monotonic.
    next_beats: dict[str, float] = field(default_factory=dict)
    #: When the clock was last found right, and its distance to the monotonic one then, in seconds.
    clock_seen: tuple[float, float] | None = None
    #: What messages to the store about new orders were last numbered from; `doubts.TOLD_FROM`.
    told_from: int | None = None
    _providers: dict[str, Provider] = field(default_factory=dict)
    _budgets: dict[str, RateBudget] = field(default_factory=dict)

    def now(self) -> datetime:
        return self.clock.now()

    def account(self, name: str) -> AccountSettings:
        return self.settings.account(name)

    def provider(self, name: str) -> Provider:
        """Give the account's adapter, connecting at first use. Raises ConfigurationError."""
        provider = self._providers.get(name)
        if provider is None:
            built = registry.build(name, self.account(name), self.budget(name).spend)
            provider = self._providers.setdefault(name, built)
        return provider

    def budget(self, name: str) -> RateBudget:
        """Give the account's rate budget. Raises ConfigurationError."""
        limit = self.account(name).requests_per_minute
        return self._budgets.setdefault(name, RateBudget(name, limit, self.database, self.clock))

    @cached_property
    def lease(self) -> timedelta:
        return timedelta(seconds=self.settings.claim_lease_s)

    @cached_property
    def cache_time(self) -> timedelta:
        """How old a question must be for its answer to be surely younger than our last act."""
        return timedelta(seconds=self.settings.lookup_cache_s)

    @cached_property
    def wallet_lag(self) -> timedelta:
        return timedelta(seconds=self.settings.wallet_lag_s)

    @cached_property
    def stalled_after(self) -> timedelta:
        """How long a provider may leave an order as it is, before its offer is out."""
        return timedelta(seconds=self.settings.stalled_after_s)

    def longest_call(self, account: str) -> timedelta:
        """Say how long after its intent a purchase may still be under way.

        The last look at the claim before the byte leaves is at most a lease old; the provider may
        work on as long as it lets us wait.
        """
        call_s = max(self.account(account).request_timeout_s, LONGEST_CALL_S)
        return self.lease + timedelta(seconds=call_s)

    def webhook_url(self, account: str) -> str:
        return f"{self.settings.webhook_base_url}/webhooks/{account}"

    def close(self) -> None:
        for provider in self._providers.values():
            provider.close()
        self.database.close()


def check_accounts(settings: Settings) -> None:
    """Refuse accounts that lack what they need or share a wallet, and routes to no account.

    Raises ConfigurationError.
    """
    for name, account in settings.accounts.items():
        registry.build(name, account).close()
    _check_wallets(settings)
    for route, names in settings.routes.items():
        setting = f"{PREFIX}ROUTES__{route.upper()}"
        if route in settings.accounts:
            raise ConfigurationError(setting, "expected a name that no account has")
        for name in names:
            if name not in settings.accounts:
                raise ConfigurationError(setting, f"no account {name} is configured")


def _check_wallets(settings: Settings) -> None:
    """Refuse two accounts of one wallet: each would count its money as its own."""
    known: dict[tuple[str, str], str] = {}
    for name, account in settings.accounts.items():
        names = {"CLIENT_ID": account.merchant if account.client_id else ""}
        if account.provider is ProviderName.SKINSLINK and account.api_key:
            names["API_KEY"] = account.api_key.get_secret_value()
        for setting, value in names.items():
            other = known.setdefault((setting, value), name) if value else name
            if other != name:
                raise ConfigurationError(
                    f"{PREFIX}ACCOUNTS__{name.upper()}__{setting}",
                    "expected another merchant than that of "
                    f"{PREFIX}ACCOUNTS__{other.upper()}__{setting}: both are one wallet, "
                    "whose money would be counted twice",
                )


def build_context(
    settings: Settings, *, threads: int = 8, statement_timeout_s: float = 20
) -> Context:
    """Make a process's context; nothing is connected yet.

    Raises ConfigurationError that names the setting, also for an account that cannot be used.
    """
    settings.require("database_url", "encryption_keys")
    check_accounts(settings)
    if settings.crash_file is not None:
        _arm_crashes(settings, settings.crash_file)
    return Context(
        settings=settings,
        database=Database(
            settings.database_url.get_secret_value(),
            pool_size=threads,
            statement_timeout_s=statement_timeout_s,
        ),
        seal=Seal(settings.encryption_keys.get_secret_value()),
    )


def _arm_crashes(settings: Settings, file: Path) -> None:
    """Let this process die on purpose. Raises ConfigurationError where it could buy for real."""
    for name, account in settings.accounts.items():
        if urlsplit(account.url).hostname not in ("127.0.0.1", "::1", "localhost"):
            expected = (
                "lets processes die on purpose; expected only the provider simulator on this "
                f"machine, found another address of the account {name}"
            )
            raise ConfigurationError(crash.SETTING, expected)
    crash.arm(file)


def register_accounts(context: Context, names: Iterable[str] | None = None) -> None:
    """Give every configured account its shared row, which the other services rely on."""
    chosen = list(names if names is not None else context.settings.accounts)
    with context.database.transaction() as session:
        accounts.ensure(session, {n: context.account(n).merchant for n in chosen}, context.now())
        accounts.note_configured(session, chosen, context.now())
