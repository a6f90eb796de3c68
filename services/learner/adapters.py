"""A run's low-rank adapter on its model: put on by peft, switched off for the reference, published, written.

Owns the names: peft's inside the model (layer.base_layer.weight, layer.lora_A.default.weight), the plain model's and
low_rank.py's outside. The base never changes; its digest goes into every checkpoint.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from services.common.errors import ConfigError, Mismatch
from services.common.spec.lora import LoraSpec
from services.models import low_rank
from services.models.dither import dithered
from services.models.loading import LoadedModel, serving_state

_NAME = "default"
_BASE = ".base_layer."


class Adapter:
    """The factors on a model whose other weights stay as they are. One thread at a time."""

    def __init__(self, loaded: LoadedModel, spec: LoraSpec, *, seed: int) -> None:
        self.spec = spec
        self.base_digest = loaded.facts.model_digest
        self._config = _put_on(loaded, spec, seed)
        self._layers: dict[str, Any] = {
            name: module for name, module in loaded.model.named_modules() if hasattr(module, "lora_A")
        }
        within = tuple(f"{layer}.lora_" for layer in self._layers)
        self._base = {
            name.replace(_BASE, "."): tensor
            for name, tensor in serving_state(loaded.model).items()
            if not name.startswith(within)
        }
        self.keep()  # peft's layers begin in training, and a critic that is copied from them would stay so

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        """Meanwhile the model is its base."""
        for layer in self._layers.values():
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in self._layers.values():
                layer.enable_adapters(True)

    def drop(self, seed: int, step: int) -> None:
        """Dropout on, until `keep`; a step draws the same after a resume. Nothing where none is asked for."""
        if self.spec.dropout:
            torch.manual_seed((seed << 32) + step)
            self._set_dropout(True)

    def keep(self) -> None:
        """Dropout off."""
        if self.spec.dropout:
            self._set_dropout(False)

    def _set_dropout(self, on: bool) -> None:
        for layer in self._layers.values():
            layer.train(on)

    def factors(self) -> dict[str, torch.Tensor]:
        """The adapter by low_rank.py's names, B scaled, float32."""
        found = {}
        for name, layer in self._layers.items():
            found[name + low_rank.A] = layer.lora_A[_NAME].weight.detach()
            found[name + low_rank.B] = layer.lora_B[_NAME].weight.detach() * layer.scaling[_NAME]
            if _NAME in layer.lora_magnitude_vector:
                found[name + low_rank.MAGNITUDE] = layer.lora_magnitude_vector[_NAME].weight.detach()
        return found

    def merged(self) -> dict[str, torch.Tensor]:
        """The plain model's weights with the adapter in them, in serving dtype."""
        factors, state = self.factors(), dict(self._base)
        for layer in self._layers:
            name = f"{layer}.weight"
            state[name] = low_rank.merged_layer(layer, state[name], factors)
        return state

    def delivered(self) -> dict[str, torch.Tensor]:
        """What is published: the merged weights, or the base's with the factors beside them."""
        return self.merged() if self.spec.deliver == "merged" else self._base | self.factors()

    def fixed(self) -> frozenset[str]:
        """Names of delivered tensors that never change."""
        changing = {f"{layer}.weight" for layer in self._layers} if self.spec.deliver == "merged" else set()
        return frozenset(self._base.keys() - changing)

    def write(self, folder: Path) -> None:
        """The adapter alone, in peft's format: adapter_config.json, adapter_model.safetensors."""
        folder.mkdir(parents=True, exist_ok=True)
        self._config.save_pretrained(folder)
        tensors = {}
        for name, layer in self._layers.items():
            own = f"base_model.model.{name}"
            tensors[f"{own}.lora_A.weight"] = layer.lora_A[_NAME].weight
            tensors[f"{own}.lora_B.weight"] = layer.lora_B[_NAME].weight
            if _NAME in layer.lora_magnitude_vector:
                tensors[f"{own}.lora_magnitude_vector"] = layer.lora_magnitude_vector[_NAME].weight
        written = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(written, folder / "adapter_model.safetensors", metadata={"format": "pt"})

    def check_base(self, digest: str) -> None:
        """Raises Mismatch for an adapter that was trained on another base."""
        if digest != self.base_digest:
            raise Mismatch(
                f"the checkpoint's adapter is of base model {digest[:12] or '(none)'}, this one is "
                f"{self.base_digest[:12]}"
            )


def effective_weight(module: Any) -> torch.Tensor:
    """A module's weight; of one with factors what is published of it, so that gradients reach them through it."""
    if not hasattr(module, "lora_A"):
        return module.weight
    if module.disable_adapters:
        return module.base_layer.weight
    magnitude = module.lora_magnitude_vector
    return low_rank.merged(
        module.base_layer.weight,
        module.lora_A[_NAME].weight,
        module.lora_B[_NAME].weight * module.scaling[_NAME],
        magnitude[_NAME].weight if _NAME in magnitude else None,
    )


def _put_on(loaded: LoadedModel, spec: LoraSpec, seed: int) -> Any:
    """Factors on every linear layer that would be trained and is asked for; peft's configuration of them.

    Raises ConfigError where peft is not installed or a target is not there.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ConfigError('optimiser.lora needs peft: pip install "trimtab-platform[lora]"') from error
    config = LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        target_modules=_targets(loaded.model, spec),
        use_dora=spec.dora,
        task_type="CAUSAL_LM" if loaded.facts.architecture == "causal" else "SEQ_2_SEQ_LM",
        base_model_name_or_path=loaded.folder,
        inference_mode=True,  # how it is written; training is the learner's
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, loaded.model)
    for name, parameter in loaded.model.named_parameters():
        ours = ".lora_" in name
        parameter.requires_grad_(ours)
        if ours:  # its own master: nothing is lost where the base is bfloat16
            parameter.data = parameter.data.float()
    _measure_again(loaded.model)
    return config


def _measure_again(model: Any) -> None:
    """DoRA's magnitudes in float32: peft measures in the base's dtype, where the adapter would begin as a change."""
    for layer in model.modules():
        if hasattr(layer, "lora_A") and _NAME in layer.lora_magnitude_vector:
            lengths = torch.linalg.vector_norm(dithered(layer.base_layer.weight), dim=1)
            layer.lora_magnitude_vector[_NAME].weight.data.copy_(lengths)


def _targets(model: Any, spec: LoraSpec) -> list[str]:
    head = model.get_output_embeddings()
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head and module.weight.requires_grad
    ]
    there = sorted({name.rpartition(".")[2] for name in linear})
    if odd := sorted(set(spec.targets) - set(there)):
        raise ConfigError(f"optimiser.lora.targets: no linear layer {odd[0]}: there are {', '.join(there)}")
    return [name for name in linear if not spec.targets or name.rpartition(".")[2] in spec.targets]
