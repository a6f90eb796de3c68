"""The ledger: every group is accounted for, whatever happens."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from services.learner import ledger as module
from services.learner.ledger import Admitted, End, Ledger

ENDS: st.SearchStrategy[End] = st.sampled_from(["trained", "stale", "failed"])


class LedgerMachine(RuleBasedStateMachine):
    """Any order of admissions, ends, second ends, adoptions and resumes."""

    groups = Bundle("groups")
    ended = Bundle("ended")

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger()
        self.admitted = 0
        self.numbers: set[int] = set()

    @rule(target=groups, prompt=st.integers(0, 9))
    def admit(self, prompt: int) -> str:
        one = self.ledger.admit(prompt, f"g{self.ledger.next_number}")
        # No admission number is ever given twice.
        assert one.number not in self.numbers
        self.numbers.add(one.number)
        self.admitted += 1
        return one.group_id

    @rule(target=groups, skip=st.integers(0, 5))
    def adopt(self, skip: int) -> str:
        number = self.ledger.next_number + skip
        self.ledger.adopt(Admitted(f"g{number}", number, 0, 0))
        self.numbers.add(number)
        self.admitted += 1
        return f"g{number}"

    @rule(target=ended, group=consumes(groups), how=ENDS)
    def end(self, group: str, how: End) -> str:
        before = self.ledger.counts()[how]
        one = self.ledger.end(group, how)
        assert one is not None
        assert one.group_id == group
        assert self.ledger.counts()[how] == before + 1
        return group

    @rule(group=ended, how=ENDS)
    def end_again(self, group: str, how: End) -> None:
        before = self.ledger.counts()
        assert self.ledger.end(group, how) is None
        assert self.ledger.counts() == before
        assert group in self.ledger.ended

    @rule()
    def resume(self) -> None:
        again = Ledger.of(json.loads(json.dumps(self.ledger.state())))
        assert again == self.ledger
        self.ledger = again

    @invariant()
    def adds_up(self) -> None:
        counts = self.ledger.counts()
        assert (
            counts["admitted"] == counts["trained"] + counts["stale"] + counts["failed"] + counts["in_flight"]
        )
        assert counts["admitted"] == self.admitted
        assert not set(self.ledger.in_flight) & set(self.ledger.ended)


TestLedgerAddsUp = LedgerMachine.TestCase


def test_lost_groups_are_those_that_stand_nowhere() -> None:
    """Of four in flight two are on a stage; the others are lost, oldest first; ended ones are no loss."""
    ledger = Ledger()
    for prompt in range(5):
        ledger.admit(prompt, f"g{prompt}")
    ledger.end("g1", "trained")
    ledger.adopt(Admitted("late", 2, 9, 0))
    assert [one.group_id for one in ledger.lost(["g3", "g0", "stranger"])] == ["g2", "late", "g4"]
    assert ledger.lost(ledger.in_flight) == []


def test_a_readmission_names_what_it_replaces() -> None:
    """It is a new group with a new number; the old one has ended; both are counted."""
    ledger = Ledger()
    first = ledger.admit(7, "a")
    ledger.end("a", "stale")
    second = ledger.admit(first.prompt_index, "b", tries=first.tries + 1, replaces="a")
    assert (second.number, second.prompt_index, second.tries, second.replaces) == (1, 7, 1, "a")
    assert ledger.counts() == {"admitted": 2, "trained": 0, "stale": 1, "failed": 0, "in_flight": 1}


def test_memory_of_ended_groups_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest ids are forgotten first; the counts stay."""
    monkeypatch.setattr(module, "REMEMBERED_GROUPS", 3)
    ledger = Ledger()
    for number in range(5):
        ledger.admit(0, f"g{number}")
        ledger.end(f"g{number}", "trained")
    assert list(ledger.ended) == ["g2", "g3", "g4"]
    assert ledger.counts()["trained"] == 5


@given(st.integers(0, 50), st.integers(0, 50))
def test_adopting_keeps_numbers_unique(first: int, second: int) -> None:
    """After adopting any numbers the next admission has a higher one than all."""
    ledger = Ledger()
    for number in (first, second):
        ledger.adopt(Admitted(f"g{number}", number, 0, 0))
    assert ledger.admit(0, "new").number == max(first, second) + 1


def test_numbers_of_which_nothing_is_left_are_failed() -> None:
    """Given out before the newest adopted one by a learner that is gone, on a queue that lost them: the sum holds."""
    ledger = Ledger()
    for number in (0, 1):
        ledger.admit(0, f"g{number}")
    ledger.end("g0", "trained")
    assert ledger.close_gaps() == 0
    ledger.adopt(Admitted("g5", 5, 0, 0))
    assert ledger.close_gaps() == 3
    assert ledger.counts() == {"admitted": 6, "trained": 1, "stale": 0, "failed": 3, "in_flight": 2}
    assert ledger.admitted == ledger.next_number == 6
    assert ledger.close_gaps() == 0
