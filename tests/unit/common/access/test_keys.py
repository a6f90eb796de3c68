"""What a key is, and how it is found."""

from __future__ import annotations

import hashlib

import pytest

from services.common.access.identity import Identity
from services.common.access.keys import (
    KEY_PATTERN,
    KeyTable,
    KnownCertificate,
    KnownKey,
    check_hash,
    hash_of,
    id_of,
    new_key,
)
from services.common.errors import ConfigError

KEY = "tt_" + "0123456789abcdef" * 4


def known(key: str, name: str = "a") -> KnownKey:
    return KnownKey(hash=hash_of(key), identity=Identity(name=name, scopes=frozenset({"score"})))


def test_keys_are_32_random_bytes_behind_a_readable_prefix() -> None:
    """Every key is new, and a secret scanner can tell it by its form."""
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(KEY_PATTERN.fullmatch(key) and len(bytes.fromhex(key[3:])) == 32 for key in keys)


def test_only_the_sha_256_is_kept() -> None:
    """The hash is SHA-256 over the whole key, the id its first 12 digits."""
    assert hash_of(KEY) == "sha256:" + hashlib.sha256(KEY.encode()).hexdigest()
    assert id_of(hash_of(KEY)) == hashlib.sha256(KEY.encode()).hexdigest()[:12]


def test_a_key_is_found_and_nothing_else_is() -> None:
    """The very key opens; a changed, cut, longer, empty or strange one does not."""
    table = KeyTable([known(KEY), known(new_key(), "b")])
    found = table.key(KEY)
    assert found is not None
    assert found.identity.name == "a"
    for wrong in (
        KEY[:-1],
        KEY + "0",
        KEY.upper(),
        KEY[3:],
        "",
        "tt_",
        "\udcff",
        "x" * 100_000,
        hash_of(KEY),
    ):
        assert table.key(wrong) is None


def test_an_id_alone_opens_nothing() -> None:
    """Two hashes with the same id are told apart by the rest."""
    forged = "sha256:" + id_of(hash_of(KEY)) + "0" * 52
    table = KeyTable([KnownKey(hash=forged, identity=Identity(name="f", scopes=frozenset()))])
    assert table.key(KEY) is None


def test_the_same_key_twice_is_refused() -> None:
    """It would be unclear whose scopes count."""
    with pytest.raises(ConfigError, match="a and b are the same key"):
        KeyTable([known(KEY), known(KEY, "b")])


def test_certificates_are_found_by_their_common_name() -> None:
    """A certificate's name is looked up as it stands."""
    table = KeyTable([], [KnownCertificate(identity=Identity(name="learner", scopes=frozenset()))])
    assert table.certificate("learner") is not None
    assert table.certificate("Learner") is None
    assert len(table) == 1


def test_a_key_in_the_place_of_its_hash_is_refused_and_not_repeated() -> None:
    """Whoever pastes the key itself is told so, in words without it."""
    with pytest.raises(ValueError, match="this is a key") as caught:
        check_hash(KEY)
    assert KEY not in str(caught.value)
    for wrong in ("", "sha256:" + "0" * 63, "md5:" + "0" * 64, "sha256:" + "A" * 64):
        with pytest.raises(ValueError, match="64 hex digits"):
            check_hash(wrong)
