"""The policy stage: completes every completion of the groups it is given, from where others left them.

Knows nothing of queues, leases and attempts: services/common/worker.py does that.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from services.common.errors import TrimtabError
from services.common.failures import error_info
from services.common.timing import record_timings
from services.common.validation import token_ids
from services.common.worker import Outcome
from services.models.wire import version_of
from services.policy.engines.base import Request
from services.policy.generation import Policy
from services.policy.requests import check_prompt, draft_of, sampling_of, write_draft
from trimtab.rollout.v1 import rollout_pb2 as rollout


@dataclass(frozen=True, slots=True)
class _Job:
    index: int
    group: rollout.RolloutGroup
    requests: list[Request]


class PolicyProcessor:
    """A StageProcessor around a Policy. A group that cannot be read fails alone."""

    def __init__(
        self, policy: Policy, *, stage: str, replica: str, max_new_tokens: int, wait_seconds: float
    ) -> None:
        self._policy = policy
        self._stage = stage
        self._replica = replica
        self._max_new_tokens = max_new_tokens
        self._wait_seconds = wait_seconds

    def process(self, groups: list[rollout.RolloutGroup], stopping: threading.Event) -> list[Outcome]:
        """Generate under weights at least as new as the groups were admitted with."""
        outcomes = [Outcome("unfinished") for _ in groups]
        jobs: list[_Job] = []
        for index, group in enumerate(groups):
            try:
                jobs.append(self._job(index, group))
            except TrimtabError as error:
                outcomes[index] = Outcome("failed", error_info(error, origin=self._stage))
        if not jobs:
            return outcomes
        wanted = max(
            (version_of(job.group.admitted_version) for job in jobs), key=lambda v: (v.epoch, v.step)
        )
        if not self._policy.await_version(wanted, stopping=stopping, wait_seconds=self._wait_seconds):
            return outcomes
        self._generate(jobs, stopping)
        for job in jobs:
            if all(completion.finish_reason for completion in job.group.completions):
                outcomes[job.index] = Outcome("done")
        return outcomes

    def _job(self, index: int, group: rollout.RolloutGroup) -> _Job:
        sampling = sampling_of(group.sampling, most_new_tokens=self._max_new_tokens)
        ids = token_ids(group.prompt.token_ids, "prompt.token_ids")
        check_prompt(ids, self._policy, "prompt")
        count = group.sampling.num_completions or 1
        while len(group.completions) < count:
            group.completions.add()
        return _Job(
            index,
            group,
            [
                Request(prompt_ids=ids, sampling=sampling, index=nth, draft=draft_of(completion))
                for nth, completion in enumerate(group.completions)
            ],
        )

    def _generate(self, jobs: list[_Job], stopping: threading.Event) -> None:
        requests = [request for job in jobs for request in job.requests]
        started = time.perf_counter()
        drafts, spans = self._policy.generate_noted(requests, stopping, resume=False)
        made = iter(zip(drafts, spans, strict=True))
        seconds = time.perf_counter() - started
        work: list[tuple[rollout.RolloutGroup, int]] = []
        for job in jobs:
            new = 0
            for completion, request in zip(job.group.completions, job.requests, strict=True):
                draft, noted = next(made)
                new += len(draft.token_ids) - len(request.draft.token_ids)
                write_draft(completion, draft, self._policy.engine.decode(draft.token_ids), noted)
            work.append((job.group, new))
        record_timings(work, stage=self._stage, replica=self._replica, seconds=seconds)
