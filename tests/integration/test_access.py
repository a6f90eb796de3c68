"""Access control over real loopback gRPC: keys, scopes, quotas, TLS, mTLS, rotation while serving."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from services.common.access import current
from services.common.access.credentials import name_in_certificate
from services.common.access.keys import hash_of, new_key
from services.common.access.keys_edit import added, edit, revoked
from services.common.access.keys_file import KeyEntry
from services.common.access.tls import TlsFiles
from services.common.server import Endpoints, serving
from services.common.spec.service import ServiceSpec, TlsSpec
from tests.fakes.certificates import Authority, Pair
from tests.integration.test_server import environment, health_of, until_health
from trimtab import AsyncLearnerClient, AsyncRewardClient, LearnerClient, RewardClient
from trimtab.clients.errors import (
    OverloadedError,
    PermissionDeniedError,
    ResourceExhaustedError,
    TrimtabClientError,
    UnauthenticatedError,
    UnavailableError,
)
from trimtab.common.v1 import common_pb2 as common
from trimtab.reward.v1 import reward_pb2, reward_pb2_grpc
from trimtab.weights.v1 import weights_pb2, weights_pb2_grpc

REWARD = "trimtab.reward.v1.RewardService"
SERVING = health_pb2.HealthCheckResponse.SERVING


class Reward(reward_pb2_grpc.RewardServiceServicer):
    """Answers with the caller's name; checks model and rows as a servicer does; may be held up."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.release = asyncio.Event()
        self.release.set()

    async def Score(self, request: reward_pb2.ScoreRequest, context: Any) -> reward_pb2.ScoreResponse:
        current().check(model=request.model, rows=len(request.inputs))
        self.entered.set()
        await self.release.wait()
        return reward_pb2.ScoreResponse(
            scores=[common.Score(value=1.0, model=current().name)] * len(request.inputs)
        )


class Admin(reward_pb2_grpc.RewardAdminServiceServicer):
    """Takes models away."""

    async def UnloadModel(
        self, request: reward_pb2.UnloadModelRequest, context: Any
    ) -> reward_pb2.UnloadModelResponse:
        return reward_pb2.UnloadModelResponse()


class Weights(weights_pb2_grpc.WeightServiceServicer):
    """Two versions, the second when the test says so."""

    def __init__(self) -> None:
        self.release = asyncio.Event()

    async def WatchVersions(
        self, request: weights_pb2.WatchVersionsRequest, context: Any
    ) -> AsyncIterator[weights_pb2.WatchVersionsResponse]:
        yield weights_pb2.WatchVersionsResponse()
        await self.release.wait()
        yield weights_pb2.WatchVersionsResponse()


class App:
    """A service with something to score, to administer and to watch."""

    name = "reward"

    def __init__(self) -> None:
        self.reward, self.weights = Reward(), Weights()

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        reward_pb2_grpc.add_RewardServiceServicer_to_server(self.reward, server)
        reward_pb2_grpc.add_RewardAdminServiceServicer_to_server(Admin(), server)
        weights_pb2_grpc.add_WeightServiceServicer_to_server(self.weights, server)
        return [REWARD]

    async def start(self) -> None:
        """Nothing to load."""

    async def drain(self) -> None:
        """Nothing to hand back."""

    async def wait(self) -> int:
        await asyncio.Event().wait()
        return 0


def build(_config: ServiceSpec) -> App:
    return App()


