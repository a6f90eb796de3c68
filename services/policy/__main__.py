"""`python -m services.policy`, `trimtab-policy`: parses, wires, runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.common.entry import service_main

if TYPE_CHECKING:
    from services.common.server import Application
    from services.policy.config import PolicyConfig


def build(config: PolicyConfig) -> Application:
    """The policy service of this configuration."""
    from services.policy.application import PolicyApplication

    return PolicyApplication(config)


def main() -> None:
    """Entry point of the console script."""
    service_main("policy", "services.policy.config:PolicyConfig", "services.policy.__main__:build")


if __name__ == "__main__":
    main()
