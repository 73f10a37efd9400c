"""The interface every provider adapter fills. An adapter knows HTTP and words, never orders."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from schemas.provider import OrderReport, PurchaseCommand, Quotes, Want, WebhookNotice


class BeforeSend(Protocol):
    """Called before a purchase's first byte leaves; raises NotLetGo where it must not.

    It may be called more than once: after whatever took its time, and last right before that byte.
    """

    def __call__(self, *, is_at_once: bool = False) -> None:
        """Look; `is_at_once` says that nothing was waited for since the call before, or since the
        purchase was asked for."""
        ...


class AfterUnknown(StrEnum):
    """What may be done about a purchase whose outcome is unknown (DESIGN section 3)."""

    REPLAY = "replay"  # the same bytes again, at once: the provider documents idempotency
    LOOKUP_THEN_REPLAY = "lookup_then_replay"  # again after two empty lookups over a minute apart
    LOOKUP_ONLY = "lookup_only"  # never again by itself: lookups for 10 minutes, then a person


class Provider(Protocol):
    """One account at one provider. Safe to call from several threads.

    Every method may raise ProviderNotReached (harmless to try again), of which OverBudget is one,
    or ProviderDeniesAccount.
    """

    after_unknown: AfterUnknown
    #: Whether nobody else can write a webhook about an order of his choice.
    signs_what_it_is_about: bool
    #: Whether a webhook tells that an order's Steam offer is out; where none does, polls must.
    pushes_offers: bool
    #: How many orders one `reports` request can ask for; less while an unknown one spoils answers.
    lookup_limit: int
    #: How many requests one `purchase` sends at the most.
    requests_per_purchase: int

    def quote(self, wants: Sequence[Want]) -> Quotes:
        """Ask for the present prices of these items; what the rate budget cuts off is `unasked`."""
        ...

    def wallet_mills(self) -> int:
        """Ask for the spendable balance."""
        ...

    def purchase_body(self, command: PurchaseCommand) -> bytes:
        """Write the request body that is stored first and then sent, byte for byte."""
        ...

    def purchase(self, body: bytes, before_send: BeforeSend | None = None) -> OrderReport:
        """Send a stored body, after whatever has to be asked first.

        Raises ProviderRefused (definite no), ProviderOutcomeUnknown, and ProviderNotReached or
        what `before_send` raises only where not one byte of the request can have left.
        """
        ...

    def reports(self, external_ids: Sequence[str]) -> dict[str, OrderReport]:
        """Ask for at most `lookup_limit` orders; an order the provider does not know is absent."""
        ...

    def read_webhook(self, headers: Mapping[str, str], body: bytes) -> WebhookNotice:
        """Verify the raw bytes, then read them. Raises WebhookRejected."""
        ...

    def healthy(self) -> bool:
        """Say whether the provider answers its health check."""
        ...

    def close(self) -> None:
        """Close the connections."""
        ...


def is_fresh(signed_at: datetime | None, now: datetime, tolerance_s: int) -> bool:
    """Say whether a signed timestamp is near enough to now for its body to be applied."""
    return signed_at is not None and abs((now - signed_at).total_seconds()) <= tolerance_s
