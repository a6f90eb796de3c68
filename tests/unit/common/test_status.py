"""Errors to statuses, without a server: the rules that integration tests cannot see."""

from __future__ import annotations

import errno

import grpc
from google.rpc import error_details_pb2, status_pb2

from services.common.errors import InvalidInput, Overloaded
from services.common.status import DETAILS_KEY, wire_status


def test_full_disk_is_storage_full() -> None:
    """ENOSPC from anywhere below is RESOURCE_EXHAUSTED without RetryInfo."""
    status = wire_status(OSError(errno.ENOSPC, "No space left on device"))
    assert (status.code, status.message) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "no room on disk")
    assert b"RetryInfo" not in status.trailing[0][1]


def test_message_is_one_line_of_bounded_length() -> None:
    """Whatever an error says, one line of at most 800 bytes travels."""
    status = wire_status(InvalidInput("first\nsecond  third " + "x" * 5000))
    assert status.message.startswith("first second third xxx")
    assert len(status.message) == 800


def test_details_fit_into_trailing_metadata() -> None:
    """The details of a thousand violations stay under gRPC's 8 KiB of metadata, also beyond ASCII."""
    status = wire_status(InvalidInput("ä" * 5000, {f"{i}" + "ö" * 500: "ü" * 500 for i in range(1000)}))
    key, data = status.trailing[0]
    assert key == DETAILS_KEY
    # gRPC sends the bytes in base64 and the message percent-encoded.
    assert len(data) * 4 / 3 + len(status.message.encode()) * 3 < 8192


def test_retry_delay_is_exact() -> None:
    """RetryInfo carries fractions of a second."""
    data = wire_status(Overloaded("full", retry_seconds=1.25)).trailing[0][1]
    packed = status_pb2.Status.FromString(data).details[1]
    assert error_details_pb2.RetryInfo.FromString(packed.value).retry_delay.ToMilliseconds() == 1250
