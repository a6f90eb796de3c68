"""ILQL's loss as trlX publishes it (trlx/models/modeling_ilql.py, ILQLConfig.loss), written down from its definition.

python -m benchmarks.peers.ilql_formula cases.pt answers.pt. trlX itself cannot be installed beside any current torch.
Tensors have trlX's shapes: states one longer than actions, `dones` 1 while a state is no end, and as long as states.
Every step is summed by itself, in Python's own loops: slow, and nothing of how ours is written.
"""

from __future__ import annotations

import sys
from typing import Any

import torch


def loss_of(case: dict[str, Any]) -> torch.Tensor:
    """L_Q + L_V + cql_scale L_CQL + awac_scale L_AWAC, each a sum over steps that are no end, over their number."""
    s, dones = case["settings"], case["dones"]
    steps = [tuple(at) for at in dones[:, :-1].nonzero().tolist()]
    loss_q = loss_v = loss_cql = loss_awac = torch.zeros((), dtype=case["values"].dtype)
    for row, time in steps:
        action = int(case["actions"][row, time])
        value = case["values"][row, time]
        following = case["values"][row, time + 1].detach() * dones[row, time + 1]
        goal = case["rewards"][row, time] + s["gamma"] * following
        target = min(float(q[row, time, action]) for q in case["target_qs"])
        for q in case["qs"]:
            loss_q = loss_q + (q[row, time, action] - goal) ** 2
            loss_cql = loss_cql + torch.logsumexp(q[row, time], 0) - q[row, time, action]
        share = s["tau"] if target >= float(value.detach()) else 1 - s["tau"]
        loss_v = loss_v + share * (target - value) ** 2
        weight = torch.exp(s["awac_beta"] * (target - value)).detach()
        logits = case["logits"][row, time]
        loss_awac = loss_awac + weight * (torch.logsumexp(logits, 0) - logits[action])
    total = loss_q + loss_v + s["cql_scale"] * loss_cql + s["awac_scale"] * loss_awac
    mean: torch.Tensor = total / max(1, len(steps))
    return mean


def answer(case: dict[str, Any]) -> dict[str, Any]:
    """The loss and its gradients by logits, both Qs and values."""
    moving = [case["logits"], *case["qs"], case["values"]]
    for one in moving:
        one.requires_grad_()
    loss = loss_of(case)
    return {"loss": loss.detach(), "gradients": list(torch.autograd.grad(loss, moving))}


def main() -> None:
    """Cases from the first file, answers to the second."""
    source, target = sys.argv[1:]
    cases = torch.load(source, weights_only=True)
    torch.save({"ilql": [answer(case) for case in cases["ilql"]]}, target)


if __name__ == "__main__":
    main()
