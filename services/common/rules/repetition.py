"""Owns the repetition rule: how many of a completion's n-grams are distinct. Knows nothing of other rows."""

from __future__ import annotations

from collections.abc import Mapping

from services.common.rules.base import check_length, rule_digest


class RepetitionRule:
    """Distinct-n, Li et al. 2016, arXiv 1510.03055, within one completion: 1 if nothing repeats.

    n-grams of whitespace-separated words, lower case. A completion of fewer than n words repeats nothing: 1.
    """

    def __init__(self, *, n: int = 2) -> None:
        self._n = n
        self.name = f"repetition:n={n}"
        self.digest = rule_digest("repetition", 1, n=n)

    def score(self, prompt: str, completion: str, columns: Mapping[str, str]) -> float:  # noqa: ARG002
        """Distinct n-grams divided by n-grams, above 0 and at most 1."""
        check_length(completion)
        words = completion.lower().split()
        grams = [tuple(words[start : start + self._n]) for start in range(len(words) - self._n + 1)]
        return len(set(grams)) / len(grams) if grams else 1.0
