"""Sets of groups as ranges: what a plain set says, in less."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.learner import ended as module
from services.learner.ended import GroupName, GroupRanges, Range

NAMES = st.builds(GroupName, st.integers(1, 3), st.integers(0, 12), st.just(0))


@given(st.lists(NAMES, max_size=40))
def test_as_a_plain_set(names: list[GroupName]) -> None:
    """In any order, twice too: the same members, in as few ranges as there can be."""
    ranges = GroupRanges()
    for name in names:
        ranges.add(name)
    members = {name[:2] for name in names}
    every = (GroupName(epoch, number, 0) for epoch in range(5) for number in range(15))
    assert {name[:2] for name in every if name in ranges} == members
    begins = sorted((epoch, number) for epoch, number in members if (epoch, number - 1) not in members)
    assert [(one.epoch, one.first) for one in ranges.ranges] == begins


def test_the_oldest_ranges_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing ends in order, memory stays bounded."""
    monkeypatch.setattr(module, "REMEMBERED_RANGES", 3)
    ranges = GroupRanges()
    for number in range(0, 10, 2):
        ranges.add(GroupName(1, number, 0))
    assert ranges.ranges == [Range(1, number, number) for number in (4, 6, 8)]


def test_names_are_written_and_read() -> None:
    """What a learner writes is what it reads."""
    assert str(GroupName(2, 137, 5)) == "2-00000137-5"
    assert GroupName.of("2-00000137-5") == (2, 137, 5)
    with pytest.raises(ValueError, match="no id"):
        GroupName.of("2-137-5")
