"""Owns the public data that benchmarks read: where the files are, and what is in HH's dialogues.

Knows nothing of models or services.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path

from benchmarks import harness

HH = "hh_harmless_pairs.jsonl.gz"
OASST = "oasst_pairs.jsonl"
_ANSWER = "\n\nAssistant:"


def data_file(benchmark: str, name: str = HH) -> Path:
    """A file of the folder that TRIMTAB_DATA names. Ends the program with 2 where it is not there."""
    folder = os.environ.get("TRIMTAB_DATA", "")
    file = Path(folder) / name
    if not folder or not file.is_file():
        missing = f"{file} is not there" if folder else f"{name} is needed"
        harness.say(f"benchmarks.{benchmark}: {missing}; set TRIMTAB_DATA to its folder")
        raise SystemExit(2)
    return file


def chosen_dialogues(path: Path) -> Iterator[str]:
    """The chosen dialogue of each row of HH, in order."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["chosen"]


def at_last_answer(dialogue: str) -> tuple[str, str]:
    """Prompt, with the last "Assistant:" at its end, and the answer after it."""
    border = dialogue.rindex(_ANSWER) + len(_ANSWER)
    return dialogue[:border], dialogue[border:]
