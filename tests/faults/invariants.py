"""The promises I1-I10 as pure functions over what was read: each gives the violations it finds.

They compare our tables with the judge's own ledger; the status column alone proves nothing.
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

Row = Mapping[str, Any]

#: How far an order has come, written down a second time: states.py must not prove itself.
RANK = {
    "received": 0,
    "quoted": 1,
    "awaiting_funds": 1,
    "reserved": 2,
    "submitting": 3,
    "accepted": 4,
    "queued": 4,
    "processing": 4,
    "pending": 5,
    "sent": 6,
    "needs_review": 0,
    "completed": 7,
    "failed": 7,
    "cancelled": 7,
    "expired": 7,
    "reversed": 8,
}
ENDS = {"completed", "failed", "cancelled", "expired", "reversed"}
WITHOUT_ITEM = {"failed", "cancelled", "expired"}
#: The judge's word -> what ours may be, where a provider's words tell less than the truth.
AGREES = {
    "completed": {"completed"},
    "reversed": {"reversed"},
    **dict.fromkeys(WITHOUT_ITEM, WITHOUT_ITEM),
}
REBUILT = (
    *("account", "market_hash_name", "provider_status", "provider_reference", "reported_at"),
    *("quoted_mills", "charged_mills", "steam_offer_id", "failure_code", "failure_message"),
    *("failed_by", "funds_deadline_at", "sent_at", "trade_deadline_at", "overdue"),
    *("completed_at", "reversible_until", "told_status", "contradictions"),
    *("route", "fallbacks", "between_attempts", "quoted_item_id"),
)
#: Entries of our ledger by what they do to a wallet.
SPENT = {"settle": 1, "adjust": 1, "refund": -1}
MOST_POSTS = 90
LOOKUPS_APART_S = 60.0


@dataclass(frozen=True)
class Judge:
    """One account as the provider's own ledger has it."""

    provider: str
    opening_mills: int
    balance_mills: int
    reserved_mills: int
    foreign_mills: int
    purchases: Mapping[str, Row]
    movements: Sequence[Row]
    requests_limited: int = 0
    #: (second, "submit" or "lookup", order, the caller was told, the provider knew nothing)
    calls: Sequence[tuple[float, str, str, bool, bool]] = ()


@dataclass(frozen=True)
class History:
    """Everything that is judged: our tables, the judge's ledgers, and what the harness saw."""

    orders: Sequence[Row]
    events: Sequence[Row]
    attempts: Sequence[Row]
    entries: Sequence[Row]
    messages: Sequence[Row]
    wallets: Sequence[Row]
    judges: Mapping[str, Judge]
    #: The most that an account may charge for an order.
    caps_mills: Mapping[tuple[str, str], int] = field(default_factory=dict)
    #: Orders that the provider never ends, and those that it says it cannot pay on purpose.
    endless: frozenset[str] = frozenset()
    unpaid: frozenset[str] = frozenset()
    acknowledged: frozenset[str] = frozenset()
    unintended: Sequence[str] = ()
    #: What was held beyond the wallet right after money was held.
    overcommitted: Sequence[str] = ()
    forged_changes: int = 0
    #: No clock jumped and no process stood still: what was timed was timed right.
    is_timed: bool = True
    #: When rows were lost: what was done before is not known.
    lost_at: datetime | None = None
    #: No clock jumped: a balance that was asked for later than a purchase may tell of it.
    is_clock_right: bool = True


Check = Callable[[History], Iterator[str]]


def bought_once(history: History) -> Iterator[str]:
    """I1: over all accounts at most one purchase an order, never posted where that could be two."""
    owners: dict[str, list[str]] = defaultdict(list)
    known = {order["external_id"]: order["account"] for order in history.orders}
    for account, judge in history.judges.items():
        for name, purchase in judge.purchases.items():
            owners[name].append(account)
            if (
                known.get(name) != account and history.lost_at is None
            ):  # else it is found in the end
                yield f"I1 {name} was bought at {account}, which is not its account"
            if purchase["conflictingPosts"]:
                yield f"I1 {name} was posted again with other content"
            if judge.provider == "skinslink" and purchase["posts"] > 1:
                yield f"I1 {name} was posted again although nothing promises one purchase"
    for name, accounts in owners.items():
        if len(accounts) > 1:
            yield f"I1 {name} was bought at {accounts}"
    live = [a for a in history.attempts if a["state"] != "refused"]
    for name, count in Counter(attempt["external_id"] for attempt in live).items():
        if count > 1:
            yield f"I1 {name} has {count} attempts that were not refused"


