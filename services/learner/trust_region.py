"""TRPO's policy step on a model: everything as a function of one flat float32 vector of the weights that are trained.

Whole distributions of the batch's tokens stand in float32, [tokens, vocabulary], twice, with the graphs of second
derivatives: this is for models and batches that leave room for it. Owns how a model becomes a function; the step itself
is algorithms/trpo.py's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.func import functional_call

from services.common.spec.library import TrpoSpec
from services.common.spec.run import RunSpec
from services.learner.algorithms.base import Rollouts, Targets
from services.learner.algorithms.trpo import categorical_kl, surrogate, trust_region_step
from services.learner.rows import before, pairs_of, wide
from services.learner.sample import Sample
from services.models.master_weights import MasterWeights
from services.models.packing import micro_batches
from services.models.trunk import Halves


class _Policy:
    """The policy at any vector of weights, on one batch."""

    def __init__(
        self,
        spec: RunSpec,
        model: Any,
        split: Halves,
        samples: Sequence[Sample],
        trunk: Sequence[torch.Tensor],
    ) -> None:
        self._spec, self._split, self._upper = spec, split, split.upper_half
        self._head = model.get_output_embeddings().weight.detach().float()
        self._samples, self._trunk = samples, trunk
        named = [(name, one) for name, one in self._upper.named_parameters() if one.requires_grad]
        self._names, self.parameters = [name for name, _ in named], [one for _, one in named]
        # Layers that are frozen but run above (an encoder's): in float32 like everything here. Embeddings run below.
        self._frozen = {
            name: one.detach().float()
            for name, one in self._upper.named_parameters()
            if not one.requires_grad and "embed_tokens" not in name
        }

    def pieces(self, theta: torch.Tensor) -> list[torch.Tensor]:
        """The vector cut into the parameters' shapes."""
        cut = theta.split([one.numel() for one in self.parameters])
        return [piece.view(one.shape) for piece, one in zip(cut, self.parameters, strict=True)]

    def logs(self, theta: torch.Tensor, rows: Sequence[int]) -> list[torch.Tensor]:
        """Log-softmax before each completion token of each row, at the sampling temperature, [time, vocabulary]."""
        named = self._frozen | dict(zip(self._names, self.pieces(theta), strict=True))

        def moved(**options: Any) -> Any:
            return functional_call(self._upper, named, kwargs=options)

        found: list[torch.Tensor] = [torch.empty(0)] * len(rows)
        lengths = [len(self._trunk[row]) for row in rows]
        for micro in micro_batches(lengths, self._spec.optimiser.micro_batch_tokens):
            chosen = [self._samples[rows[at]] for at in micro]
            hidden = [self._trunk[rows[at]].float() for at in micro]
            states = self._split.upper_rows(hidden, pairs_of(chosen), moved)
            counts = [len(sample.completion_ids) for sample in chosen]
            logits = before(states, chosen, counts) @ self._head.T
            drawn_with = [one.temperature or self._spec.sampling.temperature for one in chosen]
            per_token = torch.tensor(drawn_with).repeat_interleave(torch.tensor(counts))
            logits = logits / per_token.to(logits.device)[:, None]
            for at, piece in zip(micro, logits.log_softmax(-1).split(counts), strict=True):
                found[at] = piece
        return found

    def logprobs(self, logs: Sequence[torch.Tensor], width: int) -> torch.Tensor:
        """Of the completions' own tokens, [rows, width]."""
        taken = [
            one.gather(1, torch.tensor(sample.completion_ids, dtype=torch.long, device=one.device)[:, None])[
                :, 0
            ]
            for one, sample in zip(logs, self._samples, strict=True)
        ]
        return wide(taken, width)


def trust_step(
    spec: RunSpec,
    model: Any,
    split: Halves,
    masters: MasterWeights,
    samples: Sequence[Sample],
    trunk: Sequence[torch.Tensor],
    rollouts: Rollouts,
    targets: Targets,
) -> dict[str, float]:
    """Move the policy's weights by one step, or leave every bit; what is told of it. All on the CPU or all on a device.

    trunk: states after the frozen layers, one [length, width] for each sample.
    """
    settings = spec.algorithm
    assert isinstance(settings, TrpoSpec)  # noqa: S101 - the trainer asks for trpo alone
    policy, every = _Policy(spec, model, split, samples, trunk), list(range(len(samples)))
    width, few = rollouts.mask.shape[1], every[: settings.curvature_rows]
    theta = torch.cat([one.reshape(-1) for one in masters.masters(policy.parameters)])
    with torch.no_grad():
        old = policy.logs(theta, every)
        # In float32, as the step is: at its start every ratio is 1 and the divergence 0.
        batch = replace(rollouts, old_logprobs=policy.logprobs(old, width).cpu() * rollouts.mask)

    def raised(at: torch.Tensor) -> torch.Tensor:
        return surrogate(policy.logprobs(policy.logs(at, every), width).cpu() * batch.mask, batch, targets)

    def divergence(at: torch.Tensor, rows: Sequence[int] = every) -> torch.Tensor:
        counted = torch.cat([torch.tensor(samples[row].loss_mask) for row in rows]).to(at.device)
        return categorical_kl(
            torch.cat([old[row] for row in rows]), torch.cat(policy.logs(at, rows)), counted
        )

    step = trust_region_step(theta, raised, divergence, settings, curvature=lambda at: divergence(at, few))
    if step.accepted:
        masters.overwrite(policy.parameters, policy.pieces(step.theta))
    return {
        "loss/policy_avg": -step.gain,
        "policy/step_kl": step.kl,
        "policy/step_tries": float(step.tries),
        "policy/step_accepted": float(step.accepted),
    }
