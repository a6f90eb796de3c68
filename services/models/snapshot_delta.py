"""From tensors and manifests to deltas and back: the codec (delta.py) does not know what they are. No wire here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch

from services.common.errors import Corrupted
from services.models import delta
from services.models.manifest import Manifest, TensorEntry, verified_in_place

_BITS: dict[int, Any] = {2: np.uint16, 4: np.uint32}
_VIEWS = {2: torch.int16, 4: torch.int32}


def elements(entry: TensorEntry) -> int:
    """Elements of a tensor."""
    count = 1
    for size in entry.shape:
        count *= size
    return count


def bits_of(tensor: torch.Tensor) -> delta.Bits:
    """The bit patterns of a contiguous CPU tensor, [elements], sharing its memory."""
    size = tensor.element_size()
    flat: delta.Bits = tensor.detach().reshape(-1).view(_VIEWS[size]).numpy().view(_BITS[size])
    return flat


def tensor_changes(old: torch.Tensor, new: torch.Tensor) -> delta.Changes:
    """What changed in one tensor. Both have the same shape and dtype."""
    return delta.difference(bits_of(old), bits_of(new))


def encoded_delta(changes: Mapping[str, delta.Changes], manifest: Manifest) -> bytes:
    """Changes by tensor as bytes that lead to the manifest's version."""
    sizes = [elements(entry) for entry in manifest.tensors]
    each = [changes.get(entry.name, delta.UNCHANGED) for entry in manifest.tensors]
    return delta.encoded(delta.joined(each, sizes), sum(sizes))


def composed_delta(steps: Sequence[bytes], manifest: Manifest) -> bytes:
    """Deltas in a row as one."""
    total = sum(elements(entry) for entry in manifest.tensors)
    return delta.encoded(reduce(delta.composed, (delta.decoded(step, total) for step in steps)), total)


def decoded_delta(data: bytes | memoryview, manifest: Manifest) -> list[tuple[TensorEntry, delta.Changes]]:
    """Which tensors a delta changes, and how. Raises Corrupted for bytes that are no delta of these tensors."""
    sizes = [elements(entry) for entry in manifest.tensors]
    changes = delta.decoded(data, sum(sizes)).split(sizes)
    return [(entry, part) for entry, part in zip(manifest.tensors, changes, strict=True) if len(part)]


def brought_up(entry: TensorEntry, base: torch.Tensor, changes: delta.Changes) -> torch.Tensor:
    """A new tensor: the old one with its changes. Raises Corrupted unless it has the manifest's digest."""
    fresh = np.empty(entry.size_bytes, np.uint8)
    bits = fresh.view(_BITS[base.element_size()])
    if len(bits) != base.numel():
        raise Corrupted(f"{entry.name}: a delta is of {len(bits)} elements, there are {base.numel()}")
    bits[:] = bits_of(base)
    delta.apply(bits, changes)
    return verified_in_place(entry, fresh)
