"""The Celery application, and the one way to enqueue: by name, as a hint that may be lost."""

import ssl
import time
from collections.abc import Iterator
from typing import Any

from amqp.exceptions import (
    AccessRefused,
    AMQPError,
    ChannelError,
    MessageNacked,
    NotAllowed,
    PreconditionFailed,
)
from celery import Celery
from celery.app.amqp import AMQP
from kombu import Connection, Exchange, Queue, pools
from kombu.exceptions import BatchPublishError  # type: ignore[attr-defined]
from kombu.exceptions import OperationalError as KombuError
from kombu.transport import TRANSPORT_ALIASES, pyamqp
from redis.exceptions import AuthenticationError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from fulfillment import redis_channel
from fulfillment.errors import ConfigurationError, FulfillmentError
from fulfillment.kombu_messages import AMQPMessage
from fulfillment.log import get_logger, masked
from fulfillment.settings import PREFIX, Settings
from schemas.messages import CHECKOUT_KEY, CHECKOUT_QUEUE, CLASSIC, DEAD_QUEUE, STORE_EXCHANGE

log = get_logger(__name__)

#: Within so many seconds RabbitMQ answers whatever it is asked, or the connection is given up.
_ANSWER_S = 5.0
#: RabbitMQ is missed after two of these without a word.
HEARTBEAT_S = 10


class PlainChannel(pyamqp.Channel):
    """A channel whose messages stay as they came."""

    Message = AMQPMessage


class BoundedConnection(pyamqp.Connection):
    """A connection to RabbitMQ that waits for no answer for ever, as py-amqp's does.

    Where a broker stands still, even closing would hang, and the process with it.
    """

    Channel = PlainChannel

    def connect(self, callback: Any = None) -> Any:
        opened = super().connect(callback)
        self.transport.sock.settimeout(_ANSWER_S)
        return opened

    def drain_events(self, timeout: float | None = None) -> None:
        try:
            super().drain_events(timeout)
        except TimeoutError:
            if timeout is None:  # not the end of a caller's patience, but of ours
                self.collect()
            raise


class BoundedTransport(pyamqp.Transport):
    """kombu's transport for RabbitMQ, with connections that give up."""

    Connection = BoundedConnection


class BoundedSSLTransport(pyamqp.SSLTransport):
    """The same, encrypted; the certificate has to be for the host's name, which py-amqp lets be."""

    Connection = BoundedConnection

    def __init__(self, client: Any, **options: Any) -> None:
        # Here and now: kombu calls localhost by its number later.
        client.ssl = client.ssl or {"server_hostname": client.hostname}
        super().__init__(client, **options)


TRANSPORT_ALIASES["amqp"] = TRANSPORT_ALIASES["pyamqp"] = f"{__name__}:BoundedTransport"
TRANSPORT_ALIASES["amqps"] = f"{__name__}:BoundedSSLTransport"


class ConfirmedAMQP(AMQP):
    """Has RabbitMQ confirm every task message: a connection that swallows them is noticed.

    Not so a worker's events: its main thread reads their connection, and would take the answers.
    """

    _producer_pool: Any

    @property
    def producer_pool(self) -> Any:
        if self._producer_pool is None:
            options = {"confirm_publish": True}  # Redis answers anyway, and knows no such option
            connection = self.app.connection_for_write(transport_options=options)
            self._producer_pool = pools.producers[connection]
            self._producer_pool.limit = self.app.pool.limit
        return self._producer_pool


redis_channel.install()
app = Celery("fulfillment", amqp=ConfirmedAMQP)
app.config_from_object("celeryconfig")

store_exchange = Exchange(STORE_EXCHANGE, type="topic", durable=True)
checkout_queue = Queue(
    CHECKOUT_QUEUE, store_exchange, routing_key=CHECKOUT_KEY, durable=True, queue_arguments=CLASSIC
)
dead_queue = Queue(DEAD_QUEUE, durable=True, queue_arguments=CLASSIC)

#: What publishing can raise; a hint that fails is found again by the sweep.
PUBLISH_ERRORS = (
    *(KombuError, BatchPublishError, RedisError, OSError),
    *(AMQPError, MessageNacked),  # a queue that refuses; py-amqp counts it among nobody's errors
)
#: Those of a broker that answers and says no to one message, or to its queue.
REFUSALS = (MessageNacked, ChannelError, ResponseError)
#: Errors whose text is what Redis has answered.
_REDIS_ANSWERS = (ResponseError, AuthenticationError, redis_channel.Refused)
#: What kombu raises for an address that it cannot use; their texts quote it.
UNUSABLE = (ValueError, TypeError, LookupError, ImportError, AttributeError)
_UNUSABLE = "the address has an option after ? or another part that means nothing"
_PORT = "is this port the one for TLS, or the other?"
_PAUSE_S = 1.0
_silent_until = 0.0


def hint(task: str, *args: Any) -> bool:
    """Ask for a task to be run soon; say whether the broker took the message.

    Never raises and never waits long: what the hint is about is due in the database. After a
    failure further hints are left out for a second.
    """
    global _silent_until
    if time.monotonic() < _silent_until:
        return False
    try:
        app.send_task(task, args, retry=False)
    except (*PUBLISH_ERRORS, *UNUSABLE) as error:
        _silent_until = time.monotonic() + _PAUSE_S
        log.warning("broker.hint_lost", task=task, reason=type(error).__name__)
        return False
    return True


