"""TRPO's step against dense linear algebra, and what it does when no step will do."""

from __future__ import annotations

import math

import pytest
import torch

from services.common.spec.library import TrpoSpec
from services.learner.algorithms.base import Current
from services.learner.algorithms.trpo import (
    categorical_kl,
    conjugate_gradient,
    fisher_product,
    surrogate,
    trpo_targets,
    trust_region_step,
)
from tests.numerics.batches import loss_at, made, rollouts, targets, whole

STATES = torch.tensor([[1.0, 0.5], [-0.5, 1.0], [0.3, -1.0]], dtype=torch.float64)
ACTIONS = torch.tensor([0, 2, 1])
ADVANTAGES = torch.tensor([[1.0, -0.5, 2.0]], dtype=torch.float64)
THETA = torch.tensor([0.2, -0.1, 0.4, 0.3, -0.2, 0.1], dtype=torch.float64)
MASK = [[1.0, 1.0, 1.0]]


def logs(theta: torch.Tensor) -> torch.Tensor:
    """A linear softmax policy over three actions at three states, [1, 3, 3]."""
    return (STATES @ theta.view(2, 3)).log_softmax(-1)[None]


def chosen(theta: torch.Tensor) -> torch.Tensor:
    return logs(theta).gather(-1, ACTIONS[None, :, None])[..., 0]


def raised(theta: torch.Tensor) -> torch.Tensor:
    batch = rollouts(MASK, old=chosen(THETA).tolist(), dtype=torch.float64)
    return surrogate(chosen(theta), batch, targets(batch, ADVANTAGES.tolist()))


def divergence(theta: torch.Tensor) -> torch.Tensor:
    return categorical_kl(logs(THETA), logs(theta), torch.ones(1, 3, dtype=torch.float64))


def dense_fisher() -> torch.Tensor:
    """Mean over states of J^T (diag p - p p^T) J, J the derivative of the three logits."""
    fisher = torch.zeros(6, 6, dtype=torch.float64)
    for state in STATES:
        p = (state @ THETA.view(2, 3)).softmax(-1)
        jacobian = torch.zeros(3, 6, dtype=torch.float64)
        for action in range(3):
            jacobian[action, action], jacobian[action, 3 + action] = state[0], state[1]
        fisher += jacobian.T @ (torch.diag(p) - torch.outer(p, p)) @ jacobian / 3
    return fisher


def gradient() -> torch.Tensor:
    """Of mean A log pi at the old policy: mean A (onehot - p) by state."""
    found = torch.zeros(2, 3, dtype=torch.float64)
    for state, action, advantage in zip(STATES, ACTIONS, ADVANTAGES[0], strict=True):
        p = (state @ THETA.view(2, 3)).softmax(-1)
        found += advantage / 3 * torch.outer(state, torch.eye(3, dtype=torch.float64)[action] - p)
    return found.flatten()


def test_surrogate_is_the_mean_of_advantage_times_ratio() -> None:
    """Ratios 2 and 1/2 at advantages 3 and 4, an importance of 2 on the second, a masked third: (6 + 4) / 2."""
    batch = rollouts([[1.0, 1.0, 0.0]], importance=[[1.0, 2.0, 1.0]])
    aims = targets(batch, [[3.0, 4.0, 9.0]])
    assert surrogate(torch.tensor([[2.0, 0.5, 7.0]]).log(), batch, aims).item() == pytest.approx(5.0)


def test_categorical_kl_by_hand() -> None:
    """KL((0.9, 0.1) || (0.5, 0.5)) = 0.9 ln 1.8 + 0.1 ln 0.2 = 0.3681; a masked token does not count."""
    old = torch.tensor([[[0.9, 0.1], [0.5, 0.5]]]).log()
    new = torch.tensor([[[0.5, 0.5], [0.9, 0.1]]]).log()
    assert categorical_kl(old, new, torch.tensor([[1.0, 0.0]])).item() == pytest.approx(0.368064, abs=1e-6)
    other = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert categorical_kl(old, new, torch.ones(1, 2)).item() == pytest.approx(
        (0.368064 + other) / 2, abs=1e-6
    )


