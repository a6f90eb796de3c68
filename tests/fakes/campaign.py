"""A small campaign for the pages' tests and screenshots: prompts, answers of three policy versions, hostile texts."""

from __future__ import annotations

from trimtab.common.v1 import common_pb2 as common
from trimtab.preference.v1 import preference_pb2 as wire

HOSTILE = (
    "<script>window.hurt = 1; fetch('/api/sign-out', {method: 'POST'})</script>"
    '<img src=x onerror="window.hurt = 2">\n\n'
    "[a link](javascript:window.hurt=3) and ![an image](https://example.org/a.png) and **bold**"
)
ASKED = (
    "How do I keep basil alive on a windowsill through the winter?",
    "Explain to a ten-year-old why the sky is blue.",
    "Write a short, polite note asking my neighbour to turn the music down after ten.",
    "What is the difference between a list and a tuple in Python?",
    "My bread is always dense. What am I doing wrong?",
    "Give me three ideas for a rainy Sunday with two small children.",
)
ANSWERED = (
    (
        "Basil wants **light and warmth**:\n\n- a south-facing window, or a lamp for twelve hours a day\n"
        "- water from below, when the top centimetre is dry\n- no draught: below 10 °C its leaves turn black\n\n"
        "Pinch off the tips every week, and it stays bushy.",
        "Put it in the sun and water it a lot. Basil is a plant. Plants need water. Good luck!",
        "It dies in winter. Buy a new one in spring.",
    ),
    (
        "Sunlight is made of all colours. Air bounces the blue ones around much more than the red ones, so blue comes "
        "to your eyes from *everywhere* in the sky, while the other colours go straight on.",
        "Because of Rayleigh scattering, whose cross-section is proportional to the inverse fourth power of the wavelength.",
        "The sky is blue because the sea is blue and the sky is a mirror.",
    ),
    (
        "Dear neighbour,\n\nI hope you are well. Would you mind turning the music down a little after ten? The walls are "
        "thin, and we get up early. Thank you very much!\n\nKind regards,\nthe flat above",
        "Hi! Turn the music down after ten please. Thanks.",
        "If the noise does not stop I will call the police.",
    ),
    (
        "A list can change, a tuple cannot:\n\n```python\nwords = ['a', 'b']\nwords.append('c')   # fine\n\npoint = (1, 2)\n"
        "point[0] = 3        # TypeError\n```\n\nUse a tuple for things that belong together, such as coordinates.",
        "Lists use `[]` and tuples use `()`. That is the main difference.",
        "There is none, they are the same.",
    ),
    (
        "Most often it is one of three things:\n\n1. **too little time**: let it double, however long that takes\n"
        "2. too much flour: weigh it, cups vary by a fifth\n3. old yeast: it should foam in warm water within ten minutes",
        "You need to knead it more and wait longer, then it should become less dense than it is now.",
        "Bread is dense. Try rice.",
    ),
    (
        "1. Build a den from blankets and read in it with torches.\n2. Bake biscuits and let them decorate.\n"
        "3. A treasure hunt through the flat, with drawn clues.",
        "Watch a film, watch another film, sleep.",
        "Send them outside anyway.",
    ),
)
SOURCES = ("policy@96", "policy@32", "policy@0")


def item(number: int, *, campaign: str = "people", answers: int = 2, gold: bool = False) -> wire.Item:
    """The item of that number: a prompt with the first so many of its answers."""
    which = number % len(ASKED)
    ids = [f"c{place}" for place in range(answers)]
    return wire.Item(
        item_id=f"{campaign}-{'gold-' if gold else ''}{number}",
        prompt=[common.ChatMessage(role="user", content=ASKED[which])],
        candidates=[
            wire.Candidate(
                candidate_id=name,
                text=ANSWERED[which][place] if place < 3 else f"{ANSWERED[which][place % 3]}\n\n(Version {place}.)",
                source=SOURCES[(place + number // len(ASKED)) % 3] if answers == 2 else SOURCES[place % 3],
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
