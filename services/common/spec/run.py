"""A training run: model, data, sampling, algorithm, rollouts, checkpoints. Read by learner, CLI and operator."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic.alias_generators import to_camel

from services.common.spec.algorithms import GroupSpec, OnlineSpec, PpoSpec
from services.common.spec.base import Spec, unsaid
from services.common.spec.decoding import DecodingSpec, MaskSpec, ValuesSpec
from services.common.spec.engine import EngineSpec, unfit_for_training
from services.common.spec.kinds import RunAlgorithmSpec, check_run_kind
from services.common.spec.library import IlqlSpec, NlpoSpec, OfflineSpec, TrpoSpec
from services.common.spec.lora import LoraSpec
from services.common.spec.metric_logs import LoggingSpec
from services.common.spec.presets import AROUND
from services.common.spec.rewards import RunReward
from services.common.spec.service import ModelSpec
from services.common.spec.watch import WatchSpec

SwapMode = Literal["wait", "keep", "abort_and_resume"]

LOWEST_TEMPERATURE = 1e-4
"""Logits that are divided by less may leave float32: what a caller asked for would look like damaged weights."""


MOST_NEW_TOKENS = 4096
"""What a policy service lets a call ask for, unless it is told otherwise."""


class SamplingSpec(Spec):
    """How the policy draws completions."""

    temperature: float = Field(
        1.0,
        ge=LOWEST_TEMPERATURE,
        description="Logits of policy and reference are divided by it; left out: 1.",
        json_schema_extra=unsaid,
    )
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus; 1 is off.")
    top_k: int = Field(0, ge=0, description="0 is off.")
    temperature_end: float | None = Field(
        None,
        ge=LOWEST_TEMPERATURE,
        description="Exploration: the temperature goes there in a line; left out: it stays.",
    )
    top_p_end: float | None = Field(None, gt=0, le=1, description="The same for top_p.")
    anneal_steps: int | None = Field(
        None,
        ge=1,
        description="Steps until temperature_end and top_p_end are reached; left out: all of the run.",
    )
    max_new_tokens: int = Field(32, ge=1)
    min_new_tokens: int = Field(0, ge=0)
    fixed_length: bool = Field(
        False,
        description="Every completion has max_new_tokens: no end token is drawn; left out: false.",
        json_schema_extra=unsaid,
    )
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()

    @model_validator(mode="after")
    def _lengths_fit(self) -> SamplingSpec:
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"expected min_new_tokens of at most max_new_tokens = {self.max_new_tokens}, got {self.min_new_tokens}"
            )
        return self

    @property
    def plain(self) -> bool:
        """Whether completions are drawn from the model's own distribution, from the first step to the last."""
        warm = self.temperature == 1 and self.temperature_end in (None, 1.0)
        whole = self.top_p == 1 and self.top_p_end in (None, 1.0) and not self.top_k
        return warm and whole and not self.min_new_tokens and not self.fixed_length

    def at(self, step: int, steps: int) -> tuple[float, float]:
        """Temperature and top_p of what is admitted at a step of so many."""
        share = min(1.0, step / max(1, self.anneal_steps or steps - 1))

        def between(start: float, end: float | None) -> float:
            return start if end is None else start + share * (end - start)

        return between(self.temperature, self.temperature_end), between(self.top_p, self.top_p_end)


class DataSpec(Spec):
    """Where prompts come from."""

    prompts: str = Field(
        description="JSONL with `prompt`: a string, or a list of {role, content}; or task:<name>; or datasets:<name>."
    )
    split: str = Field("train", description="Rows whose `split` is this, or that have none.")
    shuffle: bool = True
    texts: str = Field("", max_length=1024, description="PPO-ptx: JSONL with `text`.")
    text_tokens: int = Field(256, ge=2, description="Of each text, at most.")


