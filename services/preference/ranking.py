"""Owns what a ranking says about pairs. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from services.common.validation import require
from services.preference.domain import Choice, Comparison


@dataclass(frozen=True, slots=True)
class Pair:
    """A task, as far as an answer needs it."""

    task_id: str
    item_id: str
    first_candidate_id: str
    second_candidate_id: str
    campaign: str


def check_ranks(ranks: Sequence[int], count: int) -> None:
    """InvalidInput unless there is a place, 1 to `count`, for each of `count` answers; equal ones are ties."""
    require(len(ranks) == count, "ranks", f"expected {count} places, got {len(ranks)}")
    require(all(1 <= rank <= count for rank in ranks), "ranks", f"expected places of 1 to {count}")


def choice_between(first: int, second: int) -> Choice:
    """What two places say: the lower one is better."""
    if first == second:
        return Choice.TIE
    return Choice.FIRST if first < second else Choice.SECOND


def pair_comparisons(
    pairs: Sequence[Pair], ranks: Mapping[str, int] | Choice, template: Comparison, shown: Sequence[str]
) -> list[Comparison]:
    """One comparison for each pair: by the candidates' places, or the same choice (skip, flag) for all.

    `template` has what they share. `shown`: candidate ids as they were shown; the earlier one of a pair is its first.
    """
    place = {candidate: number for number, candidate in enumerate(shown)}
    found = []
    for pair in pairs:
        first, second = sorted((pair.first_candidate_id, pair.second_candidate_id), key=place.__getitem__)
        found.append(
            replace(
                template,
                task_id=pair.task_id,
                item_id=pair.item_id,
                first_candidate_id=first,
                second_candidate_id=second,
                choice=ranks if isinstance(ranks, Choice) else choice_between(ranks[first], ranks[second]),
            )
        )
    return found
