"""Prompts of any source, with whatever references its rows have. No reward of its own."""

from __future__ import annotations

from services.common.tasks.base import Task
from services.common.tasks.fields import prompt_row

TASK = Task(
    name="prompts",
    about="prompts of any file or data set, with its references",
    own=None,
    own_data="none: a source must be given",
    read=prompt_row,
    dataset="any with a column prompt, messages, question or instruction, or pairs",
    reward="",
    metrics=("length", "distinct-2", "repetition-4", "toxic-words", "sentiment"),
    max_new_tokens=64,
)