class OptimiserSpec(Spec):
    """AdamW or RMSprop on float32 master weights. What a preset may set has no default in the cluster's schema."""

    kind: Literal["adamw", "rmsprop", "adamw_8bit"] = Field(
        "adamw",
        description="rmsprop: A2C's, alpha 0.99. adamw_8bit: moments in a byte each (extra `eight-bit`).",
    )
    learning_rate: float = Field(
        1e-5, gt=0, description="At its highest; left out: 1e-5.", json_schema_extra=unsaid
    )
    value_learning_rate: float | None = Field(None, gt=0, description="Value head; absent: the same.")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="After the warm-up; left out: constant.", json_schema_extra=unsaid
    )
    warmup_steps: int = Field(0, ge=0, description="Left out: 0.", json_schema_extra=unsaid)
    betas: tuple[float, float] = Field(
        (0.9, 0.999), description="Adam's; left out: 0.9, 0.999.", json_schema_extra=unsaid
    )
    eps: float = Field(1e-8, gt=0, description="Left out: 1e-8.", json_schema_extra=unsaid)
    eps_form: Literal["torch", "tensorflow"] = Field(
        "torch",
        description="Adam's eps beside the bias-corrected root, or TensorFlow's, beside the root as it is; "
        "left out: torch.",
        json_schema_extra=unsaid,
    )
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0, description="Left out: 1.", json_schema_extra=unsaid)
    weight_average: float | None = Field(
        None, gt=0, lt=1, description="Decay of an average of the weights, kept as model-average/ (0.992)."
    )
    frozen_layers: int = Field(
        0, ge=0, description="Lower layers (and the embeddings) that stay as they are."
    )
    train_embeddings: bool = Field(
        False,
        description="The embeddings (and a tied head) are trained too, as TRL does; needs frozen_layers = 0.",
    )
    lora: LoraSpec | None = Field(
        None, description="Train a low-rank adapter in place of the layers that are not frozen."
    )
    gradient_checkpointing: bool = Field(
        False, description="Activations are made anew in the backward pass: memory against time."
    )
    micro_batch_tokens: int = Field(
        4096,
        ge=16,
        description="Padded tokens in one forward pass; gradients of a batch's passes are accumulated.",
    )

    @model_validator(mode="after")
    def _embeddings_stand_lowest(self) -> OptimiserSpec:
        if self.train_embeddings and self.frozen_layers:
            raise ValueError(f"train_embeddings needs frozen_layers = 0, not {self.frozen_layers}")
        if self.train_embeddings and self.lora is not None:
            raise ValueError("train_embeddings is not for lora, which trains its adapter alone")
        return self

    @model_validator(mode="after")
    def _eps_is_adams(self) -> OptimiserSpec:
        if self.kind == "rmsprop" and self.eps_form == "tensorflow":
            raise ValueError(
                "eps_form = tensorflow corrects Adam's eps: kind = rmsprop has none of its bias, take eps_form = torch"
            )
        return self


class RolloutSpec(Spec):
    """How groups are made and consumed."""

    batch_groups: int = Field(32, ge=1, description="Groups per step.")
    completions_per_prompt: int = Field(
        1, ge=1, description="n of a group; for grpo, rloo and rft algorithm.num_generations says it."
    )
    slip: tuple[str, ...] = Field(
        ("policy", "reference", "reward"), min_length=1, description="Stages in order."
    )
    reference: Literal["stage", "branch"] = Field(
        "stage",
        description="Reference log-probs: by the slip's stage; or by the learner itself, a branch on the frozen layers "
        "(under lora the model with the adapter off), whatever the slip says of that stage.",
    )
    max_staleness: int = Field(0, ge=0, description="Steps a rollout may be behind.")
    readmission_limit: int = Field(3, ge=0, description="Re-admissions per prompt.")
    swap: SwapMode = Field(
        "wait",
        description="New weights while a replica generates: wait for the batch to end; keep its sequences and go on "
        "under the new ones; abort_and_resume: hand them back, whoever takes them goes on.",
    )
    keep: bool = Field(
        False,
        description="Every step's rollouts stay as rollouts/*.parquet: trimtab replay does a step again.",
    )
    reward_weights: dict[str, float] = Field(
        default_factory=dict, description="Weight of each scoring stage; absent: 1."
    )

    @model_validator(mode="before")
    @classmethod
    def _branch(cls, given: Any) -> Any:
        """The learner's own reference needs no stage: schemas fill the slip in, so it is taken out here."""
        if not isinstance(given, dict) or given.get("reference") != "branch":
            return given
        slip = given.get("slip", cls.model_fields["slip"].default)
        if not isinstance(slip, list | tuple):
            return given
        return given | {"slip": [stage for stage in slip if stage != "reference"]}

    @model_validator(mode="after")
    def _weights_weigh(self) -> RolloutSpec:
        scoring = [stage for stage in self.slip if stage.partition("/")[0] == "reward"]
        if odd := sorted(set(self.reward_weights) - set(scoring)):
            raise ValueError(
                f"reward_weights: {odd[0]} is no scoring stage of the slip: expected {', '.join(scoring)}"
            )
        return self


class CheckpointSpec(Spec):
    """When the run's state is written."""

    every_steps: int = Field(10, ge=1)
    keep: int = Field(3, ge=1)


