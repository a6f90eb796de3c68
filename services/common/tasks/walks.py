"""Random walks as a task; graph, data and measure stand in randomwalks.py."""

from __future__ import annotations

from collections.abc import Iterator

from services.common.tasks.base import Split, Task, TaskRow
from services.common.tasks.fields import prompt_row
from services.common.tasks.randomwalks import random_walks


def _own(_split: Split, _seed: int) -> Iterator[TaskRow]:
    """The twenty starts of the graph: both splits, as what is learned is this one graph."""
    for prompt in random_walks().prompts:
        yield TaskRow(prompt=prompt)


TASK = Task(
    name="randomwalks",
    about="the shortest way through a graph, letter by letter",
    own=_own,
    own_data="generated",
    read=prompt_row,
    dataset="any with a column prompt, and graph_seed for another graph",
    reward="function:services.common.tasks.randomwalks:score",
    metrics=("length",),
    max_new_tokens=9,
)
