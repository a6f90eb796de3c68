"""Heads that say what a token is worth (ILQL), and decoding with them. Learnt by the learner, read by the policy.

guided logits = log pi + beta (min target Q - V), the top k of them      arXiv 2206.11871, as in trlX
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from services.common.errors import InvalidInput, NotFound

HEADS_FILE = "ilql_heads"
"""Beside a trained model, .safetensors."""
HEADS_COMPONENT = "q_heads"
"""Among published weights."""


class ValueHeads(torch.nn.Module):
    """What decoding reads: the two target Q heads and the V head, on the model's last hidden states. 0 at first."""

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        self.target_qs = torch.nn.ModuleList([value_head(width, vocabulary) for _ in range(2)])
        self.value = value_head(width, 1)
        for parameter in self.requires_grad_(False).parameters():
            torch.nn.init.zeros_(parameter)

    @classmethod
    def beside(cls, model: Any) -> ValueHeads:
        """Of the sizes that the model has, on its device, float32."""
        head = model.get_output_embeddings().weight
        return cls(head.shape[1], head.shape[0]).to(model.device)

    def guided(self, logits: torch.Tensor, states: torch.Tensor, *, beta: float, top_k: int) -> torch.Tensor:
        """Logits [rows, vocabulary] to draw from, of last hidden states [rows, width]."""
        wide = states.float()
        targets = [head(wide) for head in self.target_qs]
        return guided_logits(logits, targets, self.value(wide)[..., 0], beta=beta, top_k=top_k)

    def load(self, path: Path) -> None:
        """Take what a file of all of ILQL's heads says. Raises NotFound; InvalidInput for heads of another model."""
        try:
            found = load_file(path)
            self.load_state_dict(decoding_heads(found))
        except FileNotFoundError as error:
            raise NotFound(f"{path}: no such file: the model has no value heads") from error
        except (OSError, SafetensorError, RuntimeError) as error:
            first = " ".join(str(error).split())[:200]
            raise InvalidInput(f"{path}: these are no value heads of this model: {first}") from error


def decoding_heads(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Of all heads' tensors those that decoding reads: the Qs that are learnt are not among them."""
    return {name: tensor for name, tensor in state.items() if name.startswith(("target_qs.", "value."))}


def guided_logits(
    logits: torch.Tensor, target_qs: Sequence[torch.Tensor], value: torch.Tensor, *, beta: float, top_k: int
) -> torch.Tensor:
    """log pi + beta (min target Q - V), [..., vocabulary]; -inf outside the top k, 0 of which is all. value: [...]."""
    advantages = reduce(torch.minimum, target_qs) - value[..., None]
    scores = logits.log_softmax(-1) + beta * advantages
    if 0 < top_k < scores.shape[-1]:
        least = scores.topk(top_k, dim=-1).values[..., -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    return scores


def value_head(width: int, out: int) -> torch.nn.Sequential:
    """Linear(d, 2d)-ReLU-Linear, as in trlX."""
    return torch.nn.Sequential(
        torch.nn.Linear(width, 2 * width), torch.nn.ReLU(), torch.nn.Linear(2 * width, out)
    )
