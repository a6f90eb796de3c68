"""PPO-ptx (arXiv 2203.02155, equation 2): pretraining gradients mixed into every update.

    L = L_RL + gamma * mean over pretraining tokens of -log pi          InstructGPT: gamma 27.8

The two means are over tokens of their own: how much text stands beside the rollouts does not change its weight.
"""

from __future__ import annotations

import torch

from services.learner.algorithms.base import Loss


def mixed(loss: Loss, logprobs: torch.Tensor, mask: torch.Tensor, *, gamma: float, tokens: float) -> Loss:
    """The RL loss with a part of the pretraining text; `tokens` counts the text's tokens of the whole update.

    logprobs: of the text's own tokens, [rows, time], temperature 1.
    """
    text = -(logprobs * mask).sum() / max(1.0, tokens)
    return Loss(loss.total + gamma * text, loss.metrics | {"loss/ptx_avg": text})
