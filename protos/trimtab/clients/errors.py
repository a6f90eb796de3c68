"""What calls raise: one tree, by gRPC status and the google.rpc details that the services send.

TrimtabClientError
├── InvalidArgumentError      .violations: field → what was expected
├── NotFoundError
├── AlreadyExistsError
├── FailedPreconditionError   tokenizer, version, digest
├── UnauthenticatedError
├── PermissionDeniedError
├── OverloadedError           RESOURCE_EXHAUSTED with .retry_seconds: worth a retry
├── ResourceExhaustedError    RESOURCE_EXHAUSTED without: too large, disk full; a retry cannot help
├── UnavailableError
├── DeadlineExceededError
├── AbortedError
├── DataLossError
├── CancelledError
└── InternalError             any other status; .incident is the id in the service's log
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

_DETAILS_KEY = "grpc-status-details-bin"
_Detail = TypeVar("_Detail", bound=Message)


class TrimtabClientError(Exception):
    """A call failed. Its text is the service's one line."""

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        *,
        violations: Mapping[str, str] | None = None,
        retry_seconds: float | None = None,
        reason: str = "",
        incident: str = "",
    ) -> None:
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.message = message
        self.violations = dict(violations or {})
        self.retry_seconds = retry_seconds
        self.reason = reason
        self.incident = incident


class InvalidArgumentError(TrimtabClientError):
    """The request cannot be accepted; `violations` says why."""


class NotFoundError(TrimtabClientError):
    """Something named is not there."""


class AlreadyExistsError(TrimtabClientError):
    """Something that would be created is already there."""


class FailedPreconditionError(TrimtabClientError):
    """Two sides do not fit: tokenizer, version, digest."""


class UnauthenticatedError(TrimtabClientError):
    """No valid credentials."""


class PermissionDeniedError(TrimtabClientError):
    """Valid credentials that may not do this."""


class OverloadedError(TrimtabClientError):
    """The service is full; `retry_seconds` says when to come back."""


class ResourceExhaustedError(TrimtabClientError):
    """Larger than what is accepted, or no room: a retry cannot help."""


class UnavailableError(TrimtabClientError):
    """Not reachable, or not ready yet."""


class DeadlineExceededError(TrimtabClientError):
    """The deadline passed."""


class AbortedError(TrimtabClientError):
    """Someone else owns it by now."""


class DataLossError(TrimtabClientError):
    """A checksum or digest is wrong."""


class CancelledError(TrimtabClientError):
    """The call was cancelled."""


class InternalError(TrimtabClientError):
    """Something in the service went wrong."""


_BY_CODE: dict[grpc.StatusCode, type[TrimtabClientError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExistsError,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPreconditionError,
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhaustedError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.ABORTED: AbortedError,
    grpc.StatusCode.DATA_LOSS: DataLossError,
    grpc.StatusCode.CANCELLED: CancelledError,
}


def client_error(error: Any) -> TrimtabClientError:
    """The typed error for a grpc.RpcError or grpc.aio.AioRpcError."""
    code: grpc.StatusCode = error.code()
    status = _status(error.trailing_metadata())
    info = _detail(status, error_details_pb2.ErrorInfo)
    retry = _detail(status, error_details_pb2.RetryInfo)
    bad = _detail(status, error_details_pb2.BadRequest)
    kind = _BY_CODE.get(code, InternalError)
    if retry is not None and kind is ResourceExhaustedError:
        kind = OverloadedError
    return kind(
        code,
        error.details() or "",
        violations={each.field: each.description for each in bad.field_violations} if bad else None,
        retry_seconds=None if retry is None else retry.retry_delay.ToNanoseconds() / 1e9,
        reason=info.reason if info else "",
        incident=info.metadata.get("incident", "") if info else "",
    )


def _status(trailing: Any) -> status_pb2.Status:
    """The google.rpc.Status of a call's trailing metadata; an empty one where there is none."""
    for key, value in trailing or ():
        if key == _DETAILS_KEY:
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                break
    return status_pb2.Status()


def _detail(status: status_pb2.Status, kind: type[_Detail]) -> _Detail | None:
    for packed in status.details:
        if packed.Is(kind.DESCRIPTOR):
            message = kind()
            packed.Unpack(message)
            return message
    return None
