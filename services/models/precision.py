"""Which precision `auto` means on this machine: bfloat16 where products are quicker in it, else float32."""

from __future__ import annotations

import functools
import time

import torch

_SIZE = 512
_TRIES = 5


def torch_dtype(name: str) -> torch.dtype:
    """The dtype that a spec's `auto`, `float32` or `bfloat16` means here."""
    if name == "auto":
        return torch.bfloat16 if prefers_bfloat16() else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


@functools.cache
def prefers_bfloat16() -> bool:
    """Whether a GPU has bfloat16; on a processor, whether it multiplies bfloat16 quicker than float32.

    Measured, once a process, in some 10 ms: instructions that a processor has say little. One with AVX-512's for
    bfloat16 and without AMX takes twice as long with them as with float32's, one with AMX a fifth.
    """
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    return product_seconds(torch.bfloat16) < product_seconds(torch.float32)


def product_seconds(dtype: torch.dtype) -> float:
    """The least that a product of two matrices takes, [512, 512] each, seconds."""
    with torch.inference_mode():
        states, weight = torch.ones(2, _SIZE, _SIZE, dtype=dtype)
        took = []
        for _ in range(1 + _TRIES):  # the first one also chooses and prepares the kernel
            began = time.perf_counter()
            torch.nn.functional.linear(states, weight)
            took.append(time.perf_counter() - began)
    return min(took[1:])
