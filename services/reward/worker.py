"""The reward stage: adds a score to every completion of the groups it is given.

Knows nothing of queues, leases and attempts: services/common/worker.py does that.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from typing import cast

from services.common.arrays import to_numpy
from services.common.errors import InvalidInput, ServiceError, TrimtabError
from services.common.timing import record_timings
from services.common.worker import Outcome, outcome_of_error
from services.reward.observing import SILENT, Observer
from services.reward.rewards.base import Caller, ScoreOutcome, ScoreRow
from services.reward.scoring import RewardModels, Scored
from services.reward.shadow import ShadowRunner
from services.reward.wire import conversation, encode_score
from trimtab.rollout.v1 import rollout_pb2 as rollout

# Rows between two looks at `stopping`: a drain has 10 seconds.
_SLICE_ROWS = 64
_CALLER = Caller(client="stage")


class RewardProcessor:
    """A StageProcessor that scores by one name of the table.

    A group of which a completion cannot be scored fails as a whole: an error must never look like a reward. Where
    what scores is away or full, the group is to come again.
    """

    def __init__(
        self,
        models: RewardModels,
        shadows: ShadowRunner,
        *,
        model: str,
        stage: str,
        replica: str,
        observer: Observer = SILENT,
    ) -> None:
        self._models = models
        self._shadows = shadows
        self._model = model
        self._stage = stage
        self._replica = replica
        self._observer = observer

    def process(self, groups: list[rollout.RolloutGroup], stopping: threading.Event) -> list[Outcome]:
        """Append a StageScore to every completion; groups not reached are unfinished."""
        outcomes: list[Outcome] = []
        for part in _slices(groups):
            if stopping.is_set():
                break
            outcomes += self._score(part)
        return outcomes + [Outcome("unfinished") for _ in groups[len(outcomes) :]]

    def _score(self, groups: Sequence[rollout.RolloutGroup]) -> list[Outcome]:
        rows = [row for group in groups for row in _rows(group)]
        started = time.perf_counter()
        try:
            scored = self._models.score(self._model, rows, _CALLER)
        except Exception as error:
            self._observer.failed(self._model, len(rows), error)
            if not isinstance(error, TrimtabError):
                raise
            return [outcome_of_error(error, origin=self._stage) for _ in groups]
        seconds = time.perf_counter() - started
        self._observer.answered(scored, rows, _CALLER, seconds)
        self._shadows.offer(scored, rows)
        answers = iter(scored.outcomes)
        outcomes = [
            self._write(group, [next(answers) for _ in group.completions], scored) for group in groups
        ]
        work = [
            (group, _tokens(group))
            for group, outcome in zip(groups, outcomes, strict=True)
            if outcome.kind != "away"
        ]
        record_timings(work, stage=self._stage, replica=self._replica, seconds=seconds)
        return outcomes

    def _write(self, group: rollout.RolloutGroup, answers: Sequence[ScoreOutcome], scored: Scored) -> Outcome:
        if not answers:
            return outcome_of_error(InvalidInput("the group has no completions"), origin=self._stage)
        wrong = [one.error or ServiceError("there is no score") for one in answers if one.value is None]
        if wrong:
            # What will not pass by itself decides: there is nothing to wait for.
            told = [outcome_of_error(error, origin=self._stage) for error in wrong]
            return next((one for one in told if one.kind == "failed"), told[0])
        for completion, answer in zip(group.completions, answers, strict=True):
            score = encode_score(answer, scored, origin=self._stage)
            completion.scores.append(rollout.StageScore(stage=self._stage, score=score))
        return Outcome("done")


def _rows(group: rollout.RolloutGroup) -> list[ScoreRow]:
    messages = conversation(group.prompt.messages, group.prompt.text)
    columns = dict(group.prompt.columns)
    return [
        ScoreRow(
            messages=messages,
            completion=completion.text,
            columns=columns,
            completion_ids=cast("Sequence[int]", to_numpy(completion.token_ids))
            if completion.HasField("token_ids")
            else None,
        )
        for completion in group.completions
    ]


def _tokens(group: rollout.RolloutGroup) -> int:
    prompt = sum(group.prompt.token_ids.shape)
    return sum(prompt + sum(completion.token_ids.shape) for completion in group.completions)


def _slices(groups: Sequence[rollout.RolloutGroup]) -> Iterator[list[rollout.RolloutGroup]]:
    """Whole groups, in order, at most about _SLICE_ROWS completions at once."""
    part: list[rollout.RolloutGroup] = []
    rows = 0
    for group in groups:
        if part and rows + len(group.completions) > _SLICE_ROWS:
            yield part
            part, rows = [], 0
        part.append(group)
        rows += len(group.completions)
    if part:
        yield part
