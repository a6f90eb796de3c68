"""WeightService on the wire: manifests, versions and bytes of what a store holds. The learner's and the replicas'.

Who has a version is told by subclasses (`sources`); the base knows only its own store.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from prometheus_client import Counter

from services.common.errors import InvalidInput, Mismatch, Unavailable
from services.models.manifest import Version
from services.models.pair_servicer import Pairs
from services.models.pairs import LEAST_BYTES, PIECE_BYTES, Fabric, Pair
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

    def __init__(self, fabric: Fabric | None = None) -> None:
        """fabric: what readers may share with this process."""
        self._store: WeightStore | None = None
        self._pairs = Pairs(fabric)
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
        self._pairs.close()
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
        if request.offset > stream.total:
            raise InvalidInput(f"offset {request.offset} lies past the {stream.total} bytes there are")
        pair = await self._pairs.find(request.pair) if stream.total >= LEAST_BYTES else None
        pieces = (
            _messages(stream, request.offset) if pair is None else self._paired(stream, request.offset, pair)
        )
        async for piece in pieces:
            yield piece
            SENT_BYTES.labels(stream.kind).inc(len(piece.data) + piece.pair_bytes)

    async def OpenPair(
        self, request_iterator: AsyncIterator[wire.OpenPairRequest], context: Any
    ) -> AsyncIterator[wire.OpenPairResponse]:
        """A way past this service's messages, for one reader that shares a fabric with it."""
        async for answer in self._pairs.open(request_iterator, context):
            yield answer

    async def ReportVersion(
        self, request: wire.ReportVersionRequest, context: Any
    ) -> wire.ReportVersionResponse:
        """For the learner alone."""
        raise Mismatch("versions are reported to the learner, not to its readers")

    async def _stream(self, snapshot: Snapshot, request: wire.FetchWeightsRequest) -> Stream:
        have = version_of(request.have) if request.HasField("have") else None
        # On a thread: a delta may still be in the making.
        return await asyncio.to_thread(self._attached().stream, snapshot, list(request.tensors), have)

    async def _paired(
        self, stream: Stream, begin: int, pair: Pair
    ) -> AsyncIterator[wire.FetchWeightsResponse]:
        """Each piece is announced, then sent: the reader waits for it."""
        whole = False
        try:
            for offset in range(begin, stream.total, PIECE_BYTES):
                size = min(PIECE_BYTES, stream.total - offset)
                yield _message(stream, offset, pair_bytes=size)
                await pair.send(partial(stream.chunk, offset, size))
            whole = True
        finally:
            # Also where the reader went away: what it did not take would be the next one's first piece.
            if not whole:
                self._pairs.broke(pair)

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


async def _messages(stream: Stream, begin: int) -> AsyncIterator[wire.FetchWeightsResponse]:
    for offset in range(begin, stream.total, CHUNK_BYTES):
        # Made on the event loop: copying 1 MiB takes less time than handing it to a thread.
        yield _message(stream, offset, data=stream.chunk(offset, CHUNK_BYTES))


def _message(stream: Stream, offset: int, **what: Any) -> wire.FetchWeightsResponse:
    encoding, total = _ENCODING[stream.kind], stream.total
    return wire.FetchWeightsResponse(encoding=encoding, total_bytes=total, offset=offset, **what)
