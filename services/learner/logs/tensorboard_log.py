"""TensorBoard: event files in tensorboard/ of the run's folder. Needs the package `tensorboard`."""

from __future__ import annotations

from collections.abc import Mapping

from services.common.spec.metric_logs import LoggingSpec
from services.learner.logs.base import RunIdentity


class TensorboardLog:
    """A resumed run adds a file to the same folder; `purge_step` hides what the lost steps had written."""

    def __init__(self, run: RunIdentity, _spec: LoggingSpec, steps_done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # At the first step, too: a run that ended before its first checkpoint begins again.
        self._writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=steps_done + 1)

    def write(self, step: int, moment: float, metrics: Mapping[str, float]) -> None:
        """See MetricLog."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step, walltime=moment)
        self._writer.flush()

    def close(self) -> None:
        """See MetricLog."""
        self._writer.close()
