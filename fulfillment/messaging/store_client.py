"""For stores in Python that send checkouts through Celery: publish so that nobody sees the token.

It needs celery and nothing else of this project, so that it can be copied into the store's code.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qs

from celery import Celery
from kombu import Exchange, Queue

TASK = "checkout.receive"
#: Exactly as the workers declare it, whatever the store's own application calls its default queue,
#: and whatever type of queue is RabbitMQ's default.
QUEUE = Queue(
    "celery",
    Exchange("celery", type="direct", durable=True),
    routing_key="celery",
    queue_arguments={"x-queue-type": "classic"},
)


def _with_checked_certificate(address: str) -> str:
    """Have Redis show who it is, unless the address says otherwise: kombu does not ask."""
    whole = address.partition("#")[0]
    is_said = "ssl_cert_reqs" in parse_qs(whole.partition("?")[2])
    if is_said or not address.lower().startswith("rediss://"):
        return address
    return f"{whole}{'&' if '?' in whole else '?'}ssl_cert_reqs=required"


@lru_cache(maxsize=8)
def _application(broker_url: str) -> Celery:
    addresses = ";".join(map(_with_checked_certificate, broker_url.split(";")))
    app = Celery("store", broker=addresses, set_as_current=False)
    if broker_url.startswith(("amqp", "pyamqp")):
        # Without it RabbitMQ may drop a message that "was sent".
        app.conf.broker_transport_options = {"confirm_publish": True}
    if broker_url.startswith("amqps"):
        # Then kombu fills in the host's name, which the certificate has to be for.
        app.conf.broker_use_ssl = {"server_hostname": None}
    return app


def send_checkout(app_or_broker_url: Celery | str, event: Mapping[str, Any]) -> str:
    """Publish one checkout event to `checkout.receive`; give the task's id.

    The arguments' description that Flower, events and logs show holds the externalId only. Sending
    the same event again is safe. Raises kombu's OperationalError when the broker is away, or shows
    no good certificate at an address of `rediss://` or `amqps://`.
    """
    app = app_or_broker_url
    if isinstance(app, str):
        app = _application(app)
    sent = app.send_task(
        TASK,
        args=(dict(event),),
        queue=QUEUE,  # type: ignore[arg-type]  # celery-types knows names only
        argsrepr=f"(externalId={event.get('externalId')} ***,)",
        kwargsrepr="{}",
        ignore_result=True,
    )
    return str(sent.id)
