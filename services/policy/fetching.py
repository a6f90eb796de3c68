"""One version's bytes, from whoever delivers them. What has arrived is kept when a source breaks off or is changed.

source 1 ── bytes … silence        source 2 ── from that offset … all ──▶ decode ──▶ verify ──▶ tensors
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from services.common.errors import Corrupted, Unavailable
from services.models.compute import apart
from services.models.delta import Changes
from services.models.manifest import Manifest, TensorEntry, verified_in_place
from services.models.pairs import PIECE_BYTES, Pair, PairBroken
from services.models.snapshot_delta import brought_up, decoded_delta
from services.models.snapshots import Snapshot
from services.models.wire import version_message
from trimtab.weights.v1 import weights_pb2 as wire

if TYPE_CHECKING:
    from trimtab.weights.v1.weights_pb2_grpc import WeightServiceAsyncStub

Bytes = npt.NDArray[np.uint8]
_FETCH_SECONDS = 600.0
_VERIFIED_BYTES = 8 * 2**20
_SLOWEST = 100
"""Times `stall_seconds` that a peer may take over the whole."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds of silence, and of a peer's "not yet", after which another source is asked."""

    stall_seconds: float
    peer_wait_seconds: float


@dataclass(frozen=True, slots=True)
class Fetched:
    """What came: the tensors that differed, by name; where it was a delta, its bytes and what they say."""

    tensors: dict[str, torch.Tensor]
    delta: bytes | None
    size: int
    encoding: Literal["full", "delta", "shared"] = "full"
    changes: Mapping[str, Changes] = field(default_factory=dict)


class Fetch:
    """The bytes of `lacking`, or the delta from `base`, on their way."""

    def __init__(
        self,
        run_uid: str,
        manifest: Manifest,
        lacking: Sequence[TensorEntry],
        base: Snapshot,
        *,
        deltas: bool,
        patience: Patience,
        wait: bool = False,
    ) -> None:
        """wait: for a source that hears of the version a moment later than this replica."""
        self._run_uid, self._manifest, self._lacking, self._base = run_uid, manifest, list(lacking), base
        self._have = base.manifest.version if deltas else None
        self._patience, self._wait = patience, wait
        self._body: Arriving | DeltaBody | None = None
        self._told: tuple[Any, int] | None = None
        self.paired = 0
        """Bytes that came through pairs."""

    @property
    def arrived(self) -> int:
        """Bytes that are here."""
        return self._body.arrived if self._body else 0

    async def drain(self, stub: WeightServiceAsyncStub, *, peer: bool, pair: Pair | None = None) -> Fetched:
        """All there is, from this source on from where the last one stopped. pair: a way past gRPC, where there is one.

        Raises grpc's errors, PairBroken where its way broke, Unavailable where it is silent, Corrupted where bytes are
        wrong; then nothing is kept.
        """
        try:
            try:
                await self._read(stub, peer=peer, pair=pair)
            except _OtherEncoding:
                # Another source, or the same after a while, sends it otherwise: what is here is of no use.
                self.drop()
                if pair is not None:
                    raise PairBroken("a piece of another stream stands in it") from None
                await self._read(stub, peer=peer, pair=None)
            return await self._finished()
        except (Corrupted, _OtherEncoding):
            self.drop()
            raise

    def drop(self) -> None:
        """Nobody waits for the rest."""
        if isinstance(self._body, Arriving):
            self._body.drop()
        self._body, self._told = None, None

    async def _read(self, stub: WeightServiceAsyncStub, *, peer: bool, pair: Pair | None) -> None:
        async for piece in self._pieces(stub, peer=peer, pair=pair):
            if not piece.pair_bytes:
                self._take(piece, piece.data)
            elif pair is None or piece.pair_bytes > PIECE_BYTES:
                raise Corrupted(f"weights: {piece.pair_bytes} bytes through a pair were not asked for")
            else:
                self._take(piece, await pair.receive(piece.pair_bytes))
                self.paired += piece.pair_bytes

    async def _pieces(
        self, stub: WeightServiceAsyncStub, *, peer: bool, pair: Pair | None
    ) -> AsyncIterator[wire.FetchWeightsResponse]:
        """Messages with data; silence ends them, and so does a peer that has nothing for long."""
        request = wire.FetchWeightsRequest(
            run_uid=self._run_uid,
            want=version_message(self._manifest.version),
            have=version_message(self._have) if self._have else None,
            tensors=[entry.name for entry in self._lacking],
            offset=self.arrived,
            wait=peer or self._wait,
            pair=pair.name if pair else "",
        )
        call = stub.FetchWeights(request, timeout=_FETCH_SECONDS)
        patience, began = self._patience, time.monotonic()
        window, before = began, self.arrived
        try:
            messages = aiter(call)
            while True:
                # A learner may take its time over a delta; a peer says that it is there.
                silent = asyncio.timeout(patience.stall_seconds if peer or self.arrived else _FETCH_SECONDS)
                try:
                    async with silent:
                        piece = await anext(messages)
                except StopAsyncIteration:
                    return
                except TimeoutError:
                    raise Unavailable(f"nothing came for {patience.stall_seconds:g} s") from None
                now = time.monotonic()
                if piece.data or piece.pair_bytes:
                    yield piece
                    if peer and now - window > patience.stall_seconds:
                        if (self.arrived - before) * _SLOWEST < piece.total_bytes:
                            raise Unavailable("it is too slow")
                        window, before = now, self.arrived
                elif now - began > patience.peer_wait_seconds:
                    raise Unavailable(f"it had nothing yet after {patience.peer_wait_seconds:g} s")
        finally:
            call.cancel()

    def _take(self, piece: wire.FetchWeightsResponse, data: bytes | memoryview) -> None:
        told = (piece.encoding, piece.total_bytes)
        if self._body is None:
            is_delta = piece.encoding == wire.WEIGHT_ENCODING_DELTA
            if is_delta and self._have is None:
                raise Corrupted("weights: a delta came that was not asked for")
            self._body = DeltaBody(piece.total_bytes) if is_delta else Arriving(self._lacking)
            self._told = told
        elif told != self._told:
            raise _OtherEncoding("the source sends another encoding than the one before it began")
        self._body.take(piece.offset, data)

    async def _finished(self) -> Fetched:
        body = self._body or Arriving(self._lacking)
        if isinstance(body, Arriving):
            return Fetched(await body.whole(), None, body.arrived)
        data = body.whole()
        tensors, changes = await self._brought_up(data)
        return Fetched(tensors, data, len(data), "delta", changes)

    async def _brought_up(self, data: bytes) -> tuple[dict[str, torch.Tensor], dict[str, Changes]]:
        changed = await asyncio.to_thread(decoded_delta, data, self._manifest)
        by_name = {entry.name: part for entry, part in changed}
        lacking = {entry.name: entry for entry in self._lacking}
        if by_name.keys() != lacking.keys():
            odd = min(by_name.keys() ^ lacking.keys())
            raise Corrupted(f"{odd}: a delta and the manifest do not agree on whether it changed")
        work = [apart(self._bring, part, by_name) for part in shares(self._lacking)]
        tensors = {name: tensor for part in await asyncio.gather(*work) for name, tensor in part.items()}
        return tensors, by_name

    def _bring(self, entries: list[TensorEntry], changes: dict[str, Changes]) -> dict[str, torch.Tensor]:
        old = self._base.tensors
        return {entry.name: brought_up(entry, old[entry.name], changes[entry.name]) for entry in entries}


