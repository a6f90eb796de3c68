"""Deltas over real loopback gRPC: what changed is sent, and nothing wrong is ever served."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import structlog
import torch

from services.common.errors import TrimtabError, Unavailable
from services.common.server import serving
from services.common.spec.service import ServiceSpec
from services.learner.weights import PublishedWeights
from services.models import snapshots, weight_servicer
from services.models.loading import LoadedModel
from services.models.manifest import Version
from services.models.snapshots import DeltaStream
from services.models.wire import version_message
from services.policy.weight_metrics import FALLBACKS
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
from tests.integration.weight_replicas import State, encodings, nudge, publish, replica
from trimtab.clients.learner import AsyncLearnerClient
from trimtab.weights.v1 import weights_pb2 as wire
from trimtab.weights.v1 import weights_pb2_grpc


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of which even a delta needs several."""
    monkeypatch.setattr(weight_servicer, "CHUNK_BYTES", 64)


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
