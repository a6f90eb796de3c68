"""`python -m services.learner`, `trimtab-learner`: parses, wires, runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.common.entry import service_main

if TYPE_CHECKING:
    from services.common.server import Application
    from services.learner.config import LearnerConfig


def build(config: LearnerConfig) -> Application:
    """The learner service of this configuration."""
    from services.learner.application import LearnerApplication

    return LearnerApplication(config)


def main() -> None:
    """Entry point of the console script."""
    service_main("learner", "services.learner.config:LearnerConfig", "services.learner.__main__:build")


if __name__ == "__main__":
    main()
