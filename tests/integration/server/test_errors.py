"""Errors, limits and deadlines as callers of a service over real loopback gRPC see them."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
import structlog
from grpc_health.v1 import health_pb2

from services.common import errors
from services.common.server import serving
from services.common.spec.service import ServerSpec, ServiceSpec
from tests.integration.server.served import (
    REWARD,
    App,
    call,
    details_of,
    health_of,
    raising,
)
from trimtab.reward.v1 import reward_pb2
from trimtab.weights.v1 import weights_pb2, weights_pb2_grpc

ERRORS = [
    (errors.TrimtabError("x"), "INTERNAL"),
    (errors.InvalidInput("x"), "INVALID_ARGUMENT"),
    (errors.NotFound("x"), "NOT_FOUND"),
    (errors.AlreadyExists("x"), "ALREADY_EXISTS"),
    (errors.Mismatch("x"), "FAILED_PRECONDITION"),
    (errors.Unauthenticated("x"), "UNAUTHENTICATED"),
    (errors.Forbidden("x"), "PERMISSION_DENIED"),
    (errors.ConfigError("x"), "INVALID_ARGUMENT"),
    (errors.Overloaded("x"), "RESOURCE_EXHAUSTED"),
    (errors.TooLarge("x"), "RESOURCE_EXHAUSTED"),
    (errors.Unavailable("x"), "UNAVAILABLE"),
    (errors.Expired("x"), "DEADLINE_EXCEEDED"),
    (errors.LostOwnership("x"), "ABORTED"),
    (errors.StorageFull("x"), "RESOURCE_EXHAUSTED"),
    (errors.Corrupted("x"), "DATA_LOSS"),
]


@pytest.mark.parametrize(("error", "code"), ERRORS, ids=[type(error).__name__ for error, _ in ERRORS])
async def test_error_becomes_status(error: errors.TrimtabError, code: str) -> None:
    """Every error of the tree arrives with its code, its text and its class's name as the reason."""
    async with serving(ServiceSpec(), App(raising(error))) as endpoints:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(endpoints)
    assert (caught.value.code().name, caught.value.details()) == (code, "x")
    details = details_of(caught.value)
    assert details["ErrorInfo"].reason == type(error).__name__
    assert ("RetryInfo" in details) == isinstance(error, errors.Overloaded)


async def test_a_connection_that_broke_in_the_middle_is_no_alarm() -> None:
    """What gRPC core raises where it cannot send any more ends the call, without an incident and its traceback."""
    from grpc._cython.cygrpc import ExecuteBatchError

    with structlog.testing.capture_logs() as told:
        async with serving(ServiceSpec(), App(raising(ExecuteBatchError("Failed")))) as endpoints:
            with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
                await call(endpoints)
    assert not [entry for entry in told if "incident" in entry or "exc_info" in entry]


async def test_violations_travel_as_bad_request() -> None:
    """Field violations arrive as google.rpc.BadRequest, also when there are more than metadata may hold."""
    many = {f"rows[{index}].text": "expected " + "x" * 500 for index in range(500)}
    async with serving(ServiceSpec(), App(raising(errors.InvalidInput("bad rows", many)))) as endpoints:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(endpoints)
    violations = details_of(caught.value)["BadRequest"].field_violations
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert violations[0].field == "rows[0].text"
    assert violations[0].description.startswith("expected xxx")


async def test_unexpected_error_is_internal_with_an_id(caplog: pytest.LogCaptureFixture) -> None:
    """What nobody foresaw tells the caller an id only; its text never leaves the service."""
    async with serving(ServiceSpec(), App(raising(RuntimeError("secret detail")))) as endpoints:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(endpoints)
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in str(caught.value.details())
    incident = details_of(caught.value)["ErrorInfo"].metadata["incident"]
    assert incident in str(caught.value.details())


async def test_stream_error_comes_after_its_messages() -> None:
    """A streaming method's messages arrive, and then its error with the same mapping."""
    async with (
        serving(ServiceSpec(), App()) as endpoints,
        grpc.aio.insecure_channel(endpoints.grpc) as channel,
    ):
        stub: Any = weights_pb2_grpc.WeightServiceStub(channel)
        received = 0
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in stub.WatchVersions(weights_pb2.WatchVersionsRequest(), timeout=10):
                received += 1
    assert received == 3
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert details_of(caught.value)["ErrorInfo"].reason == "Mismatch"


async def test_undecodable_request_is_the_callers_mistake() -> None:
    """Bytes that are no message of the type are answered with INVALID_ARGUMENT, not with UNKNOWN."""
    async with (
        serving(ServiceSpec(), App()) as endpoints,
        grpc.aio.insecure_channel(endpoints.grpc) as channel,
    ):
        raw: Any = channel.unary_unary(f"/{REWARD}/Score")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await raw(b"\xff\xff\xff", timeout=10)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_oversized_message_is_refused_without_retry_info() -> None:
    """A message over the cap is RESOURCE_EXHAUSTED and names no time to retry."""
    spec = ServiceSpec(server=ServerSpec(max_message_mib=1))
    request = reward_pb2.ScoreRequest(inputs=[reward_pb2.ScoreInput(completion="x" * (2 << 20))])
    async with serving(spec, App()) as endpoints:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(endpoints, request)
        assert len((await call(endpoints)).scores) == 0
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    trailing = caught.value.trailing_metadata()
    assert trailing is None or "grpc-status-details-bin" not in trailing


async def test_overload_says_when_to_retry_and_health_still_answers() -> None:
    """With all places taken a call is refused with RetryInfo at once, while health goes on answering."""
    entered, release = asyncio.Event(), asyncio.Event()

    async def score(request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
        entered.set()
        await release.wait()
        return reward_pb2.ScoreResponse()

    spec = ServiceSpec(server=ServerSpec(max_queued_calls=1))
    async with serving(spec, App(score)) as endpoints:
        first = asyncio.ensure_future(call(endpoints))
        await asyncio.wait_for(entered.wait(), 10)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(endpoints)
        assert await health_of(endpoints.health) == health_pb2.HealthCheckResponse.SERVING
        assert await health_of(endpoints.grpc, REWARD) == health_pb2.HealthCheckResponse.SERVING
        release.set()
        await first
        await call(endpoints)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details_of(caught.value)["RetryInfo"].retry_delay.ToNanoseconds() == 1_000_000_000


async def test_default_deadline_for_callers_without_one() -> None:
    """A call that names no deadline ends by the default one."""

    async def score(request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
        await asyncio.Event().wait()
        return reward_pb2.ScoreResponse()

    spec = ServiceSpec(server=ServerSpec(default_deadline_seconds=0.2))
    async with serving(spec, App(score)) as endpoints:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.wait_for(call(endpoints, timeout=None), 10)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "0.2 s" in str(caught.value.details())
