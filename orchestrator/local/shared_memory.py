"""The folder in memory by which a run's learner hands weights to its policies, and what dead runs left of theirs."""

from __future__ import annotations

import os
from pathlib import Path

from services.common import shared_folder

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - the folders in it are for their owner alone
_PREFIX = "trimtab-"


def weights_folder(run_uid: str) -> str:
    """Where this run's learner shares weights; empty where this machine has no such memory. Nothing is made here.

    Whether there is room is for the learner to see: it knows how large the model is.
    """
    usable = SHARED_MEMORY.is_dir() and os.access(SHARED_MEMORY, os.W_OK)
    return str(SHARED_MEMORY / f"{_PREFIX}{run_uid}") if usable else ""


def remove_dead() -> None:
    """Remove the folders of all runs whose learner lives no more, however they ended."""
    for folder in SHARED_MEMORY.glob(f"{_PREFIX}*"):
        shared_folder.remove(folder)
