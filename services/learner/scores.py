"""Running normalisation of scores. It belongs to the learner: replicas of a reward service would diverge."""

from __future__ import annotations

import torch


class ScoreNormaliser:
    """Mean and deviation over all scores so far (Welford's sums); off: scores pass unchanged."""

    def __init__(self, *, enabled: bool, count: float = 0.0, mean: float = 0.0, squares: float = 0.0) -> None:
        self.enabled = enabled
        self._count, self._mean, self._squares = count, mean, squares

    @classmethod
    def of(cls, state: dict[str, float], *, enabled: bool) -> ScoreNormaliser:
        """From a checkpoint's state."""
        return cls(enabled=enabled, count=state["count"], mean=state["mean"], squares=state["squares"])

    def state(self) -> dict[str, float]:
        """For the checkpoint."""
        return {"count": self._count, "mean": self._mean, "squares": self._squares}

    def update_and_apply(self, scores: torch.Tensor) -> torch.Tensor:
        """Take in a batch, [rows] float32, and return it normalised by all seen so far."""
        if not self.enabled:
            return scores
        for value in scores.double().tolist():
            self._count += 1
            delta = value - self._mean
            self._mean += delta / self._count
            self._squares += delta * (value - self._mean)
        deviation = (self._squares / max(1.0, self._count - 1)) ** 0.5
        return (scores - self._mean) / max(deviation, 1e-6)
