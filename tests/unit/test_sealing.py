"""Trade URLs and bodies at rest: sealed under keys that rotate, opened by none but ours."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulfillment.errors import ConfigurationError
from fulfillment.store.sealing import Seal, generate_key
from tests.support import TOKEN, TRADE_URL

OLD, NEW = f"old:{generate_key()}", f"new:{generate_key()}"
SECRET = TRADE_URL.encode()


@given(st.binary(max_size=500))
def test_what_was_sealed_is_opened(content: bytes) -> None:
    seal = Seal(OLD)

    assert seal.open(seal.seal(content)) == content


def test_sealed_bytes_show_nothing_and_never_look_the_same() -> None:
    seal = Seal(OLD)

    once, twice = seal.seal(SECRET), seal.seal(SECRET)

    assert once != twice
    assert TOKEN.encode() not in once


def test_the_first_key_seals_and_every_key_opens() -> None:
    sealed_before = Seal(OLD).seal(SECRET)

    rotated = Seal(f"{NEW}, {OLD}")

    assert rotated.open(sealed_before) == SECRET
    assert rotated.seal(SECRET).startswith(b"new:")


def test_a_key_that_was_taken_away_is_named() -> None:
    sealed = Seal(OLD).seal(SECRET)

    with pytest.raises(ConfigurationError, match=r"ENCRYPTION_KEYS.*'old'"):
        Seal(NEW).open(sealed)


def test_another_key_under_a_known_id_opens_nothing() -> None:
    sealed = Seal(OLD).seal(SECRET)

    with pytest.raises(ConfigurationError, match="another key") as error:
        Seal(f"old:{generate_key()}").open(sealed)

    assert error.value.__cause__ is None


@pytest.mark.parametrize("place", [4, 10, 16, 40, -1])
def test_altered_bytes_are_never_opened(place: int) -> None:
    seal = Seal(OLD)
    sealed = bytearray(seal.seal(SECRET))

    sealed[place] ^= 1

    with pytest.raises(ConfigurationError):
        seal.open(bytes(sealed))


@pytest.mark.parametrize("sealed", [b"", b"old", b"old:", b"old:short", b":", b"\xff\xfe:x"])
def test_what_was_never_sealed_is_refused_as_such(sealed: bytes) -> None:
    with pytest.raises(ConfigurationError):
        Seal(OLD).open(sealed)


def test_a_fingerprint_knows_its_content_after_a_rotation() -> None:
    made_before = Seal(OLD).fingerprint(SECRET)

    rotated = Seal(f"{NEW},{OLD}")

    assert rotated.matches(made_before, SECRET)
    assert not rotated.matches(made_before, SECRET + b" ")


def test_a_fingerprint_cannot_be_guessed_without_the_key() -> None:
    assert Seal(OLD).fingerprint(SECRET) != Seal(f"old:{generate_key()}").fingerprint(SECRET)


@pytest.mark.parametrize(
    "keys",
    [
        "",
        ",",
        "nokey",
        "a:",
        f":{generate_key()}",
        "a:c2hvcnQ=",
        f"a:{generate_key()}x",
        "a:ä",
        f"{OLD},{OLD}",
        f"{OLD};{NEW}",
    ],
    ids=["empty", "comma", "no key", "no bytes", "no id", "short", "long", "odd", "twice", "mixed"],
)
def test_wrong_keys_are_refused_with_what_was_expected_and_never_shown(keys: str) -> None:
    with pytest.raises(ConfigurationError, match="expected id:key pairs") as error:
        Seal(keys)

    shown = str(error.value)
    assert all(part not in shown for part in keys.split(":")[1:] if len(part) > 8)
