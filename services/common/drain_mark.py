"""The mark by which a running replica is told to take no new work: a file that is not empty. Knows no queue.

On Kubernetes the kubelet keeps the file: a Downward-API volume with the pod's annotation `trimtab.dev/drain`, which is
empty where there is none. It follows the annotation within about a minute, so whoever marks looks at what the replica
says (`trimtab_draining`, `trimtab_stage_draining`) and not at the clock.

A service may also rest by itself (a policy whose weights are too old): a Flag beside the file.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

MARK_SECONDS = 1.0
"""Between two looks at the file."""
_READ_BYTES = 4096


class Mark:
    """Something that, while it is there, keeps a replica from taking new work."""

    poll_seconds = MARK_SECONDS

    def present(self) -> bool:
        """Whether it is there now."""
        raise NotImplementedError

    async def follow(self, changed: Callable[[bool], Awaitable[None]]) -> None:
        """Call `changed` at each change, the first time only if it is there."""
        marked = False
        while True:
            if (now := self.present()) != marked:
                marked = now
                await changed(marked)
            await asyncio.sleep(self.poll_seconds)


class DrainMark(Mark):
    """`path`: the file; None: a replica that nobody marks."""

    def __init__(self, path: Path | None, *, poll_seconds: float = MARK_SECONDS) -> None:
        self._path = path
        self.poll_seconds = poll_seconds

    def present(self) -> bool:
        """Whether the replica is marked now. A file that is not there, or cannot be read, is no mark."""
        if self._path is None:
            return False
        try:
            # A few bytes of a file in memory: not worth a thread.
            with self._path.open("rb") as file:
                return bool(file.read(_READ_BYTES).strip())
        except OSError:
            return False

    async def follow(self, changed: Callable[[bool], Awaitable[None]]) -> None:
        """See Mark. Returns at once without a file."""
        if self._path is not None:
            await super().follow(changed)


class Flag(Mark):
    """Raised and lowered by the service itself."""

    def __init__(self, *, poll_seconds: float = MARK_SECONDS) -> None:
        self.raised = False
        self.poll_seconds = poll_seconds

    def present(self) -> bool:
        """See Mark."""
        return self.raised


class AnyMark(Mark):
    """There while any of several is."""

    def __init__(self, *marks: Mark) -> None:
        self._marks = marks
        self.poll_seconds = min(mark.poll_seconds for mark in marks)

    def present(self) -> bool:
        """See Mark."""
        return any(mark.present() for mark in self._marks)
