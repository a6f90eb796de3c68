"""Who gets in, and what for. Pure: keys, clock and bookkeeping are handed in; knows no file and no wire.

    identify(key, common name) ──▶ Identity ──▶ allow(identity, scope, model, rows)
       Unauthenticated                             Forbidden, Overloaded, TooLarge

A key is looked at first. Without one the client's certificate counts, which TLS has verified by then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from services.common.access.identity import ANYBODY, Identity
from services.common.access.keys import KeyTable, KnownCertificate, KnownKey
from services.common.access.quota import Quotas
from services.common.access.scopes import SCOPES
from services.common.errors import Forbidden, Overloaded, TooLarge, TrimtabError, Unauthenticated, Unavailable

Reason = Literal["no_credentials", "unknown_key", "unknown_certificate", "expired", "scope", "model", "quota"]


# Told of every refusal: why, and the caller's name, empty where nobody knows it. No key ever gets there.
Bookkeeper = Callable[[Reason, str], None]


def _keep_no_books(_reason: Reason, _name: str) -> None:
    """For those who need none."""


@dataclass(frozen=True, slots=True)
class Permit:
    """A caller inside: who it is, and as what it came in."""

    identity: Identity
    scope: str | None
    gate: Gate

    @property
    def name(self) -> str:
        """The key's or certificate's name; empty where access control is off."""
        return self.identity.name

    def check(self, *, model: str = "", rows: int = 0) -> None:
        """Forbidden where the model is not the caller's; Overloaded, TooLarge by its quota of rows."""
        self.gate.allow(self.identity, self.scope, model, rows)

    @contextmanager
    def spent_on(self, model: str, rows: int) -> Iterator[None]:
        """check(), and the rows given back where what is done inside is refused: it has no room, or is away."""
        self.check(model=model, rows=rows)
        try:
            yield
        except (Overloaded, Unavailable):
            self.gate.give_back(self.identity, rows)
            raise

    def may_use(self, model: str) -> bool:
        """Whether check() would let the model pass; nothing is counted."""
        return self.identity.may_use(model)


class Gate:
    """Decides about callers. One for a process, so that a quota covers gRPC and HTTP together.

    keys: the table as of now, called at each call; None: there are no keys. certificates: whether TLS asks
    clients for one. With neither, everybody is let in: the listener must be loopback's (see safety.py).
    wall_clock: seconds since 1970; steady_clock: seconds that never go back.
    """

    def __init__(
        self,
        keys: Callable[[], KeyTable] | None = None,
        *,
        certificates: bool = False,
        wall_clock: Callable[[], float] = time.time,
        steady_clock: Callable[[], float] = time.monotonic,
        bookkeeper: Bookkeeper = _keep_no_books,
    ) -> None:
        self._keys = keys
        self._certificates = certificates
        self._wall_clock = wall_clock
        self._steady_clock = steady_clock
        self._bookkeeper = bookkeeper
        self._quotas = Quotas()

    @property
    def on(self) -> bool:
        """Whether callers must say who they are."""
        return self._keys is not None or self._certificates

    def permit(self, presented: str | None, common_name: str | None, scope: str | None) -> Permit:
        """identify() and the scope's part of allow(): what happens before a request is looked at."""
        identity = self.identify(presented, common_name)
        self.allow(identity, scope)
        return Permit(identity, scope, self)

    def identify(self, presented: str | None, common_name: str | None) -> Identity:
        """Who calls: the key presented, None without one; the verified certificate's common name, if any.

        Raises Unauthenticated. A wrong key is never made up for by a certificate.
        """
        if not self.on:
            return ANYBODY
        if presented and self._keys is not None:
            return self._by_key(self._keys().key(presented))
        if common_name and self._certificates:
            return self._by_certificate(common_name)
        wanted = "an API key" if self._keys is not None else "a client certificate with a common name"
        raise self._refused("no_credentials", "", Unauthenticated(f"{wanted} is needed"))

    def _by_key(self, known: KnownKey | None) -> Identity:
        if known is None:
            raise self._refused("unknown_key", "", Unauthenticated("the API key is not known here"))
        return self._unless_expired(known, "API key")

    def _by_certificate(self, common_name: str) -> Identity:
        if self._keys is None:
            # The authority was chosen for this service: what it signed may do everything but administer.
            return Identity(name=common_name, scopes=frozenset(SCOPES) - {"admin"})
        known = self._keys().certificate(common_name)
        if known is None:
            raise self._refused(
                "unknown_certificate",
                common_name,
                Unauthenticated(
                    f"an API key is needed: certificate {common_name[:64]} is not in the keys file"
                ),
            )
        return self._unless_expired(known, "certificate's entry")

    def _unless_expired(self, known: KnownKey | KnownCertificate, what: str) -> Identity:
        identity = known.identity
        if known.expires is not None and self._wall_clock() >= known.expires:
            raise self._refused(
                "expired", identity.name, Unauthenticated(f"the {what} {identity.name} has expired")
            )
        return identity

    def allow(self, identity: Identity, scope: str | None, model: str = "", rows: int = 0) -> None:
        """Whether the caller may do this. scope None: any known caller may; model "": none is used.

        Raises Forbidden; Overloaded and TooLarge by its quota. Rows are counted when all else is allowed.
        """
        if scope is not None and scope not in identity.scopes:
            raise self._refused("scope", identity.name, Forbidden(f"{identity.name} lacks the scope {scope}"))
        if model and not identity.may_use(model):
            raise self._refused(
                "model", identity.name, Forbidden(f"{identity.name} may not use the model {model}")
            )
        if rows > 0 and identity.rows_per_minute:
            self._count(identity, rows)

    def give_back(self, identity: Identity, rows: int) -> None:
        """Rows that allow() counted count no more."""
        if identity.rows_per_minute:
            self._quotas.give_back(identity.name, rows)

    def _count(self, identity: Identity, rows: int) -> None:
        try:
            self._quotas.take(
                identity.name, rows, per_minute=identity.rows_per_minute, now=self._steady_clock()
            )
        except (Overloaded, TooLarge) as error:
            raise self._refused("quota", identity.name, error) from None

    def _refused(self, reason: Reason, name: str, error: TrimtabError) -> TrimtabError:
        self._bookkeeper(reason, name)
        return error


# The permit of whoever needs none: a gate that is open, for tests and for callers inside the process.
OPEN = Permit(ANYBODY, None, Gate())
