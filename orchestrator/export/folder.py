"""Copies a run's model to a folder that anything in the Hugging Face world loads, and writes its card beside it.

Knows which of a run's folders holds the newest whole model; what the card says is card.py's.
"""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path

from pydantic import ValidationError

from orchestrator.demo.run_folder import read_run
from orchestrator.export.card import Origin, card
from orchestrator.local.layout import RunLayout
from services.common.errors import AlreadyExists, Corrupted, NotFound, ServiceError
from services.common.folders import written
from services.common.spec.run import RunSpec

CARD_FILE = "README.md"


def export(layout: RunLayout, out: Path) -> Path:
    """Write `out`, whole or not at all; its path.

    Raises NotFound where the run has no model yet, AlreadyExists for a folder that is in use, Corrupted for a run.toml
    that is none.
    """
    source, origin = _source(layout)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise AlreadyExists(f"{out} is there already: name another folder")
    text = card(_spec(layout), read_run(layout.root), origin)
    try:
        with written(out) as aside:
            shutil.copytree(source, aside, dirs_exist_ok=True)
            (aside / CARD_FILE).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ServiceError(f"{out} cannot be written: {error.strerror or error}") from error
    return out


def _source(layout: RunLayout) -> tuple[Path, Origin]:
    """model/ of a run that is through; that of the newest checkpoint where there is none, or an older one."""
    whole, published = layout.root / "model", layout.root / "published.json"
    found = [path for path in layout.checkpoints.glob("step-*") if (path / "model" / "config.json").is_file()]
    newest = max(found, key=_step_of, default=None)
    if (whole / "config.json").is_file() and published.is_file():
        version = json.loads(published.read_text(encoding="utf-8"))
        origin = Origin(int(version["step"]), str(version["digest"]))
        if newest is None or origin.step >= _step_of(newest):
            return whole, origin
    if newest is None:
        raise NotFound(f"{layout.root} has no model yet: neither model/ nor a checkpoint")
    return newest / "model", Origin(_step_of(newest), "")


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def _spec(layout: RunLayout) -> RunSpec:
    try:
        return RunSpec.model_validate(tomllib.loads(layout.run_file.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise NotFound(f"{layout.run_file} is not there: it says what the model was trained with") from error
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise Corrupted(f"{layout.run_file}: {str(error).splitlines()[0]}") from error
