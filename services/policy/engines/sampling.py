"""Drawing tokens: temperature, top-k, top-p, and the draw itself by inverse CDF. Tensors in, tensors out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from services.common.errors import Corrupted

# The CDF is searched in two levels, blocks first: a cumulative sum over the whole vocabulary costs several
# times as much, and torch.multinomial alone 15 ms a step at 16 x 49,152.
BLOCK = 256
# Rows whose numbers stay in the caches between the passes of a draw on a processor; a GPU takes all at once.
ROWS = 8


class LogitsProcessor(Protocol):
    """Changes what may be drawn and how likely: masks, value-guided decoding. Runs before temperature and top-k."""

    def __call__(
        self, logits: torch.Tensor, states: torch.Tensor, sequences: Sequence[Sequence[int]]
    ) -> torch.Tensor:
        """Logits [rows, vocabulary] float32 anew, of the last hidden states [rows, width] and each row's ids."""
        ...


@dataclass(frozen=True, slots=True)
class Drawn:
    """tokens [rows] int64; raw and sampled: their log-probs [rows] float32.

    masks: where something bounds what may be drawn, what could be, packed, uint8 [rows, ceil(vocabulary / 8)].
    """

    tokens: torch.Tensor
    raw: torch.Tensor
    sampled: torch.Tensor
    masks: torch.Tensor | None = None

    def taken(self, rows: torch.Tensor) -> Drawn:
        """Some rows, in that order."""
        masks = None if self.masks is None else self.masks[rows]
        return Drawn(self.tokens[rows], self.raw[rows], self.sampled[rows], masks)


def joined(parts: Sequence[Drawn]) -> Drawn:
    """All parts' rows, one part after the other."""
    masks = [each.masks for each in parts if each.masks is not None]
    return Drawn(
        torch.cat([each.tokens for each in parts]),
        torch.cat([each.raw for each in parts]),
        torch.cat([each.sampled for each in parts]),
        torch.cat(masks) if masks else None,
    )


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
    padded = -probabilities.shape[1] % BLOCK
    if padded:
        probabilities = torch.nn.functional.pad(probabilities, (0, padded))
    blocks = probabilities.view(len(probabilities), -1, BLOCK)
    return _search(blocks, blocks.sum(-1).double().cumsum(-1), uniform)


def _search(blocks: torch.Tensor, sums: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """The draw of blocks [rows, blocks, BLOCK], whose sums up to and with each are [rows, blocks] float64."""
    threshold = uniform.to(sums) * sums[:, -1]
    block = torch.searchsorted(sums, threshold[:, None], right=True)[:, 0].clamp_(max=sums.shape[1] - 1)
    row = torch.arange(len(blocks), device=block.device)
    before = torch.where(block > 0, sums[row, (block - 1).clamp(min=0)], torch.zeros_like(threshold))
    chosen = blocks[row, block]
    inside = chosen.double().cumsum(-1)
    offset = torch.searchsorted(inside, (threshold - before)[:, None], right=True)[:, 0]
    # Rounding may put the threshold past the last token with any probability: step back to that one.
    last = BLOCK - 1 - (chosen > 0).flip(-1).int().argmax(-1)
    return block * BLOCK + torch.minimum(offset, last)


def draw_plain(
    logits: torch.Tensor, temperature: float, uniform: torch.Tensor, barred: torch.Tensor | None = None
) -> Drawn:
    """Draw from softmax(logits / temperature) in few passes over the vocabulary.

    logits: [rows, vocabulary] of any dtype; uniform: [rows] float64; barred: ids [some] int64 that must not be drawn.
    Raises Corrupted for logits that are no numbers.
    """
    rows, vocabulary = logits.shape
    step = ROWS if logits.device.type == "cpu" else rows
    width = vocabulary + -vocabulary % BLOCK
    work = torch.empty((min(step, rows), width), dtype=torch.float32, device=logits.device)
    work[:, vocabulary:] = 0.0
    parts = []
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        parts.append(_draw_rows(logits[part], temperature, uniform[part], barred, work[: part.stop - start]))
    return parts[0] if len(parts) == 1 else joined(parts)


def _draw_rows(
    logits: torch.Tensor,
    temperature: float,
    uniform: torch.Tensor,
    barred: torch.Tensor | None,
    work: torch.Tensor,
) -> Drawn:
    vocabulary = logits.shape[1]
    weights = work[:, :vocabulary]
    weights.copy_(logits)
    most = weights.amax(-1, keepdim=True)
    weights.sub_(most)
    total = None
    if temperature != 1.0:
        total = weights.exp().sum(-1)
        weights.div_(temperature)
    weights.exp_()
    if barred is not None:
        total = weights.sum(-1) if total is None else total
        weights[:, barred] = 0.0
    blocks = work.view(len(work), -1, BLOCK)
    sums = blocks.sum(-1).double().cumsum(-1)
    _check(sums[:, -1])
    tokens = _search(blocks, sums, uniform)
    above = logits.gather(-1, tokens[:, None])[:, 0].float() - most[:, 0]
    sampled = above / temperature - sums[:, -1].log().float()
    raw = sampled if total is None else above - total.log()
    return Drawn(tokens, raw, sampled)


def draw_filtered(
    logits: torch.Tensor,
    raw: torch.Tensor,
    *,
    temperature: float,
    top_k: int,
    top_p: float,
    uniform: torch.Tensor,
) -> Drawn:
    """Draw from what top-k and top-p leave of logits / temperature; the best token at temperature 0.

    logits: [rows, vocabulary] float32 as changed by masks and processors; raw: the same as the model gave them.
    Raises Corrupted for logits that are no numbers.
    """
    scaled = logits / temperature if temperature > 0 else logits
    sampled = torch.log_softmax(filter_logits(scaled, top_k, top_p), dim=-1)
    _check(sampled.amax(-1))
    tokens = sampled.argmax(-1) if temperature == 0 else draw(sampled.exp(), uniform)
    at = tokens[:, None]
    return Drawn(tokens, raw.gather(-1, at)[:, 0] - raw.logsumexp(-1), sampled.gather(-1, at)[:, 0])


def _check(totals: torch.Tensor) -> None:
    if not bool(torch.isfinite(totals).all()):
        raise Corrupted("the model's logits are not finite: its weights have diverged or are damaged")


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
