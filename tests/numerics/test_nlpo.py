"""NLPO's masks: what they leave, that they travel, and that they are refreshed."""

from __future__ import annotations

import pytest
import torch

from services.common.spec.library import NlpoSpec
from services.learner.algorithms.nlpo import MaskModel, Nlpo, masked_logits, nucleus, packed, unpacked
from tests.numerics.batches import loss_at, rollouts, targets

FIVE = torch.tensor([0.05, 0.4, 0.1, 0.15, 0.3]).log()


@pytest.mark.parametrize(
    ("top_p", "least", "allowed"),
    [
        (0.3, 1, [0, 1, 0, 0, 0]),  # 0.4 alone reaches it
        (0.6, 1, [0, 1, 0, 0, 1]),  # 0.4 + 0.3
        (0.8, 1, [0, 1, 0, 1, 1]),  # 0.4 + 0.3 + 0.15
        (0.3, 3, [0, 1, 0, 1, 1]),  # three at least
        (1.0, 1, [1, 1, 1, 1, 1]),
        (0.3, 99, [1, 1, 1, 1, 1]),
    ],
)
def test_nucleus(top_p: float, least: int, allowed: list[int]) -> None:
    """The fewest likeliest tokens that reach top_p, and never fewer than the least number."""
    assert nucleus(FIVE, top_p=top_p, min_tokens=least).tolist() == [bool(bit) for bit in allowed]


def test_each_state_has_its_own_nucleus_and_of_equals_the_lower_id_stays() -> None:
    """Two states at once; four equal tokens and top_p 0.3 leave the first two."""
    logits = torch.stack([FIVE, FIVE.flip(0)])[None]
    found = nucleus(logits, top_p=0.6, min_tokens=1)
    assert found.tolist() == [[[False, True, False, False, True], [True, False, False, True, False]]]
    assert nucleus(torch.zeros(4), top_p=0.3, min_tokens=1).tolist() == [True, True, False, False]


def test_masked_policy_shares_the_mass_of_what_is_allowed() -> None:
    """0.4 and 0.3 become 4/7 and 3/7, the rest 0."""
    allowed = nucleus(FIVE, top_p=0.6, min_tokens=1)
    found = masked_logits(FIVE, allowed).softmax(-1)
    torch.testing.assert_close(found, torch.tensor([0.0, 4 / 7, 0.0, 0.0, 3 / 7]))


@pytest.mark.parametrize("vocabulary", [5, 8, 23])
def test_masks_travel_packed(vocabulary: int) -> None:
    """Eight tokens a byte and back, whatever the vocabulary; the first token is the lowest bit."""
    generator = torch.Generator().manual_seed(vocabulary)
    mask = torch.rand(2, 3, vocabulary, generator=generator) > 0.5
    small = packed(mask)
    assert small.dtype == torch.uint8
    assert small.shape == (2, 3, -(-vocabulary // 8))
    assert torch.equal(unpacked(small, vocabulary), mask)
    assert packed(torch.tensor([True, False, False, True, True])).tolist() == [1 + 8 + 16]


def test_kl_is_raw_and_the_ratio_is_masked() -> None:
    """Raw log-ratio 0.5 taxes the reward; the loss' ratio is against the masked log-prob of -0.2."""
    batch = rollouts([[1.0]], old=[[-0.2]], reference=[[-1.5]], scores=[1.0])
    batch = type(batch)(
        **{name: getattr(batch, name) for name in batch.__dataclass_fields__}
        | {"raw_logprobs": torch.tensor([[-1.0]])}
    )
    algorithm = Nlpo(NlpoSpec(whiten_advantages=False), max_completion_length=1)
    found = algorithm.targets(batch, 0.1)
    assert found.rewards.item() == pytest.approx(1 - 0.05)
    loss = loss_at(algorithm, batch, targets(batch, [[1.0]]), [[1.5]])
    assert loss.metrics["val/ratio"].item() == pytest.approx(1.5)
    assert loss.total.item() == pytest.approx(-1.2)


def test_the_mask_model_becomes_the_policy_at_every_refresh_and_only_then() -> None:
    """refresh_every = 3: the mask stays that of the first policy for two updates, then becomes the third one's."""
    policy = torch.nn.Linear(1, 5, bias=False)
    with torch.no_grad():
        policy.weight.copy_(FIVE[:, None])
    mask = MaskModel(policy, NlpoSpec(top_p=0.6, min_tokens=1, refresh_every=3))
    state = torch.ones(1)
    first = [False, True, False, False, True]
    for update in range(1, 7):
        with torch.no_grad():
            policy.weight.copy_(FIVE.roll(update)[:, None])
        refreshed = mask.updated(policy, update)
        assert refreshed == (update in (3, 6))
        since = 3 * (update // 3)
        expected = nucleus(FIVE.roll(since), top_p=0.6, min_tokens=1).tolist() if since else first
        assert mask.allowed(mask.model(state)).tolist() == expected
    assert mask.version == 2
    assert torch.equal(mask.model.weight, policy.weight)
    assert not mask.model.weight.requires_grad


def test_a_mask_model_that_is_always_renewed_is_renewed_at_the_first_update() -> None:
    """refresh_every = 1; told of several updates at once, it is renewed where a multiple is among them."""
    policy = torch.nn.Linear(1, 5, bias=False)
    mask = MaskModel(policy, NlpoSpec(refresh_every=1))
    assert mask.updated(policy, 1)
    mask = MaskModel(policy, NlpoSpec(refresh_every=3))
    assert [mask.updated(policy, updates) for updates in (2, 4, 5, 9)] == [False, True, False, True]
    assert mask.version == 2
