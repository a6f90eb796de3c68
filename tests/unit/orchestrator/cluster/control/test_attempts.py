"""Which attempt of the learner goes on: the table of attempts.py, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.cluster.control.attempts import (
    Count,
    JobState,
    JobView,
    Learner,
    Terms,
    backoff_seconds,
    next_learner,
)
from orchestrator.cluster.control.pods import PodView

NOW = datetime(2026, 1, 2, tzinfo=UTC)
TERMS = Terms(steps=8, restart_limit=2)
STUCK = PodView(name="run-1-0-x", deleting=NOW - timedelta(minutes=1))
GOING = PodView(name="run-1-0-x", deleting=NOW + timedelta(seconds=10))


def job(state: JobState, attempt: int = 1, *, steps: int = 8, users_mistake: bool = False) -> JobView:
    return JobView(
        name=f"run-{attempt}",
        state=state,
        attempt=attempt,
        steps=steps,
        message="boom",
        users_mistake=users_mistake,
    )


def decide(
    *jobs: JobView,
    count: Count | None = None,
    pods: Sequence[PodView] = (),
    wanted: bool = True,
    terms: Terms = TERMS,
) -> Learner:
    return next_learner(count or Count(), jobs, pods, wanted=wanted, terms=terms, now=NOW)


def test_the_first_attempt() -> None:
    """Nothing there: attempt 1."""
    told = decide()
    assert (told.attempt, told.count.attempt, told.delete) == (1, 1, ())


def test_an_attempt_number_is_used_once() -> None:
    """Status or a Job that is there, whichever knows more, says which comes next."""
    assert decide(count=Count(attempt=4)).attempt == 5
    assert decide(job(JobState.RUNNING, 7), count=Count(attempt=4)).count.attempt == 7


def test_one_that_goes_on_is_left_alone() -> None:
    """And an older Job beside it goes."""
    told = decide(job(JobState.RUNNING, 2), job(JobState.FAILED, 1))
    assert (told.attempt, told.delete, told.finished) == (2, ("run-1",), "")


def test_complete_is_success_unless_more_steps_are_wanted() -> None:
    """More steps continue a run: its Job goes, and no failure is counted."""
    assert decide(job(JobState.COMPLETE)).finished == "Succeeded"
    more = decide(job(JobState.COMPLETE, steps=4))
    assert (more.finished, more.delete, more.count.restarts) == ("", ("run-1",), 0)


@pytest.mark.parametrize(
    ("bereft", "checkpoint_step", "finished"),
    [(True, 7, ""), (True, 8, "Succeeded"), (False, 0, "Succeeded")],
)
def test_complete_is_doubted_where_a_pod_was_taken_away(
    bereft: bool, checkpoint_step: int, finished: str
) -> None:
    """Unless the last checkpoint is of the last step; a learner that nobody disturbed and nobody asked is believed."""
    ended = replace(job(JobState.COMPLETE), bereft=bereft)
    told = decide(ended, terms=replace(TERMS, checkpoint_step=checkpoint_step))
    assert told.finished == finished
    assert told.delete == (() if finished else ("run-1",))
    assert told.count.restarts == 0


def test_a_learner_that_was_told_to_end_while_suspended_has_not_succeeded() -> None:
    """Its Job goes like any other."""
    told = decide(replace(job(JobState.COMPLETE), bereft=True), wanted=False)
    assert (told.finished, told.delete) == ("", ("run-1",))


def test_an_attempt_that_the_cluster_ended_is_nobodys_failure() -> None:
    """It is told and counted among the restarts, but not in the row that ends the run."""
    count = Count(attempt=3, counted=2, restarts=2, in_a_row=2)
    told = decide(replace(job(JobState.FAILED, 3), disrupted=True), count=count)
    assert (told.finished, told.failed_now, told.delete) == ("", "boom", ("run-3",))
    assert (told.count.counted, told.count.restarts, told.count.in_a_row) == (3, 3, 2)


def test_not_wanted_means_no_job() -> None:
    """Suspended: whatever is there goes, and a pod that cannot end is helped."""
    told = decide(job(JobState.RUNNING), wanted=False, pods=[STUCK])
    assert (told.attempt, told.delete, told.force) == (None, ("run-1",), ("run-1-0-x",))


def test_the_last_job_of_a_failed_run_stays() -> None:
    """Its pods' logs say why; older Jobs go, and so does one that still runs, and all of it for another try."""
    failed = replace(TERMS, failed=True)
    jobs = [job(JobState.FAILED, 1), job(JobState.FAILED, 2)]
    told = decide(*jobs, count=Count(attempt=2, counted=2), wanted=False, terms=failed)
    assert (told.attempt, told.delete, told.count.restarts) == (None, ("run-1",), 0)
    assert decide(job(JobState.RUNNING), wanted=False, terms=failed).delete == ("run-1",)
    assert decide(*jobs, terms=replace(TERMS, anew=True)).delete == ("run-1", "run-2")


def test_another_try_after_a_mistake_is_one() -> None:
    """The old Job may outlive the look that begins anew, where nobody could delete it: it fails the run no more."""
    mistaken, failed = job(JobState.FAILED, users_mistake=True), replace(TERMS, failed=True)
    first = decide(mistaken)
    assert (first.finished, first.count.counted) == ("Failed", 1)
    assert decide(mistaken, count=first.count, wanted=False, terms=failed).delete == ()
    anew = decide(mistaken, count=first.count, terms=replace(TERMS, anew=True))
    assert (anew.finished, anew.delete) == ("", ("run-1",))
    again = decide(mistaken, count=anew.count)
    assert (again.finished, again.delete) == ("", ("run-1",))


