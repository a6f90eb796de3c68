"""One completion as the trainer takes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from services.common.mask_bits import MaskBits

Ids = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One completion to learn from. Arrays of the completion's length; log-probs at the sampling temperature."""

    prompt_ids: Ids
    completion_ids: Ids
    behaviour_logprobs: Floats
    reference_logprobs: Floats
    loss_mask: Floats
    score: float
    ended: bool
    group: str = ""
    """Completions of one prompt name the same group; without one a completion stands alone."""
    temperature: float | None = None
    """It was drawn with; None: the run's."""
    top_p: float | None = None
    action_masks: MaskBits | None = None
    """NLPO: what could be drawn at each token, uint8 [length, ceil(vocabulary / 8)]."""


def group_numbers(samples: Sequence[Sample]) -> torch.Tensor:
    """Each sample's group as a number, [rows] int64, in the order of their first samples."""
    numbers: dict[str | int, int] = {}
    keys = [sample.group or row for row, sample in enumerate(samples)]
    return torch.tensor([numbers.setdefault(key, len(numbers)) for key in keys], dtype=torch.int64)
