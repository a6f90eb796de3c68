"""The last epoch that a learner of this run began, on disk: a queue server that came back empty cannot tell it.

Without it a learner that begins there, from a checkpoint older than the last one's start, would give that one's epoch
out again. Owns one file beside the checkpoints.
"""

from __future__ import annotations

import os
from pathlib import Path

from services.learner.checkpoints import storage_errors

_FILE = "epoch"


def last_epoch(folder: Path) -> int:
    """0 where none was noted, or nothing that can be read."""
    try:
        return int((folder / _FILE).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0


def note_epoch(folder: Path, epoch: int) -> None:
    """On disk when this returns, before anything is done under it. Raises StorageFull."""
    aside = folder / f".{_FILE}.writing"
    with storage_errors(f"the epoch in {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        with aside.open("w", encoding="ascii") as stream:
            stream.write(f"{epoch}\n")
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(folder / _FILE)
