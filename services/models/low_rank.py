"""Low-rank factors beside a model's tensors: their names, and the tensor that they and their base make.

    layer.weight [out, in]   +   layer.lora_A.weight [rank, in], layer.lora_B.weight [out, rank]   ─▶ W + B A
                                 layer.lora_magnitude.weight [out] (DoRA)     ─▶ rows of that, brought to these lengths

B carries the scale alpha / rank, so that shapes and bytes say all there is. Pure: the learner publishes by it, the
policy merges by it. Knows no peft.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from services.common.errors import Mismatch
from services.models.dither import dithered

A, B, MAGNITUDE = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude.weight"
_ENDS = (A, B, MAGNITUDE)
Shape = tuple[int, ...]


def is_factor(name: str) -> bool:
    """Whether a tensor of this name is part of an adapter."""
    return name.endswith(_ENDS)


def layer_of(name: str) -> str:
    """The layer that a factor belongs to; its weight is that and `.weight`."""
    return next(name.removesuffix(end) for end in _ENDS if name.endswith(end))


def layers_of(names: Iterable[str]) -> list[str]:
    """Layers that have factors, each once, in order."""
    return list(dict.fromkeys(layer_of(name) for name in names if is_factor(name)))


def check_factors(factors: Mapping[str, Shape], weights: Mapping[str, Shape]) -> None:
    """Raises Mismatch unless these are whole adapters of layers that are there. Shapes by tensor name."""
    for layer in layers_of(factors):
        base = weights.get(f"{layer}.weight")
        a, b = factors.get(layer + A), factors.get(layer + B)
        if base is None:
            raise Mismatch(f"an adapter is of a layer that this model does not have: {layer}")
        if a is None or b is None:
            raise Mismatch(f"{layer}: half of an adapter, {'A' if a is None else 'B'} is missing")
        fits = len(a) == len(b) == len(base) == 2 and (b[0], a[1]) == base and a[0] == b[1]
        if not fits:
            raise Mismatch(f"{layer}: factors of {list(b)} and {list(a)} make no weight of {list(base)}")
        magnitude = factors.get(layer + MAGNITUDE)
        if magnitude is not None and magnitude != base[:1]:
            raise Mismatch(f"{layer}: a magnitude of {list(magnitude)} for a weight of {list(base)}")


def merged(
    base: torch.Tensor, a: torch.Tensor, b: torch.Tensor, magnitude: torch.Tensor | None = None
) -> torch.Tensor:
    """W + B A in float32, rounded to W's dtype once. base: [out, in]; a: [rank, in]; b: [out, rank], scaled.

    A bfloat16 W stands anywhere in its rounding cells (dither.py): what is merged follows the smallest factors, on
    average, and without any is W, bit for bit.

    With a magnitude [out] (DoRA, eq. 5 of arXiv 2402.09353) each row is brought to that length, which is a constant to
    gradients (section 4.3).
    """
    whole = torch.addmm(dithered(base), b.float(), a.float())
    if magnitude is not None:
        whole = whole * (magnitude.float() / torch.linalg.vector_norm(whole.detach(), dim=1))[:, None]
    return whole.to(base.dtype)


def merged_layer(layer: str, base: torch.Tensor, factors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """A layer's weight under its factors."""
    a, b = factors[layer + A].to(base.device), factors[layer + B].to(base.device)
    magnitude = factors.get(layer + MAGNITUDE)
    return merged(base, a, b, None if magnitude is None else magnitude.to(base.device))
