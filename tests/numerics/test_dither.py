"""Masters of bfloat16 weights: they begin anywhere within the cells that round to them, and the casts follow them."""

from __future__ import annotations

import pytest
import torch

from services.models.dither import dithered
from services.models.master_weights import MasterWeights, ParameterGroup


def weights(count: int, scale: float = 0.1, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(count, generator=generator)).bfloat16()


def cells(values: torch.Tensor) -> torch.Tensor:
    """Distance from each to the next bfloat16 further from 0, float32: 2^-7 of the power of two below it."""
    return torch.exp2(torch.floor(torch.log2(values.float().abs()))) * 2**-7


def bits(values: torch.Tensor) -> list[int]:
    return values.view(torch.int16).tolist()


@pytest.mark.parametrize("scale", [1e-38, 1e-6, 0.1, 1e30])
def test_casts_are_the_weights(scale: float) -> None:
    """Bit for bit, at every magnitude."""
    given = weights(300_000, scale)
    assert bits(dithered(given).bfloat16()) == bits(given)


def test_casts_of_edges_are_they() -> None:
    """Powers of two, whose cell is smaller towards 0, the largest number, the smallest, zeros of both signs."""
    largest, smallest = torch.finfo(torch.bfloat16).max, 2.0**-133
    edges = torch.tensor([1.0, -1.0, 0.125, -2.0, largest, -largest, smallest, -smallest, 0.0, -0.0])
    given = edges.bfloat16().repeat(10_000)
    found = dithered(given)
    assert bits(found.bfloat16()) == bits(given)
    assert not found[given == 0].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_others_are_as_they_are(dtype: torch.dtype) -> None:
    """What has no bfloat16 cell keeps its value."""
    given = weights(1000).to(dtype)
    assert torch.equal(dithered(given), given.float())


def test_every_place_of_a_cell_is_as_likely() -> None:
    """Tenths of the cell hold a tenth of the masters each, within four standard errors."""
    given = weights(500_000)
    given = given[given != 0]
    places = (dithered(given) - given.float()) / cells(given)
    inner = places[given.abs() != torch.exp2(torch.floor(torch.log2(given.float().abs())))]
    shares = torch.histc(inner, 10, -0.5, 0.5) / len(inner)
    assert shares.tolist() == pytest.approx([0.1] * 10, abs=4 * (0.09 / len(inner)) ** 0.5)


def test_places_have_nothing_to_do_with_each_other() -> None:
    """No correlation with the neighbours, the rows beside, the weights, another tensor's same places; even of ones."""
    one, other = (weights(500_000, seed=seed) for seed in (1, 2))
    place = (dithered(one) - one.float()) / cells(one)
    beside = (dithered(other) - other.float()) / cells(other)
    found = [torch.corrcoef(torch.stack([place[:-lag], place[lag:]]))[0, 1] for lag in (1, 2, 64, 576, 1536)]
    found += [torch.corrcoef(torch.stack([place, many.float()]))[0, 1] for many in (one, beside)]
    ones = dithered(torch.ones(500_000).bfloat16())
    found.append(torch.corrcoef(torch.stack([ones[:-1], ones[1:]]))[0, 1])
    assert [float(value) for value in found] == pytest.approx([0.0] * 8, abs=4 / 500_000**0.5)


def test_the_same_weights_get_the_same_masters() -> None:
    """In any shape and layout, from call to call."""
    given = weights(6_000)
    turned = given.view(60, 100).T.contiguous().T
    assert torch.equal(dithered(given).view(60, 100), dithered(turned))


@pytest.mark.parametrize("step", [1e-6, 1e-5, 1e-4])
def test_what_is_served_moves_as_the_masters_do(step: float) -> None:
    """On average, for steps far below the cells of weights of 0.1 (5e-4), where casts of plain masters stand still."""
    given = weights(1_000_000)
    given = given[given.abs() > 0.03]
    moved = (dithered(given) + step).bfloat16().float() - given.float()
    plain = (given.float() + step).bfloat16().float() - given.float()
    noise = (cells(given).mean() * step / len(given)) ** 0.5
    assert float(moved.mean()) == pytest.approx(step, abs=5 * float(noise))
    assert float(plain.mean()) < 0.5 * step


def test_small_updates_reach_what_is_served() -> None:
    """Twenty AdamW steps of 1e-6 in one direction: the bfloat16 weights go 2e-5 on average, and began as they were."""
    given = torch.nn.Parameter(weights(200_000))
    before = given.detach().clone()
    masters = MasterWeights(
        [ParameterGroup([given], 1e-6)], betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, max_grad_norm=1e9
    )
    masters.cast()
    assert torch.equal(given.detach(), before)
    for _ in range(20):
        given.grad = torch.ones_like(given)
        masters.accumulate()
        masters.step()
    moved = (given.detach().float() - before.float()).mean()
    assert float(moved) == pytest.approx(-2e-5, rel=0.02)
