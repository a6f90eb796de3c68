"""What all trainers' configs have: model, optimiser, schedule, checkpoints. Pure."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from orchestrator.trl.draft import Draft
from orchestrator.trl.known import all_fields
from services.common.spec.presets import UNCLIPPED

SCHEDULES = {
    "linear": "linear",
    "cosine": "cosine",
    "constant": "constant",
    "constant_with_warmup": "constant",
}
OPTIMISERS = {
    "adamw_torch": "adamw",
    "adamw_torch_fused": "adamw",
    "rmsprop": "rmsprop",
    "adamw_bnb_8bit": "adamw_8bit",
    "adamw_8bit": "adamw_8bit",
}
LOGS = ("tensorboard", "wandb", "mlflow")
# Layers that peft adapts where none are named, by the type of the model, but for the many of the Llama family's names.
_LLAMAS_LAYERS = ("q_proj", "v_proj")
_PEFTS_LAYERS = {
    "gpt2": ("c_attn",),
    "gpt_bigcode": ("c_attn",),
    "gpt_neox": ("query_key_value",),
    "bloom": ("query_key_value",),
    "falcon": ("query_key_value",),
    "mpt": ("Wqkv",),
    "codegen": ("qkv_proj",),
    "phi": ("q_proj", "v_proj", "fc1", "fc2"),
}
_ADAPTERS = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "use_dora")


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """What a config does not say: the model where it is given apart, rows of the data, files, rewards."""

    rows: int
    prompts_file: str
    model: str = ""
    rewards: tuple[str, ...] = ()
    model_type: str = ""
    """As the model's configuration says it; empty where it cannot be seen from here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """updates: TRL's optimiser steps in all. per_step: those of one step of a run."""

    updates: int
    per_step: int

    @property
    def steps(self) -> int:
        """Steps of the run."""
        return math.ceil(self.updates / self.per_step)


def put_model(draft: Draft, around: Around, *, field: str = "model_name_or_path") -> None:
    """Model, revision and dtype."""
    path = around.model or draft.value(field) or ""
    if not path:
        draft.refuse(field, "expected a model, here or as --model")
    draft.put("model.path", path, field, remark="as --model says" if around.model else "")
    if draft.value("model_revision") not in (None, "main"):
        draft.copy("model_revision", "model.revision")
    else:
        draft.inert("model_revision", "the newest")
    dtype = dtype_of(draft)
    draft.put("model.dtype", dtype, "bf16", "dtype", remark="passes; trained weights are float32")
    if draft.value("use_cpu"):
        draft.put("model.device", "cpu", "use_cpu")
    else:
        draft.inert("use_cpu", "a GPU where there is one")
    _model_arguments(draft)
    put_adapters(draft, around)
    put_logs(draft)


def dtype_of(draft: Draft) -> str:
    """bf16 says it, as TRL casts passes to it; unset: where that is quicker; off: as the weights are loaded."""
    bf16, weights = draft.value("bf16"), draft.value("dtype")
    if weights not in ("float32", "bfloat16", "auto", None):
        draft.refuse("dtype", "expected float32 or bfloat16")
    if bf16 or weights == "bfloat16":
        return "bfloat16"
    return "auto" if bf16 is None else "float32"


def _model_arguments(draft: Draft) -> None:
    if "model_init_kwargs" not in all_fields(draft.trainer):
        return
    given = draft.value("model_init_kwargs")
    harmless = {"attn_implementation", "device_map", "use_cache"}
    other = sorted(set(given or {}) - harmless)
    if other:
        draft.refuse(
            "model_init_kwargs", f"{other[0]} has its own place: model_name_or_path, dtype, model_revision"
        )
    else:
        draft.inert("model_init_kwargs", "how the model is loaded, not which")


def put_adapters(draft: Draft, around: Around) -> None:
    """LoRA and DoRA; without, every weight is trained, the embeddings too."""
    if not draft.value("use_peft"):
        draft.put("optimiser.train_embeddings", True, "use_peft", remark="every weight is trained")
        for name in _ADAPTERS:
            draft.inert(name, "use_peft is off")
        return
    draft.copy("lora_r", "optimiser.lora.rank")
    draft.mapped("optimiser.lora", "use_peft")
    draft.copy("lora_alpha", "optimiser.lora.alpha")
    draft.copy("lora_dropout", "optimiser.lora.dropout", remark="in updates alone")
    draft.copy("use_dora", "optimiser.lora.dora")
    targets = lora_targets(draft, around)
    if targets:
        remark = (
            ""
            if draft.value("lora_target_modules")
            else f"as peft chooses for {around.model_type or 'llama'}"
        )
        draft.put("optimiser.lora.targets", targets, "lora_target_modules", remark=remark)
    else:
        draft.mapped("every linear layer", "lora_target_modules")


def lora_targets(draft: Draft, around: Around) -> list[str]:
    """Names of layers; none: every linear one. Where the config names none, peft goes by the model's type."""
    targets = draft.value("lora_target_modules")
    if targets in ("all-linear", ["all-linear"]):
        return []
    if isinstance(targets, list | None):
        return targets or list(_PEFTS_LAYERS.get(around.model_type, _LLAMAS_LAYERS))
    draft.refuse("lora_target_modules", "expected a list of layers' names, or all-linear")
    return []