class Keys:
    """A keys file and the keys that it was given."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "keys.toml"

    def add(self, name: str = "trainer", **more: Any) -> str:
        key = new_key()
        edit(self.path, added(KeyEntry.model_validate({"name": name, "hash": hash_of(key), **more})))
        return key


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def spec(keys: Keys | None = None, authority: Authority | None = None, *, mtls: bool = False) -> ServiceSpec:
    tables: dict[str, Any] = {}
    if keys is not None:
        tables["access"] = {"keys_file": keys.path}
    if authority is not None:
        pair = authority.server()
        tables["tls"] = {"certificate": pair.certificate, "private_key": pair.private_key}
        if mtls:
            tables["tls"]["client_ca"] = authority.file
    return ServiceSpec.model_validate(tables)


async def score(target: str, rows: int = 1, *, model: str = "hh", **access: Any) -> str:
    """The name under which the service knows the caller."""
    inputs = [reward_pb2.ScoreInput(completion="c")] * rows
    async with AsyncRewardClient(target, attempts=1, timeout_seconds=20, **access) as client:
        answers = await client.score(inputs, model=model)
    return answers[0].model


async def test_only_known_keys_get_in(keys: Keys) -> None:
    """A key of the file opens; none, a wrong one and an expired one are UNAUTHENTICATED, each saying why."""
    good = keys.add("trainer")
    old = keys.add("old", expires="2020-01-01T00:00:00Z")
    async with serving(spec(keys), App()) as endpoints:
        assert await score(endpoints.grpc, key=good) == "trainer"
        for key, words in (("", "is needed"), (new_key(), "not known"), (old, "old has expired")):
            with pytest.raises(UnauthenticatedError, match=words):
                await score(endpoints.grpc, key=key)


async def test_without_keys_everybody_on_this_machine_may(tmp_path: Path) -> None:
    """Loopback without access control works as ever, and a key that comes along does no harm."""
    async with serving(spec(), App()) as endpoints:
        assert await score(endpoints.grpc) == ""
        assert await score(endpoints.grpc, key=new_key()) == ""


async def test_a_key_may_stand_in_either_header(keys: Keys) -> None:
    """authorization: Bearer, and x-api-key as some gateways know it."""
    good = keys.add()
    async with serving(spec(keys), App()) as endpoints:
        for metadata in ((("authorization", f"bearer {good}"),), (("x-api-key", good),)):
            assert await score(endpoints.grpc, metadata=metadata) == "trainer"


async def test_scopes_models_and_rows_are_held_to(keys: Keys) -> None:
    """A scorer cannot administer, uses its models only, and is told the true time when its rows are used up."""
    scorer = keys.add("trainer", models=["hh"], rows_per_minute=10)
    admin = keys.add("ops", scopes=["admin"])
    async with serving(spec(keys), App()) as endpoints:
        with pytest.raises(PermissionDeniedError, match="lacks the scope score"):
            await score(endpoints.grpc, key=admin)
        async with AsyncRewardClient(endpoints.grpc, key=admin) as client:
            await client.unload_model("hh")
        async with AsyncRewardClient(endpoints.grpc, key=scorer) as client:
            with pytest.raises(PermissionDeniedError, match="lacks the scope admin"):
                await client.unload_model("hh")
        with pytest.raises(PermissionDeniedError, match="may not use the model secret"):
            await score(endpoints.grpc, model="secret", key=scorer)
        await score(endpoints.grpc, 10, key=scorer)
        with pytest.raises(OverloadedError) as caught:
            await score(endpoints.grpc, 10, key=scorer)
        assert caught.value.retry_seconds is not None
        assert 50 < caught.value.retry_seconds <= 60
        with pytest.raises(ResourceExhaustedError, match="11 rows in one call") as never:
            await score(endpoints.grpc, 11, key=scorer)
        assert never.value.retry_seconds is None


async def test_keys_rotate_while_serving(keys: Keys) -> None:
    """A second key of the name opens at once, and the first is refused by the very next call once it is revoked."""
    first = keys.add()
    async with serving(spec(keys), App()) as endpoints:
        assert await score(endpoints.grpc, key=first) == "trainer"
        second = keys.add()
        for key in (first, second):
            assert await score(endpoints.grpc, key=key) == "trainer"
        edit(keys.path, revoked("trainer", hash_of(first).removeprefix("sha256:")[:12]))
        with pytest.raises(UnauthenticatedError):
            await score(endpoints.grpc, key=first)
        assert await score(endpoints.grpc, key=second) == "trainer"
        keys.path.write_text("[[keys]")
        assert await score(endpoints.grpc, key=second) == "trainer"


async def test_a_client_reads_its_key_file_anew(keys: Keys, tmp_path: Path) -> None:
    """Clients, blocking and asyncio, follow a key that is rotated in their file, without being made anew."""
    first = keys.add("first")
    file = tmp_path / "key"
    file.write_text(f"{first}\n")
    async with (
        serving(spec(keys), App()) as endpoints,
        AsyncRewardClient(endpoints.grpc, key_file=file) as client,
    ):
        with RewardClient(endpoints.grpc, key_file=file) as blocking:
            for name in ("first", "second"):
                rows = [reward_pb2.ScoreInput(completion="c")]
                assert (await client.score(rows))[0].model == name
                assert (await asyncio.to_thread(blocking.score, rows))[0].model == name
                edit(keys.path, revoked(name))
                file.write_text(keys.add("second"))


async def test_health_needs_no_key_and_reflection_does(keys: Keys) -> None:
    """Balancing clients ask for health on the main port; who lists the methods must be known, whatever its scope."""
    admin = keys.add("ops", scopes=["admin"])
    async with serving(spec(keys), App()) as endpoints:
        assert await health_of(endpoints.grpc, REWARD) == SERVING
        assert await health_of(endpoints.health) == SERVING
        assert REWARD in await reflected(endpoints, (("authorization", f"Bearer {admin}"),))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await reflected(endpoints, ())
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def reflected(endpoints: Endpoints, metadata: Any) -> set[str]:
    async with grpc.aio.insecure_channel(endpoints.grpc) as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        requests = [reflection_pb2.ServerReflectionRequest(list_services="")]
        call = stub.ServerReflectionInfo(iter(requests), timeout=10, metadata=metadata)
        answers = [answer async for answer in call]
    return {service.name for service in answers[0].list_services_response.service}


async def test_strangers_take_no_places(keys: Keys) -> None:
    """With all places taken a stranger hears that it is one, and does not keep a known caller out; nor is its
    message looked at."""
    good = keys.add()
    app = App()
    app.reward.release.clear()
    full = spec(keys).model_copy(
        update={"server": ServiceSpec().server.model_copy(update={"max_queued_calls": 1})}
    )
    async with serving(full, app) as endpoints:
        running = asyncio.ensure_future(score(endpoints.grpc, key=good))
        await asyncio.wait_for(app.reward.entered.wait(), 20)
        with pytest.raises(UnauthenticatedError):
            await score(endpoints.grpc, key=new_key())
        async with grpc.aio.insecure_channel(endpoints.grpc) as channel:
            raw: Any = channel.unary_unary(f"/{REWARD}/Score")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await raw(b"\xff\xff\xff", timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        app.reward.release.set()
        assert await running == "trainer"


async def test_tls_serves_those_who_trust_it(keys: Keys, authority: Authority, tmp_path: Path) -> None:
    """With TLS on, plaintext and foreign trust fail, and a client with the authority's file gets in."""
    good = keys.add()
    stranger = Authority(tmp_path, "stranger")
    async with serving(spec(keys, authority), App()) as endpoints:
        assert await score(endpoints.grpc, key=good, ca_file=authority.file) == "trainer"
        with RewardClient(endpoints.grpc, key=good, ca_file=authority.file) as client:
            [answer] = await asyncio.to_thread(client.score, [reward_pb2.ScoreInput(completion="c")])
        assert answer.model == "trainer"
        for access in ({}, {"tls": True}, {"ca_file": stranger.file}):
            with pytest.raises(UnavailableError):
                await score(endpoints.grpc, key=good, **access)
        assert await health_of(endpoints.health) == SERVING


