"""`python -m services.reward`, `trimtab-reward`: parses, wires, runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.common.entry import service_main

if TYPE_CHECKING:
    from services.common.server import Application
    from services.reward.config import RewardConfig


def build(config: RewardConfig) -> Application:
    """The reward service of this configuration."""
    from services.reward.application import RewardApplication

    return RewardApplication(config)


def main() -> None:
    """Entry point of the console script."""
    service_main("reward", "services.reward.config:RewardConfig", "services.reward.__main__:build")


if __name__ == "__main__":
    main()
