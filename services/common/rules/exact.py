"""Owns the exact rule: whether the completion is the answer of a column, after normalisation."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Callable, Mapping
from typing import Literal

from services.common.rules.base import check_length, column_of, rule_digest

Normalisation = Literal["none", "text", "squad"]
MAX_CHARACTERS = 100_000
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _none(text: str) -> str:
    return text


def _text(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _squad(text: str) -> str:
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


_NORMALISATIONS: Mapping[Normalisation, Callable[[str], str]] = {
    "none": _none,
    "text": _text,
    "squad": _squad,
}


class ExactRule:
    """1 where completion and column are equal, else 0.

    normalise: none; text: NFKC, without case, every run of white space one blank; squad: without case,
    ASCII punctuation and English articles, as in Rajpurkar et al. 2016, arXiv 1606.05250.
    """

    def __init__(self, *, normalise: Normalisation = "text", column: str = "answer") -> None:
        self._normal = _NORMALISATIONS[normalise]
        self._column = column
        self.name = f"exact:normalise={normalise},column={column}"
        self.digest = rule_digest("exact", 1, normalise=normalise, column=column)

    def score(self, prompt: str, completion: str, columns: Mapping[str, str]) -> float:  # noqa: ARG002
        """1 or 0."""
        check_length(completion, MAX_CHARACTERS)
        answer = column_of(columns, self._column, MAX_CHARACTERS)
        return float(self._normal(completion) == self._normal(answer))