def around(given: dict[str, Any]) -> dict[str, Any]:
    """The run's tables that a preset of its algorithm changes, with what is given in them; empty without a preset."""
    algorithm = given.get("algorithm")
    preset = algorithm.get("preset") if isinstance(algorithm, dict) else getattr(algorithm, "preset", None)
    changed = {}
    # Before the fields are checked: the preset may be anything.
    for table, fields in AROUND.get(preset if isinstance(preset, str) else "", {}).items():
        there = given.get(table, {})
        if isinstance(there, Spec):
            there = there.model_dump(exclude_unset=True)
        if isinstance(there, dict):
            changed[table] = {
                name: value for name, value in fields.items() if to_camel(name) not in there
            } | there
    return changed


def alone_because(algorithm: RunAlgorithmSpec, optimiser: OptimiserSpec, rollout: RolloutSpec) -> str:
    """Why this cannot be trained by several processes; empty where it can."""
    if isinstance(algorithm, OfflineSpec) or algorithm.kind in ("trpo", "nlpo"):
        return f"algorithm.kind = {algorithm.kind} trains in one process"
    if optimiser.weight_average is not None:
        return "optimiser.weight_average is kept by one process alone"
    if optimiser.lora is not None or optimiser.kind == "adamw_8bit":
        return "optimiser.lora and adamw_8bit are of one process"
    if rollout.reference == "branch":
        return "rollout.reference = branch is computed by one process"
    if optimiser.train_embeddings:
        return "optimiser.train_embeddings: several processes divide the layers alone"
    return ""


