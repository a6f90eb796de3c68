"""Weights of a learner of several processes: each serves its own tensors, and a reader puts them together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch

from services.common.channels import make_channel
from services.common.server import serving
from services.learner.distributed.part_server import told_address
from services.learner.weight_servicer import WeightServicer
from services.models.loading import LoadedModel
from services.models.manifest import Part, Version, entries_of, whole_digest
from services.policy.engines.transformers_engine import TransformersEngine
from services.policy.generation import Policy
from services.policy.weight_metrics import FALLBACKS, FETCHED_BYTES
from tests.fakes.published_parts import Processes, State
from tests.fakes.tiny_models import make_tiny_causal
from tests.fakes.tiny_runs import loaded_from
from tests.integration.test_weights import WeightsOnly, arrival, assert_serves
from tests.integration.weight_replicas import PLAIN, nudge, replica
from trimtab.weights.v1 import weights_pb2 as wire
from trimtab.weights.v1.weights_pb2_grpc import WeightServiceStub

PROCESSES = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_causal(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def loaded(folder: Path) -> LoadedModel:
    return loaded_from(folder)


@pytest.fixture
def state(loaded: LoadedModel) -> State:
    weights = Policy(TransformersEngine(loaded), loaded.tokenizer).engine.weights()
    return {name: tensor.clone() for name, tensor in weights.items()}


class OneProcess(WeightsOnly):
    """A process' weight service. `flips`: one bit of each of its deltas is wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.flips = False
        fetch = self.servicer.FetchWeights

        async def sent(request: Any, context: Any) -> AsyncIterator[Any]:
            async for piece in fetch(request, context):
                if self.flips and request.HasField("have") and piece.data:
                    piece.data = piece.data[:-1] + bytes([piece.data[-1] ^ 1])
                yield piece

        self.servicer.FetchWeights = sent  # type: ignore[method-assign]


@dataclass
class Learner:
    """Its processes, each with a server."""

    address: str
    processes: Processes
    servers: list[OneProcess]

    def publish(self, step: int, state: State) -> Version:
        version = self.processes.publish(1, step, state)
        for server in self.servers:
            server.servicer.announce()
        return version


@asynccontextmanager
async def learner(loaded: LoadedModel, state: State, count: int = PROCESSES) -> AsyncIterator[Learner]:
    async with AsyncExitStack() as stack:
        servers = [OneProcess() for _ in range(count)]
        listening = [(await stack.enter_async_context(serving(PLAIN, server))).grpc for server in servers]
        fingerprint = loaded.facts.tokenizer_fingerprint
        processes = Processes(state, ["", *listening[1:]], fingerprint=fingerprint)
        for server, store in zip(servers, processes.stores, strict=True):
            server.servicer.attach(store)
        yield Learner(listening[0], processes, servers)


def counted(encoding: str) -> float:
    return float(FETCHED_BYTES.labels(encoding, "learner")._value.get())


async def test_each_process_holds_and_sends_its_part_and_a_reader_has_all(
    loaded: LoadedModel, state: State
) -> None:
    """The parts are all tensors, none twice, about equally many bytes; the digest is that of the whole."""
    async with learner(loaded, state) as from_, replica(loaded, from_.address, deltas=False) as one:
        nudge(state, seed=1)
        version = from_.publish(1, state)
        await arrival(one.policy, version)
        assert_serves(one.policy, state, version)
        assert version.digest == whole_digest(entries_of(state))
        held = [list(store.newest().tensors) for store in from_.processes.stores]
        assert [name for names in held for name in names] == list(state)
        assert [asked for server in from_.servers for asked in server.fetched] == held
        sizes = [sum(state[name].nbytes for name in names) for names in held]
        largest = max(tensor.nbytes for tensor in state.values())
        assert max(sizes) - min(sizes) <= 2 * largest


async def test_every_process_sends_what_changed_of_its_part(loaded: LoadedModel, state: State) -> None:
    """Deltas are made by each on its own; one that has nothing new is not asked."""
    async with learner(loaded, state) as from_, replica(loaded, from_.address) as one:
        await arrival(one.policy, from_.publish(1, state))
        whole, delta = counted("full"), counted("delta")
        for step in (2, 3):
            nudge(state, seed=step)
            version = from_.publish(step, state)
            await arrival(one.policy, version)
            assert_serves(one.policy, state, version)
        assert counted("full") == whole
        assert 0 < counted("delta") - delta < sum(tensor.nbytes for tensor in state.values())
        before = [len(server.fetched) for server in from_.servers]
        last = list(state)[-1]
        state[last] += 1
        version = from_.publish(4, state)
        await arrival(one.policy, version)
        assert_serves(one.policy, state, version)
        assert [len(server.fetched) for server in from_.servers] == [*before[:-1], before[-1] + 1]


async def test_who_is_two_versions_behind_gets_deltas_of_parts_that_changed_once(
    loaded: LoadedModel, state: State
) -> None:
    """A part that one of the versions left alone hangs together all the same."""
    async with learner(loaded, state) as from_, replica(loaded, from_.address) as one:
        await arrival(one.policy, from_.publish(1, state))
        whole = counted("full")
        held = [store.newest().tensors for store in from_.processes.stores]
        first, last = (max(names, key=lambda name: state[name].nbytes) for names in (held[0], held[-1]))
        for server in from_.servers[:1]:
            server.servicer.announce = lambda: None  # type: ignore[method-assign]
        for step, name in ((2, last), (3, first)):
            state[name].view(-1)[0] += 1
            version = from_.publish(step, state)
        for server in from_.servers[:1]:
            WeightServicer.announce(server.servicer)
        await arrival(one.policy, version)
        assert_serves(one.policy, state, version)
        assert counted("full") == whole


