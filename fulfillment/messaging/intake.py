"""The `fulfillment intake` process: the checkout consumer and the outbox relay, side by side."""

import signal
import threading

from fulfillment import log as logging
from fulfillment.broker import require_access
from fulfillment.log import get_logger
from fulfillment.messaging.consumer import CheckoutConsumer
from fulfillment.messaging.relay import OutboxRelay
from fulfillment.services.context import build_context, register_accounts
from fulfillment.settings import Settings

log = get_logger(__name__)


def run(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT. Raises ConfigurationError and ServerUnreachable at the start."""
    settings.require("broker_url", "api_token")
    logging.configure(settings.log_level, settings.log_format)
    require_access(settings)
    context = build_context(settings, threads=4)
    register_accounts(context)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    consumer = CheckoutConsumer(context, stop)
    relay = OutboxRelay(context, stop)
    threads = [
        threading.Thread(target=part.run, name=type(part).__name__) for part in (consumer, relay)
    ]
    for thread in threads:
        thread.start()
    # A thread that died of a bug must not leave half a process: the supervisor starts it anew.
    while all(thread.is_alive() for thread in threads) and not stop.wait(0.5):
        pass
    is_told = stop.is_set()
    stop.set()
    for thread in threads:
        thread.join(timeout=5)
    context.close()
    if not is_told:
        raise SystemExit(1)
