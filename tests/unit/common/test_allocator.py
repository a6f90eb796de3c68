"""Freed memory stays with the process: big blocks are not faulted in anew, in no thread."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Pages that the kernel brought in while a thread made and dropped four times 8 MiB a hundred times, after a first time.
CHURN = """
import resource, sys, threading
if sys.argv[1] == "keep":
    from services.common.allocator import keep_freed_memory
    assert keep_freed_memory()
import numpy
def churn(times):
    for _ in range(times):
        blocks = [numpy.ones(1 << 20) for _ in range(4)]
        del blocks
def run():
    churn(2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    churn(100)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
thread = threading.Thread(target=run)
thread.start()
thread.join()
"""


def faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", CHURN, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's settings")
def test_a_thread_that_makes_and_drops_big_blocks_gets_the_same_pages_again() -> None:
    """819,200 pages are written; with the setting nearly none of them is new, without it most are."""
    assert faults("keep") < 4096
