"""The store of the demo: sends checkouts over every way in, and reads what became of them.

It knows nothing but what a store knows: addresses, the API token, and the broker's URL.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Self

import httpx
from kombu import Producer

from fulfillment.broker import checkout_queue, connect, store_exchange
from fulfillment.devstack.demo_script import Run
from fulfillment.devstack.processes import launch_command
from fulfillment.devstack.stack import Stack
from fulfillment.messaging.store_client import send_checkout
from fulfillment.simulator.options import path_of
from schemas.messages import CHECKOUT_KEY

TIMEOUT_S = 10.0


class Store:
    """A client of one running stack, to be used in a `with` block."""

    def __init__(self, stack: Stack) -> None:
        token = stack.settings.api_token.get_secret_value()
        self._surprises: list[str] = []
        self._stack = stack
        self._http = httpx.Client(
            base_url=stack.web_url,
            headers={"Authorization": f"Bearer {token}"},
            timeout=TIMEOUT_S,
            trust_env=False,
        )
        self._commands: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for command in self._commands:
            command.kill()
            command.wait()
        self._http.close()

    def send(self, runs: Sequence[Run]) -> None:
        """Send checkouts that go in together, and once more what the script has come again."""
        self._send(runs[0].case.way, runs, httpx.codes.ACCEPTED)
        for run in runs:
            for way in run.case.again:
                self._send(way, [run], httpx.codes.OK)

    def orders(self) -> dict[str, dict[str, Any]]:
        """Read all orders with their timelines, by id."""
        page = self._http.get("/v1/orders", params={"limit": 500}).raise_for_status().json()
        return {order["externalId"]: order for order in page["orders"]}

    def surprises(self) -> list[str]:
        """Name the answers that were not as they must be."""
        for command in self._commands:
            with suppress(subprocess.TimeoutExpired):
                command.wait(TIMEOUT_S)
        failed = [each.returncode for each in self._commands if each.returncode != 0]
        return self._surprises + [f"`fulfillment checkout`: exit {code}" for code in failed]

    def wallets(self) -> dict[str, dict[str, Any]]:
        """Read every account's money, by account."""
        found = self._http.get("/v1/wallets").raise_for_status().json()["wallets"]
        return {wallet["account"]: wallet for wallet in found}

    def _send(self, way: str, runs: Sequence[Run], code: int) -> None:
        first, events = runs[0], [run.event for run in runs]
        match way:
            case "http":
                self._post(first, "/v1/checkouts", events[0], code)
            case "changed":
                other = events[0] | {"expectedPrice": first.item.price_cents + 1}
                self._post(first, "/v1/checkouts", other, httpx.codes.CONFLICT)
            case "batch":
                self._post(first, "/v1/checkouts/batch", {"checkouts": events}, httpx.codes.OK)
            case "queue":
                self._publish(events[0])
            case "celery":
                send_checkout(self._stack.settings.broker_url.get_secret_value(), events[0])
            case "cli":
                self._run_command(events)

    def _post(self, run: Run, path: str, content: dict[str, Any], code: int) -> None:
        answer = self._http.post(path, json=content)
        if answer.status_code == httpx.codes.UNPROCESSABLE_ENTITY:
            run.refused = f"422: {answer.json()['error']['field']}"
        elif answer.status_code != code:
            found = f"HTTP {answer.status_code}: {answer.text[:200]}"
            self._surprises.append(f"{run.external_id}: expected HTTP {code}, found {found}")

    def _publish(self, event: dict[str, Any]) -> None:
        with connect(self._stack.settings, confirm=True) as connection:
            Producer(connection).publish(
                event,
                exchange=store_exchange,
                routing_key=CHECKOUT_KEY,
                declare=[checkout_queue],
                serializer="json",
            )

    def _run_command(self, events: list[dict[str, Any]]) -> None:
        """Start `fulfillment checkout -`; the demo goes on while it runs."""
        command = [sys.executable, "-m", "fulfillment.cli", "checkout", "-"]
        with self._stack.processes.log_path("checkout").open("a") as log:
            process = subprocess.Popen(  # noqa: S603
                launch_command(command),
                env=self._stack.env,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                text=True,
            )
        self._commands.append(process)
        assert process.stdin is not None
        process.stdin.write("".join(json.dumps(event) + "\n" for event in events))
        process.stdin.close()


class Provider:
    """An account's provider by its side door: moves the market, tops up, tells the true ledger."""

    def __init__(self, side_door: httpx.Client, account: str) -> None:
        self._http = side_door
        self._path = f"{path_of(account)}/_sim"

    def set_options(self, **options: float) -> None:
        self._ask("POST", "/options", json=options)

    def move_market(self, run: Run) -> None:
        """Change the item as the script says, between the sale in the store and the purchase."""
        price = run.item.price_cents * run.case.market_percent // 100
        change = {"price": price, "available": run.case.is_on_sale}
        if (price, run.case.is_on_sale) != (run.item.price_cents, True):
            self._ask("PUT", f"/items/{run.item.id}", json=change)

    def top_up(self, cents: int) -> None:
        self._ask("POST", "/wallet", json={"deltaCents": cents})

    def ledger(self) -> Any:
        return self._ask("GET", "/ledger")

    def webhooks(self) -> Any:
        return self._ask("GET", "/deliveries", params={"limit": 10_000})["deliveries"]

    def _ask(self, method: str, path: str, **content: Any) -> Any:
        return self._http.request(method, self._path + path, **content).raise_for_status().json()
