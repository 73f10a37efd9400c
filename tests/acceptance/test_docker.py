"""The containers without a Docker engine: the files agree, and every command of them works.

The processes run directly on a real PostgreSQL and RabbitMQ, with compose.yaml's commands and
env.example's environment and nothing else, and end as a container's would.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
import yaml
from dotenv import dotenv_values
from kombu import Connection, Exchange

from fulfillment.cli import cli
from fulfillment.settings import PREFIX, AccountSettings, Settings, load_settings
from fulfillment.simulator.app import SimulatorOptions, running

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
EXAMPLE = (DOCKER / "env.example").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = {name: each for name, each in SERVICES.items() if "fulfillment" in each["image"]}
LASTING = [name for name in OURS if name != "migrate"]
#: What compose.yaml fixes for all containers, so that env.example only mentions it.
FIXED = {"WEB_HOST", "WEB_PORT", "FLOWER_PORT", "DATA_DIR"}


# The files


def test_compose_yaml_fits_the_published_schema() -> None:
    schema = json.loads((Path(__file__).parent / "compose_spec/compose-spec.json").read_text())

    jsonschema.Draft202012Validator(schema).validate(COMPOSE)


def test_the_schema_would_find_a_misspelled_key() -> None:
    schema = json.loads((Path(__file__).parent / "compose_spec/compose-spec.json").read_text())
    wrong = COMPOSE | {"services": {"web": SERVICES["web"] | {"stop_grace_perod": "1s"}}}

    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema).validate(wrong)


def test_every_command_is_one_of_the_command_line() -> None:
    assert cli.registered_commands
    known = {each.callback.__name__ for each in cli.registered_commands if each.callback}

    assert {each["command"][0] for each in OURS.values()} <= known
    assert set(OURS) == {"migrate", "web", "worker", "beat", "intake", "flower"}


def test_our_containers_cannot_gain_rights_or_write_and_only_web_is_published() -> None:
    for each in OURS.values():
        assert each["read_only"] is True
        assert each["cap_drop"] == ["ALL"]
        assert each["security_opt"] == ["no-new-privileges:true"]
    published = {name: each["ports"] for name, each in SERVICES.items() if "ports" in each}
    assert published == {"web": ["8080:8080"], "flower": ["127.0.0.1:5555:5555"]}
    assert COMPOSE["networks"]["backend"] == {"internal": True}
    assert [s["networks"] for s in (SERVICES["postgres"], SERVICES["rabbitmq"])] == [
        ["backend"]
    ] * 2


def test_every_dependency_and_volume_exists() -> None:
    for each in SERVICES.values():
        assert set(each.get("depends_on", {})) <= set(SERVICES)
        assert {v.partition(":")[0] for v in each.get("volumes", [])} <= set(COMPOSE["volumes"])
        for name, how in each.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[name]


def mentioned() -> dict[str, tuple[bool, str]]:
    """Give every variable of env.example: whether it is set, and to what."""
    found = re.findall(r"^(#?)([A-Z][A-Z0-9_]*)=(.*)$", EXAMPLE, re.MULTILINE)
    assert len({name for _, name, _ in found}) == len(found), "a variable stands twice"
    return {name: (not hash_, value) for hash_, name, value in found}


def setting_defaults() -> dict[str, Any]:
    """Give every setting by its variable's name, those of an account for the account `main`."""
    values = {
        name: field.get_default(call_default_factory=True)
        for name, field in Settings.model_fields.items()
        if name not in ("accounts", "crash_file")  # the second is for tests only
    }
    account = {f"ACCOUNTS__MAIN__{k}": v for k, v in AccountSettings().model_dump().items()}
    return {f"{PREFIX}{name.upper()}": value for name, value in (values | account).items()}


def test_env_example_has_every_setting_and_nothing_that_is_none() -> None:
    ours = {name for name in mentioned() if name.startswith(PREFIX)}

    assert ours == set(setting_defaults())


