"""Low-rank adapters (arXiv 2106.09685) by peft, which is an optional extra. Owns putting them on and merging them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from services.common.errors import ConfigError
from services.models import low_rank


def with_adapters(model: Any, *, rank: int, alpha: int, seed: int, targets: Sequence[str] = ()) -> Any:
    """The model, frozen, with trainable adapters on every linear layer but the head; a peft model around it.

    targets: names of layers, for adapters on these alone. Raises ConfigError where peft is not installed, or the model
    has no such layer, or it is the embeddings or the head.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ConfigError('LoRA needs peft: pip install "trimtab-platform[lora]"') from error
    _check_targets(model, targets)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=list(targets) or "all-linear",
        task_type="CAUSAL_LM",
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in model.modules()),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            return get_peft_model(model, config)
        except ValueError as error:
            if not targets:
                raise
            raise ConfigError(f"--lora-target {', '.join(targets)}: {str(error).splitlines()[0]}") from error


def _check_targets(model: Any, targets: Sequence[str]) -> None:
    """The loss takes the head's weight as it is, and what is merged are linear layers' products. Raises ConfigError."""
    without = (model.get_input_embeddings(), model.get_output_embeddings())
    names = [name for name, layer in model.named_modules() if any(layer is one for one in without)]
    if any(name == target or name.endswith(f".{target}") for name in names for target in targets):
        raise ConfigError(f"--lora-target {', '.join(targets)}: embeddings and the head get no adapter")


def merged(adapted: Any) -> Any:
    """The plain model with the adapters' products added to its weights, as a run's are (low_rank.py)."""
    for layer in adapted.modules():
        if hasattr(layer, "lora_A"):
            (name,) = layer.active_adapters
            weight = layer.get_base_layer().weight
            b = layer.lora_B[name].weight * layer.scaling[name]
            # GPT-2's layers have their weights as [in, out].
            turned = layer.fan_in_fan_out
            whole = low_rank.merged(
                weight.data.T if turned else weight.data, layer.lora_A[name].weight.data, b.data
            )
            weight.data = whole.T.contiguous() if turned else whole
    return adapted.unload()
