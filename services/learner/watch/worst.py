"""The worst samples of the last steps: what scores far better than the annotator finds it. Pure.

gap = z(score) - z(annotator), each by its batch's mean and deviation; without an annotator gap = -z(score)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from services.learner.watch.figures import Watched, mean_and_deviation

Row = dict[str, Any]


class Worst:
    """Of the last `steps` steps the `count` with the largest gap. Bounded: as many of each step are held."""

    def __init__(self, count: int, steps: int, before: Sequence[Mapping[str, Any]] = ()) -> None:
        """before: rows that a resumed run goes on from."""
        self._count = count
        self._steps: deque[list[Row]] = deque(maxlen=steps)
        for step in sorted({int(row["step"]) for row in before}):
            self._steps.append([dict(row) for row in before if int(row["step"]) == step])

    def update(self, step: int, batch: Sequence[Watched]) -> list[Row]:
        """Take in a step's batch; the worst now, the worst first."""
        ranked = sorted(zip(gaps(batch), range(len(batch)), strict=True), reverse=True)[: self._count]
        self._steps.append([_row(step, gap, batch[at]) for gap, at in ranked])
        every = [row for rows in self._steps for row in rows]
        return sorted(every, key=lambda row: -row["gap"])[: self._count]


def gaps(batch: Sequence[Watched]) -> list[float]:
    """Of each completion, in deviations."""
    scores = _standardised([one.score for one in batch])
    opinions = [one.annotator for one in batch if one.annotator is not None]
    if len(opinions) < len(batch):
        return [-score for score in scores]
    return [score - opinion for score, opinion in zip(scores, _standardised(opinions), strict=True)]


def _standardised(values: Sequence[float]) -> list[float]:
    mean, deviation = mean_and_deviation(values)
    return [(value - mean) / deviation if deviation > 1e-12 else 0.0 for value in values]


def _row(step: int, gap: float, one: Watched) -> Row:
    return {
        "step": step,
        "gap": gap,
        "prompt": one.prompt,
        "completion": one.text,
        "score": one.score,
        "annotator": one.annotator,
        "parts": dict(one.parts),
        "length": one.length,
        "repetition": one.repetition,
        "kl": one.kl,
    }