def replayed_by_rule(history: History) -> Iterator[str]:
    """I1: SkinsBack is posted to again only after two empty lookups 60 s apart."""
    for judge in history.judges.values():
        if judge.provider != "skinsback" or not history.is_timed or history.lost_at is not None:
            continue
        by_order: dict[str, list[tuple[float, str, bool, bool]]] = defaultdict(list)
        for at, what, name, is_told, is_empty in sorted(judge.calls):
            by_order[name].append((at, what, is_told, is_empty))
        for name, calls in by_order.items():
            posts = [n for n, call in enumerate(calls) if call[1] == "submit"]
            for first, second in itertools.pairwise(posts):
                empty = [c[0] for c in calls[first:second] if c[1] == "lookup" and c[2] and c[3]]
                if not empty or empty[-1] - empty[0] < LOOKUPS_APART_S:
                    yield f"I1 {name} was posted again without two empty lookups 60 s apart"


def spends_within_means(history: History) -> Iterator[str]:
    """I3: what is held and not yet debited is really there; nobody pays above his cap."""
    yield from (f"I3 at once: {each}" for each in history.overcommitted)
    for account, judge in history.judges.items():
        # The money of what a backup had held may be spent since.
        ours = [
            a
            for a in history.attempts
            if history.lost_at is None or a["created_at"] >= history.lost_at
        ]
        if history.is_clock_right:  # else a balance may pass for a later one than it is
            yield from (f"I3 {each}" for each in overcommitted(account, judge, ours))
        for name, purchase in judge.purchases.items():
            if purchase["amountMills"] > history.caps_mills.get((account, name), 0):
                yield f"I3 {name} was charged {purchase['amountMills']} mills, above its cap"
    for order in history.orders:
        judge = history.judges[order["account"]]
        is_refused = order["failure_code"] == "insufficient_funds"
        if (
            is_refused
            and order["failed_by"] == "provider"
            and not judge.foreign_mills
            and history.is_clock_right
            and order["external_id"] not in history.unpaid
        ):
            yield f"I3 the provider had no money for {order['external_id']}, we said that it had"


def overcommitted(account: str, judge: Judge, attempts: Sequence[Row]) -> Iterator[str]:
    """Say where an account holds more for orders that are not debited than there is."""
    committed = sum(
        attempt["hold_mills"]
        for attempt in attempts
        if attempt["account"] == account
        and attempt["state"] in ("reserved", "sending")
        and attempt["external_id"] not in judge.purchases
    )
    there = judge.balance_mills - judge.reserved_mills
    if committed > there and not judge.foreign_mills:
        yield f"{account} holds {committed} mills for orders, there are {there}"


def moves_forward(history: History) -> Iterator[str]:
    """I4: the log never goes back in rank, and no end is left but by completed -> reversed."""
    for order, events in _by_order(history.events):
        reached = 0
        for event in events:
            source, target = event["from_status"], event["to_status"]
            if source is None or source == target:
                continue
            if target == "needs_review" and source not in ENDS:
                reached = RANK[source]  # a review is no rank: whoever leaves it is no lower than it
                continue
            if source == "needs_review":
                source = next(word for word, rank in RANK.items() if rank == reached)
            # Waiting for money is no rank: it ends with a fresh quote.
            is_requote = (source, target) == ("awaiting_funds", "quoted")
            if RANK[target] < RANK[source] and not is_requote:
                yield f"I4 order {order} went back from {source} to {target}"
            if source in ENDS and (source, target) != ("completed", "reversed"):
                yield f"I4 order {order} left its end: {source} to {target}"


def is_explained(history: History) -> Iterator[str]:
    """I5: the log has no gaps and rebuilds the row; money entries follow from one another."""
    events = dict(_by_order(history.events))
    for order in history.orders:
        yield from _rebuild(order, events.get(order["id"], []))
    yield from (f"I5 {name} was posted without an intent" for name in history.unintended)
    by_attempt: dict[int, dict[str, int]] = defaultdict(dict)
    for entry in history.entries:
        if entry["kind"] == "adjust":
            continue  # of an order, and as many as there were other charges
        kinds = by_attempt[entry["attempt_id"]]
        if entry["kind"] in kinds:
            yield f"I5 attempt {entry['attempt_id']} has two entries {entry['kind']}"
        if not entry["reason"]:
            yield f"I5 an entry of attempt {entry['attempt_id']} has no reason"
        kinds[entry["kind"]] = entry["amount_mills"]
    for attempt in history.attempts:
        kinds = by_attempt.pop(attempt["id"], {})
        name = attempt["external_id"]
        if kinds.get("hold") != attempt["hold_mills"]:
            yield f"I5 {name} has no entry for its hold"
        closed = {"release", "settle"} & set(kinds)
        if attempt["hold_closed_at"] is None and closed:
            yield f"I5 the hold of {name} is open although there is {closed}"
        if attempt["state"] in ("refused", "completed") and not closed:
            yield f"I5 {name} is {attempt['state']} and no entry says where its money is"
        if "refund" in kinds and "settle" not in kinds:
            yield f"I5 {name} has a refund of what was never settled"
    yield from (f"I5 entries of attempt {each}, which does not exist" for each in by_attempt)


