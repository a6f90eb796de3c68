"""Manifests of weights: which tensors, in which bytes. Shared by who publishes and who reads. No wire here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from blake3 import blake3

from services.common.errors import Corrupted, Mismatch
from services.models.facts import digest_of, tensor_bytes

POLICY_COMPONENT = "policy"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True, order=True)
class Version:
    """Identity of a set of weights; ordered by epoch, then step."""

    epoch: int
    step: int
    digest: str

    def at_least(self, other: Version) -> bool:
        """Whether this is that version or a later one."""
        return (self.epoch, self.step) >= (other.epoch, other.step)


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a manifest. `digest`: BLAKE3 of its little-endian bytes, 32 bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    digest: bytes

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensor."""
        count = 1
        for size in self.shape:
            count *= size
        return count * DTYPES[self.dtype].itemsize


@dataclass(frozen=True, slots=True)
class Part:
    """Neighbouring tensors that one process of a learner has.

    `address`: host:port; :port at the host that was asked for the manifest; empty: the very process that was asked.
    """

    address: str
    tensors: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """Every tensor of a version, in order. `parts`: who has which, where no process has all."""

    version: Version
    tensors: tuple[TensorEntry, ...]
    tokenizer_fingerprint: str = ""
    parts: tuple[Part, ...] = ()

    def of_parts(self) -> list[tuple[str, Manifest]]:
        """Each part's address, and what it has: the same version, fewer tensors."""
        found, begin = list[tuple[str, Manifest]](), 0
        for part in self.parts or (Part("", len(self.tensors)),):
            tensors = self.tensors[begin : begin + part.tensors]
            found.append((part.address, replace(self, tensors=tensors, parts=())))
            begin += part.tensors
        return found

    def by_name(self) -> dict[str, TensorEntry]:
        """Entries by tensor name."""
        return {entry.name: entry for entry in self.tensors}


def entries_of(state: Mapping[str, torch.Tensor]) -> tuple[TensorEntry, ...]:
    """An entry for each tensor, in the mapping's order."""
    return tuple(entry_of(name, tensor) for name, tensor in state.items())


def whole_digest(tensors: tuple[TensorEntry, ...], component: str = POLICY_COMPONENT) -> str:
    """BLAKE3 over component, names, dtypes, shapes and digests, hex: equal digests mean equal bytes."""
    whole = blake3(f"{component}\n".encode())
    for entry in tensors:
        whole.update(f"{entry.name}|{entry.dtype}|{','.join(map(str, entry.shape))}|".encode())
        whole.update(entry.digest)
    return str(whole.hexdigest())


def in_component(component: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors beside the policy's, by the names that they go under in a manifest: component/name."""
    return {f"{component}/{name}": tensor for name, tensor in tensors.items()}


def component_of(name: str) -> str:
    """The component of a manifest's tensor; the policy's own names have no slash."""
    component, slash, _ = name.partition("/")
    return component if slash else POLICY_COMPONENT


def policy_digest(tensors: Iterable[TensorEntry]) -> str:
    """The digest of the policy's own tensors: what a model's folder holds, whatever else is served beside it."""
    return whole_digest(tuple(entry for entry in tensors if component_of(entry.name) == POLICY_COMPONENT))


def verified_in_place(entry: TensorEntry, data: npt.NDArray[np.uint8]) -> torch.Tensor:
    """The tensor that these bytes are; it shares the buffer, which belongs to it from now on.

    Raises Corrupted when they are not what the manifest says.
    """
    if len(data) != entry.size_bytes:
        raise Corrupted(f"{entry.name}: {len(data)} bytes came, {entry.size_bytes} were promised")
    if blake3(data.data, max_threads=blake3.AUTO).digest() != entry.digest:
        raise Corrupted(f"{entry.name}: the digest of the bytes is not the manifest's")
    dtype = DTYPES[entry.dtype]
    if not len(data):  # torch views no empty tensor as another dtype
        return torch.empty(entry.shape, dtype=dtype)
    return torch.from_numpy(data).view(dtype).reshape(entry.shape)


def entry_of(name: str, tensor: torch.Tensor) -> TensorEntry:
    """The entry of one tensor. Raises Mismatch for a dtype that manifests have no word for."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise Mismatch(f"{name}: weights of dtype {dtype} cannot be published")
    return TensorEntry(name, dtype, tuple(tensor.shape), digest_of(tensor))


__all__ = [
    "DTYPES",
    "POLICY_COMPONENT",
    "Manifest",
    "Part",
    "TensorEntry",
    "Version",
    "component_of",
    "entries_of",
    "entry_of",
    "in_component",
    "policy_digest",
    "tensor_bytes",
    "verified_in_place",
    "whole_digest",
]
