"""Whom to ask for a version's bytes: the shared folder, a peer, the learner; each of its processes for its part.

    folder ──▶ peers, best first ──▶ learner ─┬─▶ first process: its tensors, or what changed of them
    (what it has)  (all of the rest)          └─▶ … each other, side by side

What a source sent before it failed is kept, where the next one sends the same stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import grpc
import structlog

from services.common.channels import make_channel
from services.common.errors import Corrupted, Unavailable
from services.models.compute import apart
from services.models.manifest import Manifest, TensorEntry
from services.models.pairs import Fabric, PairBroken
from services.models.snapshot_delta import encoded_delta
from services.models.snapshots import Snapshot
from services.policy.config import WeightSourceSpec
from services.policy.fetching import Fetch, Fetched, Patience
from services.policy.pairing import Pairing
from services.policy.shared_tensors import shared_tensors
from services.policy.weight_metrics import (
    FALLBACKS,
    FETCHED_BYTES,
    PAIR_FAILURES,
    PAIRED_BYTES,
    SOURCE_FAILURES,
)
from trimtab.weights.v1 import weights_pb2_grpc as wire_grpc

if TYPE_CHECKING:
    from trimtab.weights.v1.weights_pb2_grpc import WeightServiceAsyncStub

_RESUMES = 8
"""Times that the learner's stream may break off before the reader begins anew."""
_log = structlog.get_logger(__name__)
Value = TypeVar("Value")


