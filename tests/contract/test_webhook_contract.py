"""The cards about webhooks (PC-11 to PC-17 without PC-15), which every adapter must pass.

Where a signature covers no time, or not the body, a webhook is a hint to ask and has no report.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from msgspec import structs
from pydantic import SecretStr

from fulfillment.errors import WebhookRejected
from fulfillment.providers.base import Provider, is_fresh
from schemas.enums import ProviderName
from schemas.provider import OrderReport, ReportState, WebhookNotice
from tests.contract.conftest import (
    CLIENT_ID,
    SECRET,
    Applies,
    BuildProvider,
    Delivery,
    Facts,
    Mailbox,
    Order,
    Simulator,
)
from tests.contract.test_provider_contract import buy, report_of

TOLERANCE_S = 3600
SIGNED_TIME = "skinsback.md 8, skinslink.md 9: no time is signed, so no body is applied"


def is_in(state: ReportState) -> Callable[[WebhookNotice], bool]:
    return lambda notice: notice.report is not None and notice.report.state is state


def always(notice: WebhookNotice) -> bool:
    return True


def without_item(report: OrderReport) -> OrderReport:
    """Leave out what a webhook does not tell (skinsnode.md 9)."""
    return structs.replace(report, item_id=None, item_name=None, partner=None)


def test_pc07_an_unknown_status_in_a_webhook_is_kept(
    provider: Provider, simulator: Simulator, order: Order, mailbox: Mailbox, applies: Applies
) -> None:
    applies(ProviderName.SKINSNODE, why=SIGNED_TIME)
    command = order("stuck")
    buy(provider, command)
    simulator.ask("POST", f"/orders/{command.external_id}/advance", status="inspecting")

    collected = mailbox.until(is_in(ReportState.UNKNOWN), provider, command)

    assert collected[-1][1].report == without_item(report_of(provider, command))


def test_pc11_a_good_webhook_says_what_a_poll_says(
    provider: Provider, simulator: Simulator, order: Order, mailbox: Mailbox, facts: Facts
) -> None:
    command = order("delivered")
    buy(provider, command)
    simulator.jump(31)

    is_last = is_in(ReportState.COMPLETED) if facts.is_webhook_applied else always
    notice = mailbox.until(is_last, provider, command)[-1][1]

    assert notice.external_id == command.external_id
    if not facts.is_webhook_applied:
        assert (notice.report, notice.signed_at) == (None, None)
        assert notice.provider_reference == report_of(provider, command).provider_reference
        return
    assert notice.report == without_item(report_of(provider, command))
    assert notice.report
    assert notice.report.reported_at
    assert is_fresh(notice.signed_at, notice.report.reported_at, TOLERANCE_S)


@pytest.mark.parametrize("scenario", ["webhooks_bad_signature", "webhooks_reserialised"])
def test_pc12_a_forged_webhook_is_rejected(
    provider: Provider,
    simulator: Simulator,
    order: Order,
    mailbox: Mailbox,
    applies: Applies,
    scenario: str,
    provider_name: ProviderName,
) -> None:
    if scenario == "webhooks_reserialised":
        names = (ProviderName.SKINSNODE, ProviderName.SKINSBACK)
        applies(*names, why="skinslink.md 9: the signature does not cover the body")
    command = order(scenario)
    buy(provider, command)
    simulator.jump(31)

    for _ in range(1 if provider_name is ProviderName.SKINSLINK else 3):
        delivery = mailbox.take(command)
        with pytest.raises(WebhookRejected):
            provider.read_webhook(delivery.headers, delivery.body)


def test_pc12_forgeries_among_genuine_ones_are_told_apart(
    provider: Provider, simulator: Simulator, order: Order, mailbox: Mailbox, facts: Facts
) -> None:
    command = order("webhooks_forged")
    buy(provider, command)
    simulator.jump(5 if facts.is_webhook_applied else 31)

    notices: list[WebhookNotice] = []
    states: set[ReportState] = set()
    rejected, least = 0, 6 if facts.is_webhook_applied else 2
    while rejected < least or not notices or (states and ReportState.SENT not in states):
        delivery = mailbox.take(command)
        try:
            notices.append(provider.read_webhook(delivery.headers, delivery.body))
        except WebhookRejected:
            rejected += 1
        else:
            states |= {notice.report.state for notice in notices if notice.report}

    assert bool(states) is facts.is_webhook_applied
    assert ReportState.COMPLETED not in states  # what every forgery claims


def altered(delivery: Delivery, provider_name: ProviderName) -> Iterator[Delivery]:
    """Change what the provider's signature covers, or the signature."""
    body, headers = delivery.body, dict(delivery.headers)
    if provider_name is ProviderName.SKINSLINK:
        document = json.loads(body)
        for changes in (
            {"purchase_id": document["purchase_id"] + 1},
            {"purchase_id": str(document["purchase_id"])},
            {"purchase_id": None, "trade_id": document["purchase_id"]},
            {"sign": document["sign"].lower()},
            {"sign": ""},
            {"sign": None},
        ):
            yield Delivery(headers, json.dumps({**document, **changes}).encode())
        yield Delivery(headers, body[:-1] + b',"purchase_id":1}')
        return
    yield Delivery(headers, body + b" ")
    yield Delivery(headers, body.replace(b"status", b"state", 1))
    yield Delivery({}, body)
    names = {name.lower(): name for name in headers}
    if provider_name is ProviderName.SKINSNODE:
        yield Delivery({**headers, names["x-signature"]: "é"}, body)
        yield Delivery({**headers, names["x-timestamp"]: "2026-11-20T12:36:12.000Z"}, body)
        return
    name = names["signature"]
    yield Delivery({**headers, name: "é"}, body)
    yield Delivery({**headers, name: headers[name].upper()}, body)
    # The fixed MD5 of id and secret, which covers no body (K12).
    fixed = hashlib.md5((CLIENT_ID + SECRET).encode(), usedforsecurity=False).hexdigest()
    yield Delivery({**headers, name: fixed}, body)
    yield Delivery({"x-sign": fixed, "authorization": headers[name]}, body)


