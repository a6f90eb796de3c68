"""What the learner has published: snapshots of the serving bytes by version. No wire here.

A snapshot shares every tensor that did not change with the one before, so frozen layers cost nothing, and a
reader may still fetch a version while the next update writes into the model.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from services.common.errors import Mismatch, NotFound, Unavailable
from services.models.manifest import Manifest, TensorEntry, Version, entry_of, tensor_bytes, whole_digest


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A version's manifest and its tensors, which never change."""

    manifest: Manifest
    tensors: Mapping[str, torch.Tensor]


class PublishedWeights:
    """The newest snapshots. Written by the training thread, read by any."""

    def __init__(self, *, tokenizer_fingerprint: str, keep: int = 2) -> None:
        self._fingerprint = tokenizer_fingerprint
        self._keep = keep
        self._snapshots: dict[Version, Snapshot] = {}
        self._lock = threading.Lock()

    def newest(self) -> Snapshot:
        """The newest snapshot. Raises Unavailable before the first."""
        with self._lock:
            if not self._snapshots:
                raise Unavailable("no weights are published yet")
            return next(reversed(self._snapshots.values()))

    def get(self, version: Version) -> Snapshot:
        """The snapshot of exactly this version. Raises Mismatch when it is not here (any more)."""
        with self._lock:
            found = self._snapshots.get(version)
        if found is None:
            raise Mismatch(f"weights of epoch {version.epoch}, step {version.step} are not here (any more)")
        return found

    def publish(
        self,
        epoch: int,
        step: int,
        state: Mapping[str, torch.Tensor],
        *,
        frozen: frozenset[str] = frozenset(),
    ) -> tuple[Version, bool]:
        """Publish the state's bytes; (version, whether anything changed).

        A step that changes no byte keeps the version it had, unless the epoch rose. `frozen` names tensors
        that cannot have changed since the last snapshot and are not hashed again.
        """
        before = next(reversed(self._snapshots.values()), None) if self._snapshots else None
        known = before.manifest.by_name() if before else {}
        entries: list[TensorEntry] = []
        tensors: dict[str, torch.Tensor] = {}
        for name, tensor in state.items():
            entry = known[name] if name in frozen and name in known else entry_of(name, tensor)
            entries.append(entry)
            # Copied right after it was hashed: it is still in the processor's cache then.
            same = before is not None and known.get(name) == entry
            tensors[name] = before.tensors[name] if before and same else tensor.detach().to("cpu", copy=True)
        digest = whole_digest(tuple(entries))
        if before is not None:
            old = before.manifest.version
            if old.digest == digest and old.epoch == epoch:
                return old, False
        version = Version(epoch, step, digest)
        snapshot = Snapshot(Manifest(version, tuple(entries), self._fingerprint), tensors)
        with self._lock:
            self._snapshots[version] = snapshot
            while len(self._snapshots) > self._keep:
                self._snapshots.pop(next(iter(self._snapshots)))
        return version, True


def selected(snapshot: Snapshot, names: list[str]) -> list[TensorEntry]:
    """The named entries in manifest order; all for an empty list. Raises NotFound for an unknown name."""
    if not names:
        return list(snapshot.manifest.tensors)
    unknown = set(names) - set(snapshot.tensors)
    if unknown:
        raise NotFound(f"the manifest has no tensor {min(unknown)}")
    wanted = set(names)
    return [entry for entry in snapshot.manifest.tensors if entry.name in wanted]


class Layout:
    """Where the bytes of some entries' tensors lie, end to end. Any piece is found by its offset."""

    def __init__(self, snapshot: Snapshot, entries: Sequence[TensorEntry]) -> None:
        self._tensors = [snapshot.tensors[entry.name] for entry in entries]
        self._ends = list(accumulate(entry.size_bytes for entry in entries))

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self._ends[-1] if self._ends else 0

    def chunk(self, offset: int, size: int) -> bytes:
        """Bytes offset … offset+size; shorter at the end."""
        pieces = []
        for index in range(bisect_right(self._ends, offset), len(self._ends)):
            start = self._ends[index - 1] if index else 0
            if start >= offset + size:
                break
            data = tensor_bytes(self._tensors[index])
            pieces.append(data[max(0, offset - start) : offset + size - start])
        return b"".join(pieces)
