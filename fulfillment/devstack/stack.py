"""The whole product on one machine: servers where none is configured, and every process of ours.

Data outlives the stack in `data_dir`; processes never do.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Self

import httpx
import psycopg
from pydantic import SecretStr

from fulfillment import broker
from fulfillment.devstack.configuration import (
    SIMULATED,
    child_environment,
    claim_port,
    own_secrets,
    simulated_accounts,
    wants_simulator,
    write_runtime_file,
)
from fulfillment.devstack.files import DirectoryLock, private_directory
from fulfillment.devstack.postgres import EmbeddedPostgres
from fulfillment.devstack.processes import Child, ProcessGroup, Report, launch_command
from fulfillment.devstack.redis import EmbeddedRedis
from fulfillment.errors import ConfigurationError, FulfillmentError, ServerUnreachable
from fulfillment.log import masked
from fulfillment.services.context import check_accounts
from fulfillment.settings import PREFIX, RUNTIME_FILE, Settings
from fulfillment.store.sealing import Seal

CHILDREN = ("simulator", "web", "worker", "beat", "intake", "flower")
LOCALHOST = "127.0.0.1"
SIMULATOR_PORT = 8090
READY_S = 20.0
PATIENCE_S = 60.0
REMINDER_S = 5.0
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def say(line: str) -> None:
    """Print a line; a terminal that is gone is no reason to stop."""
    with suppress(OSError):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


@dataclass(frozen=True, kw_only=True)
class StackOptions:
    """What runs, and how the simulator is told to behave."""

    children: Sequence[str] = CHILDREN
    workers: int = 2
    simulator_speed: float = 1.0
    simulator_prices: Path | None = None
    simulator_balance_cents: int | None = None
    report: Report = say
    #: Is told of every step of the start that is done.
    step: Report = field(default=lambda _: None)


class Stack:
    """A running stack, to be used in a `with` block.

    `settings` is complete inside the block, `env` what the children got, `processes` the children.
    """

    def __init__(self, settings: Settings, options: StackOptions | None = None) -> None:
        self.options = options or StackOptions()
        self.settings = settings.model_copy(update={"data_dir": settings.home})
        self.data_dir = self.settings.data_dir
        self.env: dict[str, str] = {}
        self.simulator_url = ""
        self.processes = ProcessGroup(self.data_dir / "logs", report=self.options.report)
        self._is_login_generated = False
        self._commands: dict[str, list[str]] = {}
        self._exit = ExitStack()

    def __enter__(self) -> Self:
        """Start everything. Raises ConfigurationError or ServerUnreachable with nothing left."""
        with ExitStack() as exit_stack:
            self._start(exit_stack)
            self._exit = exit_stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    @property
    def web_url(self) -> str:
        return f"http://{_reachable(self.settings.web_host)}:{self.settings.web_port}"

    @property
    def flower_url(self) -> str:
        return f"http://{LOCALHOST}:{self.settings.flower_port}"

    def start_child(self, name: str) -> None:
        """Start a child, also one that `processes.end` has taken out."""
        command = [sys.executable, "-m", "fulfillment.cli", *self._commands[name]]
        self.processes.start(Child(name=name, command=command, env=self.env))

    def wait_ready(self, timeout_s: float = READY_S) -> None:
        """Return when `/readyz` answers 200. Raises FulfillmentError with what it says instead."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                answer = httpx.get(f"{self.web_url}/readyz", timeout=5, trust_env=False)
                if answer.status_code == httpx.codes.OK:
                    return
                said = answer.text[:500]
            except httpx.HTTPError as error:
                said = str(error)
            if time.monotonic() > deadline:
                raise FulfillmentError(
                    f"not ready after {timeout_s:g} s; {self.web_url}/readyz: {said}"
                )
            time.sleep(0.1)

    def banner(self) -> list[str]:
        """Say where everything is."""
        lines = [f"web        {self.web_url}  (API: {self.web_url}/docs)"]
        if "flower" in self.options.children:
            login = self.settings.flower_basic_auth.get_secret_value()
            user, _, password = login.partition(":")
            secret = password if self._is_login_generated else "as configured"
            how = f"user {user}, password {secret}"
            lines.append(f"Flower     {self.flower_url}  ({how})")
        if self.simulator_url:
            players = ", ".join(self.settings.accounts)
            lines.append(f"simulator  {self.simulator_url}  (plays the accounts {players})")
        lines.append(f"API token  in {self.data_dir / RUNTIME_FILE}; logs in {self.data_dir}/logs")
        return lines

    def _start(self, exit_stack: ExitStack) -> None:
        private_directory(self.data_dir)
        lock = DirectoryLock(self.data_dir / "lock")
        lock.acquire()
        exit_stack.callback(lock.release)
        runtime_file = self.data_dir / RUNTIME_FILE
        runtime_file.unlink(missing_ok=True)  # of a stack that was killed
        self._decide(exit_stack)
        # Looked at here, so that a wrong one is one line and not every child's end.
        Seal(self.settings.encryption_keys.get_secret_value())
        check_accounts(self.settings)
        self._start_servers(exit_stack)
        self.env = child_environment(self.settings)
        self._migrate()
        self.options.step("the database's schema is up to date")
        write_runtime_file(runtime_file, self.settings)
        exit_stack.callback(runtime_file.unlink, missing_ok=True)
        exit_stack.callback(self.processes.stop)
        for name in self._commands:
            self.start_child(name)
        self.options.step(f"started {', '.join(self._commands)}")

    def _decide(self, claims: ExitStack) -> None:
        """Fill in what is not configured."""
        children = self.options.children
        is_simulated = "simulator" in children and wants_simulator(self.settings)
        accounts = (self.settings.accounts or SIMULATED) if is_simulated else {}
        own = own_secrets(self.data_dir / "secrets.json", accounts)
        chosen: dict[str, Any] = {
            name: SecretStr(own[name])
            for name in ("api_token", "flower_basic_auth", "encryption_keys")
            if not getattr(self.settings, name).get_secret_value()
        }
        self._is_login_generated = "flower_basic_auth" in chosen
        chosen["web_port"] = self._port(claims, "web", self.settings.web_host)
        if "flower" in children:
            chosen["flower_port"] = self._port(claims, "flower", LOCALHOST)
        if is_simulated:
            setting = f"{PREFIX}DATA_DIR"
            port = claim_port(claims, LOCALHOST, SIMULATOR_PORT, setting, is_fixed=False)
            self.simulator_url = f"http://{LOCALHOST}:{port}"
            chosen["accounts"] = simulated_accounts(accounts, self.simulator_url, own)
            self._commands["simulator"] = self._simulator_command(port)
        self.settings = self.settings.model_copy(update=chosen)
        for name in children:
            if name == "worker":
                for number in range(1, self.options.workers + 1):
                    self._commands[f"worker-{number}"] = ["worker", "--name", f"w{number}"]
            elif name != "simulator":
                self._commands[name] = [name]

    def _port(self, claims: ExitStack, name: str, host: str) -> int:
        wanted: int = getattr(self.settings, f"{name}_port")
        setting = f"{PREFIX}{name.upper()}_PORT"
        is_fixed = f"{name}_port" in self.settings.model_fields_set
        of_host = f"{PREFIX}WEB_HOST" if name == "web" else None
        port = claim_port(claims, host, wanted, setting, is_fixed=is_fixed, of_host=of_host)
        if wanted not in (0, port):
            self.options.report(f"port {wanted} is taken, using {port} ({setting})")
        return port

    def _simulator_command(self, port: int) -> list[str]:
        options = {
            "--host": LOCALHOST,
            "--port": port,
            "--speed": self.options.simulator_speed,
            "--prices": self.options.simulator_prices,
            "--balance-cents": self.options.simulator_balance_cents,
        }
        words = [(name, str(value)) for name, value in options.items() if value is not None]
        return ["simulator", "--accounts", *(word for pair in words for word in pair)]

    def _start_servers(self, exit_stack: ExitStack) -> None:
        urls: dict[str, SecretStr] = {}
        if database_url := self.settings.database_url.get_secret_value():
            self._await("PostgreSQL", "DATABASE_URL", lambda: _probe_database(database_url))
        else:
            postgres = EmbeddedPostgres(self.data_dir, report=self.options.report)
            exit_stack.callback(postgres.stop)
            urls["database_url"] = SecretStr(postgres.start())
            self.options.step("PostgreSQL answers")
        if self.settings.broker_url.get_secret_value():
            self._await("the broker", "BROKER_URL", lambda: _probe_broker(self.settings))
        else:
            redis = EmbeddedRedis(self.data_dir, report=self.options.report)
            exit_stack.callback(redis.stop)
            urls["broker_url"] = SecretStr(redis.start())
            self.options.step("Redis answers")
        self.settings = self.settings.model_copy(update=urls)

    def _await(self, what: str, setting: str, probe: Callable[[], str]) -> None:
        """Wait for a configured server. Raises ServerUnreachable when patience ends."""
        deadline = time.monotonic() + PATIENCE_S
        while why := probe():
            if time.monotonic() > deadline:
                raise ServerUnreachable(what, PREFIX + setting, why)
            self.options.report(f"waiting for {what} ({PREFIX}{setting}): {why}")
            time.sleep(REMINDER_S)

    def _migrate(self) -> None:
        command = [sys.executable, "-m", "fulfillment.cli", "migrate"]
        result = subprocess.run(  # noqa: S603
            launch_command(command),
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode:
            lines = [line for line in result.stderr.splitlines() if line.strip()] or ["no reason"]
            raise FulfillmentError(f"`fulfillment migrate` failed: {masked(lines[-1].strip())}")


@contextmanager
def stop_signals() -> Iterator[None]:
    """Let the first SIGINT, SIGTERM or SIGHUP raise KeyboardInterrupt and ignore all later ones.

    The unwinding stops the children; a second Ctrl-C in the middle of it would leave some.
    """

    is_stopping = False

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        nonlocal is_stopping
        if not is_stopping:
            is_stopping = True
            raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_up(settings: Settings, options: StackOptions | None = None) -> int:
    """Run the stack in the foreground until a signal; give the exit code."""
    options = options or StackOptions()
    try:
        with stop_signals(), Stack(settings, options) as stack:
            try:
                stack.wait_ready()
            except FulfillmentError as error:
                options.report(f"{error}; still trying, see {stack.data_dir / 'logs'}")
            for line in stack.banner():
                options.report(line)
            while True:
                signal.pause()
    except KeyboardInterrupt:
        return 0
    except FulfillmentError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1


def _reachable(host: str) -> str:
    own = {"0.0.0.0": LOCALHOST, "::": "[::1]", "": LOCALHOST}  # noqa: S104
    return own.get(host, f"[{host}]" if ":" in host else host)


def _probe_database(url: str) -> str:
    """Give the reason why the database cannot be used, or nothing."""
    try:
        psycopg.connect("postgresql://" + url.partition("://")[2], connect_timeout=5).close()
    except psycopg.OperationalError as error:
        return _one_line(error)
    except (psycopg.ProgrammingError, ValueError):  # their messages quote parts of the address
        expected = "expected postgresql://user:password@host:port/database"
        raise ConfigurationError(f"{PREFIX}DATABASE_URL", expected) from None
    return ""


def _probe_broker(settings: Settings) -> str:
    """Give the reason why the broker cannot be used, or nothing."""
    failures: tuple[type[BaseException], ...] = (OSError,)
    try:
        with broker.connect(settings) as connection:
            failures += connection.connection_errors + connection.channel_errors
            connection.connect()
    except failures as error:
        return _one_line(error)
    except broker.UNUSABLE:
        expected = "expected amqp://user:password@host:port/vhost or redis://:password@host:port/0"
        raise ConfigurationError(f"{PREFIX}BROKER_URL", expected) from None
    return ""


def _one_line(error: BaseException) -> str:
    lines = [line for line in masked(str(error)).splitlines() if line.strip()]
    return lines[0].strip() if lines else type(error).__name__
