"""Reads a config: TRL's YAML as its command line takes it, or JSON as a trainer's `args.to_dict()` gives it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.trl.known import Trainer, all_fields, unknown
from services.common.errors import ConfigError
from services.common.spec.load import read_text


def read_config(path: Path) -> dict[str, Any]:
    """The config's fields as written. Raises ConfigError, one line."""
    text = read_text(path)
    try:
        given = json.loads(text) if path.suffix == ".json" else _yaml(text)
    except ValueError as error:
        raise ConfigError(
            f"{path}: expected {'JSON' if path.suffix == '.json' else 'YAML'}: {_line(error)}"
        ) from None
    if not isinstance(given, dict) or not all(isinstance(name, str) for name in given):
        raise ConfigError(f"{path}: expected fields and values")
    for name, why in {
        "env": "set variables of the environment where trimtab runs",
        "datasets": "a mixture of data sets: make it one file, and give that as --data",
    }.items():
        if given.get(name):
            raise ConfigError(f"{path}: {name}: not read: {why}")
        given.pop(name, None)
    return given


def checked(trainer: Trainer, given: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The fields with numbers as numbers (YAML reads 1e-6 as text). Raises ConfigError for names that are no field."""
    if wrong := unknown(trainer, given):
        raise ConfigError(f"{source}: {'; '.join(wrong)} ({trainer})")
    fields = all_fields(trainer)
    return {name: _typed(name, value, fields[name], source) for name, value in given.items()}


def _typed(name: str, value: Any, default: Any, source: str) -> Any:
    number = isinstance(default, int | float) and not isinstance(default, bool)
    if isinstance(default, bool) and isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, str) or not number:
        return value
    try:
        return (
            float(value) if isinstance(default, float) or not value.lstrip("+-").isdecimal() else int(value)
        )
    except ValueError:
        raise ConfigError(f"{source}: {name}: expected a number, got {value!r}") from None


def _yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