def reason_of(error: BaseException) -> str:
    """Name an error for the log, with what a broker says that answers, and refuses, or we say.

    RabbitMQ's own words name a queue that is declared otherwise.
    """
    name = type(error).__name__
    if isinstance(error, PreconditionFailed):
        return f"{name}: {error.reply_text}"
    is_told = isinstance(error, (*_REDIS_ANSWERS, FulfillmentError))
    return f"{name}: {_words(error)}" if is_told else name


def complaint(settings: Settings) -> str:
    """Say what is wrong with the broker; nothing where it answers and keeps what it is given.

    At RabbitMQ our queues are declared for it, as every process of ours does.
    """
    try:
        with connect(settings) as connection:
            connection.ensure_connection(max_retries=1, timeout=5)
            if settings.is_amqp:
                return _refused_queues(connection)
            channel: Any = connection.default_channel
            with channel.conn_or_acquire() as client:
                memory = client.info("memory")
    except PUBLISH_ERRORS as error:
        return _trouble(error)
    except UNUSABLE as error:
        return f"{_UNUSABLE} ({type(error).__name__})"
    policy = str(memory.get("maxmemory_policy", ""))
    if policy.startswith("allkeys") and memory.get("maxmemory"):
        return f"Redis drops queues when it is full ({policy}): set maxmemory-policy noeviction"
    return ""


def _refused_queues(connection: Connection) -> str:
    """Say in RabbitMQ's words why it does not take our queues as we declare them."""
    refused = []
    for queue in (checkout_queue, dead_queue, *app.amqp.queues.values()):
        channel: Any = connection.channel()  # its own: each no closes it
        try:
            queue(channel).declare()
        except ChannelError as error:
            refused.append(masked(str(error.reply_text)))
        finally:
            channel.close()
    return f"it refuses our queues: {'; '.join(refused)}" if refused else ""


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Give an error and what it was raised about, which kombu and redis-py each wrap anew."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _words(error: BaseException) -> str:
    """Give a broker's own words, of which it may have many, with no secret in them."""
    return masked(str(error).partition("\n")[0])[:200]


def _denial(error: BaseException) -> str:
    """Say how a broker that answers turns us away as long as our settings are these, if it does."""
    for cause in _causes(error):
        match cause:
            case AccessRefused() | NotAllowed() | AuthenticationError():
                name = type(cause).__name__
                return f"does not accept this user, password or virtual host ({name})"
            case ssl.SSLCertVerificationError():
                return f"shows a certificate that is not accepted: {cause.verify_message}"
            case ResponseError() if "DB index" in str(cause):
                return f"has no database of this number ({_words(cause)})"
    return ""


def _trouble(error: BaseException) -> str:
    """Say why nothing can be had of the broker."""
    if denial := _denial(error):
        return f"it {denial}"
    for cause in _causes(error):
        match cause:
            case redis_channel.Refused():
                return f"it takes no messages: {_words(cause)}"
            case ResponseError():
                return f"it answers, and refuses: {_words(cause)}"
            case RedisConnectionError() if "max number of clients" in str(cause):
                return f"it answers, and refuses: {_words(cause)}"
            case ssl.SSLError():
                return f"TLS with it fails ({cause.reason or type(cause).__name__}): {_PORT}"
            case TimeoutError() if "handshake" in str(cause):
                return f"it does not answer in TLS: {_PORT}"
            case ConnectionResetError():
                return f"it hangs up: {_PORT}"
            case FileNotFoundError():
                return "a file that the address names is not there"
            case OSError():
                return f"it does not answer ({type(cause).__name__})"
    return f"it does not answer ({type(error).__name__})"


def require_access(settings: Settings) -> None:
    """Refuse to go on where the broker cannot be used at all. Raises ConfigurationError.

    One that does not answer may yet come: who needs it waits for it.
    """
    try:
        with connect(settings) as connection:
            opened = connection.transport.establish_connection()
            connection.transport.close_connection(opened)
    except PUBLISH_ERRORS as error:
        if not (denial := _denial(error)):
            return
        refused = f"the broker {denial}"
    except UNUSABLE as error:
        refused = f"{_UNUSABLE} ({type(error).__name__})"
    else:
        return
    raise ConfigurationError(f"{PREFIX}BROKER_URL", refused)


def connect(settings: Settings, *, confirm: bool = False) -> Connection:
    """Make a connection for the store's exchange; with publisher confirms where there are any."""
    options: dict[str, Any] = {"confirm_publish": confirm}
    if not settings.is_amqp:
        options = {
            "visibility_timeout": 60,
            "unacked_restore_interval": 5,
            "unacked_restore_throttle": 1,
            "socket_connect_timeout": 2,
            "socket_timeout": 15,
        }
    return Connection(
        settings.broker_url.get_secret_value(),
        connect_timeout=4,
        heartbeat=HEARTBEAT_S if settings.is_amqp else 0,
        transport_options=options,
    )
