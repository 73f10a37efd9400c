"""The cards that every adapter must pass; docs/adding-a-provider.md lists their numbers.

A provider is done when its row is green, and not before.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from json import JSONDecodeError
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from fulfillment.errors import (
    ConfigurationError,
    ProviderDeniesAccount,
    ProviderError,
    ProviderNotReached,
    ProviderOutcomeUnknown,
    ProviderRefused,
    WebhookRejected,
)
from fulfillment.providers.base import AfterUnknown, Provider, is_fresh
from schemas.provider import OrderReport, PurchaseCommand, ReportState, Want, WebhookNotice
from tests.contract.conftest import SECRET, TOKEN, BuildProvider, Mailbox, Order, Simulator

#: Answers that break off, cannot be read, or are about something else.
UNUSABLE = (
    *("html_page", "deep_json", "bomb", "drop", "torn", "truncated", "garbage"),
    *("missing_fields", "redirect", "error", "outage", "huge_body"),
)
TOLERANCE_S = 3600


def buy(provider: Provider, command: PurchaseCommand) -> OrderReport:
    return provider.purchase(provider.purchase_body(command))


def report_of(provider: Provider, command: PurchaseCommand) -> OrderReport:
    return provider.reports([command.external_id])[command.external_id]


def is_in(state: ReportState) -> Callable[[WebhookNotice], bool]:
    return lambda notice: notice.report is not None and notice.report.state is state


def everything(provider: Provider, command: PurchaseCommand) -> list[Callable[[], Any]]:
    return [*reads(provider, command), lambda: buy(provider, command)]


def reads(provider: Provider, command: PurchaseCommand) -> list[Callable[[], Any]]:
    want = Want(command.catalog_item_id, command.market_hash_name)
    return [
        lambda: provider.quote([want]),
        provider.wallet_mills,
        lambda: provider.reports([command.external_id]),
    ]


def test_pc01_accept(provider: Provider, simulator: Simulator, order: Order) -> None:
    command = order("delivered")

    report = buy(provider, command)

    assert report.external_id == command.external_id
    assert report.state is ReportState.ACCEPTED
    [purchase] = simulator.purchases(command.external_id)
    assert purchase["itemId"] == command.catalog_item_id
    assert purchase["expectedPrice"] * 10 == command.price_mills
    simulator.jump(31)
    delivered = report_of(provider, command)
    assert delivered.state is ReportState.COMPLETED
    assert delivered.charged_mills == purchase["amountCents"] * 10
    assert delivered.steam_offer_id
    assert delivered.reported_at


@pytest.mark.parametrize(
    ("scenario", "code"),
    [
        pytest.param("funds_fail_after_accept", "insufficient_funds", id="pc02"),
        pytest.param("price_changes_after_accept", "price_changed", id="pc03"),
        ("unknown_failure", "recipient_trade_banned"),
    ],
)
def test_pc02_pc03_refused_for_funds_and_for_price(
    provider: Provider, simulator: Simulator, order: Order, scenario: str, code: str
) -> None:
    command = order(scenario)

    try:
        buy(provider, command)
    except ProviderRefused as refusal:
        found: str | None = refusal.code  # a provider may say so at once
        exists = bool(simulator.purchases(command.external_id))
    else:
        simulator.jump(31)
        report = report_of(provider, command)
        found, exists = report.failure_code, report.state is not ReportState.FAILED

    assert found == code
    assert not exists


def test_pc04_timeout_before_accept_is_unknown_and_nothing_exists(
    hasty: Provider, simulator: Simulator, order: Order
) -> None:
    command = order("timeout_before_accept")

    with pytest.raises(ProviderOutcomeUnknown):
        buy(hasty, command)

    assert hasty.reports([command.external_id]) == {}
    assert simulator.purchases(command.external_id) == []


def test_pc05_timeout_after_accept_is_unknown_and_the_order_exists(
    hasty: Provider, simulator: Simulator, order: Order
) -> None:
    command = order("timeout_after_accept")

    with pytest.raises(ProviderOutcomeUnknown):
        buy(hasty, command)

    assert report_of(hasty, command).external_id == command.external_id
    assert len(simulator.purchases(command.external_id)) == 1


@pytest.mark.parametrize("scenario", ["delivered", "timeout_after_accept", "error_after_accept"])
def test_pc06_the_same_id_twice_is_one_order(
    hasty: Provider, simulator: Simulator, order: Order, scenario: str
) -> None:
    command = order(scenario)
    body = hasty.purchase_body(command)
    try:
        hasty.purchase(body)
    except ProviderOutcomeUnknown:
        assert scenario != "delivered"

    if hasty.after_unknown is AfterUnknown.LOOKUP_ONLY:
        report = report_of(hasty, command)
    else:
        report = hasty.purchase(body)

    assert report.external_id == command.external_id
    assert report.state is ReportState.ACCEPTED
    [purchase] = simulator.purchases(command.external_id)
    assert purchase["conflictingPosts"] == 0


def test_pc07_an_unknown_status_is_kept_and_never_success(
    provider: Provider, simulator: Simulator, order: Order, mailbox: Mailbox
) -> None:
    command = order("stuck")

    buy(provider, command)
    simulator.ask("POST", f"/orders/{command.external_id}/advance", status="inspecting")

    report = report_of(provider, command)
    assert report.state is ReportState.UNKNOWN
    assert report.raw_status == "inspecting"
    collected = mailbox.until(is_in(ReportState.UNKNOWN), provider, command)
    assert collected[-1][1].report == report


@pytest.mark.parametrize("fault", UNUSABLE)
def test_pc08_an_unusable_answer_leaves_a_purchase_unknown(
    provider: Provider, simulator: Simulator, order: Order, fault: str
) -> None:
    command = order("delivered")
    body = provider.purchase_body(command)
    simulator.lay(fault, method="POST", after=True)

    with pytest.raises(ProviderOutcomeUnknown) as caught:
        provider.purchase(body)

    assert TOKEN not in str(caught.value)
    assert len(simulator.purchases(command.external_id)) == 1


@pytest.mark.parametrize("fault", UNUSABLE)
def test_pc08_an_unusable_answer_to_a_read_is_an_outage(
    provider: Provider, simulator: Simulator, order: Order, fault: str
) -> None:
    command = order("delivered")
    buy(provider, command)
    simulator.lay(fault)

    quote, *others = reads(provider, command)
    for read in others if fault == "huge_body" else [quote, *others]:  # a list may be huge
        with pytest.raises(ProviderNotReached):
            read()


def test_pc08_an_answer_about_another_order_is_unusable(
    provider: Provider, simulator: Simulator, order: Order
) -> None:
    command = order("foreign_answer")

    with pytest.raises(ProviderOutcomeUnknown):
        buy(provider, command)
    simulator.lay("foreign_order")
    with pytest.raises(ProviderNotReached):
        provider.reports([command.external_id])


def test_pc09_429_says_how_long_to_wait(
    provider: Provider, simulator: Simulator, order: Order
) -> None:
    command = order("delivered")
    simulator.lay("rate_limited")

    with pytest.raises(ProviderOutcomeUnknown) as purchase:
        buy(provider, command)
    assert purchase.value.retry_after == timedelta(seconds=1)
    for read in reads(provider, command):
        with pytest.raises(ProviderNotReached) as caught:
            read()
        assert caught.value.retry_after == timedelta(seconds=1)


@pytest.mark.parametrize("external_id", ["nobody-knows-this", ".", "..", "a..b"])
def test_pc10_an_order_nobody_knows_is_absent(provider: Provider, external_id: str) -> None:
    assert provider.reports([external_id]) == {}


@pytest.mark.parametrize(
    "external_id", ["a/b", "../wallet", "a?b=c", "a#b", "a b", "%2e%2e/wallet"]
)
def test_pc10_no_id_reaches_another_endpoint(
    provider: Provider, simulator: Simulator, external_id: str
) -> None:
    before = simulator.ask("GET", "/ledger")["requests"]
    with suppress(ProviderNotReached):
        assert provider.reports([external_id]) == {}
    after = simulator.ask("GET", "/ledger")["requests"]

    changed = {name for name in after if after[name] != before.get(name)}
    assert not any("wallet" in name for name in changed)


def test_pc11_a_good_webhook_says_what_a_poll_says(
    provider: Provider, simulator: Simulator, order: Order, mailbox: Mailbox
) -> None:
    command = order("delivered")
    buy(provider, command)
    simulator.jump(31)

    collected = mailbox.until(is_in(ReportState.COMPLETED), provider, command)

    notice = collected[-1][1]
    assert notice.report == report_of(provider, command)
    assert notice.report
    assert notice.report.reported_at
    assert is_fresh(notice.signed_at, notice.report.reported_at, TOLERANCE_S)


@pytest.mark.parametrize("scenario", ["webhooks_bad_signature", "webhooks_reserialised"])
def test_pc12_a_forged_webhook_is_rejected(
    provider: Provider, simulator: Simulator, order: Order, mailbox: Mailbox, scenario: str
) -> None:
    command = order(scenario)
    buy(provider, command)
    simulator.jump(31)

    for _ in range(4):
        delivery = mailbox.take(command)
        with pytest.raises(WebhookRejected):
            provider.read_webhook(delivery.headers, delivery.body)


def test_pc12_forgeries_among_genuine_ones_are_told_apart(
    provider: Provider, simulator: Simulator, order: Order, mailbox: Mailbox
) -> None:
    command = order("webhooks_forged")
    buy(provider, command)
    simulator.jump(5)

    states: set[ReportState] = set()
    rejected = 0
    while rejected < 6 or ReportState.SENT not in states:
        delivery = mailbox.take(command)
        try:
            notice = provider.read_webhook(delivery.headers, delivery.body)
        except WebhookRejected:
            rejected += 1
        else:
            assert notice.report
            states.add(notice.report.state)

    assert ReportState.COMPLETED not in states  # what every forgery claims


def test_pc12_bytes_altered_on_the_way_are_rejected(
    provider: Provider, order: Order, mailbox: Mailbox, simulator: Simulator
) -> None:
    command = order("delivered")
    buy(provider, command)
    simulator.jump(1)
    delivery = mailbox.take(command)
    names = {name.lower(): name for name in delivery.headers}

    altered = [
        (delivery.headers, delivery.body + b" "),
        (delivery.headers, delivery.body.replace(b'"status":"', b'"status":"x')),
        ({}, delivery.body),
        ({**delivery.headers, names["x-signature"]: "é"}, delivery.body),
        ({**delivery.headers, names["x-timestamp"]: "2026-11-20T12:36:12.000Z"}, delivery.body),
    ]
    for headers, body in altered:
        with pytest.raises(WebhookRejected):
            provider.read_webhook(headers, body)


def test_pc13_a_stale_timestamp_is_seen(
    provider: Provider, simulator: Simulator, order: Order, mailbox: Mailbox
) -> None:
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
) -> None:
    rotating = build(client_secret=SecretStr("cs_new"), previous_secret=SecretStr(SECRET))
    rotated = build(client_secret=SecretStr("cs_new"), previous_secret=SecretStr(""))
    command = order("delivered")
    buy(provider, command)
    simulator.jump(1)

    [*_, (delivery, notice)] = mailbox.until(is_in(ReportState.QUEUED), rotating, command)

    assert notice.external_id == command.external_id
    with pytest.raises(WebhookRejected):
        rotated.read_webhook(delivery.headers, delivery.body)


def test_pc15_without_a_secret_there_is_no_endpoint(build: BuildProvider) -> None:
    with pytest.raises(ConfigurationError, match="FULFILLMENT_ACCOUNTS__MAIN__CLIENT_SECRET"):
        build(client_secret=SecretStr(""))


def test_pc16_a_doubled_webhook_reads_the_same(
    provider: Provider, simulator: Simulator, order: Order, mailbox: Mailbox
) -> None:
    command = order("webhooks_doubled")
    buy(provider, command)
    simulator.jump(1)

    [*_, (_, first)] = mailbox.until(is_in(ReportState.QUEUED), provider, command)
    [*_, (_, second)] = mailbox.until(is_in(ReportState.QUEUED), provider, command)

    assert first.report == second.report


@pytest.mark.parametrize("scenario", ["webhooks_reordered", "completed_before_answer"])
def test_pc17_completed_before_accepted_is_read_as_it_comes(
    provider: Provider, simulator: Simulator, order: Order, mailbox: Mailbox, scenario: str
) -> None:
    command = order(scenario)

    accepted = buy(provider, command)
    simulator.jump(21)
    [(_, first)] = mailbox.until(lambda notice: True, provider, command)

    assert accepted.state is ReportState.ACCEPTED
    assert first.report
    assert first.report.state is ReportState.COMPLETED


# --- cards beyond STYLE.md's first set


@pytest.mark.parametrize("fault", ["unauthorized", "forbidden"])
def test_pc18_denied_credentials_are_about_the_account(
    provider: Provider, simulator: Simulator, order: Order, fault: str
) -> None:
    command = order("delivered")
    simulator.lay(fault)

    for ask in everything(provider, command):
        with pytest.raises(ProviderDeniesAccount):
            ask()


def test_pc18_a_wrong_secret_is_denied(build: BuildProvider, order: Order) -> None:
    with pytest.raises(ProviderDeniesAccount):
        buy(build(client_secret=SecretStr("cs_wrong")), order("delivered"))


def test_pc19_an_item_that_is_gone_is_a_definite_no(
    provider: Provider, simulator: Simulator, order: Order
) -> None:
    command = order("item_gone")

    with pytest.raises(ProviderRefused) as caught:
        buy(provider, command)

    assert caught.value.code == "item_unavailable"
    assert simulator.purchases(command.external_id) == []


def test_pc19_an_order_found_invalid_is_a_definite_no(
    provider: Provider, simulator: Simulator, order: Order
) -> None:
    command = replace(order("delivered"), trade_url=f"https://example.com/?token={TOKEN}")

    with pytest.raises(ProviderRefused) as caught:
        buy(provider, command)

    assert caught.value.code == "refused_by_provider"
    assert TOKEN not in str(caught.value)
    assert simulator.purchases(command.external_id) == []


def test_pc20_a_dripping_answer_ends_with_the_total_time(
    hasty: Provider, simulator: Simulator, order: Order
) -> None:
    command = order("delivered")
    simulator.lay("slow_drip", path="/v1/orders", seconds=0.1)

    with pytest.raises(ProviderOutcomeUnknown):
        buy(hasty, command)
    with pytest.raises(ProviderNotReached):
        hasty.reports([command.external_id])


def test_pc21_nothing_is_sent_to_a_provider_that_is_not_there(
    build: BuildProvider, order: Order
) -> None:
    away = build(base_url="http://127.0.0.1:1")
    command = order("delivered")

    for ask in everything(away, command):
        with pytest.raises(ProviderNotReached):
            ask()
    assert not away.healthy()


def test_pc22_a_quote_is_the_present_price(
    provider: Provider, simulator: Simulator, want: Want
) -> None:
    item = simulator.item()
    dearer = item["price"] + 7
    simulator.ask("PUT", f"/items/{item['id']}", price=dearer)
    gone = Want("00000000-0000-0000-0000-000000000000")

    quotes = provider.quote([want, gone])

    simulator.ask("PUT", f"/items/{item['id']}", price=item["price"])
    assert quotes.listed == simulator.ask("GET", "/items?available=true")["total"]
    assert set(quotes.found) == {want}
    assert quotes.found[want].price_mills == dearer * 10
    assert quotes.found[want].market_hash_name == want.market_hash_name


def test_pc22_an_id_under_another_name_is_another_item(provider: Provider, want: Want) -> None:
    renamed = replace(want, market_hash_name="Another Item")
    unnamed = replace(want, market_hash_name=None)

    assert set(provider.quote([renamed, unnamed]).found) == {unnamed}


@pytest.mark.parametrize("fault", ["empty_catalog", "free_catalog"])
def test_pc22_a_catalog_without_a_price_is_an_outage(
    provider: Provider, simulator: Simulator, want: Want, fault: str
) -> None:
    simulator.lay(fault)

    with pytest.raises(ProviderNotReached):
        provider.quote([want])


def test_pc22_an_item_listed_at_two_prices_is_not_found(
    provider: Provider, simulator: Simulator, want: Want
) -> None:
    simulator.lay("doubled_catalog")

    assert provider.quote([want]).found == {}


def test_pc22_prices_of_another_type_are_exact(
    provider: Provider, simulator: Simulator, want: Want
) -> None:
    before = provider.quote([want])
    simulator.lay("wrong_types")

    assert provider.quote([want]) == before


def test_pc23_the_wallet_is_exact(provider: Provider, simulator: Simulator) -> None:
    balance = simulator.ask("GET", "/ledger")["wallet"]["balance"]

    assert provider.wallet_mills() == balance * 10


def test_pc24_amounts_that_are_not_exact_are_refused(
    provider: Provider, simulator: Simulator, order: Order
) -> None:
    command = order("delivered")
    buy(provider, command)
    simulator.lay("wrong_types")

    with pytest.raises(ProviderNotReached):
        provider.wallet_mills()
    with pytest.raises(ProviderNotReached):
        provider.reports([command.external_id])


def test_pc25_what_was_charged_is_told_not_what_was_expected(
    provider: Provider, simulator: Simulator, order: Order
) -> None:
    command = order("overcharged")
    buy(provider, command)

    assert report_of(provider, command).charged_mills == command.price_mills + 10


def test_pc26_a_reversal_follows_completion(
    provider: Provider, simulator: Simulator, order: Order
) -> None:
    command = order("reversed")
    buy(provider, command)

    simulator.jump(31)
    completed = report_of(provider, command)
    simulator.jump(31)
    reversed_ = report_of(provider, command)

    assert completed.state is ReportState.COMPLETED
    assert completed.refunded_at is None
    assert reversed_.state is ReportState.REVERSED
    assert reversed_.refunded_at


@pytest.mark.parametrize("fault", ["outage", "html_page", "redirect", "garbage", "drop"])
def test_pc27_health_is_yes_or_no(provider: Provider, simulator: Simulator, fault: str) -> None:
    assert provider.healthy()

    simulator.lay(fault)

    assert not provider.healthy()


@pytest.mark.parametrize("fault", [*UNUSABLE, "unauthorized", "rate_limited", "not_found"])
def test_pc28_no_error_tells_a_secret(
    provider: Provider, simulator: Simulator, order: Order, fault: str
) -> None:
    command = order("delivered")
    simulator.lay(fault)

    for ask in everything(provider, command):
        try:
            ask()
        except ProviderError as error:
            chain: list[BaseException] = []
            link: BaseException | None = error
            while link is not None:
                chain.append(link)
                link = link.__cause__ or link.__context__
            for each in chain:
                assert SECRET not in repr(each)
                assert TOKEN not in repr(each)
            # What knows a request or a document does not hang on.
            assert not any(isinstance(e, (httpx.HTTPError, JSONDecodeError)) for e in chain)
    assert SECRET not in repr(vars(provider).get("_http"))
    assert TOKEN not in repr(command)


def test_pc29_one_adapter_serves_many_threads(
    provider: Provider, simulator: Simulator, order: Order
) -> None:
    commands = [order("stuck") for _ in range(48)]

    with ThreadPoolExecutor(16) as pool:
        accepted = list(pool.map(lambda command: buy(provider, command), commands))
        reported = list(pool.map(lambda command: report_of(provider, command), commands))

    assert [each.external_id for each in accepted] == [each.external_id for each in commands]
    assert [each.external_id for each in reported] == [each.external_id for each in commands]


def test_pc30_the_stored_body_is_the_same_each_time(provider: Provider, order: Order) -> None:
    command = order("delivered")

    assert provider.purchase_body(command) == provider.purchase_body(command)
    with pytest.raises(ValueError, match="cents"):
        provider.purchase_body(replace(command, price_mills=command.price_mills + 1))
