"""Whether files are others than they were. Knows nothing of their content.

Decision: files are looked at when they are needed (a few microseconds), not watched by a thread: a revoked
key is refused by the very next call, on network file systems and mounted secrets as well.
"""

from __future__ import annotations

from pathlib import Path

_Stamp = tuple[int, int, int, int]


class Watched:
    """Remembers how files looked when changed() was last asked."""

    def __init__(self, *paths: Path) -> None:
        self._paths = paths
        self._seen = self._look()

    def changed(self) -> bool:
        """Whether any of them was written, replaced, created or removed since."""
        now = self._look()
        if now == self._seen:
            return False
        self._seen = now
        return True

    def _look(self) -> tuple[_Stamp | None, ...]:
        return tuple(_stamp(path) for path in self._paths)


def _stamp(path: Path) -> _Stamp | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino)
