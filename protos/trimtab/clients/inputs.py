"""Prompts as callers have them (text, chat messages, token ids) to the contract's messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trimtab.clients.tensors import ids_tensor
from trimtab.common.v1 import common_pb2 as common
from trimtab.rollout.v1 import rollout_pb2 as rollout

# Text, or messages ({"role": …, "content": …}), or token ids, or the contract's own message.
PromptLike = str | Sequence[Mapping[str, str]] | Sequence[int] | rollout.Prompt


def chat_messages(messages: Iterable[Mapping[str, str]]) -> list[common.ChatMessage]:
    """ChatMessage messages from dictionaries with role and content."""
    return [common.ChatMessage(role=each["role"], content=each["content"]) for each in messages]


def prompt_message(prompt: PromptLike) -> rollout.Prompt:
    """A Prompt from text, messages, ids, or a Prompt as it is."""
    if isinstance(prompt, rollout.Prompt):
        return prompt
    if isinstance(prompt, str):
        return rollout.Prompt(text=prompt)
    values: list[Any] = list(prompt)
    if values and isinstance(values[0], Mapping):
        return rollout.Prompt(messages=chat_messages(values))
    return rollout.Prompt(token_ids=ids_tensor(values))
