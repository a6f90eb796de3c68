"""How much memory the processes of a run take together. Knows no service.

PSS (a page shared by k processes counts 1/k for each), so that libraries and mapped weights count once. Files in memory
that no process has mapped count too.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil

SAMPLE_SECONDS = 1.0
# PSS costs the kernel a walk over every page, 65 ms for a run of 7 GB, during which its processes wait for memory: a
# step took 8 % longer. So it is looked at where anonymous memory has changed by this much since, or after a minute.
CHANGED = 64 << 20
WALK_SECONDS = 60.0


def pss_bytes(pid: int) -> tuple[int, int]:
    """Proportional set size of one process and the part of it that is mapped files in memory, bytes; 0 if it is gone.

    Elsewhere than Linux: resident size.
    """
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_bytes().splitlines()
        sizes = {line.split()[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith(b"Pss")}
        return sizes.get(b"Pss:", 0), sizes.get(b"Pss_Shmem:", 0)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        with suppress(psutil.Error):
            return int(psutil.Process(pid).memory_info().rss), 0
    return 0, 0


def anonymous_bytes(pid: int) -> int:
    """Anonymous memory of a process, from a counter, bytes; 0 if it is gone. Elsewhere than Linux: resident size."""
    try:
        for line in Path(f"/proc/{pid}/status").read_bytes().splitlines():
            if line.startswith(b"RssAnon:"):
                return int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        with suppress(psutil.Error):
            return int(psutil.Process(pid).memory_info().rss)
    return 0


def folder_bytes(folder: Path) -> int:
    """What the files of a folder in memory take, bytes; 0 where there is none."""
    total = 0
    with suppress(OSError), os.scandir(folder) as files:
        for file in files:
            with suppress(FileNotFoundError):
                total += file.stat().st_blocks * 512
    return total


def tree_bytes(pid: int, shared: Path | None = None) -> int:
    """PSS of a process and all its descendants, bytes, and what they have not mapped of the folder in memory."""
    sizes = [pss_bytes(one) for one in tree(pid)]
    mapped = sum(size for _, size in sizes)
    return sum(size for size, _ in sizes) + max(0, folder_bytes(shared) - mapped if shared else 0)


def tree(pid: int) -> list[int]:
    """A process and all its descendants; none if it is gone."""
    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.Error:
        return []


class MemoryMeter:
    """Samples the memory of this process and its descendants each second, off the event loop.

    `shared`: a folder in memory that is theirs as well.
    """

    def __init__(self, shared: Path | None = None) -> None:
        self._shared = shared
        self.bytes_now = 0
        self.bytes_peak = 0
        # Of the last walk: when, and anonymous memory then.
        self._walked, self._anonymous = -WALK_SECONDS, 0
        # Who asks meanwhile waits for what a walk under way finds, and does not take what was before it for new.
        self._looking = threading.Lock()

    def sample(self) -> None:
        """Look once: at counters, and at every page where they tell of a change."""
        with self._looking:
            anonymous = sum(map(anonymous_bytes, tree(os.getpid())))
            now = time.monotonic()
            if abs(anonymous - self._anonymous) < CHANGED and now - self._walked < WALK_SECONDS:
                return
            self._walked, self._anonymous = now, anonymous
            self.bytes_now = tree_bytes(os.getpid(), self._shared)
            self.bytes_peak = max(self.bytes_peak, self.bytes_now)

    async def run(self) -> None:
        """Sample until cancelled."""
        while True:
            await asyncio.to_thread(self.sample)
            await asyncio.sleep(SAMPLE_SECONDS)
