"""What is told of a run and of a reward model, and whether it is worth a write. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from orchestrator.cluster.conditions import RoleFacts
from orchestrator.cluster.control.attempts import Count
from orchestrator.cluster.control.course import DONE, Course
from orchestrator.cluster.control.insight import Insight
from orchestrator.cluster.kinds import Condition, RoleStatus, TrainingRun, TrainingRunStatus
from orchestrator.cluster.kinds.status import CheckpointStatus

FIGURES = (
    "step",
    "reward",
    "kl",
    "learnerIdleShare",
    "rollouts",
    "version",
    "backlogRows",
    "rowsPerSecond",
    "busyShare",
    "reason",
)
"""They change all the time: a write for them alone waits."""
ROLE_FIGURES = ("backlogGroups", "idleShare", "reason")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPicture:
    """All that a run's status is made of."""

    course: Course
    count: Count
    roles: Sequence[RoleFacts]
    insight: Insight
    conditions: tuple[Condition, ...]
    now: datetime


def run_status(run: TrainingRun, picture: RunPicture) -> dict[str, Any]:
    """The status as the API has it. What is not measured now stays as it was measured last."""
    before, course, count = run.status, picture.course, picture.count
    learner = picture.insight.learner
    done = bool(course.finished)
    time = picture.now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    ended = before.completion_time or time if done else None
    fields: dict[str, Any] = {
        "observed_generation": run.metadata.generation,
        "conditions": picture.conditions,
        "stage": DONE if course.finished == "Succeeded" else course.stage,
        "attempt": count.attempt,
        "restarts": count.restarts,
        "failures": count.in_a_row,
        "failed_attempt": count.counted,
        "failed_step": count.at_step,
        "steps": before.steps if done and before.completion_time else run.spec.steps,
        "start_time": before.start_time or time,
        "completion_time": ended,
        "roles": tuple(_role(facts, picture.insight) for facts in picture.roles),
    }
    if learner is not None:
        fields |= {
            "step": learner.step,
            "epoch": learner.epoch,
            "version": learner.version,
            "reward": learner.reward,
            "kl": learner.kl,
            "learner_idle_share": learner.idle_share,
            "rollouts": learner.rollouts or before.rollouts,
            "last_checkpoint": _checkpoint(learner.last_checkpoint, before.last_checkpoint, time),
        }
    return as_written(before.model_copy(update=fields))


def as_written(status: TrainingRunStatus | Any) -> dict[str, Any]:
    """A status in the API's words, without what is not there and without figures that are no numbers."""
    data: dict[str, Any] = status.model_dump(mode="json", by_alias=True, exclude_none=True)
    return _finite(data)


def only_figures(new: Mapping[str, Any], old: Mapping[str, Any]) -> bool:
    """Whether the two differ in nothing but figures that change all the time."""
    return _without_figures(new) == _without_figures(old)


def _checkpoint(
    seen: CheckpointStatus | None, before: CheckpointStatus | None, time: str
) -> CheckpointStatus | None:
    """The last one, dated by when it was first seen: the learner names its folder alone, in every epoch anew."""
    if seen is None:
        return before
    is_known = before is not None and (before.step, before.path) == (seen.step, seen.path)
    since = before.time if before is not None and is_known else None
    return seen.model_copy(update={"time": since or time})


def _finite(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _finite(value) if isinstance(value, dict) else value
        for name, value in fields.items()
        if not (isinstance(value, float) and not math.isfinite(value))
    }


def _without_figures(status: Mapping[str, Any]) -> dict[str, Any]:
    roles = [
        {key: value for key, value in role.items() if key not in ROLE_FIGURES}
        for role in status.get("roles", ())
    ]
    rest = {key: value for key, value in status.items() if key not in FIGURES}
    return rest | {"roles": roles}


def _role(facts: RoleFacts, insight: Insight) -> RoleStatus:
    seen = insight.role(facts.name)
    return RoleStatus(
        name=facts.name,
        desired=facts.desired,
        ready=facts.ready,
        updated=facts.updated,
        draining=seen.draining,
        wanted=seen.wanted,
        backlog_groups=seen.backlog_groups,
        idle_share=seen.idle_share,
        reason=seen.reason[:1024],
    )
