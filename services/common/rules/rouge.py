"""Owns the ROUGE rule: overlap of the completion with a reference column. Knows no corpus statistics.

Decision: the definitions stand here, the longest common subsequence is rapidfuzz's (bit-parallel, in C++).
Rejected: rouge-score, which brings nltk and absl and whose table in Python takes a minute for 10,000 words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from services.common.errors import InvalidInput
from services.common.rules.base import check_length, column_of, package_of, rule_digest

Variant = Literal["1", "2", "L"]
MAX_CHARACTERS = 100_000  # 0.05 s for ROUGE-L
_WORD = re.compile("[a-z0-9]+")


class RougeRule:
    """F1 of ROUGE-1, ROUGE-2 or ROUGE-L, in [0, 1]. Lin 2004, "ROUGE: A Package for Automatic Evaluation".

    Words as in Google's rouge-score without its stemmer: runs of a-z and 0-9, lower case. A reference without
    any is an error: use chrF (bleu:metric=chrf) for other scripts.
    """

    def __init__(self, *, variant: Variant = "L", column: str = "reference") -> None:
        self._lcs: Any = (
            package_of("rouge", "rapidfuzz.distance.LCSseq", "rapidfuzz") if variant == "L" else None
        )
        self._variant = variant
        self._column = column
        self.name = f"rouge:variant={variant},column={column}"
        self.digest = rule_digest("rouge", 1, variant=variant, column=column)

    def score(self, prompt: str, completion: str, columns: Mapping[str, str]) -> float:  # noqa: ARG002
        """The F1; 0 for a completion without a word."""
        check_length(completion, MAX_CHARACTERS)
        reference = _WORD.findall(column_of(columns, self._column, MAX_CHARACTERS).lower())
        if not reference:
            raise InvalidInput(
                f"column {self._column} has no word of a-z and 0-9",
                {f"columns[{self._column}]": "words of a-z and 0-9"},
            )
        words = _WORD.findall(completion.lower())
        if self._variant == "L":
            return _f1(self._lcs.similarity(words, reference), len(words), len(reference))
        return _ngram_f1(words, reference, int(self._variant))


def _ngram_f1(words: Sequence[str], reference: Sequence[str], n: int) -> float:
    ours, theirs = _ngrams(words, n), _ngrams(reference, n)
    return _f1((ours & theirs).total(), ours.total(), theirs.total())


def _ngrams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1))


def _f1(common: int, ours: int, theirs: int) -> float:
    """2PR / (P + R) with P = common / ours and R = common / theirs."""
    return 2 * common / (ours + theirs) if common else 0.0
