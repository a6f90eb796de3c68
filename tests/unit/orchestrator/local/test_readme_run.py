"""The README's smallest run is one, and its commands can be given one after the other."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

from orchestrator.local.services import check_scored
from services.common.spec.run import RunSpec
from tests.fakes.commands import unknown_to_trimtab

ROOT = Path(__file__).parents[4]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line, comments=True)[1:]
    for line in README.splitlines()
    if line.startswith(".venv/bin/trimtab ")
]


def test_the_smallest_run_is_whole() -> None:
    """It is read as a run, something scores it, and its prompts are there."""
    found = re.search(r"```toml\n(.*?)```", README, re.DOTALL)
    assert found is not None
    spec = RunSpec.model_validate(tomllib.loads(found.group(1)))
    check_scored(spec)
    assert (ROOT / spec.data.prompts).is_file()


def test_its_commands_exist() -> None:
    """Subcommand and every flag, in the CLI as it is."""
    assert len(COMMANDS) > 10
    assert [command for command in COMMANDS if unknown_to_trimtab(command)] == []


def test_no_command_needs_the_folder_of_another() -> None:
    """A folder that is used is refused, so each that begins a run has its own; a report is of one that was made."""
    made: list[str] = []
    for command in COMMANDS:
        if command[0] in ("train", "up", "from-trl", "iterate"):
            made.append(command[command.index("--out") + 1])
        elif command[0] in ("report", "export"):
            assert command[1] in made
    assert len(made) == len(set(made)) > 3
