"""What was said of an order and not applied: words that came late, and who may have it."""

from fulfillment.store.models import Order

#: So many words of one order that nobody can use are logged, and so many accounts beside them.
_MOST_WORDS, _MOST_ACCOUNTS = 10, 100
#: What stands among an order's late words before an account that may have it, though nothing was
#: sent there or it is none of the order's any more: as it told, or only hinted.
HAD_BY, HINTED_BY = "had by ", "hinted at by "
_AT = " at "


def with_late(order: Order, word: str) -> str | None:
    """Give the order's late words with this one; None where it was told before, or too many are."""
    word = in_a_line(word)
    if word.startswith((HAD_BY, HINTED_BY)):
        word = f"'{word}'"  # a provider's own word names no account
    return _with(order, word, _MOST_WORDS)


def with_account(order: Order, prefix: str, account: str, merchant: str = "") -> str | None:
    """Give the order's late words with this account and whose it is; None where it is among them.

    Words do not keep an account from being named that may have the order.
    """
    word = f"{prefix}{account}{_AT}{merchant}" if merchant else f"{prefix}{account}"
    return _with(order, word, _MOST_ACCOUNTS)


def _with(order: Order, word: str, most: int) -> str | None:
    words = late_words(order)
    return None if word in words or len(words) >= most else "\n".join([*words, word])


def in_a_line(word: str) -> str:
    return word.replace("\n", " ")


def late_words(order: Order) -> list[str]:
    return order.late_words.split("\n") if order.late_words else []


def under(order: Order, account: str, merchant: str) -> str:
    """Give the order's late words with the account as this merchant's wherever it is named."""
    words = []
    for word in late_words(order):
        prefix = next((each for each in (HAD_BY, HINTED_BY) if word.startswith(each)), "")
        named, at, _ = word.removeprefix(prefix).partition(_AT)
        is_of_it = prefix and at and named == account
        words.append(f"{prefix}{account}{_AT}{merchant}" if is_of_it else word)
    return "\n".join(dict.fromkeys(words))


def accounts_named(order: Order, prefix: str) -> list[tuple[str, str]]:
    """Name the accounts of which the order's late words say so, and whose they were, or ""."""
    found = (word.removeprefix(prefix) for word in late_words(order) if word.startswith(prefix))
    parts = (each.partition(_AT) for each in found)
    return [(account, merchant) for account, _, merchant in parts]
