"""Rewards per token and generalised advantages, by hand."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from services.learner.algorithms.advantages import generalised_advantages, token_rewards


def close(found: torch.Tensor, expected: list[list[float]]) -> None:
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-6, rtol=0)


def test_score_on_the_last_real_token_and_kl_on_all() -> None:
    """-0.1 * kl on every token; scores 2 and -1 on tokens 2 and 0, the last ones; nothing on padding."""
    kl = torch.tensor([[1.0, 2.0, -3.0], [4.0, 9.0, 9.0]])
    mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    found = token_rewards(torch.tensor([2.0, -1.0]), kl, mask, 0.1)
    close(found, [[-0.1, -0.2, 0.3 + 2.0], [-0.4 - 1.0, 0.0, 0.0]])


def test_score_goes_past_masked_tokens_in_the_middle() -> None:
    """Masked text between (a tool's answer) does not pull the score forward: the last counted token gets it."""
    found = token_rewards(torch.tensor([5.0]), torch.zeros(1, 4), torch.tensor([[1.0, 0.0, 1.0, 0.0]]), 0.1)
    close(found, [[0.0, 0.0, 5.0, 0.0]])


def test_gae_with_the_value_after_the_end_zero() -> None:
    """gamma 1, lambda 0.95, r = (0, 0, 1), V = (0.5, 0.4, 0.2).

    delta_2 = 1 + 0 - 0.2 = 0.8                  A_2 = 0.8
    delta_1 = 0 + 0.2 - 0.4 = -0.2               A_1 = -0.2 + 0.95 * 0.8 = 0.56
    delta_0 = 0 + 0.4 - 0.5 = -0.1               A_0 = -0.1 + 0.95 * 0.56 = 0.432
    """
    found = generalised_advantages(
        torch.tensor([[0.0, 0.0, 1.0]]),
        torch.tensor([[0.5, 0.4, 0.2]]),
        torch.ones(1, 3),
        gamma=1.0,
        lam=0.95,
    )
    close(found, [[0.432, 0.56, 0.8]])


def test_gae_discounts() -> None:
    """gamma 0.5, lambda 0.5, r = (1, 2), V = (3, 4): A_1 = -2; A_0 = 1 + 0.5 * 4 - 3 + 0.25 * -2 = -0.5."""
    found = generalised_advantages(
        torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]), torch.ones(1, 2), gamma=0.5, lam=0.5
    )
    close(found, [[-0.5, -2.0]])


def test_gae_of_ragged_rows() -> None:
    """A row of one token beside one of three: 2 - 0.5 = 1.5 and nothing after, whatever values stand there."""
    found = generalised_advantages(
        torch.tensor([[0.0, 0.0, 1.0], [2.0, 0.0, 0.0]]),
        torch.tensor([[0.5, 0.4, 0.2], [0.5, 77.0, -77.0]]),
        torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]]),
        gamma=1.0,
        lam=0.95,
    )
    close(found, [[0.432, 0.56, 0.8], [1.5, 0.0, 0.0]])


def test_gae_goes_over_masked_tokens_in_the_middle() -> None:
    """Tokens around a masked one follow each other: A_2 = 0.8, A_0 = 0.2 - 0.5 + 0.95 * 0.8 = 0.46."""
    found = generalised_advantages(
        torch.tensor([[0.0, 0.0, 1.0]]),
        torch.tensor([[0.5, 77.0, 0.2]]),
        torch.tensor([[1.0, 0.0, 1.0]]),
        gamma=1.0,
        lam=0.95,
    )
    close(found, [[0.46, 0.0, 0.8]])


@given(st.lists(st.tuples(st.floats(-3, 3), st.floats(-3, 3)), min_size=1, max_size=8))
def test_gae_with_lambda_one_is_the_return_minus_the_value(tokens: list[tuple[float, float]]) -> None:
    """With gamma = lambda = 1 the values in between cancel: A_t is the sum of later rewards minus V_t."""
    rewards = torch.tensor([[reward for reward, _ in tokens]])
    values = torch.tensor([[value for _, value in tokens]])
    found = generalised_advantages(rewards, values, torch.ones_like(rewards), gamma=1.0, lam=1.0)
    later = rewards.flip(-1).cumsum(-1).flip(-1)
    torch.testing.assert_close(found, later - values, atol=1e-4, rtol=1e-4)
