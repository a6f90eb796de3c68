"""Weights over a fabric that learner and replicas share: gloo here. A pair that breaks costs a version nothing."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch

from services.common.channels import make_channel
from services.common.errors import Corrupted
from services.common.server import serving
from services.common.spec.service import ServiceSpec
from services.learner.weight_servicer import WeightServicer
from services.learner.weights import PublishedWeights
from services.models import pair_servicer, weight_servicer
from services.models.loading import LoadedModel
from services.models.pairs import Fabric, Pair
from services.models.snapshots import Layout
from services.policy import pairing
from services.policy.engines.transformers_engine import TransformersEngine
from services.policy.fetching import Arriving
from services.policy.generation import Policy
from services.policy.weight_metrics import FETCHED_BYTES, PAIR_FAILURES, PAIRED_BYTES
from tests.fakes.tiny_models import make_tiny_causal
from tests.fakes.tiny_runs import loaded_from
from tests.integration.test_weights import WeightsOnly, arrival, assert_serves
from tests.integration.weight_replicas import PLAIN, Replica, nudge, replica
from trimtab.weights.v1 import weights_pb2 as wire
from trimtab.weights.v1 import weights_pb2_grpc

RACK = Fabric("rack-1", torch.device("cpu"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_causal(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def loaded(folder: Path) -> LoadedModel:
    return loaded_from(folder)


@pytest.fixture
def state(loaded: LoadedModel) -> dict[str, torch.Tensor]:
    weights = Policy(TransformersEngine(loaded), loaded.tokenizer).engine.weights()
    return {name: tensor.clone() for name, tensor in weights.items()}


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces smaller than a tensor, and every stream large enough for a pair."""
    monkeypatch.setattr(weight_servicer, "PIECE_BYTES", 1000)
    monkeypatch.setattr(weight_servicer, "LEAST_BYTES", 1)


class OnFabric(WeightsOnly):
    """A learner's weight service that shares `fabric` with whoever says the same."""

    def __init__(self, weights: PublishedWeights, fabric: Fabric | None) -> None:
        super().__init__()
        self.servicer = WeightServicer(fabric)
        self.servicer.attach(weights)


def published(loaded: LoadedModel) -> PublishedWeights:
    return PublishedWeights(tokenizer_fingerprint=loaded.facts.tokenizer_fingerprint)


def counted(metric: Any) -> float:
    """A counter's value."""
    return float(metric._value.get())


async def deliver(learner: OnFabric, weights: PublishedWeights, state: Any, step: int, one: Replica) -> None:
    """Publish what the state is now, and see that exactly this is served."""
    version, _ = weights.publish(1, step, state)
    learner.servicer.announce()
    await arrival(one.policy, version)
    assert_serves(one.policy, state, version)


