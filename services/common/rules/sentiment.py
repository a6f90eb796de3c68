"""Owns the sentiment rule: VADER's compound score of the completion. Knows nothing of the prompt."""

from __future__ import annotations

import functools
import importlib.metadata
import threading
from collections.abc import Mapping
from typing import Any

from services.common.rules.base import check_length, rule_digest

# VADER is quadratic in the worst case: every second word in the lexicon and a "but" takes 18 s at 100,000
# characters, well under one at this many.
MAX_CHARACTERS = 20_000
_BUILDING = threading.Lock()


@functools.cache
def _analyser() -> Any:  # the package publishes no types
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


class SentimentRule:
    """Compound sentiment, -1 (negative) to 1 (positive). Hutto and Gilbert 2014, ICWSM.

    The reward of the mock task in arXiv 1909.08593, with a lexicon in place of its classifier.
    """

    name = "sentiment"

    @functools.cached_property
    def digest(self) -> str:
        """Depends on the version of the lexicon's package."""
        return rule_digest("sentiment", 1, package=importlib.metadata.version("vaderSentiment"))

    def score(self, prompt: str, completion: str, columns: Mapping[str, str]) -> float:  # noqa: ARG002
        """The compound score of the completion; 0 where no word of it is in the lexicon."""
        check_length(completion, MAX_CHARACTERS)
        with _BUILDING:  # reading the lexicon takes tens of milliseconds: once, also with threads
            analyser = _analyser()
        return float(analyser.polarity_scores(completion)["compound"])
