"""Tensors from the folder that the learner shares on this machine: mapped, verified, and whatever is not there told."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog
import torch

from services.common.errors import Corrupted
from services.models.compute import apart
from services.models.manifest import TensorEntry
from services.models.tensor_folder import brought
from services.policy.fetching import shares

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Shared:
    """What lay there: verified tensors by name, their bytes, and how many files were wrong."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    size: int = 0
    wrong: int = 0


async def shared_tensors(folder: Path, entries: Sequence[TensorEntry]) -> Shared:
    """Those of the entries that the folder has. A wrong file is logged and left; its tensor comes otherwise."""
    found = Shared()
    for part in await asyncio.gather(*(apart(_brought, folder, share) for share in shares(entries))):
        found.tensors |= part.tensors
        found.size += part.size
        found.wrong += part.wrong
    return found


def _brought(folder: Path, entries: Sequence[TensorEntry]) -> Shared:
    found = Shared()
    for entry in entries:
        try:
            tensor = brought(folder, entry)
        except (Corrupted, OSError, RuntimeError) as error:
            _log.warning("a shared file is wrong", folder=str(folder), tensor=entry.name, why=str(error))
            found.wrong += 1
            continue
        if tensor is not None:
            found.tensors[entry.name] = tensor
            found.size += entry.size_bytes
    return found
