"""What was said of an order and not applied: words that came late, and who may have it."""

from fulfillment.store.models import Order

#: So many words of one order that nobody can use are logged, and so many accounts beside them.
_MOST_WORDS, _MOST_ACCOUNTS = 10, 100
#: What stands among an order's late words before an account that may have it, though nothing was
#: sent there or it is none of the order's any more: as it told, or as anybody hinted, or because
#: the outcome of a request was unknown before it refused.
HAD_BY, HINTED_BY, UNKNOWN_BY = "had by ", "hinted at by ", "once unknown by "
#: Before one that it ended at, which our rows do not tell of: it may have gone on from there.
ENDED_BY = "ended by "
#: And before one that was looked at since, and did not have it.
_DENIED_BY = "denied by "
#: And before one that it was found at though that had refused it, as a person was told.
FOUND_AT = "found at "
_TELLING = (HAD_BY, HINTED_BY, UNKNOWN_BY, ENDED_BY)
_PREFIXES = (*_TELLING, _DENIED_BY, FOUND_AT)
_AT, _PARTS = " at ", 3


def with_late(order: Order, word: str) -> str | None:
    """Give the order's late words with this one; None where it was told before, or too many are."""
    return _with(order, as_word(word), _MOST_WORDS)


def with_account(order: Order, prefix: str, account: str, merchant: str = "") -> str | None:
    """Give the order's late words with this account and whose it is; None where it is among them.

    Words do not keep an account from being named that may have the order.
    """
    word = f"{prefix}{account}{_AT}{merchant}" if merchant else f"{prefix}{account}"
    return _with(order, word, _MOST_ACCOUNTS)


def tellers(order: Order) -> list[tuple[str, str]]:
    """Name the accounts that may have the order, as was heard of them since it was looked for."""
    return [
        each for kind in (HAD_BY, HINTED_BY, UNKNOWN_BY) for each in accounts_named(order, kind)
    ]


def is_told_of(order: Order) -> bool:
    """Say whether any account may have it, or may have had it, that was not looked at since."""
    return any(accounts_named(order, kind) for kind in _TELLING)


def without_accounts(order: Order) -> str | None:
    """Give the order's late words where no account turned out to have it."""
    words = []
    for word in late_words(order):
        prefix = next((each for each in _TELLING if word.startswith(each)), None)
        words.append(f"{_DENIED_BY}{word.removeprefix(prefix)}" if prefix else word)
    return "\n".join(dict.fromkeys(words)) or None


def _with(order: Order, word: str, most: int) -> str | None:
    words = late_words(order)
    return None if word in words or len(words) >= most else "\n".join([*words, word])


def as_word(told: str) -> str:
    """Write a provider's own word in a line, and so that it names no account."""
    word = told.replace("\n", " ")
    return f"'{word}'" if word.startswith(_PREFIXES) else word


def late_words(order: Order) -> list[str]:
    return order.late_words.split("\n") if order.late_words else []


def under(order: Order, account: str, merchant: str) -> str:
    """Give the order's late words with the account as this merchant's wherever it is named."""
    words = []
    for word in late_words(order):
        prefix = next((each for each in _PREFIXES if word.startswith(each)), "")
        named, at, _ = word.removeprefix(prefix).partition(_AT)
        is_of_it = prefix and at and named == account
        words.append(f"{prefix}{account}{_AT}{merchant}" if is_of_it else word)
    return "\n".join(dict.fromkeys(words))


def accounts_named(order: Order, prefix: str) -> list[tuple[str, str]]:
    """Name the accounts of which the order's late words say so, and whose they were, or ""."""
    found = (word.removeprefix(prefix) for word in late_words(order) if word.startswith(prefix))
    parts = (each.partition(_AT) for each in found)
    # What a provider said in other words, as a version before kept it, is nobody's.
    return [(name, who if len(who.split(" ")) == _PARTS else "") for name, _, who in parts]
