"""The process planner, by its table."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.planning.processes import (
    Action,
    Forget,
    GiveUp,
    History,
    Kill,
    Limits,
    Restart,
    Seen,
    Start,
    Terminate,
    Wanted,
    backoff_seconds,
    count_end,
    describe_exit,
    phase,
    plan,
)

LIMITS = Limits()
NOW = 1000.0
WANT = Wanted(name="a")
ONCE = Wanted(name="a", restart=Restart.ON_FAILURE)
JOB = Wanted(name="a", restart=Restart.NEVER)
RUNNING = Seen(
    name="a", running=True, serving=True, started_at=900.0, serving_since=905.0, last_answer_at=999.5
)
ENDED = Seen(
    name="a",
    running=False,
    started_at=900.0,
    serving_since=905.0,
    ended_at=999.0,
    exit_code=1,
    history=History(failures=1),
)


@pytest.mark.parametrize(
    ("case", "want", "seen", "action"),
    [
        ("never started", WANT, None, Start("a")),
        ("serving", WANT, RUNNING, None),
        ("starting, silent but in time", WANT, Seen(name="a", running=True, started_at=401.0), None),
        (
            "starting, silent too long",
            WANT,
            Seen(name="a", running=True, started_at=400.0),
            Kill("a", "its health port was silent for 600 s"),
        ),
        ("running, silent but in time", WANT, replace(RUNNING, last_answer_at=880.5), None),
        (
            "running, silent too long",
            WANT,
            replace(RUNNING, last_answer_at=880.0),
            Kill("a", "its health port was silent for 120 s"),
        ),
        (
            "silent, killed already",
            WANT,
            replace(RUNNING, last_answer_at=880.0, killed_at=999.0),
            None,
        ),
        ("end asked for, draining", WANT, replace(RUNNING, terminated_at=990.0), None),
        (
            "end asked for, overdue",
            WANT,
            replace(RUNNING, terminated_at=985.0),
            Kill("a", "it did not drain within 15 s"),
        ),
        ("ended on request, wanted again", WANT, replace(ENDED, terminated_at=990.0), Start("a")),
        ("failed, back-off not over", WANT, replace(ENDED, ended_at=999.5), None),
        ("failed, back-off over", WANT, ENDED, Start("a")),
        ("fourth failure waits 8 s", WANT, replace(ENDED, ended_at=992.5, history=History(failures=4)), None),
        ("and no longer", WANT, replace(ENDED, ended_at=992.0, history=History(failures=4)), Start("a")),
        ("service ended with 0", WANT, replace(ENDED, exit_code=0), Start("a")),
        ("killed by a signal", WANT, replace(ENDED, exit_code=-9), Start("a")),
        ("user's mistake", WANT, replace(ENDED, exit_code=2), GiveUp("a", "its configuration is wrong")),
        (
            "fourth fast failure",
            WANT,
            replace(ENDED, ended_at=900.0, history=History(failures=4, fast_failures=4)),
            Start("a"),
        ),
        (
            "fifth fast failure",
            WANT,
            replace(ENDED, ended_at=900.0, history=History(failures=5, fast_failures=5)),
            GiveUp("a", "it failed 5 times in a row right after its start"),
        ),
        (
            "second slow failure with the same error",
            WANT,
            replace(ENDED, ended_at=900.0, history=History(failures=2, same_errors=2, error="no room")),
            Start("a"),
        ),
        (
            "third slow failure with the same error",
            WANT,
            replace(ENDED, ended_at=900.0, history=History(failures=3, same_errors=3, error="no room")),
            GiveUp("a", "it failed 3 times in a row with the same error"),
        ),
        ("given up", WANT, replace(ENDED, given_up=True), None),
        ("finished run", ONCE, replace(ENDED, exit_code=0), None),
        ("failed run", ONCE, ENDED, Start("a")),
        ("finished job", JOB, replace(ENDED, exit_code=0), None),
        ("failed job", JOB, ENDED, None),
        ("failed job, user's mistake", JOB, replace(ENDED, exit_code=2), None),
        ("unwanted, running", None, RUNNING, Terminate("a")),
        ("unwanted, draining", None, replace(RUNNING, terminated_at=990.0), None),
        (
            "unwanted, overdue",
            None,
            replace(RUNNING, terminated_at=985.0),
            Kill("a", "it did not drain within 15 s"),
        ),
        ("unwanted, killed", None, replace(RUNNING, terminated_at=980.0, killed_at=995.0), None),
        ("unwanted, ended", None, ENDED, Forget("a")),
        ("unwanted, given up", None, replace(ENDED, given_up=True), Forget("a")),
    ],
)
def test_table(case: str, want: Wanted | None, seen: Seen | None, action: Action | None) -> None:
    """Each row of the transition table gives its action and no other."""
    wanted = [] if want is None else [want]
    observed = [] if seen is None else [seen]
    assert plan(wanted, observed, NOW, LIMITS) == ([] if action is None else [action]), case


def test_first_start_waits_for_needs() -> None:
    """A process is first started when all that it needs serve, and is not stopped when one fails later."""
    needs = Wanted(name="b", needs=("a",))
    assert plan([WANT, needs], [], NOW, LIMITS) == [Start("a")]
    starting = replace(RUNNING, serving=False)
    assert plan([WANT, needs], [starting], NOW, LIMITS) == []
    assert plan([WANT, needs], [RUNNING], NOW, LIMITS) == [Start("b")]
    other = replace(RUNNING, name="b")
    assert plan([WANT, needs], [ENDED, other], NOW, LIMITS) == [Start("a")]


def test_drain_goes_by_rank() -> None:
    """Only the lowest rank that still runs is asked to end; the next one when it is gone."""
    learner, policy, reward, queue = (
        replace(RUNNING, name=name, drain_rank=rank)
        for name, rank in (("learner", 0), ("policy", 1), ("reward", 1), ("queue", 2))
    )
    assert plan([], [policy, learner, queue, reward], NOW, LIMITS) == [Terminate("learner")]
    gone = replace(learner, running=False)
    assert plan([], [gone, policy, queue, reward], NOW, LIMITS) == [
        Forget("learner"),
        Terminate("policy"),
        Terminate("reward"),
    ]
    draining = replace(policy, terminated_at=999.0)
    assert plan([], [draining, queue], NOW, LIMITS) == []
    assert plan([], [queue], NOW, LIMITS) == [Terminate("queue")]


def test_plan_is_idempotent() -> None:
    """The same look gives the same plan: nothing is remembered between calls."""
    seen = [ENDED, replace(RUNNING, name="b")]
    assert plan([WANT], seen, NOW, LIMITS) == plan([WANT], seen, NOW, LIMITS)


@pytest.mark.parametrize(
    ("failures", "seconds"), [(0, 0), (1, 1), (2, 2), (3, 4), (4, 8), (5, 16), (6, 30), (7, 30), (5000, 30)]
)
def test_backoff_doubles_to_a_bound(failures: int, seconds: float) -> None:
    """1 s, doubling, at most 30 s."""
    assert backoff_seconds(failures, LIMITS) == seconds


@pytest.mark.parametrize(
    ("case", "served", "before", "after"),
    [
        ("never served", None, History(), History(failures=1, fast_failures=1)),
        (
            "never served again",
            None,
            History(failures=1, fast_failures=1),
            History(failures=2, fast_failures=2),
        ),
        ("served 9.9 s", 9.9, History(failures=3, fast_failures=3), History(failures=4, fast_failures=4)),
        ("served 10 s", 10.0, History(failures=3, fast_failures=3), History(failures=4)),
        ("served 59.9 s", 59.9, History(failures=3), History(failures=4)),
        (
            "served a minute",
            60.0,
            History(failures=3, fast_failures=4, restarts=7),
            History(failures=1, restarts=7),
        ),
    ],
)
def test_failures_are_counted(case: str, served: float | None, before: History, after: History) -> None:
    """A minute of health forgives what was; ten seconds end a row of fast failures."""
    since = None if served is None else 2000.0 - served
    seen = Seen(name="a", running=False, serving_since=since, ended_at=2000.0, exit_code=1, history=before)
    assert count_end(seen, LIMITS) == after, case


@pytest.mark.parametrize(
    ("case", "words", "exit_code", "served", "count"),
    [
        ("the same again", "no room", 1, 50.0, 3),
        ("another error", "no network", 1, 50.0, 1),
        ("killed", "no room", -9, 50.0, 0),
        ("nothing said", "", 1, 50.0, 0),
        ("served for an hour between", "no room", 1, 3600.0, 1),
    ],
)
def test_same_errors_are_counted(case: str, words: str, exit_code: int, served: float, count: int) -> None:
    """Only an error that repeats itself word for word, without a good hour between, adds up."""
    seen = Seen(
        name="a",
        running=False,
        serving_since=5000.0 - served,
        ended_at=5000.0,
        exit_code=exit_code,
        last_words=words,
        history=History(same_errors=2, error="no room"),
    )
    assert count_end(seen, LIMITS).same_errors == count, case


def test_an_end_on_request_is_no_failure() -> None:
    """Draining leaves the history as it was."""
    seen = replace(ENDED, terminated_at=990.0, history=History(failures=2, restarts=2))
    assert count_end(seen, LIMITS) == History(failures=2, restarts=2)


@pytest.mark.parametrize(
    ("want", "seen", "words"),
    [
        (WANT, None, "waiting"),
        (WANT, RUNNING, "serving"),
        (WANT, replace(RUNNING, serving=False), "not serving"),
        (WANT, replace(RUNNING, serving=False, serving_since=None), "starting"),
        (WANT, replace(RUNNING, terminated_at=999.0), "draining"),
        (None, RUNNING, "draining"),
        (None, ENDED, "stopped"),
        (WANT, replace(ENDED, given_up=True), "failed"),
        (ONCE, replace(ENDED, exit_code=0), "finished"),
        (WANT, replace(ENDED, ended_at=998.0, history=History(failures=3)), "restarts in 2 s"),
    ],
)
def test_phase(want: Wanted | None, seen: Seen | None, words: str) -> None:
    """`trimtab status` says each state in plain words."""
    assert phase(want, seen, NOW, LIMITS) == words


def test_exits_are_described() -> None:
    """A signal and a status read differently."""
    assert describe_exit(-9) == "was killed by signal 9"
    assert describe_exit(3) == "ended with status 3"
    assert describe_exit(None) == "has not ended"
