"""What a stack decides for its children: secrets, ports, the simulator's account, their variables.

What a person has set always wins; nothing here makes up a value that is already there.
"""

import base64
import errno
import json
import os
import secrets
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dotenv import dotenv_values
from pydantic import SecretStr

from fulfillment.devstack.files import write_private
from fulfillment.errors import ConfigurationError
from fulfillment.settings import DEFAULT_ACCOUNT, PREFIX, AccountSettings, Settings

PORTS_TRIED = 100
#: Names, in the runtime file, the settings that the stack had chosen itself.
CHOSEN = f"{PREFIX}STACK_CHOSE"
NO_PROVIDER: dict[str, Any] = {"base_url": "", "client_id": "", "client_secret": SecretStr("")}


def changed(settings: Settings, **values: Any) -> Settings:
    """Copy settings with other values."""
    copy = settings.model_copy(update=values)
    copy.__dict__.pop("webhook_base_url", None)  # cached from the old values, if at all
    return copy


def without_leftovers(settings: Settings, runtime_file: Path) -> Settings:
    """Forget what a killed stack had chosen and left in its runtime file: its servers are gone.

    To be called only while the data directory's lock is held.
    """
    left = dotenv_values(runtime_file, interpolate=False)
    runtime_file.unlink(missing_ok=True)
    for name in (left.get(CHOSEN) or "").split():
        variable = PREFIX + name.upper()
        value = getattr(settings, name)
        if name == "accounts":
            value = {
                key: account.model_copy(update=NO_PROVIDER)
                if account.base_url == left.get(f"{variable}__{key.upper()}__BASE_URL")
                else account
                for key, account in value.items()
            }
        elif dict(_spelled(variable, value)) == {variable: left.get(variable)}:
            value = Settings.model_fields[name].get_default()
        else:
            continue
        settings = changed(settings, **{name: value})
        settings.model_fields_set.discard(name)
    return settings


def own_secrets(path: Path) -> dict[str, str]:
    """Read the secrets of this data directory; generate those that it does not have yet."""
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
        "simulator_client_id": f"sim-{secrets.token_hex(6)}",
        "simulator_client_secret": secrets.token_urlsafe(32),
    }
    if known.keys() >= fresh.keys():
        return known
    complete = fresh | known
    write_private(path, json.dumps(complete, indent=2) + "\n")
    return complete


def wants_simulator(settings: Settings) -> bool:
    """Say whether no account names a provider, neither by address nor by credentials."""
    return not any(
        a.base_url or a.client_id or a.webhook_secrets or a.api_key
        for a in settings.accounts.values()
    )


def simulated_accounts(
    settings: Settings, url: str, client_id: str, client_secret: str
) -> dict[str, AccountSettings]:
    """Point every account at the simulator; without any there is one."""
    values = {
        "base_url": url,
        "client_id": client_id,
        "client_secret": SecretStr(client_secret),
    }
    accounts = settings.accounts or {DEFAULT_ACCOUNT: AccountSettings()}
    return {name: account.model_copy(update=values) for name, account in accounts.items()}


class Ports:
    """Ports that this stack will use, claimed so that two stacks starting at once differ."""

    def __init__(self) -> None:
        self._claims: list[socket.socket] = []

    def choose(self, host: str, wanted: int, setting: str, *, is_fixed: bool) -> int:
        """Give the wanted port, or the next free one unless it is fixed.

        Raises ConfigurationError naming the setting.
        """
        if wanted == 0:
            wanted, is_fixed = 49_152 + secrets.randbelow(10_000), False
        reason = "no port"
        for port in range(wanted, wanted + (1 if is_fixed else PORTS_TRIED)):
            reason = self._claim(host, port)
            if not reason:
                return port
        raise ConfigurationError(setting, f"cannot listen on {host}:{wanted}: {reason}")

    def release(self) -> None:
        while self._claims:
            self._claims.pop().close()

    def _claim(self, host: str, port: int) -> str:
        # An abstract socket is a lock that every user of this network namespace sees, and that
        # goes away with us; the port itself stays free for the child.
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0fulfillment-port-{port}")
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            with socket.socket(family) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, port))
        except (OSError, OverflowError) as error:
            claim.close()
            number = getattr(error, "errno", None)
            return "it is taken" if number == errno.EADDRINUSE else str(error)
        self._claims.append(claim)
        return ""


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


def child_environment(settings: Settings, extra: Mapping[str, str]) -> dict[str, str]:
    """Give the whole environment of a child: ours wins however a person has spelled a name."""
    ours = variables(settings)
    inherited = {k: v for k, v in os.environ.items() if k.upper() not in ours}
    return {**inherited, "PYTHONUNBUFFERED": "1", **ours, **extra}


def write_runtime_file(path: Path, settings: Settings, before: Settings) -> None:
    """Tell other commands of this data directory how to reach the stack."""
    chosen = [n for n in Settings.model_fields if getattr(settings, n) != getattr(before, n)]
    values = {**variables(settings), CHOSEN: " ".join(chosen)}
    del values[f"{PREFIX}DATA_DIR"]  # the file is in it, also after the directory was moved
    quoted = {n: v.replace("\\", "\\\\").replace("'", "\\'") for n, v in values.items()}
    write_private(path, "".join(f"{name}='{value}'\n" for name, value in quoted.items()))