class _OtherEncoding(Unavailable):
    """What has arrived and what comes do not belong together."""


class DeltaBody:
    """A delta's bytes, one after the other."""

    kind: Literal["full", "delta"] = "delta"

    def __init__(self, total: int) -> None:
        self._total = total
        self._data = bytearray()

    @property
    def arrived(self) -> int:
        """Bytes that are here."""
        return len(self._data)

    def take(self, offset: int, piece: bytes | memoryview) -> None:
        """Put a piece in its place. Raises Corrupted unless it is the next one."""
        _check_next(offset, piece, self.arrived, self._total)
        self._data += piece

    def whole(self) -> bytes:
        """All of it. Raises Corrupted where bytes are missing."""
        _check_whole(self.arrived, self._total)
        return bytes(self._data)


class Arriving:
    """Tensors whose bytes come one after the other. What is whole is verified in threads, some MiB at a time."""

    def __init__(self, entries: list[TensorEntry]) -> None:
        self._entries = entries
        self._total = sum(entry.size_bytes for entry in entries)
        self.arrived = 0
        # The tensor that bytes go to now, and how many it has.
        self._filling, self._filled = 0, 0
        self._buffer = _buffer(entries[0])
        self._whole: list[tuple[TensorEntry, Bytes]] = []
        self._verifying: list[asyncio.Task[dict[str, torch.Tensor]]] = []

    def take(self, offset: int, piece: bytes | memoryview) -> None:
        """Put a piece in its place. Raises Corrupted unless it is the next one."""
        _check_next(offset, piece, self.arrived, self._total)
        self.arrived += len(piece)
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
        _check_whole(self.arrived, self._total)
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
        self._verifying.append(asyncio.create_task(apart(_verified, whole)))


def _check_next(offset: int, piece: bytes | memoryview, arrived: int, total: int) -> None:
    if offset != arrived or arrived + len(piece) > total:
        raise Corrupted(f"weights: bytes {offset} to {offset + len(piece)} came, {arrived} were expected")


def _check_whole(arrived: int, total: int) -> None:
    if arrived != total:
        raise Corrupted(f"weights: {arrived} bytes came, {total} were promised")


def shares(entries: Sequence[TensorEntry]) -> list[list[TensorEntry]]:
    """Some MiB of tensors each, for threads."""
    shares: list[list[TensorEntry]] = [[]]
    size = 0
    for entry in entries:
        if size >= _VERIFIED_BYTES:
            shares.append([])
            size = 0
        shares[-1].append(entry)
        size += entry.size_bytes
    return shares


def _buffer(entry: TensorEntry) -> Bytes:
    return np.empty(entry.size_bytes, dtype=np.uint8)


def _verified(whole: list[tuple[TensorEntry, Bytes]]) -> dict[str, torch.Tensor]:
    return {entry.name: verified_in_place(entry, data) for entry, data in whole}
