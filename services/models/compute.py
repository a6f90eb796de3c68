"""On which threads torch computes: one for each device, and threads that end for what is done once.

GNU OpenMP gives each thread that computes a team of helpers of its own. Where all teams of a process together
outnumber its processors, every helper sleeps at every barrier instead of waiting awake (libgomp's throttled spin
count), and a forward pass on two processors takes 1.3 times as long. So all passes of a device share one thread,
and loading a model, whose team would stay as long as its thread, gets a thread that ends.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import torch

Value = TypeVar("Value")
_threads: dict[torch.device, ThreadPoolExecutor] = {}
_opening = threading.Lock()


def compute_thread(device: torch.device) -> Executor:
    """The thread on which this process computes for a device; always the same one. Work waits its turn."""
    with _opening:
        if device not in _threads:
            _threads[device] = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"compute-{device}")
        return _threads[device]


def done_once(work: Callable[[], Value]) -> Value:
    """Do it on a thread that ends with it, and wait. Raises what the work raises."""
    future: Future[Value] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # it belongs to the caller, whatever it is
            future.set_exception(error)

    threading.Thread(target=run, name="compute-once", daemon=True).start()
    return future.result()


async def apart(work: Callable[..., Value], *arguments: object) -> Value:
    """The same for a coroutine: torch beside the pass that is under way, on a thread that ends."""
    return await asyncio.to_thread(done_once, partial(work, *arguments))