class RunSpec(Spec):
    """One training run, whole."""

    name: str = Field("run", min_length=1, max_length=63, pattern=r"^[A-Za-z0-9_.-]+$")
    seed: int = Field(1, ge=0, lt=2**31)
    steps: int = Field(32, ge=1)
    model: ModelSpec
    reward_model: str = Field(
        "", description="Folder of the reward model, rule:<rule>, function:<function> or trl:<function>."
    )
    reward_sources: tuple[RunReward, ...] = Field(
        (), max_length=64, description="Several sources in place of reward_model, summed by weight."
    )
    data: DataSpec
    sampling: SamplingSpec = SamplingSpec()
    algorithm: RunAlgorithmSpec = PpoSpec()
    optimiser: OptimiserSpec = OptimiserSpec()
    rollout: RolloutSpec = RolloutSpec()
    checkpoint: CheckpointSpec = CheckpointSpec()
    engine: EngineSpec = EngineSpec()
    logging: LoggingSpec = LoggingSpec()
    watch: WatchSpec = WatchSpec()

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, given: Any) -> Any:
        """A preset of the algorithm sets the fields around it that are not given."""
        if not isinstance(given, dict):
            return given
        return given | around(given)

    @field_validator("algorithm", mode="before")
    @classmethod
    def _known(cls, given: Any) -> Any:
        return check_run_kind(given)

    @property
    def online(self) -> OnlineSpec:
        """The settings of an algorithm that learns from rollouts. Raises ValueError for one that does not."""
        if isinstance(self.algorithm, OfflineSpec):
            raise ValueError(f"algorithm.kind = {self.algorithm.kind} has no rollouts")
        return self.algorithm

    @property
    def offline(self) -> bool:
        """Whether it learns from a file alone."""
        return isinstance(self.algorithm, OfflineSpec)

    @property
    def alone_because(self) -> str:
        """Why this run needs a learner of one process; empty where several can share it."""
        return alone_because(self.algorithm, self.optimiser, self.rollout)

    @property
    def unscored_because(self) -> str:
        """Why nothing would score its rollouts; empty where something does, or it has none."""
        if self.offline or self.reward_model or self.reward_sources:
            return ""
        return "reward_model: expected a reward model's folder, rule:<name>, or [[reward_sources]]"

    @property
    def group_size(self) -> int:
        """Completions of a prompt."""
        algorithm = self.algorithm
        return (
            algorithm.num_generations
            if isinstance(algorithm, GroupSpec)
            else self.rollout.completions_per_prompt
        )

    @property
    def decoding(self) -> DecodingSpec:
        """What the run's policy draws with, as the algorithm says."""
        algorithm = self.algorithm
        if isinstance(algorithm, NlpoSpec):
            return DecodingSpec(mask=MaskSpec(top_p=algorithm.top_p, min_tokens=algorithm.min_tokens))
        if isinstance(algorithm, IlqlSpec):
            return DecodingSpec(values=ValuesSpec(beta=algorithm.beta, top_k=algorithm.top_k))
        return DecodingSpec()

    def generating(self) -> dict[str, Any]:
        """What generates in the run's policy service: its bound on completions, and its tables [engine] and [decoding];
        one that says nothing is left out."""
        tables = {
            "engine": self.engine.model_dump(mode="json", exclude_defaults=True),
            "decoding": self.decoding.model_dump(mode="json", exclude_none=True),
        }
        said = {name: table for name, table in tables.items() if table}
        return {"max_new_tokens": max(MOST_NEW_TOKENS, self.sampling.max_new_tokens), **said}

    @model_validator(mode="after")
    def _engine_trains(self) -> RunSpec:
        if self.offline and self.engine.kind != "transformers":
            raise ValueError(
                "an offline run generates nothing: [engine] is for the policy service that serves it"
            )
        told = unfit_for_training(self.engine, plain=self.sampling.plain, decoding=self.decoding.table)
        if told:
            raise ValueError(told)
        return self

    @model_validator(mode="after")
    def _mask_is_all(self) -> RunSpec:
        sampling = self.sampling
        cut = sampling.top_k or min(sampling.top_p, sampling.top_p_end or 1.0) < 1
        if isinstance(self.algorithm, NlpoSpec) and cut:
            raise ValueError("nlpo's mask is the nucleus: sampling.top_p stays 1 and top_k 0")
        return self

    @model_validator(mode="after")
    def _ends_can_be_missed(self) -> RunSpec:
        endless = self.sampling.fixed_length and not self.sampling.stop
        if endless and getattr(self.algorithm, "missing_end_replaces", False):
            raise ValueError(
                "algorithm.missing_end_replaces with sampling.fixed_length: no completion ends, so all scores "
                "would be the same"
            )
        return self

    @model_validator(mode="after")
    def _one_way_of_rewards(self) -> RunSpec:
        if self.reward_sources and self.reward_model:
            raise ValueError("reward_model and reward_sources: expected one of them")
        return self

    @model_validator(mode="after")
    def _groups_fit(self) -> RunSpec:
        given = self.rollout.completions_per_prompt
        if given not in (1, self.group_size):
            raise ValueError(
                f"rollout.completions_per_prompt = {given}, but algorithm.num_generations = {self.group_size}: "
                "leave the first out"
            )
        if self.group_size < 2 and getattr(self.algorithm, "baseline", False):
            raise ValueError("algorithm.baseline needs rollout.completions_per_prompt of at least 2")
        return self

    @model_validator(mode="after")
    def _can_train_embeddings(self) -> RunSpec:
        if self.optimiser.train_embeddings and self.algorithm.kind == "trpo":
            raise ValueError("optimiser.train_embeddings: trpo's step is over the layers alone")
        return self

    @model_validator(mode="after")
    def _texts_are_used(self) -> RunSpec:
        wanted = getattr(self.algorithm, "ptx_coefficient", 0.0) > 0
        if wanted and not self.data.texts:
            raise ValueError("algorithm.ptx_coefficient needs data.texts, a JSONL file with `text`")
        if self.data.texts and not wanted:
            raise ValueError("data.texts is for algorithm.ptx_coefficient, which is 0: no text would be read")
        return self

    @model_validator(mode="after")
    def _trpo_trains_all(self) -> RunSpec:
        if isinstance(self.algorithm, TrpoSpec):
            for field in ("lora", "gradient_checkpointing"):
                if getattr(self.optimiser, field):
                    raise ValueError(
                        f"optimiser.{field} is not for trpo, whose step is of second derivatives of all weights"
                    )
        return self

    @model_validator(mode="after")
    def _nlpo_copies_all(self) -> RunSpec:
        if isinstance(self.algorithm, NlpoSpec) and self.optimiser.lora is not None:
            raise ValueError("optimiser.lora is not for nlpo, whose mask model is a copy of the whole policy")
        return self

    @model_validator(mode="after")
    def _slip_scores(self) -> RunSpec:
        if not any(stage == "reward" or stage.startswith("reward/") for stage in self.rollout.slip):
            raise ValueError("rollout.slip needs at least one stage named reward or reward/<name>")
        return self

    @model_validator(mode="after")
    def _slip_is_in_order(self) -> RunSpec:
        slip = self.rollout.slip
        if len(set(slip)) < len(slip):
            raise ValueError(
                "rollout.slip: expected each stage once; a score that is given twice counts twice"
            )
        if not self.offline and slip[0] != "policy":
            raise ValueError("rollout.slip: expected policy first; the others work on what it generates")
        return self

    @model_validator(mode="after")
    def _slip_refers(self) -> RunSpec:
        rollout = self.rollout
        if not self.offline and rollout.reference == "stage" and "reference" not in rollout.slip:
            raise ValueError(
                "rollout.slip has no stage named reference, whose log-probs every step needs: add it, or take "
                "rollout.reference = branch, the learner's own"
            )
        return self
