"""What the courses of training have in common: the rate over the updates, activations made anew."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


def rate_factor(number: int, total: int, warmup_share: float) -> float:
    """Of update `number` (from 0) of `total`: linear warm-up, then linear to 0."""
    warmup = max(1, round(warmup_share * total))
    return (number + 1) / warmup if number < warmup else max(0.0, (total - number) / max(1, total - warmup))


@contextlib.contextmanager
def checkpointing(backbone: Any, wanted: bool) -> Iterator[None]:
    """Layers keep no activations in here, if wanted: transformers does so in training mode alone, with dropout at 0."""
    if not wanted:
        yield
        return
    named = "activation" if hasattr(backbone, "activation_checkpointing_enable") else "gradient"
    getattr(backbone, f"{named}_checkpointing_enable")({"use_reentrant": False})
    backbone.train()
    try:
        yield
    finally:
        getattr(backbone, f"{named}_checkpointing_disable")()
        backbone.eval()
