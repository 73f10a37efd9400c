"""PC-39: no request leaves that the rate budget did not count, and none that it forbids."""

from collections.abc import Callable

import pytest

from fulfillment.errors import OverBudget
from fulfillment.providers.skinsback.client import SkinsBack
from schemas.enums import ProviderName
from schemas.provider import Want
from tests.contract.conftest import TRADE_URL, Applies, BuildProvider, Order, Simulator


def asked(simulator: Simulator) -> int:
    requests: dict[str, int] = simulator.ask("GET", "/ledger")["requests"]
    return sum(requests.values())


def test_pc38_every_request_is_counted(
    build: BuildProvider, simulator: Simulator, order: Order, want: Want
) -> None:
    counted: list[None] = []
    provider = build(lambda: counted.append(None), check_recipient=True)
    simulator.ask("POST", "/options", unknown_ids="error")
    before = asked(simulator)
    commands = [order("stuck") for _ in range(5)]

    for command in commands:
        provider.purchase(provider.purchase_body(command))
    names = [command.external_id for command in commands]
    for start in range(0, 6, provider.lookup_limit):
        provider.reports(
            [*names[:2], "nobody-knows-this", *names[2:]][start:][: provider.lookup_limit]
        )
    many = [Want(f"{want.market_hash_name} {number:0100}") for number in range(40)]
    provider.quote([want, *many])
    provider.wallet_mills()
    assert provider.healthy()
    if isinstance(provider, SkinsBack):
        provider.check_recipient(TRADE_URL)

    assert len(counted) == asked(simulator) - before


@pytest.mark.parametrize("what", ["purchase", "reports", "quote", "wallet", "health"])
def test_pc38_a_request_that_the_budget_forbids_is_not_sent(
    build: BuildProvider, simulator: Simulator, order: Order, want: Want, what: str
) -> None:
    def forbid() -> None:
        raise OverBudget

    provider = build(forbid)
    body = provider.purchase_body(order("delivered"))
    calls: dict[str, Callable[[], object]] = {
        "purchase": lambda: provider.purchase(body),
        "reports": lambda: provider.reports(["a"]),
        "quote": lambda: provider.quote([want]),
        "wallet": provider.wallet_mills,
    }
    before = asked(simulator)

    if what == "health":
        assert not provider.healthy()
    else:
        with pytest.raises(OverBudget):
            calls[what]()

    assert asked(simulator) == before


def test_pc38_the_budget_may_end_between_the_recipient_check_and_the_purchase(
    build: BuildProvider, simulator: Simulator, order: Order, applies: Applies
) -> None:
    applies(ProviderName.SKINSBACK, why="checks no recipient beforehand")
    allowed = iter([None])

    def spend() -> None:
        if next(allowed, "none") is not None:
            raise OverBudget

    provider = build(spend, check_recipient=True)
    command = order("delivered")

    with pytest.raises(OverBudget):
        provider.purchase(provider.purchase_body(command))

    assert simulator.purchases(command.external_id) == []
