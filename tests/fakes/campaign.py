"""A small campaign for the pages' tests and screenshots: prompts, answers of three policy versions, hostile texts."""

from __future__ import annotations

import json
from pathlib import Path

from trimtab.common.v1 import common_pb2 as common
from trimtab.preference.v1 import preference_pb2 as wire

HOSTILE = (
    "<script>window.hurt = 1; fetch('/api/sign-out', {method: 'POST'})</script>"
    '<img src=x onerror="window.hurt = 2">\n\n'
    "[a link](javascript:window.hurt=3) and ![an image](https://example.org/a.png) and **bold**"
)
_TEXTS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
SOURCES = ("policy@96", "policy@32", "policy@0")


def _text(which: int, place: int) -> str:
    text: str = _TEXTS[which]["answers"][place % 3]
    return text if place < 3 else f"{text}\n\n(Said again, as number {place}.)"


def item(number: int, *, campaign: str = "people", answers: int = 2, gold: bool = False) -> wire.Item:
    """The item of that number: a prompt with the first so many of its answers."""
    which = number % len(_TEXTS)
    ids = [f"c{place}" for place in range(answers)]
    return wire.Item(
        item_id=f"{campaign}-{'gold-' if gold else ''}{number}",
        prompt=[common.ChatMessage(role="user", content=_TEXTS[which]["prompt"])],
        candidates=[
            wire.Candidate(
                candidate_id=name,
                text=_text(which, place),
                source=SOURCES[(place + number // len(_TEXTS)) % 3] if answers == 2 else SOURCES[place % 3],
            )
            for place, name in enumerate(ids)
        ],
        campaign=campaign,
        prompt_id=f"prompt-{which}",
        gold_order=ids if gold else [],
    )


def hostile_item(number: int, *, campaign: str = "people") -> wire.Item:
    """An item whose texts try to run as code."""
    made = item(number, campaign=campaign)
    made.item_id = f"hostile-{number}"
    made.prompt[0].content = HOSTILE
    for candidate in made.candidates:
        candidate.text = HOSTILE
    return made