class Sources:
    """Of one replica. `passes_on`: whether peers may ask it for deltas."""

    def __init__(
        self, source: WeightSourceSpec, run_uid: str, *, fabric: Fabric | None, passes_on: bool
    ) -> None:
        self._source, self._run_uid, self._passes_on = source, run_uid, passes_on
        self._patience = Patience(source.stall_seconds, source.peer_wait_seconds)
        self._pairing = Pairing(fabric, run_uid, stall_seconds=source.stall_seconds)

    async def take(
        self,
        learner: WeightServiceAsyncStub,
        manifest: Manifest,
        lacking: Sequence[TensorEntry],
        base: Snapshot,
        peers: Sequence[str],
    ) -> tuple[Fetched, list[str]]:
        """What the shared folder has, the rest fetched; and the peers that failed.

        Raises grpc's errors and Unavailable where nobody delivers, Corrupted where the learner's own bytes are wrong.
        """
        shared = await self._from_folder(lacking)
        rest = [entry for entry in lacking if entry.name not in shared.tensors]
        if not rest:
            return shared, []
        # A delta is of all that changed, not of a rest.
        deltas = self._source.deltas and not shared.tensors
        fetched, failed = await self._fetch(learner, manifest, rest, base, peers, deltas=deltas)
        tensors, size = {**shared.tensors, **fetched.tensors}, shared.size + fetched.size
        return replace(fetched, tensors=tensors, size=size), failed

    async def close(self) -> None:
        """Ask nobody any more."""
        await self._pairing.close()

    async def _from_folder(self, lacking: Sequence[TensorEntry]) -> Fetched:
        if not self._source.folder:
            return Fetched({}, None, 0)
        found = await shared_tensors(Path(self._source.folder), lacking)
        SOURCE_FAILURES.inc(len(found.wrong))
        return _counted(Fetched(found.tensors, None, found.size, "shared"), "folder")

    async def _fetch(
        self,
        learner: WeightServiceAsyncStub,
        manifest: Manifest,
        lacking: Sequence[TensorEntry],
        base: Snapshot,
        peers: Sequence[str],
        *,
        deltas: bool,
    ) -> tuple[Fetched, list[str]]:
        """The bytes, and the peers that failed. Wrong ones are never kept: the next source is asked, and after the
        learner's own delta its whole tensors."""
        failed = list[str]()
        fetch = Fetch(self._run_uid, manifest, lacking, base, deltas=deltas, patience=self._patience)
        try:
            for peer in peers:
                fetched = await self._from_peer(fetch, peer)
                if fetched is not None:
                    return _counted(fetched, "peer"), failed
                failed.append(peer)
            if not manifest.parts:
                return _counted(await self._resumed(fetch, learner), "learner"), failed
        except Corrupted as error:
            _fell_back(error)
            deltas = False
        finally:
            fetch.drop()
        return await self._from_processes(learner, manifest, lacking, base, deltas=deltas), failed

    async def _from_peer(self, fetch: Fetch, address: str) -> Fetched | None:
        """None where it does not deliver; what it did deliver stays in the fetch, unless it was wrong."""
        try:
            async with _asked(address, self._source.to_peers()) as stub:
                return await self._drained(fetch, stub, address, peer=True)
        except grpc.aio.AioRpcError as error:
            why = f"{error.code().name}: {error.details()}"
        except Unavailable as error:
            why = str(error)
        except Corrupted as error:
            _fell_back(error)
            why = str(error)
        SOURCE_FAILURES.inc()
        _log.warning("a peer did not deliver weights", address=address, why=why)
        return None

    async def _from_processes(
        self,
        learner: WeightServiceAsyncStub,
        manifest: Manifest,
        lacking: Sequence[TensorEntry],
        base: Snapshot,
        *,
        deltas: bool,
    ) -> Fetched:
        """All parts, side by side; one whose delta is wrong comes whole."""
        names = {entry.name for entry in lacking}

        async def part(address: str, theirs: Manifest) -> Fetched:
            wanted = [entry for entry in theirs.tensors if entry.name in names]
            if not wanted:
                return Fetched({}, None, 0, "delta")
            if not address:
                return await self._from_process(learner, "", theirs, wanted, base, deltas=deltas)
            where = self._at_learner(address) if address.startswith(":") else address
            async with _asked(where, self._source) as stub:
                return await self._from_process(stub, where, theirs, wanted, base, deltas=deltas)

        found = await _side_by_side([part(*one) for one in manifest.of_parts()])
        return await apart(self._joined, found, manifest)

    def _at_learner(self, port: str) -> str:
        return self._source.address.rpartition(":")[0] + port

    async def _from_process(
        self,
        stub: WeightServiceAsyncStub,
        address: str,
        manifest: Manifest,
        lacking: Sequence[TensorEntry],
        base: Snapshot,
        *,
        deltas: bool,
    ) -> Fetched:
        for encoded in (True, False) if deltas else (False,):
            fetch = Fetch(
                self._run_uid,
                manifest,
                lacking,
                base,
                deltas=encoded,
                patience=self._patience,
                wait=bool(address),
            )
            try:
                return _counted(await self._resumed(fetch, stub, address), "learner")
            except Corrupted as error:
                if not encoded:
                    raise
                _fell_back(error)
            finally:
                fetch.drop()
        raise AssertionError("the last try returns or raises")

    def _joined(self, parts: Sequence[Fetched], manifest: Manifest) -> Fetched:
        tensors = {name: tensor for part in parts for name, tensor in part.tensors.items()}
        size = sum(part.size for part in parts)
        if any(part.encoding != "delta" for part in parts):
            return Fetched(tensors, None, size)
        changes = {name: change for part in parts for name, change in part.changes.items()}
        # Peers are sent one delta, of all.
        delta = encoded_delta(changes, manifest) if self._passes_on else None
        return Fetched(tensors, delta, size, "delta", changes)

    async def _resumed(self, fetch: Fetch, stub: WeightServiceAsyncStub, address: str = "") -> Fetched:
        """As long as each try brings more than the one before, a stream that breaks off is taken up again."""
        for _ in range(_RESUMES):
            before = fetch.arrived
            try:
                return await self._drained(fetch, stub, address or self._source.address, peer=False)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE or fetch.arrived <= before:
                    raise
            except Unavailable:
                if fetch.arrived <= before:
                    raise
            await asyncio.sleep(self._source.retry_seconds)
        raise Unavailable("the learner's stream of weights broke off again and again")

    async def _drained(
        self, fetch: Fetch, stub: WeightServiceAsyncStub, address: str, *, peer: bool
    ) -> Fetched:
        """Over the fabric that this replica and the source share, where they do; what is left over gRPC."""
        spec = self._source.to_peers() if peer else self._source
        pair, before = await self._pairing.pair(address, spec), fetch.paired
        whole = False
        try:
            fetched = await fetch.drain(stub, peer=peer, pair=pair)
            whole = True
            return fetched
        except PairBroken as error:
            PAIR_FAILURES.inc()
            _log.warning("gRPC goes on with the weights", address=address, why=str(error))
        finally:
            PAIRED_BYTES.inc(fetch.paired - before)
            # Whatever went wrong, a piece may stand in the pair that nobody asks for any more.
            if pair is not None and not whole:
                self._pairing.broke(address)
        return await fetch.drain(stub, peer=peer)


@asynccontextmanager
async def _asked(address: str, spec: Any) -> AsyncIterator[WeightServiceAsyncStub]:
    async with make_channel(address, spec) as channel:
        yield cast("WeightServiceAsyncStub", wire_grpc.WeightServiceStub(channel))


async def _side_by_side(work: Sequence[Coroutine[Any, Any, Value]]) -> list[Value]:
    """All, or the error of the first that fails; then nothing of the rest goes on."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _counted(fetched: Fetched, source: str) -> Fetched:
    FETCHED_BYTES.labels(fetched.encoding, source).inc(fetched.size)
    return fetched


def _fell_back(error: Corrupted) -> None:
    _log.error("weights were refused", error=str(error))
    FALLBACKS.inc()
