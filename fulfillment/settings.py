"""Every setting, read from `FULFILLMENT_*`, from `.env`, and from the running embedded stack.

Settings are read once at a process's start; a wrong one is named with what was expected.
"""

import hashlib
import re
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import parse_qs, unquote, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    SettingsConfigDict,
    SettingsError,
)
from pydantic_settings.sources import PydanticBaseSettingsSource

from fulfillment import log
from fulfillment.addresses import (
    can_be_read,
    complaint_of_broker,
    complaint_of_database,
    with_checked_certificates,
)
from fulfillment.errors import ConfigurationError
from fulfillment.setting_names import ACCOUNTS, FORMS, ROUTES, Names
from schemas.enums import DebitsAt, OnInsufficientFunds, ProviderName

PREFIX = "FULFILLMENT_"
DEFAULT_ACCOUNT = "main"
#: Written by `fulfillment up` into the data directory, so that other commands find its stack.
RUNTIME_FILE = "runtime.env"
SKINSBACK_LIMIT_PER_MINUTE = 500  # contracts/skinsback.md section 4

DEFAULT_URLS = {
    ProviderName.SKINSNODE: "https://api.skinsnode.com",
    ProviderName.SKINSBACK: "https://skinsback.com/api.php",
    ProviderName.SKINSLINK: "https://api.skinslink.com/api/v1",
}

#: How much of a client id's hash tells merchants apart, and what stands where there is no id.
_DIGITS, _UNTOLD = 16, "-"
_YEAR_S = 31_536_000
LONGEST_LEASE_S = 3600
_USUAL_PORTS = {"https": ":443", "http": ":80"}

_SURROGATES = re.compile("[\ud800-\udfff]")
TOKEN_PAIR = re.compile(r"([a-z0-9][a-z0-9_-]{0,31}):[0-9a-f]{64}")
AccountName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")]


def _read_names(value: Any) -> Any:
    """Read names separated by commas; the source may have read a lone number as one."""
    if isinstance(value, str | int):
        return tuple(name.strip() for name in str(value).split(",") if str(value).strip())
    return value


