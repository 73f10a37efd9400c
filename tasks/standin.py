"""Every worker watches for ticks and sends them itself while no beat does.

`/readyz` goes on to tell that the beat is dead: somebody should start it again.
"""

import threading
import time
from typing import Any

from celery.signals import worker_ready

from fulfillment.broker import hint
from fulfillment.errors import FulfillmentError
from fulfillment.log import get_logger
from fulfillment.services import standin
from schemas import messages
from tasks.base import context

log = get_logger(__name__)


@worker_ready.connect
def watch_beats(**_: Any) -> None:
    """Begin to watch, in a thread that ends with the worker."""
    threading.Thread(target=_watch, name="stand-in", daemon=True).start()


def _watch() -> None:
    while True:
        time.sleep(standin.EVERY_S)
        try:
            is_wanted = standin.is_wanted(context())
        except FulfillmentError as error:
            log.warning("beat.not_looked_for", reason=str(error))
            continue
        if is_wanted:
            log.warning("beat.dead", hint="no tick for ten seconds; this worker sends them")
            hint(messages.RESUME_STUCK, True)
            hint(messages.POLL_DUE)
            hint(messages.WATCH_TRADE_WINDOWS)
