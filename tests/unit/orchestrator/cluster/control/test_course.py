"""Which stage a run is in, and whether it is over."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.cluster.control.attempts import JobState, JobView
from orchestrator.cluster.control.course import Course, check_supported, course_of, stages_in_order
from orchestrator.cluster.kinds import TrainingRun, read_object
from services.common.errors import InvalidInput
from tests.unit.orchestrator.cluster.objects import RUN, changed

STAGES = {"sft": {"data": "/storage/a"}, "rewardModel": {"data": "/storage/b"}}
TIME = "2026-01-02T03:04:05Z"


def run(status: dict[str, Any] | None = None, **spec: Any) -> TrainingRun:
    return read_object(TrainingRun, changed(RUN, **spec) | {"status": status or {}})


def job(state: JobState) -> JobView:
    return JobView(name="j", state=state, message="boom")


def finished(reason: str, *, generation: int = 1, **more: Any) -> dict[str, Any]:
    condition = {
        "type": "Finished",
        "status": "True",
        "reason": reason,
        "message": "as it was said",
        "lastTransitionTime": TIME,
        "observedGeneration": generation,
    }
    return {"conditions": [condition], "stage": "rl", "steps": 32, **more}


def test_rl_alone_is_the_usual_run() -> None:
    """Nothing goes before it."""
    assert course_of(run(), {}) == Course(stage="rl")
    assert stages_in_order(run(stages=STAGES)) == ("sft", "rewardModel", "rl")


def test_each_job_waits_for_the_one_before() -> None:
    """A stage whose Job is not there yet is the one to begin."""
    three = run(stages=STAGES)
    assert course_of(three, {}).stage == "sft"
    assert course_of(three, {"sft": job(JobState.RUNNING)}).stage == "sft"
    assert course_of(three, {"sft": job(JobState.COMPLETE)}).stage == "rewardModel"
    done = {stage: job(JobState.COMPLETE) for stage in ("sft", "rewardModel")}
    assert course_of(three, done).stage == "rl"


def test_a_stage_never_goes_back() -> None:
    """Jobs that somebody removed are not run again once what came after has begun."""
    assert course_of(run({"stage": "rl"}, stages=STAGES), {}).stage == "rl"


def test_a_failed_job_is_the_runs_failure() -> None:
    """With its words."""
    told = course_of(run(stages=STAGES), {"sft": job(JobState.FAILED)})
    assert (told.finished, told.message) == ("Failed", "the job sft failed: boom")


def test_jobs_without_rl() -> None:
    """A run of nothing but jobs ends with the last."""
    only = run(stages={"sft": STAGES["sft"], "rl": {"enabled": False}})
    assert course_of(only, {"sft": job(JobState.COMPLETE)}) == Course(
        stage="done", finished="Succeeded", message="all jobs are done"
    )
    assert course_of(run(stages={"rl": {"enabled": False}}), {}).finished == "Succeeded"


def test_more_than_one_round_is_refused() -> None:
    """Rather than carried out once, as if that had been asked for."""
    check_supported(run(stages={"iterate": {"rounds": 1}}))
    with pytest.raises(InvalidInput, match="one round only"):
        check_supported(run(stages={"iterate": {"rounds": 2, "preferenceUrl": "people:50055"}}))


def test_what_is_over_stays_over() -> None:
    """Whatever else changes in the spec; its words are kept."""
    told = course_of(run(finished("Succeeded", generation=0)), {})
    assert (told.finished, told.message) == ("Succeeded", "as it was said")


def test_more_steps_continue_a_run_that_succeeded() -> None:
    """Fewer or as many do not."""
    assert course_of(run(finished("Succeeded"), steps=64), {}) == Course(stage="rl")
    assert course_of(run(finished("Succeeded"), steps=8), {}).finished == "Succeeded"


def test_a_changed_spec_is_another_try_of_what_failed() -> None:
    """The same one is not."""
    assert course_of(run(finished("Failed")), {}).finished == "Failed"
    again = course_of(run(finished("Failed", generation=0)), {})
    assert (again.finished, again.anew) == ("", True)
    sft = run(finished("Failed", generation=0, stage="sft"), stages=STAGES)
    assert course_of(sft, {"sft": job(JobState.FAILED)}) == Course(stage="sft", anew=True)
