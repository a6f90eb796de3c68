"""Tensors that other processes of this machine map instead of fetching them: a file each, named by its digest.

The publisher's snapshot is such a mapping itself, so the bytes lie in memory once for all processes. What cannot be put
there is copied and fetched as ever: the folder saves time, and nothing depends on it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Set
from pathlib import Path

import structlog
import torch
from prometheus_client import Counter

from services.common import shared_folder
from services.common.errors import StorageFull
from services.models.manifest import DTYPES, TensorEntry, tensor_bytes, verified_in_place

ROOM = 4
"""Times a version's bytes that must be free before the first: two are kept, one is written, readers map a last one."""
FAILURES = Counter(
    "trimtab_weights_folder_failures", "Versions that the shared folder could not take, or not whole."
)
_log = structlog.get_logger(__name__)


class TensorFolder:
    """The publisher's side: begin a version, put what it names, keep what is still named. Closed from any thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._folder: int | None = None
        self._usable = self._told = self._closed = False
        self._busy = threading.RLock()
        # By digest; they are the files that lie there.
        self._mapped: dict[bytes, torch.Tensor] = {}

    def begin(self, total_bytes: int) -> None:
        """A version of that many bytes comes. Where there is no folder or no room, it is copied."""
        with self._busy:
            if self._closed:
                return
            try:
                self._take(total_bytes)
                self._usable = True
            except (OSError, StorageFull) as error:
                self._give_up(error)

    def put(self, entry: TensorEntry, tensor: torch.Tensor) -> torch.Tensor | None:
        """The mapping of a file with the tensor's bytes, which `entry` names; None where there cannot be one."""
        with self._busy:
            if not self._usable or self._folder is None or not entry.size_bytes:
                return None
            flat = self._mapped.get(entry.digest)
            if flat is None:
                try:
                    flat = _written(self._folder, entry, tensor)
                except (OSError, RuntimeError) as error:
                    self._give_up(error)
                    return None
                self._mapped[entry.digest] = flat
        return flat.view(DTYPES[entry.dtype]).reshape(entry.shape)

    def keep(self, digests: Set[bytes]) -> None:
        """Unlink the files of all others."""
        with self._busy:
            for digest in self._mapped.keys() - digests:
                del self._mapped[digest]
                self._unlink(digest)

    def close(self) -> None:
        """Leave nothing behind. Who has a file mapped keeps it."""
        with self._busy:
            self._closed = True
            self.keep(frozenset())
            if self._folder is not None:
                self._let_go()
                shared_folder.remove(self._path)

    def _take(self, total_bytes: int) -> None:
        if self._folder is not None and not shared_folder.is_at(self._folder, self._path):
            self._let_go()
        if self._folder is None:
            self._mapped.clear()
            self._folder = shared_folder.take(self._path)
        if not self._mapped:
            free = os.statvfs(self._folder)
            if free.f_bavail * free.f_frsize < ROOM * total_bytes:
                raise StorageFull(f"it has no room for {ROOM} times {total_bytes / 2**20:.0f} MiB")

    def _let_go(self) -> None:
        if self._folder is not None:
            os.close(self._folder)
        self._folder = None
        self._usable = False

    def _unlink(self, digest: bytes) -> None:
        if self._folder is not None:
            try:
                shared_folder.unlink(self._folder, digest.hex())
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """For this version: the next one tries again, for room may have come."""
        self._usable = False
        FAILURES.inc()
        if not self._told:
            why = error.strerror if isinstance(error, OSError) else str(error)
            _log.warning("weights are copied instead of shared", folder=str(self._path), why=why)
        self._told = True


def brought(folder: Path, entry: TensorEntry) -> torch.Tensor | None:
    """A reader's: the mapping of the tensor's file, verified; None where there is no file.

    Raises Corrupted or OSError where the file is not what its name says.
    """
    file = shared_folder.opened(folder / entry.digest.hex(), entry.size_bytes) if entry.size_bytes else None
    return None if file is None else verified_in_place(entry, _map(file, entry.size_bytes).numpy())


def _written(folder: int, entry: TensorEntry, tensor: torch.Tensor) -> torch.Tensor:
    file = shared_folder.write(folder, entry.digest.hex(), tensor_bytes(tensor))
    try:
        return _map(file, entry.size_bytes)
    except RuntimeError:  # no memory to map it in: nobody would unlink it later
        shared_folder.unlink(folder, entry.digest.hex())
        raise


def _map(file: int, size: int) -> torch.Tensor:
    """Its bytes, [size] uint8, and the descriptor closed. What is written to the tensor reaches no one else.

    By torch, since Python's mmap keeps a descriptor open for each mapping: a model has hundreds of tensors.
    """
    try:
        # By descriptor: the path may name nothing any more.
        return torch.from_file(f"/dev/fd/{file}", shared=False, size=size, dtype=torch.uint8)
    finally:
        os.close(file)
