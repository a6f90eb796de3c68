"""Implicit language Q-learning (arXiv 2206.11871), as in trlX: learnt from data alone, decoded with Q and V.

a_t the token, s_t what stands before it, r_t its reward (the standardised return on the last token)
Q'_t  = r_t + gamma V(s_{t+1}),  V of the end 0                        no gradient
L_Q   = sum over both Qs of mean (Q(s_t, a_t) - Q'_t)^2
L_V   = mean |tau - 1[d < 0]| d^2,  d = min target Q(s_t, a_t) - V(s_t)
L_CQL = sum over both Qs of mean cross-entropy(Q(s_t, .), a_t)
L_AWAC = mean exp(beta_awac d) cross-entropy(pi(s_t), a_t)             weight without gradient
L     = L_Q + L_V + cql L_CQL + awac L_AWAC

target Q <- alpha Q + (1 - alpha) target Q, every few updates
decoding: softmax(topk(log pi + beta (min target Q - V)) / T), T whatever is asked of the policy
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import reduce

import torch
from torch.nn import functional

from services.common.spec.library import IlqlSpec
from services.learner.algorithms.base import Loss
from services.models.value_heads import guided_logits, value_head


@dataclass(frozen=True, slots=True)
class Transitions:
    """Steps of the data, [rows, time]. mask: 1 where there is a step; continues: 1 where its next state is no end."""

    actions: torch.Tensor
    rewards: torch.Tensor
    mask: torch.Tensor
    continues: torch.Tensor


@dataclass(frozen=True, slots=True)
class Heads:
    """What the model says: logits, each of qs and target_qs [rows, time, vocabulary]; values [rows, time + 1]."""

    logits: torch.Tensor
    qs: tuple[torch.Tensor, ...]
    target_qs: tuple[torch.Tensor, ...]
    values: torch.Tensor


class IlqlHeads(torch.nn.Module):
    """Two Q heads, their targets and a V head, each Linear(d, 2d)-ReLU-Linear, on the model's last hidden states."""

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        self.qs = torch.nn.ModuleList([value_head(width, vocabulary) for _ in range(2)])
        self.target_qs = copy.deepcopy(self.qs).requires_grad_(False)
        self.value = value_head(width, 1)

    def forward(self, states: torch.Tensor, logits: torch.Tensor) -> Heads:
        """states: [rows, time + 1, width], the last of each row the end; logits: of all but that, [rows, time, …]."""
        acting = states[:, :-1]
        return Heads(
            logits,
            tuple(head(acting) for head in self.qs),
            tuple(head(acting) for head in self.target_qs),
            self.value(states)[..., 0],
        )

    def sync(self, alpha: float) -> None:
        """One Polyak step of the targets."""
        with torch.no_grad():
            for target, source in zip(self.target_qs.parameters(), self.qs.parameters(), strict=True):
                target.lerp_(source, alpha)


def ilql_loss(heads: Heads, data: Transitions, spec: IlqlSpec, *, steps: float) -> Loss:
    """The part's share of the loss; `steps` is the number of steps of the whole batch."""
    weights = data.mask / max(1.0, steps)
    chosen = data.actions[..., None]
    qs = [q.gather(-1, chosen)[..., 0] for q in heads.qs]
    target = reduce(torch.minimum, (q.gather(-1, chosen)[..., 0] for q in heads.target_qs)).detach()
    value, following = heads.values[:, :-1], heads.values[:, 1:]
    goal = (data.rewards + spec.gamma * following * data.continues).detach()
    difference = target - value
    expectile = (spec.tau - (difference < 0).to(difference.dtype)).abs()
    weight = (spec.awac_beta * difference).exp().detach()

    loss_q = torch.stack([((q - goal) ** 2 * weights).sum() for q in qs]).sum()
    loss_v = (expectile * difference**2 * weights).sum()
    loss_cql = torch.stack([(_cross_entropy(q, data.actions) * weights).sum() for q in heads.qs]).sum()
    loss_awac = (weight * _cross_entropy(heads.logits, data.actions) * weights).sum()
    return Loss(
        loss_q + loss_v + spec.cql_scale * loss_cql + spec.awac_scale * loss_awac,
        {
            "losses/q": loss_q,
            "losses/v": loss_v,
            "losses/cql": loss_cql,
            "losses/awac": loss_awac,
            "values/q": (target * weights).sum(),
            "values/v": (value * weights).sum(),
        },
    )


def standardised(returns: torch.Tensor) -> torch.Tensor:
    """(R - mean) / (unbiased deviation + eps of the dtype), [rows]."""
    return (returns - returns.mean()) / (returns.std() + torch.finfo(returns.dtype).eps)


def decoding_logits(
    logits: torch.Tensor,
    target_qs: tuple[torch.Tensor, ...],
    value: torch.Tensor,
    spec: IlqlSpec,
    *,
    temperature: float,
) -> torch.Tensor:
    """Logits to sample from, [..., vocabulary]; -inf outside the top k. value: [...]."""
    scores = guided_logits(logits, target_qs, value, beta=spec.beta, top_k=spec.top_k)
    return scores / temperature


def _cross_entropy(logits: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    """-log softmax at the actions, [rows, time]."""
    return functional.cross_entropy(logits.transpose(1, 2), actions, reduction="none")
