"""What the flags that several commands share come to."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from services.common.spec.run import RunSpec


class Format(StrEnum):
    """How a command prints."""

    TEXT = "text"
    JSON = "json"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """The common flags. None and empty mean: not given."""

    seed: int | None = None
    out: Path | None = None
    model: str | None = None
    steps: int | None = None
    overrides: tuple[str, ...] = ()
    """a.b=c, over the run's spec."""
    resume: bool = False
    overwrite: bool = False
    tls: bool = False
    """mTLS between the services."""

    def all_overrides(self) -> list[str]:
        """The flags as overrides of the spec; an explicit --set comes last and wins."""
        flags = (
            ("seed", self.seed),
            ("steps", self.steps),
            ("model.path", None if self.model is None else json.dumps(self.model)),
        )
        return [*(f"{key}={value}" for key, value in flags if value is not None), *self.overrides]

    def load_spec(self, path: Path) -> RunSpec:
        """The run's spec with the flags over it. Raises ConfigError, one line."""
        from services.common.spec.load import load_toml
        from services.common.spec.run import RunSpec

        return load_toml(path, RunSpec, self.all_overrides())

    def names(self, field: str) -> bool:
        """Whether the command line says a field of the spec, itself or a table around it."""
        told = (override.partition("=")[0] for override in self.all_overrides())
        keys = (".".join(part.strip() for part in key.split(".")) for key in told)
        return any(field == key or field.startswith(f"{key}.") for key in keys)

    def beside(self, run_file: Path, field: str) -> Path:
        """What a path in a field is relative to: the run file's folder, or the working one where --set says it."""
        return Path() if self.names(field) else run_file.parent

    def folder(self, spec: RunSpec) -> Path:
        """The run's folder."""
        return Path("runs") / spec.name if self.out is None else self.out
