"""Owns the shapes in which a prompt and two answers are written: TRL's schemas and HH-RLHF's dialogues.

    explicit prompt, messages   {"prompt": [message…], "chosen": [message], "rejected": [message]}
    explicit prompt, text       {"prompt": "…", "chosen": "…", "rejected": "…"}
    implicit prompt, messages   {"chosen": [message…, answer], "rejected": [message…, answer]}
    implicit prompt, text       {"chosen": "\\n\\nHuman: …\\n\\nAssistant: …", "rejected": …}: HH-RLHF

A prompt column in text beside whole conversations (UltraFeedback) is read as an implicit prompt, and a prompt in
text that is itself a dialogue ("\\n\\nHuman: …\\n\\nAssistant:") as its messages.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from services.common.comparisons.fields import Malformed, messages, text
from services.common.comparisons.records import Message

Messages = tuple[Message, ...]

_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}
_SIDES = ("chosen", "rejected")


def parse_pair(row: Mapping[str, Any]) -> tuple[Messages, str, str]:
    """Prompt, chosen, rejected. Raises Malformed."""
    for side in _SIDES:
        if side not in row:
            raise Malformed(side, "expected text or a list of messages, there is none")
    prompt = row.get("prompt")
    if prompt is None or (isinstance(prompt, str) and isinstance(row["chosen"], list)):
        asked, chosen, rejected = _implicit(row)
        if prompt is not None and text(prompt, "prompt") != asked[-1].content:
            raise Malformed("prompt", "expected the text of the last message before the answers")
        return asked, chosen, rejected
    if isinstance(prompt, str):
        return parse_prompt(prompt), text(row["chosen"], "chosen"), text(row["rejected"], "rejected")
    return parse_prompt(prompt), _answer(row["chosen"], "chosen"), _answer(row["rejected"], "rejected")


def parse_prompt(value: object, field: str = "prompt") -> Messages:
    """A prompt as text, as a dialogue in text, or as messages."""
    if not isinstance(value, str):
        return messages(value, field)
    said = text(value, field)
    if said.startswith("\n\nHuman:") and said.rstrip().endswith("\n\nAssistant:"):
        return _turns(said, field)[:-1]
    return (Message("user", said),)


def _answer(value: object, field: str) -> str:
    said = messages(value, field)
    if len(said) != 1:
        raise Malformed(field, f"expected one message after the prompt, got {len(said)}")
    return said[0].content


def _implicit(row: Mapping[str, Any]) -> tuple[Messages, str, str]:
    chosen, rejected = (_conversation(row[side], side) for side in _SIDES)
    if chosen[:-1] != rejected[:-1]:
        raise Malformed("rejected", "expected the same messages as chosen but for the last one")
    return chosen[:-1], chosen[-1].content, rejected[-1].content


def _conversation(value: object, field: str) -> Messages:
    said = _turns(value, field) if isinstance(value, str) else messages(value, field)
    if len(said) < 2:
        raise Malformed(field, "expected a prompt and an answer, or a prompt column")
    if said[-1].role == "user":
        raise Malformed(field, "expected an answer as the last message, got one of the user")
    return said


def _turns(value: str, field: str) -> Messages:
    """The messages of an HH-RLHF dialogue."""
    before, *parts = _TURN.split(text(value, field))
    if before.strip() or not parts:
        raise Malformed(field, "expected a dialogue that begins with '\\n\\nHuman:', or a prompt column")
    turns = zip(parts[::2], parts[1::2], strict=True)
    return tuple(Message(_ROLES[speaker], said.strip()) for speaker, said in turns)
