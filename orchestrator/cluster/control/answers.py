"""From the answers of a run's services to figures: the learner's status, a worker's metrics page. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from orchestrator.cluster.control.insight import LearnerFigures
from orchestrator.cluster.control.meter import PodFigures
from orchestrator.cluster.control.service_meter import ServiceFigures
from orchestrator.cluster.kinds.status import CheckpointStatus, RolloutStatus

BUSY, GROUPS, HELD, DRAINING, REVISION = (
    "trimtab_stage_busy_seconds_total",
    "trimtab_stage_groups_total",
    "trimtab_stage_held_groups",
    "trimtab_stage_draining",
    "trimtab_reward_model_info",
)
"""Slot-seconds spent, groups done, groups in hand, 1 once it drains (services/common/stage_metrics.py); the scoring
model's digest."""
_SERVICE = {
    "busy": ("trimtab_reward_phase_seconds_sum", 'phase="model"'),
    "total": ("trimtab_reward_phase_seconds_sum", 'phase="total"'),
    "rows": ("trimtab_reward_rows_total", ""),
    "refused": ("trimtab_reward_rows_total", 'outcome="RESOURCE_EXHAUSTED"'),
    "passes": ("trimtab_reward_batch_rows_count", ""),
    "tokens": ("trimtab_reward_batch_tokens_sum", ""),
    "waiting": ("trimtab_reward_queue_rows", ""),
    "calls": ("trimtab_grpc_calls_in_flight", ".RewardService/"),
    "requests": ("trimtab_http_requests_in_flight", ""),
    "draining": ("trimtab_draining", ""),
}
"""What is summed of a reward service's page: the name, and what its labels contain (services/reward/metrics.py,
services/common/telemetry.py)."""
_LINE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})?\s+(\S+)")
_DIGEST = re.compile(r'digest="([^"]*)"')
_MODEL = re.compile(r'model="([^"]*)"')
_STEP = re.compile(r"step-(\d+)/?$")


def pod_figures(page: str) -> PodFigures | None:
    """Of a Prometheus page; None where it is not a stage worker's."""
    sums: dict[str, float] = {}
    revision = ""
    for line in page.splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        name, labels, value = match.groups()
        if name in (BUSY, HELD, DRAINING) or (name == GROUPS and 'outcome="done"' in (labels or "")):
            sums[name] = sums.get(name, 0.0) + _number(value)
        elif name == REVISION:
            found = _DIGEST.search(labels or "")
            revision = found[1] if found else revision
    if BUSY not in sums or GROUPS not in sums:
        return None
    held = int(sums.get(HELD, 0))
    return PodFigures(
        busy_seconds=sums[BUSY],
        groups=int(sums[GROUPS]),
        held=held,
        draining=held == 0 and sums.get(DRAINING, 0) > 0,
        revision=revision,
    )


def service_figures(page: str) -> ServiceFigures | None:
    """Of a reward service's page, over all its models; None where it is another page."""
    sums = dict.fromkeys(_SERVICE, 0.0)
    found, revision = False, ""
    digests: dict[str, str] = {}
    for line in page.splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        name, labels, value = match[1], match[2] or "", match[3]
        for figure, (metric, part) in _SERVICE.items():
            if name == metric and part in labels:
                sums[figure] += _number(value)
        if name == REVISION:
            found = True
            digest, model = _DIGEST.search(labels), _MODEL.search(labels)
            revision = revision or (digest[1] if digest else "")
            if digest and model:
                digests[model[1]] = digest[1]
    return None if not found else _service(sums, revision, digests)


def _service(sums: Mapping[str, float], revision: str, digests: Mapping[str, str]) -> ServiceFigures:
    return ServiceFigures(
        # A rule has no passes: there the time of its calls is what it costs.
        busy_seconds=sums["busy"] if sums["passes"] else sums["total"],
        rows=int(sums["rows"] - sums["refused"]),
        refused=int(sums["refused"]),
        passes=int(sums["passes"]),
        tokens=int(sums["tokens"]),
        waiting=int(sums["waiting"]),
        calls=int(sums["calls"] + sums["requests"]),
        draining=sums["draining"] > 0,
        revision=revision,
        digests=digests,
    )


def _number(text: str) -> float:
    """NaN and infinities of a page count for nothing."""
    value = float(text)
    return value if math.isfinite(value) else 0.0


def learner_figures(answer: Any, *, paused: bool) -> LearnerFigures:
    """Of a GetRunStatusResponse. A figure that is no number (a loss that diverged) is none: JSON has no word for it."""
    metrics = {name: value for name, value in answer.metrics.items() if math.isfinite(value)}
    wall = metrics.get("time/step")
    work = metrics.get("time/update", 0.0) + metrics.get("time/publish", 0.0)
    counts = answer.rollouts
    version = f"{answer.version.epoch}.{answer.version.step}" if answer.HasField("version") else ""
    return LearnerFigures(
        step=answer.step,
        steps=answer.total_steps,
        epoch=answer.version.epoch,
        version=version,
        reward=metrics.get("objective/scores"),
        kl=metrics.get("objective/kl"),
        step_seconds=work or None,
        idle_share=min(1.0, max(0.0, 1 - work / wall)) if wall else None,
        rollouts=RolloutStatus(
            admitted=counts.admitted,
            trained=counts.trained,
            stale=counts.stale,
            failed=counts.failed,
            in_flight=counts.in_flight,
        ),
        last_checkpoint=_checkpoint(answer.last_checkpoint, answer.version.epoch),
        paused=paused,
        warnings=tuple(answer.warnings),
    )


def _checkpoint(path: str, epoch: int) -> CheckpointStatus | None:
    match = _STEP.search(path)
    return None if match is None else CheckpointStatus(step=int(match[1]), epoch=epoch, path=path[-1024:])
