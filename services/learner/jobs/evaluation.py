"""How well a reward model ranks: accuracy beside the length-only baseline, calibration, and where it fails. Pure.

accuracy                share of pairs ranked as they were judged; a tie is half
accuracy_longer_wins    the same for a model that knows nothing but length, in characters
length-matched          pairs whose shorter answer has at least 80 % of the longer one's characters
calibration_error       mean over ten bins of |share right - confidence|, by pairs; confidence is the sigmoid of
                        the difference of logits, 0.5 to 1 (expected calibration error, arXiv 1706.04599)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from services.learner.jobs.comparisons import Compared

Floats = npt.NDArray[np.float64]
LENGTH_MATCHED = 0.8
_BINS = 10
_QUARTILES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One pair, the better answer first. logit: its score less the worse one's, on the scale that the loss saw."""

    logit: float
    lengths: tuple[int, int]
    margin: float | None = None
    agreement: float = 1.0
    votes: int = 1

    @property
    def matched(self) -> bool:
        """Whether both answers are about as long."""
        return min(self.lengths) >= LENGTH_MATCHED * max(self.lengths)


def judged(prompt: Compared, logits: Sequence[float]) -> list[Judged]:
    """The pairs of a prompt; logits: one for each answer."""
    agreement = prompt.agreement()
    rows = []
    for win in prompt.pairs():
        share, votes = agreement[win.better, win.worse]
        rows.append(
            Judged(
                logit=logits[win.better] - logits[win.worse],
                lengths=(len(prompt.answers[win.better]), len(prompt.answers[win.worse])),
                margin=win.margin,
                agreement=share,
                votes=votes,
            )
        )
    return rows


def accuracy(differences: Sequence[float]) -> float:
    """Share above 0, ties half. NaN of none."""
    if not len(differences):
        return math.nan
    return float(np.mean([0.5 if one == 0 else float(one > 0) for one in differences]))


def wilson(successes: float, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927), 95 % by default."""
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def longer_wins(pairs: Sequence[Judged]) -> float:
    """Accuracy of length alone."""
    return accuracy([float(pair.lengths[0] - pair.lengths[1]) for pair in pairs])


def calibration_error(logits: Sequence[float]) -> float:
    """Expected calibration error over ten bins of confidence; 0 is perfect. NaN of none."""
    if not len(logits):
        return math.nan
    values = np.asarray(logits, dtype=np.float64)
    confidence = 1 / (1 + np.exp(-np.abs(values)))
    right = np.where(values == 0, 0.5, values > 0)
    bins = np.minimum((2 * _BINS * (confidence - 0.5)).astype(int), _BINS - 1)
    gaps = [abs(float((right - confidence)[bins == number].sum())) for number in range(_BINS)]
    return sum(gaps) / len(values)


def by_margin(pairs: Sequence[Judged]) -> list[dict[str, float]]:
    """Accuracy by how sure the model is: quarters of the pairs by |logit|, the least sure first.

    Where the data say how much better an answer is, by quarters of that instead, of the pairs that they say it of.
    """
    told = [pair for pair in pairs if pair.margin is not None]
    if any(pair.margin for pair in told):
        pairs, sure = told, np.array([pair.margin for pair in told])
    else:
        sure = np.abs([pair.logit for pair in pairs])
    order = np.argsort(sure, kind="stable")
    rows = []
    for part in np.array_split(order, min(_QUARTILES, len(order))):
        chosen = [pairs[index] for index in part.tolist()]
        rows.append(
            {
                "least": float(sure[part].min()),
                "most": float(sure[part].max()),
                "pairs": float(len(chosen)),
                "accuracy": accuracy([pair.logit for pair in chosen]),
            }
        )
    return rows


def by_agreement(pairs: Sequence[Judged]) -> dict[str, dict[str, float]]:
    """Accuracy by what annotators said of a pair: compared once, all agreed, most did, as many said the opposite.

    Absent where none is.
    """
    kinds: dict[str, list[float]] = {"compared once": [], "all agreed": [], "most agreed": [], "split": []}
    for pair in pairs:
        if pair.votes == 1:
            kind = "compared once"
        elif pair.agreement == 1:
            kind = "all agreed"
        else:
            kind = "most agreed" if pair.agreement > 0.5 else "split"
        kinds[kind].append(pair.logit)
    return {
        kind: {"pairs": float(len(found)), "accuracy": accuracy(found)}
        for kind, found in kinds.items()
        if found
    }


def length_correlation(lengths: Sequence[int], scores: Sequence[float]) -> float:
    """Pearson's correlation of an answer's length with its score; 0 where either does not vary."""
    one, other = np.asarray(lengths, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if len(one) < 2 or one.std() == 0 or other.std() == 0:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What held-out pairs say, with 95 % intervals (Wilson)."""

    accuracy: float
    accuracy_low: float
    accuracy_high: float
    accuracy_longer_wins: float
    accuracy_length_matched: float | None
    length_matched_pairs: int
    calibration_error: float
    by_margin: list[dict[str, float]]
    by_agreement: dict[str, dict[str, float]]
    length_correlation: float


def evaluate(pairs: Sequence[Judged], lengths: Sequence[int], scores: Sequence[float]) -> Evaluation:
    """All of it; lengths and scores are of the held-out answers, each once. At least one pair."""
    logits = [pair.logit for pair in pairs]
    right = accuracy(logits)
    low, high = wilson(right * len(logits), len(logits))
    matched = [pair.logit for pair in pairs if pair.matched]
    return Evaluation(
        accuracy=right,
        accuracy_low=low,
        accuracy_high=high,
        accuracy_longer_wins=longer_wins(pairs),
        accuracy_length_matched=accuracy(matched) if matched else None,
        length_matched_pairs=len(matched),
        calibration_error=calibration_error(logits),
        by_margin=by_margin(pairs),
        by_agreement=by_agreement(pairs),
        length_correlation=length_correlation(lengths, scores),
    )
