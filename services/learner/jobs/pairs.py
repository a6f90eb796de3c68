"""Reads comparisons in TRL's schema: JSONL with `prompt`, `chosen`, `rejected` as text or as messages.

An implicit prompt (chosen and rejected are whole conversations) is the part that both share. Every mistake
names file, line and field.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from services.common.errors import InvalidInput
from services.common.jsonl import json_rows
from services.learner.jobs.comparisons import Messages, Pair


def load_pairs(path: Path) -> list[Pair]:
    """All pairs of a file. Raises NotFound, or InvalidInput for a malformed row or an empty file."""
    pairs = [_pair(place, row) for place, row in json_rows(path)]
    if not pairs:
        raise InvalidInput(f"{path}: there is no comparison in it")
    return pairs


def _pair(place: str, row: dict[str, Any]) -> Pair:
    chosen, rejected = (_messages(place, name, row.get(name)) for name in ("chosen", "rejected"))
    if "prompt" in row:
        prompt = _messages(place, "prompt", row["prompt"], role="user")
    else:
        prompt, chosen, rejected = _shared(chosen, rejected)
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        if len(side) != 1:
            raise InvalidInput(
                f"{place}: {name}: expected one answer after the prompt, got {len(side)} messages"
            )
    if not prompt:
        raise InvalidInput(f"{place}: prompt: expected one; chosen and rejected share no beginning either")
    group = str(row.get("prompt_id") or row.get("tree") or json.dumps(prompt))
    return Pair(messages=prompt, chosen=chosen[0][1], rejected=rejected[0][1], group=group)


def _messages(place: str, name: str, value: Any, role: str = "assistant") -> Messages:
    if isinstance(value, str):
        return ((role, value),)
    fine = isinstance(value, list) and all(
        isinstance(one, dict) and isinstance(one.get("role"), str) and isinstance(one.get("content"), str)
        for one in value
    )
    if not fine:
        raise InvalidInput(f"{place}: {name}: expected text or a list of {{role, content}}")
    return tuple((one["role"], one["content"]) for one in value)


def _shared(chosen: Messages, rejected: Messages) -> tuple[Messages, Messages, Messages]:
    """(shared beginning, rest of chosen, rest of rejected)."""
    count = 0
    while count < min(len(chosen), len(rejected)) - 1 and chosen[count] == rejected[count]:
        count += 1
    return chosen[:count], chosen[count:], rejected[count:]
