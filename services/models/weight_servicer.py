"""WeightService on the wire: manifests, versions and bytes of what a store holds. The learner's and the replicas'.

Who has a version is told by subclasses (`sources`); the base knows only its own store.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from prometheus_client import Counter

from services.common.errors import InvalidInput, Mismatch, Unavailable
from services.models.manifest import Version
from services.models.snapshots import Snapshot, Stream, WeightStore
from services.models.wire import manifest_message, version_message, version_of
from trimtab.weights.v1 import weights_pb2 as wire
from trimtab.weights.v1 import weights_pb2_grpc as wire_grpc

SERVICE_NAME = wire.DESCRIPTOR.services_by_name["WeightService"].full_name
# 106 MB on loopback take 0.17 s in chunks of 1 MiB, 0.19 to 0.24 s of 4 MiB, 0.33 s of 16 MiB.
CHUNK_BYTES = 2**20
# A reader that hears nothing for a while asks somebody else.
STILL_HERE_SECONDS = 0.5
SENT_BYTES = Counter("trimtab_weights_sent_bytes", "Bytes of weights sent to readers.", ["encoding"])
_ENCODING = {"full": wire.WEIGHT_ENCODING_FULL, "delta": wire.WEIGHT_ENCODING_DELTA}


class WeightServicer(wire_grpc.WeightServiceServicer):
    """Answers for one WeightStore, attached once there is one. Lives on one event loop."""

    loading = "the learner is loading"

    def __init__(self) -> None:
        self._store: WeightStore | None = None
        self._changed = asyncio.Event()
        self._closing = False

    def attach(self, store: WeightStore) -> None:
        """From now on answer for this one."""
        self._store = store

    def announce(self) -> None:
        """Tell every watcher that there is a new version. Called on the event loop."""
        self._changed.set()
        self._changed = asyncio.Event()

    def close(self) -> None:
        """End every watcher's stream, so that the server need not wait for them."""
        self._closing = True
        self.announce()

    def sources(self, reader: str, version: Version) -> list[str]:
        """Peers that this reader should ask first."""
        return []

    def joined(self, reader: str) -> None:
        """A reader watches from now on."""

    def left(self, reader: str) -> None:
        """It watches no more."""

    async def GetManifest(self, request: wire.GetManifestRequest, context: Any) -> wire.GetManifestResponse:
        """The manifest of one version, or of the newest."""
        snapshot = self._snapshot(version_of(request.version) if request.HasField("version") else None)
        return wire.GetManifestResponse(manifest=manifest_message(snapshot.manifest))

    async def WatchVersions(
        self, request: wire.WatchVersionsRequest, context: Any
    ) -> AsyncIterator[wire.WatchVersionsResponse]:
        """The newest version now and every later one, as long as the caller listens."""
        sent: Version | None = None
        self.joined(request.peer_address)
        try:
            while not self._closing:
                changed = self._changed
                version = self._newest()
                if version is not None and version != sent:
                    sent = version
                    yield wire.WatchVersionsResponse(
                        version=version_message(version), sources=self.sources(request.peer_address, version)
                    )
                else:
                    await changed.wait()
        finally:
            self.left(request.peer_address)

    async def FetchWeights(
        self, request: wire.FetchWeightsRequest, context: Any
    ) -> AsyncIterator[wire.FetchWeightsResponse]:
        """What leads to a version: the delta from what the caller has, or the named tensors, from the offset on."""
        want = version_of(request.want) if request.HasField("want") else None
        if request.wait and want is not None:
            while not self._closing and self._is_to_come(want):
                yield wire.FetchWeightsResponse()
                await self._a_change()
        stream = await self._stream(self._snapshot(want), request)
        total, kind = stream.total, stream.kind
        if request.offset > total:
            raise InvalidInput(f"offset {request.offset} lies past the {total} bytes there are")
        for offset in range(request.offset, total, CHUNK_BYTES):
            # Made on the event loop: copying 1 MiB takes less time than handing it to a thread.
            data = stream.chunk(offset, CHUNK_BYTES)
            yield wire.FetchWeightsResponse(
                encoding=_ENCODING[kind], total_bytes=total, offset=offset, data=data
            )
            SENT_BYTES.labels(kind).inc(len(data))

    async def ReportVersion(
        self, request: wire.ReportVersionRequest, context: Any
    ) -> wire.ReportVersionResponse:
        """For the learner alone."""
        raise Mismatch("versions are reported to the learner, not to its readers")

    async def _stream(self, snapshot: Snapshot, request: wire.FetchWeightsRequest) -> Stream:
        have = version_of(request.have) if request.HasField("have") else None
        # On a thread: a delta may still be in the making.
        return await asyncio.to_thread(self._attached().stream, snapshot, list(request.tensors), have)

    async def _a_change(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), STILL_HERE_SECONDS)

    def _is_to_come(self, version: Version) -> bool:
        """Whether this version is not here yet; one that was passed over never will be."""
        newest = self._newest()
        return newest is None or not newest.at_least(version)

    def _newest(self) -> Version | None:
        if self._store is None:
            return None
        try:
            return self._store.newest().manifest.version
        except Unavailable:
            return None

    def _snapshot(self, version: Version | None) -> Snapshot:
        store = self._attached()
        return store.newest() if version is None else store.get(version)

    def _attached(self) -> WeightStore:
        if self._store is None:
            raise Unavailable(self.loading)
        return self._store
