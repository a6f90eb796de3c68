"""`trimtab from-trl`: reads, writes, tells, and where asked for runs."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from orchestrator.local.toml import to_toml
from orchestrator.trl.convert import JOBS, WITH_REWARDS, convert
from orchestrator.trl.data import source_of, write_rows
from orchestrator.trl.draft import Draft
from orchestrator.trl.known import TRAINERS, Trainer, trainer_of
from orchestrator.trl.reading import checked, read_config
from orchestrator.trl.rewards import reward_source
from orchestrator.trl.shared import Around
from services.common.comparisons.sources import PREFIX
from services.common.errors import AlreadyExists, ConfigError, InvalidInput
from services.common.folders import check_place, files_written
from services.common.spec.load import load_toml
from services.common.spec.run import RunSpec

RUN_FILE = "run.toml"
ROWS_FILE = "data.jsonl"
COMMAND_FILE = "command.txt"
REPORT_FILE = "from-trl.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The command's flags."""

    config: Path
    out: Path
    trainer: str = ""
    data: str = ""
    model: str = ""
    rewards: Sequence[str] = ()


def write(wanted: Wanted) -> Draft:
    """Write the run's file (or the job's command), its rows and a report into the folder: all, or none of them.

    Raises the error tree.
    """
    raw = read_config(wanted.config)
    trainer = _trainer(wanted.trainer, raw)
    given = checked(trainer, raw, str(wanted.config))
    source = source_of(given, wanted.data)
    _check_out(wanted.out, source)
    with files_written(wanted.out) as aside:
        draft = _written(wanted, trainer, given, source, aside)
    (wanted.out / (RUN_FILE if trainer in JOBS else COMMAND_FILE)).unlink(
        missing_ok=True
    )  # of another trainer
    return draft


def _written(wanted: Wanted, trainer: Trainer, given: Mapping[str, Any], source: str, aside: Path) -> Draft:
    """All files, in a folder that becomes the one that is wanted."""
    written = write_rows(trainer, source, aside / ROWS_FILE)
    around = Around(
        rows=written.rows,
        prompts_file=str(wanted.out / ROWS_FILE),
        model=wanted.model,
        model_type=_model_type(wanted.model or given.get("model_name_or_path")),
        rewards=_rewards(trainer, given, wanted.rewards, written.columns),
    )
    draft = convert(trainer, given, around)
    if trainer in JOBS:
        command = shlex.join(["trimtab", *draft.arguments])
        (aside / COMMAND_FILE).write_text(command + "\n", encoding="utf-8")
    else:
        _write_run(draft, aside / RUN_FILE)
    report = {"trainer": trainer, "fields": [asdict(note) for note in draft.notes]}
    (aside / REPORT_FILE).write_text(json.dumps(report, indent=1, default=str) + "\n", encoding="utf-8")
    return draft


def _model_type(model: Any) -> str:
    """What the configuration in a model's folder says; empty for a hub's id, or a folder without one."""
    file = Path(str(model or "")) / "config.json"
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    return str(told.get("model_type", "")) if isinstance(told, dict) else ""


def _write_run(draft: Draft, path: Path) -> None:
    """What TRL takes and a run does not is told here, by field."""
    path.write_text(to_toml(draft.tables), encoding="utf-8")
    try:
        load_toml(path, RunSpec)
    except ConfigError as error:
        raise ConfigError(str(error).replace(f"{path.parent}/", "")) from None


def _check_out(out: Path, source: str) -> None:
    """Nobody's files are lost: a folder with something in it must be one of ours, and what is read none of its files.

    Raises AlreadyExists or InvalidInput.
    """
    check_place(out.resolve())
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or (out / REPORT_FILE).is_file())):
        raise AlreadyExists(f"{out} is there already and not from-trl's: name another folder")
    if not source.startswith(PREFIX) and Path(source).resolve() == (out / ROWS_FILE).resolve():
        raise InvalidInput(f"--data {source}: its rows would be written there: name another folder as --out")


def tell(draft: Draft, out: Path, console: Console) -> None:
    """A table of what became of the fields that differ from TRL's defaults."""
    told = draft.differing()
    table = Table(
        title=f"{draft.trainer}: {len(draft.given)} fields, {len(draft.given) - len(told)} at TRL's defaults"
    )
    for column in ("field", "value", "", "what"):
        table.add_column(column, no_wrap=column == "field")
    for note in told:
        table.add_row(note.field, _short(note.value), note.fate, note.what)
    console.print(table)
    done = COMMAND_FILE if draft.trainer in JOBS else RUN_FILE
    console.print(f"{out / done}; every field: {out / REPORT_FILE}", soft_wrap=True, highlight=False)


def _trainer(name: str, given: dict[str, Any]) -> Trainer:
    for trainer in TRAINERS:
        if trainer == name:
            return trainer
    if name:
        raise InvalidInput(f"--trainer {name}: expected one of {', '.join(TRAINERS)}")
    return trainer_of(given)


def _rewards(
    trainer: Trainer, given: Mapping[str, Any], flags: Sequence[str], columns: Sequence[str]
) -> tuple[str, ...]:
    if flags and trainer not in WITH_REWARDS:
        raise ConfigError(f"--reward-func: {trainer} has no rewards")
    named = flags or [
        *([given["reward_model_name_or_path"]] if given.get("reward_model_name_or_path") else []),
        *_names(given.get("reward_funcs")),
    ]
    return tuple(reward_source(str(name), columns) for name in named) if trainer in WITH_REWARDS else ()


def _names(functions: Any) -> list[Any]:
    """A list, or one name alone."""
    if not isinstance(functions, list | str | None):
        raise ConfigError(f"reward_funcs = {functions}: expected a list of names")
    return [functions] if isinstance(functions, str) else functions or []


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 40 else text[:39] + "…"
