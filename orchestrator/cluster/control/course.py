"""Which stage a run is in and whether it is over: jobs one after another, then RL. Pure.

Stages only go forward: status remembers the last, so that a Job that somebody removes is not run again once what came
after it has begun. What is over stays over until the spec asks for more: more steps, or another try of what failed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.cluster.control.attempts import JobState, JobView
from orchestrator.cluster.kinds import TrainingRun
from services.common.errors import InvalidInput

DONE = "done"


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """Where a run is."""

    stage: str
    """sft, rewardModel, rl, done."""
    finished: str = ""
    """Succeeded, Failed or empty."""
    message: str = ""
    anew: bool = False
    """It had failed and is tried again: failures before count no more."""


def course_of(run: TrainingRun, jobs: Mapping[str, JobView]) -> Course:
    """Where the run is. `jobs`: those before RL, by stage."""
    before = next(
        (one for one in run.status.conditions if one.type == "Finished" and one.status == "True"), None
    )
    anew = before is not None and before.reason == "Failed"
    stages = stages_in_order(run)
    if before is not None and not _asks_for_more(run, before.reason, before.observed_generation):
        return Course(stage=run.status.stage or DONE, finished=before.reason, message=before.message)
    if not stages:
        return Course(stage=DONE, finished="Succeeded", message="it has no stage")
    first = stages[-1] if run.status.stage == DONE else run.status.stage
    begin = stages.index(first) if first in stages else 0
    for stage in stages[begin:]:
        job = jobs.get(stage)
        if stage == "rl" or job is None or job.state in (JobState.RUNNING, JobState.GOING):
            return Course(stage=stage, anew=anew)
        if job.state is JobState.FAILED and anew:
            return Course(stage=stage, anew=True)
        if job.state is JobState.FAILED:
            return Course(stage=stage, finished="Failed", message=f"the job {stage} failed: {job.message}")
    return Course(stage=DONE, finished="Succeeded", message="all jobs are done")


def stages_in_order(run: TrainingRun) -> tuple[str, ...]:
    """What the run consists of."""
    stages = run.spec.stages
    given = (
        ("sft", stages.sft is not None),
        ("rewardModel", stages.reward_model is not None),
        ("rl", stages.rl.enabled),
    )
    return tuple(name for name, there in given if there)


def check_supported(run: TrainingRun) -> None:
    """Raises InvalidInput for what the kind has and nobody carries out yet: half of a spec is worse than none."""
    iterate = run.spec.stages.iterate
    if iterate is not None and iterate.rounds > 1:
        raise InvalidInput("spec.stages.iterate.rounds: this operator carries out one round only")


def _asks_for_more(run: TrainingRun, reason: str, generation: int) -> bool:
    if reason == "Failed":
        return run.metadata.generation != generation
    return "rl" in stages_in_order(run) and run.spec.steps > run.status.steps
