"""The reasons that people give for what they do: kept, and shown wherever it is told of."""

from fulfillment.errors import InvalidInput

MOST_CHARACTERS = 500


def written(reason: str, wanted: str) -> str:
    """Give a reason without the blanks around it. Raises InvalidInput where it is empty, which
    says what is wanted, or too long."""
    if not reason.strip():
        raise InvalidInput("reason", f"expected {wanted}")
    return bounded(reason)


def bounded(reason: str) -> str:
    """Give a reason, which may be empty. Raises InvalidInput where it is too long."""
    text = reason.strip()
    if len(text) > MOST_CHARACTERS:
        found = f"found {len(text)}"
        raise InvalidInput("reason", f"expected at most {MOST_CHARACTERS} characters, {found}")
    return text
