"""Steps that a run has trained, followed in its metrics.jsonl while learners come and go."""

from __future__ import annotations

import json
from pathlib import Path


class Steps:
    """Counts rows as they are added. A row that a resumed learner drops and trains again counts again."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._inode, self._offset = 0, 0
        self.count = 0
        self.newest: dict[str, float] | None = None

    def look(self) -> int:
        """Read what is new; how many there were so far."""
        try:
            with self._file.open("rb") as stream:
                status = self._file.stat()
                if status.st_ino != self._inode:  # a resumed learner has kept the rows before its checkpoint
                    first = self._inode == 0
                    self._inode, self._offset = status.st_ino, 0 if first else status.st_size
                stream.seek(self._offset)
                whole, _, _ = stream.read().rpartition(b"\n")
        except FileNotFoundError:
            return self.count
        if whole:
            lines = whole.splitlines()
            self._offset += len(whole) + 1
            self.count += len(lines)
            self.newest = json.loads(lines[-1])
        return self.count
