"""Weights & Biases, the run's uid being its id: a resume continues it. Needs the package `wandb`.

Offline (the default) everything lies in wandb/ of the run's folder; `wandb sync` merges the parts by their id.
"""

from __future__ import annotations

from collections.abc import Mapping

from services.common.spec.metric_logs import LoggingSpec
from services.learner.logs.base import RunIdentity


class WandbLog:
    """The step stands in each row as `step`, and is every metric's axis: W&B's own counter cannot go back after a
    resume that trains lost steps again."""

    def __init__(self, run: RunIdentity, spec: LoggingSpec, _steps_done: int) -> None:
        import wandb

        self._run = wandb.init(
            project=spec.wandb.project,
            entity=spec.wandb.entity or None,
            id=run.uid,
            name=run.name,
            resume="allow",
            mode=spec.wandb.mode,
            dir=str(run.folder),
            config=dict(run.settings),
            # Its console capture, git and machine probes are no business of a learner.
            settings=wandb.Settings(
                silent=True, console="off", disable_git=True, x_disable_stats=True, x_disable_meta=True
            ),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, moment: float, metrics: Mapping[str, float]) -> None:
        """See MetricLog."""
        self._run.log({**metrics, "step": step, "time": moment})

    def close(self) -> None:
        """See MetricLog."""
        self._run.finish()
