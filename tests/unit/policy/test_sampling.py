"""Drawing tokens: the exact inverse CDF, its random numbers, top-k and top-p."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from services.policy.engines.sampling import BLOCK, draw, filter_logits, uniforms


def draw_one(probabilities: list[float] | torch.Tensor, uniform: float) -> int:
    row = torch.as_tensor(probabilities, dtype=torch.float32)[None]
    return int(draw(row, torch.tensor([uniform], dtype=torch.float64))[0])


@pytest.mark.parametrize(
    ("uniform", "token"),
    [(0.0, 0), (0.2499999, 0), (0.25, 1), (0.7499999, 1), (0.75, 2), (1 - 2**-53, 2)],
)
def test_borders_belong_to_the_next_token(uniform: float, token: int) -> None:
    """Of probabilities 1/4, 1/2, 1/4 the first token whose cumulative probability exceeds the number is drawn."""
    assert draw_one([0.25, 0.5, 0.25], uniform) == token


def test_probabilities_need_not_sum_to_one() -> None:
    """Weights 3, 1: the border lies at 3/4 of their sum."""
    assert draw_one([3.0, 1.0], 0.74) == 0
    assert draw_one([3.0, 1.0], 0.76) == 1


@pytest.mark.parametrize("uniform", [0.0, 0.3, 0.5, 0.999999, 1 - 2**-53])
@pytest.mark.parametrize("size", [7, BLOCK, BLOCK + 1, 3 * BLOCK + 17])
def test_tokens_of_probability_zero_are_never_drawn(uniform: float, size: int) -> None:
    """Neither at the start, nor at the end, nor in whole blocks between, nor in the padding behind them."""
    probabilities = torch.zeros(size)
    probabilities[[3, size - 2]] = 0.5
    assert draw_one(probabilities, uniform) == (3 if uniform < 0.5 else size - 2)


@given(st.integers(1, 700), st.integers(0, 2**32 - 1), st.floats(0, 1, exclude_max=True))
def test_equals_the_exact_search(size: int, seed: int, uniform: float) -> None:
    """Whatever the probabilities, the draw is the exact CDF's up to rounding at the very border."""
    rng = np.random.default_rng(seed)
    probabilities = rng.exponential(size=size).astype(np.float32) * (rng.random(size) < 0.7)
    probabilities[rng.integers(size)] = 1.0
    token = draw_one(torch.from_numpy(probabilities), uniform)
    cumulative = probabilities.astype(np.float64).cumsum()
    threshold, slack = uniform * cumulative[-1], 1e-6 * cumulative[-1]
    assert probabilities[token] > 0
    assert cumulative[token] > threshold - slack
    assert token == 0 or cumulative[token - 1] <= threshold + slack


def test_rows_are_drawn_by_their_own_numbers() -> None:
    """Each row of a batch gives what it gives alone."""
    generator = torch.Generator().manual_seed(3)
    probabilities = torch.rand(9, 600, generator=generator)
    numbers = torch.rand(9, generator=generator, dtype=torch.float64)
    together = draw(probabilities, numbers).tolist()
    assert together == [
        draw_one(row, float(number)) for row, number in zip(probabilities, numbers, strict=True)
    ]


def test_frequencies_are_the_probabilities() -> None:
    """Chi-square of 20,000 draws over 300 tokens with a fixed seed: below 299 + 4 deviations of 24.5."""
    weights = np.random.default_rng(5).exponential(size=300).astype(np.float32)
    count = 20_000
    rows = torch.from_numpy(weights)[None].expand(count, -1)
    numbers = torch.from_numpy(uniforms(11, 0, count))
    seen = np.bincount(draw(rows, numbers).numpy(), minlength=300)
    expected = weights / weights.sum() * count
    assert float(((seen - expected) ** 2 / expected).sum()) < 299 + 4 * 24.5


def test_uniforms_continue_where_they_left_off() -> None:
    """Number t depends on (seed, index, t) alone: asking for more later gives the same beginning."""
    assert uniforms(7, 3, 50)[:20].tolist() == uniforms(7, 3, 20).tolist()
    numbers = uniforms(7, 3, 1000)
    assert 0 <= numbers.min() < 0.01 < 0.99 < numbers.max() < 1


def test_uniforms_differ_by_seed_and_index() -> None:
    """Neighbouring completions and seeds share no number; the largest seed of the contract works."""
    rows = [uniforms(seed, index, 8).tolist() for seed in (0, 1, 2**64 - 1) for index in (0, 1)]
    assert len({number for row in rows for number in row}) == 6 * 8


def kept(logits: list[float], top_k: int, top_p: float) -> list[int]:
    row = torch.tensor(logits)[None]
    filtered = filter_logits(row, top_k, top_p)[0]
    assert bool((filtered.isneginf() | (filtered == row[0])).all())
    return [at for at, value in enumerate(filtered.tolist()) if value != float("-inf")]


# Probabilities 0.1, 0.4, 0.2, 0.3.
LOGITS = np.log([0.1, 0.4, 0.2, 0.3]).tolist()


@pytest.mark.parametrize(
    ("top_k", "top_p", "tokens"),
    [
        (0, 1.0, [0, 1, 2, 3]),
        (1, 1.0, [1]),
        (3, 1.0, [1, 2, 3]),
        (4, 1.0, [0, 1, 2, 3]),
        (99, 1.0, [0, 1, 2, 3]),
        (0, 0.35, [1]),  # 0.4 reaches it
        (0, 0.5, [1, 3]),  # 0.4 does not, 0.7 does
        (0, 0.85, [1, 2, 3]),  # 0.7 does not, 0.9 does
        (0, 0.95, [0, 1, 2, 3]),
        (0, 1e-6, [1]),  # never empty
        (2, 0.6, [1, 3]),  # of 4/7 and 3/7 the first alone does not reach it
        (2, 0.5, [1]),  # but here it does: the nucleus is of what top-k left
    ],
)
def test_top_k_and_top_p(top_k: int, top_p: float, tokens: list[int]) -> None:
    """The k best, and of these the smallest set whose probability reaches p; the rest is impossible."""
    assert kept(LOGITS, top_k, top_p) == tokens


def test_filters_work_row_by_row() -> None:
    """Each row has its own best tokens."""
    rows = torch.tensor([[1.0, 2.0, 3.0], [9.0, 2.0, 1.0]])
    found = filter_logits(rows, 1, 0.9)
    assert found.argmax(-1).tolist() == [2, 0]
    assert int(found.isneginf().sum()) == 4
