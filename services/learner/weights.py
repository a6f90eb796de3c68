"""What the learner has published: snapshots of the serving bytes by version, and what changed from one to the next.

training thread: hash, copy, name the version ──▶ announce
                   └──▶ a thread of its own: delta to the version before, while the next batch is generated
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import torch

from services.common.errors import Corrupted
from services.learner.publishing import Alone, At, Together
from services.models.delta import Changes
from services.models.manifest import Manifest, TensorEntry, Version, entry_of, whole_digest
from services.models.snapshot_delta import encoded_delta, tensor_changes
from services.models.snapshots import KEPT_DELTAS, Layout, Snapshot, WeightStore, selected
from services.models.tensor_folder import TensorFolder

__all__ = ["Layout", "PublishedWeights", "Snapshot", "selected"]


class PublishedWeights(WeightStore):
    """The newest snapshots. Written by the training thread, read by any.

    `deltas`: whether readers are over a wire. `folder`: where those on this machine map what others fetch. `together`:
    the other processes that publish the same version; each keeps its own tensors, and knows of all.
    """

    def __init__(
        self,
        *,
        tokenizer_fingerprint: str,
        keep: int = 2,
        deltas: bool = True,
        folder: TensorFolder | None = None,
        together: Together | None = None,
    ) -> None:
        super().__init__(keep=keep)
        self._together = together or Alone()
        self._folder = folder
        self._fingerprint = tokenizer_fingerprint
        self._encoder = ThreadPoolExecutor(max_workers=1, thread_name_prefix="delta") if deltas else None
        # Hashes the next tensors while one is written, and unlinks what nobody needs when all are announced.
        self._aside = ThreadPoolExecutor(max_workers=1, thread_name_prefix="weights") if folder else None
        self._last: Snapshot | None = None
        self._digests: dict[tuple[int, int], str] = {}

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
        if self._folder is not None:
            self._folder.begin(sum(tensor.numel() * tensor.element_size() for tensor in state.values()))
        before = self._last
        known = before.held.by_name() if before else {}
        entries: list[TensorEntry] = []
        tensors: dict[str, torch.Tensor] = {}
        changes: dict[str, Future[Changes]] = {}
        for name, tensor, entry in self._entries(state, {one: known[one] for one in frozen & known.keys()}):
            entries.append(entry)
            if before is not None and known.get(name) == entry:
                tensors[name] = before.tensors[name]
                continue
            # Copied right after it was hashed: it is still in the processor's cache then.
            tensors[name] = self._copied(entry, tensor)
            if self._encoder is not None and before is not None and _alike(known.get(name), entry):
                changes[name] = self._encoder.submit(tensor_changes, before.tensors[name], tensors[name])
        snapshot = self._snapshot(tuple(entries), (epoch, step), tensors)
        version = snapshot.manifest.version
        if before is not None:
            old = before.manifest.version
            if (old.digest, old.epoch) == (version.digest, version.epoch):
                return old, False
        self._digests[version.epoch, version.step] = version.digest
        while len(self._digests) > 4 * KEPT_DELTAS:
            self._digests.pop(next(iter(self._digests)))
        self.add(snapshot, self._delta_from(before, snapshot, changes))
        self._last = snapshot
        if self._folder is not None and self._aside is not None:
            needed = {entry.digest for kept in self.kept() for entry in kept.manifest.tensors}
            self._aside.submit(self._folder.keep, needed)
        return version, True

    def _snapshot(
        self, own: tuple[TensorEntry, ...], at: At, tensors: Mapping[str, torch.Tensor]
    ) -> Snapshot:
        whole = self._together.assembled(own, at)
        version = Version(*whole.at, whole_digest(whole.entries))
        manifest = Manifest(version, whole.entries, self._fingerprint, whole.parts)
        return Snapshot(manifest, tensors, replace(manifest, tensors=own, parts=()) if whole.parts else None)

    def settled(self) -> None:
        """Wait until files that nobody needs are gone."""
        if self._aside is not None:
            self._aside.submit(lambda: None).result()

    def close(self) -> None:
        """Nothing is published any more: readers on this machine find no file of it, and fetch."""
        if self._folder is not None and self._aside is not None:
            self._aside.shutdown()
            self._folder.close()

    def _entries(
        self, state: Mapping[str, torch.Tensor], unchanged: Mapping[str, TensorEntry]
    ) -> Iterator[tuple[str, torch.Tensor, TensorEntry]]:
        """Every tensor that is kept here with its entry, hashed some ahead where there is a thread for it."""

        def entry(item: tuple[str, torch.Tensor]) -> TensorEntry:
            return unchanged.get(item[0]) or entry_of(*item)

        if self._aside is None:
            # All are gone through, also those of others: several processes bring them together one by one.
            mine = (item for item in state.items() if self._together.keeps(item[0]))
            yield from ((name, tensor, entry((name, tensor))) for name, tensor in mine)
            return
        items = list(state.items())
        for (name, tensor), hashed in zip(items, self._aside.map(entry, items), strict=True):
            yield name, tensor, hashed

    def _copied(self, entry: TensorEntry, tensor: torch.Tensor) -> torch.Tensor:
        """Bytes that stay as they are when the model goes on: in the folder where it takes them, else here."""
        shared = self._folder.put(entry, tensor) if self._folder is not None else None
        return tensor.detach().to("cpu", copy=True) if shared is None else shared

    def check_claim(self, claimed: Version, *, by: str) -> None:
        """Raises Corrupted where somebody serves other bytes under a version's name than were published under it."""
        published = self._digests.get((claimed.epoch, claimed.step), claimed.digest)
        if published != claimed.digest:
            raise Corrupted(
                f"{by} serves weights {claimed.digest[:12]} as epoch {claimed.epoch}, step {claimed.step}; "
                f"published were {published[:12]}"
            )

    def _delta_from(
        self, before: Snapshot | None, snapshot: Snapshot, changes: Mapping[str, Future[Changes]]
    ) -> tuple[str, Future[bytes]] | None:
        """What leads here from the version before: None where that is another model, or has the same bytes."""
        # A part that did not change has a delta of nothing, so that those before and after it hang together.
        same = before is None or before.manifest.version.digest == snapshot.manifest.version.digest
        if before is None or self._encoder is None or same or not (changes or snapshot.own):
            return None
        known, held = before.held.by_name(), snapshot.held
        if len(known) != len(held.tensors) or not all(
            _alike(known.get(entry.name), entry) for entry in held.tensors
        ):
            return None
        # The one thread has done with the tensors when it comes to this.
        future = self._encoder.submit(_encoded, changes, held)
        return before.manifest.version.digest, future


def _encoded(changes: Mapping[str, Future[Changes]], manifest: Manifest) -> bytes:
    return encoded_delta({name: change.result() for name, change in changes.items()}, manifest)


def _alike(one: TensorEntry | None, other: TensorEntry) -> bool:
    return one is not None and (one.dtype, one.shape) == (other.dtype, other.shape)
