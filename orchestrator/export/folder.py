"""Copies a run's model to a folder that anything in the Hugging Face world loads, and writes its card beside it.

Knows which of a run's folders, or of its rounds', holds the newest whole model; what the card says is card.py's.
"""

from __future__ import annotations

import json
import shutil
import tomllib
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from orchestrator.demo.run_folder import read_run
from orchestrator.export.card import Origin, card
from orchestrator.iterate.places import model_of, round_folder, round_spec
from orchestrator.iterate.state import rounds_of
from orchestrator.local.layout import RunLayout
from services.common.errors import AlreadyExists, Corrupted, NotFound, ServiceError, UserError
from services.common.folders import check_place, written
from services.common.spec.run import RunSpec

CARD_FILE = "README.md"


def export(layout: RunLayout, out: Path) -> Path:
    """Write `out`, whole or not at all; its path.

    Raises NotFound where the run has no model yet, AlreadyExists for a folder that is in use, InvalidInput for a
    mount point, Corrupted for a run.toml that is none, UserError for rounds of demonstrations.
    """
    check_place(out.resolve())
    made = _made(layout)
    source, origin = _source(made)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise AlreadyExists(f"{out} is there already: name another folder")
    spec, reference = _spec(layout, made)
    # A round has no run.toml of its own, where the alarms' bounds would be read.
    text = card(spec, replace(read_run(made.root), watch=spec.watch), origin, reference=reference)
    try:
        with written(out) as aside:
            shutil.copytree(source, aside, dirs_exist_ok=True)
            (aside / CARD_FILE).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ServiceError(f"{out} cannot be written: {error.strerror or error}") from error
    return out


def _made(layout: RunLayout) -> RunLayout:
    """Whose model it is: the run's own, or that of the last of its rounds that has trained."""
    rounds = rounds_of(layout.root)
    if rounds is None:
        return layout
    number = max((one.number for one in rounds.rounds if "trained" in one.done), default=0)
    if not number:
        raise NotFound(f"{layout.root} has no model yet: no round has trained one")
    folder = round_folder(layout.root, number)
    if rounds.made_with.get("iterate.learn") == "demonstrations":
        raise UserError(f"{folder / 'model'} is a plain folder already: trimtab sft wrote it, without a card")
    return RunLayout(folder)


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


def _spec(layout: RunLayout, made: RunLayout) -> tuple[RunSpec, str]:
    """What the model was trained with, of a round with its own beginning and reward model; and the model that KL was
    held to, empty where training began from that one."""
    spec, rounds = _run_spec(layout), rounds_of(layout.root)
    if rounds is None:
        return spec, ""
    number = int(made.root.name)
    reference = model_of(layout.root, spec, 0 if rounds.reference == "initial" else number - 1)
    spec = round_spec(layout.root, spec, number, rounds.policy_init)
    return spec, "" if reference == spec.model.path else reference


def _run_spec(layout: RunLayout) -> RunSpec:
    try:
        return RunSpec.model_validate(tomllib.loads(layout.run_file.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise NotFound(f"{layout.run_file} is not there: it says what the model was trained with") from error
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise Corrupted(f"{layout.run_file}: {str(error).splitlines()[0]}") from error
