"""Adam with moments in a byte: near AdamW, a fraction of its state, exact after a checkpoint."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest
import torch

from services.common.errors import ConfigError
from services.models.master_weights import MasterWeights, ParameterGroup

OPTIONS: dict[str, Any] = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "max_grad_norm": 1e9}
SIDE = 128


def masters_of(kind: Any, dtype: torch.dtype = torch.float32) -> tuple[MasterWeights, torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.randn((SIDE, SIDE), generator=generator).to(dtype))
    return MasterWeights([ParameterGroup([weight], 1e-2)], kind=kind, **OPTIONS), weight


def step(masters: MasterWeights, weight: torch.nn.Parameter, number: int) -> None:
    """One update by a gradient that the number determines."""
    generator = torch.Generator().manual_seed(number)
    weight.grad = torch.randn(weight.shape, generator=generator).to(weight.dtype)
    masters.accumulate()
    masters.step()


def test_it_is_near_adamw_with_a_quarter_of_the_moments() -> None:
    """Five updates end within a tenth of the way from AdamW's; two moments take two bytes an element and scales."""
    pytest.importorskip("bitsandbytes")
    (own, weight), (plain, other) = masters_of("adamw_8bit"), masters_of("adamw")
    start = weight.detach().clone()
    for number in range(5):
        step(own, weight, number)
        step(plain, other, number)
    moved = (other.detach() - start).norm()
    assert float((weight.detach() - other.detach()).norm() / moved) < 0.1
    moments = own.optimiser.state[own.optimiser.param_groups[0]["params"][0]]
    assert {moments["state1"].dtype, moments["state2"].dtype} == {torch.uint8}
    size = sum(
        one.numel() * one.element_size()
        for name, one in moments.items()
        if isinstance(one, torch.Tensor) and "qmap" not in name
    )
    assert size < 0.27 * 8 * SIDE * SIDE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resume_is_exact(dtype: torch.dtype) -> None:
    """Through a file that holds tensors and numbers alone, as a checkpoint's does, the next update is the same bits."""
    pytest.importorskip("bitsandbytes")
    (own, weight), (resumed, other) = masters_of("adamw_8bit", dtype), masters_of("adamw_8bit", dtype)
    for number in range(3):
        step(own, weight, number)
    file = io.BytesIO()
    torch.save(own.state_dict(), file)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for number in range(3, 5):
        step(own, weight, number)
        step(resumed, other, number)
    assert torch.equal(weight, other)
    assert own.matches()


def test_without_the_library_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is trained."""
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(ConfigError, match=r'needs bitsandbytes: pip install "trimtab-platform\[eight-bit\]"'):
        masters_of("adamw_8bit")
