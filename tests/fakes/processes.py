"""Waiting for what happens in other processes: on conditions, with a bound."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path


def until(condition: Callable[[], bool], what: str, *, seconds: float = 30) -> None:
    """Wait for a condition. AssertionError after `seconds`."""
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, f"{what} has not happened within {seconds} s"
        time.sleep(0.01)


def is_running(process: int) -> bool:
    """Whether a process of this id is there and no zombie."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"
