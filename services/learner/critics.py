"""Where values come from: a head on the policy's own trunk, or a model of its own.

    shared        0 at first, on the policy's last hidden states
    policy        a copy of the policy, with such a head
    reward_model  the reward model whole: its head (with gain and bias) is the first value

Owns how a critic begins and what it says of sequences; knows no loss and no optimiser. The embeddings of a model of its
own are trained where the policy's are.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from services.common.errors import ConfigError, Mismatch
from services.common.spec.algorithms import CriticSpec
from services.common.spec.run import OptimiserSpec, RunSpec
from services.models.encoder_decoder import EncoderDecoder, Row
from services.models.loading import LoadedModel
from services.models.logprobs import backbone_of, row_states
from services.models.reward_model import RewardModel, load_reward_model
from services.models.unrolled import Unrolled, unroll


@dataclass(frozen=True, slots=True)
class Critic:
    """head: [width] to one value. trunk: None where the policy's states are read.

    scale: what the states come multiplied by. T5 makes them small for its tied head; a value would learn slowly.
    """

    head: torch.nn.Module
    trunk: Any | None = None
    layers: Unrolled | None = None
    """The trunk's layers in a faster way, where there is one."""
    scale: float = 1.0

    def parameters(self) -> list[torch.nn.Parameter]:
        """What is trained."""
        trunk = [] if self.trunk is None else list(self.trunk.parameters())
        return [one for one in (*self.head.parameters(), *trunk) if one.requires_grad]

    def states(self, policy_states: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
        """Hidden states to read values from, [rows, time, width]. rows: ids of each; policy_states: the same."""
        return policy_states if self.trunk is None else row_states(self.trunk, rows, layers=self.layers)

    def values(self, states: torch.Tensor) -> torch.Tensor:
        """One value from each state, [..., width] to [...], float32."""
        return self.head(states.float() / self.scale)[..., 0]


def critic_of(spec: RunSpec, loaded: LoadedModel, *, wanted: bool, written_out: bool = True) -> Critic | None:
    """The critic that a run's algorithm asks for, None where it has none.

    wanted: the algorithm needs values; without settings for them they are of a head on the policy's own trunk.
    written_out: its trunk's layers may be those of unrolled.py.

    Raises ConfigError where a reward model is asked for and none is named, NotFound where it is not there, Mismatch
    where it does not read this policy's tokens from left to right.
    """
    algorithm = spec.algorithm
    if not wanted:
        return None
    value_model = algorithm.value_model if isinstance(algorithm, CriticSpec) else "shared"
    if isinstance(algorithm, CriticSpec) and value_model == "reward_model":
        return _scoring(_reward_model(spec, algorithm, loaded), loaded, spec.optimiser, written_out)
    backbone = backbone_of(loaded.model)
    scale = backbone.scale if isinstance(backbone, EncoderDecoder) else 1.0
    if value_model == "shared":
        return Critic(_zero_head(loaded.model), scale=scale)
    own = _copied(backbone, spec.optimiser)
    return Critic(_zero_head(loaded.model), own, _unrolled(own, spec.optimiser, written_out), scale)


def _zero_head(model: Any) -> torch.nn.Linear:
    head = torch.nn.Linear(model.config.hidden_size, 1)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    return head.to(model.device)


def _copied(trunk: Any, options: OptimiserSpec) -> Any:
    """A copy to be trained; embeddings that neither trains are shared. Under LoRA: a second adapter on one base."""
    if options.lora is not None:
        return copy.deepcopy(trunk, {id(one): one for one in trunk.parameters() if not one.requires_grad})
    embeddings = trunk.get_input_embeddings().weight
    shared = {} if options.train_embeddings else {id(embeddings): embeddings}
    copied = copy.deepcopy(trunk, shared)
    for parameter in copied.parameters():
        parameter.requires_grad_(parameter is not embeddings)
    return copied


def _reward_model(spec: RunSpec, algorithm: CriticSpec, loaded: LoadedModel) -> RewardModel:
    path = algorithm.value_model_path or spec.reward_model
    if not path or path.startswith("rule:"):
        told = f"reward_model = {path}" if path else "no reward_model"
        raise ConfigError(
            f"algorithm.value_model = reward_model, but {told}: name a folder in algorithm.value_model_path, "
            "or take value_model = policy or shared"
        )
    model = load_reward_model(
        path, dtype=spec.model.dtype, threads=spec.model.threads, device=spec.model.device
    )
    if model.settings.pooling != "last":
        raise Mismatch(f"{path} is an encoder: values of a prefix need a causal reward model")
    if model.facts().tokenizer_fingerprint != loaded.facts.tokenizer_fingerprint:
        raise Mismatch(f"{path} has another tokenizer than the policy: its values would be of other tokens")
    return model


def _scoring(model: RewardModel, loaded: LoadedModel, options: OptimiserSpec, written_out: bool) -> Critic:
    """The reward model's trunk and head; gain and bias become the head's."""
    head = torch.nn.Linear(model.head.in_features, 1)
    gain, bias = model.settings.gain, model.settings.bias
    with torch.no_grad():
        head.weight.copy_(gain * model.head.weight.float())
        head.bias.copy_(gain * model.head.bias.float() + bias)
    trunk = model.backbone.requires_grad_(True)
    trunk.get_input_embeddings().requires_grad_(options.train_embeddings)
    return Critic(head.to(loaded.model.device), trunk, _unrolled(trunk, options, written_out))


def _unrolled(trunk: Any, options: OptimiserSpec, written_out: bool) -> Unrolled | None:
    """None too under LoRA: a copied adapter stands where the form is looked for."""
    if not written_out or options.lora is not None or isinstance(trunk, EncoderDecoder):
        return None
    return unroll(trunk)
