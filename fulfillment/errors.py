"""The error tree. Messages say what was expected and what was found, and never hold a secret.

FulfillmentError
+-- ConfigurationError            a setting is missing or wrong; names the setting
|   +-- KeyMissing                what is stored was sealed with a key that is not configured
+-- InvalidInput                  a field of the outside's input is wrong; names the field
|   +-- InvalidBody               what arrived is no JSON object at all
+-- CheckoutConflict              the id exists with other content
+-- OrderNotFound
+-- NotAllowedNow                 the operator's command does not fit the order's status
+-- IllegalTransition             a bug: the edge is not in the table
+-- ServerUnreachable             database or broker is away, full, read-only or too slow
|   +-- TransactionConflict       undone because of another transaction; the same again is safe
|   +-- WrongClock                this machine's clock is not the database's
|   +-- RightMissing              the database's user may not do what we need
+-- SchemaOutdated                the database was not migrated
+-- SchemaUnknown                 no migration of ours made the database's schema
+-- SchemaIncomplete              the schema lacks what its own revision has
+-- NotPutAside                   the queue of dead letters did not take what cannot be taken in
+-- NotPrinted                    standard output takes no more
+-- WebhookRejected               the delivery's signature is wrong
|   +-- WebhookUnreadable         well signed, but it names no order
+-- ProviderError
    +-- ProviderRefused           a definite no: the provider created nothing
    +-- ProviderNotReached        nothing was sent, or a read failed: trying again is harmless
    |   +-- OverBudget            the account's own rate budget is used up; no fault of anybody's
    +-- NotLetGo                  nothing was sent: whoever asked may not ask any more
    +-- ProviderOutcomeUnknown    bytes may have left and no clear answer came back
    +-- ProviderDeniesAccount     401/403: about the account, never about the order
"""

from datetime import timedelta


class FulfillmentError(Exception):
    """Anything this software says no with."""


class ConfigurationError(FulfillmentError):
    """A setting is missing or wrong."""

    def __init__(self, setting: str, expected: str) -> None:
        super().__init__(f"{setting}: {expected}")
        self.setting = setting


class KeyMissing(ConfigurationError):
    """The keys that are configured lack the one that something stored was made with.

    That it is known, or what it says, cannot be told before the key is back.
    """

    def __init__(self, setting: str, key_id: str) -> None:
        super().__init__(setting, f"lacks the key {key_id!r}")


class InvalidInput(FulfillmentError):
    """One field of an outside input is wrong."""

    code = "invalid"

    def __init__(self, field: str | None, message: str) -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.field = field
        self.message = message


class InvalidBody(InvalidInput):
    """The input cannot be read as JSON of the expected form."""

    code = "invalid_json"

    def __init__(self, message: str) -> None:
        super().__init__(None, message)


class CheckoutConflict(FulfillmentError):
    """The same externalId came again with other content."""

    def __init__(self, external_id: str) -> None:
        super().__init__(f"externalId {external_id} exists already with other content")
        self.external_id = external_id


class OrderNotFound(FulfillmentError):
    """No order has this externalId."""

    def __init__(self, external_id: str) -> None:
        super().__init__(f"no order {external_id}")


class NotAllowedNow(FulfillmentError):
    """The order's status does not permit what the operator asked."""


class IllegalTransition(FulfillmentError):
    """Code asked for a status change that the table does not have."""

    def __init__(self, source: str, target: str) -> None:
        super().__init__(f"no transition {source} -> {target}")


class ServerUnreachable(FulfillmentError):
    """A server that we depend on does not do its work now; it may pass."""

    def __init__(self, what: str, setting: str, detail: str) -> None:
        super().__init__(f"{what} cannot be used ({setting}): {detail}")


class TransactionConflict(ServerUnreachable):
    """The database undid a transaction in favour of another one; nothing of it was kept.

    Whoever waits for a database that is away does right here too: the same again is safe.
    """


