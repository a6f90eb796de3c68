"""Whether a command that a document shows is one of ours as it is. For tests."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import typer

from orchestrator.cli import app


def flags(arguments: Sequence[str]) -> set[str]:
    """Options, without their values."""
    return {word.partition("=")[0] for word in arguments if re.match(r"^--?[A-Za-z]", word)}


def unknown_to_trimtab(arguments: Sequence[str]) -> set[str]:
    """Of `trimtab ARGUMENTS`: the subcommand that there is not, else the flags that it neither takes nor hands on."""
    found: Any = typer.main.get_command(app)
    rest = list(arguments)
    while hasattr(found, "commands") and rest:
        if rest[0] not in found.commands:
            return {rest[0]}
        found = found.commands[rest.pop(0)]
    if found.context_settings.get("ignore_unknown_options"):
        return set()
    return flags(rest) - {name for option in found.params for name in (*option.opts, *option.secondary_opts)}
