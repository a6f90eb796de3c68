"""The reference stage: sets the reference log-probs of every completion of the groups it is given.

Knows nothing of queues, leases and attempts: services/common/worker.py does that.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from services.common.arrays import set_array
from services.common.errors import TrimtabError
from services.common.failures import error_info
from services.common.timing import record_timings
from services.common.validation import token_ids
from services.common.worker import Outcome
from services.reference.logprobs import IdPair, ReferenceModel
from trimtab.rollout.v1 import rollout_pb2 as rollout

# Tokens between two looks at `stopping`: a drain has 10 seconds.
_SLICE_TOKENS = 16_384


@dataclass(frozen=True, slots=True)
class _Job:
    index: int
    group: rollout.RolloutGroup
    pairs: list[IdPair]

    @property
    def tokens(self) -> int:
        return sum(len(prompt) + len(completion) for prompt, completion in self.pairs)


class ReferenceProcessor:
    """A StageProcessor around a ReferenceModel. A group that cannot be computed fails alone."""

    def __init__(self, model: ReferenceModel, *, stage: str, replica: str) -> None:
        self._model = model
        self._stage = stage
        self._replica = replica

    def process(self, groups: list[rollout.RolloutGroup], stopping: threading.Event) -> list[Outcome]:
        """Set reference_logprobs at each group's sampling temperature; groups not reached are unfinished."""
        outcomes = [Outcome("unfinished") for _ in groups]
        jobs: list[_Job] = []
        for index, group in enumerate(groups):
            try:
                jobs.append(self._job(index, group))
            except TrimtabError as error:
                outcomes[index] = Outcome("failed", error_info(error, origin=self._stage))
        for part in _slices(jobs):
            if stopping.is_set():
                break
            self._compute(part)
            for job in part:
                outcomes[job.index] = Outcome("done")
        return outcomes

    def _job(self, index: int, group: rollout.RolloutGroup) -> _Job:
        prompt = token_ids(group.prompt.token_ids, "prompt.token_ids")
        pairs = [
            (prompt, token_ids(completion.token_ids, f"completions[{i}].token_ids"))
            for i, completion in enumerate(group.completions)
        ]
        self._model.check(pairs, group.sampling.temperature)
        return _Job(index, group, pairs)

    def _compute(self, jobs: Sequence[_Job]) -> None:
        started = time.perf_counter()
        results = self._model.compute(
            [pair for job in jobs for pair in job.pairs], jobs[0].group.sampling.temperature
        )
        seconds = time.perf_counter() - started
        values = iter(results)
        for job in jobs:
            for completion in job.group.completions:
                set_array(completion.reference_logprobs, next(values))
        work = [(job.group, job.tokens) for job in jobs]
        record_timings(work, stage=self._stage, replica=self._replica, seconds=seconds)


def _slices(jobs: Sequence[_Job]) -> Iterator[list[_Job]]:
    """Groups of one temperature each, similar lengths together, at most about _SLICE_TOKENS tokens."""
    ordered = sorted(jobs, key=lambda job: (job.group.sampling.temperature, -job.tokens))
    part: list[_Job] = []
    for job in ordered:
        other = part and part[0].group.sampling.temperature != job.group.sampling.temperature
        if part and (other or sum(each.tokens for each in part) + job.tokens > _SLICE_TOKENS):
            yield part
            part = []
        part.append(job)
    if part:
        yield part
