"""Comparisons as training sees them: by prompt, each answer once. Pure; knows no model.

All comparisons of a prompt stay in one batch: an answer is then read once, however often it was compared, and does not
come back in later batches as something learned by heart (arXiv 2203.02155, 3.5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Messages = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two answers to one prompt, the better one first. `group` is what the split goes by."""

    messages: Messages
    chosen: str
    rejected: str
    group: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A prompt, its answers, and who beat whom: (better, worse) as indices of answers."""

    messages: Messages
    answers: tuple[str, ...]
    wins: tuple[tuple[int, int], ...]


def by_prompt(pairs: Sequence[Pair]) -> list[Compared]:
    """One entry for each prompt, in the order in which prompts and answers first appear."""
    answers: dict[Messages, dict[str, int]] = {}
    wins: dict[Messages, list[tuple[int, int]]] = {}
    for pair in pairs:
        known = answers.setdefault(pair.messages, {})
        better, worse = (known.setdefault(text, len(known)) for text in (pair.chosen, pair.rejected))
        wins.setdefault(pair.messages, []).append((better, worse))
    return [
        Compared(messages=messages, answers=tuple(known), wins=tuple(wins[messages]))
        for messages, known in answers.items()
    ]


def batches(prompts: Sequence[Compared], least_pairs: int, seed: tuple[int, ...]) -> list[list[Compared]]:
    """All prompts in an order by the seed, in batches of at least so many comparisons (the last may have fewer)."""
    made: list[list[Compared]] = []
    missing = 0
    for index in np.random.default_rng(seed).permutation(len(prompts)).tolist():
        if missing <= 0:
            made.append([])
            missing = least_pairs
        made[-1].append(prompts[index])
        missing -= len(prompts[index].wins)
    return made


def split_by_group(pairs: Sequence[Pair], share: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Training and held-out pairs, no group on both sides."""
    groups = sorted({pair.group for pair in pairs})
    order = np.random.default_rng(seed).permutation(len(groups))
    held = {groups[index] for index in order[: max(1, round(share * len(groups)))]}
    return [p for p in pairs if p.group not in held], [p for p in pairs if p.group in held]
