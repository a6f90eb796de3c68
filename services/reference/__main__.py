"""`python -m services.reference`, `trimtab-reference`: parses, wires, runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.common.entry import service_main

if TYPE_CHECKING:
    from services.common.server import Application
    from services.reference.config import ReferenceConfig


def build(config: ReferenceConfig) -> Application:
    """The reference service of this configuration."""
    from services.reference.application import ReferenceApplication

    return ReferenceApplication(config)


def main() -> None:
    """Entry point of the console script."""
    service_main(
        "reference", "services.reference.config:ReferenceConfig", "services.reference.__main__:build"
    )


if __name__ == "__main__":
    main()
