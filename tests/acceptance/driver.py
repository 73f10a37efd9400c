"""Drives a running stack from outside, as a store and as the provider's auditor would."""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
from sqlalchemy.engine import make_url

from fulfillment.devstack.stack import CHILDREN, Stack, StackOptions
from fulfillment.settings import AccountSettings, Settings
from fulfillment.simulator.options import path_of
from fulfillment.web.tokens import generate

FINAL = {"completed", "reversed", "failed", "cancelled", "expired"}
TOKEN = "canaryTk"  # the trade token: must never be seen anywhere outside the provider
NAMED_TOKEN, NAMED_PAIR = generate("driver")
SPEED = 30.0
T = TypeVar("T")
_numbers = itertools.count(1)


#: An account whose provider is fast and whose customers are.
QUICK = AccountSettings(trade_window_s=20, request_timeout_s=3, max_submits_in_flight=4)


def quick_settings(data_dir: Path, **changes: Any) -> Settings:
    """Give settings scaled to the simulator's speed: a window of 20 s, polls every second."""
    values: dict[str, Any] = {
        "data_dir": data_dir,
        "web_port": 0,
        "flower_port": 0,
        "poll_min_interval_s": 1.0,
        "wallet_lag_s": 2.0,
        "lookup_cache_s": 2.0,
        "claim_lease_s": 5,
        "await_funds_s": 10,
        "accounts": {"main": QUICK},
        "api_tokens": NAMED_PAIR,
        **changes,
    }
    return Settings(_env_file=None, **values)


@contextmanager
def running_stack(
    data_dir: Path, options: StackOptions | None = None, **changes: Any
) -> Iterator["Driver"]:
    """Run a whole stack with the simulator as its provider until the block ends."""
    options = options or StackOptions(
        children=[name for name in CHILDREN if name != "flower"],
        simulator_speed=SPEED,
        report=lambda line: None,
    )
    with Stack(quick_settings(data_dir, **changes), options) as stack:
        stack.wait_ready()
        driver = Driver(stack)
        try:
            yield driver
        finally:
            driver.close()


def until(what: str, look: Callable[[], T | None], timeout_s: float = 45.0) -> T:
    """Look until something true is seen."""
    deadline = time.monotonic() + timeout_s
    while not (seen := look()):
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.1)
    return seen


