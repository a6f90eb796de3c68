"""Adam with moments in a byte each (arXiv 2110.02861), by bitsandbytes, which is an optional extra.

Moments are quantised block by block (256 elements share a scale); tensors below 4,096 elements keep float32 ones.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch

from services.common.errors import ConfigError


def adamw_8bit(
    groups: Sequence[dict[str, Any]], *, betas: tuple[float, float], eps: float, weight_decay: float
) -> torch.optim.Optimizer:
    """AdamW over torch's parameter groups. Raises ConfigError where bitsandbytes is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of torch, for what it imports itself
            from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ConfigError(
            'optimiser.kind = adamw_8bit needs bitsandbytes: pip install "trimtab-platform[eight-bit]"'
        ) from error
    optimiser: torch.optim.Optimizer = AdamW8bit(groups, betas=betas, eps=eps, weight_decay=weight_decay)
    return optimiser
