"""Group relative policy optimisation (arXiv 2402.03300) and its kin, as in TRL.

    A_i = (score_i - mean of the prompt's scores) / (their deviation + 1e-4)       scale_rewards: group, batch, none
    rho = pi / pi_old by token, or exp of its mean log over the completion (GSPO, arXiv 2507.18071)
    l_t = max(-A rho, -A clip(rho, 1 - eps, 1 + eps_high))   clip-higher: DAPO, arXiv 2503.14476
          -A min(rho, eps_high) log pi, the weight without gradient               cispo, arXiv 2506.13585
          -A 4/tau sigmoid(tau (rho - 1)), tau by the advantage's sign              sapo, arXiv 2511.20347
    l_t = l_t * importance + beta * k3(pi, pi_ref)_t (* rho)

and the loss sums l_t over tokens with the weights of `loss_type`:

    dapo, cispo    1 / tokens of the minibatch            grpo, sapo     1 / (completions * tokens of this one)
    dr_grpo        1 / (completions * longest allowed)    luspo          1 / completions, arXiv 2602.05261

Dr. GRPO (arXiv 2503.20783) is loss_type dr_grpo with scale_rewards none. TRL's bnpo is dapo here: there is no local
batch. A zero-variance group has advantages of 0.
"""

from __future__ import annotations

import torch

from services.common.spec.algorithms import GrpoSpec
from services.learner.algorithms.base import Algorithm, Current, Loss, Part, Rollouts, Targets
from services.learner.algorithms.clipping import clip_metrics
from services.learner.algorithms.groups import group_deviation, group_mean, group_metrics
from services.learner.algorithms.kl import k3


class Grpo(Algorithm[GrpoSpec]):
    """See the module."""

    def targets(self, rollouts: Rollouts, kl_coefficient: float) -> Targets:
        """See Algorithm. The same advantage on every token of a completion."""
        mask, scores = rollouts.mask, rollouts.scores
        advantages = scores - group_mean(scores, rollouts.groups)
        if self.spec.scale_rewards == "group":
            advantages = advantages / (group_deviation(scores, rollouts.groups) + 1e-4)
        elif self.spec.scale_rewards == "batch":
            advantages = advantages / (scores.std() + 1e-4)
        rewards = scores[:, None] * mask
        return Targets(
            advantages=advantages[:, None] * mask,
            returns=rewards,
            rewards=rewards,
            kl=torch.zeros_like(rewards),  # the penalty stands in the loss
            kl_coefficient=kl_coefficient,
            metrics=group_metrics(scores, rollouts.groups),
        )

    def loss(self, current: Current, part: Part) -> Loss:
        """See Algorithm."""
        spec, targets, mask = self.spec, part.targets, part.rollouts.mask
        log_ratio = current.logprobs - part.rollouts.old_logprobs
        ratio = self._level(log_ratio, mask).exp()
        policy = self._policy(ratio, current.logprobs, targets.advantages) * part.rollouts.importance
        kl = k3(current.logprobs, part.rollouts.reference_logprobs)
        if spec.use_bias_correction_kl:
            kl = kl * ratio
        weights = self._weights(part)
        policy_sum = (policy * weights).sum()
        total = policy_sum
        if targets.kl_coefficient:
            total = total + targets.kl_coefficient * (kl * weights).sum()
        metrics = {
            "loss/policy_avg": policy_sum,
            "policy/approxkl_avg": (0.5 * log_ratio**2 * part.by_token).sum(),
            "val/ratio": (ratio * part.by_token).sum(),
            "kl": (kl * part.by_token).sum(),
        }
        return Loss(total, metrics | self._clip_metrics(ratio, part))

    def _level(self, log_ratio: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Log-ratio by token, [rows, time], or its mean over the completion, [rows, 1]."""
        if self.spec.importance_sampling_level == "token":
            return log_ratio
        return (log_ratio * mask).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)

    def _policy(self, ratio: torch.Tensor, logprobs: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
        """l_t before importance and KL, [rows, time]."""
        spec = self.spec
        if spec.loss_type == "cispo":
            return -ratio.clamp(max=spec.high).detach() * advantages * logprobs
        if spec.loss_type == "sapo":
            good = (advantages > 0).to(advantages.dtype)
            tau = spec.sapo_temperature_pos * good + spec.sapo_temperature_neg * (1 - good)
            return -advantages * torch.sigmoid(tau * (ratio - 1)) * 4 / tau
        bounded = ratio if spec.delta is None else ratio.clamp(max=spec.delta)
        clipped = ratio.clamp(1 - spec.epsilon, 1 + spec.high)
        return torch.maximum(-advantages * bounded, -advantages * clipped)

    def _weights(self, part: Part) -> torch.Tensor:
        """Each token's weight, [rows, time]."""
        loss_type = self.spec.loss_type
        if loss_type in ("dapo", "cispo"):
            return part.by_token
        if loss_type in ("grpo", "sapo"):
            return part.by_row
        longest = self.max_completion_length if loss_type == "dr_grpo" else 1
        return part.rollouts.mask / (part.rows * longest)

    def _clip_metrics(self, ratio: torch.Tensor, part: Part) -> dict[str, torch.Tensor]:
        spec, advantages = self.spec, part.targets.advantages
        # A ratio for the whole completion counts once, however long the completion is.
        weights = part.by_token if spec.importance_sampling_level == "token" else part.by_row
        if spec.loss_type == "sapo":
            return {}
        if spec.loss_type == "cispo":
            bounded = ((ratio > spec.high) & (advantages > 0)).float()
            return {"cispo_clip_ratio": (bounded * weights).sum()}
        return clip_metrics(ratio, advantages, spec.epsilon, spec.high, weights, part.rollouts.mask)
