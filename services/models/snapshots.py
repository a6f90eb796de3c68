"""Versions of weights that are held here, and the bytes by which others get them: all, or what changed. No wire here.

The learner holds what it published, a policy replica what arrived; both serve it alike. A snapshot shares every tensor
that did not change with the one before, so frozen layers cost nothing, and it never changes: a reader may still fetch
it while the next one is made.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, Protocol

import structlog
import torch

from services.common.errors import Mismatch, NotFound, Unavailable
from services.models.manifest import Manifest, TensorEntry, Version, tensor_bytes
from services.models.snapshot_delta import composed_delta

KEPT_DELTAS = 16
"""Steps that a reader may be behind and still get a delta."""
KEPT_COMPOSED = 4
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A version's manifest and its tensors, which never change. `own`: those that are here, where they are not all."""

    manifest: Manifest
    tensors: Mapping[str, torch.Tensor]
    own: Manifest | None = None

    @property
    def held(self) -> Manifest:
        """The manifest of what is here."""
        return self.own or self.manifest


class Stream(Protocol):
    """Bytes that are sent in chunks. Any piece is found by its offset."""

    kind: Literal["full", "delta"]

    @property
    def total(self) -> int:
        """Bytes in all."""
        ...

    def chunk(self, offset: int, size: int) -> bytes:
        """Bytes offset … offset+size; shorter at the end."""
        ...


class Layout:
    """Where the bytes of some entries' tensors lie, end to end."""

    kind: Literal["full", "delta"] = "full"

    def __init__(self, snapshot: Snapshot, entries: Sequence[TensorEntry]) -> None:
        self._tensors = [snapshot.tensors[entry.name] for entry in entries]
        self._ends = list(accumulate(entry.size_bytes for entry in entries))

    @property
    def total(self) -> int:
        """See Stream."""
        return self._ends[-1] if self._ends else 0

    def chunk(self, offset: int, size: int) -> bytes:
        """See Stream."""
        pieces = []
        for index in range(bisect_right(self._ends, offset), len(self._ends)):
            start = self._ends[index - 1] if index else 0
            if start >= offset + size:
                break
            data = tensor_bytes(self._tensors[index])
            pieces.append(data[max(0, offset - start) : offset + size - start])
        return b"".join(pieces)


class DeltaStream:
    """A delta as it was encoded once, for everyone."""

    kind: Literal["full", "delta"] = "delta"

    def __init__(self, data: bytes) -> None:
        self._data = data

    @property
    def total(self) -> int:
        """See Stream."""
        return len(self._data)

    def chunk(self, offset: int, size: int) -> bytes:
        """See Stream."""
        return self._data[offset : offset + size]


class WeightStore:
    """The newest snapshots, and the deltas that lead to them. Written by one thread, read by any."""

    def __init__(self, *, keep: int = 2) -> None:
        self._keep = keep
        self._snapshots: dict[Version, Snapshot] = {}
        # By the digest that a delta leads to: the one it starts from, and its bytes, perhaps still in the making.
        self._deltas: dict[str, tuple[str, Future[bytes]]] = {}
        self._composed: dict[tuple[str, str], bytes] = {}
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

    def kept(self) -> list[Snapshot]:
        """All that are here, the oldest first."""
        with self._lock:
            return list(self._snapshots.values())

    def add(self, snapshot: Snapshot, delta: tuple[str, Future[bytes]] | None = None) -> None:
        """Hold this one as the newest. `delta`: the digest that it leads from, and its bytes when they are made."""
        version = snapshot.manifest.version
        with self._lock:
            self._snapshots.pop(version, None)
            self._snapshots[version] = snapshot
            _shorten(self._snapshots, self._keep)
            if delta is not None:
                # Last in the order, also where this digest was there before.
                self._deltas.pop(version.digest, None)
                self._deltas[version.digest] = delta
                _shorten(self._deltas, KEPT_DELTAS)

    def stream(self, snapshot: Snapshot, names: Sequence[str], have: Version | None) -> Stream:
        """The smaller of what leads from `have` to the snapshot and the named tensors in full.

        Waits for a delta that is in the making. Raises NotFound for a name that the manifest does not have.
        """
        full = Layout(snapshot, selected(snapshot, names))
        if have is None:
            return full
        delta = self._delta(have.digest, snapshot, most=full.total)
        return full if delta is None or len(delta) >= full.total else DeltaStream(delta)

    def _delta(self, have: str, snapshot: Snapshot, *, most: int) -> bytes | None:
        want = snapshot.manifest.version.digest
        with self._lock:
            chain = self._chain(have, want)
            made = self._composed.get((have, want))
        if not chain:
            return None
        if made is None:
            try:
                steps = [step.result() for step in chain]
            except Exception:
                # Whole tensors are always right; why there is no delta is for a person to find out.
                _log.exception("a delta could not be made", want=want[:12])
                return None
            # Steps overlap little: where their sum is no gain, neither is what they come to.
            if len(steps) > 1 and sum(map(len, steps)) < 2 * most:
                made = composed_delta(steps, snapshot.held)
                with self._lock:
                    self._composed[have, want] = made
                    _shorten(self._composed, KEPT_COMPOSED)
            else:
                made = steps[0] if len(steps) == 1 else None
        return made

    def _chain(self, have: str, want: str) -> list[Future[bytes]]:
        """Deltas from one digest to another, in order; empty where one is missing."""
        chain: list[Future[bytes]] = []
        at = want
        while at != have and len(chain) <= KEPT_DELTAS:
            if at not in self._deltas:
                return []
            at, delta = self._deltas[at]
            chain.append(delta)
        return chain[::-1] if at == have else []


def selected(snapshot: Snapshot, names: Sequence[str]) -> list[TensorEntry]:
    """The named entries in manifest order; all that are here for an empty list. NotFound for an unknown name,
    Mismatch for one that another process has."""
    if not names:
        return list(snapshot.held.tensors)
    unknown = set(names) - set(snapshot.tensors)
    if unknown & snapshot.manifest.by_name().keys():
        raise Mismatch(
            f"{min(unknown)} is another process' part: ask whom the manifest's parts name, which readers of before "
            "there were any do not know"
        )
    if unknown:
        raise NotFound(f"the manifest has no tensor {min(unknown)}")
    wanted = set(names)
    return [entry for entry in snapshot.held.tensors if entry.name in wanted]


def _shorten(kept: dict[object, object] | dict, most: int) -> None:  # type: ignore[type-arg]
    """Forget the oldest."""
    oldest: Iterable[object] = list(kept)[: max(0, len(kept) - most)]
    for key in oldest:
        del kept[key]
