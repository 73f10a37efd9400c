"""The store's API tokens: several, by name, of which only hashes need be configured.

A token is 32 random bytes, so a fast hash of it tells nothing; a password must not be used as one.
"""

import hashlib
import hmac
import secrets

from fulfillment.errors import InvalidInput
from fulfillment.settings import TOKEN_PAIR, Settings

#: What calls with FULFILLMENT_API_TOKEN itself are counted under; no configured name looks so.
UNNAMED = "API_TOKEN"


def generate(name: str) -> tuple[str, str]:
    """Make a token; give it and the pair to configure. Raises InvalidInput for the name."""
    token = secrets.token_urlsafe(32)
    pair = f"{name}:{hashlib.sha256(token.encode()).hexdigest()}"
    if not TOKEN_PAIR.fullmatch(pair):
        raise InvalidInput("NAME", "expected 1 to 32 of a-z, 0-9, _ and -, not - or _ first")
    return token, pair


class Tokens:
    """Knows whose a presented token is. Raises ConfigurationError where there is none at all."""

    def __init__(self, settings: Settings) -> None:
        known = settings.api_token_digests
        if not known:
            settings.require("api_token")
        if token := settings.api_token.get_secret_value():
            known = {**known, UNNAMED: hashlib.sha256(token.encode()).digest()}
        self._known = known

    def name_of(self, presented: bytes) -> str | None:
        """Give the token's name; None for one that is not known."""
        found = None
        digest = hashlib.sha256(presented).digest()
        # All are compared, so that the time tells neither how much is right nor whose it is.
        for name, known in self._known.items():
            if hmac.compare_digest(digest, known):
                found = name
        return found
