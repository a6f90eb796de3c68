"""What an API key is, how it is kept, how it is found again. Knows no file and no wire.

A key is `tt_` and 32 random bytes in hex. Kept is its SHA-256 alone; the id, under which it is found and
listed, is the first 12 digits of that.

Decision: a fast hash. A slow one (argon2) makes guessing costly, and 256 random bits are not guessed.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from services.common.access.identity import Identity
from services.common.errors import ConfigError

PREFIX = "tt_"
# For secret scanners, and for a log filter.
KEY_PATTERN = re.compile(r"tt_[0-9a-f]{64}")
_HASH_PREFIX = "sha256:"
_HASH_PATTERN = re.compile(r"sha256:[0-9a-f]{64}")
_ID_DIGITS = 12
# What is longer is no key; it is not hashed at length.
_LONGEST = 256
_NO_HASH = _HASH_PREFIX + "0" * 64


def new_key() -> str:
    """A new key. It is nowhere but in what this returns."""
    return PREFIX + secrets.token_hex(32)


def hash_of(key: str) -> str:
    """What is kept of a key: "sha256:" and 64 hex digits."""
    return _HASH_PREFIX + hashlib.sha256(key.encode(errors="replace")).hexdigest()


def id_of(key_hash: str) -> str:
    """The public name of one key: 12 hex digits of its hash."""
    return key_hash.removeprefix(_HASH_PREFIX)[:_ID_DIGITS]


def check_hash(key_hash: str) -> str:
    """The hash itself. ValueError where it is none; a key is never repeated in that."""
    if key_hash.startswith(PREFIX):
        raise ValueError("expected the hash of a key, this is a key: revoke it and make a new one")
    if not _HASH_PATTERN.fullmatch(key_hash):
        raise ValueError("expected sha256: and 64 hex digits in lower case")
    return key_hash


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownKey:
    """A key that opens something. expires: seconds since 1970, None: never."""

    hash: str
    identity: Identity
    expires: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownCertificate:
    """A client certificate's common name that opens something; expires as above, beside its own end."""

    identity: Identity
    expires: float | None = None


class KeyTable:
    """All keys and certificates' names at one moment; never changed, only replaced."""

    def __init__(self, keys: Iterable[KnownKey] = (), certificates: Iterable[KnownCertificate] = ()) -> None:
        self._keys: Mapping[str, KnownKey] = _by_id(keys)
        self._certificates = {known.identity.name: known for known in certificates}

    def __len__(self) -> int:
        return len(self._keys) + len(self._certificates)

    def key(self, presented: str) -> KnownKey | None:
        """The key that was presented, expired or not. Takes as long for a wrong as for a right one."""
        key_hash = hash_of(presented) if len(presented) <= _LONGEST else _NO_HASH
        known = self._keys.get(id_of(key_hash))
        same = hmac.compare_digest(known.hash if known else _NO_HASH, key_hash)
        return known if same else None

    def certificate(self, common_name: str) -> KnownCertificate | None:
        """What is known of a certificate's common name."""
        return self._certificates.get(common_name)


def _by_id(keys: Iterable[KnownKey]) -> dict[str, KnownKey]:
    found: dict[str, KnownKey] = {}
    for key in keys:
        key_id = id_of(key.hash)
        if key_id in found:
            raise ConfigError(f"keys {found[key_id].identity.name} and {key.identity.name} are the same key")
        found[key_id] = key
    return found
