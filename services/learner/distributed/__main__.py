"""`python -m services.learner.distributed`: torchrun for the learner; its options stand in PET_*."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.common.entry import service_main

if TYPE_CHECKING:
    from services.learner.config import LearnerConfig
    from services.learner.distributed.launch import LaunchProgram


def build(config: LearnerConfig) -> LaunchProgram:
    """What starts the processes; each reads this configuration again."""
    from services.learner.distributed.launch import LaunchProgram

    return LaunchProgram((), config.cut_off_status)


def main() -> None:
    """Entry point."""
    service_main(
        "learner", "services.learner.config:LearnerConfig", "services.learner.distributed.__main__:build"
    )


if __name__ == "__main__":
    main()
