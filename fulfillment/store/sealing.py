"""Encryption of what must not be read in the database: trade URLs and sent request bodies.

Sealed bytes name the key they were made with, so that keys can rotate: the first key seals, every
key opens.
"""

import base64
import hashlib
import hmac
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fulfillment.errors import ConfigurationError, KeyMissing

SETTING = "FULFILLMENT_ENCRYPTION_KEYS"
FORM = "expected id:key pairs separated by commas, key = 32 bytes in urlsafe base64"
_NONCE_BYTES = 12
_KEY_BYTES = 32


def generate_key() -> str:
    """Give a new key in the form that the setting takes, without its id."""
    return base64.urlsafe_b64encode(os.urandom(_KEY_BYTES)).decode()


class Seal:
    """Seals and opens bytes, and makes keyed fingerprints, with the configured keys."""

    def __init__(self, configured: str) -> None:
        self._keys: dict[str, bytes] = {}
        for pair in filter(None, (part.strip() for part in configured.split(","))):
            key_id, _, text = pair.partition(":")
            try:
                key = base64.b64decode(text, altchars=b"-_", validate=True)
            except ValueError:  # binascii's own error, or text beyond ASCII
                key = b""
            if not key_id or len(key) != _KEY_BYTES or key_id in self._keys:
                raise ConfigurationError(SETTING, FORM)
            self._keys[key_id] = key
        if not self._keys:
            raise ConfigurationError(SETTING, f"is not set; {FORM}")
        self._newest = next(iter(self._keys))
        self._ciphers = {key_id: AESGCM(key) for key_id, key in self._keys.items()}
        self._hashing = {
            key_id: hashlib.sha256(b"fingerprint" + key).digest()
            for key_id, key in self._keys.items()
        }

    def seal(self, plain: bytes) -> bytes:
        nonce = os.urandom(_NONCE_BYTES)
        key_id = self._newest.encode()
        return key_id + b":" + nonce + self._ciphers[self._newest].encrypt(nonce, plain, key_id)

    def open(self, sealed: bytes) -> bytes:
        """Open sealed bytes. Raises KeyMissing when the key they name is not set,
        ConfigurationError when it is another one."""
        key_id, _, rest = bytes(sealed).partition(b":")
        cipher = self._ciphers.get(key_id.decode(errors="replace"))
        if cipher is None:
            raise KeyMissing(SETTING, key_id.decode(errors="replace"))
        try:
            return cipher.decrypt(rest[:_NONCE_BYTES], rest[_NONCE_BYTES:], key_id)
        except (InvalidTag, ValueError):  # a ValueError tells of bytes too short to be sealed ones
            raise ConfigurationError(SETTING, "has another key under a known id") from None

    @property
    def key_ids(self) -> set[str]:
        return set(self._keys)

    def knows_key_of(self, fingerprint: str) -> bool:
        return fingerprint.partition(":")[0] in self._keys

    def fingerprint(self, content: bytes) -> str:
        """Make a keyed hash that names its key; the content cannot be guessed from it."""
        return self._fingerprint(self._newest, content)

    def matches(self, fingerprint: str, content: bytes) -> bool:
        """Say whether a stored fingerprint was made of this content. Raises KeyMissing."""
        key_id = fingerprint.partition(":")[0]
        if key_id not in self._keys:
            raise KeyMissing(SETTING, key_id)
        return hmac.compare_digest(fingerprint, self._fingerprint(key_id, content))

    def _fingerprint(self, key_id: str, content: bytes) -> str:
        return f"{key_id}:{hmac.digest(self._hashing[key_id], content, 'sha256').hex()}"
