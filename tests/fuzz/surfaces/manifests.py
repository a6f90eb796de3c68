"""What a reader of weights is told: the manifest, and the pieces that a source streams.

A manifest is InvalidInput or one whose names, sizes and digests make sense; pieces end as Corrupted or Unavailable, or
as the very tensors that the manifest names. A promise of a petabyte takes no memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import torch

from services.common.errors import Corrupted, InvalidInput, Mismatch, Unavailable
from services.models.manifest import Manifest, Version, entries_of, whole_digest
from services.models.snapshot_delta import encoded_delta, tensor_changes
from services.models.snapshots import Snapshot
from services.models.wire import manifest_message, manifest_of
from services.policy.fetching import Fetch, Patience
from tests.fuzz import messages, odd
from tests.fuzz.surface import Surface, documented
from trimtab.weights.v1 import weights_pb2 as wire

_MOST_BYTES = 2**50
Sent = tuple[str, tuple[bytes, ...]]


class _Stub:
    """A source that sends these messages, and then no more."""

    def __init__(self, pieces: tuple[bytes, ...]) -> None:
        self._pieces = pieces

    def FetchWeights(self, request: Any, timeout: float) -> _Stub:
        return self

    def cancel(self) -> None:
        """The reader has had enough."""

    async def __aiter__(self) -> AsyncIterator[wire.FetchWeightsResponse]:
        for data in self._pieces:
            yield wire.FetchWeightsResponse.FromString(data)


class _Versions:
    """Two versions of two tensors, and what is sent between them."""

    def __init__(self) -> None:
        old = {"a": torch.arange(300.0).reshape(30, 10), "b": torch.ones(50, dtype=torch.bfloat16)}
        new = {"a": old["a"] + (torch.arange(300).reshape(30, 10) % 7 == 0), "b": old["b"] * 2}
        self.base = Snapshot(_manifest(old, 1), old)
        self.new, self.manifest = new, _manifest(new, 2)
        changes = {name: tensor_changes(old[name], new[name]) for name in old}
        delta = encoded_delta(changes, self.manifest)
        full = b"".join(_bytes(tensor) for tensor in new.values())
        self.full = _pieces(full, wire.WEIGHT_ENCODING_FULL)
        self.delta = _pieces(delta, wire.WEIGHT_ENCODING_DELTA)


@contextmanager
def opened(folder: Path) -> Iterator[Surface]:
    """One event loop for all inputs."""
    versions, loop = _Versions(), asyncio.new_event_loop()
    sound = manifest_message(versions.manifest)

    def draw(rng: Random) -> Sent:
        if rng.random() < 0.5:
            return "manifest", (messages.sent(rng, sound),)
        return "pieces", _changed(rng, rng.choice((versions.full, versions.delta)))

    def run(sent: Sent) -> str:
        kind, data = sent
        if kind == "manifest":
            return f"manifest {documented(lambda: _read(data[0]), InvalidInput)}"
        return f"pieces {documented(lambda: loop.run_until_complete(_fetched(versions, data)), *_ERRORS)}"

    def good() -> None:
        _read(sound.SerializeToString())
        for pieces in (versions.full, versions.delta):
            loop.run_until_complete(_fetched(versions, tuple(one.SerializeToString() for one in pieces)))

    good()
    try:
        yield Surface(draw, run, good, peak_mib=64)
    finally:
        loop.close()


_ERRORS: tuple[type[Exception], ...] = (Corrupted, Unavailable, Mismatch)


def _read(data: bytes) -> None:
    try:
        message = wire.WeightManifest.FromString(data)
    except Exception:  # protobuf's: the call then ends by gRPC
        raise InvalidInput("no manifest") from None
    manifest = manifest_of(message)
    whole_digest(manifest.tensors)
    names = [entry.name for entry in manifest.tensors]
    assert len(set(names)) == len(names), "a name twice"
    for entry in manifest.tensors:
        assert all(size >= 0 for size in entry.shape), "a negative size"
        assert 0 <= entry.size_bytes <= _MOST_BYTES, "more bytes than there are"
        assert len(entry.digest) == 32, "a digest of another length"


async def _fetched(versions: _Versions, pieces: tuple[bytes, ...]) -> None:
    fetch = Fetch(
        "run",
        versions.manifest,
        versions.manifest.tensors,
        versions.base,
        deltas=True,
        patience=Patience(stall_seconds=5, peer_wait_seconds=5),
    )
    stub: Any = _Stub(pieces)
    try:
        got = await fetch.drain(stub, peer=True)
    finally:
        fetch.drop()
    for name, tensor in versions.new.items():
        assert _bytes(got.tensors[name]) == _bytes(tensor), "a wrong tensor"
        assert got.tensors[name].shape == tensor.shape, "a wrong shape"


def _changed(rng: Random, sound: list[wire.FetchWeightsResponse]) -> tuple[bytes, ...]:
    """Pieces lost, doubled, out of order, of another encoding, with other sizes, damaged inside."""
    pieces = [_copied(piece) for piece in sound]
    actions: tuple[Callable[[], Any], ...] = (
        lambda: pieces.pop(rng.randrange(len(pieces))),
        lambda: pieces.insert(rng.randrange(len(pieces)), _copied(rng.choice(sound))),
        lambda: rng.shuffle(pieces),
        lambda: setattr(rng.choice(pieces), "total_bytes", odd.integer(rng, 0, 2**64 - 1)),
        lambda: setattr(rng.choice(pieces), "offset", odd.integer(rng, 0, 2**64 - 1)),
        lambda: setattr(rng.choice(pieces), "encoding", rng.randrange(5)),
        lambda: _damage(rng, rng.choice(pieces)),
        lambda: _told(rng, pieces),
    )
    for _ in range(rng.choice((1, 1, 2))):
        if pieces:
            rng.choice(actions)()
    return tuple(piece.SerializeToString() for piece in pieces)


def _copied(piece: wire.FetchWeightsResponse) -> wire.FetchWeightsResponse:
    copy = wire.FetchWeightsResponse()
    copy.CopyFrom(piece)
    return copy


def _damage(rng: Random, piece: wire.FetchWeightsResponse) -> None:
    piece.data = odd.damaged(rng, piece.data)


def _told(rng: Random, pieces: list[wire.FetchWeightsResponse]) -> None:
    """All of them tell the same lie."""
    total, encoding = odd.integer(rng, 0, 2**64 - 1), rng.randrange(4)
    for piece in pieces:
        piece.total_bytes, piece.encoding = total, encoding  # type: ignore[assignment] # of the future


def _manifest(tensors: dict[str, torch.Tensor], step: int) -> Manifest:
    entries = entries_of(tensors)
    return Manifest(Version(1, step, whole_digest(entries)), entries, "f" * 64)


def _pieces(data: bytes, encoding: wire.WeightEncoding.ValueType) -> list[wire.FetchWeightsResponse]:
    return [
        wire.FetchWeightsResponse(
            encoding=encoding, total_bytes=len(data), offset=at, data=data[at : at + 200]
        )
        for at in range(0, len(data), 200)
    ]


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()
