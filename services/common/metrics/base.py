"""What a metric is. Knows no metric, no model, no file.

A metric over completions is one of two kinds, by how its interval is found:

    additive   a function of sums over completions: means, corpus BLEU, perplexity. Prompts are drawn again (bootstrap)
    pooled     a function of all completions at once: distinct-n. Drawing a prompt twice would repeat its words and
               lower it, so prompts are left out one by one instead (jackknife)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from services.common.errors import InvalidInput
from services.common.packages import package

Floats = npt.NDArray[np.float64]
Better = Literal["higher", "lower", "neither"]
Need = Literal["references", "logprobs", "tokens"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One completion and what it is held against.

    prompt: as plain text. references: good completions, if the task has any. logprobs: of the completion's tokens
    under the model that perplexity is measured by, natural log. tokens: the completion's length.
    """

    prompt: str
    completion: str
    references: tuple[str, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    logprobs: Sequence[float] | None = None
    tokens: int | None = None


class _Told(Protocol):
    @property
    def name(self) -> str:
        """The specification that makes it again, as `make_metric` reads it."""
        ...

    @property
    def better(self) -> Better:
        """Which way is better; neither where that depends."""
        ...

    @property
    def needs(self) -> frozenset[Need]:
        """Fields of a sample without which it cannot be measured."""
        ...


@runtime_checkable
class AdditiveMetric(_Told, Protocol):
    """A function of sums."""

    def statistics(self, samples: Sequence[Sample]) -> Floats:
        """[samples, k]: what is summed. Raises TrimtabError for a sample that cannot be measured."""
        ...

    def value(self, sums: Floats) -> Floats:
        """[...] of sums [..., k]; sums are over at least one sample."""
        ...


@runtime_checkable
class PooledMetric(_Told, Protocol):
    """A function of all completions at once."""

    def pooled(self, groups: Sequence[Sequence[Sample]]) -> tuple[float, Floats]:
        """The value over all groups (a prompt's samples each), and [groups]: the value without each of them."""
        ...


Metric = AdditiveMetric | PooledMetric


class Mean:
    """Base of the metrics that are a mean over completions: only `score` is left to write."""

    better: Better = "higher"
    needs: frozenset[Need] = frozenset()

    def score(self, sample: Sample) -> float:
        """Of one completion."""
        raise NotImplementedError

    def statistics(self, samples: Sequence[Sample]) -> Floats:
        """[samples, 2]: score and 1."""
        return np.array([[self.score(sample), 1.0] for sample in samples], np.float64).reshape(-1, 2)

    def value(self, sums: Floats) -> Floats:
        """The mean."""
        return np.asarray(sums[..., 0] / sums[..., 1], np.float64)


def package_for(metric: str, module: str, distribution: str) -> Any:
    """The library that a metric needs. Raises InvalidInput."""
    return package("metric", metric, module, distribution, extra="metrics")


def references_of(metric: str, sample: Sample) -> tuple[str, ...]:
    """The references, of which at least one has text. Raises InvalidInput."""
    found = tuple(text for text in sample.references if text.strip())
    if not found:
        raise InvalidInput(
            f"metric {metric} needs references, and the prompt {sample.prompt[:40]!r} has none"
        )
    return found
