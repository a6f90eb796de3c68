"""Owns the words: what one row says about the answers to one prompt. Pure; knows no format."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a prompt."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a record comes from, as far as its row says; empty where it does not.

    `place`: "file:line". `group`: what a split goes by (prompt_id, else tree, else a digest of the prompt; never
    empty). `tree`: the conversation that the prompt is a turn of. `annotator`: who chose. `confidence`: 0 to 1.
    """

    place: str
    group: str
    prompt_id: str = ""
    tree: str = ""
    item_id: str = ""
    campaign: str = ""
    annotator: str = ""
    confidence: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two answers that differ, the better one first. `margin`: how much better, in the data's own unit."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    origin: Origin
    margin: float | None = None
    chosen_source: str = ""
    rejected_source: str = ""

    @property
    def answers(self) -> tuple[str, ...]:
        """Both answers, the better one first."""
        return self.chosen, self.rejected

    @property
    def sources(self) -> tuple[str, ...]:
        """What made each answer; empty where the row does not say."""
        return self.chosen_source, self.rejected_source

    def wins(self) -> tuple[tuple[int, int], ...]:
        """(better, worse) as indices of answers."""
        return ((0, 1),)

    def ties(self) -> tuple[tuple[int, int], ...]:
        """Pairs that were said to be equally good."""
        return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """K answers that differ, best first. `ranks`: [K], 1 is best, never falling; equal ranks are a tie."""

    prompt: tuple[Message, ...]
    answers: tuple[str, ...]
    ranks: tuple[int, ...]
    origin: Origin
    sources: tuple[str, ...]

    def wins(self) -> tuple[tuple[int, int], ...]:
        """(better, worse) as indices of answers: all K(K-1)/2 pairs but the ties."""
        return tuple((i, j) for i, j in self._pairs() if self.ranks[i] < self.ranks[j])

    def ties(self) -> tuple[tuple[int, int], ...]:
        """Pairs of equal rank."""
        return tuple((i, j) for i, j in self._pairs() if self.ranks[i] == self.ranks[j])

    def _pairs(self) -> Iterator[tuple[int, int]]:
        return itertools.combinations(range(len(self.answers)), 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class BestOf:
    """N answers and which of them is best. Among the others nothing was said."""

    prompt: tuple[Message, ...]
    answers: tuple[str, ...]
    best: int
    origin: Origin
    sources: tuple[str, ...]

    def wins(self) -> tuple[tuple[int, int], ...]:
        """(best, other) for each other answer that is not the same text."""
        text = self.answers[self.best]
        return tuple((self.best, other) for other, said in enumerate(self.answers) if said != text)

    def ties(self) -> tuple[tuple[int, int], ...]:
        """None: that two answers lost says nothing about the two."""
        return ()


Record = Comparison | Ranking | BestOf


def fingerprint(prompt: Sequence[Message], *parts: object) -> str:
    """BLAKE2b-96, hex, of a prompt and whatever else counts."""
    said = json.dumps([[(message.role, message.content) for message in prompt], *parts])
    return hashlib.blake2b(said.encode(), digest_size=12).hexdigest()


def pair_key(record: Record, one: int, other: int) -> str:
    """The same for every row that compares these two answers to this prompt, whichever way round."""
    return fingerprint(record.prompt, *sorted((record.answers[one], record.answers[other])))
