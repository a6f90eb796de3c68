"""Which key is worked on next."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cluster.control.queue import WorkQueue


def test_a_key_stands_in_it_once() -> None:
    """However often it was added, it is worked on once."""
    queue: WorkQueue[str] = WorkQueue()
    for _ in range(3):
        queue.add("a", 0)
    assert len(queue) == 1
    assert [queue.take(0), queue.take(0)] == ["a", None]


def test_oldest_first() -> None:
    """A key that is added again keeps its place."""
    queue: WorkQueue[str] = WorkQueue()
    for key in "abca":
        queue.add(key, 0)
    assert [queue.take(0) for _ in range(3)] == ["a", "b", "c"]


def test_it_tells_how_long_a_key_stood_in_it() -> None:
    """From when it was added, was due, or was added while it was worked on; not from when nobody was to work."""
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a", 1)
    queue.add("a", 3)
    assert (queue.take(6), queue.waited("a")) == ("a", 5)
    queue.add("a", 7)
    queue.done("a")
    assert (queue.take(10), queue.waited("a")) == ("a", 3)
    queue.done("a")
    queue.add_after("a", 2, 10)
    assert (queue.take(15), queue.waited("a")) == ("a", 3)
    queue.done("a")
    queue.add("a", 20)
    queue.add_after("b", 5, 20)
    queue.wait_from(90)
    assert (queue.take(91), queue.waited("a")) == ("a", 1)
    assert (queue.take(92), queue.waited("b")) == ("b", 2)


def test_what_is_added_while_it_is_worked_on_comes_again_afterwards() -> None:
    """Never two workers on one key, and no change is missed."""
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a", 0)
    assert queue.take(0) == "a"
    queue.add("a", 0)
    assert queue.take(0) is None
    queue.done("a")
    assert queue.take(0) == "a"
    queue.done("a")
    assert queue.take(0) is None


def test_back_off_doubles_up_to_a_bound_and_begins_anew_after_success() -> None:
    """1, 2, 4, 5, 5 seconds; after a success 1 again."""
    queue: WorkQueue[str] = WorkQueue(first_seconds=1, most_seconds=5)
    assert [queue.failed("a", 0) for _ in range(5)] == [1, 2, 4, 5, 5]
    queue.succeeded("a")
    assert queue.failed("a", 0) == 1


def test_a_delay_is_kept_unless_something_sooner_comes() -> None:
    """What is due sooner wins; an add without delay wins over all."""
    queue: WorkQueue[str] = WorkQueue()
    queue.add_after("a", 10, now=0)
    queue.add_after("a", 3, now=0)
    queue.add_after("a", 20, now=0)
    assert queue.wait_seconds(1) == 2
    assert queue.take(2.9) is None
    assert queue.take(3) == "a"
    queue.done("a")
    queue.add_after("a", 10, now=3)
    queue.add("a", 0)
    assert queue.take(3) == "a"
    queue.done("a")
    assert queue.wait_seconds(3) is None


def test_a_delay_asked_for_while_it_is_worked_on() -> None:
    """Counts from then, and holds nobody up."""
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a", 0)
    queue.take(0)
    queue.add_after("a", 5, now=0)
    queue.done("a")
    assert queue.take(4) is None
    assert queue.take(5) == "a"


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["add", "later", "take", "done", "fail"]))))
def test_no_key_is_lost_and_none_is_worked_on_twice(steps: list[tuple[str, str]]) -> None:
    """Whatever happens in whatever order: after the last add of a key there is a take of it."""
    queue: WorkQueue[str] = WorkQueue()
    working: set[str] = set()
    owed: set[str] = set()
    now = 0.0
    for key, step in steps:
        now += 1
        if step == "add":
            queue.add(key, 0)
            owed.add(key)
        elif step == "later":
            queue.add_after(key, 2, now)
            owed.add(key)
        elif step == "take" and (taken := queue.take(now)) is not None:
            assert taken not in working
            working.add(taken)
            owed.discard(taken)
        elif key in working:
            queue.done(key)
            working.discard(key)
            if step == "fail":
                queue.failed(key, now)
                owed.add(key)
    for key in working:
        queue.done(key)
    left = set()
    while (taken := queue.take(now + 1e6)) is not None:
        left.add(taken)
        queue.done(taken)
    assert owed <= left
