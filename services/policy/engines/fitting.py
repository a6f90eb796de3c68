"""Whether tensors that are to be served have the names, shapes and dtypes that a model serves. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from services.common.errors import Mismatch


def check_fits(own: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]) -> None:
    """Raises Mismatch for the first tensor that the model's `own` has not, or has in another form."""
    for name, one in tensors.items():
        served = own.get(name)
        if served is None:
            raise Mismatch(f"weights name a tensor this model does not have: {name}")
        if served.shape != one.shape or served.dtype != one.dtype:
            raise Mismatch(
                f"{name}: weights bring {one.dtype} {list(one.shape)}, the model has "
                f"{served.dtype} {list(served.shape)}"
            )
