"""Checkpoints: written aside, synced, renamed; the last few kept; read only from the run's own folder.

    checkpoints/step-000123/{model/ or adapter/, trainer/state.pt, state.json}
                                                 trainer/shards/ beside it where several processes train (distributed/)

A folder without the rename's final name was never finished and is removed at the next write. Owns what a full
disk means, however the library that met it says so.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch

from services.common.errors import Corrupted, ServiceError, StorageFull
from services.learner.adapters import Adapter
from services.models.loading import LoadedModel

STATE_FILE = "state.pt"
SHARDS_FOLDER = "shards"
_PREFIX = "step-"
_NAMED = re.compile(rf"{_PREFIX}\d+")
_ASIDE = ".writing-"
_OVER = f"{_ASIDE}over-"
# A limit on the size of files (ulimit -f, a quota of some file systems) is a full disk too.
_FULL_ERRNO = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# torch and safetensors have no errno: their words for a disk that took less than it was given.
_FULL = ("no space left", "disk quota exceeded", "file too large", "file write failed", "unexpected pos")


class Files(Protocol):
    """What of a checkpoint depends on where the trained weights lie: here, or in shards (distributed/)."""

    def write_model(self, loaded: LoadedModel, folder: Path) -> None:
        """A plain Hugging Face folder in safetensors, with its tokenizer."""
        ...

    def write_trainer(self, state: dict[str, Any], folder: Path) -> None:
        """A trainer's state, into an empty folder."""
        ...

    def read_trainer(self, folder: Path) -> dict[str, Any]:
        """It again, by however many processes it was written."""
        ...


class WholeFiles:
    """Of a learner that is one process; it reads what several have written too."""

    def write_model(self, loaded: LoadedModel, folder: Path) -> None:
        """See Files."""
        write_model(loaded, folder)

    def write_trainer(self, state: dict[str, Any], folder: Path) -> None:
        """See Files."""
        torch.save(state, folder / STATE_FILE)

    def read_trainer(self, folder: Path) -> dict[str, Any]:
        """See Files."""
        state: dict[str, Any] = torch.load(folder / STATE_FILE, weights_only=True, map_location="cpu")
        if (folder / SHARDS_FOLDER).is_dir():
            from services.learner.distributed.shard_files import joined  # torch.distributed.checkpoint: 1 s

            joined(state, folder / SHARDS_FOLDER)
        return state


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, folder: Path, *, keep: int, files: Files | None = None) -> None:
        self._folder = folder
        self._keep = keep
        self._files = files or WholeFiles()

    def latest(self, *, before: int | None = None) -> Path | None:
        """The newest whole checkpoint, of fewer steps than `before` where that is given, or None."""
        self._put_back()
        found = [path for path in self._all() if before is None or _step_of(path) < before]
        return next(reversed(found), None)

    def write(
        self,
        step: int,
        loaded: LoadedModel,
        trainer: dict[str, Any],
        state: dict[str, Any],
        adapter: Adapter | None = None,
    ) -> Path:
        """Write a checkpoint, whole or not at all, then drop the oldest. Raises StorageFull.

        With an adapter it holds that in place of the model, whose base does not change.
        """
        target = self._folder / f"{_PREFIX}{step:06d}"

        def fill(aside: Path) -> None:
            (aside / "trainer").mkdir()
            if adapter is None:
                self._files.write_model(loaded, aside / "model")
            else:
                adapter.write(aside / "adapter")
            self._files.write_trainer(trainer, aside / "trainer")
            (aside / "state.json").write_text(json.dumps(state))

        self._put_back()
        for left in self._folder.glob(f"{_ASIDE}*"):
            shutil.rmtree(left, ignore_errors=True)
        with storage_errors(f"checkpoint {target.name} in {self._folder} (the last one is intact)"):
            write_folder(target, fill)
        for old in self._all()[: -self._keep]:
            # Those of a learner that was replaced while it wrote may be of more steps than this one.
            if old != target:
                shutil.rmtree(old, ignore_errors=True)
        return target

    def epoch_of(self, checkpoint: Path) -> int:
        """The epoch that wrote it. Raises Corrupted when it cannot be read."""
        try:
            return int(json.loads((checkpoint / "state.json").read_text())["epoch"])
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise Corrupted(f"checkpoint {checkpoint} cannot be read: {str(error)[:200]}") from error

    def read(self, checkpoint: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        """(trainer, state) of a checkpoint. Raises Corrupted when it cannot be read."""
        try:
            state = json.loads((checkpoint / "state.json").read_text())
            trainer = self._files.read_trainer(checkpoint / "trainer")
        except Exception as error:  # torch's reader of damaged bytes raises whatever it stumbles over
            raise Corrupted(f"checkpoint {checkpoint} cannot be read: {str(error)[:200]}") from error
        return trainer, state

    def _all(self) -> list[Path]:
        """Whole checkpoints by step: as text, step 1,000,000 would come before step 999,999."""
        named = (path for path in self._folder.glob(f"{_PREFIX}*") if _NAMED.fullmatch(path.name))
        return sorted((path for path in named if (path / "state.json").is_file()), key=_step_of)

    def _put_back(self) -> None:
        """A checkpoint that was being written over when its learner was killed, between the two renames."""
        for before in self._folder.glob(f"{_OVER}{_PREFIX}*"):
            _put_back(before, self._folder / before.name.removeprefix(_OVER))


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix(_PREFIX))


def write_model(loaded: LoadedModel, folder: Path, adapter: Adapter | None = None) -> None:
    """A plain Hugging Face folder in safetensors, with its tokenizer; an adapter is merged into it."""
    folder.mkdir(parents=True, exist_ok=True)
    loaded.model.save_pretrained(folder, state_dict=adapter.merged() if adapter else None)
    loaded.tokenizer.save_pretrained(folder)


def write_folder(target: Path, fill: Callable[[Path], None]) -> None:
    """Fill a folder beside `target`, sync it, put it in its place: what stands there is always whole."""
    aside, before = (target.with_name(f"{begin}{target.name}") for begin in (_ASIDE, _OVER))
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        fill(aside)
        _sync(aside)
        if target.exists():
            target.rename(before)
        aside.rename(target)
        _sync_folder(target.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        _put_back(before, target)


def _put_back(before: Path, target: Path) -> None:
    """What stood in a place returns to it, unless the new is there."""
    if target.exists():
        shutil.rmtree(before, ignore_errors=True)
    elif before.exists():
        with contextlib.suppress(OSError):
            before.rename(target)


@contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Around writing `what`: StorageFull for a full disk, ServiceError for another refusal, in one line."""
    try:
        yield
    except Exception as error:
        if _is_full(error):
            raise StorageFull(f"no room on disk for {what}") from error
        if isinstance(error, OSError):
            raise ServiceError(f"{what} cannot be written: {error.strerror or error}") from error
        raise


def _sync(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        else:
            _sync_folder(path)
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_full(error: BaseException) -> bool:
    if getattr(error, "errno", None) in _FULL_ERRNO:
        return True
    text = str(error).lower()
    return any(words in text for words in _FULL)
