"""Deltas and peers over real loopback gRPC: what changed is sent once, by whoever has it; nothing wrong is served."""

from __future__ import annotations

import asyncio
import copy
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
import structlog
import torch

from services.common.drain_mark import Flag
from services.common.errors import TrimtabError, Unavailable
from services.common.server import serving
from services.common.spec.service import ServiceSpec
from services.learner.weights import PublishedWeights
from services.models import snapshots, weight_servicer
from services.models.loading import LoadedModel
from services.models.manifest import Version
from services.models.snapshots import DeltaStream, WeightStore
from services.models.wire import version_message
from services.policy.config import WeightSourceSpec
from services.policy.engines.transformers_engine import TransformersEngine
from services.policy.generation import Policy
from services.policy.peers import PeerServicer, own_address
from services.policy.weight_metrics import FALLBACKS
from services.policy.weights import WeightReader
from tests.integration.test_weights import (  # noqa: F401 - fixtures
    LAYER,
    NORM,
    WeightsOnly,
    arrival,
    assert_serves,
    folder,
    loaded,
    policy,
    state,
    until,
    weights,
)
from trimtab.clients.learner import AsyncLearnerClient
from trimtab.weights.v1 import weights_pb2 as wire
from trimtab.weights.v1 import weights_pb2_grpc

State = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of which even a delta needs several."""
    monkeypatch.setattr(weight_servicer, "CHUNK_BYTES", 64)


@dataclass
class Replica:
    """A policy that follows an address and serves its peers."""

    policy: Policy
    reader: WeightReader
    address: str
    rest: Flag
    store: WeightStore
    fetched: list[str]


class Peers:
    """A replica's server with the weight service alone."""

    name = "policy"

    def __init__(self, store: WeightStore, fetched: list[str]) -> None:
        self.servicer = PeerServicer()
        self.servicer.attach(store)
        fetch = self.servicer.FetchWeights

        def noted(request: wire.FetchWeightsRequest, context: Any) -> Any:
            fetched.append(request.have.digest)
            return fetch(request, context)

        self.servicer.FetchWeights = noted  # type: ignore[method-assign]

    def register(self, server: grpc.aio.Server) -> list[str]:
        weights_pb2_grpc.add_WeightServiceServicer_to_server(self.servicer, server)
        return [weight_servicer.SERVICE_NAME]

    async def start(self) -> None:
        """Nothing to load."""

    async def drain(self) -> None:
        self.servicer.close()

    async def wait(self) -> int:
        return 0


@asynccontextmanager
async def replica(loaded: LoadedModel, learner: str, **settings: Any) -> AsyncIterator[Replica]:  # noqa: F811
    """One that runs until the end of the block; its policy is a model of its own."""
    own = LoadedModel(
        model=copy.deepcopy(loaded.model), tokenizer=loaded.tokenizer, facts=loaded.facts, folder=""
    )
    made = Policy(TransformersEngine(own), loaded.tokenizer)
    store, rest, fetched = WeightStore(keep=1), Flag(poll_seconds=0.02), list[str]()
    peers = Peers(store, fetched)
    async with serving(ServiceSpec(), peers) as where:
        spec = WeightSourceSpec(**{"address": learner, "retry_seconds": 0.05, **settings})
        reader = WeightReader(
            made,
            spec,
            "run",
            store=store,
            peer_address=where.grpc,
            held=peers.servicer.announce,
            rest=rest,
        )
        task = asyncio.create_task(reader.run())
        try:
            yield Replica(made, reader, where.grpc, rest, store, fetched)
        finally:
            task.cancel()
            await asyncio.wait([task])


