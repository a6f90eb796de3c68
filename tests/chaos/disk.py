"""A disk that is full for one process, and one that lost everything. No mount, no privilege: limits and deletions."""

from __future__ import annotations

import resource
import shutil
from pathlib import Path

ROOM = 16 * 2**10
"""What a process may still say in its log, bytes."""
_TORN = 100
"""Bytes of a write that still go through: fewer than a step's commands have."""


def fill(pid: int, size: int) -> None:
    """From now on no file of this process may grow beyond so many bytes: EFBIG, or SIGXFSZ for who heeds it.

    Raises ProcessLookupError where it is gone.
    """
    resource.prlimit(pid, resource.RLIMIT_CORE, (0, resource.prlimit(pid, resource.RLIMIT_CORE)[1]))
    _, most = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, most))


def free(pid: int) -> None:
    """It may write again. Raises ProcessLookupError where it is gone."""
    _, most = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, most))


def room_of(log: Path) -> int:
    """A limit under which a process still logs some lines and writes nothing larger."""
    return size_of(log) + ROOM


def torn_write(queue: Path) -> int:
    """A limit that ends a queue server in the middle of its next command, on its append-only file."""
    return max((size_of(file) for file in (queue / "appendonlydir").glob("*.incr.aof")), default=0) + _TORN


def lose(queue: Path) -> None:
    """Delete what a queue server holds on disk, running or not: the next one starts empty."""
    shutil.rmtree(queue / "appendonlydir", ignore_errors=True)


def size_of(file: Path) -> int:
    """Bytes; 0 where it is not there."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0
