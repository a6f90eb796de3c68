"""Peers over real loopback gRPC: the learner sends once, peers pass it on, and one that does not holds nobody up."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from orchestrator import mutual_tls
from orchestrator.certificates import authority, issue
from orchestrator.local.layout import write_private
from orchestrator.local.toml import to_toml
from orchestrator.mutual_tls import OwnFiles
from services.common.errors import TrimtabError
from services.common.server import serving
from services.common.spec.service import ServiceSpec
from services.learner.weights import PublishedWeights
from services.models.loading import LoadedModel
from services.models.snapshots import DeltaStream, WeightStore
from services.policy.config import WeightSourceSpec
from services.policy.peers import own_address
from tests.integration.test_weights import (  # noqa: F401 - fixtures
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
from tests.integration.weight_replicas import Peers, State, nudge, publish, replica
from trimtab.weights.v1 import weights_pb2 as wire


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


def failures_told(learner: WeightsOnly) -> list[str]:
    """Sources that replicas name to this learner, as they do."""
    reported, real = list[str](), learner.servicer.ReportVersion

    async def noted(request: wire.ReportVersionRequest, context: Any) -> Any:
        reported.extend(request.failed_sources)
        return await real(request, context)

    learner.servicer.ReportVersion = noted  # type: ignore[method-assign]
    return reported


@pytest.mark.parametrize("kind", ["dead", "silent", "slow", "never has it", "damaged"])
async def test_a_peer_that_does_not_deliver_holds_up_nobody(
    kind: str,
    loaded: LoadedModel,  # noqa: F811
    weights: PublishedWeights,  # noqa: F811
    state: State,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Gone, stopped, trickling, without the version, with wrong bytes: the learner is asked, and told who failed."""
    learner = WeightsOnly(weights)
    reported = failures_told(learner)
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
        await until(lambda: reported == [bad])


async def test_after_a_peer_with_wrong_bytes_the_next_one_is_asked(
    loaded: LoadedModel,  # noqa: F811
    weights: PublishedWeights,  # noqa: F811
    state: State,  # noqa: F811
) -> None:
    """The learner sends nothing again, and hears of the one alone that was wrong."""
    learner = WeightsOnly(weights)
    reported = failures_told(learner)

    async def wrong(request: wire.FetchWeightsRequest, context: Any) -> AsyncIterator[Any]:
        yield wire.FetchWeightsResponse(encoding=wire.WEIGHT_ENCODING_DELTA, total_bytes=5, data=b"wrong")

    store = WeightStore()
    bad, good = Peers(WeightStore(), []), Peers(store, [])
    bad.servicer.FetchWeights = wrong  # type: ignore[method-assign]
    async with (
        serving(ServiceSpec(), learner) as where,
        serving(ServiceSpec(), bad) as first,
        serving(ServiceSpec(), good) as second,
        replica(loaded, where.grpc) as one,
    ):
        await arrival(one.policy, publish(learner, weights, 0, state))
        learner.servicer.sources = lambda *_: [first.grpc, second.grpc]  # type: ignore[method-assign]
        nudge(state, seed=1)
        before = len(learner.fetched)
        version = publish(learner, weights, 1, state)
        store.add(weights.newest(), next(iter(weights._deltas.values())))
        good.servicer.announce()
        await arrival(one.policy, version)
        assert_serves(one.policy, state, version)
        await until(lambda: reported == [first.grpc])
        assert len(learner.fetched) == before


def files_of(folder: Path, role: str) -> OwnFiles:  # noqa: F811
    """A certificate of this role's, under one authority, and who may call it."""
    signer, _ = authority(folder)
    issue(signer, folder, f"run-{role}", (), days=1)
    write_private(folder / f"{role}.toml", to_toml(mutual_tls.callers(role, "run")))
    return OwnFiles(
        certificate=str(folder / f"run-{role}.pem"),
        private_key=str(folder / f"run-{role}.key"),
        authority=str(folder / "ca.pem"),
        callers=str(folder / f"{role}.toml"),
    )


@pytest.mark.parametrize("known", [True, False])
async def test_peers_are_known_by_their_certificates_name(
    known: bool,
    loaded: LoadedModel,  # noqa: F811
    weights: PublishedWeights,  # noqa: F811
    state: State,  # noqa: F811
    tmp_path: Path,
) -> None:
    """Over mTLS as inside a run: a peer passes on; one that shows another name than a policy's is not believed."""
    files = {role: files_of(tmp_path, role) for role in ("learner", "policy")}
    listening = {role: ServiceSpec.model_validate(mutual_tls.serving(own)) for role, own in files.items()}
    access = mutual_tls.reading_weights(files["policy"], "run")
    if not known:
        access["peer_name"] = "run-reward"
    learner = WeightsOnly(weights)
    async with AsyncExitStack() as stack:
        where = await stack.enter_async_context(serving(listening["learner"], learner))
        first = await stack.enter_async_context(replica(loaded, where.grpc, listening["policy"], **access))
        version = publish(learner, weights, 0, state)
        await arrival(first.policy, version)
        nudge(state, seed=1)
        version = publish(learner, weights, 1, state)
        await arrival(first.policy, version)
        late = await stack.enter_async_context(replica(loaded, where.grpc, listening["policy"], **access))
        await arrival(late.policy, version)
        assert_serves(late.policy, state, version)
        assert (len(first.fetched), len(learner.fetched)) == ((1, 1) if known else (0, 2))


def test_the_address_for_peers() -> None:
    """As given, none, or the one towards the learner with the server's port, which must then be known."""
    spec = WeightSourceSpec(address="127.0.0.1:50054")
    assert own_address(spec, 7) == ""
    assert own_address(spec.model_copy(update={"peer_address": "a:1"}), 7) == "a:1"
    auto = spec.model_copy(update={"peer_address": "auto"})
    assert own_address(auto, 7) == "127.0.0.1:7"
    with pytest.raises(TrimtabError, match=r"server\.port"):
        own_address(auto, 0)