async def test_weights_come_over_the_fabric_bit_for_bit_and_a_pair_lasts_over_versions(
    loaded: LoadedModel, state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole tensors and deltas alike; nothing of them goes through the call's own messages."""
    made = list[Fabric]()
    connect = Pair.connect

    async def noted(self: Pair, *arguments: Any) -> None:
        made.append(self._fabric)
        await connect(self, *arguments)

    monkeypatch.setattr(Pair, "connect", noted)
    weights = published(loaded)
    learner = OnFabric(weights, RACK)
    async with serving(PLAIN, learner) as where, replica(loaded, where.grpc, fabric=RACK.name) as one:
        before = counted(PAIRED_BYTES)
        fetched = [counted(FETCHED_BYTES.labels(kind, "learner")) for kind in ("full", "delta")]
        for step in range(1, 5):
            nudge(state, seed=step)
            await deliver(learner, weights, state, step, one)
        after = [counted(FETCHED_BYTES.labels(kind, "learner")) for kind in ("full", "delta")]
        whole, delta = (now - then for now, then in zip(after, fetched, strict=True))
    assert whole > 0
    assert delta > 0
    assert counted(PAIRED_BYTES) - before == whole + delta
    assert made == [RACK, RACK]  # one, on both sides


async def test_a_replica_passes_on_over_the_fabric(
    loaded: LoadedModel, state: dict[str, torch.Tensor]
) -> None:
    """Peers are sources like the learner: the second reader's bytes come from the first, through a pair of theirs."""
    weights = published(loaded)
    learner = OnFabric(weights, RACK)
    async with (
        serving(PLAIN, learner) as where,
        replica(loaded, where.grpc, fabric=RACK.name) as one,
        replica(loaded, where.grpc, fabric=RACK.name) as two,
    ):
        before = counted(PAIRED_BYTES)
        nudge(state, seed=1)
        await deliver(learner, weights, state, 1, one)
        await arrival(two.policy, one.policy.version)
        assert_serves(two.policy, state, one.policy.version)
        assert counted(PAIRED_BYTES) - before == 2 * sum(tensor.nbytes for tensor in state.values())


@pytest.mark.parametrize("theirs", [None, Fabric("rack-2", torch.device("cpu"))])
async def test_without_a_shared_fabric_grpc_does_it_all(
    loaded: LoadedModel, state: dict[str, torch.Tensor], theirs: Fabric | None
) -> None:
    """A source that has none, or another one, is no reason to wait."""
    weights = published(loaded)
    learner = OnFabric(weights, theirs)
    async with serving(PLAIN, learner) as where, replica(loaded, where.grpc, fabric=RACK.name) as one:
        before = counted(PAIRED_BYTES)
        nudge(state, seed=1)
        await deliver(learner, weights, state, 1, one)
        assert counted(PAIRED_BYTES) == before


async def test_a_source_that_knows_no_pairs_delivers(
    loaded: LoadedModel, state: dict[str, torch.Tensor]
) -> None:
    """An older server answers UNIMPLEMENTED."""
    weights = published(loaded)
    learner = OnFabric(weights, RACK)

    async def unknown(requests: AsyncIterator[Any], context: Any) -> None:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")

    learner.servicer.OpenPair = unknown  # type: ignore[method-assign, assignment]
    async with serving(PLAIN, learner) as where, replica(loaded, where.grpc, fabric=RACK.name) as one:
        nudge(state, seed=1)
        await deliver(learner, weights, state, 1, one)


@pytest.mark.parametrize("whose", ["source", "reader"])
async def test_a_pair_that_breaks_within_a_version_is_followed_by_grpc_from_that_byte_on(
    loaded: LoadedModel, state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    """What had come is kept; the version after it goes through a new pair."""
    monkeypatch.setattr(pairing, "_AGAIN_SECONDS", 0.0)
    method, pieces = {"source": ("send", 0), "reader": ("receive", 0)}[whose]
    real = getattr(Pair, method)

    async def breaking(self: Pair, argument: Any) -> Any:
        nonlocal pieces
        pieces += 1
        if pieces == 5:
            self.close()
        return await real(self, argument)

    monkeypatch.setattr(Pair, method, breaking)
    weights = published(loaded)
    learner = OnFabric(weights, RACK)
    offsets = list[int]()
    fetch = learner.servicer.FetchWeights

    def noted(request: wire.FetchWeightsRequest, context: Any) -> Any:
        offsets.append(request.offset)
        return fetch(request, context)

    learner.servicer.FetchWeights = noted  # type: ignore[method-assign]
    async with serving(PLAIN, learner) as where, replica(loaded, where.grpc, fabric=RACK.name) as one:
        before, failures = counted(PAIRED_BYTES), counted(PAIR_FAILURES)
        nudge(state, seed=1)
        await deliver(learner, weights, state, 1, one)
        assert offsets == [0, 4000]
        assert counted(PAIRED_BYTES) - before == 4000
        assert counted(PAIR_FAILURES) - failures == 1
        nudge(state, seed=2)
        await deliver(learner, weights, state, 2, one)
        assert counted(PAIRED_BYTES) - before > 4000


async def test_a_silent_pair_holds_up_nobody(
    loaded: LoadedModel, state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source's bytes never leave: the reader waits stall_seconds, gRPC does the rest, and the next version too."""
    held = asyncio.Event()
    real = Pair.send
    silent = True

    async def never(self: Pair, make: Any) -> None:
        nonlocal silent
        if silent:
            silent = False
            await held.wait()
        await real(self, make)

    monkeypatch.setattr(Pair, "send", never)
    weights = published(loaded)
    learner = OnFabric(weights, RACK)
    async with (
        serving(PLAIN, learner) as where,
        replica(loaded, where.grpc, fabric=RACK.name, stall_seconds=0.3) as one,
    ):
        nudge(state, seed=1)
        await deliver(learner, weights, state, 1, one)
        held.set()
        nudge(state, seed=2)
        await deliver(learner, weights, state, 2, one)


@pytest.mark.parametrize("whose", ["source", "reader"])
async def test_a_fetch_that_was_given_up_leaves_no_piece_behind(
    loaded: LoadedModel, state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    """Something else goes wrong while pieces are on their way; the pair that comes after is in step."""
    monkeypatch.setattr(pairing, "_AGAIN_SECONDS", 0.0)
    weights = published(loaded)
    learner = OnFabric(weights, RACK)
    if whose == "source":
        monkeypatch.setattr(Layout, "chunk", _failing_once(Layout.chunk, at=3))
    else:
        monkeypatch.setattr(Arriving, "take", _failing_once(Arriving.take, at=3))
    async with serving(PLAIN, learner) as where, replica(loaded, where.grpc, fabric=RACK.name) as one:
        for step in (1, 2, 3):
            nudge(state, seed=step)
            await deliver(learner, weights, state, step, one)
        before = counted(PAIRED_BYTES)
        nudge(state, seed=4)
        await deliver(learner, weights, state, 4, one)
        assert counted(PAIRED_BYTES) > before


def _failing_once(real: Any, *, at: int) -> Any:
    """The method, that fails at one of its calls as nothing of ours would."""
    calls = 0

    def failing(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            raise Corrupted("a test's own")
        return real(*arguments)

    return failing


async def test_flipped_bytes_of_a_pair_are_never_served(
    loaded: LoadedModel, state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest says what the bytes must be, whichever way they come."""
    real = Pair.send
    flipped = False

    async def flipping(self: Pair, make: Any) -> None:
        nonlocal flipped
        data = bytearray(make())
        if not flipped:
            data[0] ^= 1
            flipped = True
        await real(self, lambda: bytes(data))

    monkeypatch.setattr(Pair, "send", flipping)
    weights = published(loaded)
    learner = OnFabric(weights, RACK)
    async with serving(PLAIN, learner) as where, replica(loaded, where.grpc, fabric=RACK.name) as one:
        nudge(state, seed=1)
        await deliver(learner, weights, state, 1, one)
    assert flipped


async def test_a_learner_that_comes_back_is_paired_with_anew(
    loaded: LoadedModel, state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pair ends with the call that made it."""
    monkeypatch.setattr(pairing, "_AGAIN_SECONDS", 0.0)
    weights = published(loaded)
    async with serving(PLAIN, OnFabric(weights, RACK)) as where:
        port = int(where.grpc.rpartition(":")[2])
        async with replica(loaded, where.grpc, fabric=RACK.name) as one:
            version, _ = weights.publish(1, 1, state)
            await arrival(one.policy, version)
    again = ServiceSpec.model_validate({"server": {"port": port}})
    learner = OnFabric(weights, RACK)
    async with serving(again, learner) as where, replica(loaded, where.grpc, fabric=RACK.name) as one:
        before = counted(PAIRED_BYTES)
        nudge(state, seed=2)
        await deliver(learner, weights, state, 2, one)
        assert counted(PAIRED_BYTES) > before


async def test_a_source_that_ends_ends_its_pairs(loaded: LoadedModel) -> None:
    """It waits for nobody who holds one."""
    learner = OnFabric(published(loaded), RACK)
    async with serving(PLAIN, learner) as where, make_channel(where.grpc) as channel:
        call = weights_pb2_grpc.WeightServiceStub(channel).OpenPair()
        await call.write(wire.OpenPairRequest(run_uid="run", pair="one", fabric="rack-1", backend="gloo"))
        assert await call.read() == wire.OpenPairResponse()
        learner.servicer.close()
        async with asyncio.timeout(5):
            while await call.read() is not grpc.aio.EOF:
                pass
        assert await call.code() is grpc.StatusCode.OK


@pytest.mark.parametrize(
    ("changed", "code", "words"),
    [
        ({"fabric": "rack-2"}, grpc.StatusCode.FAILED_PRECONDITION, "is not this server's"),
        ({"backend": "nccl"}, grpc.StatusCode.FAILED_PRECONDITION, "this server's side is of gloo"),
        ({"pair": ""}, grpc.StatusCode.INVALID_ARGUMENT, "a pair needs a name"),
        ({"pair": "x" * 65}, grpc.StatusCode.INVALID_ARGUMENT, "a pair needs a name"),
    ],
)
async def test_what_cannot_be_paired_is_refused_saying_why(
    loaded: LoadedModel, changed: dict[str, str], code: grpc.StatusCode, words: str
) -> None:
    """Before anything listens."""
    learner = OnFabric(published(loaded), RACK)
    fields = {"run_uid": "run", "pair": "one", "fabric": "rack-1", "backend": "gloo", **changed}
    async with serving(PLAIN, learner) as where, make_channel(where.grpc) as channel:
        call = weights_pb2_grpc.WeightServiceStub(channel).OpenPair()
        await call.write(wire.OpenPairRequest(**fields))
        with pytest.raises(grpc.aio.AioRpcError, match=re.escape(words)) as raised:
            await call.read()
    assert raised.value.code() is code


async def test_a_reader_that_says_too_much_is_refused(loaded: LoadedModel) -> None:
    """Two processes need a few hundred bytes to find each other."""
    learner = OnFabric(published(loaded), RACK)
    async with serving(PLAIN, learner) as where, make_channel(where.grpc) as channel:
        call = weights_pb2_grpc.WeightServiceStub(channel).OpenPair()
        await call.write(wire.OpenPairRequest(run_uid="run", pair="one", fabric="rack-1", backend="gloo"))
        assert await call.read() == wire.OpenPairResponse()
        await call.write(wire.OpenPairRequest(key="0/1", value=b"x" * 70_000))
        with pytest.raises(grpc.aio.AioRpcError, match="more came than") as raised:
            while True:
                await call.read()
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_pairs_are_bounded(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is a thread and a listening socket."""
    monkeypatch.setattr(pair_servicer, "_MOST_PAIRS", 1)
    learner = OnFabric(published(loaded), RACK)
    async with serving(PLAIN, learner) as where, make_channel(where.grpc) as channel:
        stub = weights_pb2_grpc.WeightServiceStub(channel)
        one, two = stub.OpenPair(), stub.OpenPair()
        first = wire.OpenPairRequest(run_uid="run", pair="one", fabric="rack-1", backend="gloo")
        await one.write(first)
        assert await one.read() == wire.OpenPairResponse()
        first.pair = "two"
        await two.write(first)
        with pytest.raises(grpc.aio.AioRpcError, match="the limit") as raised:
            await two.read()
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        one.cancel()