def put_logs(draft: Draft) -> None:
    """Where metrics go beside the run's own file."""
    given = draft.value("report_to") if "report_to" in draft.given else None
    names = [given] if isinstance(given, str) else list(given or ())
    known = [name for name in LOGS if name in names or "all" in names]
    if known:
        other = sorted(set(names) - {*LOGS, "all", "none"})
        draft.put("logging.to", known, "report_to", remark=f"not to {', '.join(other)}" if other else "")
    else:
        draft.inert("report_to", "metrics are in metrics.jsonl")


def put_optimiser(draft: Draft, pace: Pace) -> None:
    """AdamW, its rate and how that goes."""
    kind = OPTIMISERS.get(str(draft.value("optim")))
    if kind is None:
        draft.refuse("optim", f"expected one of {', '.join(OPTIMISERS)}")
    draft.put("optimiser.kind", kind or "adamw", "optim")
    draft.copy("learning_rate", "optimiser.learning_rate")
    betas = [draft.value("adam_beta1"), draft.value("adam_beta2")]
    draft.put("optimiser.betas", betas, "adam_beta1", "adam_beta2")
    draft.copy("adam_epsilon", "optimiser.eps")
    draft.copy(
        "weight_decay", "optimiser.weight_decay", remark="of all weights; TRL leaves norms and biases out"
    )
    _put_clipping(draft)
    schedule = SCHEDULES.get(str(draft.value("lr_scheduler_type")))
    if schedule is None:
        draft.refuse("lr_scheduler_type", f"expected one of {', '.join(SCHEDULES)}")
    draft.put("optimiser.schedule", schedule or "constant", "lr_scheduler_type", remark="by steps of the run")
    _put_warmup(draft, pace)
    draft.copy("seed", "seed")
    draft.inert("gradient_checkpointing", "memory alone: optimiser.gradient_checkpointing does the same here")


def _put_clipping(draft: Draft) -> None:
    clips = draft.trainer != "ppo"
    norm = draft.number("max_grad_norm") if clips else 0.0
    why = "0 is off: never reached" if clips else "TRL's PPO never clips"
    draft.put("optimiser.max_grad_norm", norm or UNCLIPPED, "max_grad_norm", remark="" if norm else why)


def _put_warmup(draft: Draft, pace: Pace) -> None:
    if draft.value("lr_scheduler_type") == "constant":
        draft.inert("warmup_steps", "lr_scheduler_type = constant has none, constant_with_warmup has")
        return
    draft.put(
        "optimiser.warmup_steps",
        math.ceil(warmup_updates(draft, pace.updates) / pace.per_step),
        "warmup_steps",
        remark=f"steps of the run, {pace.per_step} updates each" if pace.per_step > 1 else "",
    )


def warmup_updates(draft: Draft, updates: int) -> int:
    """A number below 1 is a share of all updates."""
    given = draft.number("warmup_steps") if draft.value("warmup_steps") else 0.0
    return math.ceil(given * updates) if 0 < given < 1 else int(given)


def put_checkpoints(draft: Draft, pace: Pace, updates_per_epoch: int) -> None:
    """How often the run is saved, and how many checkpoints stay."""
    strategy, every = str(draft.value("save_strategy")), draft.number("save_steps")
    if strategy == "best":
        draft.refuse("save_strategy", "expected steps, epoch or no: nothing is evaluated during a run")
    updates = {"no": float(pace.updates), "epoch": float(updates_per_epoch)}.get(
        strategy, every * pace.updates if every < 1 else every
    )
    steps = min(pace.steps, max(1, math.floor(updates / pace.per_step)))
    draft.put("checkpoint.every_steps", steps, "save_steps", "save_strategy")
    limit = draft.whole("save_total_limit", 1) if draft.value("save_total_limit") else 0
    keep = limit or pace.steps // steps + 1
    draft.put("checkpoint.keep", keep, "save_total_limit", remark="" if limit else "all")


def put_name(draft: Draft) -> None:
    """The run's name, from run_name or the folder's."""
    wanted = draft.value("run_name") or Path(str(draft.value("output_dir") or "")).name or draft.trainer
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", str(wanted)).strip("-.")[:63] or draft.trainer
    draft.put(
        "name", name, "run_name", "output_dir", remark="the folder is runs/<name>, or trimtab train --out"
    )
