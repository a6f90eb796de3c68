"""What a run looks like while it goes: from the learner's status to words. No I/O but `LiveView`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from trimtab.learner.v1 import learner_pb2 as learner

_PHASES = {
    learner.RUN_PHASE_LOADING: "loading",
    learner.RUN_PHASE_TRAINING: "training",
    learner.RUN_PHASE_PAUSED: "paused",
    learner.RUN_PHASE_FINISHED: "finished",
    learner.RUN_PHASE_FAILED: "failed",
}
_REWARD = ("reward", "objective/scores", "objective/rlhf_reward")


@dataclass(slots=True)
class Pace:
    """Estimates the time left from the steps seen so far."""

    first_step: int | None = None
    first_at: float = 0.0

    def seconds_left(self, step: int, total: int, now: float) -> float | None:
        """None until a step has been seen to end."""
        if self.first_step is None or step < self.first_step:
            self.first_step, self.first_at = step, now
        done = step - self.first_step
        return None if done == 0 else (now - self.first_at) / done * (total - step)


def describe(status: learner.GetRunStatusResponse, seconds_left: float | None) -> dict[str, str]:
    """Stage, step, reward, KL, rollouts in flight, tokens/s, time left: label to words, in this order."""
    metrics = status.metrics
    words = {
        "stage": _PHASES.get(status.phase, "starting"),
        "step": f"{status.step}/{status.total_steps}" if status.total_steps else "",
        "reward": _number(metrics, _REWARD),
        "KL": _number(metrics, ("objective/kl",)),
        "in flight": str(status.rollouts.in_flight) if status.total_steps else "",
        "tokens/s": _tokens(metrics),
        "left": "" if seconds_left is None else duration(seconds_left),
    }
    return {label: word for label, word in words.items() if word}


def counts(status: learner.GetRunStatusResponse) -> str:
    """The groups' final account on one line."""
    of = status.rollouts
    return (
        f"{of.admitted} groups admitted = {of.trained} trained + {of.stale} stale "
        f"+ {of.failed} failed + {of.in_flight} in flight"
    )


def duration(seconds: float) -> str:
    """75 is 1:15; 3700 is 1:01:40."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _number(metrics: Mapping[str, float], names: tuple[str, ...]) -> str:
    name = next((name for name in names if name in metrics), None)
    return "" if name is None else f"{metrics[name]:.3f}"


def _tokens(metrics: Mapping[str, float]) -> str:
    name = next((name for name in sorted(metrics) if name.endswith("tokens_per_second")), None)
    return "" if name is None else f"{metrics[name]:.0f}"


@dataclass(slots=True)
class LiveView:
    """A live line on a terminal; elsewhere a line for each change of step or stage."""

    console: Console
    clock: Callable[[], float] = time.monotonic
    _pace: Pace = field(default_factory=Pace)
    _shown: tuple[int, int] | None = None
    _live: Live | None = None

    def __enter__(self) -> LiveView:
        if self.console.is_terminal:
            self._live = Live(console=self.console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def say(self, line: str) -> None:
        """A line that stays."""
        self.console.print(Text(line), soft_wrap=True)

    def waiting(self, line: str) -> None:
        """What is being waited for before there is a status."""
        if self._live is not None:
            self._live.update(Text(line, style="dim"))

    def show(self, status: learner.GetRunStatusResponse) -> None:
        """The latest status."""
        left = self._pace.seconds_left(int(status.step), int(status.total_steps), self.clock())
        words = describe(status, left)
        if self._live is not None:
            self._live.update(_grid(words))
        elif self._shown != (int(status.step), int(status.phase)):
            self._shown = (int(status.step), int(status.phase))
            self.say("  ".join(f"{label} {word}" for label, word in words.items()))


def _grid(words: Mapping[str, str]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_row(*(Text.assemble((f"{label} ", "dim"), (word, "bold")) for label, word in words.items()))
    return grid
