"""Which attempt of the learner goes on, and which of its Jobs go. Pure; one table, walked from the top.

    wanted   newest Job                             done
    ──────   ────────────────────────────────────   ──────────────────────────────────────────────────
    yes      complete, for fewer steps than wanted  the Job is deleted: more steps continue a run
    yes      complete, but a pod of it was taken    the Job is deleted: it may have been told to end
             away before the last checkpoint
    yes      complete                               the run has succeeded
    no       failed, and the run with it            the Job stays, for its pods' logs; older ones are deleted
    no       any                                    its Jobs are deleted (after a checkpoint: the caller)
    yes      failed, and the spec is another now    the Job is deleted, failures count from 0
    yes      failed, not counted yet                count it, in status, before anything else; in a row only if
                                                    no pod of it was taken away (drained, preempted, evicted)
    yes      failed by the user's mistake, now told the run has failed: another attempt ends the same way
    yes      failed, `restart_limit` in a row       the run has failed
    yes      failed, back-off not over              (wait) the Job stays: it alone remembers when it ended
    yes      failed                                 the Job is deleted
    yes      a pod cannot end: its node is gone     as failed; its pods are removed by force
    yes      going on                               (fine)
    yes      none, pods of an older one are left    (wait) pods that cannot end are removed by force
    yes      none                                   the next attempt

Two learners at once could not write both (every script of the queue checks the epoch), so removing pods by force,
which frees a name while the process may still run somewhere, costs at most wasted work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from orchestrator.cluster.control.pods import PodView
from orchestrator.cluster.kinds.status import TrainingRunStatus

LOST_SECONDS = 30.0
"""Beyond the end of its grace period: a kubelet that lives has removed the pod by then."""
BACKOFF_FIRST, BACKOFF_MOST = 5.0, 300.0


class JobState(StrEnum):
    """How far a Job is."""

    RUNNING = "running"
    COMPLETE = "complete"
    FAILED = "failed"
    GOING = "going"
    """It is being deleted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """A Job as seen."""

    name: str
    state: JobState
    attempt: int = 0
    message: str = ""
    users_mistake: bool = False
    """A pod ended with the exit status of a wrong configuration."""
    disrupted: bool = False
    """A pod of it was taken away by the cluster."""
    bereft: bool = False
    """Or by anybody. Of one that has failed it says nothing: the Job's controller removes the other pods."""
    ended: datetime | None = None
    steps: int = 0
    """That the run was to have when this attempt began."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """What status keeps of attempts that failed."""

    attempt: int = 0
    """The newest."""
    counted: int = 0
    """The newest whose failure is in the other numbers."""
    restarts: int = 0
    in_a_row: int = 0
    """Without a new checkpoint between them."""
    at_step: int = 0
    """Of the last checkpoint, when a failure was counted last."""

    @classmethod
    def of(cls, status: TrainingRunStatus) -> Count:
        """As a status has it."""
        return cls(
            attempt=status.attempt,
            counted=status.failed_attempt,
            restarts=status.restarts,
            in_a_row=status.failures,
            at_step=status.failed_step,
        )

    def since(self, checkpoint: int) -> int:
        """Failures since the last checkpoint, which is at this step."""
        return 0 if checkpoint > self.at_step else self.in_a_row

    def failed(self, attempt: int, checkpoint: int, *, disrupted: bool = False) -> Count:
        """With the failure of this attempt. `checkpoint`: step of the last one. `disrupted`: it is nobody's fault."""
        return Count(
            attempt=max(attempt, self.attempt),
            counted=attempt,
            restarts=self.restarts + 1,
            in_a_row=self.since(checkpoint) + (not disrupted),
            at_step=checkpoint,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What the run says of its attempts."""

    steps: int
    restart_limit: int = 10
    checkpoint_step: int = 0
    """Of the last checkpoint."""
    failed: bool = False
    """The run has failed, and nobody asks for another try."""
    anew: bool = False
    """The run had failed and its spec is another now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Learner:
    """What to do with the learner now."""

    attempt: int | None = None
    """Whose Job is to be there, made now if it is not; None: none."""
    count: Count
    delete: tuple[str, ...] = ()
    """Jobs, once `count` stands in status."""
    force: tuple[str, ...] = ()
    """Pods that cannot end by themselves."""
    finished: str = ""
    message: str = ""
    failed_now: str = ""
    """Why an attempt that was not counted before failed."""
    wait_seconds: float | None = None
    """Look again after so long, whatever happens."""


def next_learner(
    count: Count,
    jobs: Sequence[JobView],
    pods: Sequence[PodView],
    *,
    wanted: bool,
    terms: Terms,
    now: datetime,
) -> Learner:
    """The table above. `jobs`, `pods`: the learner's, of all attempts. `count`: as status has it."""
    newest = max(jobs, key=lambda job: job.attempt, default=None)
    stuck = tuple(pod.name for pod in pods if pod.overdue_seconds(now) > LOST_SECONDS)
    if newest is not None:
        count = replace(count, attempt=max(count.attempt, newest.attempt))
    live = tuple(job.name for job in jobs if job.state is not JobState.GOING)
    if newest is not None and _is_done(newest, terms):
        told = f"{newest.steps} steps are trained"
        return Learner(attempt=newest.attempt, count=count, finished="Succeeded", message=told)
    if not wanted:
        told_by = newest.name if newest and newest.state is JobState.FAILED and terms.failed else ""
        gone = tuple(name for name in live if name != told_by)
        return Learner(count=count, delete=gone, force=stuck, wait_seconds=_look_again(pods))
    if newest is None or newest.state is JobState.GOING:
        return _between(count, bool(jobs), pods, stuck)
    if newest.state is JobState.COMPLETE or (terms.anew and newest.state is JobState.FAILED):
        return Learner(count=replace(count, counted=count.attempt, in_a_row=0), delete=live, force=stuck)
    older = tuple(name for name in live if name != newest.name)
    lost = newest.state is JobState.RUNNING and any(pod.startswith(f"{newest.name}-") for pod in stuck)
    if newest.state is JobState.FAILED or lost:
        why = "the node of one of its pods is gone" if lost else newest.message or "a pod failed"
        after = _failed(count, newest, why, live, stuck, terms)
        left = 0.0 if after.finished or lost else _backoff_left(after.count, newest, now)
        return replace(after, delete=older, wait_seconds=left) if left > 0 else after
    return Learner(attempt=newest.attempt, count=count, delete=older, wait_seconds=_look_again(pods))


def _is_done(job: JobView, terms: Terms) -> bool:
    """Whether its steps are trained. A learner writes a checkpoint of the last one before it ends."""
    cut_off = job.bereft and terms.checkpoint_step < job.steps
    return job.state is JobState.COMPLETE and job.steps >= terms.steps and not cut_off


def backoff_seconds(in_a_row: int) -> float:
    """Between the end of an attempt and the next one."""
    return 0.0 if in_a_row <= 0 else min(BACKOFF_MOST, BACKOFF_FIRST * 2.0 ** min(in_a_row - 1, 16))


def _backoff_left(count: Count, job: JobView, now: datetime) -> float:
    """Seconds. From the Job, not its pods: they may be removed by anybody, at any time."""
    return 0.0 if job.ended is None else backoff_seconds(count.in_a_row) - (now - job.ended).total_seconds()


def _failed(
    count: Count,
    job: JobView,
    why: str,
    live: tuple[str, ...],
    stuck: tuple[str, ...],
    terms: Terms,
) -> Learner:
    told = ""
    if count.counted < job.attempt:
        count = count.failed(job.attempt, terms.checkpoint_step, disrupted=job.disrupted)
        told = why
    # Told in the look that counts it, with which the run has failed. Later it is of a spec that has been changed.
    if told and job.users_mistake:
        ended = f"attempt {job.attempt} ended by a mistake in what it was given: {why}"
        return Learner(attempt=job.attempt, count=count, finished="Failed", message=ended, failed_now=told)
    if count.in_a_row > terms.restart_limit:
        ended = f"{count.in_a_row} attempts in a row failed without a new checkpoint; the last: {why}"
        return Learner(attempt=job.attempt, count=count, finished="Failed", message=ended, failed_now=told)
    return Learner(count=count, delete=live, force=stuck, failed_now=told)


def _between(count: Count, going: bool, pods: Sequence[PodView], stuck: tuple[str, ...]) -> Learner:
    if going or any(not pod.ended for pod in pods):
        return Learner(count=count, force=stuck, wait_seconds=_look_again(pods) or 5.0)
    attempt = count.attempt + 1
    return Learner(attempt=attempt, count=replace(count, attempt=attempt))


def _look_again(pods: Sequence[PodView]) -> float | None:
    """A pod that does not end tells nobody that it does not."""
    return LOST_SECONDS / 2 if any(pod.deleting is not None for pod in pods) else None
