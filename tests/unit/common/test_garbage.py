"""What a service has loaded does not keep the garbage of what it does."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import gc
from collections import deque
from services.common.garbage import set_aside

class Node:
    def __init__(self):
        self.itself = self

loaded = [[] for _ in range(1_000_000)]
if {aside}:
    set_aside()
recent = deque(maxlen=5_000)  # each lives through young collections, then dies in a cycle
for _ in range(240_000):
    recent.append(Node())
print(sum(type(one) is Node for one in gc.get_objects()))
"""


def left(aside: bool) -> int:
    """How many of 240,000 objects are still there, of which 5,000 are wanted."""
    run = [sys.executable, "-c", PROGRAM.format(aside=aside)]
    return int(subprocess.run(run, capture_output=True, text=True, check=True).stdout)


def test_cycles_are_freed_soon_whatever_was_loaded() -> None:
    """With 70,000 more objects there is a full pass; if that is through what was loaded, not before a quarter of it."""
    assert left(aside=True) <= 80_000
    assert left(aside=False) >= 100_000