def test_pc12_bytes_altered_on_the_way_are_rejected(
    provider: Provider,
    order: Order,
    mailbox: Mailbox,
    simulator: Simulator,
    facts: Facts,
    provider_name: ProviderName,
) -> None:
    command = order("delivered")
    buy(provider, command)
    simulator.jump(facts.called_back_s)
    delivery = mailbox.take(command)
    provider.read_webhook(delivery.headers, delivery.body)

    for each in altered(delivery, provider_name):
        with pytest.raises(WebhookRejected):
            provider.read_webhook(each.headers, each.body)


def test_pc13_a_stale_timestamp_is_seen(
    provider: Provider, simulator: Simulator, order: Order, mailbox: Mailbox, applies: Applies
) -> None:
    applies(ProviderName.SKINSNODE, why=SIGNED_TIME)
    command = order("webhooks_stale")
    buy(provider, command)
    simulator.jump(31)

    [*_, (_, notice)] = mailbox.until(is_in(ReportState.COMPLETED), provider, command)

    reported_at = report_of(provider, command).reported_at
    assert reported_at
    assert not is_fresh(notice.signed_at, reported_at, TOLERANCE_S)


def test_pc14_during_a_rotation_the_old_secret_still_verifies(
    provider: Provider,
    build: BuildProvider,
    simulator: Simulator,
    order: Order,
    mailbox: Mailbox,
    facts: Facts,
) -> None:
    rotating = build(client_secret=SecretStr("cs_new"), previous_secret=SecretStr(SECRET))
    rotated = build(client_secret=SecretStr("cs_new"), previous_secret=SecretStr(""))
    command = order("delivered")
    buy(provider, command)
    simulator.jump(facts.called_back_s)

    [(delivery, notice)] = mailbox.until(always, rotating, command)

    assert notice.external_id == command.external_id
    with pytest.raises(WebhookRejected):
        rotated.read_webhook(delivery.headers, delivery.body)


def test_pc16_a_doubled_webhook_reads_the_same(
    provider: Provider, simulator: Simulator, order: Order, mailbox: Mailbox, facts: Facts
) -> None:
    command = order("webhooks_doubled")
    buy(provider, command)
    simulator.jump(facts.called_back_s)

    seen: list[Any] = []
    while len(seen) == len(set(map(repr, seen))):
        [(_, notice)] = mailbox.until(always, provider, command)
        # The second one may be signed a second later.
        seen.append(replace(notice, signed_at=None))

    assert seen.count(seen[-1]) == 2


@pytest.mark.parametrize("scenario", ["webhooks_reordered", "completed_before_answer"])
def test_pc17_completed_before_accepted_is_read_as_it_comes(
    provider: Provider,
    simulator: Simulator,
    order: Order,
    mailbox: Mailbox,
    facts: Facts,
    scenario: str,
) -> None:
    command = order(scenario)

    accepted = buy(provider, command)
    simulator.jump(21)
    [(_, first)] = mailbox.until(always, provider, command)

    assert accepted.external_id == first.external_id == command.external_id
    if facts.is_webhook_applied:
        assert accepted.state is ReportState.ACCEPTED
        assert first.report
        assert first.report.state is ReportState.COMPLETED
    assert report_of(provider, command).state is ReportState.COMPLETED
