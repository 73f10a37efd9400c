"""Skinslink as a Provider: one prepaid merchant account (contracts/skinslink.md).

Nothing promises that a repeated `merchant_tx_id` buys once, so nothing here repeats a purchase.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any, NoReturn
from urllib.parse import urlencode

from fulfillment.errors import (
    OverBudget,
    ProviderError,
    ProviderNotReached,
    ProviderOutcomeUnknown,
    ProviderRefused,
)
from fulfillment.providers.base import AfterUnknown, BeforeSend
from fulfillment.providers.http import LIST_LIMIT, Answer, HTTPClient, Unusable, read_json
from fulfillment.providers.reading import Listed, bad_trade_url
from fulfillment.providers.skinslink import webhook, wire
from fulfillment.providers.skinslink.wire import Problem
from schemas.enums import FailureCode
from schemas.provider import (
    OrderReport,
    PurchaseCommand,
    Quotes,
    ReportState,
    Want,
    WebhookNotice,
)

PURCHASE_S = 35.0  # the call may block for 30 s
LIST_S = 60.0
#: Longer addresses are cut off by some servers and proxies; each name is a part of the address.
QUERY_LENGTH = 3_000
MOST_NAMES = 1_000


class Skinslink:
    """One Skinslink merchant account."""

    after_unknown = AfterUnknown.LOOKUP_ONLY
    signs_what_it_is_about = False
    pushes_offers = False  # `active` is not among the statuses that fire (section 9)
    lookup_limit = 1
    requests_per_purchase = 1

    def __init__(
        self, http: HTTPClient, api_key: str, webhook_secrets: Sequence[str], *, read_s: float
    ) -> None:
        self._http = http
        self._auth = {"x-api-key": api_key}
        self._webhook_secrets = tuple(webhook_secrets)
        self._read_s = read_s
        self._most_names = MOST_NAMES  # in one search

    def quote(self, wants: Sequence[Want]) -> Quotes:
        """Search the wanted names, as far as the rate budget goes: the whole list is 200 MB.

        One invalid name spoils a search: then fewer are searched together, until it is alone.
        """
        names = list(dict.fromkeys(wire.name_of(want) for want in wants))
        waiting, listed, refused = names, Listed(), 0
        searched: list[str] = []
        while waiting:
            group = _head(waiting, self._most_names)
            try:
                is_taken = self._search(group, listed)
            except OverBudget:
                if waiting is names:
                    raise
                break
            if is_taken or len(group) == 1:
                waiting = waiting[len(group) :]
                refused += not is_taken
                searched += group if is_taken else []
                self._most_names = min(self._most_names * 2, MOST_NAMES)
            else:
                self._most_names = len(group) // 2
        if names and refused == len(names):
            # Not one name that it takes: the search has changed, the items are not gone.
            raise ProviderNotReached("GET /merchant/purchase/search: every name is refused")
        unasked = frozenset(want for want in wants if wire.name_of(want) in waiting)
        asked = [want for want in wants if want not in unasked]
        is_listed = {name: name in listed.names for name in searched}
        return replace(wire.quotes(asked, listed), unasked=unasked, searched=is_listed)

    def _search(self, names: Sequence[str], listed: Listed) -> bool:
        """Search and add what is found; False where the provider finds a name invalid."""
        path = "/merchant/purchase/search"
        query = urlencode([("game", wire.GAME), *(("names", name) for name in names)])
        answer = self._get(f"{path}?{query}", total_s=LIST_S, limit=LIST_LIMIT, accept_gzip=True)
        try:
            if answer.status == 400:
                problem = wire.read_envelope(answer.body)
                if isinstance(problem, Problem) and problem.message == wire.VALIDATION_ERROR:
                    return False
            wire.read_listing(_success(answer), names, listed)
        except Unusable as error:
            raise ProviderNotReached(f"GET {path}: {error}") from error
        return True

    def wallet_mills(self) -> int:
        """Read what is spendable; money in open purchases is not in it."""
        path = "/merchant/balance"
        answer = self._get(path, total_s=self._read_s)
        try:
            data = wire.read_envelope(_success(answer))
            if not isinstance(data, dict):
                raise Unusable("expected a balance")
            return wire.read_wallet(data)
        except Unusable as error:
            raise ProviderNotReached(f"GET {path}: {error}") from error

    def purchase_body(self, command: PurchaseCommand) -> bytes:
        """Write the body. Raises ValueError for a price that is none."""
        return wire.write_purchase(command)

    def purchase(self, body: bytes, before_send: BeforeSend | None = None) -> OrderReport:
        """Post the stored bytes, once."""
        asked = read_json(body)
        if "partner" not in asked:
            raise bad_trade_url("expected a Steam trade URL with partner and token")
        if not wire.TOKEN.fullmatch(asked["token"]):
            raise bad_trade_url("Skinslink needs a token of exactly 8 characters")
        path = "/merchant/purchase"
        answer = self._http.request(
            "POST",
            path,
            headers=self._auth,
            content=body,
            is_purchase=True,
            # Throttled means turned away at the door; as an unknown outcome, which must never be
            # posted again, each such order would end with a person.
            is_throttled_unacted=True,
            before_send=before_send,
        )
        try:
            data = wire.read_envelope(answer.body)
            if answer.status == 400 and isinstance(data, Problem):
                _refuse(data)
            if answer.status >= 400 or not isinstance(data, dict):
                raise Unusable(f"no purchase in the answer (HTTP {answer.status})")
            return _bought(data, asked)
        except Unusable as error:
            message = f"POST {path}: {error}"
            raise ProviderOutcomeUnknown(message, is_outage=error.is_outage) from error

    def reports(self, external_ids: Sequence[str]) -> dict[str, OrderReport]:
        """Ask for each order by itself: there is no bulk lookup."""
        reports = {}
        for external_id in external_ids:
            path = "/merchant/purchase/status"
            query = urlencode({"merchant_tx_id": external_id})
            answer = self._get(f"{path}?{query}", total_s=self._read_s)
            if answer.status == 404:
                continue
            try:
                data = wire.read_envelope(_success(answer))
                if data is not None:
                    reports[external_id] = _report(data, external_id)
            except Unusable as error:
                raise ProviderNotReached(f"GET {path}: {error}") from error
        return reports

    def read_webhook(self, headers: Mapping[str, str], body: bytes) -> WebhookNotice:
        """Verify and read one delivery; see `webhook.read`."""
        del headers
        return webhook.read(body, self._webhook_secrets)

    def healthy(self) -> bool:
        """Ask for the balance: there is no health route."""
        try:
            self.wallet_mills()
        except ProviderError:
            return False
        return True

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _get(self, path: str, **options: Any) -> Answer:
        return self._http.request("GET", path, headers=self._auth, **options)


def _head(names: Sequence[str], most: int) -> list[str]:
    """Give the first names, as many as one search's address has room for."""
    lengths = accumulate(len(urlencode({"names": name})) + 1 for name in names)
    fitting = sum(length <= QUERY_LENGTH for length in lengths)
    return list(names[: max(min(fitting, most), 1)])


