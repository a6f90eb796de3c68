"""The ledger: every group is accounted for, whatever happens."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from services.common.errors import Mismatch
from services.learner.ended import GroupName
from services.learner.ledger import Admitted, End, Ledger

ENDS: st.SearchStrategy[End] = st.sampled_from(["trained", "stale", "failed"])


def name(number: int) -> str:
    return str(GroupName(1, number, 0))


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
        one = self.ledger.admit(prompt, name(self.ledger.next_number))
        # No admission number is ever given twice.
        assert one.number not in self.numbers
        self.numbers.add(one.number)
        self.admitted += 1
        return one.group_id

    @rule(target=groups, skip=st.integers(0, 5))
    def adopt(self, skip: int) -> str:
        number = self.ledger.next_number + skip
        self.ledger.adopt(Admitted(name(number), number, 0, 0))
        self.numbers.add(number)
        self.admitted += 1
        return name(number)

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
        assert self.ledger.has_ended(group)

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
        assert not any(self.ledger.has_ended(group) for group in self.ledger.in_flight)


TestLedgerAddsUp = LedgerMachine.TestCase


def test_lost_groups_are_those_that_stand_nowhere() -> None:
    """Of four in flight two are on a stage; the others are lost, oldest first; ended ones are no loss."""
    ledger = Ledger()
    for prompt in range(5):
        ledger.admit(prompt, name(prompt))
    ledger.end(name(1), "trained")
    ledger.adopt(Admitted("late", 2, 9, 0))
    assert [one.group_id for one in ledger.lost([name(3), name(0), "stranger"])] == [name(2), "late", name(4)]
    assert ledger.lost(ledger.in_flight) == []


def test_only_what_failed_and_was_given_up_can_be_reopened() -> None:
    """It is in flight again and may fail again; its neighbours have ended as before."""
    ledger = Ledger()
    for prompt in range(4):
        ledger.admit(prompt, name(prompt))
    for number in range(3):
        ledger.end(name(number), "failed")
    ledger.end(name(3), "stale")
    for number in (1, 3):
        ledger.give_up(name(number))
    ledger = Ledger.of(json.loads(json.dumps(ledger.state())))
    assert [ledger.reopen(name(number), tries=2) for number in range(5)] == [False, True, False, False, False]
    assert ledger.in_flight == {name(1): Admitted(name(1), 1, 0, 2)}
    assert [ledger.has_ended(name(number)) for number in range(4)] == [True, False, True, True]
    assert ledger.counts() == {"admitted": 4, "trained": 0, "stale": 1, "failed": 2, "in_flight": 1}
    assert not ledger.reopen(name(1), tries=2)
    ledger.end(name(1), "failed")
    assert ledger.counts()["failed"] == 3


def test_a_readmission_names_what_it_replaces() -> None:
    """It is a new group with a new number; the old one has ended; both are counted."""
    ledger = Ledger()
    first = ledger.admit(7, name(0))
    ledger.end(name(0), "stale")
    second = ledger.admit(first.prompt_index, name(1), tries=first.tries + 1, replaces=name(0))
    assert (second.number, second.prompt_index, second.tries, second.replaces) == (1, 7, 1, name(0))
    assert ledger.counts() == {"admitted": 2, "trained": 0, "stale": 1, "failed": 0, "in_flight": 1}


def test_a_long_run_is_remembered_in_little() -> None:
    """A hundred thousand groups that end nearly in order are a handful of ranges, and every one of them is known."""
    ledger = Ledger()
    for number in range(0, 100_000, 2):
        for each in (number + 1, number):
            ledger.adopt(Admitted(name(each), each, 0, 0))
            ledger.end(name(each), "trained")
    assert len(json.dumps(ledger.state())) < 300
    assert all(ledger.has_ended(name(number)) for number in range(0, 100_000, 997))
    assert not ledger.has_ended(name(100_000))


@pytest.mark.parametrize(
    "stranger", ["", "g", "1-0-0", "1-00000000", "1-00000000-x", "1-0000000_0-0", "-1-00000000-0"]
)
def test_an_id_that_no_learner_gave_has_not_ended(stranger: str) -> None:
    """Whatever stands in the queue: it is no error to ask."""
    ledger = Ledger()
    ledger.admit(0, name(0))
    ledger.end(name(0), "trained")
    assert not ledger.has_ended(stranger)


def test_a_checkpoint_of_an_earlier_form_says_so() -> None:
    """One line that says what to do, no KeyError."""
    state = Ledger().state() | {"ended": [["1-00000000-0", "trained"]]}
    with pytest.raises(Mismatch, match="begin a new run"):
        Ledger.of(state)


@given(st.integers(0, 50), st.integers(0, 50))
def test_adopting_keeps_numbers_unique(first: int, second: int) -> None:
    """After adopting any numbers the next admission has a higher one than all."""
    ledger = Ledger()
    for number in (first, second):
        ledger.adopt(Admitted(name(number), number, 0, 0))
    assert ledger.admit(0, "new").number == max(first, second) + 1


def test_numbers_of_which_nothing_is_left_are_failed() -> None:
    """Given out before the newest adopted one by a learner that is gone, on a queue that lost them: the sum holds."""
    ledger = Ledger()
    for number in (0, 1):
        ledger.admit(0, name(number))
    ledger.end(name(0), "trained")
    assert ledger.close_gaps() == 0
    ledger.adopt(Admitted(name(5), 5, 0, 0))
    assert ledger.close_gaps() == 3
    assert ledger.counts() == {"admitted": 6, "trained": 1, "stale": 0, "failed": 3, "in_flight": 2}
    assert ledger.admitted == ledger.next_number == 6
    assert ledger.close_gaps() == 0
