import os
import subprocess
import sys
import threading

import pytest
import torch

from services.models.compute import compute_thread, done_once

CPU = torch.device("cpu")

COUNT_HELPERS = """
import os, threading, time, torch
from services.models.compute import compute_thread, done_once
torch.set_num_threads(2)
others = len(os.listdir("/proc/self/task")) - threading.active_count()
multiply = lambda: torch.randn(512, 512) @ torch.randn(512, 512)
for _ in range(3):
    done_once(multiply)
for _ in range(3):
    compute_thread(torch.device("cpu")).submit(multiply).result()
helpers = lambda: len(os.listdir("/proc/self/task")) - threading.active_count() - others
deadline = time.monotonic() + 10  # a thread that has ended leaves the list a moment later
while helpers() > 1 and time.monotonic() < deadline:
    time.sleep(0.01)
print(helpers())
"""


def test_a_device_has_one_thread() -> None:
    """Passes of one device run on one thread, whoever asks; another device has another."""
    names = {
        compute_thread(torch.device(kind)).submit(threading.get_ident).result()
        for kind in ("cpu", "cpu", "meta")
    }
    assert len(names) == 2
    assert compute_thread(CPU) is compute_thread(torch.device("cpu"))


def test_what_is_done_once_leaves_no_thread() -> None:
    """Loading runs on a thread that is gone afterwards, and gives what it made."""
    done_by = done_once(threading.current_thread)
    done_by.join(10)
    assert not done_by.is_alive()


def test_what_fails_once_fails_for_the_caller() -> None:
    """The caller hears of the error itself."""
    with pytest.raises(ZeroDivisionError):
        done_once(lambda: 1 // 0)


def test_helpers_do_not_add_up() -> None:
    """After three loads and three passes with two threads a process has one helper: more would sleep at barriers."""
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    counted = subprocess.run(
        [sys.executable, "-c", COUNT_HELPERS], env=env, capture_output=True, text=True, timeout=60
    )
    assert counted.stdout == "1\n", counted.stderr