async def test_mtls_turns_away_who_has_no_certificate(authority: Authority, tmp_path: Path) -> None:
    """A client authority asks every client for a certificate of its own; its common name is who calls."""
    client = authority.client("learner")
    foreign = Authority(tmp_path, "foreign").client("learner", "foreign-client")
    async with serving(spec(None, authority, mtls=True), App()) as endpoints:
        for access in ({}, pair_of(foreign)):
            with pytest.raises(UnavailableError):
                await score(endpoints.grpc, ca_file=authority.file, **access)
        assert await score(endpoints.grpc, ca_file=authority.file, **pair_of(client)) == "learner"
        async with AsyncRewardClient(endpoints.grpc, ca_file=authority.file, **pair_of(client)) as admin:
            with pytest.raises(PermissionDeniedError, match="learner lacks the scope admin"):
                await admin.unload_model("hh")


async def test_certificates_can_be_written_down_like_keys(keys: Keys, authority: Authority) -> None:
    """With a keys file beside mTLS, a certificate alone gets in only where the file names it, with its scopes."""
    keys.path.write_text('[[certificates]]\nname = "learner"\nscopes = ["admin"]\n')
    keys.path.chmod(0o600)
    good = keys.add("trainer")
    learner, other = authority.client("learner"), authority.client("other", "other")
    async with serving(spec(keys, authority, mtls=True), App()) as endpoints:
        trusted: dict[str, Any] = {"ca_file": authority.file}
        async with AsyncRewardClient(endpoints.grpc, **trusted, **pair_of(learner)) as client:
            await client.unload_model("hh")
        with pytest.raises(PermissionDeniedError, match="lacks the scope score"):
            await score(endpoints.grpc, **trusted, **pair_of(learner))
        with pytest.raises(UnauthenticatedError, match="other is not in the keys file"):
            await score(endpoints.grpc, **trusted, **pair_of(other))
        assert await score(endpoints.grpc, key=good, **trusted, **pair_of(other)) == "trainer"


