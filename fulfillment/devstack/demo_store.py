"""The store of the demo: sends checkouts over every way in, and reads what became of them.

It knows nothing but what a store knows: addresses, the API token, and the broker's URL.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, Self

import httpx
from kombu import Producer

from fulfillment.broker import checkout_queue, connect, store_exchange
from fulfillment.devstack.demo_script import Run
from fulfillment.devstack.processes import launch_command
from fulfillment.devstack.stack import Stack
from fulfillment.messaging.store_client import send_checkout
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
        """Send checkouts that go in together."""
        way = runs[0].case.way
        if way == "batch":
            self._send_batch(runs)
        elif way == "http":
            self._send_first(runs[0])
        else:
            self._send_by(way, [run.event for run in runs])
        for run in runs:
            for again in run.case.again:
                self._send_again(again, run)

    def orders(self) -> dict[str, dict[str, Any]]:
        """Read all orders with their timelines, by id."""
        page = self._http.get("/v1/orders", params={"limit": 500}).raise_for_status().json()
        return {order["externalId"]: order for order in page["orders"]}

    def surprises(self) -> list[str]:
        """Name the answers that were not as they must be."""
        codes = [command.poll() for command in self._commands]
        commands = [f"`fulfillment checkout`: exit {code}" for code in codes if code != 0]
        return self._surprises + commands

    def wallet(self) -> dict[str, Any]:
        (wallet,) = self._http.get("/v1/wallets").raise_for_status().json()["wallets"]
        assert isinstance(wallet, dict)
        return wallet

    def _send_first(self, run: Run) -> None:
        answer = self._http.post("/v1/checkouts", json=run.event)
        if answer.status_code == httpx.codes.UNPROCESSABLE_ENTITY:
            run.refused = f"422: {answer.json()['error']['field']}"
        else:
            self._expect(answer, httpx.codes.ACCEPTED, run)

    def _send_batch(self, runs: Sequence[Run]) -> None:
        events = [run.event for run in runs]
        answer = self._http.post("/v1/checkouts/batch", json={"checkouts": events})
        self._expect(answer, httpx.codes.OK, runs[0])

    def _send_again(self, way: str, run: Run) -> None:
        if way == "http":
            self._expect(self._http.post("/v1/checkouts", json=run.event), httpx.codes.OK, run)
        elif way == "changed":
            event = run.event | {"expectedPrice": run.item.price_cents + 1}
            self._expect(self._http.post("/v1/checkouts", json=event), httpx.codes.CONFLICT, run)
        else:
            self._send_by(way, [run.event])

    def _expect(self, answer: httpx.Response, code: int, run: Run) -> None:
        if answer.status_code != code:
            found = f"HTTP {answer.status_code}: {answer.text[:200]}"
            self._surprises.append(f"{run.external_id}: expected HTTP {code}, found {found}")

    def _send_by(self, way: str, events: list[dict[str, Any]]) -> None:
        if way == "cli":
            self._send_by_command(events)
        for event in events if way == "queue" else ():
            with connect(self._stack.settings, confirm=True) as connection:
                Producer(connection).publish(
                    event,
                    exchange=store_exchange,
                    routing_key=CHECKOUT_KEY,
                    declare=[checkout_queue],
                    serializer="json",
                )
        for event in events if way == "celery" else ():
            send_checkout(self._stack.settings.broker_url.get_secret_value(), event)

    def _send_by_command(self, events: list[dict[str, Any]]) -> None:
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
    """The simulator's side door: the market moves, money comes in, and the true ledger is read."""

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=f"{url}/_sim", timeout=TIMEOUT_S, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def set_options(self, **options: float) -> None:
        self._http.post("/options", json=options).raise_for_status()

    def move_market(self, run: Run) -> None:
        """Change the item as the script says, between the sale in the store and the purchase."""
        price = run.item.price_cents * run.case.market_percent // 100
        change = {"price": price, "available": run.case.is_on_sale}
        if (price, run.case.is_on_sale) != (run.item.price_cents, True):
            self._http.put(f"/items/{run.item.id}", json=change).raise_for_status()

    def top_up(self, cents: int) -> None:
        self._http.post("/wallet", json={"deltaCents": cents}).raise_for_status()

    def ledger(self) -> dict[str, Any]:
        found: dict[str, Any] = self._http.get("/ledger").raise_for_status().json()
        return found

    def webhooks(self) -> list[dict[str, Any]]:
        answer = self._http.get("/deliveries", params={"limit": 10_000}).raise_for_status()
        found: list[dict[str, Any]] = answer.json()["deliveries"]
        return found
