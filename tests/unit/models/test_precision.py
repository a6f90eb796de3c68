"""What `auto` means: the precision in which products are quicker here, and always the same one in a process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from services.models import precision
from services.models.precision import prefers_bfloat16, product_seconds, torch_dtype


@pytest.fixture(autouse=True)
def not_measured_yet() -> Iterator[None]:
    """Nothing of one test's times is left to the next."""
    prefers_bfloat16.cache_clear()
    yield
    prefers_bfloat16.cache_clear()


@pytest.mark.parametrize(("bfloat16", "chosen"), [(0.2, torch.bfloat16), (2.0, torch.float32)])
def test_the_quicker_one_is_taken(
    monkeypatch: pytest.MonkeyPatch, bfloat16: float, chosen: torch.dtype
) -> None:
    """By time alone: a processor with bfloat16's instructions may be slower with them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    times = {torch.bfloat16: bfloat16, torch.float32: 1.0}
    monkeypatch.setattr(precision, "product_seconds", times.__getitem__)
    assert torch_dtype("auto") is chosen


def test_it_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two models of a process have one precision, whatever else the machine does meanwhile."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(precision, "product_seconds", {torch.bfloat16: 1.0, torch.float32: 2.0}.__getitem__)
    first = torch_dtype("auto")
    monkeypatch.setattr(precision, "product_seconds", {torch.bfloat16: 2.0, torch.float32: 1.0}.__getitem__)
    assert torch_dtype("auto") is first is torch.bfloat16


def test_what_is_named_is_taken() -> None:
    """Whatever is quicker."""
    assert torch_dtype("float32") is torch.float32
    assert torch_dtype("bfloat16") is torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_takes_time(dtype: torch.dtype) -> None:
    """Seconds, of one product and not of its first call, which prepares the kernel."""
    assert 0 < product_seconds(dtype) < 1
