"""Masked statistics and whitening, by hand."""

from __future__ import annotations

import pytest
import torch

from services.learner.algorithms.masked import masked_mean, masked_variance, whiten

GRID = torch.tensor([[1.2, 1.3, 1.4], [1.5, 1.6, 1.7], [1.8, 1.9, 2.0]])
ONES = torch.ones(3, 3)


def test_mean_and_variance_count_only_the_mask() -> None:
    """Of (1, 2, 9, 6) with the 9 masked: mean 3, biased variance (4 + 1 + 9) / 3, unbiased (4 + 1 + 9) / 2."""
    values, mask = torch.tensor([[1.0, 2.0], [9.0, 6.0]]), torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    assert masked_mean(values, mask).item() == pytest.approx(3.0)
    assert masked_variance(values, mask, unbiased=False).item() == pytest.approx(14 / 3)
    assert masked_variance(values, mask, unbiased=True).item() == pytest.approx(7.0)


def test_nothing_or_one_token_gives_no_nan() -> None:
    """Where no token counts mean and variance are 0; of one token the unbiased variance is 0, not 0/0."""
    values, none, one = torch.tensor([[5.0, 7.0]]), torch.zeros(1, 2), torch.tensor([[0.0, 1.0]])
    assert masked_mean(values, none).item() == 0.0
    assert masked_variance(values, none, unbiased=True).item() == 0.0
    assert masked_variance(values, one, unbiased=True).item() == 0.0
    assert whiten(values, none).tolist() == [[0.0, 0.0]]
    assert whiten(values, one).tolist() == [[0.0, 0.0]]


def test_whiten_biased_keeps_the_mean() -> None:
    """lm-human-preferences' own check: variance 0.6 / 9, so 1.2 becomes -0.4 * 3.87298 + 1.6 = 0.0508."""
    assert masked_variance(GRID, ONES, unbiased=False).item() == pytest.approx(0.0666667, abs=1e-6)
    found = whiten(GRID, ONES, keep_mean=True, form="biased")
    torch.testing.assert_close(found[0], torch.tensor([0.0508, 0.4381, 0.8254]), atol=5e-5, rtol=0)


def test_whiten_bessel_corrected() -> None:
    """TRL's and trlX's: variance 0.6 / 8, so 1.2 becomes -0.4 * 3.65148 + 1.6 = 0.1394."""
    found = whiten(GRID, ONES, keep_mean=True, form="unbiased")
    torch.testing.assert_close(found[0], torch.tensor([0.1394, 0.5046, 0.8697]), atol=5e-5, rtol=0)
    # 0.1394 - 1.6 without the mean; Bessel's correction is the default.
    torch.testing.assert_close(whiten(GRID, ONES)[0], found[0] - 1.6, atol=1e-6, rtol=0)


def test_padding_changes_nothing_and_comes_back_as_zero() -> None:
    """Whatever stands in masked places, the others are whitened as if it were not there."""
    padded = torch.cat([GRID, torch.full((3, 2), 1e6)], dim=1)
    mask = torch.cat([ONES, torch.zeros(3, 2)], dim=1)
    found = whiten(padded, mask, keep_mean=True)
    # float32 means over numbers of one size, whatever the padding: nothing of 1e6 leaks in.
    torch.testing.assert_close(found[:, :3], whiten(GRID, ONES, keep_mean=True), atol=1e-5, rtol=0)
    assert found[:, 3:].abs().max().item() == 0.0


def test_whiten_by_the_deviation() -> None:
    """RL4LMs: divided by the unbiased deviation plus 1e-8; of equal values 0, however small the denominator."""
    found = whiten(GRID, ONES, form="deviation")
    torch.testing.assert_close(found[0], torch.tensor([-1.4606, -1.0954, -0.7303]), atol=5e-5, rtol=0)
    # A spread of 1e-9 is whitened to 1e-9 / (1e-9 + 1e-8), where the root of the variance + 1e-8 gives 1e-5.
    tiny = torch.tensor([[-1e-9, 1e-9]], dtype=torch.float64)
    ones = torch.ones(1, 2, dtype=torch.float64)
    deviation = 2**0.5 * 1e-9
    assert whiten(tiny, ones, form="deviation")[0, 1].item() == pytest.approx(1e-9 / (deviation + 1e-8))
    assert whiten(tiny, ones)[0, 1].item() == pytest.approx(1e-5, rel=1e-4)
