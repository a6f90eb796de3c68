"""Statistics over the tokens that count. Matrices are [rows, time]; a mask is float32, 1 where a token counts."""

from __future__ import annotations

import torch


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over the masked tokens, a scalar; 0 where nothing counts."""
    return (values * mask).sum() / mask.sum().clamp(min=1)


def masked_variance(values: torch.Tensor, mask: torch.Tensor, *, unbiased: bool) -> torch.Tensor:
    """Variance over the masked tokens, a scalar; Bessel-corrected if `unbiased` and at least 2 tokens count."""
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean) ** 2, mask)
    count = mask.sum()
    if unbiased and count > 1:
        variance = variance * count / (count - 1)
    return variance


def whiten(
    values: torch.Tensor, mask: torch.Tensor, *, keep_mean: bool = False, form: str = "unbiased"
) -> torch.Tensor:
    """(x - mean) * rsqrt(variance + 1e-8) over the masked tokens, 0 elsewhere; `keep_mean` adds the mean again.

    form: "unbiased" as in TRL and trlX, "biased" as in lm-human-preferences; "deviation" divides by the unbiased
    standard deviation plus 1e-8, as in RL4LMs.
    """
    mean = masked_mean(values, mask)
    variance = masked_variance(values, mask, unbiased=form != "biased")
    scale = 1 / (variance.sqrt() + 1e-8) if form == "deviation" else torch.rsqrt(variance + 1e-8)
    whitened = (values - mean) * scale
    return (whitened + mean if keep_mean else whitened) * mask
