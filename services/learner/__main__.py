"""`python -m services.learner`, `trimtab-learner`: parses, wires, runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.common.entry import Program, service_main

if TYPE_CHECKING:
    from services.common.server import Application
    from services.learner.config import LearnerConfig


def build(config: LearnerConfig) -> Application | Program:
    """The learner service of this configuration; of several processes, this one's part in it."""
    import os

    if config.processes > 1 and "WORLD_SIZE" not in os.environ:
        from services.learner.distributed.launch import LaunchProgram

        options = ["--standalone", f"--nproc-per-node={config.processes}"]
        return LaunchProgram(options, config.cut_off_status)
    from services.learner.application import LearnerApplication

    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return LearnerApplication(config)
    from services.learner.distributed.follower import FollowerProgram
    from services.learner.distributed.group import Place
    from services.learner.distributed.joining import end_with_launcher

    end_with_launcher()
    place = Place.of_environment()
    return FollowerProgram(config, place) if place.rank else LearnerApplication(config, place)


def main() -> None:
    """Entry point of the console script."""
    service_main("learner", "services.learner.config:LearnerConfig", "services.learner.__main__:build")


if __name__ == "__main__":
    main()