def test_what_env_example_shows_as_a_default_is_the_default() -> None:
    defaults = setting_defaults()
    for name, (is_set, shown) in mentioned().items():
        if is_set or name.removeprefix(PREFIX) in FIXED:
            continue
        default = defaults[name]
        is_number = isinstance(default, int | float) and not isinstance(default, bool)
        expected = "" if default is None else f"{default:g}" if is_number else str(default).lower()
        found = f"{float(shown):g}" if is_number else shown.lower()
        assert found == expected, name


def test_env_example_holds_no_secret() -> None:
    secret = re.compile("PASSWORD$|SECRET$|TOKEN$|KEYS?$|BASIC_AUTH$|CLIENT_ID$")
    values = {name: value for name, (_, value) in mentioned().items() if secret.search(name)}

    assert len(values) == 9
    assert set(values.values()) == {""}


def test_compose_uses_no_variable_that_env_example_lacks() -> None:
    used = re.findall(r"(?<!\$)\$\{([A-Z_]+)", (DOCKER / "compose.yaml").read_text())

    assert set(used) == {"POSTGRES_PASSWORD", "RABBITMQ_PASSWORD"}
    assert all(mentioned()[name][0] for name in used)


def test_the_image_gets_what_it_copies_and_runs_as_nobody_special() -> None:
    dockerfile = (DOCKER / "Dockerfile").read_text()
    ignored = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    allowed = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    copied = set[str]()
    for line in re.findall(r"^COPY (?!--from)(.*)$", dockerfile, re.MULTILINE):
        copied.update(line.split()[:-1])

    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)
    assert re.search(r"^USER 10001:10001$", dockerfile, re.MULTILINE)
    assert re.search(r'^ENTRYPOINT \["fulfillment"\]$', dockerfile, re.MULTILINE)


def make_env(directory: Path) -> dict[str, str]:
    """Make `.env` by README's own command; give it as compose reads it."""
    readme = (ROOT / "README.md").read_text()
    command = re.search(r"```sh\n(cd docker\n.*?env\.example > \.env\n.*?)```", readme, re.DOTALL)
    assert command, "README has no command that makes .env"
    copy = directory / "docker"
    copy.mkdir()
    shutil.copy(DOCKER / "env.example", copy)
    subprocess.run(["/bin/sh", "-ec", command[1]], cwd=directory, check=True)
    assert (copy / ".env").stat().st_mode & 0o077 == 0
    return {name: value or "" for name, value in dotenv_values(copy / ".env").items()}


def test_the_command_of_the_readme_fills_in_every_secret_but_the_providers(tmp_path: Path) -> None:
    made = make_env(tmp_path)

    assert {name for name, value in made.items() if not value} == {
        "FULFILLMENT_PUBLIC_URL",
        "FULFILLMENT_ACCOUNTS__MAIN__CLIENT_ID",
        "FULFILLMENT_ACCOUNTS__MAIN__CLIENT_SECRET",
    }
    assert f":{made['POSTGRES_PASSWORD']}@postgres:" in made["FULFILLMENT_DATABASE_URL"]
    assert f":{made['RABBITMQ_PASSWORD']}@rabbitmq:" in made["FULFILLMENT_BROKER_URL"]
    assert len({made["POSTGRES_PASSWORD"], made["RABBITMQ_PASSWORD"]}) == 2


# The processes


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def seconds(duration: str) -> int:
    assert re.fullmatch(r"[0-9]+s", duration)
    return int(duration[:-1])


