"""Metrics of the completions alone: distinct-n, repetition, length, perplexity, and any text rule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from services.common.errors import InvalidInput
from services.common.metrics.base import Better, Floats, Mean, Need, Sample
from services.common.rules import make_rule
from services.common.rules.base import Rule
from services.common.rules.toxic_words import toxic_words

Gram = tuple[str, ...]


def grams(text: str, n: int) -> list[Gram]:
    """n-grams of the words, split at white space, lower case."""
    words = text.lower().split()
    return [tuple(words[at : at + n]) for at in range(len(words) - n + 1)]


class Distinct:
    """distinct-n: different n-grams over all n-grams, pooled over all completions. Li et al. 2016, arXiv 1510.03055."""

    better: Better = "higher"
    needs: frozenset[Need] = frozenset()

    def __init__(self, n: int) -> None:
        self.n = n
        self.name = f"distinct-{n}"

    def pooled(self, groups: Sequence[Sequence[Sample]]) -> tuple[float, Floats]:
        """0 where no completion has n words."""
        each = [
            Counter(gram for sample in group for gram in grams(sample.completion, self.n)) for group in groups
        ]
        places: Counter[Gram] = Counter(gram for found in each for gram in found)
        totals = np.array([found.total() for found in each], np.float64)
        alone = np.array([sum(places[gram] == 1 for gram in found) for found in each], np.float64)
        total = totals.sum()
        return float(_ratio(np.array(len(places)), total)), _ratio(len(places) - alone, total - totals)


def _ratio(above: Floats, below: Floats | float) -> Floats:
    return np.asarray(np.where(np.asarray(below) > 0, above / np.maximum(below, 1), 0.0), np.float64)


class Repetition(Mean):
    """Mean share of a completion's n-grams that it had before: seq-rep-n. Welleck et al. 2020, arXiv 1908.04319."""

    better: Better = "lower"

    def __init__(self, n: int) -> None:
        self.n = n
        self.name = f"repetition-{n}"

    def score(self, sample: Sample) -> float:
        """0 for fewer than n words."""
        found = grams(sample.completion, self.n)
        return 1 - len(set(found)) / len(found) if found else 0.0


class Length(Mean):
    """Mean number of words, split at white space."""

    name = "length"
    better: Better = "neither"

    def score(self, sample: Sample) -> float:
        """Words."""
        return float(len(sample.completion.split()))


class Tokens(Mean):
    """Mean number of the model's own tokens."""

    name = "tokens"
    better: Better = "neither"
    needs: frozenset[Need] = frozenset({"tokens"})

    def score(self, sample: Sample) -> float:
        """Tokens."""
        if sample.tokens is None:
            raise InvalidInput("metric tokens needs the completions' lengths in tokens")
        return float(sample.tokens)


class Perplexity:
    """exp(- sum log p / tokens) of the completions under a given model, over all tokens of all completions."""

    name = "perplexity"
    better: Better = "lower"
    needs: frozenset[Need] = frozenset({"logprobs"})

    def statistics(self, samples: Sequence[Sample]) -> Floats:
        """[samples, 2]: sum of log-probs, tokens."""
        rows = []
        for sample in samples:
            if sample.logprobs is None:
                raise InvalidInput("metric perplexity needs a model that reads the completions")
            rows.append([float(np.sum(sample.logprobs)), float(len(sample.logprobs))])
        return np.array(rows, np.float64)

    def value(self, sums: Floats) -> Floats:
        """1 where no completion has a token."""
        return np.asarray(np.exp(-sums[..., 0] / np.maximum(sums[..., 1], 1)), np.float64)


class RuleMetric(Mean):
    """Mean of a text rule, such as sentiment or rule:regex:pattern=…; see services/common/rules."""

    def __init__(self, spec: str, *, name: str = "") -> None:
        self._rule: Rule = make_rule(spec)
        self.name = name or f"rule:{spec}"

    def score(self, sample: Sample) -> float:
        """The rule's score."""
        return self._rule.score(sample.prompt, sample.completion, sample.columns)


class ToxicWords(Mean):
    """Share of completions with at least one word of the list in rules/toxic_words.py: a list, not a classifier."""

    name = "toxic-words"
    better: Better = "lower"

    def score(self, sample: Sample) -> float:
        """1 or 0."""
        return float(bool(toxic_words(sample.completion)))
