"""The checker is checked: each wrong history is found out, and a right one is not."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.faults.invariants import LIVENESS, REBUILT, SAFETY, History, Judge, violations

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
PATH = ("received", "quoted", "reserved", "submitting", "accepted", "sent", "completed")


def event(sequence: int, source: str | None, target: str, **changes: Any) -> dict[str, Any]:
    return {
        "order_id": 1,
        "sequence": sequence,
        "told_from": None,
        "from_status": source,
        "to_status": target,
        "changes": changes,
    }


def message(sequence: int) -> dict[str, Any]:
    return {"order_id": 1, "sequence": sequence, "name": f"order-1:{sequence}"}


def entry(kind: str, mills: int = 5000, attempt: int = 1, **changes: Any) -> dict[str, Any]:
    made = {"attempt_id": attempt, "kind": kind, "amount_mills": mills, "reason": "because"}
    return made | {"account": "main", "order_id": 1} | changes


def attempt(**changes: Any) -> dict[str, Any]:
    made = {"id": 1, "order_id": 1, "account": "main", "external_id": "order-1"}
    made |= {"state": "completed", "hold_mills": 5000, "hold_closed_at": NOW}
    made |= {"booked_mills": 5000, "unbooked": 0}
    return made | changes


def wallet(**changes: Any) -> dict[str, Any]:
    made = {"account": "main", "opening_mills": 20_000, "figure_mills": 15_000}
    made |= {"expected_mills": 15_000, "unexplained_mills": 0, "credited_mills": 0}
    made |= {"requested_at": NOW + timedelta(seconds=1)}
    return made | changes


def order(**changes: Any) -> dict[str, Any]:
    made = dict.fromkeys(REBUILT) | {"id": 1, "external_id": "order-1", "account": "main"}
    made |= {"status": "completed", "overdue": False, "quoted_mills": 5000, "sequence": 7}
    made |= {"contradictions": []}
    return made | changes


def purchase(**changes: Any) -> dict[str, Any]:
    made = {"status": "completed", "amountMills": 5000, "refundedMills": 0}
    return made | {"posts": 1, "conflictingPosts": 0} | changes


def judge(**changes: Any) -> Judge:
    made = Judge(
        provider="skinslink",
        opening_mills=20_000,
        balance_mills=15_000,
        reserved_mills=0,
        foreign_mills=0,
        purchases={"order-1": purchase()},
        movements=[{"externalId": "order-1"}],
        calls=[(1.0, "submit", "order-1", True, False)],
    )
    return replace(made, **changes)


EVENTS = [
    event(1, None, "received", account="main"),
    event(2, "received", "quoted", quoted_mills=5000),
    *(event(n + 1, PATH[n - 1], PATH[n]) for n in range(2, 7)),
]
RIGHT = History(
    orders=[order()],
    events=EVENTS,
    attempts=[attempt()],
    entries=[entry("hold"), entry("settle")],
    messages=[message(n) for n in range(1, 8)],
    wallets=[wallet()],
    judges={"main": judge()},
    caps_mills={("main", "order-1"): 5000},
    acknowledged=frozenset({"order-1"}),
)
ELSEWHERE = judge(calls=(), balance_mills=15_000)
POSTED = [(float(n), "submit", "order-1", True, False) for n in range(100)]
LOOKED = [
    (0.0, "submit", "order-1", False, False),
    (5.0, "lookup", "order-1", True, True),
    (60.0, "lookup", "order-1", True, True),
    (61.0, "submit", "order-1", True, False),
]
BACK = [*EVENTS[:6], event(7, "sent", "queued"), event(8, "queued", "completed")]
LEFT = [*EVENTS, event(8, "completed", "failed")]
REVIEWED = [
    *EVENTS[:6],
    event(7, "sent", "needs_review"),
    event(8, "needs_review", "queued"),
    event(9, "queued", "completed"),
]

WRONG: dict[str, tuple[str, History]] = {
    "bought at two accounts": ("I1", replace(RIGHT, judges={"main": judge(), "b": ELSEWHERE})),
    "bought elsewhere": ("I1", replace(RIGHT, judges={"main": judge(purchases={}), "b": judge()})),
    "posted twice where that could buy twice": (
        "I1",
        replace(RIGHT, judges={"main": judge(purchases={"order-1": purchase(posts=2)})}),
    ),
    "posted again with other content": (
        "I1",
        replace(RIGHT, judges={"main": judge(purchases={"order-1": purchase(conflictingPosts=1)})}),
    ),
    "posted again too soon": (
        "I1",
        replace(RIGHT, judges={"main": judge(provider="skinsback", calls=LOOKED)}),
    ),
    "two attempts": ("I1", replace(RIGHT, attempts=[attempt(), attempt(id=2)])),
    "acknowledged and gone": ("I2", replace(RIGHT, acknowledged=frozenset({"order-2"}))),
    "never ended": ("I2", replace(RIGHT, orders=[order(status="sent")])),
    "more held than there is": (
        "I3",
        replace(
            RIGHT,
            attempts=[
                attempt(),
                attempt(id=2, external_id="o2", state="sending", hold_mills=15001),
            ],
        ),
    ),
    "charged above the cap": ("I3", replace(RIGHT, caps_mills={("main", "order-1"): 4999})),
    "refused for want of money": (
        "I3",
        replace(RIGHT, orders=[order(failure_code="insufficient_funds", failed_by="provider")]),
    ),
    "went back": ("I4", replace(RIGHT, events=BACK)),
    "went back by way of a review": ("I4", replace(RIGHT, events=REVIEWED)),
    "left its end": ("I4", replace(RIGHT, events=LEFT)),
    "a gap in the log": ("I5", replace(RIGHT, events=[*EVENTS[:3], *EVENTS[4:]])),
    "a row that the log does not explain": (
        "I5",
        replace(RIGHT, orders=[order(charged_mills=5000)]),
    ),
    "another status than the log's": ("I5", replace(RIGHT, orders=[order(status="failed")])),
    "money without a hold": ("I5", replace(RIGHT, entries=[entry("settle")])),
    "settled twice": (
        "I5",
        replace(RIGHT, entries=[entry("hold"), entry("settle"), entry("settle")]),
    ),
    "money that went nowhere": ("I5", replace(RIGHT, entries=[entry("hold")])),
    "refunded and never settled": (
        "I5",
        replace(RIGHT, entries=[entry("hold"), entry("release"), entry("refund")]),
    ),
    "an entry of nothing": ("I5", replace(RIGHT, entries=[*RIGHT.entries, entry("hold", 1, 9)])),
    "more held than there was": ("I3", replace(RIGHT, overcommitted=["main holds 2, there is 1"])),
    "posted without an intent": ("I5", replace(RIGHT, unintended=["order-1"])),
    "delivered, never bought": (
        "I7",
        replace(RIGHT, judges={"main": judge(purchases={}, balance_mills=20_000)}),
    ),
    "failed here, delivered there": ("I7", replace(RIGHT, orders=[order(status="failed")])),
    "booked otherwise than charged": (
        "I7",
        replace(RIGHT, entries=[entry("hold"), entry("settle", 4999)]),
    ),
    "a hold that stays": ("I7", replace(RIGHT, attempts=[attempt(hold_closed_at=None)])),
    "booked at another account": (
        "I7",
        replace(RIGHT, entries=[entry("hold"), entry("settle", account="b")]),
    ),
    "a cent that nobody explains": (
        "I7",
        replace(RIGHT, judges={"main": judge(balance_mills=14_990)}),
    ),
    "books of a wallet that do not add up": (
        "I7",
        replace(RIGHT, wallets=[wallet(expected_mills=14_000)]),
    ),
    "foreign spending that nobody was told of": (
        "I7",
        replace(
            RIGHT,
            judges={"main": judge(balance_mills=14_000, foreign_mills=-1000)},
            wallets=[wallet(figure_mills=14_000)],
        ),
    ),
    "a stranger's purchase": (
        "I7",
        replace(RIGHT, judges={"main": judge(movements=[{"externalId": "other"}])}),
    ),
    "a change that the store never heard of": (
        "I8",
        replace(RIGHT, messages=[message(n) for n in (1, 2, 3, 4, 5, 6)]),
    ),
    "messages out of order": (
        "I8",
        replace(RIGHT, messages=[message(n) for n in (1, 2, 3, 4, 5, 7, 6)]),
    ),
    "one message twice": ("I8", replace(RIGHT, messages=[*RIGHT.messages, message(7)])),
    "posted without end": ("I9", replace(RIGHT, judges={"main": judge(calls=POSTED)})),
    "too many requests": ("I9", replace(RIGHT, judges={"main": judge(requests_limited=1)})),
    "a forgery with an effect": ("I10", replace(RIGHT, forged_changes=1)),
}


def test_a_right_history_passes() -> None:
    assert violations(RIGHT, SAFETY + LIVENESS) == []


def test_a_wallet_that_nobody_has_read_yet_breaks_no_promise() -> None:
    unread = wallet(opening_mills=None, figure_mills=None, expected_mills=None, requested_at=None)

    assert violations(replace(RIGHT, wallets=[unread]), LIVENESS) == []


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_history_is_found_out(name: str) -> None:
    promise, history = WRONG[name]

    found = violations(history, SAFETY + LIVENESS)

    assert promise in {each.split()[0] for each in found}, found
