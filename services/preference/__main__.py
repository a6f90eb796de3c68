"""`python -m services.preference`, `trimtab-preference`: parses, wires, runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.common.entry import service_main

if TYPE_CHECKING:
    from services.common.server import Application
    from services.preference.config import PreferenceConfig


def build(config: PreferenceConfig) -> Application:
    """The preference service of this configuration."""
    from services.preference.application import PreferenceApplication

    return PreferenceApplication(config)


def main() -> None:
    """Entry point of the console script."""
    service_main(
        "preference", "services.preference.config:PreferenceConfig", "services.preference.__main__:build"
    )


if __name__ == "__main__":
    main()
