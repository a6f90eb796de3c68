"""Which precision `auto` means on this machine: bfloat16 where products are quicker in it, else float32."""

from __future__ import annotations

import functools
import time

import structlog
import torch

from services.models.compute import done_once

_SIZE = 256
_TRIES = 20
# As many times float32's time are worth a line to whoever named bfloat16. Emulated it is ten times and more.
_SLOW = 1.5
_log = structlog.get_logger(__name__)


def torch_dtype(name: str) -> torch.dtype:
    """The dtype that a spec's `auto`, `float32` or `bfloat16` means here."""
    if name == "auto":
        return torch.bfloat16 if prefers_bfloat16() else torch.float32
    if name == "bfloat16":
        _tell_if_slow()
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


@functools.cache
def prefers_bfloat16() -> bool:
    """Whether a GPU has bfloat16; on a processor, whether it multiplies bfloat16 quicker than float32.

    AMX does, by five times; without AVX-512's bfloat16 it is emulated. With that alone it depends on the processor:
    one of Intel's with AMX switched off takes twice as long. There it is measured, once a process, in some 20 ms.
    """
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    if torch.cpu._is_amx_tile_supported():
        return True
    return bool(torch.cpu._is_avx512_bf16_supported()) and bfloat16_is_quicker()


@functools.cache
def _tell_if_slow() -> None:
    """One line a process where bfloat16 was named and takes much longer than what `auto` would take."""
    if torch.cuda.is_available() or prefers_bfloat16():
        return
    found = done_once(_seconds)
    times = found[torch.bfloat16] / found[torch.float32]
    if times >= _SLOW:
        _log.warning(
            "bfloat16 takes longer than float32 on this processor; dtype = auto takes float32 here",
            times_as_long=round(times, 1),
        )


def bfloat16_is_quicker() -> bool:
    """By the processor time of one thread: services of one machine start together and must all find the same."""
    found = done_once(_seconds)
    return found[torch.bfloat16] < found[torch.float32]


def _seconds() -> dict[torch.dtype, float]:
    threads = torch.get_num_threads()
    # Of this thread, which ends with it: one that waits for others counts its waiting.
    torch.set_num_threads(1)
    try:
        return {dtype: product_seconds(dtype) for dtype in (torch.bfloat16, torch.float32)}
    finally:
        torch.set_num_threads(threads)


def product_seconds(dtype: torch.dtype) -> float:
    """The least processor time that a product of two matrices takes, [256, 256] each, seconds."""
    took = []
    with torch.inference_mode():
        states, weight = torch.ones(2, _SIZE, _SIZE, dtype=dtype)
        for _ in range(1 + _TRIES):  # the first one also chooses and prepares the kernel
            began = time.thread_time()
            torch.nn.functional.linear(states, weight)
            took.append(time.thread_time() - began)
    return min(took[1:])
