"""Comparisons as training sees them: by prompt, each answer once. Pure; knows no model and no file format.

All that was said about a prompt's answers stays in one batch: an answer is then read once, however often it was
compared, and does not come back in later batches as something learned by heart (arXiv 2203.02155, 3.5).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from services.common.comparisons import BestOf, Comparison, Record
from services.learner.jobs.groups import Groups, Messages, names_of


class Win(NamedTuple):
    """One answer beat another, both by index.

    `margin`: by how much at least, in units of the score's logit. `weight`: in the loss; the pairs of a ranking share
    one. `annotator`: who said so, where the data name anybody.
    """

    better: int
    worse: int
    margin: float | None = None
    weight: float = 1.0
    annotator: str = ""


class Choice(NamedTuple):
    """The best of N answers, by index; nothing is said about the others (arXiv 1909.08593)."""

    best: int
    among: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A prompt, its answers, and what was said of them.

    `group` is what a split goes by; `names` are those that the data give the prompt's own rows. `place`: where the
    first of them stands.
    """

    messages: Messages
    answers: tuple[str, ...]
    wins: tuple[Win, ...] = ()
    choices: tuple[Choice, ...] = ()
    group: str = ""
    names: frozenset[str] = frozenset()
    place: str = field(default="", compare=False)

    @property
    def statements(self) -> int:
        """What a batch is counted in: comparisons, those of rankings too, and choices of the best."""
        return len(self.wins) + len(self.choices)

    def pairs(self) -> tuple[Win, ...]:
        """All that can be judged as one against another: the best of N beats each other, together with weight 1."""
        chosen = (
            Win(choice.best, other, weight=1 / (len(choice.among) - 1))
            for choice in self.choices
            for other in choice.among
            if other != choice.best
        )
        return (*self.wins, *chosen)

    def agreement(self) -> dict[tuple[int, int], tuple[float, int]]:
        """For each (better, worse): the share that the more common verdict has, and how many verdicts there are.

        Whoever said the same twice, as in two exports one after the other, has one; of people without a name each row
        is somebody's.
        """
        said = [(win.better, win.worse, win.annotator) for win in self.pairs()]
        named = {one for one in said if one[2]}
        votes = Counter(
            (better, worse) for better, worse, _ in (*named, *(one for one in said if not one[2]))
        )
        found = {}
        for (one, other), count in votes.items():
            total = count + votes[other, one]
            found[one, other] = (max(count, total - count) / total, total)
        return found


@dataclass(slots=True)
class _Gathered:
    place: str
    names: set[str] = field(default_factory=set)
    answers: dict[str, int] = field(default_factory=dict)
    wins: list[Win] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)

    def indices(self, texts: Iterable[str]) -> list[int]:
        return [self.answers.setdefault(text, len(self.answers)) for text in texts]


def by_prompt(records: Iterable[Record]) -> list[Compared]:
    """One entry for each prompt, in the order in which prompts and answers first appear.

    Prompts of one group, and groups of one prompt, are one group: a prompt under two names is on one side of a split.
    """
    gathered: dict[Messages, _Gathered] = {}
    groups = Groups()
    for record in records:
        messages = tuple((message.role, message.content) for message in record.prompt)
        known = gathered.setdefault(messages, _Gathered(record.origin.place))
        for name in names_of(record.origin.group, record.origin.tree):
            known.names.add(name)
            groups.add(messages, name)
        at = known.indices(record.answers)
        if isinstance(record, BestOf):
            among = tuple(dict.fromkeys(at))
            if len(among) > 1:
                known.choices.append(Choice(at[record.best], among))
            continue
        margin = record.margin if isinstance(record, Comparison) else None
        wins, said_by = record.wins(), record.origin.annotator
        known.wins += [Win(at[better], at[worse], margin, 1 / len(wins), said_by) for better, worse in wins]
    return [
        Compared(
            messages=messages,
            answers=tuple(one.answers),
            wins=tuple(one.wins),
            choices=tuple(one.choices),
            group=groups.of(messages),
            names=frozenset(one.names),
            place=one.place,
        )
        for messages, one in gathered.items()
        if one.wins or one.choices
    ]


def batches(prompts: Sequence[Compared], least: int, seed: tuple[int, ...]) -> list[list[Compared]]:
    """All prompts in an order by the seed, in batches of at least so many statements (the last may have fewer)."""
    made: list[list[Compared]] = []
    missing = 0
    for index in np.random.default_rng(seed).permutation(len(prompts)).tolist():
        if missing <= 0:
            made.append([])
            missing = least
        made[-1].append(prompts[index])
        missing -= prompts[index].statements
    return made


def split_by_group(
    prompts: Sequence[Compared], share: float, seed: int
) -> tuple[list[Compared], list[Compared]]:
    """Training and held-out prompts, no group on both sides."""
    groups = sorted({prompt.group for prompt in prompts})
    order = np.random.default_rng(seed).permutation(len(groups))
    return split_off(prompts, {groups[index] for index in order[: max(1, round(share * len(groups)))]})


def split_off(prompts: Sequence[Compared], groups: Collection[str]) -> tuple[list[Compared], list[Compared]]:
    """Prompts of other groups, and of these."""
    rest = [prompt for prompt in prompts if prompt.group not in groups]
    return rest, [prompt for prompt in prompts if prompt.group in groups]


def without(prompts: Sequence[Compared], others: Sequence[Compared]) -> list[Compared]:
    """The prompts that do not hang together with the others, by text or by any name: for pretraining beside a held-out
    set. Each side's groups are called as that side knows them, so that the two are looked at together."""
    groups = Groups()
    for one in (*prompts, *others):
        for name in (one.group, *one.names):
            groups.add(one.messages, name)
    held = {groups.of(one.messages) for one in others}
    return [one for one in prompts if groups.of(one.messages) not in held]
