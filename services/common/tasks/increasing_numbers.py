"""Increasing numbers: write numbers, each larger than the one before.

After RL4LMs' toy task (arXiv 2210.01241). Of a completion's words:

    score = k / max(words, 10),  k: numbers from the first on, up to the first that is not larger than the one before

so that words between and numbers that fall cost, and ten numbers are enough.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from typing import Any

from services.common.tasks.base import Split, Task, TaskRow, split_of
from services.common.tasks.fields import prompt_row

ENOUGH = 10
ROWS = 1000
_BEGIN = ("Count on: {}", "Numbers, each larger than the last: {}", "{} and then", "The list begins with {}",
          "After {} come the numbers")  # fmt: skip


def increasing(text: str) -> float:
    """The score of one completion, in [0, 1]."""
    words = text.replace(",", " ").split()
    numbers = [value for word in words if (value := _number(word)) is not None]
    count = 0
    for at, value in enumerate(numbers):
        if at and value <= numbers[at - 1]:
            break
        count += 1
    return count / max(len(words), ENOUGH)


def score(completions: Sequence[str], **_: Any) -> list[float]:
    """A reward function: function:services.common.tasks.increasing_numbers:score."""
    return [increasing(completion) for completion in completions]


def _number(word: str) -> float | None:
    try:
        value = float(word.rstrip(".;:"))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _own(split: Split, seed: int) -> Iterator[TaskRow]:
    draw = random.Random(f"increasing numbers {seed}")
    prompts = {draw.choice(_BEGIN).format(draw.randint(0, 999)): None for _ in range(2 * ROWS)}
    for prompt in list(prompts)[:ROWS]:
        if split_of(prompt) == split:
            yield TaskRow(prompt=prompt)


TASK = Task(
    name="increasing-numbers",
    about="write numbers, each larger than the one before",
    own=_own,
    own_data="generated",
    read=prompt_row,
    dataset="any with a column prompt",
    reward="function:services.common.tasks.increasing_numbers:score",
    metrics=("length", "repetition-2"),
    max_new_tokens=32,
)
