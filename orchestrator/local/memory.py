"""How much memory the processes of a run take together. Knows no service.

PSS (a page shared by k processes counts 1/k for each), so that libraries and mapped weights count once.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from pathlib import Path

import psutil

# One look costs the kernel a walk over every page: 65 ms for a run of 7 GB.
SAMPLE_SECONDS = 2.0


def pss_bytes(pid: int) -> int:
    """Proportional set size of one process, bytes; 0 if it is gone. Elsewhere than Linux: resident size."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_bytes().splitlines():
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        with suppress(psutil.Error):
            return int(psutil.Process(pid).memory_info().rss)
    return 0


def tree_bytes(pid: int) -> int:
    """PSS of a process and all its descendants, bytes."""
    try:
        descendants = psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return 0
    return sum(pss_bytes(one) for one in (pid, *(child.pid for child in descendants)))


class MemoryMeter:
    """Samples the memory of this process and its descendants every two seconds, off the event loop."""

    def __init__(self) -> None:
        self.bytes_now = 0
        self.bytes_peak = 0

    def sample(self) -> None:
        """Look once."""
        self.bytes_now = tree_bytes(os.getpid())
        self.bytes_peak = max(self.bytes_peak, self.bytes_now)

    async def run(self) -> None:
        """Sample until cancelled."""
        while True:
            await asyncio.to_thread(self.sample)
            await asyncio.sleep(SAMPLE_SECONDS)
