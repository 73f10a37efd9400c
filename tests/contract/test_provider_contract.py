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
)
from fulfillment.providers.base import AfterUnknown, Provider
from schemas.checkout import trade_url_parts
from schemas.enums import ProviderName
from schemas.provider import OrderReport, PurchaseCommand, ReportState, Want
from tests.contract.conftest import (
    API_KEY,
    SECRET,
    TOKEN,
    Applies,
    BuildProvider,
    Facts,
    Order,
    Simulator,
)

#: Answers that break off, cannot be read, or are about something else.
UNUSABLE = (
    *("html_page", "deep_json", "bomb", "drop", "torn", "truncated", "garbage"),
    *("missing_fields", "redirect", "error", "outage", "huge_body"),
)
#: Those that sell by name too; they are the same that know of holds and of recipients.
BY_NAME = (ProviderName.SKINSBACK, ProviderName.SKINSLINK)


def buy(provider: Provider, command: PurchaseCommand) -> OrderReport:
    return provider.purchase(provider.purchase_body(command))


def report_of(provider: Provider, command: PurchaseCommand) -> OrderReport:
    return provider.reports([command.external_id])[command.external_id]


def everything(provider: Provider, command: PurchaseCommand) -> list[Callable[[], Any]]:
    return [*reads(provider, command), lambda: buy(provider, command)]


def reads(provider: Provider, command: PurchaseCommand) -> list[Callable[[], Any]]:
    want = Want(command.catalog_item_id, command.market_hash_name)
    return [
        lambda: provider.quote([want]),
        provider.wallet_mills,
        lambda: provider.reports([command.external_id]),
    ]


def test_pc01_accept(
    provider: Provider, simulator: Simulator, order: Order, provider_name: ProviderName
) -> None:
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
    if provider_name is ProviderName.SKINSNODE:
        assert delivered.reported_at  # the others give the time of the purchase only
    else:
        assert delivered.provider_reference == purchase["providerId"]


