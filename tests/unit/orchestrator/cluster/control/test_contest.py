"""Who scales what is at rest."""

from __future__ import annotations

from orchestrator.cluster.control.contest import SEVERAL, Contests


def test_zero_is_written_at_once_a_few_times_then_after_a_growing_pause() -> None:
    """The first is the suspend itself; the pause doubles up to its bound, and only then anything is told."""
    contests, now, pauses = Contests(), 0.0, []
    for _ in range(SEVERAL + 7):
        now += contests.pause("reward", now)
        contests.wrote("reward", now)
        pauses.append(contests.pause("reward", now))
    assert pauses == [0, 0, 0, 30, 60, 120, 240, 480, 600, 600]
    assert contests.told().startswith("reward is at rest")
    assert contests.look_again(now) == 600


def test_what_stays_at_zero_is_forgotten() -> None:
    """But not before it has stayed for as long as the pause was."""
    contests = Contests()
    for _ in range(SEVERAL + 1):
        contests.wrote("reward", 0.0)
    contests.stayed("reward", 29.0)
    assert contests.told()
    contests.stayed("reward", 30.0)
    assert not contests.told()
    assert contests.look_again(30.0) is None
    assert contests.pause("reward", 30.0) == 0
