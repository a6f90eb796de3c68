"""Keeps the policy's weights current: watches the learner's versions, fetches what differs, verifies, offers.

WatchVersions ──▶ GetManifest ──▶ FetchWeights(tensors whose digest differs) ──▶ verify ──▶ offer
     ▲                                                                                       │
     └───────────────── the learner is away, or bytes were wrong: again after a pause ◀──────┘
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import grpc
import numpy as np
import numpy.typing as npt
import structlog
import torch

from services.common.channels import make_channel
from services.common.errors import Corrupted, Mismatch, TrimtabError
from services.models.manifest import Manifest, TensorEntry, Version, verified_in_place, whole_digest
from services.models.wire import manifest_of, version_message, version_of
from services.policy.config import WeightSourceSpec
from services.policy.generation import Policy, Update
from trimtab.weights.v1 import weights_pb2 as wire
from trimtab.weights.v1 import weights_pb2_grpc as wire_grpc

if TYPE_CHECKING:
    from trimtab.weights.v1.weights_pb2_grpc import WeightServiceAsyncStub

Bytes = npt.NDArray[np.uint8]
_MANIFEST_SECONDS = 30.0
_FETCH_SECONDS = 600.0
_VERIFIED_BYTES = 8 * 2**20
_log = structlog.get_logger(__name__)


class WeightReader:
    """Follows one WeightService for as long as it runs."""

    def __init__(self, policy: Policy, source: WeightSourceSpec, run_uid: str) -> None:
        self._policy = policy
        self._source = source
        self._run_uid = run_uid
        self._told = False

    async def run(self) -> None:
        """Until cancelled. A learner that is away is waited for; wrong bytes are logged and fetched again.

        Raises Mismatch for weights of another model or tokenizer: they will never fit.
        """
        async with make_channel(self._source.address, self._source) as channel:
            stub = cast("WeightServiceAsyncStub", wire_grpc.WeightServiceStub(channel))
            while True:
                try:
                    await self._follow(stub)
                except grpc.aio.AioRpcError as error:
                    self._tell(f"{error.code().name}: {error.details()}")
                except TrimtabError as error:
                    _log.error("weights were refused", error=str(error))
                    if isinstance(error, Mismatch):
                        raise
                await asyncio.sleep(self._source.retry_seconds)

    async def _follow(self, stub: WeightServiceAsyncStub) -> None:
        async for message in stub.WatchVersions(wire.WatchVersionsRequest(run_uid=self._run_uid)):
            self._told = False
            await self._bring(stub, version_of(message.version))

    async def _bring(self, stub: WeightServiceAsyncStub, version: Version) -> None:
        answer = await stub.GetManifest(
            wire.GetManifestRequest(run_uid=self._run_uid, version=version_message(version)),
            timeout=_MANIFEST_SECONDS,
        )
        manifest = manifest_of(answer.manifest)
        self._check(manifest, version)
        own = self._policy.entries()
        lacking = [entry for entry in manifest.tensors if own.get(entry.name) != entry]
        tensors = await self._fetch(stub, version, lacking) if lacking else {}
        self._policy.offer(Update(manifest, tensors))
        size = sum(entry.size_bytes for entry in lacking)
        _log.info("weights arrived", epoch=version.epoch, step=version.step, tensors=len(lacking), size=size)

    def _check(self, manifest: Manifest, version: Version) -> None:
        if whole_digest(manifest.tensors) != version.digest:
            raise Corrupted(f"the manifest of step {version.step} does not have the digest it claims")
        fingerprint = manifest.tokenizer_fingerprint
        if fingerprint and fingerprint != self._policy.facts.tokenizer_fingerprint:
            raise Mismatch(
                f"the learner trains with tokenizer {fingerprint[:16]}, the policy has "
                f"{self._policy.facts.tokenizer_fingerprint[:16]}"
            )
        # After the tokenizer: where that is another, so are the shapes, and it is what a person can mend.
        self._policy.check_manifest(manifest)

    async def _fetch(
        self, stub: WeightServiceAsyncStub, version: Version, lacking: list[TensorEntry]
    ) -> dict[str, torch.Tensor]:
        """The named tensors, in manifest order; verified while the next ones arrive."""
        request = wire.FetchWeightsRequest(
            run_uid=self._run_uid, want=version_message(version), tensors=[entry.name for entry in lacking]
        )
        arriving = Arriving(lacking)
        try:
            async for piece in stub.FetchWeights(request, timeout=_FETCH_SECONDS):
                arriving.take(piece.offset, piece.data)
            return await arriving.whole()
        finally:
            arriving.drop()

    def _tell(self, why: str) -> None:
        if not self._told:
            _log.info("the learner's weights are not there yet", address=self._source.address, why=why)
        self._told = True


class Arriving:
    """Tensors whose bytes come one after the other. What is whole is verified in threads, some MiB at a time."""

    def __init__(self, entries: list[TensorEntry]) -> None:
        self._entries = entries
        self._total = sum(entry.size_bytes for entry in entries)
        self._arrived = 0
        # The tensor that bytes go to now, and how many it has.
        self._filling, self._filled = 0, 0
        self._buffer = _buffer(entries[0])
        self._whole: list[tuple[TensorEntry, Bytes]] = []
        self._verifying: list[asyncio.Task[dict[str, torch.Tensor]]] = []

    def take(self, offset: int, piece: bytes) -> None:
        """Put a piece in its place. Raises Corrupted unless it is the next one."""
        end = offset + len(piece)
        if offset != self._arrived or end > self._total:
            raise Corrupted(f"weights: bytes {offset} to {end} came, {self._arrived} were expected")
        self._arrived = end
        rest = np.frombuffer(piece, dtype=np.uint8)
        while len(rest):
            count = min(len(rest), len(self._buffer) - self._filled)
            self._buffer[self._filled : self._filled + count] = rest[:count]
            self._filled += count
            rest = rest[count:]
            if self._filled == len(self._buffer):
                self._next_tensor()
        if sum(len(data) for _, data in self._whole) >= _VERIFIED_BYTES:
            self._verify()

    async def whole(self) -> dict[str, torch.Tensor]:
        """All tensors by name. Raises Corrupted where bytes are missing or wrong."""
        if self._arrived != self._total:
            raise Corrupted(f"weights: {self._arrived} bytes came, {self._total} were promised")
        while self._filling < len(self._entries):  # of no bytes, for all have come
            self._next_tensor()
        self._verify()
        parts = await asyncio.gather(*self._verifying)
        return {name: tensor for part in parts for name, tensor in part.items()}

    def drop(self) -> None:
        """Nobody waits for the rest."""
        for task in self._verifying:
            task.cancel()

    def _next_tensor(self) -> None:
        self._whole.append((self._entries[self._filling], self._buffer))
        self._filling, self._filled = self._filling + 1, 0
        if self._filling < len(self._entries):
            self._buffer = _buffer(self._entries[self._filling])

    def _verify(self) -> None:
        whole, self._whole = self._whole, []
        self._verifying.append(asyncio.create_task(asyncio.to_thread(_verified, whole)))


def _buffer(entry: TensorEntry) -> Bytes:
    return np.empty(entry.size_bytes, dtype=np.uint8)


def _verified(whole: list[tuple[TensorEntry, Bytes]]) -> dict[str, torch.Tensor]:
    return {entry.name: verified_in_place(entry, data) for entry, data in whole}
