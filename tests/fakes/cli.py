"""`trimtab` with fake services: python -m tests.fakes.cli ARGUMENTS, for tests of the command line alone."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.__main__ import main
from orchestrator.local import foreground, services


def fake_roles() -> dict[str, services.Role]:
    """Every role, served by tests/fakes/application.py."""
    return {name: replace(role, module="tests.fakes.application") for name, role in services.ROLES.items()}


if __name__ == "__main__":
    services.ROLES = fake_roles()
    foreground.PROGRAM = ("-m", "tests.fakes.cli")
    main()
