"""A tokenizer of eight words and a model of one layer: what a TRL trainer wants to be made with. Knows no loss."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = ["<pad>", "<end>", "a", "b", "c", "d", "e", "f"]
PAD, END = 0, 1
SIZES = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "pad_token_id": PAD,
    "eos_token_id": END,
    "bos_token_id": None,
}


def tokenizer() -> Any:
    """Words to ids, by white space."""
    words = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="a"))  # noqa: S106 - a word
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<end>")  # noqa: S106 - words


def model() -> Any:
    """A causal model with random weights, seeded by the caller."""
    return LlamaForCausalLM(LlamaConfig(**SIZES))


class Given(torch.nn.Module):
    """In a model's place: the log-probs of given tokens, whatever is asked; 0 where a label says that none counts.

    still, moving: [rows, time - 1]; the first is told without gradients (before the update), the second with them.
    """

    is_gradient_checkpointing = False

    def __init__(self, still: torch.Tensor, moving: torch.Tensor | None = None) -> None:
        super().__init__()
        self.still, self.moving = still, moving

    def forward(self, *, labels: torch.Tensor, **_: Any) -> SimpleNamespace:
        """As TRL's fused head answers."""
        told = self.moving if torch.is_grad_enabled() and self.moving is not None else self.still
        counted = labels[:, 1:] != -100
        told = torch.where(counted, told[:, -counted.shape[1] :], torch.zeros(()))
        nothing = torch.zeros_like(told).detach()
        return SimpleNamespace(log_probs=told, entropy=nothing, mean_logits=nothing, is_top1=counted)
