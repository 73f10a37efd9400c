"""SkinsBack as a Provider: one endpoint, errors inside HTTP 200 (contracts/skinsback.md).

The client secret is also the webhook key: it is sent in one header, or only signs, and is never
written anywhere.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from functools import partial
from itertools import count
from typing import Any

from msgspec import structs

from fulfillment.errors import (
    AskForFewer,
    OverBudget,
    ProviderDeniesAccount,
    ProviderError,
    ProviderNotReached,
    ProviderOutcomeUnknown,
    ProviderRefused,
)
from fulfillment.log import get_logger
from fulfillment.providers.base import AfterUnknown, BeforeSend
from fulfillment.providers.http import LIST_LIMIT, HTTPClient, Unusable, read_json
from fulfillment.providers.reading import STEAM_ID_BASE, Listed, bad_trade_url, recipient
from fulfillment.providers.skinsback import webhook, wire
from fulfillment.providers.skinsback.search import NameSearch, Spoilt
from fulfillment.providers.skinsback.wire import Meaning, Problem, Purchase, Refusal, Table
from schemas.provider import OrderReport, PurchaseCommand, Quotes, Want, WebhookNotice

log = get_logger(__name__)

LIST_S = 60.0  # the price list may be tens of megabytes
LIMIT_PAUSE = timedelta(seconds=60)  # error -7 names no length; the limit is by the minute
#: How many orders one lookup asks for; the documentation names no maximum.
LOOKUP_LIMIT = 100
_SEARCH = "market_search"


class SkinsBack:
    """One SkinsBack project."""

    after_unknown = AfterUnknown.LOOKUP_THEN_REPLAY
    signs_what_it_is_about = True
    pushes_offers = True

    def __init__(
        self,
        http: HTTPClient,
        client_id: str,
        client_secret: str,
        webhook_secrets: Sequence[str],
        *,
        is_signing: bool = False,
        is_checking_recipient: bool = False,
    ) -> None:
        self._http = http
        self._client_id = client_id
        self._client_secret = client_secret
        self._webhook_secrets = tuple(webhook_secrets)
        self._is_signing = is_signing
        self._is_checking_recipient = is_checking_recipient
        self.requests_per_purchase = 2 if is_checking_recipient else 1
        self.lookup_limit = LOOKUP_LIMIT
        #: Above it a lookup was not answered to its end; it grows again by one with each that is.
        self._most_lookups = LOOKUP_LIMIT
        self._turns = count()
        self._names = NameSearch()

    def quote(self, wants: Sequence[Want]) -> Quotes:
        """Search the wanted names; where an id comes without a name, read the whole list."""
        if all(w.market_hash_name or not wire.skin_id_of(w.catalog_item_id) for w in wants):
            return self._search(wants)
        method, listed = "market_pricelist", Listed()
        problem = self._list(method, wants, listed, full=1)
        if problem is not None:
            raise _error(method, problem, wire.STANDARD, ProviderNotReached)
        return replace(wire.quotes(wants, listed), is_whole=True)

    def _search(self, wants: Sequence[Want]) -> Quotes:
        """Search the wanted names, as far as the rate budget goes."""
        listed = Listed()

        def ask(names: Sequence[str]) -> None:
            problem = self._list(_SEARCH, wants, listed, names=names)
            if problem is not None:
                raise _error(_SEARCH, problem, wire.STANDARD, Spoilt)

        # A shorter name would be refused, and the others with it.
        named = {name for want in wants if len(name := wire.name_of(want)) >= wire.SHORTEST_NAME}
        found = self._names.run(named, ask)
        unasked = frozenset(want for want in wants if wire.name_of(want) in found.unasked)
        quotes = wire.quotes([want for want in wants if want not in unasked], listed)
        refused = {want: found.refused.get(wire.name_of(want)) for want in wants}
        return replace(
            quotes,
            unclear={**quotes.unclear, **{want: why for want, why in refused.items() if why}},
            unasked=unasked,
            searched={name: name in listed.names for name in found.answered},
        )

    def _list(
        self, method: str, wants: Sequence[Want], listed: Listed, **fields: Any
    ) -> Problem | None:
        """Add what is listed of the wanted skins; or give the problem."""
        body = wire.write_request(method, game=wire.GAME, **fields)
        with _spoilt(method):
            answer = self._send(body, method, total_s=LIST_S, limit=LIST_LIMIT, accept_gzip=True)
            return wire.read_listing(answer, wants, listed)

    def wallet_mills(self) -> int:
        """Read the project's balance."""
        fields = self._read("balance")
        try:
            return wire.read_wallet(fields)
        except Unusable as error:
            raise ProviderNotReached(f"balance: {error}") from error

    def purchase_body(self, command: PurchaseCommand) -> bytes:
        """Write the body, without credentials. Raises ValueError for a price that is none."""
        return wire.write_purchase(command)

    def purchase(self, body: bytes, before_send: BeforeSend | None = None) -> OrderReport:
        """Post the stored bytes; a used custom_id is an unknown outcome, for a lookup to settle."""
        asked = read_json(body)
        if "partner" not in asked:
            raise bad_trade_url("expected a Steam trade URL with partner and token")
        if self._is_checking_recipient:
            self._check(int(asked["partner"]), asked["token"])
            if before_send is not None:
                before_send()  # the check may have lasted
        method = "market_buy"
        answer = self._send(body, method, is_purchase=True, before_send=before_send)
        try:
            fields = wire.read_answer(answer)
            if isinstance(fields, Problem):
                raise _error(method, fields, wire.PURCHASE, ProviderOutcomeUnknown)
            bought = wire.read_purchase(fields)
            _check_is_asked(bought, asked)
        except Unusable as error:
            message = f"{method}: {error}"
            raise ProviderOutcomeUnknown(message, is_outage=error.is_outage) from error
        return _about(bought.report, asked["custom_id"])

    def check_recipient(self, trade_url: str) -> None:
        """Ask whether this recipient can be sent anything. Raises ProviderRefused where not."""
        to = recipient(trade_url)
        if not to:
            raise bad_trade_url("expected a Steam trade URL with partner and token")
        self._check(to["partner"], to["token"])

    def _check(self, partner: int, token: str) -> None:
        method = "user_inventory"
        steam_id = str(STEAM_ID_BASE + partner)
        body = wire.write_request(method, game=wire.GAME, steam_id=steam_id, trade_token=token)
        try:
            # Told apart as for a purchase: turned away at the door, or no usable answer.
            sent = self._send(body, method, is_purchase=True, is_throttled_unacted=True)
            answer = wire.read_answer(sent)
        except (ProviderOutcomeUnknown, Unusable) as error:
            # The check's own outage is no statement either.
            log.warning("recipient.not_checked", reason=str(error))
            return
        if isinstance(answer, dict):
            return
        no = _error(method, answer, wire.RECIPIENT, ProviderNotReached)
        # Any other word is no statement about the recipient, such as an inventory that Steam does
        # not show at the moment: the purchase itself will tell.
        if answer.meaning(wire.RECIPIENT) is not None:
            raise no

    def reports(self, external_ids: Sequence[str]) -> dict[str, OrderReport]:
        """Ask for many orders at once; where one of them spoils the answer, for fewer.

        One that spoils it alone is left out: whoever asks for many asks for such a one by itself.
        """
        found: dict[str, OrderReport] = {}
        waiting, is_up = external_ids, False
        while waiting:
            part = waiting[: self.lookup_limit]
            is_spoilt, reports = False, None
            try:
                reports = self._look_up(part)
            except Spoilt:
                if len(external_ids) == 1:
                    raise
                is_spoilt = True
            except ProviderNotReached as error:
                if len(part) > 1 and error.is_cut:
                    # It may be too slow for so many: waiting for parts of them now takes too long.
                    self._check_is_quick(part)
                    self._most_lookups = self.lookup_limit = len(part) // 2
                    raise AskForFewer from error
                raise
            if reports is None and len(part) > 1:
                # Kept for the next call: the rate budget may end this one here.
                self.lookup_limit = len(part) // 2
            else:
                found |= reports or {}
                waiting = waiting[len(part) :]
                if len(part) >= self._most_lookups:
                    self._most_lookups = min(self._most_lookups + 1, LOOKUP_LIMIT)
                self.lookup_limit = min(self.lookup_limit * 2, self._most_lookups)
            if is_spoilt and not is_up:
                self._check_is_up(external_ids)
            # Of one alone nobody knows whether it is the order or the provider.
            is_up = not is_spoilt or len(part) > 1
        return found

    def _check_is_quick(self, external_ids: Sequence[str]) -> None:
        """Ask for one order alone, if the budget allows. Raises ProviderNotReached if it fails."""
        with suppress(OverBudget):
            self._look_up([external_ids[next(self._turns) % len(external_ids)]])

    def _check_is_up(self, external_ids: Sequence[str]) -> None:
        """Ask for two orders alone, each time for others. Raises ProviderNotReached if both fail.

        A provider that is down is not asked for all of them.
        """
        first = next(self._turns)
        for place in (first, first + len(external_ids) // 2):
            try:
                self._look_up([external_ids[place % len(external_ids)]])
                return
            except Spoilt as error:
                failure = error
        self.lookup_limit = self._most_lookups
        raise failure

    def _look_up(self, external_ids: Sequence[str]) -> dict[str, OrderReport] | None:
        """Ask once; None where the answer does not say which order it is about, or not known.

        Raises Spoilt for an answer that fewer orders may do without.
        """
        method = "market_getinfo"
        body = wire.write_request(method, custom_ids=list(external_ids))
        with _spoilt(method):
            answer = wire.read_answer(self._send(body, method))
            if not isinstance(answer, Problem):
                return _by_custom_id(answer.get("items"), external_ids)
        if answer.is_about(*wire.NOT_FOUND):
            return None
        raise _error(method, answer, wire.STANDARD, Spoilt)

    def read_webhook(self, headers: Mapping[str, str], body: bytes) -> WebhookNotice:
        """Verify and read one delivery; see `webhook.read`."""
        return webhook.read(headers, body, self._webhook_secrets)

    def healthy(self) -> bool:
        """Ask for the market's status."""
        try:
            return wire.is_available(self._read("status"))
        except ProviderError:
            return False

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _read(self, method: str) -> dict[str, Any]:
        answer = self._answer(method, self._send(wire.write_request(method), method))
        if isinstance(answer, Problem):
            raise _error(method, answer, wire.STANDARD, ProviderNotReached)
        return answer

    def _answer(self, method: str, body: bytes) -> dict[str, Any] | Problem:
        try:
            return wire.read_answer(body)
        except Unusable as error:
            raise ProviderNotReached(f"{method}: {error}") from error

    def _send(self, body: bytes, method: str, **options: Any) -> bytes:
        if self._is_signing:
            headers = {}
            body = wire.signed(body, self._client_id, self._client_secret)
        else:
            headers = {"x-client-id": self._client_id, "x-client-secret": self._client_secret}
        # The HTTP code of errors is not documented: what the body says is what counts.
        return self._http.request(
            "POST",
            "",
            headers=headers,
            content=body,
            name=method,
            is_answer=partial(wire.is_answer, method),
            **options,
        ).body


@contextmanager
def _spoilt(method: str) -> Iterator[None]:
    """Tell an answer that less might have spoilt less from one that is about the account."""
    try:
        yield
    except Unusable as error:
        raise Spoilt(f"{method}: {error}", is_outage=error.is_outage) from error
    except ProviderNotReached as error:
        if error.is_outage and error.retry_after is None:
            raise Spoilt(str(error), is_outage=True) from error
        raise


def _error(
    method: str,
    problem: Problem,
    table: Table,
    doubt: type[ProviderError],
) -> ProviderError:
    what = f"{method}: {problem}"
    match problem.meaning(table):
        case Meaning.DENIED:
            return ProviderDeniesAccount(what)
        case Meaning.AWAY:
            pause = LIMIT_PAUSE if problem.is_about("request_limit_reached", -7) else None
            return ProviderNotReached(what, retry_after=pause)
        case Refusal(code, text):
            return ProviderRefused(code, text)
        case _:
            return doubt(what)


def _check_is_asked(bought: Purchase, asked: Mapping[str, Any]) -> None:
    """Refuse an answer about another order or another item."""
    if bought.custom_id not in (None, asked["custom_id"]):
        raise Unusable("expected this order, found another custom_id")
    told = bought.report
    if (told.item_id != str(asked["id"])) if "id" in asked else (told.item_name != asked["name"]):
        raise Unusable("expected the item that was asked for, found another")
    if bought.report.provider_reference is None:
        raise Unusable("expected a buy_id")


def _about(report: OrderReport, external_id: str) -> OrderReport:
    is_named = report.external_id == external_id
    return report if is_named else structs.replace(report, external_id=external_id)


def _by_custom_id(items: Any, asked: Sequence[str]) -> dict[str, OrderReport] | None:
    """Give the reports by order; None where a row does not say whose it is. Raises Unusable.

    A row that cannot be read is told of as such, one that was not asked for is left out; neither
    spoils another.
    """
    if isinstance(items, dict) and items:
        items = list(items.values())  # as PHP writes a list that has gaps
    if not isinstance(items, list):
        raise Unusable("expected a list of purchases")
    found: dict[str, OrderReport] = {}
    wanted = frozenset(asked)
    for row in items:
        custom_id = wire.custom_id_of(row)
        if isinstance(row, dict) and row.get("custom_id") is None:
            if len(asked) > 1:
                return None  # asked for one by one, each is known by its being the only answer
            if len(items) == 1:
                custom_id = asked[0]
        if custom_id not in wanted:
            log.warning("lookup.not_asked_for", custom_id=custom_id)
            continue
        assert custom_id is not None
        report = _report(row, custom_id)
        before = found.setdefault(custom_id, report)
        if before.provider_reference != report.provider_reference:
            found[custom_id] = wire.unreadable(row, custom_id, "one custom_id has two purchases")
    if items and not found:
        # Not taken for "not known", which may free an order to be bought elsewhere.
        raise Unusable("expected orders that were asked for, found only others")
    return found


def _report(row: Any, custom_id: str) -> OrderReport:
    try:
        return _about(wire.read_purchase(row).report, custom_id)
    except Unusable as error:
        return wire.unreadable(row, custom_id, str(error))