def pair_of(pair: Pair) -> dict[str, Any]:
    return {"certificate_file": pair.certificate, "private_key_file": pair.private_key}


def served_certificate(address: str) -> str:
    host, _, port = address.rpartition(":")
    return ssl.get_server_certificate((host, int(port)), timeout=20)


async def test_the_servers_certificate_rotates_without_a_dropped_call(
    keys: Keys, authority: Authority
) -> None:
    """New connections see the new certificate, a call in progress ends well, a broken file changes nothing."""
    good, app = keys.add(), App()
    async with serving(spec(keys, authority), app) as endpoints:
        before = await asyncio.to_thread(served_certificate, endpoints.grpc)
        app.reward.release.clear()
        running = asyncio.ensure_future(score(endpoints.grpc, key=good, ca_file=authority.file))
        await asyncio.wait_for(app.reward.entered.wait(), 20)
        pair = authority.server()
        after = await asyncio.to_thread(served_certificate, endpoints.grpc)
        assert after != before
        assert after.strip() in pair.certificate.read_text()
        app.reward.release.set()
        assert await running == "trainer"
        pair.certificate.write_text("broken")
        assert await asyncio.to_thread(served_certificate, endpoints.grpc) == after
        assert await score(endpoints.grpc, key=good, ca_file=authority.file) == "trainer"


async def test_clients_certificates_rotate_without_a_dropped_call(authority: Authority) -> None:
    """A client, blocking or asyncio, calls under its new certificate from the next call on; one in progress
    and a stream in progress end well on the old."""
    app = App()
    pair = authority.client("first")
    options: dict[str, Any] = {"ca_file": authority.file, **pair_of(pair)}
    rows = [reward_pb2.ScoreInput(completion="c")]
    async with serving(spec(None, authority, mtls=True), app) as endpoints:
        with ExitStack() as stack:
            blocking = stack.enter_context(RewardClient(endpoints.grpc, **options))
            watcher = stack.enter_context(LearnerClient(endpoints.grpc, **options))
            async with (
                AsyncRewardClient(endpoints.grpc, **options) as client,
                AsyncLearnerClient(endpoints.grpc, **options) as async_watcher,
            ):
                app.reward.release.clear()
                running = [
                    asyncio.ensure_future(client.score(rows)),
                    asyncio.ensure_future(asyncio.to_thread(blocking.score, rows)),
                ]
                stream, async_stream = watcher.watch_versions("run"), async_watcher.watch_versions("run")
                await asyncio.to_thread(next, stream)
                await anext(async_stream)
                await asyncio.wait_for(app.reward.entered.wait(), 20)
                await until_in_flight(2)
                authority.client("second")
                app.reward.release.set()
                for name in ("first", "second"):
                    assert [(await answer)[0].model for answer in running] == [name, name]
                    running = [
                        asyncio.ensure_future(client.score(rows)),
                        asyncio.ensure_future(asyncio.to_thread(blocking.score, rows)),
                    ]
                await asyncio.gather(*running)
                app.weights.release.set()
                assert len(await asyncio.to_thread(list, stream)) == 1
                assert len([message async for message in async_stream]) == 1


