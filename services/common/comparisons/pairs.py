"""Owns the shapes in which a prompt and two answers are written: TRL's schemas and HH-RLHF's dialogues.

    explicit prompt, messages   {"prompt": [message…], "chosen": [message], "rejected": [message]}
    explicit prompt, text       {"prompt": "…", "chosen": "…", "rejected": "…"}
    implicit prompt, messages   {"chosen": [message…, answer], "rejected": [message…, answer]}
    implicit prompt, text       {"chosen": "\\n\\nHuman: …\\n\\nAssistant: …", "rejected": …}: HH-RLHF
                                {"chosen": "The sky is blue.", "rejected": "The sky is green."}

Of two texts that are no dialogues the prompt is what they begin with alike, in whole words. Prompt and answers may be
written in either way each: a prompt in text beside whole conversations (UltraFeedback) repeats their last question,
and a prompt in text that is itself a dialogue ("\\n\\nHuman: …\\n\\nAssistant:") is read as its messages. Answers are
the assistant's.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import Any

from services.common.comparisons.fields import Malformed, messages, text
from services.common.comparisons.records import Message

Messages = tuple[Message, ...]

_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}
_SIDES = ("chosen", "rejected")
# Where a prompt stands under another name: what both answers begin with alike is not it.
_OTHER_NAMES = ("question", "instruction", "input", "query")
_TO_LAST_SPACE = re.compile(r"(.*\S)\s+", re.DOTALL)


def parse_pair(row: Mapping[str, Any]) -> tuple[Messages, str, str]:
    """Prompt, chosen, rejected. Raises Malformed."""
    for side in _SIDES:
        if side not in row:
            raise Malformed(side, "expected text or a list of messages, there is none")
    prompt = row.get("prompt")
    if prompt is None:
        return _implicit(row)
    if isinstance(prompt, str) and isinstance(row["chosen"], list) and len(row["chosen"]) > 1:
        asked, chosen, rejected = _implicit(row)
        if text(prompt, "prompt") != asked[-1].content:
            raise Malformed("prompt", "expected the text of the last message before the answers")
        return asked, chosen, rejected
    asked, dialogue = parse_prompt(prompt), isinstance(prompt, str) and is_dialogue(prompt)
    chosen, rejected = (parse_answer(row[side], side, of_dialogue=dialogue) for side in _SIDES)
    return asked, chosen, rejected


def parse_prompt(value: object, field: str = "prompt") -> Messages:
    """A prompt as text, as a dialogue in text, or as messages."""
    if not isinstance(value, str):
        return messages(value, field)
    said = text(value, field)
    return _turns(said, field)[:-1] if is_dialogue(said) else (Message("user", said),)


def parse_answer(value: object, field: str, *, of_dialogue: bool = False) -> str:
    """An answer as text or as one message. of_dialogue: without the blanks that part it from a dialogue in text."""
    if isinstance(value, str):
        return text(value, field).strip() if of_dialogue else text(value, field)
    said = messages(value, field)
    if len(said) != 1:
        raise Malformed(field, f"expected one message after the prompt, got {len(said)}")
    _require_answer(said[0], field)
    return said[0].content


def is_dialogue(prompt: str) -> bool:
    """Whether a prompt in text is an HH-RLHF dialogue up to its answer."""
    return prompt.startswith("\n\nHuman:") and prompt.rstrip().endswith("\n\nAssistant:")


def _has_turns(value: object) -> bool:
    return isinstance(value, str) and bool(_TURN.search(value) or value.lstrip().startswith("Human:"))


def _require_answer(message: Message, field: str) -> None:
    if message.role != "assistant":
        raise Malformed(
            field, f"expected an answer of the assistant at the end, got role {message.role[:20]}"
        )


def _implicit(row: Mapping[str, Any]) -> tuple[Messages, str, str]:
    sides = [row[side] for side in _SIDES]
    if not any(isinstance(side, list) or _has_turns(side) for side in sides):
        if other := next((name for name in _OTHER_NAMES if row.get(name)), ""):
            raise Malformed("prompt", f"expected the prompt under this name, there is {other}")
        return _begun_alike(*(text(row[side], side) for side in _SIDES))
    chosen, rejected = (_conversation(row[side], side) for side in _SIDES)
    if chosen[:-1] != rejected[:-1]:
        raise Malformed("rejected", "expected the same messages as chosen but for the last one")
    return chosen[:-1], chosen[-1].content, rejected[-1].content


def _begun_alike(chosen: str, rejected: str) -> tuple[Messages, str, str]:
    """As TRL parts them, but never within a word: "gre" is nobody's prompt for "green" and "grey"."""
    alike = itertools.takewhile(lambda both: both[0] == both[1], zip(chosen, rejected, strict=False))
    words = _TO_LAST_SPACE.match("".join(letter for letter, _ in alike))
    if words is None:
        raise Malformed("chosen", "expected a prompt column, a dialogue, or a text that begins as rejected")
    prompt, end = words[1], words.end()
    return (Message("user", prompt),), chosen[end:], rejected[end:]


def _conversation(value: object, field: str) -> Messages:
    said = _turns(value, field) if isinstance(value, str) else messages(value, field)
    if len(said) < 2:
        raise Malformed(field, "expected a prompt and an answer, or a prompt column")
    _require_answer(said[-1], field)
    return said


def _turns(value: str, field: str) -> Messages:
    """The messages of an HH-RLHF dialogue."""
    before, *parts = _TURN.split(text(value, field))
    if before.strip() or not parts:
        raise Malformed(field, "expected a dialogue that begins with '\\n\\nHuman:', or a prompt column")
    turns = zip(parts[::2], parts[1::2], strict=True)
    return tuple(Message(_ROLES[speaker], said.strip()) for speaker, said in turns)
