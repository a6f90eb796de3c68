"""The arguments that TRL's GRPO and RLOO trainers call a reward function with. Only the standard library.

    prompts          as the data set has them: text, or lists of messages
    completions      text; for a prompt of messages a list with one message of the assistant
    completion_ids   the policy's own tokens, without padding
    every other column of the data set, with its own type
    log_extra, log_metric   taken and forgotten
    trainer_state, environments   not given: who asks for them is told that they are missing

A data set's row comes whole in the column `trl_row`, as JSON, an object with a prompt (`row_problem`); a row without it
gives its columns as text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

ROW_COLUMN = "trl_row"
_NOT_COLUMNS = ("prompt", "completion", "completion_ids")


def trl_arguments(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """By keyword, each a list with one element for each row; a column that a row lacks is None there."""
    whole = [_row(row) for row in rows]
    names = dict.fromkeys(name for row in whole for name in row if name not in _NOT_COLUMNS)
    prompts = [row["prompt"] for row in whole]
    return {
        **{name: [row.get(name) for row in whole] for name in names},
        "prompts": prompts,
        "completions": [
            row["completion"] if isinstance(prompt, str) else [_said(row["completion"])]
            for prompt, row in zip(prompts, rows, strict=True)
        ],
        "completion_ids": [row.get("ids") for row in rows],
        "log_extra": _forget,
        "log_metric": _forget,
    }


def row_problem(columns: Mapping[str, str]) -> str:
    """Why `trl_row` cannot be read; empty: it can, or is not there."""
    packed = columns.get(ROW_COLUMN)
    if packed is None:
        return ""
    try:
        row = json.loads(packed)
    except (ValueError, RecursionError) as error:
        return f"no JSON ({error})"
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str | list):
        return "no JSON object with a prompt"
    return ""


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    columns = dict(row["columns"])
    packed = columns.pop(ROW_COLUMN, None)
    return {"prompt": row["prompt"], **columns} if packed is None else json.loads(packed)


def _said(completion: str) -> dict[str, str]:
    return {"role": "assistant", "content": completion}


def _forget(*_: Any) -> None:
    """Where TRL logs."""
