"""What maps token ids to scores, as batching sees it: the port `Scorer` and its rows. Knows no model family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from services.models.facts import ModelFacts


@dataclass(frozen=True, slots=True)
class ScoreText:
    """What is scored: a conversation as (role, content) pairs, and the answer to it.

    rendered: a chat template is around it already; a causal model reads prompt and completion as they stand.
    special_tokens: the completion is a lone text, and whoever sent it leaves the special tokens around it to the model;
    what it begins with already is not put there twice.
    """

    messages: tuple[tuple[str, str], ...]
    completion: str
    rendered: bool = False
    special_tokens: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """A row as a scorer's own token ids.

    start: index where the completion begins. cut: tokens that did not fit. steps: index of the last token of
    each step, for process reward models.
    """

    ids: tuple[int, ...]
    start: int
    cut: int = 0
    steps: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A row's value, and one for each of its steps."""

    value: float
    steps: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerAbout:
    """What a scorer tells about itself. score = gain * head + bias; lengths in tokens."""

    kind: Literal["model", "process"]
    facts: ModelFacts
    chat: bool
    max_tokens: int
    gain: float = 1.0
    bias: float = 0.0


class Scorer(Protocol):
    """A model that scores. `encode` may be called by any thread, `read` by one at a time."""

    @property
    def name(self) -> str:
        """The name it was loaded under."""
        ...

    @property
    def packed(self) -> bool:
        """Whether `read` lays rows side by side; else it fills them up to the longest with padding."""
        ...

    def about(self) -> ScorerAbout:
        """Identity and limits; costs a pass over the weights the first time."""
        ...

    def encode(self, row: ScoreText) -> Encoded:
        """Token ids of a row, cut from the left to the limit."""
        ...

    def encode_ids(self, prompt: Sequence[int], completion: Sequence[int]) -> Encoded:
        """The same from ids of this scorer's own tokenizer. InvalidInput for ids that it has not."""
        ...

    def read(self, rows: Sequence[Encoded]) -> list[Reading]:
        """One reading for each row, in order, by one forward pass."""
        ...


def cut_left(ids: Sequence[int], start: int, limit: int) -> Encoded:
    """The last `limit` ids: the end of the answer is what a score depends on most."""
    cut = max(0, len(ids) - limit)
    return Encoded(ids=tuple(ids[cut:]), start=max(0, start - cut), cut=cut)
