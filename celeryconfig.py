"""Celery's settings only: broker, queues, routes, imports and the beat schedule.

Messages are hints and Postgres is the truth, so nothing here needs a result backend, late
acknowledgement or ETAs: what a lost message was about is found again by a due time in a row.
"""

from contextlib import suppress
from typing import Any

from kombu import Exchange, Queue
from kombu.utils.url import parse_url

from fulfillment.settings import load_settings
from schemas import messages

_settings = load_settings()

broker_url = _settings.broker_url.get_secret_value()
if broker_url.startswith("rediss://"):
    # All others read it from the address; Flower counts queues on a connection of its own.
    with suppress(ValueError, TypeError, LookupError):  # whoever connects is told what is wrong
        broker_use_ssl = parse_url(broker_url.split(";")[0])["ssl"]
imports = (
    *("tasks.checkout", "tasks.reconcile", "tasks.watchdog", "tasks.inbox", "tasks.sweep"),
    *("tasks.upkeep", "tasks.standin"),
)

enable_utc, timezone = True, "UTC"
# What is sent from here is found again where it is lost; RabbitMQ need not write it to its disk.
task_default_delivery_mode = "transient"
task_serializer = event_serializer = "json"
accept_content = ["json"]
result_backend = None
task_ignore_result = True
task_store_errors_even_if_ignored = False

# Acknowledged when taken up: a redelivered copy of a step would find its claim gone anyway, and a
# message that is not held is one that a lost Redis connection cannot trip over. The exception is
# `checkout.receive`, whose message nothing else knows of.
task_acks_late = False
worker_prefetch_multiplier = 1
worker_cancel_long_running_tasks_on_connection_loss = False
worker_send_task_events = True
task_send_sent_event = False
worker_hijack_root_logger = False
worker_redirect_stdouts = False
worker_proc_alive_timeout = 20
task_create_missing_queues = False
task_repr_maxlevels = 2

broker_connection_retry_on_startup = True
broker_connection_max_retries = None
broker_connection_timeout = 4
broker_pool_limit, broker_pool_acquire_timeout = 10, 5
task_publish_retry_policy = {
    "max_retries": 2,
    "interval_start": 0.05,
    "interval_step": 0.1,
    "interval_max": 0.2,
}

# Two queues, so that slow submissions never hold up webhooks, polls and deadlines. "celery" is
# Celery's own default: a foreign sender of `checkout.receive` needs no routing of ours.
CHAIN, FOLLOW, INTAKE = "fulfillment.chain", "fulfillment.follow", "celery"
_exchange = Exchange("fulfillment.tasks", type="direct", durable=True)
_celery = Exchange("celery", type="direct", durable=True)
task_queues = [
    Queue(INTAKE, _celery, routing_key="celery", queue_arguments=messages.CLASSIC),
    Queue(CHAIN, _exchange, routing_key=CHAIN, queue_arguments=messages.CLASSIC),
    Queue(FOLLOW, _exchange, routing_key=FOLLOW, queue_arguments=messages.CLASSIC),
]
task_default_queue = INTAKE
task_routes = {
    messages.RECEIVE: {"queue": INTAKE},
    "checkout.*": {"queue": CHAIN},
    "reconcile.*": {"queue": FOLLOW},
    "watchdog.*": {"queue": FOLLOW},
    "inbox.*": {"queue": FOLLOW},
    "sweep.*": {"queue": FOLLOW},
    "invariants.*": {"queue": FOLLOW},
    "erasure.*": {"queue": FOLLOW},
}

# Any number of beats may run: a tick claims what is due, and a second tick finds nothing. A tick
# that nobody took up before the next one is of no use.
beat_max_loop_interval = 1
beat_schedule = {
    name: {"task": name, "schedule": every_s, "options": {"expires": max(every_s, 2.0)}}
    for name, every_s in {
        messages.RESUME_STUCK: 1.0,
        messages.POLL_DUE: 2.0,
        messages.WATCH_TRADE_WINDOWS: 5.0,
        messages.CHECK_INVARIANTS: 60.0,
        messages.ERASE: 600.0,
    }.items()
}

# Celery 5.7 dies of some messages, and logs what stands in others; see the class.
worker_consumer = "tasks.consumer:SafeConsumer"
control_queue_exclusive = event_queue_exclusive = True

# Whoever publishes to a broker that is away tries once more, and does not wait for it: kombu would
# for six seconds.
broker_transport_options: dict[str, Any] = {
    "max_retries": 1,
    "interval_start": 0.0,
    "interval_max": 0.2,
}
if _settings.is_amqp:
    broker_heartbeat = 10
else:
    broker_transport_options |= {
        # Every client of one Redis restores what any of them holds for too long: the consumer of
        # the store's exchange says the same. No task that acknowledges late takes half as long.
        "visibility_timeout": 60,
        "unacked_restore_interval": 5,
        "unacked_restore_throttle": 1,
        "socket_connect_timeout": 2,
        "socket_timeout": 15,
        "health_check_interval": 25,
        "queue_order_strategy": "round_robin",
    }