async def test_peers_get_one_delta_of_all_parts(loaded: LoadedModel, state: State) -> None:
    """What came in parts is passed on as one: the second replica asks nobody but the first."""
    async with (
        learner(loaded, state) as from_,
        replica(loaded, from_.address) as one,
        replica(loaded, from_.address) as two,
    ):
        await arrival(one.policy, from_.publish(1, state))
        await arrival(two.policy, one.policy.version)
        asked = [len(server.fetched) for server in from_.servers]
        peers = float(FETCHED_BYTES.labels("delta", "peer")._value.get())
        nudge(state, seed=2)
        version = from_.publish(2, state)
        for each in (one, two):
            await arrival(each.policy, version)
            assert_serves(each.policy, state, version)
        assert [len(server.fetched) for server in from_.servers] == [count + 1 for count in asked]
        assert float(FETCHED_BYTES.labels("delta", "peer")._value.get()) > peers


async def test_a_part_with_a_wrong_delta_comes_whole_and_the_others_as_they_were(
    loaded: LoadedModel, state: State
) -> None:
    """Wrong bytes of one process cost that process' part alone."""
    async with learner(loaded, state) as from_, replica(loaded, from_.address) as one:
        await arrival(one.policy, from_.publish(1, state))
        fallbacks = float(FALLBACKS._value.get())
        from_.servers[1].flips = True
        nudge(state, seed=2)
        version = from_.publish(2, state)
        await arrival(one.policy, version)
        assert_serves(one.policy, state, version)
        assert float(FALLBACKS._value.get()) == fallbacks + 1


async def test_a_process_that_hears_of_a_version_later_is_waited_for(
    loaded: LoadedModel, state: State
) -> None:
    """All learn a version's name together; who announces it first is chance."""
    async with learner(loaded, state) as from_, replica(loaded, from_.address) as one:
        await arrival(one.policy, from_.publish(1, state))
        late, held = from_.processes.stores[2], list[Any]()
        add = late.add
        late.add = lambda *arguments: held.append(arguments)  # type: ignore[method-assign]
        nudge(state, seed=2)
        version = from_.publish(2, state)
        await asyncio.sleep(0.3)
        assert one.policy.version != version
        late.add = add  # type: ignore[method-assign]
        late.add(*held[0])
        from_.servers[2].servicer.announce()
        await arrival(one.policy, version)
        assert_serves(one.policy, state, version)


async def test_a_version_that_changes_nothing_is_none(loaded: LoadedModel, state: State) -> None:
    """In all processes alike."""
    async with learner(loaded, state) as from_:
        assert from_.publish(1, state) == from_.publish(2, state)
        assert [store.newest().manifest.version.step for store in from_.processes.stores] == [1] * PROCESSES


async def test_a_reader_that_knows_no_parts_is_told(loaded: LoadedModel, state: State) -> None:
    """It asks the first process for all."""
    async with learner(loaded, state) as from_, make_channel(from_.address) as channel:
        from_.publish(1, state)
        call = WeightServiceStub(channel).FetchWeights(wire.FetchWeightsRequest(tensors=list(state)))
        with pytest.raises(grpc.aio.AioRpcError, match="is another process' part") as raised:
            await call.read()
    assert raised.value.code() is grpc.StatusCode.FAILED_PRECONDITION


@pytest.mark.parametrize(
    ("listens", "first", "told"),
    [
        ("127.0.0.1", "no.such.name", "127.0.0.1:7"),
        ("10.1.2.3", "no.such.name", "10.1.2.3:7"),
        ("fe80::1", "no.such.name", "[fe80::1]:7"),
        ("0.0.0.0", "127.0.1.1", ":7"),  # noqa: S104
        ("::", "127.0.0.1", ":7"),
    ],
)
def test_readers_are_told_where_a_process_listens(listens: str, first: str, told: str) -> None:
    """Not where a name leads; and never loopback for a server that listens everywhere."""
    assert told_address(listens, 7, first) == told


async def test_a_port_is_one_of_the_learners_host(loaded: LoadedModel, state: State) -> None:
    """Where a process knows no address of its own but loopback, the reader has the learner's."""
    async with learner(loaded, state) as from_, replica(loaded, from_.address) as one:
        for store in from_.processes.stores:
            together = store._together
            together._parts = tuple(  # type: ignore[attr-defined]
                Part(part.address.removeprefix("127.0.0.1"), part.tensors)
                for part in together._parts  # type: ignore[attr-defined]
            )
        version = from_.publish(1, state)
        assert [part.address[:1] for part in from_.processes.stores[0].newest().manifest.parts] == [
            "",
            ":",
            ":",
        ]
        await arrival(one.policy, version)
        assert_serves(one.policy, state, version)


async def test_more_processes_than_tensors(loaded: LoadedModel, state: State) -> None:
    """Some have nothing; nobody asks them."""
    two = dict(list(state.items())[:2])
    processes = Processes(two, ["", "a:1", "b:1", "c:1"], fingerprint="f" * 64)
    version = processes.publish(1, 1, two)
    assert version.digest == whole_digest(entries_of(two))
    assert sorted(len(store.newest().tensors) for store in processes.stores) == [0, 0, 1, 1]
    assert torch.equal(next(iter(two.values())), next(iter(state.values())))
