"""Who beat whom among policy versions: from comparisons to win rates, pure. A tie is half; skips say nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from orchestrator.iterate.state import Against
from trimtab.preference.v1 import preference_pb2 as preference

_RESAMPLES = 10_000
_SEED = 20_190_918


@dataclass(frozen=True, slots=True)
class Verdict:
    """One comparison between two versions. score: 1 if the newer one won, 0.5 for a tie, else 0."""

    newer: int
    older: int
    prompt_id: str
    score: float


def source(version: int) -> str:
    """A version's name where people see it."""
    return "policy@0 (initial)" if version == 0 else f"policy@{version}"


def verdict(answer: preference.StreamComparisonsResponse) -> Verdict | None:
    """What a comparison says about two versions; None for skips, flags, and two answers of one version."""
    comparison = answer.comparison
    versions = {
        one.candidate_id: int(one.source.removeprefix("policy@").split()[0]) for one in answer.item.candidates
    }
    first, second = versions[comparison.first_candidate_id], versions[comparison.second_candidate_id]
    scores = {preference.CHOICE_FIRST: 1.0, preference.CHOICE_SECOND: 0.0, preference.CHOICE_TIE: 0.5}
    score = scores.get(comparison.choice)
    if score is None or first == second:
        return None
    newer, older = max(first, second), min(first, second)
    return Verdict(newer, older, answer.item.prompt_id, score if first == newer else 1.0 - score)


def results(verdicts: Iterable[Verdict], version: int) -> list[Against]:
    """A version against each earlier one, the earliest first."""
    by_older: dict[int, dict[str, list[float]]] = {}
    for one in verdicts:
        if one.newer == version:
            by_older.setdefault(one.older, {}).setdefault(one.prompt_id, []).append(one.score)
    return [_against(older, by_older[older]) for older in sorted(by_older)]


def _against(older: int, by_prompt: Mapping[str, list[float]]) -> Against:
    """Win rate, and its interval by drawing prompts: what was said of one prompt stays together."""
    sums = np.array([sum(scores) for scores in by_prompt.values()])
    counts = np.array([len(scores) for scores in by_prompt.values()])
    drawn = np.random.default_rng(_SEED).multinomial(
        len(sums), np.full(len(sums), 1 / len(sums)), size=_RESAMPLES
    )
    low, high = np.quantile((drawn @ sums) / (drawn @ counts), [0.025, 0.975])
    return Against(
        version=older,
        win_rate=float(sums.sum() / counts.sum()),
        low=float(low),
        high=float(high),
        comparisons=int(counts.sum()),
    )
