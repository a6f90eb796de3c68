"""Decides which processes to start, end or give up; knows neither a clock nor a real process.

Level-triggered: `plan` looks at what is wanted and what is seen, never at what just happened, so a
missed event cannot lead it astray. One table, walked from the top for each process:

    wanted   seen                                   action
    ──────   ────────────────────────────────────   ─────────────────────────────────────────────
    no       not running                            Forget
    no       running, it is its turn to drain       Terminate; after `drain_seconds`: Kill
    no       running, others drain first            (wait)
    yes      never started, needs are serving       Start
    yes      running, its end was asked for         (wait) after `drain_seconds`: Kill
    yes      running, silent too long               Kill: it hangs
    yes      running                                (fine)
    yes      given up                               (a person must look)
    yes      ended on request                       Start
    yes      ended as it should (see Restart)       (finished)
    yes      ended with 2, the user's mistake       GiveUp: starting it again cannot help
    yes      ended, `fast_failures` in a row        GiveUp: crash loop
    yes      ended, `same_errors` in a row          GiveUp: slow, but as hopeless (a full disk)
    yes      ended, back-off not over               (wait)
    yes      ended                                  Start
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

USER_ERROR = 2
"""Exit status of a service whose configuration is wrong."""


class Restart(StrEnum):
    """When a process that ended by itself is started again."""

    ALWAYS = "always"
    ON_FAILURE = "on-failure"
    NEVER = "never"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds, in seconds unless named otherwise."""

    backoff_first_seconds: float = 1.0
    backoff_most_seconds: float = 30.0
    healthy_seconds: float = 60.0
    """Serving this long makes the next failure count as the first."""
    fast_seconds: float = 10.0
    """A failure before having served this long is a fast one."""
    fast_failures: int = 5
    """Fast failures in a row after which it is given up."""
    same_errors: int = 3
    """Slow failures in a row that say the very same, after which it is given up."""
    forget_seconds: float = 3600.0
    """Serving this long makes the next error a new one."""
    drain_seconds: float = 15.0
    """SIGTERM to SIGKILL. Services bound their own drain at 10 s."""
    start_seconds: float = 600.0
    """Start to the first answer of the health port: imports, downloads."""
    silent_seconds: float = 120.0
    """A health port that answered before and then stays silent this long means a hanging process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A process that should be there."""

    name: str
    needs: tuple[str, ...] = ()
    """It is first started when these serve. Later failures of theirs do not touch it."""
    restart: Restart = Restart.ALWAYS


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What failures leave behind, across restarts."""

    failures: int = 0
    fast_failures: int = 0
    same_errors: int = 0
    error: str = ""
    restarts: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A process as last looked at. Times are seconds of the clock that `now` comes from."""

    name: str
    running: bool
    drain_rank: int = 0
    """Lower ranks are drained first."""
    serving: bool = False
    started_at: float = 0.0
    serving_since: float | None = None
    """When this incarnation first served."""
    last_answer_at: float | None = None
    """When the health port last answered anything."""
    terminated_at: float | None = None
    killed_at: float | None = None
    ended_at: float | None = None
    exit_code: int | None = None
    """As of subprocess: -9 means killed by signal 9."""
    last_words: str = ""
    """The last line of its log, once it has ended."""
    given_up: bool = False
    history: History = History()


@dataclass(frozen=True, slots=True)
class Start:
    """Start it (again)."""

    name: str


@dataclass(frozen=True, slots=True)
class Terminate:
    """Ask it to drain: SIGTERM."""

    name: str


