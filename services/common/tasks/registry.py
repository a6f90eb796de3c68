"""Owns which tasks there are; others come by entry points of group trimtab.tasks, each naming a Task."""

from __future__ import annotations

import importlib.metadata
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from services.common.comparisons.fields import Malformed
from services.common.comparisons.sources import PREFIX, rows
from services.common.errors import InvalidInput
from services.common.jsonl import json_rows
from services.common.tasks import (
    dates,
    dialogue,
    increasing_numbers,
    prompts,
    sentiment,
    summarisation,
    walks,
)
from services.common.tasks.base import Split, Task, TaskRow

GROUP = "trimtab.tasks"
TASK_PREFIX = "task:"
_MODULES = (sentiment, summarisation, dialogue, increasing_numbers, dates, walks, prompts)
_TASKS: dict[str, Task] = {module.TASK.name: module.TASK for module in _MODULES}


def task_names() -> list[str]:
    """Built in, then of entry points."""
    own = list(_TASKS)
    return own + sorted({point.name for point in importlib.metadata.entry_points(group=GROUP)} - set(own))


def find_task(name: str) -> Task:
    """The task of a name. Raises InvalidInput, in one line."""
    if name in _TASKS:
        return _TASKS[name]
    points = list(importlib.metadata.entry_points(group=GROUP, name=name))
    if len(points) != 1:
        several = f"{len(points)} distributions have" if points else "there is no task"
        raise InvalidInput(f"{several} {name!r} (entry points: {GROUP}); expected {', '.join(task_names())}")
    task = points[0].load()
    if not isinstance(task, Task):
        raise InvalidInput(f"entry point {name} of group {GROUP}: expected a Task, got {type(task).__name__}")
    return task


def task_rows(
    task: Task, *, data: str = "", split: Split = "test", limit: int | None = None, seed: int = 0
) -> list[TaskRow]:
    """The task's prompts: of a source where one is given (its own split is the source's), else its own.

    limit: at most so many. Raises NotFound, ConfigError, or InvalidInput with the place of a row that cannot be read.
    """
    if data:
        found: Iterator[TaskRow] = (row for _, row in _read(task, data))
    elif task.own is None:
        raise InvalidInput(
            f"task {task.name} has no prompts of its own: expected a source, --data FILE or datasets:NAME"
        )
    else:
        found = task.own(split, seed)
    made = list(itertools.islice(found, limit))
    if not made:
        raise InvalidInput(f"task {task.name}: there is no prompt in {data or task.own_data} ({split})")
    return made


def prompt_rows(source: str, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """("place", row) of a run's data.prompts: JSON lines, task:<name>, or datasets:<name>, whose splits are its own."""
    if source.startswith(TASK_PREFIX):
        task = find_task(source.removeprefix(TASK_PREFIX))
        wanted: Split = "test" if split == "test" else "train"
        for number, row in enumerate(task_rows(task, split=wanted), start=1):
            yield f"{source}:{number}", row.as_json()
    elif source.startswith(PREFIX):
        for number, (_, made) in enumerate(_read(prompts.TASK, source), start=1):
            yield f"{source}:{number}", made.as_json()
    else:
        yield from json_rows(Path(source))


def _read(task: Task, source: str) -> Iterator[tuple[str, TaskRow]]:
    for place, row in rows(source):
        if isinstance(row, Malformed):
            raise InvalidInput(f"{place}: {row.field}: {row.expected}")
        try:
            made = task.read(row)
        except InvalidInput as error:
            raise InvalidInput(f"{place}: {error}") from None
        if made is not None:
            yield place, made
