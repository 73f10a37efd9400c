"""`fulfillment demo`: the whole product on a scripted mix of checkouts, and the books at the end.

It uses only servers and data of its own, and leaves no process.
"""

import os
import shutil
import signal
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
from pydantic import SecretStr

from fulfillment.clock import SystemClock
from fulfillment.devstack.configuration import SIMULATED
from fulfillment.devstack.demo_books import Books, dollars
from fulfillment.devstack.demo_screen import Screen
from fulfillment.devstack.demo_script import (
    FUNDS_LATER,
    SHOWN_AT_THE_END,
    Run,
    acts,
    cast,
)
from fulfillment.devstack.demo_store import Provider, Store
from fulfillment.devstack.files import DirectoryLock, private_directory, remove_short_directory
from fulfillment.devstack.server import PREVIOUS_SERVER_S
from fulfillment.devstack.stack import Stack, StackOptions, stop_signals
from fulfillment.errors import FulfillmentError, ServerUnreachable
from fulfillment.settings import PREFIX, Settings, load_settings
from schemas.enums import OrderStatus

DIRECTORY = "demo"  # inside the data directory
SPEED = 10.0
WINDOW_S = 20
READY_S = 60.0
GAP_S = 0.25  # between two sendings, so that a person can watch
TICK_S = 0.2
SHORT_OF_FUNDS_S = 4.0  # how long the order that is short has to wait for the top-up
QUIET_S = 20.0  # how long the books may take to agree once every order has ended
DEADLINE_S = 160.0  # of the whole demo


def run_demo(settings: Settings, *, keep: bool = False, prices: Path | None = None) -> int:
    """Run the demo; give the exit code: 0 if all went as scripted and the books agree."""
    screen = Screen()
    try:
        with stop_signals():
            return _run(settings, screen, keep=keep, prices=prices)
    except KeyboardInterrupt:
        screen.say("stopped; every process has ended")
        return 130
    except (FulfillmentError, httpx.HTTPError) as error:
        logs = settings.data_dir / DIRECTORY / "logs"
        is_of_a_process = isinstance(error, ServerUnreachable | httpx.HTTPError)
        sys.stderr.write(f"error: {error}{f' (see {logs})' if is_of_a_process else ''}\n")
        return 1


def _run(settings: Settings, screen: Screen, *, keep: bool, prices: Path | None) -> int:
    prices = prices and prices.absolute()
    runs, opening_cents = cast(prices)
    screen.say(
        f"{len(runs)} checkouts meet simulated providers: SkinsNode, SkinsBack and Skinslink.\n"
        f"Their time runs {SPEED:.0f} times faster; "
        f"a trade offer stands {WINDOW_S} s, not 10 minutes.\n",
        "bold",
    )
    options = StackOptions(
        simulator_speed=SPEED,
        simulator_prices=prices,
        simulator_balance_cents=opening_cents,
        report=screen.note,
        step=screen.step,
    )
    with Stack(_own_settings(settings, screen), options) as stack:
        stack.wait_ready(READY_S)
        screen.step("everything is ready\n")
        for line in stack.banner():
            screen.note(line)
        screen.say("")
        side_door = httpx.Client(base_url=stack.simulator_url, trust_env=False)
        with Store(stack) as store, side_door:
            providers = {name: Provider(side_door, name) for name in SIMULATED}
            code = Demo(screen, store, providers, runs).play()
        if keep:
            screen.say("\nEverything is left running, until Ctrl-C:", "bold")
            for line in stack.banner():
                screen.note(line)
            with suppress(KeyboardInterrupt):
                while True:
                    signal.pause()
    screen.say(f"Every process has ended. The demo took {screen.elapsed_s():.0f} s.")
    return code


def _own_settings(settings: Settings, screen: Screen) -> Settings:
    """Give settings for an empty data directory, and hide all others from the children."""
    data_dir = settings.home / DIRECTORY
    others = [
        PREFIX + name.upper()
        for name in ("database_url", "broker_url", "accounts")
        if getattr(settings, name) not in (SecretStr(""), {})
    ]
    if others:
        screen.say(f"The demo uses only servers of its own, and not {', '.join(others)}.\n")
    _clear(data_dir)
    for name in [name for name in os.environ if name.upper().startswith(PREFIX)]:
        del os.environ[name]
    os.chdir(data_dir)  # where there is no .env either
    quick = {"trade_window_s": WINDOW_S, "request_timeout_s": 3, "check_recipient": True}
    accounts = {name: {"provider": each.provider, **quick} for name, each in SIMULATED.items()}
    own = load_settings(
        data_dir=data_dir,
        web_port=settings.web_port,
        flower_port=settings.flower_port,
        claim_lease_s=10,
        poll_min_interval_s=1.0,
        wallet_lag_s=2.0,
        lookup_cache_s=2.0,
        await_funds_s=15,
        accounts=accounts,
    )
    own.model_fields_set.difference_update({"web_port", "flower_port"})  # wished for, not fixed
    return own