class WrongClock(ServerUnreachable):
    """This machine's clock is not the database's, by `ahead`: what goes by it would be wrong."""

    def __init__(self, ahead: timedelta) -> None:
        seconds = round(ahead.total_seconds(), 1)
        FulfillmentError.__init__(
            self,
            f"this machine's clock is {abs(seconds):g} s {'ahead of' if seconds > 0 else 'behind'} "
            "the database's: nothing is done before one of them is set right",
        )


class RightMissing(ServerUnreachable):
    """The database's user may not do what we need; it passes once somebody grants it."""

    def __init__(self, told: str) -> None:
        FulfillmentError.__init__(self, f"the database's user lacks a right: {told}")


class SchemaOutdated(FulfillmentError):
    """The database lacks tables or columns that this code needs."""

    def __init__(self) -> None:
        super().__init__("the database's schema is missing or old; run `fulfillment migrate`")


class SchemaUnknown(FulfillmentError):
    """The database's revision is none of this version's, nor one of a version after it."""

    def __init__(self, revision: str, newest: str) -> None:
        super().__init__(
            f"the database's schema has the revision {revision!r}, which no version has made that "
            f"this one follows (its own is {newest}); nothing was changed"
        )


class SchemaIncomplete(FulfillmentError):
    """The database's revision looks like ours, and what our migrations make is not there."""

    def __init__(self, lacking: str) -> None:
        super().__init__(
            "the database's schema has a revision that looks like ours, and lacks what belongs to "
            f"it ({lacking}): it is another application's, or a part of it was lost"
        )


class NotPutAside(FulfillmentError):
    """What cannot be taken in has nowhere to go, and stays where it came from."""

    def __init__(self, why: str) -> None:
        super().__init__(f"the queue of dead letters did not take it ({why}); it is put back")


class NotPrinted(FulfillmentError):
    """What a command had to say could not be written; what it did is done."""

    def __init__(self, why: str) -> None:
        super().__init__(f"standard output takes no more: {why}")


class WebhookRejected(FulfillmentError):
    """A delivery that cannot be trusted or read; nothing of it is used."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class WebhookUnreadable(WebhookRejected):
    """A delivery with a good signature that names no order."""


class ProviderError(FulfillmentError):
    """Anything short of a definite yes from a provider.

    `retry_after` is the provider's own wish for a pause, if it gave one; `is_outage` says that the
    answer (a 5xx, a page that is no JSON) tells of the provider's state, not of one order; `is_cut`
    that no answer came, or not its end.
    """

    def __init__(
        self,
        message: str,
        *,
        retry_after: timedelta | None = None,
        is_outage: bool = False,
        is_cut: bool = False,
    ) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.is_outage = is_outage
        self.is_cut = is_cut


class ProviderRefused(ProviderError):
    """A no to one purchase: nothing was created, its money is free.

    A no that the provider's contract does not know (`is_documented` false) becomes definite only
    when a lookup past the provider's cache time knows nothing of the order. `is_ours` says that we
    refused, before anything was sent.
    """

    def __init__(
        self, code: str, message: str, *, is_documented: bool = True, is_ours: bool = False
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.is_documented = is_documented
        self.is_ours = is_ours


class ProviderNotReached(ProviderError):
    """Nothing was sent, or what was asked was only a read."""


class OverBudget(ProviderNotReached):
    """The account's rate budget allows no request now; nothing was sent."""

    def __init__(self) -> None:
        super().__init__("the account's rate budget is used up; nothing was sent")


class AskForFewer(OverBudget):
    """The provider did not answer for so many at once, but does answer: ask for fewer, soon."""


class NotLetGo(ProviderError):
    """The request was stopped before its first byte: its claim or its time was over by then, or
    its account stopped."""


class ProviderOutcomeUnknown(ProviderError):
    """The provider may have acted; only its own answer can say."""


class ProviderDeniesAccount(ProviderError):
    """The provider does not accept our credentials or address; orders and holds stay."""