def test_fisher_product_is_the_dense_matrix() -> None:
    """Six unit vectors give the columns of F + damping."""
    product = fisher_product(divergence, THETA, 0.1)
    unit = torch.eye(6, dtype=torch.float64)
    found = torch.stack([product(vector) for vector in unit], dim=1)
    torch.testing.assert_close(found, dense_fisher() + 0.1 * unit, atol=1e-10, rtol=0)


def test_conjugate_gradient_solves_and_stops() -> None:
    """In as many steps as dimensions it is the dense solution; one step is the steepest descent's g.g / g.Ag."""
    matrix = torch.tensor([[4.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
    goal = torch.tensor([1.0, 2.0], dtype=torch.float64)
    found = conjugate_gradient(lambda v: matrix @ v, goal, steps=2)
    torch.testing.assert_close(found, torch.linalg.solve(matrix, goal))
    # g = (1, 2): g.g = 5, g.Ag = 4 + 4 + 12 = 20.
    one = conjugate_gradient(lambda v: matrix @ v, goal, steps=1)
    torch.testing.assert_close(one, goal * 0.25)
    calls = []
    conjugate_gradient(lambda v: calls.append(1) or v, goal, steps=50)  # type: ignore[func-returns-value]
    assert len(calls) == 1


def test_a_step_is_the_dense_natural_step() -> None:
    """theta + sqrt(2 delta / s.Fs) s with (F + 0.1) s = g, solved densely; s.Fs includes the damping."""
    spec = TrpoSpec(target_kl=0.01)
    found = trust_region_step(THETA, raised, divergence, spec)
    matrix = dense_fisher() + 0.1 * torch.eye(6, dtype=torch.float64)
    direction = torch.linalg.solve(matrix, gradient())
    length = torch.sqrt(0.02 / (direction @ matrix @ direction))
    assert found.accepted
    assert found.tries == 1
    torch.testing.assert_close(found.theta, THETA + length * direction, atol=1e-7, rtol=0)
    assert found.kl == pytest.approx(float(divergence(found.theta)))
    assert 0 < found.kl <= 0.01
    assert found.gain == pytest.approx(float(raised(found.theta) - raised(THETA)))
    assert found.gain > 0


def test_back_tracking_shortens_until_the_divergence_fits() -> None:
    """A divergence that is told 3 times too large: 0.8^k must bring the quadratic 3 * 0.01 below 0.01: k = 3."""
    spec = TrpoSpec(target_kl=0.01, damping=0.0)

    def told(theta: torch.Tensor) -> torch.Tensor:
        # The second derivative is the true one, so that the step is; only what is measured of it is larger.
        true = divergence(theta)
        return true if theta.requires_grad else 3 * true

    found = trust_region_step(THETA, raised, told, spec)
    whole = trust_region_step(THETA, raised, divergence, spec)
    expected = math.ceil(math.log(1 / 3) / math.log(0.64))
    assert whole.tries <= 2
    assert found.tries - 1 == pytest.approx(expected, abs=1)
    assert found.kl <= 0.01
    torch.testing.assert_close(
        found.theta - THETA, (whole.theta - THETA) * 0.8 ** (found.tries - whole.tries), atol=1e-9, rtol=0
    )


def test_curvature_may_come_from_fewer_states() -> None:
    """Twice the curvature without damping: the same direction, sqrt(2) shorter, and measured by the divergence."""
    spec = TrpoSpec(damping=0.0, cg_steps=6)
    whole = trust_region_step(THETA, raised, divergence, spec)
    found = trust_region_step(THETA, raised, divergence, spec, curvature=lambda theta: 2 * divergence(theta))
    steps = whole.theta - THETA, found.theta - THETA
    scale = 0.8 ** (found.tries - whole.tries) / 2**0.5
    torch.testing.assert_close(steps[1], steps[0] * scale, atol=1e-6, rtol=0)
    assert found.kl == pytest.approx(float(divergence(found.theta)))


def test_it_reverts_when_no_step_will_do() -> None:
    """Where nothing raises the surrogate theta stays, to the bit, after all tries; a zero gradient needs none."""
    spec = TrpoSpec(backtracking_steps=4)
    falling = trust_region_step(
        THETA, lambda theta: raised(theta) if theta.requires_grad else raised(theta) - 1, divergence, spec
    )
    assert not falling.accepted
    assert falling.tries == 4
    assert torch.equal(falling.theta, THETA)
    assert (falling.kl, falling.gain) == (0.0, 0.0)
    flat = trust_region_step(THETA, lambda theta: 0 * theta.sum(), divergence, spec)
    assert (flat.accepted, flat.tries, flat.kl, flat.gain) == (False, 0, 0.0, 0.0)
    assert torch.equal(flat.theta, THETA)


def test_targets() -> None:
    """gamma 0.5, lambda 0.4, beta 0.1: r = (-0.05, 1.1), values (0.3, 0.1): A_1 = 1, A_0 = -0.05 + 0.05 - 0.3 + 0.2."""
    batch = rollouts(
        [[1.0, 1.0]], old=[[-1.0, -2.0]], reference=[[-1.5, -1.0]], values=[[0.3, 0.1]], scores=[1.0]
    )
    spec = TrpoSpec(gamma=0.5, gae_lambda=0.4, whiten_advantages=False)
    found = trpo_targets(batch, spec, 0.1)
    torch.testing.assert_close(found.advantages, torch.tensor([[-0.1, 1.0]]))
    torch.testing.assert_close(found.returns, torch.tensor([[0.2, 1.1]]))
    whitened = trpo_targets(batch, TrpoSpec(gamma=0.5, gae_lambda=0.4), 0.1)
    assert whitened.advantages.std().item() == pytest.approx(1.0, abs=1e-5)
    torch.testing.assert_close(found.rewards, torch.tensor([[-0.05, 1.1]]))


def test_returns_of_padding_are_none() -> None:
    """After the end of a completion nothing is to be predicted, whatever the critic says there."""
    batch = rollouts([[1.0, 0.0], [1.0, 1.0]], values=[[0.3, 7.0], [0.5, 0.1]], scores=[1.0, 2.0])
    found = trpo_targets(batch, TrpoSpec(gamma=1.0, gae_lambda=1.0), 0.0)
    torch.testing.assert_close(found.returns, torch.tensor([[1.0, 0.0], [2.0, 2.0]]))


def test_the_critic_is_fitted_by_the_mean_square() -> None:
    """Values (1, 2, 50) for returns (-1, 4, 0), the last padding: (2^2 + 2^2) / 2 = 4, gradient (2, -2, 0)."""
    algorithm = made(TrpoSpec())
    assert algorithm.critic
    batch = rollouts([[1.0, 1.0, 0.0]])
    values = torch.tensor([[1.0, 2.0, 50.0]], requires_grad=True)
    aims = targets(batch, [[0.0, 0.0, 0.0]], returns=[[-1.0, 4.0, 0.0]])
    found = algorithm.loss(Current(batch.old_logprobs, values), whole(batch, aims))
    assert found.total.item() == found.metrics["loss/value_avg"].item() == pytest.approx(4.0)
    found.total.backward()
    torch.testing.assert_close(values.grad, torch.tensor([[2.0, -2.0, 0.0]]))
    # Beyond a square: 1 from the goal costs a quarter of 2, 3 from it nine quarters.
    near = loss_at(algorithm, batch, aims, [[1.0, 1.0, 1.0]], values=[[0.0, 7.0, 50.0]])
    assert near.total.item() == pytest.approx(5.0)
