"""Runs a surface for so many CPU-minutes and keeps account: inputs, outcomes, findings, memory. Knows no surface.

Input number n of seed s is drawn from Random("s:n") alone, so that a finding is one line to reproduce:

    python -m tests.fuzz --surface NAME --seed s --only n
"""

from __future__ import annotations

import gc
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

from tests.fuzz.surface import Surface

GROWTH_MIB = 96.0
_GOOD_EVERY = 250
_SHOWN = 4_000
_FRAMES = 8
_MOST_FINDINGS = 20


class TooSlow(Exception):
    """An input took more than its surface allows: processor time, for the machine may be busy with other things."""


@dataclass(slots=True)
class Finding:
    """What an input did that it must not do. `times`: inputs of which the same is true."""

    what: str
    seed: int
    number: int
    shown: str
    trace: str
    times: int = 1


@dataclass(slots=True)
class Account:
    """What came of a surface so far."""

    inputs: int = 0
    cpu_seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: dict[str, Finding] = field(default_factory=dict)
    growth_mib: float = 0.0
    peak_mib: float = 0.0


def run(surface: Surface, seed: int, *, cpu_seconds: float, most: int | None = None) -> Account:
    """Inputs until the time is spent or there were `most`; stops early at too many different findings."""
    account = Account()
    began, memory = _cpu() + surface.elsewhere(), None

    def spent() -> float:
        return _cpu() + surface.elsewhere() - began

    number = 0
    while spent() < cpu_seconds and (most is None or number < most):
        one(surface, seed, number, account)
        number += 1
        if number % _GOOD_EVERY == 0:
            _hold(account, seed, number, surface.good)
        if memory is None and spent() > cpu_seconds / 4:
            memory = _resident_mib()
        if len(account.findings) >= _MOST_FINDINGS:
            break
    _hold(account, seed, number, surface.good)
    account.cpu_seconds = spent()
    if memory is not None:
        gc.collect()
        account.growth_mib = _resident_mib() - memory
        if account.growth_mib > GROWTH_MIB:
            _note(account, Finding(f"memory grew by {account.growth_mib:.0f} MiB", seed, number, "", ""))
    return account


def one(surface: Surface, seed: int, number: int, account: Account) -> None:
    """Draw, hand over, count."""
    sent: Any = None
    before = _watched()
    try:
        sent = surface.draw(Random(f"{seed}:{number}"))
        with _limited(surface.cpu_seconds):
            outcome = surface.run(sent)
    except Exception as error:
        _note(account, _finding(error, seed, number, sent))
    else:
        _count(account, outcome)
    peak = _peak_mib() - before
    account.peak_mib = max(account.peak_mib, peak)
    if peak > surface.peak_mib:
        what = f"one input took more than {surface.peak_mib:.0f} MiB"
        _note(account, Finding(what, seed, number, _shown(sent), f"{peak:.0f} MiB"))


def _count(account: Account, outcome: str | Mapping[str, int]) -> None:
    counts = {outcome: 1} if isinstance(outcome, str) else outcome
    account.outcomes.update(counts)
    account.inputs += sum(counts.values())


def _hold(account: Account, seed: int, number: int, good: Any) -> None:
    try:
        good()
    except Exception as error:
        _note(account, _finding(error, seed, number, "a sound input after these"))


def _finding(error: Exception, seed: int, number: int, sent: Any) -> Finding:
    frames = traceback.extract_tb(error.__traceback__)
    place = next((f for f in reversed(frames) if "/services/" in f.filename), frames[-1])
    # An assertion's own words, up to what it quotes, tell findings of one line apart.
    said = str(error).partition(":")[0][:120] if isinstance(error, AssertionError) else ""
    what = f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno} {said}".strip()
    return Finding(
        what, seed, number, _shown(sent), "".join(traceback.format_exception(error, limit=-_FRAMES))[-_SHOWN:]
    )


def _shown(sent: Any) -> str:
    return repr(sent)[:_SHOWN]


def _note(account: Account, finding: Finding) -> None:
    known = account.findings.setdefault(finding.what, finding)
    if known is not finding:
        known.times += 1
        return
    print(
        f"FINDING {finding.what}\n  seed {finding.seed}, input {finding.number}: {finding.shown}\n{finding.trace}",
        file=sys.stderr,
    )


# ---------------------------------------------------------------- what the process takes


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """TooSlow after so much processor time. A loop in C that never returns shows as a run that hangs."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise TooSlow(f"more than {seconds:g} s of processor time")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _cpu() -> float:
    """Seconds of this process and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _watched() -> float:
    """Let the kernel measure the peak anew; resident memory now, MiB."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak_mib()


def _peak_mib() -> float:
    return _status("VmHWM")


def _resident_mib() -> float:
    return _status("VmRSS")


def _status(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    return 0.0
