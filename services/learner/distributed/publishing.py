"""A version published by several processes: each hashes, keeps and serves neighbouring tensors, and all know of all.

    tensor by tensor, gathered ─▶ whoever keeps it: hashed, copied, compared with the version before
    entries ◀──── exchanged ────▶  one digest of the whole, everywhere
    readers ─▶ the first process: the manifest, and who has what ─▶ each process: its tensors, or what changed of them

So the first process holds and sends no more than any other. A tensor stands whole in every process for a moment, as a
layer does in a pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

from services.learner.distributed.group import TorchGroup
from services.learner.publishing import Assembled, At
from services.models.manifest import Part, TensorEntry


def blocks(sizes: Sequence[int], processes: int) -> list[int]:
    """How many neighbours each process gets, so that bytes are spread evenly. Pure: worked out alike by all."""
    whole, ends = sum(sizes), list(accumulate(sizes))
    # A tensor belongs to whoever has the middle of its bytes.
    owners = [
        min(processes - 1, (2 * end - size) * processes // (2 * whole)) if whole else 0
        for size, end in zip(sizes, ends, strict=True)
    ]
    return [owners.count(process) for process in range(processes)]


class InParts:
    """See Together. Made by all processes at once, in the model's thread."""

    def __init__(self, group: TorchGroup, sizes: Mapping[str, int], address: str) -> None:
        """sizes: bytes of every tensor, in order. address: where this process' tensors are asked for."""
        self._group, rank = group, group.place.rank
        counts = blocks(list(sizes.values()), group.size)
        begin = sum(counts[:rank])
        self._kept = frozenset(list(sizes)[begin : begin + counts[rank]])
        with group.unbroken():
            self._parts = tuple(map(Part, group.everyones(address), counts))

    def keeps(self, name: str) -> bool:
        """See Together."""
        return name in self._kept

    def assembled(self, own: tuple[TensorEntry, ...], at: At) -> Assembled:
        """See Together."""
        with self._group.unbroken():
            found = self._group.everyones((own, at))
        entries = tuple(entry for theirs, _ in found for entry in theirs)
        return Assembled(entries, self._parts, found[0][1])
