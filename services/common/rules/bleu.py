"""Owns the BLEU and chrF rules: sacrebleu's sentence scores against a reference column, divided by 100."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, Literal

from services.common.errors import InvalidInput
from services.common.rules.base import check_length, column_of, package_of, rule_digest

Metric = Literal["bleu", "chrf"]
MAX_CHARACTERS = 50_000  # 0.3 s for chrF, which counts n-grams of characters
_CACHED_CHARACTERS = 1_000_000


class BleuRule:
    """Sentence BLEU (Papineni et al. 2002; tokeniser 13a, exponential smoothing, effective order) or chrF2
    (Popović 2015) of the completion against a reference column, in [0, 1].
    """

    def __init__(self, *, metric: Metric = "bleu", column: str = "reference") -> None:
        metrics = package_of("bleu", "sacrebleu.metrics", "sacrebleu")
        self._metric: Any = (
            metrics.BLEU(effective_order=True, tokenize="13a") if metric == "bleu" else metrics.CHRF()
        )
        self._column = column
        self._forget = _Forgetting() if metric == "bleu" else None
        self.name = f"bleu:metric={metric},column={column}"
        version = package_of("bleu", "sacrebleu", "sacrebleu").__version__
        self.digest = rule_digest("bleu", 1, metric=metric, column=column, package=version)

    def score(self, prompt: str, completion: str, columns: Mapping[str, str]) -> float:  # noqa: ARG002
        """The sentence score; 0 for an empty completion."""
        check_length(completion, MAX_CHARACTERS)
        reference = column_of(columns, self._column, MAX_CHARACTERS)
        if not reference.strip():
            raise InvalidInput(
                f"column {self._column} is empty; expected a reference",
                {f"columns[{self._column}]": "not empty"},
            )
        if self._forget is not None:
            self._forget.after(len(completion) + len(reference))
        # Its logarithms come back as 1.0000000000000004 for equal texts.
        return min(1.0, float(self._metric.sentence_score(completion, [reference]).score) / 100)


class _Forgetting:
    """Empties the tokeniser's caches in time: they hold 65,536 texts of any length, which may be gigabytes."""

    def __init__(self) -> None:
        tokenizers = [
            package_of("bleu", f"sacrebleu.tokenizers.{module}", "sacrebleu")
            for module in ("tokenizer_13a", "tokenizer_re")
        ]
        self._caches: list[Any] = [
            tokenizers[0].Tokenizer13a.__call__,
            tokenizers[1].TokenizerRegexp.__call__,
        ]
        self._lock = threading.Lock()
        self._characters = 0

    def after(self, characters: int) -> None:
        """Count what the caches are about to take."""
        with self._lock:
            self._characters += characters
            if self._characters > _CACHED_CHARACTERS:
                self._characters = 0
                for cache in self._caches:
                    cache.cache_clear()
