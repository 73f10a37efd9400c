"""What the tests of news share: accounts on routes, and webhooks that they send of themselves."""

from collections.abc import Callable, Mapping
from typing import Any

from fulfillment.errors import ProviderNotReached, ProviderRefused
from fulfillment.services import webhooks
from fulfillment.services.context import Context
from fulfillment.store.models import Order
from schemas.enums import FailureCode, OrderStatus
from schemas.money import cents_to_mills
from schemas.provider import OrderReport, ReportState, WebhookNotice
from tests.conftest import MakeContext
from tests.integration.test_recovery import ACCOUNT
from tests.support import (
    NAME,
    PRICE_CENTS,
    FakeClock,
    FakeProvider,
    again,
    checkout,
    receive,
    report,
    run_sweep,
    run_ticks,
)

NAMES = ("main", "backup", "third")
NO = ProviderRefused(FailureCode.ITEM_UNAVAILABLE, "gone")
DOWN = ProviderNotReached("HTTP 502")
PRICE_MILLS = cents_to_mills(PRICE_CENTS)

Act = Callable[[], None]


def on_routes(make_context: MakeContext, providers: Mapping[str, FakeProvider]) -> Context:
    """Give a process of these accounts: the first two on the route `both`, each on `all`."""
    names = list(providers)
    made = make_context(
        next(iter(providers.values())),
        accounts={name: ACCOUNT | {"client_id": name} for name in names},
        routes={"both": [name for name in NAMES[:2] if name in names], "all": names},
    )
    made._providers.update(providers)
    return made


def without(make_context: MakeContext, providers: Mapping[str, FakeProvider], gone: str) -> Context:
    """Give a process of settings that lack one of these accounts."""
    return on_routes(make_context, {n: each for n, each in providers.items() if n != gone})


def hint_later(context: Context, account: str, order: Order) -> None:
    """Take a webhook of the account that only hints at the order, and do not apply it yet."""
    provider: Any = context.provider(account)
    provider.notice = WebhookNotice(order.external_id, context.now(), None)
    webhooks.take(context, account, {}, order.external_id.encode())


def tell(context: Context, account: str, order: Order, said: OrderReport | None) -> None:
    """Take and apply a webhook of the account; None: it only hints at the order."""
    provider: Any = context.provider(account)
    provider.notice = WebhookNotice(order.external_id, context.now(), said)
    webhooks.take(context, account, {}, f"{account} {context.now()}".encode())
    webhooks.apply_deliveries(context)


def go_on(context: Context, clock: FakeClock) -> None:
    """Let three minutes and a third pass."""
    for _ in range(10):
        clock.advance(20)
        run_sweep(context)


def pass_time(context: Context, clock: FakeClock, times: int, seconds: float) -> None:
    for _ in range(times):
        clock.advance(seconds)
        run_ticks(context)


def place(context: Context, order: Order) -> tuple[OrderStatus, str]:
    found = again(context, order)
    return found.status, found.account


def meanwhile(main: FakeProvider, act: Act, *, leaves: bool = True) -> None:
    """Have `act` done while the next purchase is under way, which then leaves or does not."""

    def purchase(_fields: object) -> None:
        main.on_purchase = lambda _: None
        act()
        if not leaves:
            raise DOWN

    main.on_purchase = purchase


def one(context: Context, route: str) -> Order:
    (order,) = receive(context, checkout(account=route, marketHashName=NAME))
    return order


def say(context: Context, account: str, order: Order, state: ReportState | None) -> None:
    """Take and apply a webhook of the account, of this state; None: it only hints at the order."""
    tell(context, account, order, report(state, order.external_id) if state else None)


def bought(providers: Mapping[str, FakeProvider]) -> dict[str, int]:
    """Count the purchases that each account was asked for; those without any are left out."""
    return {name: len(each.bodies) for name, each in providers.items() if each.bodies}
