"""How fast logs grow, and whether what sets them aside holds: sizes look by look. Pure but for `sizes_of`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.local.layout import RunLayout


@dataclass(slots=True)
class _Log:
    size: int
    written: int = 0
    largest: int = 0
    set_aside: int = 0


@dataclass(slots=True)
class LogGrowth:
    """Of logs by name. One that is smaller than at the look before was set aside in between."""

    logs: dict[str, _Log] = field(default_factory=dict)

    def look(self, sizes: Mapping[str, int]) -> None:
        """Sizes now, bytes."""
        for name, size in sizes.items():
            log = self.logs.setdefault(name, _Log(size, largest=size))
            shorter = size < log.size
            log.written += size if shorter else size - log.size
            log.set_aside += shorter
            log.size, log.largest = size, max(log.largest, size)

    def figures(self, seconds: float) -> dict[str, float]:
        """Of each log bytes an hour; of all the largest size seen (KiB) and how often one was set aside."""
        found = {
            f"log_{name}_bytes_per_hour": log.written * 3600 / seconds for name, log in self.logs.items()
        }
        largest = max((log.largest for log in self.logs.values()), default=0)
        return found | {
            "log_largest_kib": largest / 1024,
            "log_set_aside": float(sum(log.set_aside for log in self.logs.values())),
        }


def sizes_of(layout: RunLayout) -> dict[str, int]:
    """Of a run's logs now."""
    found = {}
    for file in layout.log_files():
        try:
            found[layout.log_name(file)] = file.stat().st_size
        except FileNotFoundError:
            continue
    return found
