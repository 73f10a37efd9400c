"""The closed vocabularies of this software; what providers may add to stays a plain string."""

from enum import StrEnum


class OrderStatus(StrEnum):
    """One order's place on its way (DESIGN section 4); the later words are SkinsNode's own."""

    RECEIVED = "received"
    QUOTED = "quoted"
    AWAITING_FUNDS = "awaiting_funds"
    RESERVED = "reserved"
    SUBMITTING = "submitting"
    ACCEPTED = "accepted"
    QUEUED = "queued"
    PROCESSING = "processing"
    PENDING = "pending"
    SENT = "sent"
    COMPLETED = "completed"
    REVERSED = "reversed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    NEEDS_REVIEW = "needs_review"


class Source(StrEnum):
    """Who wrote an event of the order's log."""

    INTAKE = "intake"
    DISPATCH = "dispatch"
    CATALOG = "catalog"
    WALLET = "wallet"
    SUBMIT = "submit"
    WEBHOOK = "webhook"
    POLL = "poll"
    WATCHDOG = "watchdog"
    SWEEP = "sweep"
    OPERATOR = "operator"


class AttemptState(StrEnum):
    """How far one purchase attempt at one provider account has got."""

    RESERVED = "reserved"  # money is held, nothing was sent
    SENDING = "sending"  # the intent is committed; bytes may have left
    ACCEPTED = "accepted"  # the provider has confirmed that it knows the order
    COMPLETED = "completed"
    REFUSED = "refused"  # a definite no: the provider created nothing
    ENDED = "ended"  # failed, cancelled or expired after the provider had it


class EntryKind(StrEnum):
    """Kinds of immutable wallet ledger entries (DESIGN section 5)."""

    HOLD = "hold"
    SETTLE = "settle"
    RELEASE = "release"
    REFUND = "refund"
    ADJUST = "adjust"  # the charge was told anew: what is added to it, or less than zero


class FailureCode(StrEnum):
    """Failure codes that we ourselves give; providers may add words of their own."""

    ITEM_UNAVAILABLE = "item_unavailable"
    PRICE_CHANGED = "price_changed"
    INSUFFICIENT_FUNDS = "insufficient_funds"
    INVALID_TRADE_URL = "invalid_trade_url"
    RECIPIENT_CANNOT_TRADE = "recipient_cannot_trade"
    PROVIDER_UNAVAILABLE = "provider_unavailable"
    REFUSED = "refused_by_provider"
    TOO_LATE = "too_late"
    CANCELLED = "cancelled"


class FailedBy(StrEnum):
    """Whose decision a failure was."""

    US = "us"
    PROVIDER = "provider"


class DebitsAt(StrEnum):
    """When a provider takes an order's money out of the wallet figure it reports."""

    ACCEPT = "accept"
    FINAL = "final"


class OnInsufficientFunds(StrEnum):
    """What happens to an order that the wallet cannot pay for now."""

    WAIT = "wait"
    FAIL = "fail"


class ProviderName(StrEnum):
    """Providers with an adapter."""

    SKINSNODE = "skinsnode"
    SKINSBACK = "skinsback"
    SKINSLINK = "skinslink"