def nudge(state: State, *, seed: int, count: int = 20) -> None:  # noqa: F811
    """Change some elements of every tensor a little."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in state.values():
        at = torch.randint(tensor.numel(), (count,), generator=generator)
        tensor.view(-1)[at] += 2.0 ** -torch.randint(3, 9, (count,), generator=generator).to(tensor.dtype)


def publish(learner: WeightsOnly, weights: PublishedWeights, step: int, state: State) -> Version:  # noqa: F811
    version, _ = weights.publish(1, step, state)
    learner.servicer.announce()
    return version


def encodings(logs: list[Any]) -> list[str]:
    return [entry["encoding"] for entry in logs if entry["event"] == "weights arrived" and entry["tensors"]]


@pytest.fixture
def logs() -> Any:
    with structlog.testing.capture_logs() as seen:
        yield seen


async def test_what_changed_comes_as_a_delta(
    loaded: LoadedModel,  # noqa: F811
    weights: PublishedWeights,  # noqa: F811
    state: State,  # noqa: F811
    logs: list[Any],
) -> None:
    """Version after version, some elements each: deltas of a few percent, and the very bytes of the learner."""
    learner = WeightsOnly(weights)
    async with serving(ServiceSpec(), learner) as where, replica(loaded, where.grpc) as one:
        await arrival(one.policy, publish(learner, weights, 0, state))
        for step in (1, 2, 3):
            nudge(state, seed=step)
            version = publish(learner, weights, step, state)
            await arrival(one.policy, version)
            assert_serves(one.policy, state, version)
    sizes = [entry["size"] for entry in logs if entry["event"] == "weights arrived"]
    total = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    assert encodings(logs) == ["delta"] * 3
    assert all(0 < size < 0.1 * total for size in sizes[1:])


async def test_who_missed_versions_gets_one_delta(
    loaded: LoadedModel,  # noqa: F811
    weights: PublishedWeights,  # noqa: F811
    state: State,  # noqa: F811
    logs: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three versions behind: one composed delta. Too far behind for what is kept: whole tensors. Bytes are right."""
    learner = WeightsOnly(weights)
    begun = {name: tensor.clone() for name, tensor in state.items()}
    async with serving(ServiceSpec(), learner) as where:
        weights.publish(1, 0, state)
        for step in (1, 2, 3):
            nudge(state, seed=step)
            version = publish(learner, weights, step, state)
        async with replica(loaded, where.grpc) as one:
            await arrival(one.policy, version)
            assert_serves(one.policy, state, version)
        assert encodings(logs) == ["delta"]
        # A change that was taken back again leaves nothing of itself.
        back = publish(learner, weights, 4, begun)
        async with replica(loaded, where.grpc) as one:
            await arrival(one.policy, back)
            assert_serves(one.policy, begun, back)
        assert encodings(logs) == ["delta"]
        monkeypatch.setattr(snapshots, "KEPT_DELTAS", 2)
        for step in (5, 6, 7):
            nudge(state, seed=step)
            version = publish(learner, weights, step, state)
        async with replica(loaded, where.grpc) as one:
            await arrival(one.policy, version)
            assert_serves(one.policy, state, version)
    assert encodings(logs) == ["delta", "full"]


async def test_where_everything_changed_whole_tensors_are_less(
    loaded: LoadedModel,  # noqa: F811
    weights: PublishedWeights,  # noqa: F811
    state: State,  # noqa: F811
    logs: list[Any],
) -> None:
    """A delta as large as the tensors is not sent."""
    learner = WeightsOnly(weights)
    async with serving(ServiceSpec(), learner) as where, replica(loaded, where.grpc) as one:
        await arrival(one.policy, publish(learner, weights, 0, state))
        for seed, tensor in enumerate(state.values()):
            bits = torch.randint(-(2**31), 2**31, tensor.shape, generator=torch.Generator().manual_seed(seed))
            # Without one bit of the exponent, so that no number is NaN.
            tensor.copy_((bits.int() & ~(1 << 30)).view(torch.float32))
        version = publish(learner, weights, 1, state)
        await arrival(one.policy, version)
        assert_serves(one.policy, state, version)
    assert encodings(logs) == ["full"]


