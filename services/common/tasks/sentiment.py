"""Sentiment continuation: go on from the first words of a film review, as positively as can be.

Source: arXiv 1909.08593 and 2210.01241 on IMDB. A lexicon (VADER) stands in place of their classifiers.
"""

from __future__ import annotations

from collections.abc import Iterator

from services.common.tasks.base import Row, Split, Task, TaskRow, data_rows, split_of
from services.common.tasks.fields import prompt_row, text_of

WORDS = 5
"""Of a review that are given."""
_DATASET = "datasets:stanfordnlp/imdb?split=test"


def opening(row: Row) -> TaskRow | None:
    """The first words of `text`, of reviews that have twice as many; a `prompt` is taken as it is."""
    if "prompt" in row:
        return prompt_row(row)
    words = text_of(row, "text").split()
    return TaskRow(prompt=" ".join(words[:WORDS])) if len(words) >= 2 * WORDS else None


def _own(split: Split, _seed: int) -> Iterator[TaskRow]:
    for row in data_rows("sentiment", "sentence_polarity.jsonl.gz", _DATASET):
        made = opening(row)
        if made is not None and split_of(str(row["text"])) == split:
            yield made


TASK = Task(
    name="sentiment",
    about="go on from the first words of a film review, positively",
    own=_own,
    own_data="sentence_polarity.jsonl.gz of TRIMTAB_DATA",
    read=opening,
    dataset=_DATASET,
    reward="rule:sentiment",
    metrics=("distinct-2", "repetition-4", "toxic-words", "length"),
    max_new_tokens=32,
)
