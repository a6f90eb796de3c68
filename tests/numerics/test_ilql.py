"""ILQL's losses by hand, its fixed point against a table, its targets and its decoding."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks import losses
from benchmarks.peers import ilql_formula
from services.common.spec.library import IlqlSpec
from services.learner.algorithms.ilql import (
    Heads,
    IlqlHeads,
    Transitions,
    decoding_logits,
    ilql_loss,
    standardised,
)

SPEC = IlqlSpec(tau=0.8, gamma=0.5, cql_scale=0.1, awac_scale=2.0)


def one_step() -> tuple[Heads, Transitions]:
    """One row: a step to a state of value 3 with reward 1, then a last step with reward 2; a masked third.

    Action 1 first: Qs 2 and 4, targets 5 and 6 (least 5), V 1. Action 0 then: Qs 1 and 3, targets 0 and 2, V 3.
    """
    q_one = torch.tensor([[[9.0, 2.0], [1.0, 8.0], [7.0, 7.0]]])
    q_two = torch.tensor([[[9.0, 4.0], [3.0, 8.0], [7.0, 7.0]]])
    targets = (
        torch.tensor([[[9.0, 5.0], [0.0, 8.0], [7.0, 7.0]]]),
        torch.tensor([[[9.0, 6.0], [2.0, 8.0], [7.0, 7.0]]]),
    )
    logits = torch.tensor([[[0.0, math.log(3)], [0.0, 0.0], [5.0, -5.0]]])
    heads = Heads(logits, (q_one, q_two), targets, torch.tensor([[1.0, 3.0, 40.0, 50.0]]))
    data = Transitions(
        actions=torch.tensor([[1, 0, 0]]),
        rewards=torch.tensor([[1.0, 2.0, 99.0]]),
        mask=torch.tensor([[1.0, 1.0, 0.0]]),
        continues=torch.tensor([[1.0, 0.0, 1.0]]),
    )
    return heads, data


def test_losses_by_hand() -> None:
    """Goals 1 + 0.5 * 3 = 2.5 and 2 (the end is worth 0).

    Q: (2 - 2.5)^2 + (1 - 2)^2 and (4 - 2.5)^2 + (3 - 2)^2, over 2 steps: 0.625 + 1.625.
    V: d = 5 - 1 = 4 and 0 - 3 = -3: (0.8 * 16 + 0.2 * 9) / 2 = 7.3.
    CQL: -log softmax of Q at the action: log(1 + e^7), log(1 + e^7) and log(1 + e^5) twice, over 2.
    AWAC, plain: log(4/3) and log 2, over 2.
    """
    heads, data = one_step()
    found = ilql_loss(heads, data, SPEC, steps=2)
    q, v = 0.625 + 1.625, 7.3
    cql = math.log1p(math.exp(7))
    cql_two = math.log1p(math.exp(5))
    awac = (math.log(4 / 3) + math.log(2)) / 2
    for name, value in (("q", q), ("v", v), ("cql", cql + cql_two), ("awac", awac)):
        assert found.metrics[f"losses/{name}"].item() == pytest.approx(value, rel=1e-5), name
    assert found.total.item() == pytest.approx(q + v + 0.1 * (cql + cql_two) + 2.0 * awac, rel=1e-5)
    assert found.metrics["values/q"].item() == pytest.approx(2.5)
    assert found.metrics["values/v"].item() == pytest.approx(2.0)


def test_a_batch_of_one_step_is_its_own_mean() -> None:
    """Only the first step counts, of one: nothing is divided; of none at all, nothing is divided by 0."""
    heads, data = one_step()
    first = replace(data, mask=torch.tensor([[1.0, 0.0, 0.0]]))
    found = ilql_loss(heads, first, SPEC, steps=1)
    assert found.metrics["losses/q"].item() == pytest.approx(0.25 + 2.25)
    assert found.metrics["losses/v"].item() == pytest.approx(0.8 * 16)
    nothing = ilql_loss(heads, replace(data, mask=torch.zeros(1, 3)), SPEC, steps=0)
    assert nothing.total.item() == 0.0


def test_awac_weighs_by_the_advantage() -> None:
    """beta 0.5: weights e^2 and e^-1.5 on log(4/3) and log 2, without a gradient into V."""
    heads, data = one_step()
    spec = SPEC.model_copy(update={"awac_beta": 0.5})
    found = ilql_loss(heads, data, spec, steps=2).metrics["losses/awac"].item()
    assert found == pytest.approx(
        (math.exp(2) * math.log(4 / 3) + math.exp(-1.5) * math.log(2)) / 2, rel=1e-5
    )


def random_heads(dtype: torch.dtype = torch.float64) -> tuple[list[torch.Tensor], Transitions]:
    generator = torch.Generator().manual_seed(5)
    shapes = [(3, 4, 5)] * 5 + [(3, 5)]
    tensors = [torch.randn(*shape, generator=generator, dtype=dtype) for shape in shapes]
    lengths = torch.tensor([[4], [2], [3]])
    places = torch.arange(4)[None]
    data = Transitions(
        actions=torch.randint(0, 5, (3, 4), generator=generator),
        rewards=torch.randn(3, 4, generator=generator, dtype=dtype),
        mask=(places < lengths).to(dtype),
        continues=(places < lengths - 1).to(dtype),
    )
    return tensors, data


def loss_of(tensors: list[torch.Tensor], data: Transitions, rows: list[int] | None = None) -> torch.Tensor:
    logits, q_one, q_two, target_one, target_two, values = (
        tensors if rows is None else [tensor[rows] for tensor in tensors]
    )
    if rows is not None:
        data = Transitions(data.actions[rows], data.rewards[rows], data.mask[rows], data.continues[rows])
    spec = SPEC.model_copy(update={"awac_beta": 0.3})
    return ilql_loss(
        Heads(logits, (q_one, q_two), (target_one, target_two), values), data, spec, steps=9
    ).total


def test_gradient_against_finite_differences() -> None:
    """Of logits, Qs and V; the target Qs, the bootstrapped value and the cloning's weight have none.

    V is moved with what it bootstraps and weighs held still, as the definition says.
    """
    tensors, data = random_heads()
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    loss_of(leaves, data).backward()
    slopes = [torch.zeros(0) if leaf.grad is None else leaf.grad for leaf in leaves]
    assert leaves[3].grad is None
    assert leaves[4].grad is None
    step = 1e-6
    for which in (0, 1, 2):
        flat = slopes[which].flatten()
        for at in range(0, tensors[which].numel(), 7):
            moved = []
            for sign in (1, -1):
                changed = [tensor.clone() for tensor in tensors]
                changed[which].view(-1)[at] += sign * step
                moved.append(float(loss_of(changed, data)))
            assert float(flat[at]) == pytest.approx((moved[0] - moved[1]) / (2 * step), abs=1e-7)
    target = torch.minimum(*(tensors[which].gather(-1, data.actions[..., None])[..., 0] for which in (3, 4)))
    difference = target - tensors[5][:, :-1]
    expected = -2 * (0.8 - (difference < 0).double()).abs() * difference * data.mask / 9
    torch.testing.assert_close(slopes[5][:, :-1], expected)
    assert slopes[5][:, -1].abs().max().item() == 0


def test_any_parts_give_the_same_loss() -> None:
    """Rows together or one by one."""
    tensors, data = random_heads()
    parts = sum(float(loss_of(tensors, data, [row])) for row in range(3))
    assert parts == pytest.approx(float(loss_of(tensors, data)), abs=1e-12)


def expectile(values: list[float], tau: float) -> float:
    """The v with sum |tau - 1[x < v]| (x - v) = 0, by bisection."""
    low, high = min(values), max(values)
    for _ in range(200):
        middle = (low + high) / 2
        slope = sum(abs(tau - (x < middle)) * (x - middle) for x in values)
        low, high = (middle, high) if slope > 0 else (low, middle)
    return low


def test_it_converges_to_the_tabular_solution() -> None:
    """A table of Q and V, learnt by descent, is the expectile solution of the data.

    In state 0 the data take action 0 three times (to state 1) and action 1 once (to the end, reward 0.3); in state 1
    actions 0 and 1 end with rewards 1 and 0, taken twice and once. gamma 0.9, tau 0.8, no CQL, no cloning.
    """
    spec = IlqlSpec(tau=0.8, gamma=0.9, cql_scale=0.0, awac_scale=0.0)
    value_one = expectile([1.0, 1.0, 0.0], 0.8)
    value_zero = expectile([0.9 * value_one] * 3 + [0.3], 0.8)
    rows = [(0, 0), (0, 0), (0, 1), (1, None)]
    states = torch.tensor([[0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 2, 2]])
    actions = torch.tensor([[first, second or 0] for first, second in rows])
    data = Transitions(
        actions=actions,
        rewards=torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 0.0], [0.3, 0.0]], dtype=torch.float64),
        mask=torch.tensor([[1, 1], [1, 1], [1, 1], [1, 0]], dtype=torch.float64),
        continues=torch.tensor([[1, 0], [1, 0], [1, 0], [0, 0]], dtype=torch.float64),
    )
    q = torch.zeros(2, 3, 2, dtype=torch.float64, requires_grad=True)
    v = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    target = torch.zeros(2, 3, 2, dtype=torch.float64)
    optimiser = torch.optim.SGD([q, v], lr=0.5)
    for _ in range(1500):
        acting = states[:, :-1]
        heads = Heads(
            torch.zeros(4, 2, 2, dtype=torch.float64),
            (q[0][acting], q[1][acting]),
            (target[0][acting], target[1][acting]),
            v[states],
        )
        optimiser.zero_grad()
        ilql_loss(heads, data, spec, steps=7).total.backward()
        optimiser.step()
        target.lerp_(q.detach(), 0.5)
    assert v[1].item() == pytest.approx(value_one, abs=1e-3)
    assert v[0].item() == pytest.approx(value_zero, abs=1e-3)
    torch.testing.assert_close(q[0], q[1])
    expected = torch.tensor([[0.9 * value_one, 0.3], [1.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(q[0, :2].detach(), expected, atol=1e-3, rtol=0)


def test_returns_are_standardised_with_the_unbiased_deviation() -> None:
    """(0, 1, 2): mean 1, deviation 1."""
    torch.testing.assert_close(standardised(torch.tensor([0.0, 1.0, 2.0])), torch.tensor([-1.0, 0.0, 1.0]))


def test_returns_that_hardly_differ_keep_their_order() -> None:
    """A deviation below the eps of float32 is widened by it, not turned round."""
    low, high = standardised(torch.tensor([0.0, 1e-7])).tolist()
    deviation = 1e-7 / math.sqrt(2)
    assert high == -low == pytest.approx(0.5e-7 / (deviation + 2.0**-23), rel=1e-4)


def test_decoding() -> None:
    """log pi = log(0.5, 0.3, 0.2), least target Q - V = (0, 1, 3) - 1, beta 2, T 2, the best two of three stay."""
    logits = torch.tensor([0.5, 0.3, 0.2]).log() + 4
    targets = (torch.tensor([0.0, 5.0, 3.0]), torch.tensor([2.0, 1.0, 4.0]))
    spec = IlqlSpec(beta=2.0, top_k=2)
    found = decoding_logits(logits, targets, torch.tensor(1.0), spec, temperature=2.0)
    scores = [math.log(0.5) - 2, math.log(0.3), math.log(0.2) + 4]
    assert found[0] == -math.inf
    assert found[1:].tolist() == pytest.approx([scores[1] / 2, scores[2] / 2], abs=1e-6)
    plain = decoding_logits(logits, targets, torch.tensor(1.0), IlqlSpec(beta=0.0, top_k=0), temperature=1.0)
    assert plain.exp().tolist() == pytest.approx([0.5, 0.3, 0.2])
    all_of_them = decoding_logits(logits, targets, torch.tensor(1.0), IlqlSpec(top_k=9), temperature=1.0)
    assert torch.isfinite(all_of_them).all()


def test_heads_and_their_targets() -> None:
    """Linear(d, 2d)-ReLU-Linear; targets begin as the Qs and take alpha of what those have moved."""
    torch.manual_seed(0)
    heads = IlqlHeads(4, 7)
    assert [tuple(p.shape) for p in heads.qs[0].parameters()] == [(8, 4), (8,), (7, 8), (7,)]
    assert [tuple(p.shape) for p in heads.value.parameters()] == [(8, 4), (8,), (1, 8), (1,)]
    states = torch.randn(2, 4, 4)
    found = heads(states, torch.zeros(2, 3, 7))
    assert (len(found.qs), len(found.target_qs)) == (2, 2)
    assert found.qs[0].shape == (2, 3, 7)
    assert found.values.shape == (2, 4)
    torch.testing.assert_close(found.qs[0], found.target_qs[0])
    assert not torch.equal(found.qs[0], found.qs[1])
    before = [p.clone() for p in heads.target_qs.parameters()]
    with torch.no_grad():
        for parameter in heads.qs.parameters():
            parameter.add_(1.0)
    heads.sync(0.1)
    for old, target in zip(before, heads.target_qs.parameters(), strict=True):
        torch.testing.assert_close(target, old + 0.1)
        assert not target.requires_grad


def test_the_loss_is_the_one_that_trlx_publishes() -> None:
    """On random steps, awac weights on: the sum written down step by step, and its gradients, agree to 1e-12."""
    generator = torch.Generator().manual_seed(3)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    case: dict[str, Any] = {
        "settings": {"tau": 0.8, "gamma": 0.9, "cql_scale": 0.3, "awac_scale": 0.7, "awac_beta": 0.5},
        "dones": torch.tensor([[1.0, 1, 1, 0], [1, 1, 0, 0]], dtype=torch.float64),
        "actions": torch.tensor([[2, 0, 1], [1, 1, 0]]),
        "rewards": noise(2, 3),
        "values": noise(2, 4),
        "logits": noise(2, 3, 4),
        "qs": [noise(2, 3, 4), noise(2, 3, 4)],
        "target_qs": [noise(2, 3, 4), noise(2, 3, 4)],
    }
    theirs = ilql_formula.answer(case)
    ours = losses.ilql(case)
    torch.testing.assert_close(ours["loss"], theirs["loss"], atol=1e-12, rtol=0)
    for one, other in zip(ours["gradients"], theirs["gradients"], strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)
