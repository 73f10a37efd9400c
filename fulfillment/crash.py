"""Named points at which a test lets this process die, as SIGKILL or a power cut would.

Nothing is armed outside tests, and a point that is not armed costs one look at a name. Points stand
around each transaction and each call to the outside, and never change what the code does.
"""

import os
import signal
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from fulfillment.errors import ConfigurationError
from fulfillment.log import get_logger

log = get_logger(__name__)

SETTING = "FULFILLMENT_CRASH_FILE"
#: What an armed file is called once a process has died of it.
FIRED = ".fired"

#: Every point, and what has happened by then and what has not; the code names each exactly once.
POINTS: Mapping[str, str] = MappingProxyType(
    {
        # intake
        "intake.before_commit": "checkouts are about to be inserted, which commits them",
        "intake.after_commit": "checkouts are stored, nobody is answered and nothing is dispatched",
        "consumer.before_ack": "checkouts of the queue are stored, the messages not acknowledged",
        "consumer.after_ack": "those of stored checkouts are acknowledged, nothing is dispatched",
        # tasks and their batches
        "task.begun": "a task's message is acknowledged, nothing is done",
        "task.done": "a task's work is done, the chain's next link is not published",
        "dispatch.before_commit": "waiting orders are claimed, not committed",
        "dispatch.after_commit": "a batch is claimed, its chain not published",
        "claim.taken_over": "a step has taken its batch over, nothing else",
        "claim.renewed": "a claim is renewed while its step works",
        "gather.released": "a batch has let others gather, nobody was told",
        "gather.given_back": "a batch that cannot go on is given back",
        "budget.taken": "requests are taken out of the rate budget, none is sent",
        "outage.paused": "the account is paused after a failure, its batch not given back",
        # catalog and wallet
        "recovery.answered": "accounts have told which orders they have, nothing is written",
        "recovery.before_commit": "orders found at their accounts are adopted, not committed",
        "recovery.after_commit": "orders found at their accounts are adopted",
        "catalog.answered": "prices are read, nothing is written",
        "catalog.before_commit": "prices and refusals are written, not committed",
        "catalog.after_commit": "prices are committed",
        "wallet.answered": "the balance is read, nothing is written",
        "wallet.before_commit": "money is held for a batch, not committed",
        "wallet.after_commit": "money is held for a batch",
        "refresh.answered": "a balance outside any batch is read, nothing is written",
        "refresh.before_commit": "holds are released by a balance, not committed",
        # the purchase
        "intent.before_commit": "the intent to buy and its bytes are written, not committed",
        "intent.after_commit": "the intent is committed, no request is under way",
        "replay.begins": "a purchase of unknown outcome is about to be posted again",
        "post.leaving": "a purchase is about to be sent, no byte has left",
        "http.sent": "a request has left whole, its answer is not awaited",
        "post.answered": "the provider has answered a purchase, the answer is not read",
        "post.read": "a purchase's answer is understood, not written",
        "purchases.paused": "purchases rest after an outage, what was not begun is not put off",
        "purchases.went_ahead": "one purchase may go ahead of all others, its intent not committed",
        "lookup.answered": "a lookup after an unknown outcome is answered, nothing concluded",
        "outcome.refused": "refusals are written and their money not freed, not committed",
        "outcome.before_commit": "outcomes of purchases are written, not committed",
        "outcome.after_commit": "outcomes are committed",
        # failover
        "reroute.before_commit": "orders of an unreachable account go on, not committed",
        "reroute.after_commit": "orders of an unreachable account have gone on, nobody was told",
        "leave_paused.before_commit": "orders of a paused account go on, not committed",
        "leave_paused.after_commit": "orders of a paused account have gone on",
        "price_afresh.before_commit": "orders that were held back begin anew, not committed",
        "price_afresh.after_commit": "orders that were held back wait for a fresh catalog",
        # the ledger
        "ledger.absorbed": "what a balance tells of the holds is written, the balance is not",
        "ledger.held": "attempts and their holds are written, not committed",
        "ledger.confirmed": "attempts are confirmed by the provider, not committed",
        "ledger.released": "holds of refused attempts are released, not committed",
        "ledger.settled": "charges are booked, not committed",
        "ledger.ended": "attempts ended without the item, not committed",
        "ledger.refunded": "refunds are booked, not committed",
        # what the provider tells later
        "report.moved": "reported statuses are written and their money not, not committed",
        "webhook.before_commit": "a webhook is inserted, not committed",
        "webhook.after_commit": "a webhook is stored, its sender not answered",
        "inbox.claimed": "stored webhooks are claimed, not applied",
        "inbox.before_commit": "webhooks are applied, not committed",
        "inbox.after_commit": "webhooks are applied",
        "schedule.after_commit": "the batch's first polls are looked at, the next batch not called",
        "poll.claimed": "orders due for a poll are claimed, not handed out",
        "poll.answered": "the provider has told of orders, nothing is written",
        "poll.before_commit": "polled reports are written, not committed",
        "poll.after_commit": "polled reports are committed",
        "watchdog.before_commit": "due trade windows are acted on, not committed",
        "watchdog.after_commit": "due trade windows are acted on",
        "expire.before_commit": "orders that were not submitted in time end, not committed",
        "sweep.claimed": "stuck submissions are claimed, their chains not published",
        # the store, the operator, housekeeping
        "relay.leased": "messages for the store are read under the relay's lease, none published",
        "relay.published": "messages for the store are published, the outbox still has them",
        "relay.marked": "published messages are taken out of the outbox",
        "resolve.before_commit": "a person's finding is written, not committed",
        "resolve.after_commit": "a person's finding is committed, the person not answered",
        "adopt.answered": "the provider has told of a reviewed order, nothing is written",
        "adopt.before_commit": "a reviewed order is adopted, not committed",
        "erase.before_commit": "trade URLs and sent bodies are erased, not committed",
        "erase.after_commit": "trade URLs and sent bodies of a slice are erased",
    }
)

