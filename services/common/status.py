"""The one place where the error tree becomes a gRPC status with google.rpc details.

Knows no service. What is not a TrimtabError becomes INTERNAL with a short id, its text only in the log.
"""

from __future__ import annotations

import errno
import secrets
from dataclasses import dataclass

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from services.common.errors import InvalidInput, Overloaded, StorageFull, TrimtabError

DETAILS_KEY = "grpc-status-details-bin"
DOMAIN = "trimtab"
# A call's trailing metadata may hold 8 KiB; beyond that the caller would see a transport error instead. The
# message travels twice, percent-encoded and in base64 inside the details.
_MAX_MESSAGE_BYTES = 800
_MAX_FIELD_BYTES = 160
_MAX_VIOLATIONS_BYTES = 2400


@dataclass(frozen=True, slots=True)
class WireStatus:
    """What goes onto the wire. `incident` is the id of an unexpected error, empty for expected ones."""

    code: grpc.StatusCode
    message: str
    trailing: tuple[tuple[str, bytes], ...]
    incident: str = ""


def wire_status(error: Exception) -> WireStatus:
    """The status, one-line message and details of an error."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        error = StorageFull("no room on disk")
    if isinstance(error, TrimtabError):
        code = grpc.StatusCode[error.status]
        message = _one_line(str(error)) or type(error).__name__
        return WireStatus(code, message, _trailing(code, message, _details(error)))
    incident = secrets.token_hex(4)
    message = f"internal error {incident}: the service's log says more"
    info = error_details_pb2.ErrorInfo(reason="Internal", domain=DOMAIN, metadata={"incident": incident})
    return WireStatus(
        grpc.StatusCode.INTERNAL, message, _trailing(grpc.StatusCode.INTERNAL, message, [info]), incident
    )


def _details(error: TrimtabError) -> list[Message]:
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=type(error).__name__, domain=DOMAIN)]
    if isinstance(error, InvalidInput) and error.violations:
        details.append(_bad_request(error.violations))
    if isinstance(error, Overloaded):
        details.append(error_details_pb2.RetryInfo(retry_delay=_duration(error.retry_seconds)))
    return details


def _bad_request(violations: dict[str, str]) -> error_details_pb2.BadRequest:
    request = error_details_pb2.BadRequest()
    for field, expected in violations.items():
        request.field_violations.add(
            field=_one_line(field, _MAX_FIELD_BYTES), description=_one_line(expected, _MAX_FIELD_BYTES)
        )
        if request.ByteSize() > _MAX_VIOLATIONS_BYTES:
            del request.field_violations[-1]
            break
    return request


def _duration(seconds: float) -> duration_pb2.Duration:
    whole, nanos = divmod(round(max(seconds, 0) * 1_000_000_000), 1_000_000_000)
    return duration_pb2.Duration(seconds=whole, nanos=nanos)


def _trailing(code: grpc.StatusCode, message: str, details: list[Message]) -> tuple[tuple[str, bytes], ...]:
    status = status_pb2.Status(code=code.value[0], message=message)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return ((DETAILS_KEY, status.SerializeToString()),)


def _one_line(text: str, max_bytes: int = _MAX_MESSAGE_BYTES) -> str:
    return " ".join(text.split()).encode(errors="replace")[:max_bytes].decode(errors="ignore")
