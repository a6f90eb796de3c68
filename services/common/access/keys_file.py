"""The keys file: its form, its reading, its rereading while a service runs. Knows no caller.

[[keys]]
name = "trainer-a"                    # two keys of one name may stand side by side while they rotate
hash = "sha256:…"                     # written by python -m services.common.access new
scopes = ["score"]
models = ["hh"]                       # empty: all
rows_per_minute = 60000               # 0: no quota; all keys of the name share it
expires = 2027-01-31T00:00:00Z        # optional

[[certificates]]                      # with tls.client_ca: the same for a client certificate
name = "learner"                      # its common name
scopes = ["score"]
"""

from __future__ import annotations

import stat
from datetime import datetime
from pathlib import Path

import structlog
from pydantic import Field, field_validator, model_validator

from services.common.access.identity import Identity
from services.common.access.keys import KeyTable, KnownCertificate, KnownKey, check_hash
from services.common.access.scopes import Scope
from services.common.access.watched import Watched
from services.common.errors import ConfigError
from services.common.spec.base import Spec
from services.common.spec.load import load_toml

_log = structlog.get_logger(__name__)


class Entry(Spec):
    """What keys and certificates have in common."""

    name: str = Field(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.@-]*$")
    scopes: tuple[Scope, ...] = ("score",)
    models: tuple[str, ...] = Field((), description="Models it may use; empty: all.")
    rows_per_minute: int = Field(0, ge=0, description="Quota of the name; 0: none.")
    expires: datetime | None = Field(None, description="From then on it is refused.")

    @field_validator("expires")
    @classmethod
    def _with_offset(cls, expires: datetime | None) -> datetime | None:
        if expires is not None and expires.tzinfo is None:
            raise ValueError("expected a date-time with its offset, for example 2027-01-31T00:00:00Z")
        return expires

    def identity(self) -> Identity:
        """What the caller may do."""
        return Identity(
            name=self.name,
            scopes=frozenset(self.scopes),
            models=frozenset(self.models),
            rows_per_minute=self.rows_per_minute,
        )

    @property
    def expires_seconds(self) -> float | None:
        """Seconds since 1970."""
        return None if self.expires is None else self.expires.timestamp()


class KeyEntry(Entry):
    """One [[keys]]."""

    hash: str

    @field_validator("hash")
    @classmethod
    def _is_hash(cls, value: str) -> str:
        return check_hash(value)


class KeysFile(Spec):
    """The whole file."""

    keys: tuple[KeyEntry, ...] = ()
    certificates: tuple[Entry, ...] = ()

    @model_validator(mode="after")
    def _one_quota_a_name(self) -> KeysFile:
        quotas: dict[str, int] = {}
        for entry in (*self.keys, *self.certificates):
            if quotas.setdefault(entry.name, entry.rows_per_minute) != entry.rows_per_minute:
                raise ValueError(f"expected the same rows_per_minute for everything named {entry.name}")
        names = [entry.name for entry in self.certificates]
        if len(set(names)) < len(names):
            raise ValueError("expected certificates of different names")
        return self

    def table(self) -> KeyTable:
        """The keys as the gate looks them up. ConfigError where one stands twice."""
        return KeyTable(
            [
                KnownKey(hash=entry.hash, identity=entry.identity(), expires=entry.expires_seconds)
                for entry in self.keys
            ],
            [
                KnownCertificate(identity=entry.identity(), expires=entry.expires_seconds)
                for entry in self.certificates
            ],
        )


def read_keys(path: Path) -> KeysFile:
    """The file's content. ConfigError where it is not well formed, or where others may write it."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise ConfigError(f"{path}: {(error.strerror or 'cannot be read').lower()}") from None
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(f"{path}: others may write it, and so let themselves in; chmod 600 it")
    return load_toml(path, KeysFile)


def check_unreadable(path: Path, what: str) -> None:
    """ConfigError where everybody on this machine may read the file."""
    if path.stat().st_mode & (stat.S_IROTH | stat.S_IWOTH | stat.S_IXOTH):
        raise ConfigError(
            f"{path}: everybody may read the {what}; chmod 600 it (on Kubernetes: defaultMode 0440)"
        )


class WatchedKeys:
    """The keys of a file as it is now.

    A new file that is broken or gone changes nothing: the old keys stay, and one line of the log says so.
    One that is sound but empty lets nobody in.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._watched = Watched(path)
        self._table = read_keys(path).table()

    def table(self) -> KeyTable:
        """Looks at the file's times and size; reads it only where they changed."""
        if self._watched.changed():
            self._reread()
        return self._table

    def _reread(self) -> None:
        try:
            self._table = read_keys(self._path).table()
        except ConfigError as error:
            _log.error("keys file refused, the old keys stay", reason=str(error))
        else:
            _log.info("keys file read anew", entries=len(self._table))
