"""Signatures are outside text: compared in constant time, refused without a fuss."""

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulfillment.messaging import relay
from fulfillment.providers.signing import hmac_hex, is_base64_of, is_hex_hmac

SECRET = "cs_test_7f3a9c"
MESSAGE = b"2026-11-20T12:36:12.000Z.{}"
GOOD = hmac_hex(SECRET, MESSAGE)


def test_a_message_is_signed_as_skinsback_documents_it() -> None:
    signed = b"method:orderstatus;order_id:1;shopid:123;"  # contracts/skinsback.md, V1

    assert hmac_hex("123", signed, "sha1") == "abee99d476c736102c3d6062807761b6e4d31dd8"


@pytest.mark.parametrize("secrets", [(SECRET,), (SECRET, "old"), ("new", SECRET), ("", SECRET)])
def test_present_and_previous_secret_both_verify(secrets: tuple[str, ...]) -> None:
    assert is_hex_hmac(GOOD, secrets, MESSAGE)


@pytest.mark.parametrize("secrets", [(), ("",), ("", ""), ("other",), (SECRET + "x",)])
def test_no_other_secret_verifies(secrets: tuple[str, ...]) -> None:
    assert not is_hex_hmac(GOOD, secrets, MESSAGE)


def test_an_empty_secret_signs_nothing() -> None:
    assert not is_hex_hmac(hmac_hex("", MESSAGE), ("",), MESSAGE)
    assert not is_base64_of("", (b"",))


@pytest.mark.parametrize(
    "signature",
    [
        "",
        GOOD.upper(),
        GOOD[:-1],
        GOOD + "0",
        GOOD + "\n",
        f" {GOOD}",
        f"sha256={GOOD}",
        "zz" + GOOD[2:],
        "é" * 64,
        "\uff11" * 64,
        "\x00" * 64,
        "\ud800" * 64,
        hmac_hex(SECRET, MESSAGE, "sha1"),
    ],
)
def test_a_malformed_signature_is_refused(signature: str) -> None:
    assert not is_hex_hmac(signature, (SECRET,), MESSAGE)


@given(st.text(max_size=80))
def test_no_text_raises(signature: str) -> None:
    assert not is_hex_hmac(signature, (SECRET,), MESSAGE)
    assert not is_base64_of(signature, (hashlib.sha256(MESSAGE).digest(),))


@given(st.integers(0, 63), st.sampled_from("0123456789abcdef"))
def test_each_digit_counts(place: int, digit: str) -> None:
    changed = GOOD[:place] + digit + GOOD[place + 1 :]

    assert is_hex_hmac(changed, (SECRET,), MESSAGE) == (changed == GOOD)


def test_base64_is_compared_as_skinslink_writes_it() -> None:
    digest = hashlib.sha256(b"178merchant-secret").digest()  # contracts/skinslink.md section 9
    signature = "prMmPzRaN0T3R7gE03AdYKlG1fNpsN0iKTzMuk1/Q+M="

    assert is_base64_of(signature, (b"\x00" * 32, digest))
    assert not is_base64_of(signature.rstrip("="), (digest,))
    assert not is_base64_of(base64.urlsafe_b64encode(digest).decode(), (digest,))
    # The same bytes with other spare bits: one signature has one spelling.
    assert not is_base64_of(signature.replace("M=", "N="), (digest,))
    assert not is_base64_of("é=", (digest,))


def test_updates_to_the_store_are_signed_as_anybody_computes_it() -> None:
    """The digest is the well-known one of HMAC-SHA256 under "key"."""
    body = b"The quick brown fox jumps over the lazy dog"

    signed = relay.signature("key", body)

    assert signed == "f7bc83f430538424b13298e6aa6fb143ef4d59a14946175997479dbc2d1a3cd8"
