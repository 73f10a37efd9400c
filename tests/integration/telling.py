"""What the tests of news share: accounts on routes, and webhooks that they send of themselves."""

from collections.abc import Mapping
from typing import Any

from fulfillment.errors import ProviderRefused
from fulfillment.services import webhooks
from fulfillment.services.context import Context
from fulfillment.store.models import Order
from schemas.enums import FailureCode
from schemas.money import cents_to_mills
from schemas.provider import OrderReport, ReportState, WebhookNotice
from tests.conftest import MakeContext
from tests.integration.test_recovery import ACCOUNT
from tests.support import (
    NAME,
    PRICE_CENTS,
    FakeClock,
    FakeProvider,
    checkout,
    receive,
    report,
    run_sweep,
)

NAMES = ("main", "backup", "third")
NO = ProviderRefused(FailureCode.ITEM_UNAVAILABLE, "gone")
PRICE_MILLS = cents_to_mills(PRICE_CENTS)


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


def tell(context: Context, account: str, order: Order, said: OrderReport | None) -> None:
    """Take and apply a webhook of the account; None: it only hints at the order."""
    provider: Any = context.provider(account)
    provider.notice = WebhookNotice(order.external_id, context.now(), said)
    webhooks.take(context, account, {}, f"{account} {context.now()}".encode())
    webhooks.apply_deliveries(context)


def go_on(context: Context, clock: FakeClock) -> None:
    """Let three minutes and a third pass."""
    for _ in range(20):
        clock.advance(10)
        run_sweep(context)


def one(context: Context, route: str) -> Order:
    (order,) = receive(context, checkout(account=route, marketHashName=NAME))
    return order


def say(context: Context, account: str, order: Order, state: ReportState | None) -> None:
    """Take and apply a webhook of the account, of this state; None: it only hints at the order."""
    tell(context, account, order, report(state, order.external_id) if state else None)


def bought(providers: Mapping[str, FakeProvider]) -> dict[str, int]:
    """Count the purchases that each account was asked for; those without any are left out."""
    return {name: len(each.bodies) for name, each in providers.items() if each.bodies}
