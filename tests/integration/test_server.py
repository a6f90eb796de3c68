"""The bootstrap of services over real loopback gRPC: statuses, limits, drain."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from services.common import errors
from services.common.server import LIVE, Endpoints, ServiceServer, serving
from services.common.spec.service import ServerSpec, ServiceSpec
from trimtab.reward.v1 import reward_pb2, reward_pb2_grpc
from trimtab.weights.v1 import weights_pb2, weights_pb2_grpc

REWARD = "trimtab.reward.v1.RewardService"
WEIGHTS = "trimtab.weights.v1.WeightService"
Score = Callable[[reward_pb2.ScoreRequest], Awaitable[reward_pb2.ScoreResponse]]
DETAIL_TYPES = (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo)


class Reward(reward_pb2_grpc.RewardServiceServicer):
    """A real servicer whose Score is given by the test."""

    def __init__(self, score: Score) -> None:
        self._score = score

    async def Score(self, request: reward_pb2.ScoreRequest, context: Any) -> reward_pb2.ScoreResponse:
        return await self._score(request)

    async def ListModels(
        self, request: reward_pb2.ListModelsRequest, context: Any
    ) -> reward_pb2.ListModelsResponse:
        return reward_pb2.ListModelsResponse()


class Weights(weights_pb2_grpc.WeightServiceServicer):
    """A streaming servicer: three versions, then an error."""

    async def WatchVersions(
        self, request: weights_pb2.WatchVersionsRequest, context: Any
    ) -> AsyncIterator[weights_pb2.WatchVersionsResponse]:
        for _ in range(3):
            yield weights_pb2.WatchVersionsResponse()
        raise errors.Mismatch("run ended")


class App:
    """The smallest application: two servicers and a record of what was asked of it."""

    name = "reward"

    def __init__(self, score: Score | None = None) -> None:
        self._score = score or _empty
        self.drained = False
        self.release = asyncio.Event()
        self.release.set()

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        reward_pb2_grpc.add_RewardServiceServicer_to_server(Reward(self._score), server)
        weights_pb2_grpc.add_WeightServiceServicer_to_server(Weights(), server)
        return [REWARD, WEIGHTS]

    async def start(self) -> None:
        await self.release.wait()

    async def drain(self) -> None:
        self.drained = True

    async def wait(self) -> int:
        await asyncio.Event().wait()
        return 0


async def _empty(request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
    return reward_pb2.ScoreResponse()


def raising(error: Exception) -> Score:
    async def score(request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
        raise error

    return score


async def call(endpoints: Endpoints, request: reward_pb2.ScoreRequest | None = None, **options: Any) -> Any:
    async with grpc.aio.insecure_channel(endpoints.grpc) as channel:
        stub: Any = reward_pb2_grpc.RewardServiceStub(channel)
        return await stub.Score(request or reward_pb2.ScoreRequest(), **{"timeout": 10, **options})


def details_of(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    trailing = error.trailing_metadata()
    assert trailing is not None
    data = trailing["grpc-status-details-bin"]
    assert isinstance(data, bytes)
    status = status_pb2.Status.FromString(data)
    assert status.code == error.code().value[0]
    assert status.message == error.details()
    found = {}
    for packed in status.details:
        for kind in DETAIL_TYPES:
            if packed.Is(kind.DESCRIPTOR):
                found[kind.__name__] = kind.FromString(packed.value)
    return found


async def health_of(address: str, service: str = "") -> int:
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
        return int(answer.status)


async def until_health(address: str, wanted: int) -> None:
    """Return when health says so; fails after 30 seconds."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        async for answer in stub.Watch(health_pb2.HealthCheckRequest(), timeout=30):
            if answer.status == wanted:
                return
    raise AssertionError("health ended")


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


def page_of(endpoints: Endpoints) -> str:
    with urllib.request.urlopen(f"http://{endpoints.metrics}/metrics", timeout=10) as page:
        return str(page.read().decode())


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


def program(tmp_path: Path, *flags: str, build: str = "build") -> list[str]:
    script = tmp_path / "program.py"
    script.write_text(
        "from services.common.entry import service_main\n"
        "service_main('reward', 'services.common.spec.service:ServiceSpec', "
        f"'tests.integration.test_server:{build}')\n"
    )
    return [sys.executable, str(script), *flags]


def build(_config: ServiceSpec) -> App:
    return App()


class SlowApp(App):
    """Loads for ever, on a thread that nothing can interrupt; says so in a file."""

    def __init__(self, marker: Path) -> None:
        super().__init__()
        self._marker = marker

    async def start(self) -> None:
        self._marker.touch()
        await asyncio.to_thread(time.sleep, 3600)


class WorkingApp(App):
    """Waits for work of its own, which draining cancels, as a learner's training is."""

    async def start(self) -> None:
        self._work = asyncio.create_task(asyncio.Event().wait())

    async def drain(self) -> None:
        self._work.cancel()
        await asyncio.wait([self._work])
        await asyncio.sleep(0.05)

    async def wait(self) -> int:
        await self._work
        return 0


def build_working(_config: ServiceSpec) -> App:
    return WorkingApp()


def build_slow(config: ServiceSpec) -> App:
    return SlowApp(Path(config.name))


def environment() -> dict[str, str]:
    root = Path(__file__).resolve().parents[2]
    return {**os.environ, "PYTHONPATH": str(root)}


def test_port_in_use_is_one_clear_line(tmp_path: Path) -> None:
    """A port in use ends the program with one line that names it, and exit code 2."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        result = subprocess.run(
            program(tmp_path, "--set", f"server.port={port}"),
            capture_output=True,
            text=True,
            timeout=60,
            env=environment(),
        )
    assert result.returncode == 2
    assert result.stderr == f"trimtab-reward: port {port} is in use\n"


@pytest.mark.parametrize(
    ("number", "build"),
    [(signal.SIGTERM, "build"), (signal.SIGINT, "build"), (signal.SIGTERM, "build_working")],
)
def test_signal_drains_and_exits_zero(tmp_path: Path, number: signal.Signals, build: str) -> None:
    """SIGTERM and SIGINT drain the service, and it exits with 0 and no trace, also one whose work is cancelled."""
    endpoints = tmp_path / "endpoints.json"
    process = subprocess.Popen(
        program(tmp_path, "--set", f"endpoints_file={endpoints}", build=build),
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    try:
        _until(endpoints.exists, process)
        address = json.loads(endpoints.read_text())["health"]
        asyncio.run(until_health(address, health_pb2.HealthCheckResponse.SERVING))
        process.send_signal(number)
        _, logs = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    events = [json.loads(line) for line in logs.splitlines()]
    assert [event["event"] for event in events] == ["listening", "serving", "draining"]
    assert {event["service"] for event in events} == {"reward"}


def _until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    ends = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < ends
        time.sleep(0.02)


def test_sigterm_while_loading_exits_at_once(tmp_path: Path) -> None:
    """A service that is told to stop while it loads exits with 0 and does not wait for its thread."""
    marker = tmp_path / "loading"
    process = subprocess.Popen(
        program(tmp_path, "--set", f"name={marker}", build="build_slow"),
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    try:
        _until(marker.exists, process)
        process.terminate()
        process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0


def test_help_is_instant(tmp_path: Path) -> None:
    """--help loads nothing heavy: no grpc, no pydantic, no numpy."""
    code = (
        "import sys, services.common.entry\n"
        "heavy = {'grpc', 'pydantic', 'numpy', 'torch', 'structlog'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    result = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
