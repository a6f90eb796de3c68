"""What is learned of speeds."""

import pytest

from orchestrator.planning.observed import LearnerObserved, RoleMemory, RoleMetrics
from orchestrator.planning.rates import learn_role, learn_steps, step_estimate, work_estimate


def scrapes(
    memory: RoleMemory, work: float, count: int, *, groups: int = 16, revision: str = ""
) -> RoleMemory:
    for index in range(count):
        wobble = 1 + 0.05 * (-1) ** index
        metrics = RoleMetrics(
            busy_seconds=work * groups * wobble, completed_groups=groups, backlog_groups=0, revision=revision
        )
        memory = learn_role(memory, metrics)
    return memory


def test_the_ratio_of_sums_is_learned() -> None:
    """Ten blocks of 5 slot-seconds a group are known to better than 3 %."""
    estimate = work_estimate(scrapes(RoleMemory(), 5.0, 10), None)
    assert estimate is not None
    assert estimate.mean == pytest.approx(5.0, rel=0.02)
    assert 0 < estimate.error < 0.03


def test_few_completions_wait_for_a_full_block() -> None:
    """A scrape with three completions alone says nothing yet; together with the next it does."""
    memory = learn_role(RoleMemory(), RoleMetrics(busy_seconds=30, completed_groups=3, backlog_groups=0))
    assert work_estimate(memory, None) is None
    assert work_estimate(memory, 7.0).mean == 7.0  # type: ignore[union-attr]
    memory = learn_role(memory, RoleMetrics(busy_seconds=130, completed_groups=13, backlog_groups=0))
    assert work_estimate(memory, 7.0).mean == pytest.approx(10.0)  # type: ignore[union-attr]


def test_one_wild_block_moves_nothing() -> None:
    """A stall that makes one block ten times as long leaves the estimate where it was."""
    memory = scrapes(RoleMemory(), 5.0, 15)
    memory = scrapes(memory, 50.0, 1)
    memory = scrapes(memory, 5.0, 4)
    estimate = work_estimate(memory, None)
    assert estimate is not None
    assert estimate.mean == pytest.approx(5.0, rel=0.05)


def test_a_step_change_is_learned_after_two_blocks() -> None:
    """Two blocks at twice the time are a new rate; the old ones are forgotten."""
    memory = scrapes(scrapes(RoleMemory(), 5.0, 20), 10.0, 2)
    estimate = work_estimate(memory, None)
    assert estimate is not None
    assert estimate.mean == pytest.approx(10.0, rel=0.06)
    assert len(memory.blocks) == 2


def test_a_new_revision_forgets_at_once_and_keeps_the_old_rate_meanwhile() -> None:
    """After a swap the old speed is a guess with a large error until a block of the new one is there."""
    memory = scrapes(RoleMemory(), 5.0, 20, revision="a")
    memory = learn_role(
        memory, RoleMetrics(busy_seconds=20, completed_groups=2, backlog_groups=0, revision="b")
    )
    guess = work_estimate(memory, None)
    assert guess is not None
    assert (guess.mean, guess.error) == (pytest.approx(5.0, rel=0.02), 0.15)
    learned = work_estimate(scrapes(memory, 10.0, 1, revision="b"), None)
    assert learned is not None
    assert learned.mean == pytest.approx(10.5, rel=0.06)


def test_a_faster_learner_counts_at_once_and_a_slower_one_after_two_steps() -> None:
    """Nothing shortens a step by accident; a checkpoint may lengthen one."""
    steps = learn_steps((), LearnerObserved(step_seconds=(60.0,) * 10))
    assert step_estimate(learn_steps(steps, LearnerObserved(step_seconds=(30.0,))), None).mean == 30.0  # type: ignore[union-attr]
    once = learn_steps(steps, LearnerObserved(step_seconds=(120.0,)))
    assert step_estimate(once, None).mean == 60.0  # type: ignore[union-attr]
    thrice = learn_steps(once, LearnerObserved(step_seconds=(120.0, 118.0)))
    assert step_estimate(thrice, None).mean == 120.0  # type: ignore[union-attr]


def test_without_steps_the_told_time_is_used() -> None:
    """Before the first step there is what the spec says, or nothing."""
    assert step_estimate((), None) is None
    assert step_estimate((), 42.0).mean == 42.0  # type: ignore[union-attr]