async def until_in_flight(calls: int) -> None:
    """Return when the service works on so many Score calls; fails after 20 seconds."""
    from services.common.telemetry import CALLS_IN_FLIGHT

    async with asyncio.timeout(20):
        while CALLS_IN_FLIGHT.labels(f"{REWARD}/Score")._value.get() < calls:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.01)


async def test_http_is_offered_the_same_certificates(authority: Authority) -> None:
    """The context for asyncio and uvicorn asks for client certificates, tells their names, and rotates."""
    client, server = authority.client("learner"), authority.server()
    tls = TlsFiles(
        TlsSpec(certificate=server.certificate, private_key=server.private_key, client_ca=authority.file)
    )
    names: list[str | None] = []

    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        names.append(name_in_certificate(writer.get_extra_info("ssl_object").getpeercert()))
        writer.write(b"hello")
        writer.close()

    listener = await asyncio.start_server(greet, "127.0.0.1", 0, ssl=tls.ssl_context())
    port = listener.sockets[0].getsockname()[1]

    async def ask(context: ssl.SSLContext) -> tuple[bytes, bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        try:
            return writer.get_extra_info("ssl_object").getpeercert(True), await reader.read()
        finally:
            writer.close()

    trusting = ssl.create_default_context(cafile=authority.file)
    # With TLS 1.3 a client hears only after its handshake that it was turned away.
    with suppress(ssl.SSLError, ConnectionError):
        assert (await ask(trusting))[1] == b""
    assert names == []
    trusting.load_cert_chain(client.certificate, client.private_key)
    first, answer = await ask(trusting)
    authority.server()
    second, _ = await ask(trusting)
    listener.close()
    await listener.wait_closed()
    assert answer == b"hello"
    assert first != second
    assert names == ["learner", "learner"]


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[str], Endpoints]]]:
    """Starts a service as a program of its own, with its log in pipes."""
    started: list[subprocess.Popen[str]] = []

    def start(*settings: str) -> tuple[subprocess.Popen[str], Endpoints]:
        endpoints = tmp_path / "endpoints.json"
        script = tmp_path / "program.py"
        script.write_text(
            "from services.common.entry import service_main\n"
            "service_main('reward', 'services.common.spec.service:ServiceSpec', "
            "'tests.integration.test_access:build')\n"
        )
        flags = [part for each in (f"endpoints_file={endpoints}", *settings) for part in ("--set", each)]
        log = (tmp_path / "log").open("w")
        process = subprocess.Popen(
            [sys.executable, str(script), *flags],
            stdout=log,
            stderr=log,
            text=True,
            env={**environment(), "GRPC_VERBOSITY": "DEBUG"},
        )
        log.close()
        started.append(process)
        for _ in range(3000):
            if endpoints.exists():
                break
            try:
                process.wait(0.02)
            except subprocess.TimeoutExpired:
                continue
            raise AssertionError((tmp_path / "log").read_text())
        return process, Endpoints(**json.loads(endpoints.read_text()))

    yield start
    for process in started:
        process.kill()
        process.wait()


