"""What a service says of itself while it loads, serves, is marked and drains."""

from __future__ import annotations

import asyncio
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from services.common import errors
from services.common.drain_mark import Flag
from services.common.server import LIVE, ServiceServer, serving
from services.common.spec.service import ServerSpec, ServiceSpec
from tests.integration.server.served import (
    REWARD,
    WEIGHTS,
    App,
    call,
    health_of,
    page_of,
    raising,
    until_health,
)
from trimtab.reward.v1 import reward_pb2


async def test_not_serving_until_started() -> None:
    """While the application loads, health says NOT_SERVING and calls get UNAVAILABLE."""
    app = App()
    app.release.clear()
    server = ServiceServer(ServiceSpec(), app)
    await server.open()
    try:
        starting = asyncio.ensure_future(server.start())
        assert await health_of(server.endpoints.health) == health_pb2.HealthCheckResponse.NOT_SERVING
        # A liveness probe must not kill what is only not ready yet.
        assert await health_of(server.endpoints.health, LIVE) == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(server.endpoints)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        app.release.set()
        await starting
        assert await health_of(server.endpoints.health, REWARD) == health_pb2.HealthCheckResponse.SERVING
    finally:
        await server.close()


async def test_calls_in_flight_end_before_a_drained_server_goes() -> None:
    """Draining lets a running call finish, after health has said NOT_SERVING."""
    entered, release = asyncio.Event(), asyncio.Event()

    async def score(request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
        entered.set()
        await release.wait()
        return reward_pb2.ScoreResponse(scores=[{"value": 1.5}])  # type: ignore[list-item]

    app = App(score)
    server = ServiceServer(ServiceSpec(), app)
    await server.open()
    await server.start()
    try:
        answer = asyncio.ensure_future(call(server.endpoints))
        await asyncio.wait_for(entered.wait(), 10)
        draining = asyncio.ensure_future(server.drain())
        await until_health(server.endpoints.health, health_pb2.HealthCheckResponse.NOT_SERVING)
        release.set()
        assert (await answer).scores[0].value == 1.5
        await draining
        assert app.drained
    finally:
        await server.close()


async def test_a_mark_makes_it_not_ready_and_no_more(tmp_path: Path) -> None:
    """Marked to drain: NOT_SERVING, alive, and still answering who comes; unmarked: SERVING again."""
    mark = tmp_path / "drain"
    spec = ServiceSpec(server=ServerSpec(drain_file=mark))
    async with serving(spec, App()) as endpoints:
        assert await health_of(endpoints.grpc, REWARD) == health_pb2.HealthCheckResponse.SERVING
        mark.write_text("2026-01-02T03:04:05Z\n")
        await until_health(endpoints.grpc, health_pb2.HealthCheckResponse.NOT_SERVING)
        assert await health_of(endpoints.grpc, REWARD) == health_pb2.HealthCheckResponse.NOT_SERVING
        assert await health_of(endpoints.health, LIVE) == health_pb2.HealthCheckResponse.SERVING
        assert "trimtab_draining 1.0" in await asyncio.to_thread(page_of, endpoints)
        await call(endpoints)
        mark.write_text("\n")
        await until_health(endpoints.grpc, health_pb2.HealthCheckResponse.SERVING)
        assert "trimtab_draining 0.0" in await asyncio.to_thread(page_of, endpoints)


async def test_a_service_may_rest_by_itself() -> None:
    """Not ready while it says so, without being marked to drain; alive and answering all the time."""
    app = App()
    flag = Flag(poll_seconds=0.02)
    app.rest = flag  # type: ignore[attr-defined]
    async with serving(ServiceSpec(), app) as endpoints:
        assert await health_of(endpoints.grpc, REWARD) == health_pb2.HealthCheckResponse.SERVING
        flag.raised = True
        await until_health(endpoints.grpc, health_pb2.HealthCheckResponse.NOT_SERVING)
        assert await health_of(endpoints.health, LIVE) == health_pb2.HealthCheckResponse.SERVING
        assert "trimtab_draining 0.0" in await asyncio.to_thread(page_of, endpoints)
        await call(endpoints)
        flag.raised = False
        await until_health(endpoints.grpc, health_pb2.HealthCheckResponse.SERVING)


async def test_reflection_lists_the_services() -> None:
    """A stranger with grpcurl finds the services."""
    async with (
        serving(ServiceSpec(), App()) as endpoints,
        grpc.aio.insecure_channel(endpoints.grpc) as channel,
    ):
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        requests = [reflection_pb2.ServerReflectionRequest(list_services="")]
        answers = [answer async for answer in stub.ServerReflectionInfo(iter(requests), timeout=10)]
    names = {service.name for service in answers[0].list_services_response.service}
    assert {REWARD, WEIGHTS, "grpc.health.v1.Health"} <= names


async def test_metrics_count_calls_by_code() -> None:
    """The metrics page tells calls by method and code."""
    async with serving(ServiceSpec(), App(raising(errors.NotFound("x")))) as endpoints:
        with pytest.raises(grpc.aio.AioRpcError):
            await call(endpoints)

        def page() -> str:
            with urllib.request.urlopen(f"http://{endpoints.metrics}/metrics", timeout=10) as answer:
                return str(answer.read().decode())

        text = await asyncio.to_thread(page)
    assert f'trimtab_grpc_calls_total{{code="NOT_FOUND",method="{REWARD}/Score"}}' in text
    assert f'trimtab_grpc_call_seconds_count{{method="{REWARD}/Score"}}' in text
