"""What of a model is trained, and from what the reference is computed: frozen layers, adapter, activations.

model ─▶ lower layers frozen ─▶ adapter on the rest (or the rest itself) ─▶ activations kept, or made anew
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from services.common.errors import InvalidInput, Mismatch
from services.common.spec.run import RunSpec
from services.learner.adapters import Adapter, effective_weight
from services.learner.schedule import frozen
from services.models.loading import LoadedModel, serving_state
from services.models.trunk import Halves, Split


@dataclass(frozen=True, slots=True)
class Trained:
    """A model, ready to be trained. adapter: None where its own weights are."""

    model: Any
    split: Halves
    adapter: Adapter | None

    def serving(self) -> dict[str, torch.Tensor]:
        """What is published."""
        return serving_state(self.model) if self.adapter is None else self.adapter.delivered()

    def state(self) -> dict[str, Any]:
        """What a checkpoint says of the base; nothing without an adapter, whose own weights the optimiser keeps."""
        return {} if self.adapter is None else {"base_digest": self.adapter.base_digest}

    def check(self, state: dict[str, Any]) -> None:
        """Raises Mismatch for a checkpoint of another base."""
        if self.adapter is not None:
            self.adapter.check_base(str(state.get("base_digest", "")))


def check_kind(state: dict[str, Any], kind: str) -> None:
    """Raises Mismatch for a checkpoint of another algorithm; those of before do not say of which they are."""
    if (found := state.get("kind", kind)) != kind:
        raise Mismatch(f"the checkpoint is of algorithm.kind = {found}, not {kind}: begin a run of its own")


def prepared(loaded: LoadedModel, spec: RunSpec, *, written_out: bool = True) -> Trained:
    """Freeze, adapt and set up as the run's optimiser table says. Raises InvalidInput, ConfigError.

    written_out: see services/models/trunk.py freeze. Dropout stands between an adapter's input and its factors, and is
    no matter of weights.
    """
    options = spec.optimiser
    drops = options.lora is not None and options.lora.dropout > 0
    split = frozen(loaded.model, options, written_out=written_out and not drops)
    adapter = None if options.lora is None else Adapter(loaded, options.lora, seed=spec.seed)
    if options.gradient_checkpointing:
        checkpoint_activations(loaded.model)
    if adapter is not None and isinstance(split, Split) and split.unrolled is not None:
        split = replace(split, unrolled=split.unrolled.reading(effective_weight))
    return Trained(loaded.model, split, adapter)


def checkpoint_activations(model: Any) -> None:
    """Layers keep their inputs alone from now on and run again in the backward pass (arXiv 1604.06174)."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise InvalidInput(f"gradient_checkpointing: {type(model).__name__} has no layers that can run again")
    named = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    getattr(model, f"{named}_checkpointing_enable")({"use_reentrant": False})
    for layer in layers:
        # transformers asks the layer alone for its mode; what is in it stays in eval mode, without dropout.
        layer.training = True
