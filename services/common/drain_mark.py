"""The mark by which a running replica is told to take no new work: a file that is not empty. Knows no queue.

On Kubernetes the kubelet keeps the file: a Downward-API volume with the pod's annotation `trimtab.dev/drain`, which is
empty where there is none. It follows the annotation within about a minute, so whoever marks looks at what the replica
says (`trimtab_draining`, `trimtab_stage_draining`) and not at the clock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

MARK_SECONDS = 1.0
"""Between two looks at the file."""
_READ_BYTES = 4096


class DrainMark:
    """`path`: the file; None: a replica that nobody marks."""

    def __init__(self, path: Path | None, *, poll_seconds: float = MARK_SECONDS) -> None:
        self._path = path
        self.poll_seconds = poll_seconds

    def present(self) -> bool:
        """Whether the replica is marked now. A file that is not there, or cannot be read, is no mark."""
        if self._path is None:
            return False
        try:
            with self._path.open("rb") as file:
                return bool(file.read(_READ_BYTES).strip())
        except OSError:
            return False

    async def follow(self, changed: Callable[[bool], Awaitable[None]]) -> None:
        """Call `changed` at each change, the first time only if it is marked. Returns at once without a file."""
        if self._path is None:
            return
        marked = False
        while True:
            # A few bytes of a file in memory: not worth a thread.
            if (now := self.present()) != marked:
                marked = now
                await changed(marked)
            await asyncio.sleep(self.poll_seconds)