@dataclass
class Containers:
    """The processes that compose would run, with what they were given."""

    env: dict[str, str]
    home: Path
    logs: Path
    processes: dict[str, subprocess.Popen[bytes]]
    ports: dict[str, str]

    @property
    def web(self) -> httpx.Client:
        token = self.env["FULFILLMENT_API_TOKEN"]
        base = f"http://127.0.0.1:{self.env['FULFILLMENT_WEB_PORT']}"
        headers = {"Authorization": f"Bearer {token}"}
        return httpx.Client(base_url=base, headers=headers, trust_env=False, timeout=10)

    def command(self, name: str) -> list[str]:
        return [str(Path(sys.executable).with_name("fulfillment")), *OURS[name]["command"]]

    def start(self, name: str) -> subprocess.Popen[bytes]:
        with (self.logs / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                self.command(name), env=self.env, cwd=self.home, stdout=log, stderr=log
            )
        return self.processes[name]

    def said(self, name: str) -> str:
        return (self.logs / f"{name}.log").read_text()

    def check_health(self, name: str) -> subprocess.CompletedProcess[bytes]:
        """Run the service's health check as Docker would, but for the ports of this test."""
        kind, *test = SERVICES[name]["healthcheck"]["test"]
        if kind == "CMD-SHELL":
            test = ["sh", "-c", test[0].replace("$$", "$")]
        for ours, here in self.ports.items():
            test = [word.replace(f":{ours}/", f":{here}/") for word in test]
        timeout = seconds(SERVICES[name]["healthcheck"]["timeout"])
        return subprocess.run(
            test, env=self.env, cwd=self.home, capture_output=True, timeout=timeout, check=False
        )

    def order(self, external_id: str, status: str, within_s: float = 60) -> dict[str, Any]:
        deadline = time.monotonic() + within_s
        with self.web as web:
            while True:
                answer = web.get(f"/v1/orders/{external_id}")
                found = answer.json()
                if found.get("status") == status:
                    return dict(found)
                assert time.monotonic() < deadline, f"{found} is not {status} in time"
                time.sleep(0.2)


@pytest.fixture(scope="module")
def provider() -> Iterator[str]:
    options = SimulatorOptions(
        client_id="docker", client_secret="docker-secret", port=0, items=20, speed=30
    )
    with running(options) as url:
        yield url