async def test_no_key_is_ever_told(
    keys: Keys, authority: Authority, tmp_path: Path, program: Callable[..., Any]
) -> None:
    """Neither logs (gRPC's own at debug level included), nor metrics, nor errors, nor ps show a key, whether it
    was accepted or refused for any reason; the refusals are counted by reason."""
    good = keys.add("trainer", models=["hh"], rows_per_minute=2)
    old = keys.add("old", expires="2020-01-01T00:00:00Z")
    unknown = new_key()
    pair = authority.server()
    process, endpoints = program(
        f"access.keys_file={keys.path}",
        f"tls.certificate={pair.certificate}",
        f"tls.private_key={pair.private_key}",
    )
    await until_health(endpoints.health, SERVING)
    told: list[str] = []
    for key, options in (
        (good, {"rows": 2}),
        (good, {"rows": 1}),
        (good, {"rows": 3}),
        (good, {"model": "secret"}),
        (old, {}),
        (unknown, {}),
        (f"{unknown}{unknown}", {}),
    ):
        try:
            await score(endpoints.grpc, key=key, ca_file=authority.file, **options)
        except TrimtabClientError as error:
            told.append(repr(error) + str(error) + str(error.__cause__))
    with pytest.raises(UnauthenticatedError):
        await score(endpoints.grpc, key="", ca_file=authority.file)
    assert len(told) == 6
    page = await asyncio.to_thread(metrics_of, endpoints)
    for reason, count in (
        ("unknown_key", 2),
        ("expired", 1),
        ("quota", 2),
        ("model", 1),
        ("no_credentials", 1),
    ):
        assert f'trimtab_access_refused_total{{reason="{reason}"}} {count}.0' in page
    command = Path(f"/proc/{process.pid}/cmdline").read_text()
    process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(process.wait, 30) == 0
    log = (tmp_path / "log").read_text()
    assert log.count('"event": "access refused"') == 7
    for key in (good, old, unknown):
        assert key not in "".join(told) + page + command + log + keys.path.read_text()
        assert key.removeprefix("tt_") not in "".join(told) + page + command + log


def metrics_of(endpoints: Endpoints) -> str:
    with urllib.request.urlopen(f"http://{endpoints.metrics}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def test_an_unsafe_start_is_one_line(keys: Keys, tmp_path: Path) -> None:
    """The program ends with exit code 2 and the reason, before it listens anywhere."""
    keys.add()
    script = (
        "from services.common.entry import service_main\n"
        "service_main('reward', 'services.common.spec.service:ServiceSpec', 'tests.integration.test_access:build')"
    )
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            script,
            "--set",
            "server.host=0.0.0.0",
            "--set",
            f"access.keys_file={keys.path}",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment()},
    )
    assert result.returncode == 2
    assert result.stderr.startswith(
        "trimtab-reward: host 0.0.0.0 listens beyond loopback without TLS: API keys"
    )
    assert result.stderr.count("\n") == 1


async def test_every_method_of_the_contract_has_its_scope() -> None:
    """The authorisation table, method by method; a new method must be entered here."""
    from services.common.access.scopes import scope_of
    from trimtab.learner.v1 import learner_pb2
    from trimtab.policy.v1 import policy_pb2
    from trimtab.preference.v1 import preference_pb2
    from trimtab.reference.v1 import reference_pb2

    files = (learner_pb2, policy_pb2, preference_pb2, reference_pb2, reward_pb2, weights_pb2)
    found: dict[str, set[str]] = {}
    for file in files:
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                scope = scope_of(f"{service.full_name}/{method.name}")
                assert scope is not None
                found.setdefault(scope, set()).add(f"{service.name}/{method.name}")
    assert found.pop("admin") == {
        "RewardAdminService/LoadModel",
        "RewardAdminService/UnloadModel",
        "RewardAdminService/SwapModel",
        "RewardAdminService/SetShadow",
        "LearnerService/Pause",
        "LearnerService/Resume",
        "LearnerService/Checkpoint",
        "LearnerService/Stop",
    }
    assert found.pop("status") == {"LearnerService/GetRunStatus"}
    assert found.pop("score") == {"RewardService/Score", "RewardService/ListModels"}
    assert found.pop("weights") == {
        "WeightService/GetManifest",
        "WeightService/WatchVersions",
        "WeightService/FetchWeights",
    }
    assert {scope: {name.partition("/")[0] for name in names} for scope, names in found.items()} == {
        "generate": {"PolicyService"},
        "logprobs": {"ReferenceService"},
        "preference": {"PreferenceService"},
    }
