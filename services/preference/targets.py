"""Owns how ratings become scalar training targets, and their rows. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import fmean
from typing import Any

from services.preference.domain import Item, rated_name
from services.preference.ratings import Rating


def items_of(items: Iterable[Item]) -> dict[str, str]:
    """The item of each candidate, by what it is rated as."""
    return {
        rated_name(item.item_id, candidate.candidate_id): item.item_id
        for item in items
        for candidate in item.candidates
    }


def scalar_targets(
    ratings: Sequence[Rating], *, group: Callable[[str], str] | None = None
) -> dict[str, float]:
    """Ratings with mean 0 and standard deviation 1, by subject; all 0 where all ratings are equal.

    group: names what a subject is only comparable within (its item in `items_of` for candidates: answers to different
    prompts never met). Each group's mean is then 0, and one standard deviation, over the deviations of all groups,
    scales them all: scaling each group by its own would make as much of a hair's breadth as of a mile.
    """
    groups: dict[str, list[float]] = {}
    for rating in ratings:
        groups.setdefault(group(rating.subject) if group else "", []).append(rating.rating)
    means = {name: fmean(values) for name, values in groups.items()}
    centred = {
        rating.subject: rating.rating - means[group(rating.subject) if group else ""] for rating in ratings
    }
    spread = fmean(value**2 for value in centred.values()) ** 0.5 if centred else 0.0
    # Below a billionth of a point, differences are rounding.
    return {subject: value / spread if spread > 1e-9 else 0.0 for subject, value in centred.items()}


def target_rows(items: Iterable[Item], ratings: Sequence[Rating]) -> Iterator[dict[str, Any]]:
    """A row for each rated answer: its prompt, its text and its target, for a reward model that is fitted to scalars.

    ratings: of candidates. The rating stays beside the target, with its 95 % interval.
    """
    items = list(items)
    item_of = items_of(items)
    rated = {rating.subject: rating for rating in ratings if rating.subject in item_of}
    targets = scalar_targets(list(rated.values()), group=item_of.__getitem__)
    for item in items:
        for candidate in item.candidates:
            subject = rated_name(item.item_id, candidate.candidate_id)
            if subject not in rated:
                continue
            found = rated[subject]
            yield {
                "prompt": [{"role": message.role, "content": message.content} for message in item.prompt],
                "completion": [{"role": "assistant", "content": candidate.text}],
                "target": targets[subject],
                "rating": found.rating,
                "low": found.low,
                "high": found.high,
                "comparisons": found.comparisons,
                "source": candidate.source,
                "item_id": item.item_id,
                "prompt_id": item.prompt_id,
                "campaign": item.campaign,
            }