async def test_a_delta_that_could_not_be_made_is_done_without(
    loaded: LoadedModel,  # noqa: F811
    weights: PublishedWeights,  # noqa: F811
    state: State,  # noqa: F811
    logs: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whole tensors are sent, and the log says why."""

    def broken(*_: Any) -> bytes:
        raise MemoryError("no room")

    monkeypatch.setattr("services.learner.weights.encoded_delta", broken)
    learner = WeightsOnly(weights)
    async with serving(ServiceSpec(), learner) as where, replica(loaded, where.grpc) as one:
        await arrival(one.policy, publish(learner, weights, 0, state))
        nudge(state, seed=1)
        version = publish(learner, weights, 1, state)
        await arrival(one.policy, version)
        assert_serves(one.policy, state, version)
    assert encodings(logs) == ["full"]
    assert any(entry["event"] == "a delta could not be made" for entry in logs)


@pytest.mark.parametrize("damage", ["flip", "short"])
async def test_a_wrong_delta_falls_back_to_whole_tensors(
    damage: str,
    loaded: LoadedModel,  # noqa: F811
    weights: PublishedWeights,  # noqa: F811
    state: State,  # noqa: F811
    logs: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its digests tell; it is counted, and what is served is right."""
    real = DeltaStream.chunk

    def damaged(stream: DeltaStream, offset: int, size: int) -> bytes:
        data = bytearray(real(stream, offset, size))
        if damage == "flip" and offset + size >= stream.total:
            data[-1] ^= 4
        if damage == "short" and offset + size >= stream.total:
            del data[-1]
        return bytes(data)

    monkeypatch.setattr(DeltaStream, "chunk", damaged)
    learner, before = WeightsOnly(weights), FALLBACKS._value.get()
    async with serving(ServiceSpec(), learner) as where, replica(loaded, where.grpc) as one:
        await arrival(one.policy, publish(learner, weights, 0, state))
        nudge(state, seed=1)
        version = publish(learner, weights, 1, state)
        await arrival(one.policy, version)
        assert_serves(one.policy, state, version)
    assert encodings(logs) == ["full"]
    assert FALLBACKS._value.get() == before + 1
    assert any(entry["event"] == "weights were refused" for entry in logs)


@pytest.mark.parametrize("deltas", [True, False])
async def test_a_stream_that_breaks_off_is_taken_up_again(
    deltas: bool,
    loaded: LoadedModel,  # noqa: F811
    weights: PublishedWeights,  # noqa: F811
    state: State,  # noqa: F811
) -> None:
    """From where it stopped: no byte is sent twice, of a delta as of whole tensors."""
    learner, offsets, sent = WeightsOnly(weights), list[int](), list[int]()
    real = learner.servicer.FetchWeights

    async def breaking(request: wire.FetchWeightsRequest, context: Any) -> AsyncIterator[Any]:
        offsets.append(request.offset)
        count = 0
        async for piece in real(request, context):
            sent.append(len(piece.data))
            yield piece
            count += 1
            if len(offsets) < 3 and count == 3:
                raise Unavailable("gone for a moment")

    learner.servicer.FetchWeights = breaking  # type: ignore[method-assign]
    async with serving(ServiceSpec(), learner) as where, replica(loaded, where.grpc, deltas=deltas) as one:
        await arrival(one.policy, publish(learner, weights, 0, state))
        state[NORM].view(-1)[:] *= 1.25
        state[LAYER].view(-1)[::3] += 0.5
        version = publish(learner, weights, 1, state)
        await arrival(one.policy, version)
        assert_serves(one.policy, state, version)
        entry = weights.newest().manifest.by_name()[LAYER]
    assert offsets == [0, 192, 384]
    if not deltas:
        assert sum(sent) == entry.size_bytes + state[NORM].numel() * 4


class OldLearner(WeightsOnly):
    """One from before deltas: it reads neither `have` nor `wait`, names no sources and knows no reports."""

    def __init__(self, weights: PublishedWeights) -> None:  # noqa: F811
        super().__init__(weights)
        fetch = self.servicer.FetchWeights

        def as_before(request: wire.FetchWeightsRequest, context: Any) -> Any:
            request.ClearField("have")
            return fetch(request, context)

        async def unknown(request: Any, context: Any) -> Any:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")

        self.servicer.FetchWeights = as_before  # type: ignore[method-assign]
        self.servicer.ReportVersion = unknown  # type: ignore[method-assign]
        self.servicer.sources = lambda *_: []  # type: ignore[method-assign]


async def test_old_and_new_work_together(
    loaded: LoadedModel,  # noqa: F811
    weights: PublishedWeights,  # noqa: F811
    state: State,  # noqa: F811
    logs: list[Any],
) -> None:
    """A reader that does not say what it has gets whole tensors; a learner without deltas and reports is enough."""
    learner = OldLearner(weights)
    async with (
        serving(ServiceSpec(), learner) as where,
        replica(loaded, where.grpc) as one,
        AsyncLearnerClient(where.grpc) as client,
    ):
        await arrival(one.policy, publish(learner, weights, 0, state))
        nudge(state, seed=1)
        version = publish(learner, weights, 1, state)
        await arrival(one.policy, version)
        assert_serves(one.policy, state, version)
        pieces = [piece async for piece in client.fetch_weights(wire.FetchWeightsRequest(tensors=[NORM]))]
    assert encodings(logs) == ["full"]
    assert {piece.encoding for piece in pieces} == {wire.WEIGHT_ENCODING_FULL}


# ------------------------------------------------------------ peers


async def test_peers_pass_on_what_the_learner_sends_once(
    loaded: LoadedModel,  # noqa: F811
    weights: PublishedWeights,  # noqa: F811
    state: State,  # noqa: F811
) -> None:
    """Five replicas, three versions: one fetch from the learner each; one that comes later gets it from a peer."""
    learner = WeightsOnly(weights)
    async with AsyncExitStack() as stack:
        where = await stack.enter_async_context(serving(ServiceSpec(), learner))
        several = [await stack.enter_async_context(replica(loaded, where.grpc)) for _ in range(5)]
        first = publish(learner, weights, 0, state)
        await asyncio.gather(*(arrival(one.policy, first) for one in several))
        for step in (1, 2, 3):
            nudge(state, seed=step)
            version = publish(learner, weights, step, state)
            await asyncio.gather(*(arrival(one.policy, version) for one in several))
            assert len(learner.fetched) == step
        for one in several:
            assert_serves(one.policy, state, version)
        assert sum(len(one.fetched) for one in several) == 12
        late = await stack.enter_async_context(replica(loaded, where.grpc))
        await arrival(late.policy, version)
        assert_serves(late.policy, state, version)
        assert len(learner.fetched) == 3
        assert sum(len(one.fetched) for one in several) == 13


@contextmanager
def silent_peer() -> Iterator[str]:
    """The kernel takes its connections and it answers nothing, as a process that is stopped."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize("kind", ["dead", "silent", "slow", "never has it", "damaged"])
async def test_a_peer_that_does_not_deliver_holds_up_nobody(
    kind: str,
    loaded: LoadedModel,  # noqa: F811
    weights: PublishedWeights,  # noqa: F811
    state: State,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Gone, stopped, trickling, without the version, with wrong bytes: the learner is asked, and told who failed."""
    learner, reported = WeightsOnly(weights), list[str]()
    real = learner.servicer.ReportVersion

    async def noted(request: wire.ReportVersionRequest, context: Any) -> Any:
        reported.extend(request.failed_sources)
        return await real(request, context)

    learner.servicer.ReportVersion = noted  # type: ignore[method-assign]
    empty = WeightStore()
    peers = Peers(empty, [])
    if kind == "slow":

        async def trickling(request: wire.FetchWeightsRequest, context: Any) -> AsyncIterator[Any]:
            for at in range(500):
                await asyncio.sleep(0.1)
                yield wire.FetchWeightsResponse(
                    encoding=wire.WEIGHT_ENCODING_DELTA, total_bytes=100_000, offset=at, data=b"x"
                )

        peers.servicer.FetchWeights = trickling  # type: ignore[method-assign]
    if kind == "damaged":
        monkeypatch.setattr(DeltaStream, "chunk", lambda *_: b"x" * 10)
    async with (
        AsyncExitStack() as here,
        serving(ServiceSpec(), learner) as where,
        serving(ServiceSpec(), peers) as other,
        replica(loaded, where.grpc, peer_wait_seconds=0.8, stall_seconds=0.6) as one,
    ):
        silent = here.enter_context(silent_peer())
        bad = {"dead": "127.0.0.1:9", "silent": silent}.get(kind, other.grpc)
        await arrival(one.policy, publish(learner, weights, 0, state))
        learner.servicer.sources = lambda *_: [bad]  # type: ignore[method-assign]
        nudge(state, seed=1)
        version = publish(learner, weights, 1, state)
        if kind == "damaged":
            empty.add(weights.newest(), next(iter(weights._deltas.values())))
            peers.servicer.announce()
        await arrival(one.policy, version)
        assert_serves(one.policy, state, version)
        if kind != "damaged":
            await until(lambda: reported == [bad])


async def test_too_old_weights_take_no_work_and_say_so(
    loaded: LoadedModel,  # noqa: F811
    weights: PublishedWeights,  # noqa: F811
    state: State,  # noqa: F811
) -> None:
    """While what comes cannot be read, further behind than allowed: not ready; once it has arrived: ready again."""
    learner, held_up = WeightsOnly(weights), asyncio.Event()
    real = learner.servicer.FetchWeights

    async def later(request: wire.FetchWeightsRequest, context: Any) -> AsyncIterator[Any]:
        await held_up.wait()
        async for piece in real(request, context):
            yield piece

    learner.servicer.FetchWeights = later  # type: ignore[method-assign]
    async with (
        serving(ServiceSpec(), learner) as where,
        replica(loaded, where.grpc, max_behind_steps=1) as one,
    ):
        await arrival(one.policy, publish(learner, weights, 0, state))
        nudge(state, seed=1)
        publish(learner, weights, 1, state)
        await until(lambda: one.reader._newest is not None and one.reader._newest[0].step == 1)
        assert not one.rest.present()
        nudge(state, seed=2)
        version = publish(learner, weights, 2, state)
        await until(one.rest.present)
        held_up.set()
        await until(lambda: not one.rest.present())
        await arrival(one.policy, version)
        assert_serves(one.policy, state, version)


async def test_whoever_serves_other_bytes_under_a_name_ends_the_run(
    weights: PublishedWeights,  # noqa: F811
    state: State,  # noqa: F811
) -> None:
    """A reported version with another digest than was published; the right one is taken, also an older one."""
    refused: list[TrimtabError] = []
    learner = WeightsOnly(weights)
    learner.servicer.attach(weights, refused.append)
    first, _ = weights.publish(1, 0, state)
    for step in (1, 2, 3):
        nudge(state, seed=step)
        weights.publish(1, step, state)
    async with serving(ServiceSpec(), learner) as where, grpc.aio.insecure_channel(where.grpc) as channel:
        stub: Any = weights_pb2_grpc.WeightServiceStub(channel)
        await stub.ReportVersion(wire.ReportVersionRequest(version=version_message(first)))
        assert refused == []
        wrong = version_message(Version(1, 2, "0" * 64))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ReportVersion(wire.ReportVersionRequest(version=wrong, peer_address="p:1"))
    assert caught.value.code() is grpc.StatusCode.DATA_LOSS
    assert str(refused[0]).startswith("p:1 serves weights 000000000000 as epoch 1, step 2; published were")


async def test_an_engine_that_does_not_take_them_is_found_out(
    loaded: LoadedModel,  # noqa: F811
    weights: PublishedWeights,  # noqa: F811
    state: State,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its update silently does nothing: it generates no more, and the learner hears what it serves."""
    refused: list[TrimtabError] = []
    learner = WeightsOnly(weights)
    learner.servicer.attach(weights, refused.append)
    async with serving(ServiceSpec(), learner) as where, replica(loaded, where.grpc) as one:
        await arrival(one.policy, publish(learner, weights, 0, state))
        monkeypatch.setattr(one.policy.engine, "load_weights", lambda _: None)
        nudge(state, seed=1)
        version = publish(learner, weights, 1, state)
        with pytest.raises(TrimtabError, match="the engine does not serve the weights of epoch 1, step 1"):
            await arrival(one.policy, version)
        await until(lambda: bool(refused))
        assert "as epoch 1, step 1; published were" in str(refused[0])
        with pytest.raises(TrimtabError, match="does not serve"):
            one.policy.generate([], threading.Event())


def test_the_address_for_peers() -> None:
    """As given, none, or the one towards the learner with the server's port, which must then be known."""
    spec = WeightSourceSpec(address="127.0.0.1:50054")
    assert own_address(spec, 7) == ""
    assert own_address(spec.model_copy(update={"peer_address": "a:1"}), 7) == "a:1"
    auto = spec.model_copy(update={"peer_address": "auto"})
    assert own_address(auto, 7) == "127.0.0.1:7"
    with pytest.raises(TrimtabError, match=r"server\.port"):
        own_address(auto, 0)
