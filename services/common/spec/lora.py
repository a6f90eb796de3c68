"""Low-rank adapters of a run: what is trained in place of the model, and how it reaches the policy."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from services.common.spec.base import Spec


class LoraSpec(Spec):
    """[optimiser.lora]: LoRA (arXiv 2106.09685) or DoRA (arXiv 2402.09353), by peft, extra `lora`."""

    rank: int = Field(16, ge=1, description="r: columns of one factor, rows of the other.")
    alpha: int = Field(32, ge=1, description="The factors' product is scaled by alpha / rank.")
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Of what goes into the factors, in updates alone: log-probs before them and generation have none.",
    )
    targets: tuple[str, ...] = Field(
        (),
        max_length=64,
        description="Last names of the linear layers that get one (q_proj, v_proj); left out: all but the head.",
    )
    dora: bool = Field(
        False, description="DoRA: a length for each output is trained beside the weight's direction."
    )
    deliver: Literal["merged", "adapter"] = Field(
        "merged",
        description="What readers of weights get: whole tensors, which every engine takes; or the factors, which the "
        "transformers engine merges itself.",
    )
