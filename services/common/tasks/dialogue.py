"""Dialogue: the next answer of an assistant, on HH-RLHF.

Source: arXiv 2204.05862. What people preferred is learned by a reward model (`trimtab reward-model`); the rule here
only keeps listed words out. References are the preferred answers: overlap with them is no measure of harmlessness.
"""

from __future__ import annotations

from collections.abc import Iterator

from services.common.errors import InvalidInput
from services.common.tasks.base import Split, Task, TaskRow, data_rows, split_of
from services.common.tasks.fields import compared_row, prompt_row

_DATASET = "datasets:Anthropic/hh-rlhf?split=test"


def _own(split: Split, _seed: int) -> Iterator[TaskRow]:
    for row in data_rows("dialogue", "hh_harmless_pairs.jsonl.gz", _DATASET):
        try:
            made = compared_row(row)
        except InvalidInput:  # the two dialogues part before their last message: what was asked is not known
            continue
        if split_of(made.text) == split:
            yield made


TASK = Task(
    name="dialogue",
    about="the assistant's next answer in a conversation (HH)",
    own=_own,
    own_data="hh_harmless_pairs.jsonl.gz of TRIMTAB_DATA",
    read=prompt_row,
    dataset=_DATASET,
    reward="rule:toxic_words",
    metrics=("toxic-words", "sentiment", "rougeL", "chrf", "distinct-2", "repetition-4", "length"),
    max_new_tokens=64,
)
