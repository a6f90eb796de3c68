"""What [decoding] adds to the default engine: value heads that guide it, or a mask model that bounds it.

    states of the policy ─┬─▶ logits ───────────────────────────▶ processor ─▶ draw
                          ├─▶ values: min target Q - V of them ───────┤
                          └─▶ mask:   the mask model's own states ────┘  (its pass runs beside the policy's)

Both are further tensors of the weights, under names of their own: the learner publishes them with the policy's.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from services.common.errors import ConfigError
from services.common.spec.decoding import DecodingSpec, MaskSpec, ValuesSpec
from services.models.action_masks import MASK_COMPONENT, masked_logits, nucleus
from services.models.loading import LoadedModel, serving_state
from services.models.manifest import in_component
from services.models.value_heads import HEADS_COMPONENT, HEADS_FILE, ValueHeads
from services.policy.engines.paired import PairedRunner
from services.policy.engines.runners import Runner, runner_for
from services.policy.engines.sampling import LogitsProcessor


@dataclass(frozen=True, slots=True)
class Decoding:
    """How an engine draws. weights: tensors beside the policy's. masks: whether what was allowed is kept.

    least_tokens: that many tokens are always allowed; 0: all.
    """

    runner: Runner
    processors: tuple[LogitsProcessor, ...] = ()
    weights: Mapping[str, torch.Tensor] = field(default_factory=dict)
    masks: bool = False
    least_tokens: int = 0


class ValueGuided:
    """ILQL's decoding."""

    def __init__(self, heads: ValueHeads, spec: ValuesSpec) -> None:
        self._heads, self._spec = heads, spec

    def __call__(
        self,
        logits: torch.Tensor,
        states: torch.Tensor,
        sequences: Sequence[Sequence[int]],  # noqa: ARG002 - the port's
    ) -> torch.Tensor:
        """See LogitsProcessor."""
        return self._heads.guided(logits, states, beta=self._spec.beta, top_k=self._spec.top_k)


class NucleusMasked:
    """NLPO's: what lies outside the mask model's nucleus cannot be drawn."""

    def __init__(self, runner: PairedRunner, spec: MaskSpec) -> None:
        self._runner, self._spec = runner, spec

    def __call__(
        self,
        logits: torch.Tensor,
        states: torch.Tensor,
        sequences: Sequence[Sequence[int]],  # noqa: ARG002 - the port's
    ) -> torch.Tensor:
        """See LogitsProcessor."""
        others = self._runner.second_logits(states).float()
        allowed = nucleus(others, top_p=self._spec.top_p, min_tokens=self._spec.min_tokens)
        return masked_logits(logits, allowed)


def decoding_of(loaded: LoadedModel, spec: DecodingSpec, *, follows: bool = False) -> Decoding:
    """The way of drawing that is asked for. `follows`: a learner will bring what is not in the model's folder.

    Raises ConfigError where value heads are asked for and nobody has any, InvalidInput for heads of another model.
    """
    if spec.values is not None:
        return _guided(loaded, spec.values, follows=follows)
    if spec.mask is not None:
        return _masked(loaded, spec.mask)
    return Decoding(runner_for(loaded.model))


def _guided(loaded: LoadedModel, spec: ValuesSpec, *, follows: bool) -> Decoding:
    heads, path = ValueHeads.beside(loaded.model), Path(loaded.folder) / f"{HEADS_FILE}.safetensors"
    if path.is_file():
        heads.load(path)
    elif not follows:
        raise ConfigError(
            f"decoding.values: {loaded.folder} has no {path.name}, and no learner is followed ([weights])"
        )
    return Decoding(
        runner_for(loaded.model),
        (ValueGuided(heads, spec),),
        in_component(HEADS_COMPONENT, heads.state_dict()),
    )


def _masked(loaded: LoadedModel, spec: MaskSpec) -> Decoding:
    """The mask model is the policy as loaded, until a learner says otherwise."""
    model = copy.deepcopy(loaded.model)
    runner = PairedRunner(runner_for(loaded.model), runner_for(model))
    return Decoding(
        runner,
        (NucleusMasked(runner, spec),),
        in_component(MASK_COMPONENT, serving_state(model)),
        masks=True,
        least_tokens=spec.min_tokens,
    )
