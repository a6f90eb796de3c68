"""A data set as TRL takes it, to the rows that a run or a job reads. Every mistake names its place."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from orchestrator.trl.known import Trainer
from services.common.comparisons.fields import Malformed
from services.common.comparisons.pairs import parse_pair
from services.common.comparisons.sources import PREFIX, rows
from services.common.errors import ConfigError, InvalidInput

Row = Mapping[str, Any]
TRL_ROW = "trl_row"
"""The column in which a reward function's row travels whole; services/reward/rewards/trl_call.py reads it."""
_OURS = ("prompt", "prompt_id", "split", TRL_ROW)


@dataclass(frozen=True, slots=True)
class Written:
    """How many rows a file got, and the columns of the first."""

    rows: int
    columns: tuple[str, ...]


def source_of(config: Mapping[str, Any], data: str) -> str:
    """What --data says, else the config's dataset_name, config and split."""
    if data:
        return data
    name = config.get("dataset_name")
    if not name:
        raise ConfigError("expected a data set: --data FILE or datasets:NAME, or dataset_name in the config")
    options = {"split": config.get("dataset_train_split") or "train", "name": config.get("dataset_config")}
    query = "&".join(f"{key}={quote(str(value))}" for key, value in options.items() if value)
    return f"{PREFIX}{name}?{query}"


def write_rows(trainer: Trainer, source: str, path: Path) -> Written:
    """Write the rows that the trainer's run or job reads. Raises InvalidInput with the place of a row."""
    convert = _CONVERT[trainer]
    count = 0
    columns: tuple[str, ...] = ()
    with path.open("w", encoding="utf-8") as file:
        for place, row in _read(source):
            try:
                line = json.dumps(convert(row), ensure_ascii=False)
            except InvalidInput as error:
                raise InvalidInput(f"{place}: {error}") from None
            except TypeError as error:
                raise InvalidInput(f"{place}: a column is no JSON: {error}") from None
            file.write(line + "\n")
            count += 1
            columns = columns or tuple(row)
    if not count:
        raise InvalidInput(f"{source}: there is no row in it")
    return Written(count, columns)


def _read(source: str) -> Iterator[tuple[str, Row]]:
    for place, row in rows(source):
        if isinstance(row, Malformed):
            raise InvalidInput(f"{place}: {row.field}: {row.expected}")
        yield place, row


def _prompt(row: Row) -> dict[str, Any]:
    """The row for rewards is whole; text columns stand beside it for rules."""
    if not isinstance(row.get("prompt"), str | list):
        raise InvalidInput("prompt: expected text or messages")
    beside = {name: value for name, value in row.items() if isinstance(value, str) and name not in _OURS}
    return {"prompt": row["prompt"], **beside, TRL_ROW: dict(row)}


def _pair(row: Row) -> dict[str, Any]:
    """Explicit prompts as they are; a conversation's answers as text."""
    prompt = row.get("prompt")
    if isinstance(prompt, str) and all(isinstance(row.get(side), str) for side in ("chosen", "rejected")):
        return {"prompt": prompt, "chosen": row["chosen"], "rejected": row["rejected"]}
    messages, chosen, rejected = _conversations(row)
    return {"prompt": messages, "chosen": chosen, "rejected": rejected}


def _compared(row: Row) -> dict[str, Any]:
    """For a reward model: conversations alone, which both sides put through the chat template."""
    messages, chosen, rejected = _conversations(row)
    margin = {"margin": row["margin"]} if "margin" in row else {}
    return {"prompt": messages, "chosen": _said(chosen), "rejected": _said(rejected), **margin}


def _conversations(row: Row) -> tuple[list[dict[str, str]], str, str]:
    if any(isinstance(row.get(name), str) for name in ("prompt", "chosen", "rejected")):
        raise InvalidInput(
            "expected prompt, chosen and rejected as messages (for DPO also as text): "
            "what TRL reads as plain text would go through a chat template here"
        )
    try:
        messages, chosen, rejected = parse_pair(row)
    except Malformed as error:
        raise InvalidInput(f"{error.field}: {error.expected}") from None
    return [{"role": one.role, "content": one.content} for one in messages], chosen, rejected


def _demonstration(row: Row) -> dict[str, Any]:
    if not all(isinstance(row.get(name), list) for name in ("prompt", "completion")):
        raise InvalidInput(
            "expected prompt and completion as messages: TRL would learn text, and whole conversations, "
            "otherwise than trimtab sft does"
        )
    return {"prompt": row["prompt"], "completion": row["completion"]}


def _said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


_CONVERT: Mapping[Trainer, Callable[[Row], dict[str, Any]]] = {
    "grpo": _prompt,
    "rloo": _prompt,
    "ppo": _prompt,
    "dpo": _pair,
    "reward": _compared,
    "sft": _demonstration,
}