_act: Callable[[str], None] | None = None


def crash_point(name: str, about: Collection[object] | None = None) -> None:
    """Die here if a test wants it so; where `about` is empty nothing is at stake."""
    if _act is not None and (about is None or about):
        _act(name)


@contextmanager
def acting(act: Callable[[str], None]) -> Iterator[None]:
    """Have `act` called with the name of every point that this process comes by, for a while."""
    global _act
    before, _act = _act, act
    try:
        yield
    finally:
        _act = before


def parse(text: str) -> tuple[str, int]:
    """Read `point` or `point:n`, where n says at which time that a process comes by it dies.

    Raises ConfigurationError for a point that does not exist.
    """
    name, _, number = text.strip().partition(":")
    if name not in POINTS:
        raise ConfigurationError(SETTING, f"expected the name of a crash point, found {name!r}")
    if number and not (number.isascii() and number.isdigit() and int(number)):
        raise ConfigurationError(SETTING, f"expected {name}:<1 or more>")
    return name, int(number or 1)


def arm(path: Path) -> None:
    """Let this process die, by SIGKILL, at the point that `path` names whenever the file exists.

    The file is renamed first, so that of all processes one dies, once. Raises ConfigurationError.
    """
    global _act
    file = _CrashFile(path)
    armed = file.read()
    log.warning("crash.armed", file=str(path), at=armed and armed[0])
    _act = file.pass_by


class _CrashFile:
    """Says at each point whether it is the one to die at."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._armed: tuple[str, int] | None = None
        self._passed = 0

    def read(self) -> tuple[str, int] | None:
        try:
            return parse(self._path.read_text())
        except FileNotFoundError:
            return None

    def pass_by(self, name: str) -> None:
        with self._lock:
            armed = self.read()
            if armed != self._armed:
                self._armed, self._passed = armed, 0
            if armed is None or armed[0] != name:
                return
            self._passed += 1
            if self._passed < armed[1]:
                return
            try:
                self._path.rename(self._path.with_name(self._path.name + FIRED))
            except FileNotFoundError:
                return  # another process was faster, and dies of it
            log.warning("crash.now", point=name)
            os.kill(os.getpid(), signal.SIGKILL)
