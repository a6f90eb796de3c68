"""Owns the length rule, in words. Knows nothing of tokens."""

from __future__ import annotations

from collections.abc import Mapping

from services.common.rules.base import check_length, rule_digest


class LengthRule:
    """The number of whitespace-separated words, or how far that is from a target.

    Without a target: words. With one: -|words - target| / target, so 0 at the target
    and -1 for an empty answer.
    """

    def __init__(self, *, target: int | None = None) -> None:
        self._target = target
        self.name = "length" if target is None else f"length:target={target}"
        self.digest = rule_digest("length", 1, target=target)

    def score(self, prompt: str, completion: str, columns: Mapping[str, str]) -> float:  # noqa: ARG002
        """Words of the completion, or minus the relative distance from the target."""
        check_length(completion)
        words = len(completion.split())
        if self._target is None:
            return float(words)
        return -abs(words - self._target) / self._target
