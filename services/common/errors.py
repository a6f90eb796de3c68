"""One error tree, each error knowing its gRPC status as a plain string.

    TrimtabError                    UNKNOWN is never used: the base is INTERNAL
    ├── UserError                   a mistake of whoever calls or configures
    │   ├── InvalidInput            INVALID_ARGUMENT, with field violations
    │   ├── NotFound                NOT_FOUND
    │   ├── AlreadyExists           ALREADY_EXISTS
    │   ├── Mismatch                FAILED_PRECONDITION: tokenizer, version, digest
    │   ├── Unauthenticated         UNAUTHENTICATED
    │   ├── Forbidden               PERMISSION_DENIED
    │   └── ConfigError             INVALID_ARGUMENT, says file, line, field
    └── ServiceError                something here, not the caller, is at fault
        ├── Overloaded              RESOURCE_EXHAUSTED, with RetryInfo
        ├── TooLarge                RESOURCE_EXHAUSTED, without: never retried
        ├── Unavailable             UNAVAILABLE
        ├── Expired                 DEADLINE_EXCEEDED
        ├── LostOwnership           ABORTED: a lease, an epoch
        ├── StorageFull             RESOURCE_EXHAUSTED: no room on disk
        └── Corrupted               DATA_LOSS: a checksum or digest is wrong

Domain code raises these and imports no grpc; services/common/server.py maps them to the wire once.
"""

from __future__ import annotations

from typing import ClassVar


class TrimtabError(Exception):
    """Base of every error that Trimtab raises on purpose. Its text is one line for a person."""

    status: ClassVar[str] = "INTERNAL"


class UserError(TrimtabError):
    """A mistake of whoever calls or configures."""

    status = "INVALID_ARGUMENT"


class InvalidInput(UserError):
    """An argument that cannot be accepted. `violations` maps field paths to what was expected."""

    def __init__(self, message: str, violations: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.violations = dict(violations or {})


class NotFound(UserError):
    """Something named is not there."""

    status = "NOT_FOUND"


class AlreadyExists(UserError):
    """Something that would be created is already there."""

    status = "ALREADY_EXISTS"


class Mismatch(UserError):
    """Two sides do not fit: tokenizer, architecture, weights version, digest."""

    status = "FAILED_PRECONDITION"


class Unauthenticated(UserError):
    """No valid credentials."""

    status = "UNAUTHENTICATED"


class Forbidden(UserError):
    """Valid credentials that may not do this."""

    status = "PERMISSION_DENIED"


class ConfigError(UserError):
    """A configuration file or flag is wrong. The text names file, line, field and what was expected."""


class ServiceError(TrimtabError):
    """Something on this side is at fault."""


class Overloaded(ServiceError):
    """No room now; the caller may retry after `retry_seconds`."""

    status = "RESOURCE_EXHAUSTED"

    def __init__(self, message: str, retry_seconds: float = 1.0) -> None:
        super().__init__(message)
        self.retry_seconds = retry_seconds


class TooLarge(ServiceError):
    """Larger than what is ever accepted; a retry cannot help."""

    status = "RESOURCE_EXHAUSTED"


class Unavailable(ServiceError):
    """Not reachable or not ready at the moment."""

    status = "UNAVAILABLE"


class Expired(ServiceError):
    """The deadline passed."""

    status = "DEADLINE_EXCEEDED"


class LostOwnership(ServiceError):
    """A lease or an epoch belongs to someone else by now: drop the work."""

    status = "ABORTED"


class StorageFull(ServiceError):
    """No room on disk."""

    status = "RESOURCE_EXHAUSTED"


class Corrupted(ServiceError):
    """A checksum or digest is wrong."""

    status = "DATA_LOSS"
