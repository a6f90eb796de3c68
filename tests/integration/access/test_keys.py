"""API keys over real loopback gRPC: who gets in, scopes, models, quotas, rotation while serving."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from services.common.access.keys import hash_of, new_key
from services.common.access.keys_edit import edit, revoked
from services.common.server import Endpoints, serving
from services.common.spec.service import ServiceSpec
from tests.integration.access.guarded import (
    REWARD,
    SERVING,
    App,
    Keys,
    score,
    spec,
)
from tests.integration.server.served import health_of
from trimtab import AsyncRewardClient, RewardClient
from trimtab.clients.errors import (
    OverloadedError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
)
from trimtab.reward.v1 import reward_pb2
from trimtab.weights.v1 import weights_pb2


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
        "WeightService/ReportVersion",
        "WeightService/OpenPair",
    }
    assert {scope: {name.partition("/")[0] for name in names} for scope, names in found.items()} == {
        "generate": {"PolicyService"},
        "logprobs": {"ReferenceService"},
        "preference": {"PreferenceService"},
    }