def _rebuild(order: Row, events: Sequence[Row]) -> Iterator[str]:
    name = order["external_id"]
    if [event["sequence"] for event in events] != list(range(1, order["sequence"] + 1)):
        yield f"I5 the log of {name} has gaps"
        return
    row: dict[str, Any] = dict.fromkeys(REBUILT) | {"overdue": False, "contradictions": []}
    status = None
    for event in events:
        if event["from_status"] != status:
            yield f"I5 the log of {name} jumps from {status} to {event['from_status']}"
        status = event["to_status"]
        row.update(event["changes"])
    if status != order["status"]:
        yield f"I5 {name} is {order['status']}, its log says {status}"
    for column in REBUILT:
        told, found = row[column], order[column]
        if isinstance(found, datetime) and isinstance(told, str):
            told = datetime.fromisoformat(told)
        if told != found:
            yield f"I5 {name}.{column} is {found}, its log says {told}"


def is_told_of(history: History) -> Iterator[str]:
    """I8: every change of status has a message to the store, in the order of the log."""
    told: dict[int, list[int]] = defaultdict(list)
    ids = set()
    for message in history.messages:
        told[message["order_id"]].append(message["sequence"])
        if message["name"] in ids:
            yield f"I8 two messages {message['name']}"
        ids.add(message["name"])
    for order, events in _by_order(history.events):
        if told[order] != sorted(told[order]):
            yield f"I8 the messages of order {order} are out of order"
        changed = {
            (e["told_from"] or 0) + e["sequence"]
            for e in events
            if e["from_status"] != e["to_status"]
        }
        if missing := changed - set(told[order]):
            yield f"I8 the store was not told of the events {sorted(missing)} of order {order}"


def is_bounded(history: History) -> Iterator[str]:
    """I9: nobody is posted to without end, and no rate limit is overstepped."""
    for account, judge in history.judges.items():
        posts = Counter(name for _, what, name, _, _ in judge.calls if what == "submit")
        for name, count in posts.items():
            if count > MOST_POSTS:
                yield f"I9 {name} was posted {count} times"
        if judge.requests_limited:
            yield f"I9 {account} overstepped its rate limit {judge.requests_limited} times"


def is_authentic(history: History) -> Iterator[str]:
    """I10: forged webhooks changed nothing."""
    if history.forged_changes:
        yield f"I10 {history.forged_changes} forged webhooks had an effect"


def is_ended(history: History) -> Iterator[str]:
    """I2: every acknowledged order exists and has ended, or a person was asked."""
    found = {order["external_id"]: order for order in history.orders}
    for name in sorted(history.acknowledged - set(found)):
        yield f"I2 {name} was acknowledged and does not exist"
    for name, order in found.items():
        if order["status"] in ENDS | {"needs_review"} or name in history.endless:
            continue
        yield f"I2 {name} is still {order['status']}"


