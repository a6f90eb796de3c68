"""What a task is. Knows no task, no model."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from services.common.errors import NotFound

Split = Literal["train", "test"]
Row = Mapping[str, Any]
Messages = tuple[tuple[str, str], ...]
TEST_SHARE = 10
"""One row of so many is of the test split, by its own text: which one does not depend on the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRow:
    """One prompt, text or (role, content) pairs, and what answers to it are held against."""

    prompt: str | Messages
    references: tuple[str, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The prompt as plain text."""
        return self.prompt if isinstance(self.prompt, str) else "\n".join(said for _, said in self.prompt)

    @property
    def all_columns(self) -> dict[str, str]:
        """Columns as reward rules see them: the first reference is `reference`."""
        return {**({"reference": self.references[0]} if self.references else {}), **self.columns}

    def as_json(self) -> dict[str, Any]:
        """The row of a run's prompt file."""
        prompt: Any = self.prompt
        if not isinstance(prompt, str):
            prompt = [{"role": role, "content": content} for role, content in prompt]
        return {"prompt": prompt, **self.all_columns}


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Prompts, what is rewarded, what is measured.

    own: rows without any data set given, of a split and a seed. read: the row of a given source's row, None where it
    has nothing to ask; raises InvalidInput for one that cannot be read. own_data, dataset: for people, where each
    comes from. reward: as a run's reward_model (rule:… or function:…); empty: none.
    """

    name: str
    about: str
    own: Callable[[Split, int], Iterator[TaskRow]] | None
    own_data: str
    read: Callable[[Row], TaskRow | None]
    dataset: str
    reward: str
    metrics: tuple[str, ...]
    max_new_tokens: int


def split_of(text: str) -> Split:
    """By a digest of the text."""
    digest = hashlib.blake2b(text.encode(), digest_size=4).digest()
    return "test" if int.from_bytes(digest, "big") % TEST_SHARE == 0 else "train"


def data_rows(task: str, file: str, dataset: str) -> Iterator[Row]:
    """Rows of a JSON lines file (.gz too) of the folder TRIMTAB_DATA. NotFound says what else can be given."""
    folder = os.environ.get("TRIMTAB_DATA", "")
    path = Path(folder) / file
    if not folder or not path.is_file():
        raise NotFound(
            f"task {task}: expected {file} in the folder that TRIMTAB_DATA names; or give a source, "
            f"for example --data '{dataset}'"
        )
    with (
        gzip.open(path, "rt", encoding="utf-8")
        if path.suffix == ".gz"
        else path.open(encoding="utf-8") as lines
    ):
        for line in lines:
            if line.strip():
                yield json.loads(line)
