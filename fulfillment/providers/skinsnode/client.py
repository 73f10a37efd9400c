"""SkinsNode as a Provider: one prepaid account, five endpoints (contracts/skinsnode.md).

The API secret is also the webhook key: it is sent in one header and never written anywhere.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

import httpx

from fulfillment.errors import (
    ProviderError,
    ProviderNotReached,
    ProviderOutcomeUnknown,
    ProviderRefused,
)
from fulfillment.providers.base import AfterUnknown, BeforeSend
from fulfillment.providers.http import LIST_LIMIT, Answer, HTTPClient, Unusable, read_json
from fulfillment.providers.reading import SPARE
from fulfillment.providers.skinsnode import webhook, wire
from schemas.enums import FailureCode
from schemas.money import MILLS_PER_CENT
from schemas.provider import OrderReport, PurchaseCommand, Quote, Quotes, Want, WebhookNotice

T = TypeVar("T")

CATALOG_S = 60.0  # tens of megabytes may come
REFUSALS = {
    # The only answers by which the contract says that nothing was created (sections 4.4 and 8).
    404: (FailureCode.ITEM_UNAVAILABLE, "the provider no longer has this catalog item (HTTP 404)"),
    422: (FailureCode.REFUSED, "the provider found the order invalid (HTTP 422)"),
}


class SkinsNode:
    """One SkinsNode account."""

    after_unknown = AfterUnknown.REPLAY
    signs_what_it_is_about = True
    pushes_offers = True
    lookup_limit = 1
    requests_per_purchase = 1

    def __init__(
        self, http: HTTPClient, client_id: str, client_secret: str, webhook_secrets: Sequence[str]
    ) -> None:
        self._http = http
        self._auth = {"x-client-id": client_id, "x-client-secret": client_secret}
        self._webhook_secrets = tuple(webhook_secrets)

    def quote(self, wants: Sequence[Want]) -> Quotes:
        """Find the wanted ids in a fresh catalog; an id under another name is another item."""
        wanted = {want.catalog_item_id for want in wants}
        names = {w.market_hash_name for w in wants if w.or_by_name and w.market_hash_name}
        items, listed, not_clear = self._read(
            "/v1/catalog",
            lambda body: wire.read_catalog(body, wanted, names),
            total_s=CATALOG_S,
            limit=LIST_LIMIT,
            accept_gzip=True,
        )
        by_name: dict[str, list[wire.CatalogItem]] = {}
        for item in sorted(items.values(), key=lambda item: item.price) if names else ():
            by_name.setdefault(item.market_hash_name, []).append(item)
        found: dict[Want, Quote] = {}
        dearer: dict[Want, list[Quote]] = {}
        unclear: dict[Want, str] = {}
        count = Counter(want.market_hash_name for want in wants)
        for want in dict.fromkeys(wants):
            name, key = want.market_hash_name, want.catalog_item_id
            offers = [items[key]] if key in items else []
            if want.or_by_name and name and [each.market_hash_name for each in offers] != [name]:
                offers = by_name.get(name, [])[: count[name] + SPARE]
                key = name
            if key in not_clear:
                unclear[want] = not_clear[key]
            elif offers and name in (None, offers[0].market_hash_name):
                found[want], *dearer[want] = map(_quote, offers)
        return Quotes(found, listed, unclear, is_whole=True, dearer=dearer)

    def wallet_mills(self) -> int:
        """Read the prepaid balance; it may be 30 s old."""
        return self._read("/v1/wallet", wire.read_wallet)

    def purchase_body(self, command: PurchaseCommand) -> bytes:
        """Write the body. Raises ValueError for a price that is no whole number of cents."""
        return wire.write_purchase(command)

    def purchase(self, body: bytes, before_send: BeforeSend | None = None) -> OrderReport:
        """Post the stored bytes; a replay answers with the order that is there already."""
        external_id = read_json(body)["externalId"]
        answer = self._http.request(
            "POST",
            "/v1/orders",
            headers=self._auth,
            content=body,
            is_purchase=True,
            before_send=before_send,
        )
        if answer.status in REFUSALS:
            raise ProviderRefused(*REFUSALS[answer.status])
        if 400 <= answer.status < 500 and answer.status != httpx.codes.REQUEST_TIMEOUT:
            message = f"POST /v1/orders: HTTP {answer.status}, which the contract does not know"
            raise ProviderRefused(FailureCode.REFUSED, message, is_documented=False)
        try:
            return _order(read_json(_success(answer)), external_id)
        except Unusable as error:
            message = f"POST /v1/orders: {error}"
            raise ProviderOutcomeUnknown(message, is_outage=error.is_outage) from error

    def reports(self, external_ids: Sequence[str]) -> dict[str, OrderReport]:
        """Ask for each order by itself: there is no bulk lookup. A state may be 30 s old."""
        reports = {}
        for external_id in external_ids:
            if external_id in ("", ".", ".."):
                continue  # they would reach another endpoint; intake lets none in
            path = f"/v1/orders/{quote(external_id, safe='')}"
            answer = self._http.request("GET", path, headers=self._auth)
            if answer.status != 404:
                reports[external_id] = _report(answer, external_id, f"GET {path}")
        return reports

    def read_webhook(self, headers: Mapping[str, str], body: bytes) -> WebhookNotice:
        """Verify and read one delivery; see `webhook.read`."""
        return webhook.read(headers, body, self._webhook_secrets)

    def healthy(self) -> bool:
        """Ask the health route, without credentials."""
        try:
            answer = self._http.request("GET", "/v1/health", headers={})
            document = read_json(_success(answer))
        except (ProviderError, Unusable):
            return False
        return isinstance(document, dict) and document.get("status") == "ok"

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _read(self, path: str, parse: Callable[[bytes], T], **options: Any) -> T:
        answer = self._http.request("GET", path, headers=self._auth, **options)
        try:
            return parse(_success(answer))
        except Unusable as error:
            raise ProviderNotReached(f"GET {path}: {error}") from error


def _quote(item: wire.CatalogItem) -> Quote:
    return Quote(item.id, item.market_hash_name, item.price * MILLS_PER_CENT)


def _order(document: Any, external_id: str) -> OrderReport:
    """Read what must be about the order that was asked for. Raises Unusable."""
    report = wire.read_order(document)
    if report.external_id != external_id:
        raise Unusable("expected this order, found another externalId")
    return report


def _report(answer: Answer, external_id: str, what: str) -> OrderReport:
    """Read an order's state; of an order that cannot be read tell that it is there."""
    try:
        document = read_json(_success(answer))
    except Unusable as error:
        raise ProviderNotReached(f"{what}: {error}", is_outage=error.is_outage) from error
    try:
        return _order(document, external_id)
    except Unusable as error:
        told = wire.unreadable(document, external_id, str(error))
        if told is None:
            raise ProviderNotReached(f"{what}: {error}") from error
        return told


def _success(answer: Answer) -> bytes:
    if answer.status >= 400:
        raise Unusable(f"HTTP {answer.status}")
    return answer.body
