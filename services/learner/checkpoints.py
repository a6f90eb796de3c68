"""Checkpoints: written aside, synced, renamed; the last few kept; read only from the run's own folder.

    checkpoints/step-000123/{model/, trainer/state.pt, state.json}

A folder without the rename's final name was never finished and is removed at the next write.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from services.common.errors import Corrupted, StorageFull
from services.models.loading import LoadedModel

_PREFIX = "step-"


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        self._folder = folder
        self._keep = keep

    def latest(self) -> Path | None:
        """The newest whole checkpoint, or None."""
        return max(self._all(), default=None)

    def write(self, step: int, loaded: LoadedModel, trainer: dict[str, Any], state: dict[str, Any]) -> Path:
        """Write a checkpoint, whole or not at all, then drop the oldest. Raises StorageFull."""
        target = self._folder / f"{_PREFIX}{step:06d}"
        aside = self._folder / f".writing-{step:06d}"
        try:
            shutil.rmtree(aside, ignore_errors=True)
            (aside / "trainer").mkdir(parents=True)
            write_model(loaded, aside / "model")
            torch.save(trainer, aside / "trainer" / "state.pt")
            (aside / "state.json").write_text(json.dumps(state))
            _sync(aside)
            shutil.rmtree(target, ignore_errors=True)
            aside.rename(target)
            _sync_folder(self._folder)
        except (OSError, RuntimeError) as error:
            # torch reports a full disk as a RuntimeError of its own.
            shutil.rmtree(aside, ignore_errors=True)
            if _is_full(error):
                raise StorageFull(
                    f"no room on disk for checkpoint {target.name} in {self._folder}; the last one is intact"
                ) from error
            raise
        for old in sorted(self._all())[: -self._keep]:
            shutil.rmtree(old, ignore_errors=True)
        return target

    def read(self, checkpoint: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        """(trainer, state) of a checkpoint. Raises Corrupted when it cannot be read."""
        try:
            state = json.loads((checkpoint / "state.json").read_text())
            trainer = torch.load(checkpoint / "trainer" / "state.pt", weights_only=True, map_location="cpu")
        except (OSError, ValueError, RuntimeError, EOFError) as error:
            raise Corrupted(f"checkpoint {checkpoint} cannot be read: {str(error)[:200]}") from error
        return trainer, state

    def _all(self) -> list[Path]:
        return [path for path in self._folder.glob(f"{_PREFIX}*") if (path / "state.json").is_file()]


def write_model(loaded: LoadedModel, folder: Path) -> None:
    """A plain Hugging Face folder in safetensors, with its tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)


def _sync(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        else:
            _sync_folder(path)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_full(error: BaseException) -> bool:
    text = str(error).lower()
    number = getattr(error, "errno", None)
    written_short = "file write failed" in text or "unexpected pos" in text or "no space left" in text
    return number in (errno.ENOSPC, errno.EDQUOT) or written_short
