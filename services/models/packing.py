"""Micro-batches: sequences sorted by length and cut by a budget of padded tokens. Pure; knows no model."""

from __future__ import annotations

from collections.abc import Sequence


def micro_batches(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Indices of sequences, grouped so that rows * longest row stays within the budget.

    Sorted by length, longest first, so that little is padding and the largest batch comes first: memory that
    suffices for it suffices for all. A sequence longer than the budget stands alone.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    batches: list[list[int]] = []
    for index in order:
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= token_budget:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