def test_a_failure_is_counted_once() -> None:
    """The first look counts and tells it; the next, with status written, only deletes."""
    first = decide(job(JobState.FAILED))
    assert (first.count.restarts, first.count.in_a_row, first.failed_now) == (1, 1, "boom")
    assert first.delete == ("run-1",)
    again = decide(job(JobState.FAILED), count=first.count)
    assert (again.count, again.failed_now, again.delete) == (first.count, "", ("run-1",))


def test_failures_in_a_row_end_the_run() -> None:
    """The third of two that are allowed; the Job stays, to be looked at."""
    told = decide(job(JobState.FAILED, 3), count=Count(attempt=3, counted=2, restarts=2, in_a_row=2))
    assert told.finished == "Failed"
    assert told.delete == ()
    assert "3 attempts in a row" in told.message


def test_a_checkpoint_between_failures_begins_the_count_anew() -> None:
    """A later step of the last checkpoint is progress."""
    count = Count(attempt=3, counted=2, restarts=2, in_a_row=2, at_step=4)
    told = decide(job(JobState.FAILED, 3), count=count, terms=replace(TERMS, checkpoint_step=6))
    assert (told.finished, told.count.in_a_row, told.count.restarts, told.count.at_step) == ("", 1, 3, 6)


def test_a_users_mistake_ends_the_run_at_once() -> None:
    """Another attempt would end the same way."""
    told = decide(job(JobState.FAILED, users_mistake=True))
    assert told.finished == "Failed"


def test_a_changed_spec_is_another_try() -> None:
    """The failed Job goes, whatever it failed by."""
    told = decide(
        job(JobState.FAILED, 3, users_mistake=True),
        count=Count(attempt=3, counted=3),
        terms=replace(TERMS, anew=True),
    )
    assert (told.finished, told.delete, told.count.in_a_row) == ("", ("run-3",), 0)


def test_a_pod_that_cannot_end_is_a_failure() -> None:
    """Its node is gone: counted, removed by force, begun again."""
    told = decide(job(JobState.RUNNING), pods=[STUCK])
    assert (told.delete, told.force, told.count.restarts) == (("run-1",), ("run-1-0-x",), 1)
    assert "node" in told.failed_now


def test_a_pod_within_its_grace_period_is_no_failure() -> None:
    """It is looked at again: nothing else would tell that it stays."""
    told = decide(job(JobState.RUNNING), pods=[GOING])
    assert (told.delete, told.count.restarts) == ((), 0)
    assert told.wait_seconds is not None


def test_the_next_attempt_waits_for_the_pods_of_the_one_before() -> None:
    """Their GPUs are taken, and two writers of one folder help nobody."""
    count = Count(attempt=1, counted=1, restarts=1, in_a_row=1)
    told = decide(count=count, pods=[PodView(name="run-1-0-x")])
    assert (told.attempt, told.force) == (None, ())
    assert told.wait_seconds is not None
    assert decide(count=count, pods=[STUCK]).force == ("run-1-0-x",)


def test_the_next_attempt_waits_for_its_back_off() -> None:
    """The failed Job stays until it is over, with or without pods, and tells a new operator when it ended."""
    ended = replace(job(JobState.FAILED), ended=NOW - timedelta(seconds=3))
    pod = PodView(name="run-1-0-x", ended=True)
    first = decide(ended)
    assert (first.failed_now, first.attempt, first.delete, first.wait_seconds) == ("boom", None, (), 2.0)
    again = decide(ended, count=first.count, pods=[pod])
    assert (again.count, again.failed_now, again.delete, again.wait_seconds) == (first.count, "", (), 2.0)
    over = decide(replace(ended, ended=NOW - timedelta(seconds=5)), count=first.count)
    assert (over.delete, over.wait_seconds) == (("run-1",), None)
    assert decide(count=first.count, pods=[pod]).attempt == 2


def test_who_acts_does_not_wait_for_the_back_off() -> None:
    """Suspended, or tried anew by a changed spec: the Job goes at once; one that failed too often ends at once."""
    ended, count = replace(job(JobState.FAILED), ended=NOW), Count(attempt=1, counted=1, in_a_row=1)
    assert decide(ended, count=count, wanted=False).delete == ("run-1",)
    assert decide(ended, count=count, terms=replace(TERMS, anew=True)).delete == ("run-1",)
    assert decide(ended, count=count, terms=replace(TERMS, restart_limit=0)).finished == "Failed"


def test_a_job_that_somebody_removed_is_no_failure() -> None:
    """The next attempt begins, nothing is counted."""
    told = decide(count=Count(attempt=1))
    assert (told.attempt, told.count.restarts) == (2, 0)
    assert decide(job(JobState.GOING), count=Count(attempt=1)).attempt is None


@pytest.mark.parametrize(("in_a_row", "seconds"), [(0, 0), (1, 5), (2, 10), (3, 20), (7, 300), (1000, 300)])
def test_back_off(in_a_row: int, seconds: float) -> None:
    """Doubles up to five minutes."""
    assert backoff_seconds(in_a_row) == seconds