def _clear(data_dir: Path) -> None:
    """Remove what an earlier demo left, once the servers of one that was killed have let go."""
    private_directory(data_dir)
    with ExitStack() as locks:
        for path in (data_dir / "lock", *data_dir.glob("*/lock")):
            lock = DirectoryLock(path)
            lock.acquire(wait_s=0 if path.parent == data_dir else PREVIOUS_SERVER_S)
            locks.callback(lock.release)
        for path in data_dir.iterdir():
            remove_short_directory(path / "socket")
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != "lock":
                path.unlink()


@dataclass
class Demo:
    """One performance on a running stack."""

    screen: Screen
    store: Store
    providers: Mapping[str, Provider]
    runs: Sequence[Run]
    is_topped_up: bool = False

    def play(self) -> int:
        """Send everything, follow it to its end, and compare; give the exit code."""
        for provider in self.providers.values():
            provider.set_options(window_s=WINDOW_S * SPEED, reads_cached_s=SPEED)
        with self.screen.moving():
            self._follow()
            books = self._close_books()
        self.screen.summary(self.runs)
        self.screen.timeline(next(r for r in self.runs if r.case.name == SHOWN_AT_THE_END))
        return self._conclude(books)

    def _follow(self) -> None:
        waiting = deque(acts(self.runs))
        send_at = 0.0
        while waiting or not all(run.is_over for run in self.runs):
            now = self.screen.elapsed_s()
            if now > DEADLINE_S:
                return
            if waiting and now >= send_at:
                self._send(waiting.popleft())
                send_at = now + GAP_S
            self._look()
            time.sleep(TICK_S)

    def _send(self, runs: Sequence[Run]) -> None:
        for run in runs:
            self.providers[run.case.account].move_market(run)
            run.sent_at = self.screen.elapsed_s()
        self.store.send(runs)

    def _look(self) -> None:
        try:
            orders = self.store.orders()
        except httpx.HTTPError:  # a busy machine; the deadline is near enough
            return
        for run in self.runs:
            run.view = orders.get(run.external_id)
            if run.case.name == FUNDS_LATER and run.status == OrderStatus.AWAITING_FUNDS:
                self._top_up(run)
        self.screen.show(self.runs)

    def _top_up(self, run: Run) -> None:
        since = (SystemClock().now() - run.path[-1][0]).total_seconds()
        if since >= SHORT_OF_FUNDS_S and not self.is_topped_up:
            self.is_topped_up = True
            self.providers[run.case.account].top_up(run.item.price_cents)
            self.screen.step(f"the store puts {dollars(run.item.price_cents)} into the wallet")

    def _close_books(self) -> dict[str, Books]:
        """Compare until everything agrees, or no longer might: figures lag by some seconds."""
        until = self.screen.elapsed_s() + QUIET_S
        while True:
            self._look()
            wallets = self.store.wallets()
            books = {
                account: Books(
                    [run for run in self.runs if run.case.account == account],
                    wallets[account],
                    provider.ledger(),
                    provider.webhooks(),
                )
                for account, provider in self.providers.items()
            }
            if not _differences(books) or self.screen.elapsed_s() > until:
                return books
            time.sleep(TICK_S)

    def _conclude(self, books: Mapping[str, Books]) -> int:
        failures = [
            f"{run.external_id}: expected {run.case.end}, found {run.end}"
            + ("" if run.is_over else ", not at its end")
            for run in self.runs
            if not run.is_as_scripted
        ]
        self.screen.heading("Our database against the providers' ledgers")
        self.screen.books(books)
        self.screen.say("")
        failures += [*self.store.surprises(), *_differences(books)]
        for line in failures:
            self.screen.say(f"  {line}", "red")
        if failures:
            self.screen.say("FAILED: see the lines above.", "bold red")
            return 1
        ended = f"All {len(self.runs)} checkouts ended as scripted"
        self.screen.say(f"{ended}; the books agree to the cent.", "bold green")
        return 0


def _differences(books: Mapping[str, Books]) -> list[str]:
    return [f"{name}: {line}" for name, found in books.items() for line in found.differences()]
