"""What the demo says while it goes: one line that moves, one that stays for each phase that ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from orchestrator.local.progress import LiveView, duration


@dataclass(slots=True)
class Phases:
    """Seconds by phase, in the order in which they ran."""

    view: LiveView
    total: int
    clock: Callable[[], float] = time.monotonic
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[Callable[[str], None]]:
        """Time a phase; yields what says how far it is."""
        number, started = len(self.seconds) + 1, self.clock()
        head = f"[{number}/{self.total}] {name}"

        def moving(detail: str) -> None:
            self.view.waiting(f"{head}  {detail}  {duration(self.clock() - started)}")

        moving("")
        yield moving
        self.seconds[name] = self.clock() - started
        self.view.say(f"{head}  {duration(self.seconds[name])}")


def share_done(done: int, total: int, started: float, now: float) -> str:
    """240/440 prompts, 1:02 left."""
    left = "" if done == 0 else f", {duration((now - started) / done * (total - done))} left"
    return f"{done}/{total}{left}"
