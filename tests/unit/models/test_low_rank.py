"""Low-rank factors and what they make of a weight, by hand."""

from __future__ import annotations

import pytest
import torch

from services.common.errors import Mismatch
from services.models.dither import dithered
from services.models.low_rank import check_factors, is_factor, layers_of, merged, merged_layer

BASE = torch.tensor([[1.0, 2.0], [3.0, 4.0], [0.0, 5.0]])
A, B = torch.tensor([[1.0, -1.0]]), torch.tensor([[2.0], [0.0], [3.0]])


def test_the_merge_by_hand() -> None:
    """W + B A: rows of B times the one row of A."""
    assert torch.equal(merged(BASE, A, B), torch.tensor([[3.0, 0.0], [3.0, 4.0], [3.0, 2.0]]))
    assert merged_layer("x", BASE, {"x.lora_A.weight": A, "x.lora_B.weight": B}).tolist()[0] == [3.0, 0.0]


def test_doras_rows_have_the_magnitudes_lengths() -> None:
    """Row 2 is (3, 4) of length 5: at a magnitude of 10 it is (6, 8); the first, (3, 0), keeps its direction at 1."""
    whole = merged(BASE, A, B, torch.tensor([1.0, 10.0, 13.0**0.5]))
    torch.testing.assert_close(whole, torch.tensor([[1.0, 0.0], [6.0, 8.0], [3.0, 2.0]]))


def test_it_is_rounded_once() -> None:
    """In bfloat16 256 + 0.75 + 0.75 is 258: each alone would be lost, their sum in float32 is not."""
    base = torch.full((1, 1), 256.0, dtype=torch.bfloat16)
    whole = merged(base, torch.tensor([[0.75], [0.75]]), torch.tensor([[1.0, 1.0]]))
    assert whole.dtype == torch.bfloat16
    assert float(whole) == 258.0


def test_no_factors_leave_a_bfloat16_weight_as_it_is() -> None:
    """Bit for bit, and under DoRA where the lengths are those it is measured by."""
    base = (0.1 * torch.randn(64, 96, generator=torch.Generator().manual_seed(1))).bfloat16()
    nothing = torch.zeros(4, 96), torch.zeros(64, 4)
    lengths = torch.linalg.vector_norm(dithered(base), dim=1)
    assert torch.equal(merged(base, *nothing), base)
    assert torch.equal(merged(base, *nothing, lengths), base)


def test_small_factors_reach_a_bfloat16_weight() -> None:
    """A product of 1e-5, a fiftieth of the weights' rounding cells, moves what is merged by that on average."""
    base = (0.1 * torch.randn(1000, 1000, generator=torch.Generator().manual_seed(1))).bfloat16()
    whole = merged(base, torch.full((1, 1000), 1e-3), torch.full((1000, 1), 1e-2))
    assert float((whole.float() - base.float()).mean()) == pytest.approx(1e-5, rel=0.05)
    assert torch.equal(whole.bfloat16(), whole)


def test_names() -> None:
    """Factors are told by their ends; a layer stands once."""
    names = ["a.q.weight", "a.q.lora_A.weight", "a.q.lora_B.weight", "b.lora_magnitude.weight"]
    assert [is_factor(name) for name in names] == [False, True, True, True]
    assert layers_of(names) == ["a.q", "b"]


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({"y.lora_A.weight": (1, 2), "y.lora_B.weight": (3, 1)}, "a layer that this model does not have: y"),
        ({"x.lora_A.weight": (1, 2)}, "x: half of an adapter, B is missing"),
        ({"x.lora_B.weight": (3, 1)}, "x: half of an adapter, A is missing"),
        ({"x.lora_A.weight": (1, 2), "x.lora_B.weight": (3, 2)}, r"\[3, 2\] and \[1, 2\] make no weight"),
        ({"x.lora_A.weight": (1, 3), "x.lora_B.weight": (3, 1)}, r"\[3, 1\] and \[1, 3\] make no weight"),
        (
            {"x.lora_A.weight": (1, 2), "x.lora_B.weight": (3, 1), "x.lora_magnitude.weight": (2,)},
            r"x: a magnitude of \[2\] for a weight of \[3, 2\]",
        ),
    ],
)
def test_what_does_not_fit_is_named(factors: dict[str, tuple[int, ...]], message: str) -> None:
    """Another layer, half an adapter, shapes that make another weight: one line each."""
    with pytest.raises(Mismatch, match=message):
        check_factors(factors, {"x.weight": (3, 2)})


def test_what_fits_passes() -> None:
    """With and without a magnitude."""
    whole = {"x.lora_A.weight": (1, 2), "x.lora_B.weight": (3, 1)}
    check_factors(whole, {"x.weight": (3, 2)})
    check_factors({**whole, "x.lora_magnitude.weight": (3,)}, {"x.weight": (3, 2)})
