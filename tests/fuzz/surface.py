"""What a surface is to the driver: it draws an input, hands it over, and says what came of it.

A surface is a module of tests/fuzz/surfaces with one function `opened(folder)`, a context manager. Everything that an
input does but raise one of the documented errors is a finding: another exception, AssertionError, too much time,
too much memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any


@dataclass(frozen=True, slots=True)
class Surface:
    """`draw` makes an input, `run` hands it over and names the outcome (or counts several), `good` must always hold.

    An outcome is a status, or the name of a documented exception; `good` raises AssertionError where a sound input
    has not the answer that it had at the beginning. peak_mib, cpu_seconds: what one input may take at once, of memory
    here and of processor time. elsewhere: processor time so far of another process that does the work.
    """

    draw: Callable[[Random], Any]
    run: Callable[[Any], str | Mapping[str, int]]
    good: Callable[[], None]
    peak_mib: float = 256.0
    cpu_seconds: float = 20.0
    elsewhere: Callable[[], float] = lambda: 0.0


Opened = Callable[[Path], AbstractContextManager[Surface]]


def documented(work: Callable[[], Any], *errors: type[Exception]) -> str:
    """ "accepted", or the name of the documented error that was raised, which has one clear line."""
    try:
        work()
    except errors as error:
        told = str(error)
        assert told.strip(), f"{type(error).__name__} says nothing"
        return type(error).__name__
    return "accepted"
