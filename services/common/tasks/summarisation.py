"""Summarisation: say in one sentence what a text reports.

Source: arXiv 2009.01325 on TL;DR. Without a data set the texts are generated: a report of one event with what surrounds
it, whose summary is known because the report was made from it. They show whether a model sums up at all; how well it
does on people's texts is told by people's texts.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

from services.common.tasks.base import Row, Split, Task, TaskRow, split_of
from services.common.tasks.fields import prompt_row, text_of

END = "\n\nTL;DR:"
ROWS = 2000
_DATASET = "datasets:trl-lib/tldr?split=test"
_WHO = ("The city council", "A bus company", "The old bakery", "A group of pupils", "The harbour museum",
        "A local farmer", "The fire brigade", "A young engineer", "The football club", "The library")  # fmt: skip
_DID = ("opened a new bridge", "planted two hundred trees", "closed its doors for the winter", "won a national prize",
        "lost part of its roof in a storm", "bought three electric vans", "found a letter from 1901",
        "started a course for beginners", "cut its prices by a tenth", "raised money for the hospital")  # fmt: skip
_WHERE = ("Ashford", "Kirkby", "Norwell", "Lindale", "Harwick", "Elmsworth", "Stonebeck", "Marlow Bay")
_WHEN = ("On Monday", "Last week", "On Friday evening", "At the weekend", "Yesterday", "On the first of May")
_AROUND = (
    "About forty people had come to watch.",
    "The weather was mild, with a little wind from the west.",
    "Nobody had expected it so early in the year.",
    "Preparations had taken almost six months.",
    "A spokeswoman said that more would follow soon.",
    "Neighbours brought coffee and cake.",
    "The costs were not made public.",
    "Something of the kind had last happened ten years ago.",
    "Photographs will be shown in the town hall.",
    "The road was closed for an hour.",
)


def report(draw: random.Random) -> TaskRow:
    """One generated report."""
    who, did, where = draw.choice(_WHO), draw.choice(_DID), draw.choice(_WHERE)
    around = draw.sample(_AROUND, 4)
    event = f"{draw.choice(_WHEN)}, {who[0].lower()}{who[1:]} in {where} {did}."
    at = draw.randint(0, 2)  # not always at the head: its first sentence would then be a perfect summary
    sentences = [*around[:at], event, *around[at:]]
    return TaskRow(prompt=" ".join(sentences) + END, references=(f"{who} in {where} {did}.",))


def read(row: Row) -> TaskRow:
    """TL;DR's prompt and completion, CNN/DailyMail's article and highlights, XSum's document and summary."""
    for body, summary in (("article", "highlights"), ("document", "summary")):
        if body in row:
            return TaskRow(prompt=text_of(row, body).rstrip() + END, references=(text_of(row, summary),))
    return prompt_row(row)


def _own(split: Split, seed: int) -> Iterator[TaskRow]:
    draw = random.Random(f"summarisation {seed}")
    reports = (report(draw) for _ in itertools.count())
    yield from itertools.islice((one for one in reports if split_of(one.references[0]) == split), ROWS)


TASK = Task(
    name="summarisation",
    about="sum up a report in one sentence",
    own=_own,
    own_data="generated",
    read=read,
    dataset=_DATASET,
    reward="rule:rouge:variant=L,column=reference",
    metrics=("rouge1", "rouge2", "rougeL", "bleu", "chrf", "meteor-stem", "length"),
    max_new_tokens=48,
)
