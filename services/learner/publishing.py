"""The processes that publish one version together, as one of them sees them: a port, and its twin of one process.

its own tensors ─▶ hashed, copied, compared with the version before ─▶ entries of all, everywhere ─▶ the version
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from services.models.manifest import Part, TensorEntry

At = tuple[int, int]
"""Epoch and step."""


@dataclass(frozen=True, slots=True)
class Assembled:
    """What all processes have, in their order. `parts`: empty where one has all."""

    entries: tuple[TensorEntry, ...]
    parts: tuple[Part, ...]
    at: At


class Together(Protocol):
    """Called by all processes alike, in the same order."""

    def keeps(self, name: str) -> bool:
        """Whether this process publishes this tensor's bytes."""
        ...

    def assembled(self, own: tuple[TensorEntry, ...], at: At) -> Assembled:
        """The whole version. `at` is what the first process says."""
        ...


class Alone:
    """One process, which has everything."""

    def keeps(self, name: str) -> bool:  # noqa: ARG002 - one has all
        """See Together."""
        return True

    def assembled(self, own: tuple[TensorEntry, ...], at: At) -> Assembled:
        """See Together."""
        return Assembled(own, (), at)
