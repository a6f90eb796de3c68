"""Weights from a learner to policies by a shared folder; what is not there, or wrong, by gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog
import torch

from services.common.server import serving
from services.common.spec.service import ServiceSpec
from services.learner.weights import PublishedWeights
from services.models.loading import serving_state
from services.models.manifest import entry_of
from services.models.tensor_folder import TensorFolder
from services.policy.config import WeightSourceSpec
from services.policy.engines.transformers_engine import TransformersEngine
from services.policy.generation import Policy
from services.policy.weight_metrics import FETCHED_BYTES, SOURCE_FAILURES
from services.policy.weights import WeightReader
from tests.fakes.tiny_models import make_tiny_causal
from tests.fakes.tiny_runs import loaded_from
from tests.integration.test_weight_faults import Replica, Scene, check_completions, replicas
from tests.integration.test_weights import LAYER, NORM, WeightsOnly, arrival, assert_serves
from trimtab import AsyncPolicyClient

State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_causal(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder"


@pytest.fixture
def policies(model: Path) -> list[Policy]:
    loaded = [loaded_from(model) for _ in range(2)]
    return [Policy(TransformersEngine(each), each.tokenizer) for each in loaded]


@pytest.fixture
def state(policies: list[Policy]) -> State:
    """The learner's own copy of the weights."""
    return {name: value.clone() for name, value in policies[0].engine.weights().items()}


def published_by(path: Path) -> PublishedWeights:
    return PublishedWeights(tokenizer_fingerprint="", deltas=False, folder=TensorFolder(path))


@asynccontextmanager
async def reading(policies: list[Policy], address: str, folder: Path) -> AsyncIterator[None]:
    """Each follows the address, and looks into the folder first."""
    source = WeightSourceSpec(address=address, folder=str(folder), retry_seconds=0.05)
    tasks = [asyncio.create_task(WeightReader(policy, source, "run").run()) for policy in policies]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def shared_bytes() -> float:
    return float(FETCHED_BYTES.labels("shared", "folder")._value.get())


async def test_two_policies_map_what_the_learner_wrote(
    policies: list[Policy], state: State, path: Path
) -> None:
    """Both serve each version's very bytes and fetch none, also from a learner that comes back after kill -9."""
    weights, before = published_by(path), shared_bytes()
    weights.publish(1, 0, state)
    learner = WeightsOnly(weights)
    with structlog.testing.capture_logs() as logs:
        async with serving(ServiceSpec(), learner) as where, reading(policies, where.grpc, path):
            for step in (1, 2):
                state[NORM] += step
                state[LAYER] *= -1
                version, _ = weights.publish(1, step, state)
                learner.servicer.announce()
                for policy in policies:
                    await arrival(policy, version)
                    assert_serves(policy, state, version)
            assert weights._folder is not None
            weights._folder._let_go()  # as the kernel does for a process that dies
            again = published_by(path)
            again.publish(2, 0, state)
            state[LAYER] += 1
            version, _ = again.publish(2, 1, state)
            learner.servicer.attach(again)
            learner.servicer.announce()
            for policy in policies:
                await arrival(policy, version)
                assert_serves(policy, state, version)
            again.close()
    assert learner.fetched == []
    size = sum(entry_of(name, state[name]).size_bytes for name in (NORM, LAYER))
    assert shared_bytes() == before + 2 * (2 * size + entry_of(LAYER, state[LAYER]).size_bytes)
    arrived = [one for one in logs if one["event"] == "weights arrived" and one["tensors"]]
    assert {one["encoding"] for one in arrived} == {"shared"}
    for policy in policies:
        assert_serves(policy, state, version)


@pytest.mark.parametrize("fault", ["missing", "flipped", "cut"])
async def test_what_the_folder_lacks_is_fetched(
    policies: list[Policy], state: State, path: Path, fault: str
) -> None:
    """One file of two: that tensor alone comes by gRPC; a wrong one is counted and never served."""
    weights, failures = published_by(path), SOURCE_FAILURES._value.get()
    state[NORM] += 1
    state[LAYER] += 1
    version, _ = weights.publish(1, 1, state)
    file = path / entry_of(NORM, state[NORM]).digest.hex()
    data = file.read_bytes()
    file.unlink()
    if fault != "missing":
        file.write_bytes(bytes([data[0] ^ 1]) + data[1:] if fault == "flipped" else data[:-1])
    learner, [policy, _] = WeightsOnly(weights), policies
    with structlog.testing.capture_logs() as logs:
        async with serving(ServiceSpec(), learner) as where, reading([policy], where.grpc, path):
            await arrival(policy, version)
    assert_serves(policy, state, version)
    assert learner.fetched == [[NORM]]
    assert SOURCE_FAILURES._value.get() == failures + (fault != "missing")
    arrived = next(one for one in logs if one["event"] == "weights arrived")
    size = sum(entry_of(name, state[name]).size_bytes for name in (NORM, LAYER))
    assert (arrived["encoding"], arrived["size"]) == ("full", size)
    weights.close()


@pytest.mark.timeout(120)
async def test_a_policy_process_serves_what_it_mapped(model: Path, tmp_path: Path, path: Path) -> None:
    """Each token has the log-prob of the version it names, also after the policy was killed; no byte was fetched."""
    loaded = loaded_from(model)
    state = {name: value.clone() for name, value in serving_state(loaded.model).items()}
    scene = Scene(published_by(path), state)
    learner = WeightsOnly(scene.weights)
    scene.publish(learner)
    (tmp_path / "one").mkdir()
    async with serving(ServiceSpec(), learner) as where:
        one = Replica(tmp_path / "one", model, where.grpc, "wait", weights_folder=str(path))
        async with replicas(one):
            for killed in (False, True):
                if killed:
                    one.end()
                    await one.start()
                version = scene.publish(learner)
                await scene.until_served(one, version)
                async with AsyncPolicyClient(one.address) as client:
                    [result] = await client.generate(
                        [[5, 6, 7, 8]], num_completions=4, max_new_tokens=8, seed=1
                    )
                scene.completions.extend(result.completions)
    assert len(check_completions(loaded, scene)) == 2
    assert learner.fetched == []
    scene.weights.close()
