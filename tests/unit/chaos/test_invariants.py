"""Every invariant is silent where all holds and says one sentence about what breaks it."""

from __future__ import annotations

from tests.chaos.invariants import (
    clear_lines,
    counts_add_up,
    dead_letters_told,
    epochs_rise,
    full_disk_told,
    groups_whole,
    labels_kept,
    losses_counted,
    losses_noticed,
    resumes_rise,
    trained_on_known,
    versions_rise,
)


def test_counts_and_groups() -> None:
    """A count that lacks one; a group that lacks a completion."""
    row = {"step": 3.0, "rollouts/admitted": 40.0, "rollouts/trained": 30.0, "rollouts/stale": 2.0}
    row |= {"rollouts/failed": 1.0, "rollouts/in_flight": 7.0}
    assert counts_add_up(row) == []
    assert len(counts_add_up(row | {"rollouts/in_flight": 6.0})) == 1
    rows = [{"group": "a"}] * 2 + [{"group": "b"}] * 2
    assert groups_whole(1, rows, 2) == []
    assert len(groups_whole(1, rows[:3], 2)) == 1


def test_versions_epochs_and_resumes() -> None:
    """A step back within an epoch, an epoch back, an epoch twice, an older checkpoint, unknown bytes."""
    assert versions_rise("policy", [(1, 0), (1, 3), (1, 3), (2, 1)]) == []
    assert len(versions_rise("policy", [(1, 4), (1, 3)])) == 1
    assert len(versions_rise("policy", [(2, 0), (1, 9)])) == 1
    assert epochs_rise([1, 2, 4]) == []
    assert len(epochs_rise([1, 2, 2])) == 1
    assert resumes_rise([10, 10, 30]) == []
    assert len(resumes_rise([10, 30, 20])) == 1
    rows = [{"group": "a", "versions": [(1, 0, "x")]}, {"group": "b", "versions": [(1, 1, "y")]}]
    known = {(1, 0): {"x"}, (1, 1): {"y"}}
    assert trained_on_known(1, rows, known) == []
    assert len(trained_on_known(1, rows, {**known, (1, 1): {"z"}})) == 1


def test_a_queue_that_came_back_empty() -> None:
    """A loss after which nobody said a word; a word without a number."""
    assert losses_noticed([100, 500], [50, 130, 600]) == []
    assert losses_noticed([100, 120], [130]) == []
    assert len(losses_noticed([100, 500], [130])) == 1
    empty = {"event": "the queue server came back empty", "in_flight": 3}
    gone = {"event": "groups are gone from the queue and are admitted again", "groups": 2}
    assert losses_counted([empty, gone, {"event": "finished"}]) == []
    assert len(losses_counted([{"event": empty["event"]}, gone])) == 1


def test_a_full_disk_is_told_of() -> None:
    """A learner that ended under it and said something else."""
    said = ["{}", "trimtab-learner: no room on disk for metrics.jsonl"]
    assert full_disk_told([("learner", said)]) == []
    assert len(full_disk_told([("learner", said), ("learner", ["trimtab-learner: I/O error"])])) == 1


def test_errors_are_single_lines() -> None:
    """A plain traceback, one in a field; but not those that are known, and not the words in another line."""
    plain = ["Traceback (most recent call last):", '  File "x"', "OSError: boom", '{"event": "serving"}']
    field = ['{"event": "failed", "exception": "Traceback (most recent call last): KeyError"}']
    assert clear_lines("reward", ["no Traceback", '{"event": "gone", "error": "one line"}']) == []
    assert len(clear_lines("reward", [*plain, *plain])) == 2
    assert len(clear_lines("reward", field)) == 1
    assert clear_lines("reward", plain + field, ["OSError: boom", "KeyError"]) == []
    assert len(clear_lines("reward", plain + field, ["serving"])) == 2


def test_dead_letters_are_told_of() -> None:
    """One that nobody told of, one that was told of and is gone; an emptied server has fewer."""
    assert dead_letters_told(2, 2, emptied=False) == []
    assert dead_letters_told(1, 2, emptied=True) == []
    assert len(dead_letters_told(1, 2, emptied=False)) == 1
    assert len(dead_letters_told(3, 2, emptied=True)) == 1


def test_acknowledged_labels_are_kept() -> None:
    """One gone, one twice, one changed, one that nobody sent, an item too few or too many."""
    sent = {"a": 1, "b": 2, "c": 1}
    said = {"a": 1, "b": 2}

    def told(there: list[tuple[str, int]], *, items: int = 3) -> list[str]:
        return labels_kept(sent, said, there, uploaded=3, items=items)

    whole = [("a", 1), ("b", 2)]
    assert told(whole) == []
    # Sent, kept, and not acknowledged: the answer was lost.
    assert told([*whole, ("c", 1)], items=4) == []
    assert told(whole[:1]) == ["comparison of b was acknowledged and is gone"]
    assert told([*whole, ("a", 1)]) == ["comparison of a is there 2 times"]
    assert told([("a", 2), ("b", 2)]) == ["task a has answer 2, 1 was sent"]
    assert told([*whole, ("d", 1)]) == ["task d has answer 1, None was sent"]
    assert len(told(whole, items=2)) == len(told(whole, items=5)) == 1