def _each_once(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names or len(set(names)) < len(names):
        raise ValueError("expected names of accounts separated by commas, each once")
    return names


Route = Annotated[tuple[AccountName, ...], BeforeValidator(_read_names), AfterValidator(_each_once)]


class AccountSettings(BaseModel):
    """One account (a wallet and its credentials) at one provider."""

    model_config = ConfigDict(extra="forbid")

    provider: ProviderName = ProviderName.SKINSNODE
    base_url: str = ""
    client_id: str = ""
    client_secret: SecretStr = SecretStr("")
    previous_secret: SecretStr | None = None
    api_key: SecretStr | None = None
    trade_window_s: int = Field(600, ge=1, le=86_400)
    rate_per_minute: int | None = Field(None, ge=10, le=1_000_000)
    slippage_bps: int = Field(0, ge=0, le=10_000)
    slippage_cents: int = Field(0, ge=0, le=10_000_000)
    on_insufficient_funds: OnInsufficientFunds = OnInsufficientFunds.WAIT
    max_submits_in_flight: int = Field(32, ge=1, le=256)
    debits_at: DebitsAt = DebitsAt.ACCEPT
    check_recipient: bool = False
    sign_requests: bool = False
    request_timeout_s: float = Field(20.0, gt=0, le=120)
    spend_cap_cents_per_hour: int | None = Field(None, ge=1, le=10**12)
    stop_at_reversals: int = Field(20, ge=1, le=1_000_000)
    stop_at_unexplained_cents: int | None = Field(None, ge=1, le=10**12)

    @field_validator("base_url")
    @classmethod
    def _is_http_url(cls, value: str) -> str:
        if value and not (value.startswith(("http://", "https://")) and can_be_read(value)):
            raise ValueError("expected an http:// or https:// address")
        return value.rstrip("/")

    @property
    def url(self) -> str:
        return self.base_url or DEFAULT_URLS[self.provider]

    @property
    def requests_per_minute(self) -> int | None:
        """The rate budget; None where the provider documents no limit and none was set."""
        if self.rate_per_minute is None and self.provider is ProviderName.SKINSBACK:
            return SKINSBACK_LIMIT_PER_MINUTE
        return self.rate_per_minute

    @property
    def webhook_secrets(self) -> tuple[str, ...]:
        """The present and, during a rotation, the previous secret; empty ones never count."""
        secrets = [self.client_secret, self.previous_secret]
        return tuple(s.get_secret_value() for s in secrets if s and s.get_secret_value())

    @property
    def merchant(self) -> str:
        """Say whose account this is: provider, address and a hash of the client id.

        No secret is part of it, so that each may be rotated.
        """
        address = urlsplit(self.url)
        host = address.netloc.lower().removesuffix(_USUAL_PORTS.get(address.scheme, ""))
        where = f"{address.scheme}://{host}{address.path}"
        digest = hashlib.sha256(self.client_id.encode()).hexdigest()[:_DIGITS]
        where = where.replace(" ", "%20")
        return f"{self.provider} {where} {digest if self.client_id else _UNTOLD}"

    def changed_since(self, merchant: str) -> tuple[str, ...]:
        """Name the settings that say another merchant than `merchant` does.

        A client id that is not set, where a provider can do without, differs from none.
        """
        names = ("PROVIDER", "BASE_URL", "CLIENT_ID")
        pairs = zip(names, merchant.split(" "), self.merchant.split(" "), strict=True)
        return tuple(name for name, old, new in pairs if old != new and _UNTOLD not in (old, new))

    def price_limit_cents(self, expected_cents: int) -> int:
        """The most that may be paid for an order whose agreed price is `expected_cents`."""
        slippage = max(expected_cents * self.slippage_bps // 10_000, self.slippage_cents)
        return expected_cents + slippage


class Settings(BaseSettings):
    """All settings of one process; see README for the table."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter="__", env_file=".env", extra="ignore"
    )

    database_url: SecretStr = SecretStr("")
    broker_url: SecretStr = SecretStr("")
    public_url: str = ""
    api_token: SecretStr = SecretStr("")
    #: "name:hash" pairs separated by commas; hash = SHA-256 of the token in hex.
    api_tokens: SecretStr = SecretStr("")
    web_host: str = "127.0.0.1"
    web_port: int = Field(8080, ge=0, le=65_535)
    web_calls_per_s: int = Field(2000, ge=1, le=1_000_000)
    web_failures_per_s: int = Field(20, ge=1, le=1_000_000)
    web_trusted_proxies: str = ""
    #: Names separated by commas; RabbitMQ tells nobody which queues the store has.
    updates_queues: str = "store.updates"
    flower_port: int = Field(5555, ge=0, le=65_535)
    flower_basic_auth: SecretStr = SecretStr("")
    flower_read_only: bool = True
    data_dir: Path = Path(".fulfillment")
    claim_lease_s: int = Field(30, ge=1, le=LONGEST_LEASE_S)
    poll_min_interval_s: float = Field(30.0, gt=0, le=3600)
    webhook_tolerance_s: int = Field(3600, ge=1, le=_YEAR_S)
    await_funds_s: int = Field(900, ge=0, le=_YEAR_S)
    stalled_after_s: int = Field(86_400, ge=600, le=_YEAR_S)
    wallet_lag_s: float = Field(35.0, ge=0, le=86_400, allow_inf_nan=False)
    lookup_cache_s: float = Field(35.0, ge=0, le=86_400, allow_inf_nan=False)
    submit_within_s: int = Field(3600, ge=1, le=_YEAR_S)
    #: Over all accounts together, beside each account's own.
    spend_cap_cents_per_hour: int | None = Field(None, ge=1, le=10**12)
    batch_limit: int = Field(64, ge=1, le=1000)
    worker_threads: int = Field(16, ge=1, le=256)
    erase_after_days: int = Field(30, ge=0, le=36_500)
    replay_hours: float = Field(24.0, ge=0, le=8760, allow_inf_nan=False)
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["text", "json"] = "text"
    #: "id:key" pairs separated by commas, newest first; key = 32 bytes as urlsafe base64.
    encryption_keys: SecretStr = SecretStr("")
    accounts: dict[AccountName, AccountSettings] = Field(default_factory=dict)
    #: Names that a checkout may give in place of an account: accounts that are tried in turn.
    routes: dict[AccountName, Route] = Field(default_factory=dict)

    #: Names the crash point at which a process dies, whenever it exists; for tests only.
    crash_file: Path | None = None

    reads_runtime_file: ClassVar[bool] = True

    @field_validator("database_url")
    @classmethod
    def _is_postgres(cls, value: SecretStr) -> SecretStr:
        text = value.get_secret_value().strip()
        if text and (expected := complaint_of_database(text)):
            raise ValueError(expected)
        return SecretStr(text)

    @field_validator("broker_url")
    @classmethod
    def _is_broker(cls, value: SecretStr) -> SecretStr:
        text = value.get_secret_value().strip()
        if text and (expected := complaint_of_broker(text)):
            raise ValueError(expected)
        return SecretStr(with_checked_certificates(text))

    @field_validator("public_url")
    @classmethod
    def _is_address(cls, value: str) -> str:
        if value and not (value.startswith(("http://", "https://")) and can_be_read(value)):
            raise ValueError("expected an http:// or https:// address that the provider reaches")
        return value.rstrip("/")

    @field_validator("api_tokens")
    @classmethod
    def _are_names_and_hashes(cls, value: SecretStr) -> SecretStr:
        pairs = _parts(value.get_secret_value())
        names = {match[1] for pair in pairs if (match := TOKEN_PAIR.fullmatch(pair))}
        if len(names) != len(pairs):
            raise ValueError("expected name:hash pairs as `fulfillment token NAME` prints them")
        return value

    @field_validator("web_trusted_proxies")
    @classmethod
    def _are_networks(cls, value: str) -> str:
        for part in _parts(value):
            ip_network(part)  # raises ValueError, which names what it found
        return value

    @field_validator("data_dir", mode="before")
    @classmethod
    def _is_some_directory(cls, value: Any) -> Any:
        if isinstance(value, str) and not value.strip():  # which would be the working directory
            raise ValueError("expected the path of a directory, or to be left out")
        return value

    @field_validator("flower_basic_auth")
    @classmethod
    def _has_user_and_password(cls, value: SecretStr) -> SecretStr:
        if value.get_secret_value() and not all(value.get_secret_value().partition(":")):
            raise ValueError("expected user:password")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let the embedded stack's runtime file stand last: whatever a person set wins.

        Raises ConfigurationError for a name that no setting has, and for what is no text. What
        stands in the runtime file was written by us, perhaps of another version.
        """
        del file_secret_settings
        _refuse_odd(env_settings, dotenv_settings)
        first = (init_settings, env_settings, dotenv_settings)
        if not cls.reads_runtime_file:
            return first
        data_dir = next((d for s in first if (d := s().get("data_dir"))), ".fulfillment")
        file = Path(data_dir) / RUNTIME_FILE
        try:
            runtime = DotEnvSettingsSource(settings_cls, env_file=file)
        except (UnicodeDecodeError, OSError) as error:
            raise _unreadable(file, error) from None
        return (*first, runtime)

    @property
    def api_token_digests(self) -> dict[str, bytes]:
        """The SHA-256 of each named token."""
        pairs = (pair.split(":") for pair in _parts(self.api_tokens.get_secret_value()))
        return {name: bytes.fromhex(digest) for name, digest in pairs}

    @property
    def webhook_base_url(self) -> str:
        """What stands before `/webhooks/{account}` in the address given to providers."""
        return self.public_url or f"http://{self.web_host}:{self.web_port}"

    @property
    def is_amqp(self) -> bool:
        return self.broker_url.get_secret_value().startswith(("amqp", "pyamqp"))

    @property
    def broker_name(self) -> str:
        return "rabbitmq" if self.is_amqp else "redis"

    @property
    def updates_queue_names(self) -> list[str]:
        return _parts(self.updates_queues)

    @property
    def home(self) -> Path:
        """The data directory's whole path. Raises ConfigurationError where nobody can say it."""
        try:
            return self.data_dir.absolute()
        except FileNotFoundError:
            text = f"expected a whole path; {self.data_dir} is in a working directory that is gone"
            raise ConfigurationError(f"{PREFIX}DATA_DIR", text) from None

    def account(self, name: str) -> AccountSettings:
        """Give an account's settings. Raises ConfigurationError for a name that is not set."""
        if name not in self.accounts:
            raise ConfigurationError(
                f"{PREFIX}ACCOUNTS__{name.upper()}__PROVIDER", "no such account is configured"
            )
        return self.accounts[name]

    def require(self, *names: str) -> None:
        """Refuse to go on without these settings. Raises ConfigurationError naming the first."""
        for name in names:
            value = getattr(self, name)
            if value.get_secret_value() if isinstance(value, SecretStr) else value:
                continue
            stack = "stack started by `fulfillment up`"
            if name in self.model_fields_set:
                text = f"is empty; expected a value, or to be left out where a {stack} runs in"
            else:
                text = f"is not set, and no {stack} runs in"
            raise ConfigurationError(f"{PREFIX}{name.upper()}", f"{text} {self.home}")


class ConfiguredSettings(Settings):
    """What a person has set, and nothing of a running stack: for whoever starts a new one."""

    reads_runtime_file = False


NAMES = Names(
    tuple(name.upper() for name in Settings.model_fields),
    tuple(name.upper() for name in AccountSettings.model_fields),
)


def _refuse_odd(*sources: PydanticBaseSettingsSource) -> None:
    """Look at what has our prefix. Raises ConfigurationError that names what is no setting, and
    what is no text: Python hides such bytes of the environment in half a surrogate pair each."""
    found: dict[str, str] = {}
    for source in sources:
        assert isinstance(source, EnvSettingsSource)
        where = f", in {source.env_file}" if isinstance(source, DotEnvSettingsSource) else ""
        for variable, value in source.env_vars.items():
            name = variable.upper().removeprefix(PREFIX)
            if not variable.upper().startswith(PREFIX):
                continue
            if not NAMES.knows(name):
                found.setdefault(PREFIX + name, _no_setting(NAMES.meant_by(name)) + where)
            elif _SURROGATES.search(f"{variable}{value}"):
                found.setdefault(PREFIX + name, f"expected text in UTF-8{where}")
    if found:
        (first, text), *rest = sorted(found.items())
        raise ConfigurationError(first, text + "".join(f"; {name}: {t}" for name, t in rest))


def _no_setting(meant: str | None, within: str = "") -> str:
    return "no such setting" + (f" ({PREFIX}{within}{meant} was probably meant)" if meant else "")


def _unreadable(file: Path, error: UnicodeDecodeError | OSError) -> ConfigurationError:
    """Tell which file cannot be read, and nothing of what is in it."""
    if isinstance(error, UnicodeDecodeError):
        line = error.object[: error.start].count(b"\n") + 1
        return ConfigurationError(str(file.absolute()), f"expected UTF-8; line {line} is not")
    return ConfigurationError(str(file.absolute()), f"cannot be read: {error.strerror}")


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _secrets(settings: Settings) -> Iterator[str]:
    """Give what must be in no log line, whoever writes it."""
    yield settings.api_token.get_secret_value()
    for url in (settings.database_url, settings.broker_url):
        with suppress(ValueError):
            yield unquote(urlsplit(url.get_secret_value()).password or "")
            yield urlsplit(url.get_secret_value()).password or ""
            options = parse_qs(urlsplit(url.get_secret_value()).query)
            for name in ("password", "sslpassword"):  # libpq takes them there, too
                yield from options.get(name, ())
    yield settings.flower_basic_auth.get_secret_value().partition(":")[2]
    yield from (
        pair.partition(":")[2] for pair in _parts(settings.encryption_keys.get_secret_value())
    )
    for account in settings.accounts.values():
        for secret in (account.client_secret, account.previous_secret, account.api_key):
            yield secret.get_secret_value() if secret else ""


def _setting_name(location: tuple[int | str, ...]) -> str:
    parts = [part for part in location if isinstance(part, str) and part != "[key]"]
    return PREFIX + "__".join(parts).upper()


def _wrong(error: ErrorDetails) -> tuple[str, str]:
    """Give the name of a wrong setting, and what was expected."""
    name = _setting_name(error["loc"])
    if error["type"] == "extra_forbidden":
        within, _, last = name.removeprefix(PREFIX).rpartition("__")
        return name, _no_setting(NAMES.meant_in_account(last), f"{within}__")
    return name, error["msg"].removeprefix("Value error, ")


def load_settings(*, for_new_stack: bool = False, **overrides: Any) -> Settings:
    """Read the settings. Raises ConfigurationError that names every wrong one.

    One for names that are no settings comes first, and one for a file that cannot be read.
    """
    try:
        settings = (ConfiguredSettings if for_new_stack else Settings)(**overrides)
    except SettingsError as error:  # only these two have a form that is parsed before it is read
        name = ROUTES if '"routes"' in str(error) else ACCOUNTS
        expected = f"expected {PREFIX}{FORMS[name]}, or all as JSON"
        raise ConfigurationError(f"{PREFIX}{name}", expected) from None
    except (UnicodeDecodeError, OSError) as error:
        file = overrides.get("_env_file") or Settings.model_config.get("env_file")
        raise _unreadable(Path(str(file)), error) from None
    except ValidationError as error:
        wrong = list(map(_wrong, error.errors(include_input=False, include_url=False)))
    else:
        log.hide(_secrets(settings))
        return settings
    setting, expected = wrong[0]
    more = "".join(f"; {name}: {text}" for name, text in wrong[1:])
    raise ConfigurationError(setting, expected + more)
