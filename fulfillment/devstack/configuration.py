"""What a stack decides for its children: secrets, ports, simulated accounts, their variables.

What a person has set always wins; nothing here makes up a value that is already there.
"""

import base64
import errno
import json
import os
import secrets
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import SecretStr

from fulfillment.devstack.files import write_private
from fulfillment.errors import ConfigurationError
from fulfillment.providers.registry import ADAPTERS
from fulfillment.settings import (
    DEFAULT_ACCOUNT,
    DEFAULT_URLS,
    PREFIX,
    AccountSettings,
    Settings,
)
from fulfillment.simulator.options import path_of
from schemas.enums import ProviderName

PORTS_TRIED = 100
#: What is simulated where no account is configured.
SIMULATED = {
    name: account
    for name, account in (
        (DEFAULT_ACCOUNT, AccountSettings()),
        ("skinsback", AccountSettings(provider=ProviderName.SKINSBACK)),
        ("skinslink", AccountSettings(provider=ProviderName.SKINSLINK)),
    )
    if account.provider in ADAPTERS
}


def own_secrets(path: Path, accounts: Iterable[str] = ()) -> dict[str, str]:
    """Read the secrets of this data directory; generate those that it does not have yet.

    `accounts` are those whose credentials are ours to choose.
    """
    try:
        known: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
    except ValueError as error:
        # Making new ones would leave every stored trade URL unreadable.
        raise ConfigurationError(f"{PREFIX}DATA_DIR", f"{path} is no JSON file") from error
    key = base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
    fresh = {
        "api_token": secrets.token_urlsafe(24),
        "flower_basic_auth": f"admin:{secrets.token_urlsafe(12)}",
        "encryption_keys": f"k1:{key}",
    }
    for name in accounts:
        fresh[f"{name}_client_id"] = f"sim-{secrets.token_hex(6)}"
        fresh[f"{name}_client_secret"] = secrets.token_urlsafe(32)
        fresh[f"{name}_api_key"] = secrets.token_urlsafe(32)
    complete = fresh | known
    if complete != known:
        write_private(path, json.dumps(complete, indent=2) + "\n")
    return complete


def wants_simulator(settings: Settings) -> bool:
    """Say whether no account names a provider, neither by address nor by credentials."""
    return not any(
        a.base_url or a.client_id or a.webhook_secrets or a.api_key
        for a in settings.accounts.values()
    )


def simulated_accounts(
    accounts: Mapping[str, AccountSettings], url: str, own: Mapping[str, str]
) -> dict[str, AccountSettings]:
    """Point every account at its provider in the simulator at `url`, with credentials of ours."""
    return {
        name: account.model_copy(
            update={
                "base_url": url + path_of(name) + urlsplit(DEFAULT_URLS[account.provider]).path,
                "client_id": own[f"{name}_client_id"],
                "client_secret": SecretStr(own[f"{name}_client_secret"]),
                "api_key": SecretStr(own[f"{name}_api_key"]),
            }
        )
        for name, account in accounts.items()
    }


def claim_port(
    claims: ExitStack,
    host: str,
    wanted: int,
    setting: str,
    *,
    is_fixed: bool,
    of_host: str | None = None,
) -> int:
    """Give the wanted port, or the next free one unless it is fixed.

    Two stacks that start at once get different ones, until `claims` are closed. Raises
    ConfigurationError naming the setting, or the one `of_host` where no port of it can be had.
    """
    if wanted == 0:
        # Below what systems give to outgoing connections: one of those may take it meanwhile.
        wanted, is_fixed = 20_000 + secrets.randbelow(12_000), False
    reason = "no port"
    for port in range(wanted, wanted + (1 if is_fixed else PORTS_TRIED)):
        # An abstract socket is a lock that every user of this network namespace sees, and that
        # goes away with us; the port itself stays free for the child.
        claim = socket.socket(socket.AF_UNIX)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            claim.bind(f"\0fulfillment-port-{port}")
            with socket.socket(family) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, port))
        except (OSError, OverflowError, TypeError, UnicodeError) as error:
            claim.close()
            number = getattr(error, "errno", None)
            reason = "it is taken" if number == errno.EADDRINUSE else str(error)
            is_of_port = number in (errno.EADDRINUSE, errno.EACCES)
            if of_host and not (is_of_port or isinstance(error, OverflowError)):
                raise ConfigurationError(of_host, f"cannot listen on {host}: {reason}") from None
        else:
            claims.enter_context(claim)
            return port
    raise ConfigurationError(setting, f"cannot listen on {host}:{wanted}: {reason}")


def variables(settings: Settings) -> dict[str, str]:
    """Spell settings as the environment variables that give the same settings again."""
    return dict(
        pair
        for name in Settings.model_fields
        for pair in _spelled(PREFIX + name.upper(), getattr(settings, name))
    )


def _spelled(name: str, value: Any) -> Iterator[tuple[str, str]]:
    match value:
        case None | "":
            return
        case SecretStr():
            yield from _spelled(name, value.get_secret_value())
        case AccountSettings():
            for field in AccountSettings.model_fields:
                yield from _spelled(f"{name}__{field.upper()}", getattr(value, field))
        case dict():
            for key, inner in value.items():
                yield from _spelled(f"{name}__{key.upper()}", inner)
        case tuple():
            yield name, ",".join(value)
        case _:
            yield name, str(value)


#: With an arena of glibc's for each thread a worker keeps 7 MB more (docs/benchmarks.md, memory).
_OF_CHILDREN = {"MALLOC_ARENA_MAX": "2"}


def child_environment(settings: Settings) -> dict[str, str]:
    """Give the whole environment of a child: ours wins however a person has spelled a name."""
    ours = variables(settings)
    inherited = {k: v for k, v in os.environ.items() if k.upper() not in ours}
    return {**_OF_CHILDREN, **inherited, "PYTHONUNBUFFERED": "1", **ours}


def write_runtime_file(path: Path, settings: Settings) -> None:
    """Tell other commands of this data directory how to reach the stack."""
    values = variables(settings)
    del values[f"{PREFIX}DATA_DIR"]  # the file is in it, also after the directory was moved
    quoted = {n: v.replace("\\", "\\\\").replace("'", "\\'") for n, v in values.items()}
    write_private(path, "".join(f"{name}='{value}'\n" for name, value in quoted.items()))
