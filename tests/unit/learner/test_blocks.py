"""Which neighbouring tensors each process of a learner publishes: all, once, about equally many bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.learner.distributed.publishing import blocks


@pytest.mark.parametrize(
    ("sizes", "processes", "counts"),
    [
        ([1, 1, 1, 1], 2, [2, 2]),
        ([10, 1, 1, 1], 2, [1, 3]),
        ([1, 1, 10], 2, [2, 1]),
        ([5], 3, [0, 1, 0]),
        ([0, 0], 2, [2, 0]),
        ([], 2, [0, 0]),
    ],
)
def test_by_hand(sizes: list[int], processes: int, counts: list[int]) -> None:
    """A tensor goes to whoever has the middle of its bytes."""
    assert blocks(sizes, processes) == counts


@given(st.lists(st.integers(0, 1000), max_size=40), st.integers(1, 9))
def test_all_are_given_away_and_none_has_much_more_than_its_share(sizes: list[int], processes: int) -> None:
    """At most the largest tensor more than an equal part."""
    counts = blocks(sizes, processes)
    assert len(counts) == processes
    assert sum(counts) == len(sizes)
    begin = 0
    for count in counts:
        assert sum(sizes[begin : begin + count]) <= sum(sizes) / processes + max(sizes, default=0)
        begin += count