@pytest.fixture(scope="module")
def containers(
    tmp_path_factory: pytest.TempPathFactory, empty_database: str, broker_url: str, provider: str
) -> Iterator[Containers]:
    directory = tmp_path_factory.mktemp("docker")
    home, logs = directory / "srv", directory / "logs"
    home.mkdir()
    logs.mkdir()
    fixed = OURS["web"]["environment"]
    ports = {fixed["FULFILLMENT_WEB_PORT"]: str(free_port())}
    ports[fixed["FULFILLMENT_FLOWER_PORT"]] = str(free_port())
    env = {
        **make_env(directory),
        **fixed,
        "FULFILLMENT_WEB_PORT": ports["8080"],
        "FULFILLMENT_FLOWER_PORT": ports["5555"],
        "FULFILLMENT_DATABASE_URL": empty_database,
        "FULFILLMENT_BROKER_URL": broker_url,
        "FULFILLMENT_PUBLIC_URL": f"http://127.0.0.1:{ports['8080']}",
        "FULFILLMENT_ACCOUNTS__MAIN__BASE_URL": provider,
        "FULFILLMENT_ACCOUNTS__MAIN__CLIENT_ID": "docker",
        "FULFILLMENT_ACCOUNTS__MAIN__CLIENT_SECRET": "docker-secret",
        # As in the image, and nothing else.
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": "/nonexistent",
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    running_ones = Containers(env, home, logs, {}, ports)
    try:
        assert running_ones.start("migrate").wait(timeout=60) == 0, running_ones.said("migrate")
        for name in LASTING:
            running_ones.start(name)
        wait_ready(running_ones)
        yield running_ones
    finally:
        for process in running_ones.processes.values():
            process.kill()
            process.wait()


def wait_ready(containers: Containers, within_s: float = 60) -> None:
    deadline = time.monotonic() + within_s
    with containers.web as web:
        while True:
            try:
                answer = web.get("/readyz")
                if answer.status_code == httpx.codes.OK:
                    return
                said = answer.text
            except httpx.TransportError as error:
                said = str(error)
            logs = {name: containers.said(name)[-500:] for name in containers.processes}
            assert time.monotonic() < deadline, f"{said}\n{logs}"
            time.sleep(0.2)


def event(provider: str, external_id: str) -> dict[str, Any]:
    items = httpx.get(f"{provider}/_sim/items?available=true", trust_env=False).json()["items"]
    return {
        "externalId": external_id,
        "catalogItemId": items[0]["id"],
        "expectedPrice": items[0]["price"],
        "tradeUrl": "https://steamcommunity.com/tradeoffer/new/?partner=123&token=canaryTk",
    }


def test_migrating_again_changes_nothing(containers: Containers) -> None:
    assert containers.start("migrate").wait(timeout=60) == 0
    assert "the schema is up to date" in containers.said("migrate")


def test_a_checkout_by_http_is_delivered(containers: Containers, provider: str) -> None:
    with containers.web as web:
        answer = web.post("/v1/checkouts", json=event(provider, "docker-http"))
    assert answer.status_code == 202, answer.text

    order = containers.order("docker-http", "completed")

    assert {entry["source"] for entry in order["timeline"]} >= {"intake", "wallet", "webhook"}


def test_a_checkout_by_rabbitmq_is_delivered(containers: Containers, provider: str) -> None:
    with Connection(containers.env["FULFILLMENT_BROKER_URL"]) as connection:
        connection.Producer(exchange=Exchange("store.events", type="topic")).publish(
            event(provider, "docker-amqp"), routing_key="checkout.completed"
        )

    containers.order("docker-amqp", "completed")


def test_flower_listens_for_other_machines_and_asks_for_its_password(
    containers: Containers,
) -> None:
    # Another address of this machine than the one that is Flower's default.
    base = f"http://127.0.0.2:{containers.env['FULFILLMENT_FLOWER_PORT']}"
    user, _, password = containers.env["FULFILLMENT_FLOWER_BASIC_AUTH"].partition(":")
    with httpx.Client(base_url=base, trust_env=False) as client:
        assert client.get("/").status_code == 401
        assert client.get("/tasks", auth=(user, password)).status_code == 200


@pytest.mark.parametrize("name", [n for n in LASTING if "healthcheck" in OURS[n]])
def test_the_health_check_of_a_running_service_succeeds(containers: Containers, name: str) -> None:
    result = containers.check_health(name)

    assert result.returncode == 0, result.stdout + result.stderr


def test_doctor_finds_nothing_wrong(containers: Containers) -> None:
    doctor = [containers.command("web")[0], "doctor"]
    result = subprocess.run(
        doctor,
        env=containers.env,
        cwd=containers.home,
        capture_output=True,
        timeout=60,
        check=False,
    )

    assert result.returncode == 0, result.stdout + result.stderr


def test_the_settings_are_those_of_env_example(containers: Containers, monkeypatch: Any) -> None:
    for name, value in containers.env.items():
        if name.startswith(PREFIX):
            monkeypatch.setenv(name, value)

    settings = load_settings(_env_file=None)

    assert settings.is_amqp
    assert settings.webhook_base_url == containers.env["FULFILLMENT_PUBLIC_URL"]
    assert settings.account("main").webhook_secrets == ("docker-secret",)


@pytest.mark.parametrize("name", LASTING)
def test_a_stopped_service_ends_cleanly_within_its_grace(containers: Containers, name: str) -> None:
    process = containers.processes[name]
    assert process.poll() is None, containers.said(name)

    process.send_signal(signal.SIGTERM)

    assert process.wait(timeout=seconds(SERVICES[name]["stop_grace_period"])) == 0
    assert "Traceback" not in containers.said(name)
    # The health check of a stopped service says so.
    if "healthcheck" in SERVICES[name]:
        assert containers.check_health(name).returncode != 0
    # The containers' file systems are read-only: none may have written beside itself.
    assert list(containers.home.iterdir()) == []