@dataclass(frozen=True, slots=True)
class Kill:
    """End it at once, with all that it started: SIGKILL."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Leave it ended; a person must look."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Forget:
    """It is neither wanted nor there."""

    name: str


Action = Start | Terminate | Kill | GiveUp | Forget


def plan(wanted: Sequence[Wanted], seen: Sequence[Seen], now: float, limits: Limits) -> list[Action]:
    """What to do now, in the order of `wanted`, then of `seen`. Nothing to do: an empty list."""
    by_name = {process.name: process for process in seen}
    wanted_names = {want.name for want in wanted}
    serving = {process.name for process in seen if process.running and process.serving}
    actions: list[Action | None] = []
    for want in wanted:
        process = by_name.get(want.name)
        if process is None:
            actions.append(Start(want.name) if serving.issuperset(want.needs) else None)
        elif process.running:
            actions.append(_while_running(process, now, limits))
        else:
            actions.append(_after_end(want, process, now, limits))
    leaving = [process for process in seen if process.name not in wanted_names]
    turn = min((process.drain_rank for process in leaving if process.running), default=0)
    actions += [_while_leaving(process, turn, now, limits) for process in leaving]
    return [action for action in actions if action is not None]


def backoff_seconds(failures: int, limits: Limits) -> float:
    """How long to wait after the given number of failures in a row: 1, 2, 4, … up to the bound."""
    if failures <= 0:
        return 0.0
    doubled: float = limits.backoff_first_seconds * 2.0 ** min(failures - 1, 30)
    return min(doubled, limits.backoff_most_seconds)


def count_end(process: Seen, limits: Limits) -> History:
    """The history after `process` ended (`ended_at` is set). An end on request is no failure."""
    history = process.history
    if process.terminated_at is not None or process.ended_at is None:
        return history
    served = 0.0 if process.serving_since is None else process.ended_at - process.serving_since
    before = 0 if served >= limits.healthy_seconds else history.failures
    fast = 0 if served >= limits.fast_seconds else history.fast_failures + 1
    # A killed process said nothing about why.
    error = process.last_words if (process.exit_code or 0) > 0 else ""
    known = error != "" and error == history.error and served < limits.forget_seconds
    return History(
        failures=before + 1,
        fast_failures=fast,
        same_errors=history.same_errors + 1 if known else int(error != ""),
        error=error,
        restarts=history.restarts,
    )


def describe_exit(exit_code: int | None) -> str:
    """How it ended, for a person."""
    if exit_code is None:
        return "has not ended"
    return f"was killed by signal {-exit_code}" if exit_code < 0 else f"ended with status {exit_code}"


def phase(want: Wanted | None, process: Seen | None, now: float, limits: Limits) -> str:
    """One or a few words for `trimtab status`."""
    if process is None:
        return "waiting"
    if process.running:
        return _running_phase(want, process)
    if process.given_up:
        return "failed"
    if want is None:
        return "stopped"
    if _finished(want, process):
        return "finished"
    left = max(0.0, _due_at(process, limits) - now)
    return f"restarts in {left:.0f} s"


def _running_phase(want: Wanted | None, process: Seen) -> str:
    if want is None or process.terminated_at is not None:
        return "draining"
    if process.serving:
        return "serving"
    return "starting" if process.serving_since is None else "not serving"


def _while_running(process: Seen, now: float, limits: Limits) -> Action | None:
    if process.killed_at is not None:
        return None
    if process.terminated_at is not None:
        return _overdue(process, now, limits)
    if process.last_answer_at is None:
        silent, bound = now - process.started_at, limits.start_seconds
    else:
        silent, bound = now - process.last_answer_at, limits.silent_seconds
    return Kill(process.name, f"its health port was silent for {bound:.0f} s") if silent >= bound else None


def _after_end(want: Wanted, process: Seen, now: float, limits: Limits) -> Action | None:
    if process.given_up:
        return None
    if process.terminated_at is not None:
        return Start(want.name)
    if _finished(want, process):
        return None
    if process.exit_code == USER_ERROR:
        return GiveUp(want.name, "its configuration is wrong")
    if (hopeless := _hopeless(process.history, limits)) is not None:
        return GiveUp(want.name, hopeless)
    return Start(want.name) if now >= _due_at(process, limits) else None


def _hopeless(history: History, limits: Limits) -> str | None:
    if history.fast_failures >= limits.fast_failures:
        return f"it failed {history.fast_failures} times in a row right after its start"
    if history.fast_failures == 0 and history.same_errors >= limits.same_errors:
        return f"it failed {history.same_errors} times in a row with the same error"
    return None


def _while_leaving(process: Seen, turn: int, now: float, limits: Limits) -> Action | None:
    if not process.running:
        return Forget(process.name)
    if process.killed_at is not None:
        return None
    if process.terminated_at is not None:
        return _overdue(process, now, limits)
    return Terminate(process.name) if process.drain_rank <= turn else None


def _overdue(process: Seen, now: float, limits: Limits) -> Action | None:
    asked = process.terminated_at
    if asked is None or now - asked < limits.drain_seconds:
        return None
    return Kill(process.name, f"it did not drain within {limits.drain_seconds:g} s")


def _finished(want: Wanted, process: Seen) -> bool:
    if want.restart is Restart.NEVER:
        return True
    return want.restart is Restart.ON_FAILURE and process.exit_code == 0


def _due_at(process: Seen, limits: Limits) -> float:
    ended = process.started_at if process.ended_at is None else process.ended_at
    return ended + backoff_seconds(process.history.failures, limits)