@pytest.mark.parametrize(
    ("scenario", "code"),
    [
        pytest.param("refused_funds", "insufficient_funds", id="pc02"),
        pytest.param("refused_price", "price_changed", id="pc03"),
        ("refused_unavailable", "provider_unavailable"),
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
    except ProviderNotReached:
        assert scenario == "refused_unavailable"  # SkinsBack's market is off: nothing was done
        found, exists = code, bool(simulator.purchases(command.external_id))
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

    try:
        report = hasty.purchase(body)
    except ProviderOutcomeUnknown:
        # A used id is answered with an error: what became of it is to be looked up.
        assert hasty.after_unknown is AfterUnknown.LOOKUP_THEN_REPLAY
        report = report_of(hasty, command)

    assert report.external_id == command.external_id
    assert report.state in (ReportState.ACCEPTED, ReportState.PENDING)
    [purchase] = simulator.purchases(command.external_id)
    assert purchase["conflictingPosts"] == 0


def test_pc07_an_unknown_status_is_kept_and_never_success(
    provider: Provider, simulator: Simulator, order: Order
) -> None:
    command = order("stuck")

    buy(provider, command)
    simulator.ask("POST", f"/orders/{command.external_id}/advance", status="inspecting")

    report = report_of(provider, command)
    assert report.state is ReportState.UNKNOWN
    assert report.raw_status == "inspecting"


@pytest.mark.parametrize("fault", UNUSABLE)
def test_pc08_an_unusable_answer_leaves_a_purchase_unknown(
    provider: Provider, simulator: Simulator, order: Order, fault: str
) -> None:
    command = order("delivered")
    body = provider.purchase_body(command)
    simulator.lay(fault, call="submit", after=True)

    with pytest.raises(ProviderOutcomeUnknown) as caught:
        provider.purchase(body)

    assert TOKEN not in str(caught.value)
    assert len(simulator.purchases(command.external_id)) == 1


@pytest.mark.parametrize("fault", UNUSABLE)
def test_pc08_an_unusable_answer_to_a_read_is_an_outage(
    provider: Provider,
    simulator: Simulator,
    order: Order,
    fault: str,
    provider_name: ProviderName,
) -> None:
    command = order("delivered")
    buy(provider, command)
    simulator.lay(fault)

    quote, wallet, report = reads(provider, command)
    asked = [quote, wallet, report]
    if fault == "huge_body":
        asked.remove(quote)  # a list may be huge
    if fault == "missing_fields":
        asked.remove(wallet)  # what is left may be the balance
        if provider_name is ProviderName.SKINSNODE:
            asked.append(wallet)
            asked.remove(report)  # what is left names the order, which is therefore there
            assert report_of(provider, command).state is ReportState.UNKNOWN
    for read in asked:
        with pytest.raises(ProviderNotReached):
            read()


def test_pc08_an_answer_about_another_order_is_unusable(
    provider: Provider, simulator: Simulator, order: Order
) -> None:
    command = order("foreign_answer")
    simulator.ask("POST", "/options", buy_echoes_custom_id=True)

    with pytest.raises(ProviderOutcomeUnknown):
        buy(provider, command)
    simulator.lay("foreign_order")
    with pytest.raises(ProviderNotReached):
        provider.reports([command.external_id])


def test_pc09_429_says_how_long_to_wait(
    provider: Provider, simulator: Simulator, order: Order, facts: Facts
) -> None:
    command = order("delivered")
    simulator.lay("rate_limited")

    with pytest.raises(facts.throttled) as purchase:
        buy(provider, command)
    assert purchase.value.retry_after == timedelta(seconds=facts.pause_s)
    for read in reads(provider, command):
        with pytest.raises(ProviderNotReached) as caught:
            read()
        assert caught.value.retry_after == timedelta(seconds=facts.pause_s)


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
    assert not any("wallet" in name or "balance" in name for name in changed)


def test_pc15_without_a_secret_there_is_no_endpoint(build: BuildProvider) -> None:
    with pytest.raises(ConfigurationError, match="FULFILLMENT_ACCOUNTS__MAIN__CLIENT_SECRET"):
        build(client_secret=SecretStr(""))


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
    wrong = SecretStr("cs_wrong")
    with pytest.raises(ProviderDeniesAccount):
        buy(build(client_secret=wrong, api_key=wrong), order("delivered"))


def test_pc19_an_item_that_is_gone_is_a_definite_no(
    provider: Provider, simulator: Simulator, order: Order
) -> None:
    command = order("item_gone")

    with pytest.raises(ProviderRefused) as caught:
        buy(provider, command)

    assert caught.value.code == "item_unavailable"
    assert simulator.purchases(command.external_id) == []


def test_pc19_an_order_found_invalid_is_a_definite_no(
    provider: Provider, simulator: Simulator, order: Order, facts: Facts
) -> None:
    command = replace(order("delivered"), trade_url=f"https://example.com/?token={TOKEN}")

    with pytest.raises(ProviderRefused) as caught:
        buy(provider, command)

    assert caught.value.code == facts.bad_trade_url
    assert TOKEN not in str(caught.value)
    assert simulator.purchases(command.external_id) == []


def test_pc20_a_dripping_answer_ends_with_the_total_time(
    hasty: Provider, simulator: Simulator, order: Order
) -> None:
    command = order("delivered")
    simulator.lay("slow_drip", seconds=0.1)

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
    provider: Provider, simulator: Simulator, want: Want, provider_name: ProviderName
) -> None:
    item = simulator.item()
    dearer = item["price"] + 7
    simulator.ask("PUT", f"/items/{item['id']}", price=dearer)
    gone = Want("00000000-0000-0000-0000-000000000000")

    quotes = provider.quote([want, gone])

    simulator.ask("PUT", f"/items/{item['id']}", price=item["price"])
    if provider_name is ProviderName.SKINSNODE:
        assert quotes.listed == simulator.ask("GET", "/items?available=true")["total"]
    assert set(quotes.found) == {want}
    assert quotes.found[want].price_mills == dearer * 10
    assert quotes.found[want].market_hash_name == want.market_hash_name


def test_pc22_an_id_under_another_name_is_another_item(
    provider: Provider, want: Want, provider_name: ProviderName
) -> None:
    renamed = replace(want, market_hash_name="Another Item")
    unnamed = replace(want, market_hash_name=None)

    # Skinslink's list is searched by names alone (section 4.3): an id needs its name.
    known = {want} if provider_name is ProviderName.SKINSLINK else {want, unnamed}
    assert set(provider.quote([renamed, unnamed, want]).found) == known


@pytest.mark.parametrize("catalog_item_id", ["00000000-0000-0000-0000-000000000000", "88999999"])
def test_pc38_a_route_buys_by_the_name_where_the_id_is_unknown(
    provider: Provider, simulator: Simulator, order: Order, catalog_item_id: str
) -> None:
    command = order("delivered")
    routed = Want(catalog_item_id, command.market_hash_name, or_by_name=True)
    known = replace(routed, catalog_item_id=command.catalog_item_id)
    gone = replace(routed, market_hash_name="Another Item")

    found = provider.quote([routed, known, gone]).found
    quote = found[routed]
    buy(provider, replace(command, catalog_item_id=quote.catalog_item_id))

    assert found[known].catalog_item_id == known.catalog_item_id
    assert gone not in found
    [purchase] = simulator.purchases(command.external_id)
    assert purchase["marketHashName"] == command.market_hash_name
    assert purchase["priceMills"] == quote.price_mills


@pytest.mark.parametrize("by", ["item", "name"])
def test_pc22_an_item_may_be_meant_by_its_name(
    provider: Provider, want: Want, by: str, applies: Applies
) -> None:
    applies(*BY_NAME, why="skinsnode.md 4.2: an item is meant by its id alone")
    name = want.market_hash_name
    assert name is not None
    named = Want(name, name if by == "item" else None)

    assert provider.quote([named]).found[named].price_mills <= (
        provider.quote([want]).found[want].price_mills
    )


def test_pc22_a_purchase_by_name_takes_one_at_or_below_the_price(
    provider: Provider, simulator: Simulator, order: Order, applies: Applies
) -> None:
    applies(*BY_NAME, why="skinsnode.md 4.4: a purchase names an id")
    command = order("delivered")
    assert command.market_hash_name
    by_name = replace(command, catalog_item_id=command.market_hash_name)

    buy(provider, by_name)

    [purchase] = simulator.purchases(command.external_id)
    assert purchase["marketHashName"] == command.market_hash_name
    assert purchase["amountMills"] <= command.price_mills


@pytest.mark.parametrize("fault", ["empty_catalog", "free_catalog"])
def test_pc22_a_catalog_without_a_price_is_an_outage(
    provider: Provider,
    simulator: Simulator,
    want: Want,
    fault: str,
    provider_name: ProviderName,
) -> None:
    simulator.lay(fault)
    if fault == "empty_catalog" and provider_name is not ProviderName.SKINSNODE:
        # Of a search by name an empty answer is an answer: nothing is on sale.
        assert provider.quote([want]).found == {}
        return

    with pytest.raises(ProviderNotReached):
        provider.quote([want])


def test_pc22_an_item_listed_at_two_prices_is_not_found(
    provider: Provider, simulator: Simulator, want: Want
) -> None:
    simulator.lay("doubled_catalog")

    assert provider.quote([want]).found == {}


def test_pc22_prices_of_another_type_are_exact(
    provider: Provider, simulator: Simulator, want: Want, applies: Applies
) -> None:
    applies(
        ProviderName.SKINSNODE,
        ProviderName.SKINSBACK,
        why="skinslink.md 4.1: an id is opaque text, which this fault makes another one",
    )
    before = provider.quote([want])
    simulator.lay("wrong_types")

    assert provider.quote([want]) == before


def test_pc23_the_wallet_is_exact(provider: Provider, simulator: Simulator) -> None:
    balance = simulator.ask("GET", "/ledger")["wallet"]["balance"]

    assert provider.wallet_mills() == balance * 10


def test_pc24_amounts_that_are_not_exact_are_refused(
    provider: Provider, simulator: Simulator, order: Order, applies: Applies
) -> None:
    applies(
        ProviderName.SKINSNODE,
        why="section 3: amounts are dollars, which this fault leaves exact; see the unit tests",
    )
    command = order("delivered")
    buy(provider, command)
    simulator.lay("wrong_types")

    with pytest.raises(ProviderNotReached):
        provider.wallet_mills()
    report = report_of(provider, command)
    assert (report.state, report.charged_mills) == (ReportState.UNKNOWN, None)
    assert report.alarm


def test_pc25_what_was_charged_is_told_not_what_was_expected(
    provider: Provider, simulator: Simulator, order: Order
) -> None:
    command = order("overcharged")
    buy(provider, command)

    assert report_of(provider, command).charged_mills == command.price_mills + 10


@pytest.mark.parametrize("scenario", ["reversed", "rollback_user", "rollback_supplier"])
def test_pc26_a_reversal_follows_completion(
    provider: Provider,
    simulator: Simulator,
    order: Order,
    provider_name: ProviderName,
    scenario: str,
) -> None:
    command = order(scenario)
    buy(provider, command)

    simulator.jump(31)
    completed = report_of(provider, command)
    simulator.jump(31)
    reversed_ = report_of(provider, command)

    assert completed.state is ReportState.COMPLETED
    assert completed.refunded_at is None
    assert reversed_.state is ReportState.REVERSED
    # The others do not say whether the money came back (skinsback.md 6.3, skinslink.md 12).
    assert bool(reversed_.refunded_at) is (provider_name is ProviderName.SKINSNODE)


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
                assert API_KEY not in repr(each)
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


def test_pc30_the_stored_body_is_the_same_each_time(
    provider: Provider, order: Order, facts: Facts
) -> None:
    command = order("delivered")

    assert provider.purchase_body(command) == provider.purchase_body(command)
    mills = replace(command, price_mills=command.price_mills + 1)
    if facts.has_cents_only:
        with pytest.raises(ValueError, match="cents"):
            provider.purchase_body(mills)
    else:
        assert provider.purchase_body(mills) != provider.purchase_body(command)


@pytest.mark.parametrize(
    ("token", "code"),
    [
        ("BadToken", "invalid_trade_url"),
        ("CantTrad", "recipient_cannot_trade"),
        ("TradeBan", "recipient_cannot_trade"),
        ("PrivateI", "recipient_cannot_trade"),
    ],
)
def test_pc31_a_recipient_who_cannot_be_sent_anything_is_refused_before_money_moves(
    build: BuildProvider,
    simulator: Simulator,
    order: Order,
    applies: Applies,
    token: str,
    code: str,
) -> None:
    applies(*BY_NAME, why="skinsnode.md 12: nothing tells of a recipient before the purchase")
    command = order("delivered")
    command = replace(command, trade_url=command.trade_url.replace(TOKEN, token))

    with pytest.raises(ProviderRefused) as caught:
        buy(build(check_recipient=True), command)

    assert caught.value.code == code
    assert token not in str(caught.value)
    assert simulator.purchases(command.external_id) == []


@pytest.mark.parametrize("unknown_ids", ["omitted", "error"])
def test_pc32_many_orders_are_looked_up_at_once(
    provider: Provider, simulator: Simulator, order: Order, unknown_ids: str
) -> None:
    commands = [order("stuck") for _ in range(5)]
    for command in commands:
        buy(provider, command)
    simulator.ask("POST", "/options", unknown_ids=unknown_ids)
    names = [command.external_id for command in commands]
    before = sum(simulator.ask("GET", "/ledger")["requests"].values())
    size = provider.lookup_limit

    known = provider.reports(names)
    asked = sum(simulator.ask("GET", "/ledger")["requests"].values()) - before
    mixed = provider.reports([*names[:3], "nobody-knows-this", *names[3:]])

    assert known == mixed
    assert {name: report.external_id for name, report in known.items()} == {n: n for n in names}
    assert asked == -(-len(names) // size)


def test_pc33_a_hold_is_a_delivery_that_can_be_undone_until_it_is_settled(
    provider: Provider, simulator: Simulator, order: Order, applies: Applies
) -> None:
    applies(*BY_NAME, why="skinsnode.md 6: no date and no settlement is told")
    command = order("hold_settles")
    buy(provider, command)

    simulator.jump(31)
    held = report_of(provider, command)
    simulator.jump(61)
    settled = report_of(provider, command)

    assert (held.state, settled.state) == (ReportState.COMPLETED, ReportState.COMPLETED)
    assert held.reversible_until
    assert not held.is_settled
    assert settled.reversible_until is None
    assert settled.is_settled or settled.is_held is False


@pytest.mark.parametrize("scenario", ["duplicate_id", "duplicate_purchase"])
def test_pc34_a_used_id_is_never_a_failed_order(
    provider: Provider, simulator: Simulator, order: Order, applies: Applies, scenario: str
) -> None:
    applies(*BY_NAME, why="skinsnode.md 8: a repetition is answered with the order")
    command = order(scenario)

    with pytest.raises(ProviderOutcomeUnknown):
        buy(provider, command)

    assert report_of(provider, command).state in (ReportState.ACCEPTED, ReportState.PENDING)
    assert len(simulator.purchases(command.external_id)) == 1


def test_pc34_a_used_id_with_other_content_buys_nothing_more(
    provider: Provider, simulator: Simulator, order: Order
) -> None:
    command = order("stuck")
    buy(provider, command)
    dearer = replace(command, price_mills=command.price_mills + 10)

    with suppress(ProviderOutcomeUnknown):
        assert buy(provider, dearer).external_id == command.external_id

    assert len(simulator.purchases(command.external_id)) == 1


def test_pc35_maintenance_is_an_outage_and_leaves_no_purchase_refused(
    provider: Provider, simulator: Simulator, order: Order, provider_name: ProviderName
) -> None:
    command = order("delivered")
    simulator.lay("maintenance")
    is_said = provider_name is ProviderName.SKINSBACK  # error -9: nothing was done

    with pytest.raises(ProviderNotReached if is_said else ProviderOutcomeUnknown):
        buy(provider, command)
    for read in reads(provider, command):
        with pytest.raises(ProviderNotReached):
            read()


def test_pc36_a_refusal_for_an_unknown_reason_is_not_taken_for_a_known_one(
    provider: Provider, simulator: Simulator, order: Order, provider_name: ProviderName
) -> None:
    command = order("refused_unknown")

    if provider_name is ProviderName.SKINSBACK:  # section 5.3: unknown code, unknown outcome
        with pytest.raises(ProviderOutcomeUnknown):
            buy(provider, command)
        return
    report = buy(provider, command)
    if provider_name is ProviderName.SKINSNODE:
        simulator.jump(31)
        report = report_of(provider, command)
    else:
        assert report.alarm

    assert report.state is ReportState.FAILED
    assert report.failure_code == "blue_moon"


def test_pc37_thousandths_are_kept(
    provider: Provider, simulator: Simulator, order: Order, want: Want, applies: Applies
) -> None:
    applies(*BY_NAME, why="skinsnode.md 3: amounts are whole cents")
    item = simulator.item()
    mills = item["priceMills"] + 5
    simulator.ask("PUT", f"/items/{item['id']}", priceMills=mills)
    command = replace(order("delivered"), price_mills=mills)

    quoted = provider.quote([want]).found[want].price_mills
    report = buy(provider, command)

    simulator.ask("PUT", f"/items/{item['id']}", priceMills=item["priceMills"])
    assert (quoted, report.charged_mills) == (mills, mills)


def test_pc40_a_poll_tells_for_whom_it_was_bought_by_a_number_that_is_no_secret(
    provider: Provider, simulator: Simulator, order: Order
) -> None:
    command = order("delivered")
    buy(provider, command)
    simulator.jump(31)

    report = report_of(provider, command)

    assert report.partner == trade_url_parts(command.trade_url)[0]
    assert TOKEN not in str(report)
