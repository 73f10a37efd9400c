"""The demo's script can be played, and its comparison of the books misses nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fulfillment.devstack.configuration import SIMULATED
from fulfillment.devstack.demo_books import Books
from fulfillment.devstack.demo_script import (
    FUNDS_LATER,
    FUNDS_NEVER,
    SCRIPT,
    SETTLED,
    Case,
    Run,
    acts,
    cast,
)
from fulfillment.errors import InvalidInput
from fulfillment.simulator import catalog
from fulfillment.simulator.scenarios import SCENARIOS

OURS = {"price_lower", "price_higher", "not_on_sale", "bad_trade_url", FUNDS_LATER, FUNDS_NEVER}
OURS |= {"banned"}
AGAIN = {"sent_twice", "sent_four_ways", "conflict"}
#: What the demo must show of SkinsBack and Skinslink both, and of SkinsBack alone.
OF_BOTH = {"delivered", "price_higher", "fails_after_accept", "declined", "hold_settles"}
OF_BOTH |= {"reversed_without_refund", "timeout_after_accept", "webhooks_lost"}
OF_SKINSBACK = OF_BOTH | {"not_on_sale", FUNDS_NEVER, "expired", "duplicate_id", "banned"}
OF_SKINSLINK = OF_BOTH | {"refused_item", "duplicate_purchase"}
#: Skinslink is never posted to twice: what is lost before it has the order takes ten minutes.
LOST_BEFORE = {"timeout_before_accept", "error_before_accept", "dropped_before_accept"}


def test_every_case_of_the_script_is_a_scenario_of_the_simulator_or_one_of_ours() -> None:
    assert {case.name for case in SCRIPT} <= set(SCENARIOS) | OURS | AGAIN
    assert not (OURS | AGAIN) & set(SCENARIOS)


def test_the_wallet_covers_all_but_the_two_that_are_to_be_short() -> None:
    runs, opening_cents = cast(None)

    prices = {run.case.name: run.item.price_cents for run in runs}
    later, never = prices[FUNDS_LATER], prices[FUNDS_NEVER]
    others = sum(r.item.price_cents for r in runs if r.case.name not in (FUNDS_LATER, FUNDS_NEVER))
    short = [(r.case.account, r.case.name) for r in runs if r.case.name.startswith("funds_")]
    assert others < opening_cents < later
    assert opening_cents + later < never
    assert len(short) == len(set(short))
    assert len({run.item.id for run in runs}) == len(runs)


def test_every_item_is_on_sale_at_the_provider_of_its_account() -> None:
    runs, _ = cast(None)
    on_sale = {
        name: {item.id: item for item in catalog.build(2000, None, 1, account.provider)}
        for name, account in SIMULATED.items()
    }

    assert all(on_sale[run.case.account][run.item.id] == run.item for run in runs)


def test_the_demo_shows_what_differs_between_the_providers() -> None:
    names = {account: {c.name for c in SCRIPT if c.account == account} for account in SIMULATED}

    assert names["skinsback"] >= OF_SKINSBACK
    assert names["skinslink"] >= OF_SKINSLINK
    assert not (names["skinsback"] | names["skinslink"]) & LOST_BEFORE


def test_everything_is_sent_once_and_the_accounts_take_turns() -> None:
    runs, _ = cast(None)
    groups = acts(runs)

    assert sorted(run.number for group in groups for run in group) == [run.number for run in runs]
    assert {group[0].case.account for group in groups[:3]} == set(SIMULATED)
    assert all(len({(r.case.account, r.case.way) for r in group}) == 1 for group in groups)


@pytest.mark.parametrize(
    ("expected", "reversible_until", "end", "is_over"),
    [
        ("completed", "2026-11-28T12:00:00Z", "completed", True),
        (SETTLED, "2026-11-28T12:00:00Z", "completed", False),
        (SETTLED, None, SETTLED, True),
        ("reversed", "2026-11-28T12:00:00Z", "completed", False),
    ],
)
def test_a_delivered_order_is_over_where_nothing_more_is_to_come(
    expected: str, reversible_until: str | None, end: str, is_over: bool
) -> None:
    run = Run(Case(title="", end=expected), 1, catalog.build(1, None, 1)[0])
    run.view = {"status": "completed", "failure": None, "reversibleUntil": reversible_until}

    assert (run.end, run.is_over) == (end, is_over)


@pytest.mark.parametrize(
    "content", [b'{"prices": {}}', b'{"prices": {"AWP": 500}}', b"[]", b"\xff no text"]
)
def test_a_price_file_that_cannot_be_used_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "prices.json"
    path.write_bytes(content)

    with pytest.raises(InvalidInput, match="--prices"):
        cast(path)


def view(status: str, charged: int) -> dict[str, Any]:
    common = {"failure": None, "reversibleUntil": "2026-11-28T12:00:00Z"}
    return {"status": status, "providerStatus": status, "chargedPrice": charged, **common}


def books() -> Books:
    """Give agreeing books of one delivered and one reversed order of 300 and 200 cents."""
    item = catalog.build(1, None, 1)[0]
    delivered = Run(Case(title="delivered"), 1, item)
    delivered.view = view("completed", 300)
    reversed_ = Run(Case(title="reversed", name="reversed"), 2, item)
    reversed_.view = view("reversed", 200)
    purchases = [
        {
            "externalId": name,
            "status": status,
            "providerStatus": status,
            "amountCents": cents,
            "refundedCents": back,
            "posts": 1,
        }
        for name, status, cents, back in (
            (delivered.external_id, "completed", 300, 0),
            (reversed_.external_id, "reversed", 200, 200),
        )
    ]
    movements = [
        {"externalId": name, "kind": kind, "amountCents": cents}
        for name, kind, cents in (
            (delivered.external_id, "charge", -300),
            (reversed_.external_id, "charge", -200),
            (reversed_.external_id, "refund", 200),
        )
    ]
    return Books(
        runs=[delivered, reversed_],
        wallet={"settled": 500, "refunded": 200, "held": 0, "balance": 700},
        ledger={
            "purchases": purchases,
            "wallet": {"opening": 1000, "balance": 700, "movements": movements},
        },
        webhooks=[{"externalId": "x", "tamper": "key", "forged": True, "outcome": "refused"}],
    )


def test_books_that_agree_have_no_difference() -> None:
    assert books().differences() == []


def _view(found: Books) -> dict[str, Any]:
    view = found.runs[0].view
    assert view is not None
    return view


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda b: _view(b).update(chargedPrice=301), "$3.01 here, $3.00 at the provider"),
        (lambda b: _view(b).update(status="sent"), "sent here, completed at the provider"),
        (
            lambda b: b.ledger["purchases"][0].update(providerStatus="hold"),
            "completed by our books, hold at the provider",
        ),
        (lambda b: b.ledger["purchases"].pop(0), "unknown to the provider"),
        (lambda b: b.ledger["purchases"].append(b.ledger["purchases"][0]), "sold one order twice"),
        (lambda b: b.ledger["purchases"][0].update(externalId="z"), "z: bought, and never ordered"),
        (
            lambda b: b.ledger["wallet"]["movements"].append(b.ledger["wallet"]["movements"][0]),
            "demo-01.delivered: charged 2 times",
        ),
        (lambda b: b.ledger["wallet"].update(balance=699), "own ledger: $7.00, $6.99"),
        (lambda b: b.wallet.update(settled=499), "spent: $2.99 here, $3.00 at the provider"),
        (lambda b: b.wallet.update(held=1), "held: $0.01 with nothing under way"),
        (lambda b: b.wallet.update(balance=None), "balance: $0.00 here, $7.00 at the provider"),
        (lambda b: b.webhooks[0].update(outcome="delivered"), "x: a webhook was taken"),
    ],
)
def test_every_difference_is_named(spoil: Callable[[Books], object], named: str) -> None:
    found = books()
    spoil(found)

    assert any(named in difference for difference in found.differences())
