"""Signatures of webhooks and requests: made with `hmac`, compared in constant time.

A signature is outside text: it is checked for form before it is compared, and no text raises.
"""

import base64
import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from typing import Literal

from fulfillment.errors import WebhookRejected

Digest = Literal["sha1", "sha256"]

BAD_SIGNATURE = "the signature is missing or wrong"


def only_header(headers: Mapping[str, str], name: str) -> str:
    """Give a header that must stand exactly once, however its name is written."""
    values = [value for key, value in headers.items() if key.lower() == name]
    if len(values) != 1:
        raise WebhookRejected(BAD_SIGNATURE)
    return values[0]


def hmac_hex(secret: str, message: bytes, digest: Digest = "sha256") -> str:
    """Sign a message; the signature is lower-case hex."""
    return hmac.new(secret.encode(), message, digest).hexdigest()


def is_hex_hmac(
    signature: str, secrets: Iterable[str], message: bytes, digest: Digest = "sha256"
) -> bool:
    """Say whether one of the secrets signed this message. An empty secret signs nothing."""
    size = hashlib.new(digest, usedforsecurity=False).digest_size
    if not re.fullmatch(rf"[0-9a-f]{{{2 * size}}}", signature):
        return False
    return _is_any(signature, (hmac_hex(s, message, digest) for s in secrets if s))


def is_base64_of(signature: str, digests: Iterable[bytes]) -> bool:
    """Say whether the text is the standard base64 of one of these digests."""
    if not re.fullmatch(r"[A-Za-z0-9+/]{2,128}={0,2}", signature):
        return False
    return _is_any(signature, (base64.b64encode(d).decode() for d in digests if d))


def _is_any(found: str, expected: Iterable[str]) -> bool:
    # Every candidate is compared, so that the time does not tell which secret is in use.
    matches = [hmac.compare_digest(found, candidate) for candidate in expected]
    return any(matches)
