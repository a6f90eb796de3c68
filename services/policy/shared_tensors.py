"""Tensors from the folder that the learner shares on this machine: mapped and verified; what is wrong is told."""

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
    """What lay there: verified tensors by name, their bytes, and what was wrong with other files."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    size: int = 0
    wrong: list[str] = field(default_factory=list)


async def shared_tensors(folder: Path, entries: Sequence[TensorEntry]) -> Shared:
    """Those of the entries that the folder has. Wrong files are logged and left; their tensors come otherwise."""
    found = Shared()
    for part in await asyncio.gather(*(apart(_brought, folder, share) for share in shares(entries))):
        found.tensors |= part.tensors
        found.size += part.size
        found.wrong += part.wrong
    if found.wrong:
        _log.warning("shared files are wrong", folder=str(folder), files=len(found.wrong), why=found.wrong[0])
    return found


def _brought(folder: Path, entries: Sequence[TensorEntry]) -> Shared:
    found = Shared()
    for entry in entries:
        try:
            tensor = brought(folder, entry)
        except (Corrupted, OSError, RuntimeError) as error:
            found.wrong.append(str(error))
            continue
        if tensor is not None:
            found.tensors[entry.name] = tensor
            found.size += entry.size_bytes
    return found
