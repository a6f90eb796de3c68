"""`python -m benchmarks.overlap_learner`: the learner service, each update a device's time long."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.common.entry import service_main

if TYPE_CHECKING:
    from services.common.server import Application
    from services.learner.config import LearnerConfig


def build(config: LearnerConfig) -> Application:
    """The service itself; only its update takes longer."""
    from benchmarks.overlap_device import on_device
    from services.learner.application import LearnerApplication
    from services.learner.training import Trainer

    Trainer.step = on_device(Trainer.step)  # type: ignore[method-assign]
    return LearnerApplication(config)


if __name__ == "__main__":
    service_main("learner", "services.learner.config:LearnerConfig", "benchmarks.overlap_learner:build")
