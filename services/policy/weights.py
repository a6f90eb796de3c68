"""Keeps the policy's weights current: watches the learner's versions, fetches what differs, verifies, offers.

WatchVersions ──▶ GetManifest ──▶ FetchWeights(tensors whose digest differs) ──▶ verify ──▶ offer
     ▲                                                                                       │
     └───────────────── the learner is away, or bytes were wrong: again after a pause ◀──────┘
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import grpc
import structlog
import torch

from services.common.channels import make_channel
from services.common.errors import Corrupted, Mismatch, TrimtabError
from services.models.manifest import Manifest, TensorEntry, Version, verified_tensor, whole_digest
from services.models.wire import manifest_of, version_message, version_of
from services.policy.config import WeightSourceSpec
from services.policy.generation import Policy, Update
from trimtab.weights.v1 import weights_pb2 as wire
from trimtab.weights.v1 import weights_pb2_grpc as wire_grpc

if TYPE_CHECKING:
    from trimtab.weights.v1.weights_pb2_grpc import WeightServiceAsyncStub

_MANIFEST_SECONDS = 30.0
_FETCH_SECONDS = 600.0
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
        async with make_channel(self._source.address) as channel:
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
        fetched = await self._fetch(stub, version, lacking) if lacking else b""
        tensors = await asyncio.to_thread(_verified, lacking, fetched)
        self._policy.offer(Update(manifest, tensors))
        _log.info(
            "weights arrived", epoch=version.epoch, step=version.step, tensors=len(lacking), size=len(fetched)
        )

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
    ) -> bytearray:
        """The bytes of the named tensors, in manifest order."""
        request = wire.FetchWeightsRequest(
            run_uid=self._run_uid, want=version_message(version), tensors=[entry.name for entry in lacking]
        )
        data = bytearray(sum(entry.size_bytes for entry in lacking))
        arrived = 0
        async for piece in stub.FetchWeights(request, timeout=_FETCH_SECONDS):
            end = piece.offset + len(piece.data)
            if piece.offset != arrived or end > len(data):
                raise Corrupted(f"weights: bytes {piece.offset} to {end} came, {arrived} were expected")
            data[piece.offset : end] = piece.data
            arrived = end
        if arrived != len(data):
            raise Corrupted(f"weights: {arrived} bytes came, {len(data)} were promised")
        return data

    def _tell(self, why: str) -> None:
        if not self._told:
            _log.info("the learner's weights are not there yet", address=self._source.address, why=why)
        self._told = True


def _verified(entries: list[TensorEntry], data: bytes | bytearray) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    view, at = memoryview(data), 0
    for entry in entries:
        tensors[entry.name] = verified_tensor(entry, view[at : at + entry.size_bytes])
        at += entry.size_bytes
    return tensors
