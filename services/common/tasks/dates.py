"""Dates: write sentences that hold a date of the calendar.

After RL4LMs' test reward for sentences with dates (arXiv 2210.01241):

    score = sentences with a date / sentences

A date is 05/11/2026 (day first), 2026-11-05, 5 November 2026 or November 5, 2026, and must exist.
"""

from __future__ import annotations

import datetime as dt
import random
import re
from collections.abc import Iterator, Sequence
from typing import Any

from services.common.tasks.base import Split, Task, TaskRow, split_of
from services.common.tasks.fields import prompt_row

ROWS = 1000
_MONTHS = ("january", "february", "march", "april", "may", "june", "july", "august", "september", "october",
           "november", "december")  # fmt: skip
_NAMES = "|".join(_MONTHS)
_FORMS = (
    re.compile(r"(?<!\d)(?P<day>\d{1,2})[/.](?P<month>\d{1,2})[/.](?P<year>\d{4})(?!\d)"),
    re.compile(r"(?<!\d)(?P<year>\d{4})-(?P<month>\d{2})-(?P<day>\d{2})(?!\d)"),
    re.compile(
        rf"(?<!\d)(?P<day>\d{{1,2}})(?:st|nd|rd|th)? (?:of )?(?P<month>{_NAMES}),? (?P<year>\d{{4}})(?!\d)"
    ),
    re.compile(rf"\b(?P<month>{_NAMES}) (?P<day>\d{{1,2}})(?:st|nd|rd|th)?,? (?P<year>\d{{4}})(?!\d)"),
)
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
_WHAT = ("letter", "contract", "photograph", "ticket", "map", "diary", "concert", "treaty", "bridge", "match")
_BEGIN = ("The {} is from", "The {} was made on", "We found the {} of", "Nobody remembers the {} of",
          "In the archive lies a {} that was dated", "The last {} took place on")  # fmt: skip
_OF = ("the museum", "the harbour", "her uncle", "the school", "the first mayor", "the club", "two sisters",
       "the station", "the old mill", "a friend")  # fmt: skip


def has_date(text: str) -> bool:
    """Whether a date of the calendar stands in it."""
    lower = text.lower()
    return any(_exists(found) for form in _FORMS for found in form.finditer(lower))


def dated(text: str) -> float:
    """Share of sentences with a date, in [0, 1]; 0 for an empty text."""
    sentences = [part for part in _SENTENCE.split(text) if part.strip()]
    return sum(map(has_date, sentences)) / len(sentences) if sentences else 0.0


def score(completions: Sequence[str], **_: Any) -> list[float]:
    """A reward function: function:services.common.tasks.dates:score."""
    return [dated(completion) for completion in completions]


def _exists(found: re.Match[str]) -> bool:
    month = found["month"]
    number = int(month) if month.isdecimal() else _MONTHS.index(month) + 1
    try:
        dt.date(int(found["year"]), number, int(found["day"]))
    except ValueError:
        return False
    return True


def _own(split: Split, seed: int) -> Iterator[TaskRow]:
    draw = random.Random(f"dates {seed}")
    prompts = {
        draw.choice(_BEGIN).format(f"{draw.choice(_WHAT)} of {draw.choice(_OF)}"): None
        for _ in range(4 * ROWS)
    }
    for prompt in list(prompts)[:ROWS]:
        if split_of(prompt) == split:
            yield TaskRow(prompt=prompt)


TASK = Task(
    name="dates",
    about="write sentences that hold a date of the calendar",
    own=_own,
    own_data="generated",
    read=prompt_row,
    dataset="any with a column prompt",
    reward="function:services.common.tasks.dates:score",
    metrics=("length", "distinct-2", "repetition-4"),
    max_new_tokens=32,
)