def agrees(history: History) -> Iterator[str]:
    """I7: our view of every order and of every mill is the judge's."""
    entries: dict[str, Counter[str]] = defaultdict(Counter)
    names = {attempt["order_id"]: attempt["external_id"] for attempt in history.attempts}
    for entry in history.entries:
        kind = "settle" if entry["kind"] == "adjust" else entry["kind"]
        entries[names.get(entry["order_id"], "?")][kind] += entry["amount_mills"]
    for order in history.orders:
        name, status = order["external_id"], order["status"]
        purchase = history.judges[order["account"]].purchases.get(name)
        if purchase is None:
            if status not in WITHOUT_ITEM | {"needs_review"}:
                yield f"I7 {name} is {status}, the provider has no such purchase"
            if entries[name]["settle"]:
                yield f"I7 {name} was never bought, {entries[name]['settle']} mills are booked"
            continue
        allowed = AGREES.get(purchase["status"], {"needs_review"})
        if status not in allowed and name not in history.endless:
            yield f"I7 {name} is {status}, the provider says {purchase['status']}"
        spent = entries[name]["settle"] - entries[name]["refund"]
        truth = purchase["amountMills"] - purchase["refundedMills"]
        # Of an undone delivery only SkinsNode says that it gave the money back.
        is_silent = history.judges[order["account"]].provider != "skinsnode"
        if status == "reversed" and is_silent and spent == purchase["amountMills"]:
            continue
        if spent != truth and name not in history.endless:
            yield f"I7 {name} cost {truth} mills, booked are {spent}"
    for attempt in history.attempts:
        if attempt["hold_closed_at"] is None and attempt["external_id"] not in history.endless:
            row = next(o for o in history.orders if o["id"] == attempt["order_id"])
            if row["status"] != "needs_review":
                yield f"I7 the hold of {attempt['external_id']} ({row['status']}) is still open"
    yield from _balances(history)


def _balances(history: History) -> Iterator[str]:
    """Compare what our ledger says of each account with what its wallet at the judge has lost."""
    orders = {order["id"]: order for order in history.orders}
    names = {order["external_id"] for order in history.orders}
    for account, judge in history.judges.items():
        # What an order costs that never ends, or whose refund nobody tells of, only the judge says.
        untold = set(history.endless)
        if judge.provider != "skinsnode":
            untold |= {o["external_id"] for o in history.orders if o["status"] == "reversed"}
        left = judge.opening_mills + judge.foreign_mills
        for name, purchase in judge.purchases.items():
            if name in untold:
                left -= purchase["amountMills"] - purchase["refundedMills"]
        for entry in history.entries:
            order = orders.get(entry["order_id"])
            if entry["account"] == account and order and order["external_id"] not in untold:
                left -= SPENT.get(entry["kind"], 0) * entry["amount_mills"]
        if left != judge.balance_mills:
            more = judge.balance_mills - left
            yield f"I7 {account}: by our ledger {left} mills are left, {more} more are there"
        for movement in judge.movements:
            if movement["externalId"] is not None and movement["externalId"] not in names:
                yield f"I7 {account} paid for {movement['externalId']}, which is no order of ours"


def proves_its_wallets(history: History) -> Iterator[str]:
    """I7: what our books cannot explain of a balance is just what strangers took and brought."""
    for wallet in history.wallets:
        account, judge = wallet["account"], history.judges[wallet["account"]]
        attempts = [a for a in history.attempts if a["account"] == account]
        if wallet["expected_mills"] is None:
            continue  # nobody has read it yet
        is_open = any(
            a["unbooked"]
            or (a["hold_closed_at"] or wallet["requested_at"]) >= wallet["requested_at"]
            for a in attempts
        )
        told = wallet["credited_mills"] - wallet["unexplained_mills"]
        booked = sum(attempt["booked_mills"] for attempt in attempts)
        if wallet["opening_mills"] - booked + told != wallet["expected_mills"]:
            yield f"I7 {account}: the proof of its wallet does not add up"
        if is_open or wallet["figure_mills"] != judge.balance_mills:
            continue  # a later figure tells
        spent = sum(
            entry["amount_mills"] * SPENT.get(entry["kind"], 0)
            for entry in history.entries
            if entry["account"] == account
        )
        truth = judge.balance_mills - wallet["opening_mills"] + spent
        if told != truth:
            yield f"I7 {account}: {told} mills are told to be unexplained, {truth} are"


def _by_order(events: Sequence[Row]) -> Iterator[tuple[int, list[Row]]]:
    for order, group in itertools.groupby(events, key=lambda event: event["order_id"]):
        yield int(order), list(group)


#: What must hold at every moment, and what must hold once the faults are over.
SAFETY: tuple[Check, ...] = (
    bought_once,
    replayed_by_rule,
    spends_within_means,
    moves_forward,
    is_explained,
    is_told_of,
    is_bounded,
    is_authentic,
)
LIVENESS: tuple[Check, ...] = (is_ended, agrees, proves_its_wallets)


def violations(history: History, checks: Sequence[Check] = SAFETY) -> list[str]:
    """Give every violation that these checks find."""
    return [each for check in checks for each in check(history)]


#: Kept beside the checks: how long after the last fault everything must have converged.
CONVERGES_WITHIN = timedelta(hours=4)