class Driver:
    """A store with one running stack."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        token = stack.settings.api_token.get_secret_value()
        self.web = httpx.Client(
            base_url=stack.web_url,
            headers={"Authorization": f"Bearer {token}"},
            timeout=20,
            trust_env=False,
        )
        self.provider = httpx.Client(base_url=stack.simulator_url, timeout=20, trust_env=False)
        self.items = {account: self._cheap(account) for account in stack.settings.accounts}

    def close(self) -> None:
        self.web.close()
        self.provider.close()

    def _cheap(self, account: str) -> Iterator[dict[str, Any]]:
        wanted = {"available": True, "limit": 400}
        answer = self.provider.get(f"{path_of(account)}/_sim/items", params=wanted)
        found: list[dict[str, Any]] = answer.json()["items"]
        # README's own checkouts are of the first ones.
        cheap = [item for item in found if item["price"] < 3000]
        return iter(cheap[::-1])

    def checkout(
        self,
        scenario: str = "delivered",
        account: str = "main",
        *,
        route: str | None = None,
        **changes: Any,
    ) -> dict[str, Any]:
        """Write a checkout of an item that nobody has bought yet, in this scenario.

        For a route the item is one of `account`, by its name.
        """
        item = next(self.items[account])
        if route is not None:
            changes |= {"account": route, "marketHashName": item["marketHashName"]}
        return {
            "externalId": f"t-{next(_numbers):04d}.{scenario}",
            "account": account,
            "catalogItemId": item["id"],
            **({} if account == "main" else {"marketHashName": item["marketHashName"]}),
            "expectedPrice": item["price"],
            "tradeUrl": f"https://steamcommunity.com/tradeoffer/new/?partner=123&token={TOKEN}",
            **changes,
        }

    def send(self, events: Iterable[dict[str, Any]]) -> list[str]:
        """Send checkouts as one batch; give their ids, all of them accepted."""
        answer = self.web.post("/v1/checkouts/batch", json={"checkouts": list(events)})
        results = answer.json()["results"]
        assert all("status" in result for result in results), results
        return [result["externalId"] for result in results]

    def order(self, external_id: str) -> dict[str, Any]:
        answer = self.web.get(f"/v1/orders/{external_id}")
        assert answer.status_code == httpx.codes.OK, answer.text
        order: dict[str, Any] = answer.json()
        return order

    def statuses(self, ids: Iterable[str]) -> dict[str, str]:
        """Give each order's status; "" where intake has not stored it yet."""
        found = {}
        for external_id in ids:
            answer = self.web.get(f"/v1/orders/{external_id}")
            found[external_id] = answer.json()["status"] if answer.is_success else ""
        return found

    def any_is(self, status: str, ids: Iterable[str]) -> bool:
        """Say whether any of the orders has this status now, seen at one moment."""
        answer = self.web.get("/v1/orders", params={"status": status})
        return any(order["externalId"] in set(ids) for order in answer.json()["orders"])

    def wait_for(self, ends: dict[str, str], timeout_s: float = 90.0) -> None:
        """Wait until each order has come to its scripted end."""

        def others() -> dict[str, str]:
            return dict(self.statuses(ends).items() - ends.items())

        try:
            until("the scripted ends", lambda: not others(), timeout_s)
        except AssertionError:
            wrong = {
                name: (status, self.order(name)["timeline"]) for name, status in others().items()
            }
            raise AssertionError(f"not within {timeout_s} s at their ends: {wrong}") from None

    def kill_and_revive(self, name: str) -> None:
        """Kill a child and wait until the supervisor has started it again."""
        processes = self.stack.processes
        until(name, lambda: name in processes.pids)
        dying = processes.pids[name]
        processes.kill(name)
        until(f"{name} again", lambda: processes.pids.get(name, dying) != dying)

    def wait_final(self, ids: Iterable[str], timeout_s: float = 60.0) -> dict[str, str]:
        """Wait until all orders have ended; give how."""
        ids = list(ids)
        return until(
            f"the ends of {len(ids)} orders",
            lambda: found if set((found := self.statuses(ids)).values()) <= FINAL else None,
            timeout_s,
        )

    def ledger(self, account: str = "main") -> dict[str, Any]:
        found: dict[str, Any] = self.provider.get(f"{path_of(account)}/_sim/ledger").json()
        return found

    def purchases(self) -> dict[str, list[dict[str, Any]]]:
        found: dict[str, list[dict[str, Any]]] = {}
        for account in self.stack.settings.accounts:
            for purchase in self.ledger(account)["purchases"]:
                found.setdefault(purchase["externalId"], []).append(purchase)
        return found

    def change_balance(self, delta_cents: int) -> None:
        """Move money into or out of the wallet and wait until the provider's cache shows it."""
        answer = self.provider.post("/_sim/wallet", json={"deltaCents": delta_cents})
        answer.raise_for_status()
        balance = str(self.ledger()["wallet"]["balance"])
        account = self.stack.settings.accounts["main"]
        headers = {
            "x-client-id": account.client_id,
            "x-client-secret": account.client_secret.get_secret_value(),
        }

        def shown() -> bool:
            wallet = self.provider.get("/v1/wallet", headers=headers).json()
            return bool(wallet["availableBalance"] == balance)

        until(f"the wallet at {balance}", shown)

    def assert_agreement(self, ids: Iterable[str]) -> None:
        """Compare our view with the provider's own ledger: bought once, same end, same cents."""
        bought = self.purchases()
        for external_id in ids:
            order, purchases = self.order(external_id), bought.get(external_id, [])
            assert len(purchases) <= 1, f"{external_id} was bought {len(purchases)} times"
            if not purchases:
                assert order["status"] == "failed", order
                assert order["failure"]["by"] == "us" or order["chargedPrice"] is None
                continue
            (purchase,) = purchases
            assert not purchase["conflictingPosts"], f"{external_id} was posted with other content"
            assert order["status"] == purchase["status"], (order, purchase)
            if order["status"] in ("completed", "reversed"):
                assert order["chargedPrice"] == purchase["amountCents"], external_id
            else:
                assert order["chargedPrice"] is None, external_id

    def secrets(self) -> list[str]:
        """Give every value that must not be seen in any log or page."""
        settings = self.stack.settings
        account = settings.accounts["main"]
        keys = settings.encryption_keys.get_secret_value()
        urls = (settings.database_url, settings.broker_url)
        passwords = [make_url(url.get_secret_value()).password for url in urls]
        values = [
            *(TOKEN, NAMED_TOKEN, NAMED_PAIR),
            settings.api_token.get_secret_value(),
            account.client_secret.get_secret_value(),
            settings.flower_basic_auth.get_secret_value().rpartition(":")[2],
            *(pair.partition(":")[2] for pair in keys.split(",")),
            # A word as common as this one proves nothing where it is found.
            *(word for word in passwords if word and len(word) > 6),
        ]
        return [value for value in values if value]

    def logs(self) -> str:
        folder = self.stack.data_dir / "logs"
        return "".join(path.read_text(errors="replace") for path in folder.glob("*.log"))
