"""Owns what answers say about those who gave them: agreement, gold, habits. Pure.

Agreement about a pair is the share of pairs of its annotators who named the same candidate, or both a tie; over all
pairs it is the share of all such pairs of annotators. Skipped and flagged ones are no choices.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from services.preference.agreement import Judgement, krippendorff_alpha
from services.preference.domain import Choice

_CHOICES = (Choice.FIRST, Choice.SECOND, Choice.TIE)


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, as far as it counts here. `right`: of a gold task, whether it was right; None: not gold.

    `value`: 1 for the candidate of the lesser id, 0 for the other, 0.5 for a tie, so that it means the same whichever
    was shown first; None for what is no choice.
    """

    task_id: str
    annotator: str
    choice: Choice
    preferred: str
    recorded_at: float
    seconds: float | None = None
    right: bool | None = None
    value: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotatorSummary:
    """What one annotator did. Shares are 0 to 1, None where there is nothing to take a share of."""

    annotator: str
    comparisons: int
    ties: int
    skipped: int
    first_share: float | None
    agreement: float | None
    gold: int
    gold_right: int
    median_seconds: float | None
    last: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Insight:
    """All annotators, the busiest first; agreement; labels in each hour (Unix hours), gold ones among them.

    `alpha`: Krippendorff's, ties between wins and losses; None where nothing can be said.
    """

    annotators: tuple[AnnotatorSummary, ...] = ()
    agreement: float | None = None
    alpha: float | None = None
    overlapping: int = 0
    by_hour: Mapping[int, int] = field(default_factory=dict)


def summarise(answers: Iterable[Answer]) -> Insight:
    """The same answers, the same insight, in whatever order they come."""
    by_annotator: dict[str, list[Answer]] = defaultdict(list)
    by_task: dict[str, list[Answer]] = defaultdict(list)
    hours: dict[int, int] = defaultdict(int)
    for answer in answers:
        by_annotator[answer.annotator].append(answer)
        hours[int(answer.recorded_at // 3600)] += 1
        if answer.right is None and answer.choice in _CHOICES:
            by_task[answer.task_id].append(answer)
    same, met = _agreements(by_task.values())
    total = sum(met.values())
    summaries = [_summary(name, given, same, met) for name, given in by_annotator.items()]
    return Insight(
        annotators=tuple(sorted(summaries, key=lambda one: (-one.comparisons, one.annotator))),
        agreement=sum(same.values()) / total if total else None,
        alpha=_alpha(by_task),
        overlapping=sum(len(given) > 1 for given in by_task.values()),
        by_hour=dict(hours),
    )


def _alpha(tasks: Mapping[str, Sequence[Answer]]) -> float | None:
    told = [
        Judgement(task, answer.annotator, answer.value)
        for task, given in tasks.items()
        if len(given) > 1
        for answer in given
        if answer.value is not None
    ]
    alpha = krippendorff_alpha(told, "ordinal").alpha
    return None if math.isnan(alpha) else alpha


def _agreements(tasks: Iterable[Sequence[Answer]]) -> tuple[dict[str, int], dict[str, int]]:
    """For each annotator: others who said the same about a pair, and others who said anything about it."""
    same: dict[str, int] = defaultdict(int)
    met: dict[str, int] = defaultdict(int)
    for given in tasks:
        for one, other in combinations(given, 2):
            for name in (one.annotator, other.annotator):
                met[name] += 1
                same[name] += one.preferred == other.preferred
    return same, met


def _summary(
    name: str, given: Sequence[Answer], same: Mapping[str, int], met: Mapping[str, int]
) -> AnnotatorSummary:
    plain = [answer for answer in given if answer.right is None]
    sides = [answer.choice is Choice.FIRST for answer in given if answer.choice in _CHOICES[:2]]
    seconds = [answer.seconds for answer in given if answer.seconds is not None]
    return AnnotatorSummary(
        annotator=name,
        comparisons=len(plain),
        ties=sum(answer.choice is Choice.TIE for answer in plain),
        skipped=sum(answer.choice not in _CHOICES for answer in plain),
        first_share=sum(sides) / len(sides) if sides else None,
        agreement=same[name] / met[name] if met.get(name) else None,
        gold=len(given) - len(plain),
        gold_right=sum(answer.right is True for answer in given),
        median_seconds=statistics.median(seconds) if seconds else None,
        last=max(answer.recorded_at for answer in given),
    )
