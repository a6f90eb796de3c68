"""Drawing tokens: temperature, top-k, top-p, and the draw itself by inverse CDF. Tensors in, tensors out."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

# The CDF is searched in two levels, blocks first: a cumulative sum over the whole vocabulary costs several
# times as much, and torch.multinomial alone 15 ms a step at 16 x 49,152.
BLOCK = 256


def uniforms(seed: int, index: int, count: int) -> npt.NDArray[np.float64]:
    """Numbers in [0, 1) for tokens 0 … count-1 of completion `index`, [count] float64.

    Counter-based (Philox), so that a continued completion draws what it would have drawn uninterrupted.
    """
    key = np.array([seed, index], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random(count)


def draw(probabilities: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Inverse CDF: the first token whose cumulative probability exceeds uniform * total, [rows] int64.

    probabilities: [rows, vocabulary] float32, not necessarily normalised; uniform: [rows] float64 in [0, 1).
    """
    rows, vocabulary = probabilities.shape
    padded = -vocabulary % BLOCK
    if padded:
        probabilities = torch.nn.functional.pad(probabilities, (0, padded))
    blocks = probabilities.view(rows, -1, BLOCK)
    sums = blocks.sum(-1, dtype=torch.float64).cumsum(-1)
    threshold = uniform.to(sums) * sums[:, -1]
    block = torch.searchsorted(sums, threshold[:, None], right=True)[:, 0].clamp_(max=sums.shape[1] - 1)
    row = torch.arange(rows, device=block.device)
    before = torch.where(block > 0, sums[row, (block - 1).clamp(min=0)], torch.zeros_like(threshold))
    inside = blocks[row, block].double().cumsum(-1)
    offset = torch.searchsorted(inside, (threshold - before)[:, None], right=True)[:, 0]
    # Rounding may put the threshold past the last token with any probability: step back to that one.
    last = BLOCK - 1 - (blocks[row, block] > 0).flip(-1).int().argmax(-1)
    return block * BLOCK + torch.minimum(offset, last)


def filter_logits(logits: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """Logits outside top-k and the nucleus set to -inf, [rows, vocabulary]; unchanged where both are off.

    The nucleus is the smallest set whose probability reaches top_p (arXiv 1904.09751).
    """
    if top_k and top_k < logits.shape[-1]:
        bound = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < bound, -torch.inf)
    if top_p < 1.0:
        ordered, order = logits.sort(dim=-1, descending=True)
        cumulative = ordered.softmax(-1).cumsum(-1)
        outside = cumulative - ordered.softmax(-1) >= top_p
        logits = logits.scatter(-1, order, ordered.masked_fill(outside, -torch.inf))
    return logits
