"""Dockerfiles as far as ours go: stages, what is copied and run; and the first stage carried out without Docker."""

from __future__ import annotations

import shlex
import shutil
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
SERVICES = ("policy", "reference", "reward", "learner", "preference")
FILES = {name: ROOT / "services" / name / "Dockerfile" for name in SERVICES} | {
    "orchestrator": ROOT / "orchestrator" / "Dockerfile"
}


@dataclass(slots=True)
class Stage:
    """One FROM and what follows it."""

    base: str
    name: str = ""
    steps: list[tuple[str, str]] = field(default_factory=list)

    def of(self, instruction: str) -> list[str]:
        """The arguments of each such line, in order."""
        return [arguments for name, arguments in self.steps if name == instruction]


def stages(dockerfile: Path) -> list[Stage]:
    """The stages of a Dockerfile."""
    found: list[Stage] = []
    for line in dockerfile.read_text(encoding="utf-8").replace("\\\n", "").splitlines():
        instruction, _, arguments = line.strip().partition(" ")
        if not instruction or instruction.startswith("#"):
            continue
        if instruction == "FROM":
            base, _, name = arguments.partition(" AS ")
            found.append(Stage(base, name))
        else:
            found[-1].steps.append((instruction, arguments))
    return found


def copied(stage: Stage) -> list[str]:
    """Paths of the repository that a stage takes in."""
    return [path for line in stage.of("COPY") if "--from" not in line for path in line.split()[:-1]]


def copy_sources(stage: Stage, folder: Path) -> None:
    """What the stage would have in its WORKDIR."""
    for line in stage.of("COPY"):
        *sources, target = line.split()
        for source in sources:
            place = folder / target / source if target.endswith("/") else folder / target
            place.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / source).is_dir():
                shutil.copytree(
                    ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
                )
            else:
                shutil.copy(ROOT / source, place)


def installs(stage: Stage, environment: Path) -> list[list[str]]:
    """The stage's pip commands, for an environment that lies elsewhere."""
    commands = [shlex.split(line) for line in stage.of("RUN") if line.startswith("/venv/bin/pip")]
    return [[str(environment / "bin" / "pip"), *command[1:]] for command in commands]
