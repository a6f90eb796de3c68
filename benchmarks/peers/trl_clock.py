"""How long each step of a TRL trainer takes, and its mean reward."""

from __future__ import annotations

import time
from typing import Any

from transformers import TrainerCallback


class Clock(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Seconds of each step: generation, scores and update, as TRL counts a step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.rewards: list[float] = []
        self._began = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """The first step begins."""
        self._began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """A step has ended, and the next begins."""
        now = time.perf_counter()
        self.seconds.append(now - self._began)
        self._began = now

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        """Its metrics."""
        if "reward" in logs:
            self.rewards.append(float(logs["reward"]))