def _success(answer: Answer) -> bytes:
    if answer.status >= 400:
        raise Unusable(f"HTTP {answer.status}")
    return answer.body


def _refuse(problem: Problem) -> NoReturn:
    """Raise the definite no of a documented HTTP 400. Raises Unusable for another message."""
    if problem.message not in wire.REFUSALS:
        raise Unusable("HTTP 400 with a message that is not documented")
    known = next((code for code in problem.codes if code in wire.VALIDATION), None)
    code = wire.VALIDATION[known] if known else FailureCode.REFUSED
    text = f"{problem.message}: {', '.join(problem.codes)}" if problem.codes else problem.message
    raise ProviderRefused(code, f"the provider refused it: {text}")


def _bought(data: Mapping[str, Any], asked: Mapping[str, Any]) -> OrderReport:
    """Read what must be about the purchase that was asked for; an instant failure is a no."""
    report = wire.read_purchase(data, asked["merchant_tx_id"])
    if report.state is ReportState.UNKNOWN and wire.DUPLICATE in report.raw_status:
        raise Unusable("this merchant_tx_id was used before")
    item = data.get("item")
    name, asset_id = asked.get("name"), asked.get("asset_id")
    if isinstance(item, dict) and report.state is not ReportState.FAILED:
        is_item = str(item.get("id")) == asset_id if asset_id else item.get("name") == name
        if not is_item:
            raise Unusable("expected the item that was asked for, found another")
    if report.provider_reference is None:
        raise Unusable("expected the purchase's id")
    if report.state is ReportState.FAILED and report.failure_code and not report.alarm:
        raise ProviderRefused(report.failure_code, f"the provider says {report.failure_message}")
    # A failure of an unknown reason is taken as one after acceptance: its money comes free later.
    return report


def _report(data: dict[str, Any] | Problem, external_id: str) -> OrderReport:
    if isinstance(data, Problem):
        raise Unusable("expected a purchase, found an error")
    try:
        return wire.read_purchase(data, external_id)
    except Unusable as error:
        told = wire.unreadable(data, external_id, str(error))
        if told is None:
            raise
        return told
