"""The demo's own prompts: how many, how varied, and that nothing held out was trained on."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import orchestrator.demo

PROMPTS = Path(orchestrator.demo.__file__).parent / "prompts.jsonl"


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in PROMPTS.read_text(encoding="utf-8").splitlines()]


def _text(row: dict[str, Any]) -> str:
    return str(row["prompt"][0]["content"])


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z']+", text.lower()))


def test_there_are_440_training_and_120_held_out_prompts(rows: list[dict[str, Any]]) -> None:
    """The splits have the sizes that the demo's sampling and evaluation count on."""
    assert Counter(row["split"] for row in rows) == {"train": 440, "held_out": 120}


def test_every_row_is_one_user_turn_with_a_running_id(rows: list[dict[str, Any]]) -> None:
    """Every line has the same four fields, one user message and a unique id."""
    for row in rows:
        assert set(row) == {"prompt_id", "prompt", "split", "topic"}
        assert [set(message) for message in row["prompt"]] == [{"role", "content"}]
        assert row["prompt"][0]["role"] == "user"
    assert [row["prompt_id"] for row in rows] == [f"p{number:04d}" for number in range(1, 561)]


def test_prompts_are_short_and_tidy(rows: list[dict[str, Any]]) -> None:
    """A prompt has 5 to 25 words and no stray spaces."""
    for text in map(_text, rows):
        assert 5 <= len(text.split()) <= 25, text
        assert text == " ".join(text.split()), text


def test_no_two_prompts_are_alike(rows: list[dict[str, Any]]) -> None:
    """No pair, within or across the splits, shares more than 6 in 10 of its words."""
    words = [(_text(row), _words(_text(row))) for row in rows]
    alike = [
        (one, other)
        for (one, a), (other, b) in itertools.combinations(words, 2)
        if len(a & b) > 0.6 * len(a | b)
    ]
    assert alike == []


def test_held_out_prompts_come_from_the_trained_topics(rows: list[dict[str, Any]]) -> None:
    """Held-out prompts ask other questions about the very same topics."""
    topics = {
        split: {row["topic"] for row in rows if row["split"] == split} for split in ("train", "held_out")
    }
    assert topics["train"] == topics["held_out"]
    assert len(topics["train"]) >= 20


def test_prompts_are_not_made_from_a_template(rows: list[dict[str, Any]]) -> None:
    """No opening of three words is used by more than 1 in 20 of the prompts."""
    openings = Counter(" ".join(_text(row).lower().split()[:3]) for row in rows)
    assert openings.most_common(1)[0][1] <= len(rows) // 20
