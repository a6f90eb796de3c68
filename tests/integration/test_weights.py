"""Weights from a learner to a policy over real loopback gRPC: what differs is fetched, wrong bytes never served."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
import torch

from services.common.server import serving
from services.common.spec.service import ServiceSpec
from services.learner.weight_servicer import SERVICE_NAME, WeightServicer
from services.learner.weights import Layout, PublishedWeights
from services.models import weight_servicer
from services.models.loading import LoadedModel
from services.models.manifest import Version, entries_of, whole_digest
from services.policy.config import WeightSourceSpec
from services.policy.engines.transformers_engine import TransformersEngine
from services.policy.generation import Policy
from services.policy.weights import WeightReader
from tests.fakes.tiny_models import make_tiny_causal
from tests.fakes.tiny_runs import loaded_from
from trimtab.clients.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from trimtab.clients.learner import AsyncLearnerClient
from trimtab.weights.v1 import weights_pb2 as wire
from trimtab.weights.v1 import weights_pb2_grpc

NORM, LAYER = "model.norm.weight", "model.layers.0.mlp.up_proj.weight"
SECONDS = 30.0


class WeightsOnly:
    """A learner's weight service without its run. `fetched` are the tensors that each fetch asked for."""

    name = "learner"

    def __init__(self, weights: PublishedWeights | None = None) -> None:
        self.servicer = WeightServicer()
        self.fetched: list[list[str]] = []
        if weights is not None:
            self.servicer.attach(weights)
        fetch = self.servicer.FetchWeights

        def noted(request: wire.FetchWeightsRequest, context: Any) -> Any:
            self.fetched.append(list(request.tensors))
            return fetch(request, context)

        self.servicer.FetchWeights = noted  # type: ignore[method-assign]

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        weights_pb2_grpc.add_WeightServiceServicer_to_server(self.servicer, server)
        return [SERVICE_NAME]

    async def start(self) -> None:
        """Nothing to load."""

    async def drain(self) -> None:
        self.servicer.close()

    async def wait(self) -> int:
        return 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_causal(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def loaded(folder: Path) -> LoadedModel:
    return loaded_from(folder)


@pytest.fixture
def policy(loaded: LoadedModel) -> Policy:
    return Policy(TransformersEngine(loaded), loaded.tokenizer)


@pytest.fixture
def weights(policy: Policy) -> PublishedWeights:
    return PublishedWeights(tokenizer_fingerprint=policy.facts.tokenizer_fingerprint)


@pytest.fixture
def state(policy: Policy) -> dict[str, torch.Tensor]:
    """The learner's own copy of the weights."""
    return {name: value.clone() for name, value in policy.engine.weights().items()}


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks smaller than a tensor, so that borders are met."""
    monkeypatch.setattr(weight_servicer, "CHUNK_BYTES", 1000)


@asynccontextmanager
async def reading(policy: Policy, address: str) -> AsyncIterator[None]:
    """A reader that follows the address."""
    reader = WeightReader(policy, WeightSourceSpec(address=address, retry_seconds=0.05), "run")
    task = asyncio.create_task(reader.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def arrival(policy: Policy, version: Version) -> None:
    """Wait, on a thread as the model's is, until the policy serves at least this version."""
    await asyncio.to_thread(policy.await_version, version, stopping=threading.Event(), wait_seconds=SECONDS)


async def until(holds: Callable[[], bool]) -> None:
    """Wait for a condition, with a bound."""
    async with asyncio.timeout(SECONDS):
        while not holds():  # noqa: ASYNC110 - what is waited for sets no event
            await asyncio.sleep(0.01)


def assert_serves(policy: Policy, state: dict[str, torch.Tensor], version: Version) -> None:
    assert policy.version == version
    for name, value in policy.engine.weights().items():
        assert torch.equal(value, state[name]), name
    assert whole_digest(entries_of(policy.engine.weights())) == version.digest


async def test_only_what_differs_is_fetched(
    policy: Policy, weights: PublishedWeights, state: dict[str, torch.Tensor]
) -> None:
    """Equal weights: nothing is fetched, only the version changes. Two changed tensors: these two, verified, served."""
    first, _ = weights.publish(1, 0, state)
    learner = WeightsOnly(weights)
    async with serving(ServiceSpec(), learner) as where, reading(policy, where.grpc):
        await arrival(policy, first)
        assert_serves(policy, state, first)
        assert learner.fetched == []
        state[NORM] += 0.5
        state[LAYER] *= -1
        second, _ = weights.publish(1, 1, state)
        learner.servicer.announce()
        await arrival(policy, second)
    assert sorted(learner.fetched[0]) == [LAYER, NORM]
    assert_serves(policy, state, second)


async def test_every_announced_version_is_applied(
    policy: Policy, weights: PublishedWeights, state: dict[str, torch.Tensor]
) -> None:
    """A run of versions, some offered over others not applied yet, ends with the bytes of the last."""
    version, _ = weights.publish(1, 0, state)
    learner = WeightsOnly(weights)
    async with serving(ServiceSpec(), learner) as where, reading(policy, where.grpc):
        for step in range(1, 6):
            name = (NORM, LAYER)[step % 2]
            state[name] += step
            version, _ = weights.publish(1, step, state)
            learner.servicer.announce()
            await until(lambda at=step: _offered_step(policy) == at)  # type: ignore[misc]
            if step % 2:
                policy.apply_offered()
        await arrival(policy, version)
    assert_serves(policy, state, version)
    # Each time what differed from what was applied or offered already, never the same twice.
    assert [len(names) for names in learner.fetched] == [1] * 5


def _offered_step(policy: Policy) -> int:
    offered = policy._offered
    return offered.manifest.version.step if offered else policy.version.step


async def test_wrong_bytes_are_refused_and_fetched_again(
    policy: Policy,
    weights: PublishedWeights,
    state: dict[str, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One flipped bit, then bytes that end too early: neither is served; the third time is right."""
    before = {name: value.clone() for name, value in state.items()}
    state[LAYER] += 1
    version, _ = weights.publish(1, 1, state)
    real, damages = Layout.chunk, iter(["flip", "short"])

    def damaged(layout: Layout, offset: int, size: int) -> bytes:
        data = bytearray(real(layout, offset, size))
        if offset == 0:
            kind = next(damages, None)
            if kind:
                # Nothing of the damaged fetch before was served.
                assert all(
                    torch.equal(value, before[name]) for name, value in policy.engine.weights().items()
                )
            if kind == "flip":
                data[7] ^= 1
            if kind == "short":
                del data[-1]
        return bytes(data)

    monkeypatch.setattr(Layout, "chunk", damaged)
    learner = WeightsOnly(weights)
    with structlog.testing.capture_logs() as logs:
        async with serving(ServiceSpec(), learner) as where, reading(policy, where.grpc):
            await arrival(policy, version)
    refused = [entry["error"] for entry in logs if entry["event"] == "weights were refused"]
    assert refused[0] == f"{LAYER}: the digest of the bytes is not the manifest's"
    assert refused[1].startswith("weights: ")
    assert len(learner.fetched) == 3
    assert_serves(policy, state, version)


@pytest.mark.parametrize("wrong", ["tokenizer", "model", "digest"])
async def test_what_does_not_fit_is_refused_before_it_is_fetched(
    wrong: str, policy: Policy, state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another tokenizer, another model's tensors, a manifest without the digest it claims: said, and never applied."""
    before, version = {name: value.clone() for name, value in state.items()}, policy.version
    fingerprint = "0" * 64 if wrong == "tokenizer" else policy.facts.tokenizer_fingerprint
    if wrong == "model":
        state["model.layers.9.extra"] = torch.ones(3)
    if wrong == "digest":
        monkeypatch.setattr("services.learner.weights.whole_digest", lambda *_: "1" * 64)
    state[NORM] += 1
    weights = PublishedWeights(tokenizer_fingerprint=fingerprint)
    weights.publish(1, 1, state)
    learner = WeightsOnly(weights)
    with structlog.testing.capture_logs() as logs:
        async with serving(ServiceSpec(), learner) as where, reading(policy, where.grpc):
            await until(lambda: any(entry["event"] == "weights were refused" for entry in logs))
    expected = {
        "tokenizer": "the learner trains with tokenizer 0000000000000000, the policy has",
        "model": "the weights are of another model: this model does not have model.layers.9.extra",
        "digest": "the manifest of step 1 does not have the digest it claims",
    }[wrong]
    assert next(entry for entry in logs if entry["event"] == "weights were refused")["error"].startswith(
        expected
    )
    assert learner.fetched == []
    assert policy.version == version
    assert all(torch.equal(value, before[name]) for name, value in policy.engine.weights().items())


async def test_a_learner_that_is_away_is_waited_for(
    policy: Policy, weights: PublishedWeights, state: dict[str, torch.Tensor]
) -> None:
    """Before it has published, when it goes and when it comes back in a new epoch, the reader goes on by itself."""
    learner = WeightsOnly(weights)
    async with serving(ServiceSpec(), learner) as where:
        address = where.grpc
        async with reading(policy, address):
            first, _ = weights.publish(1, 0, state)
            learner.servicer.announce()
            await arrival(policy, first)
    port = int(address.rpartition(":")[2])
    async with reading(policy, address):
        state[NORM] += 1
        second, _ = weights.publish(2, 0, state)
        spec = ServiceSpec.model_validate({"server": {"port": port}})
        async with serving(spec, WeightsOnly(weights)):
            await arrival(policy, second)
    assert_serves(policy, state, second)


async def test_watchers_do_not_hold_up_the_end(
    policy: Policy, weights: PublishedWeights, state: dict[str, torch.Tensor]
) -> None:
    """A learner with a policy on the line ends at once, not when its drain time is over."""
    version, _ = weights.publish(1, 0, state)
    async with asyncio.timeout(SECONDS):
        async with serving(ServiceSpec(), WeightsOnly(weights)) as where:
            task = asyncio.create_task(
                WeightReader(policy, WeightSourceSpec(address=where.grpc), "run").run()
            )
            await arrival(policy, version)
            ends = time.monotonic()
    assert time.monotonic() - ends < 5
    task.cancel()
    await asyncio.wait([task])


async def test_manifests_and_bytes_on_the_wire(
    weights: PublishedWeights, state: dict[str, torch.Tensor]
) -> None:
    """By version or the newest; from any offset; mistakes each have their status."""
    learner = WeightsOnly()
    async with (
        serving(ServiceSpec(), learner) as where,
        AsyncLearnerClient(where.grpc, attempts=1) as client,
    ):
        with pytest.raises(UnavailableError, match="the learner is loading"):
            await client.manifest("run")
        learner.servicer.attach(weights)
        with pytest.raises(UnavailableError, match="no weights are published yet"):
            await client.manifest("run")
        weights.publish(1, 0, state)
        manifest = await client.manifest("run")
        assert await client.manifest("run", version=manifest.version) == manifest
        whole = b"".join([piece.data async for piece in client.fetch_weights(wire.FetchWeightsRequest())])
        assert len(whole) == manifest.total_bytes
        request = wire.FetchWeightsRequest(want=manifest.version, offset=1234)
        pieces = [piece async for piece in client.fetch_weights(request)]
        assert pieces[0].offset == 1234
        assert {piece.total_bytes for piece in pieces} == {len(whole)}
        assert b"".join(piece.data for piece in pieces) == whole[1234:]
        gone = manifest.version
        for step in (1, 2):
            state[NORM] += 1
            weights.publish(1, step, state)
        with pytest.raises(FailedPreconditionError, match="weights of epoch 1, step 0 are not here"):
            await client.manifest("run", version=gone)
        for bad, error, message in (
            (wire.FetchWeightsRequest(want=gone), FailedPreconditionError, "are not here"),
            (wire.FetchWeightsRequest(tensors=["nope"]), NotFoundError, "the manifest has no tensor nope"),
            (wire.FetchWeightsRequest(offset=len(whole) + 1), InvalidArgumentError, "lies past the"),
        ):
            with pytest.raises(error, match=message):
                _ = [piece async for piece in client.fetch_weights(bad)]
