"""DPO to a run over a file; SFT and reward models to the commands of their jobs. Pure."""

from __future__ import annotations

import math

from orchestrator.trl.draft import Draft
from orchestrator.trl.shared import (
    Around,
    Pace,
    dtype_of,
    lora_targets,
    put_checkpoints,
    put_model,
    put_name,
    put_optimiser,
    warmup_updates,
)

_DATA = ("dataset_name", "dataset_config", "dataset_train_split")
_HELD_OUT = 0.01
"""The least that a job holds out, to say what it has learned; TRL trains on all rows."""


def _batch(draft: Draft) -> int:
    return draft.whole("per_device_train_batch_size", 1) * draft.whole("gradient_accumulation_steps", 1)


def convert_dpo(draft: Draft, around: Around) -> None:
    """Comparisons; a step of the run is one update."""
    batch = _batch(draft)
    per_epoch = math.ceil(around.rows / batch)
    most = draft.whole("max_steps", -1)
    pace = Pace(
        updates=most if most > 0 else math.ceil(draft.number("num_train_epochs") * per_epoch),
        per_step=1,
    )
    put_name(draft)
    put_model(draft, around)
    draft.put("steps", pace.steps, "max_steps", "num_train_epochs")
    draft.put("rollout.batch_groups", batch, "per_device_train_batch_size", "gradient_accumulation_steps")
    draft.put("algorithm.kind", "dpo")
    draft.copy("beta", "algorithm.beta")
    draft.copy("label_smoothing", "algorithm.label_smoothing")
    if draft.value("loss_type") not in ("sigmoid", ["sigmoid"]):
        draft.refuse("loss_type", "expected sigmoid")
    draft.mapped("algorithm.kind = dpo", "loss_type")
    if draft.value("f_divergence_type") not in ("reverse_kl", "FDivergenceType.REVERSE_KL"):
        draft.refuse("f_divergence_type", "expected reverse_kl")
    draft.mapped("algorithm.kind = dpo", "f_divergence_type")
    for name in ("max_length", "truncation_mode"):
        draft.inert(name, "rows are not cut here; one beyond the model's context is told")
    _no_rewards(draft)
    draft.put("data.prompts", around.prompts_file, *_DATA)
    strategy = draft.value("train_sampling_strategy")
    if strategy not in ("random", "sequential"):
        draft.refuse("train_sampling_strategy", "expected random or sequential")
    draft.put("data.shuffle", strategy == "random", "train_sampling_strategy")
    put_optimiser(draft, pace)
    put_checkpoints(draft, pace, per_epoch)


def convert_sft(draft: Draft, around: Around) -> None:
    """`trimtab sft`."""
    draft.arguments += ["sft", "--data", around.prompts_file]
    draft.mapped("--data", *_DATA, remark=_held_out())
    _job(
        draft, around, batch_flag="--batch-rows", longer="lose their prompt's beginning first, then their end"
    )
    if draft.value("truncation_mode") not in ("keep_start", "keep_end"):
        draft.refuse("truncation_mode", "expected keep_start or keep_end")
    draft.mapped("a row that is cut keeps its answer", "truncation_mode", remark="TRL's keep_start does not")
    if draft.value("completion_only_loss") is False:
        draft.refuse("completion_only_loss", "the loss is over completions alone")
    draft.mapped("the loss is over completions alone", "completion_only_loss")
    if draft.value("loss_type") != "nll":
        draft.refuse("loss_type", "expected nll")
    draft.mapped("cross-entropy", "loss_type")
    draft.inert("shuffle_dataset", "rows are shuffled every epoch")
    if draft.value("use_peft"):
        draft.argue("--lora-rank", draft.value("lora_r"), "lora_r", "use_peft")
        draft.argue("--lora-alpha", draft.value("lora_alpha"), "lora_alpha")
        if draft.number("lora_dropout"):
            draft.refuse("lora_dropout", "expected 0: dropout is off in every pass here")
        draft.inert("lora_dropout", "0")
        _targets(draft, around)
        if draft.value("use_dora"):
            draft.refuse("use_dora", "the job's adapters are LoRA's")
        draft.inert("use_dora", "off")
    else:
        draft.inert("use_peft", "the whole model is trained")
        for name in ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "use_dora"):
            draft.inert(name, "use_peft is off")


def _targets(draft: Draft, around: Around) -> None:
    targets = lora_targets(draft, around)
    for name in targets:
        draft.arguments += ["--lora-target", name]
    told = ", ".join(targets)
    draft.mapped(f"--lora-target {told}" if targets else "every linear layer", "lora_target_modules")


def convert_reward(draft: Draft, around: Around) -> None:
    """`trimtab reward-model`."""
    draft.arguments += ["reward-model", "--pairs", around.prompts_file]
    draft.mapped("--pairs", *_DATA, remark=_held_out())
    _job(draft, around, batch_flag="--batch-pairs", longer="are cut; TRL leaves their pairs out")
    draft.argue("--train-embeddings", True)
    draft.argue("--no-normalise-before", True)
    if draft.value("use_peft"):
        draft.refuse("use_peft", "a reward model is trained whole, or with --frozen-layers")
    for name in ("use_peft", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "use_dora"):
        draft.inert(name, "use_peft is off")


def _held_out() -> str:
    return f"{_HELD_OUT:.0%} of the prompts is held out, at least one"


def _job(draft: Draft, around: Around, *, batch_flag: str, longer: str) -> None:
    """What both jobs take. longer: what becomes of rows beyond max_length."""
    model = around.model or draft.value("model_name_or_path") or ""
    if not model:
        draft.refuse("model_name_or_path", "expected a model, here or as --model")
    if draft.value("model_revision") not in (None, "main"):
        draft.refuse("model_revision", "expected main: give the model as a folder")
    draft.inert("model_revision", "main")
    draft.argue("--model", model, "model_name_or_path")
    draft.argue("--out", draft.value("output_dir") or f"models/{draft.trainer}", "output_dir")
    draft.inert("run_name", "output_dir names what is made")
    draft.argue("--learning-rate", draft.value("learning_rate"), "learning_rate")
    epochs = draft.number("num_train_epochs")
    if draft.whole("max_steps", -1) > 0:
        draft.refuse("max_steps", "expected -1: the job goes by num_train_epochs")
    draft.inert("max_steps", "num_train_epochs says it")
    if epochs != int(epochs) or epochs < 1:
        draft.refuse("num_train_epochs", "expected a whole number")
    draft.argue("--epochs", max(1, int(epochs)), "num_train_epochs")
    batch = _batch(draft)
    draft.argue(batch_flag, batch, "per_device_train_batch_size", "gradient_accumulation_steps")
    if draft.value("max_length"):
        draft.argue("--max-tokens", draft.value("max_length"), "max_length", remark=f"longer rows {longer}")
    else:
        draft.inert("max_length", "the job's own bound")
    draft.argue("--weight-decay", draft.value("weight_decay"), "weight_decay", remark="of all weights")
    updates = max(1, math.ceil(around.rows / batch)) * max(1, int(epochs))
    share = warmup_updates(draft, updates) / updates
    draft.argue("--warmup-share", round(min(1.0, share), 6), "warmup_steps")
    if draft.value("gradient_checkpointing"):
        draft.argue("--gradient-checkpointing", True, "gradient_checkpointing")
    else:
        draft.inert("gradient_checkpointing", "off")
    draft.argue("--dtype", dtype_of(draft), "bf16", "dtype", remark="passes; trained weights are float32")
    draft.argue("--seed", draft.value("seed"), "seed")
    draft.argue("--held-out-share", _HELD_OUT)
    _fixed(draft)
    _no_rewards(draft)
    given = (
        draft.value("model_init_kwargs")
        if draft.trainer == "sft" or "model_init_kwargs" in draft.given
        else None
    )
    if given:
        draft.refuse("model_init_kwargs", "the job loads the model as it is")
    draft.inert("model_init_kwargs", "none")
    draft.inert("use_cpu", "the job takes a GPU where there is one")
    for name in ("save_strategy", "save_steps", "save_total_limit"):
        draft.inert(name, "a job is saved at its end")
    draft.inert("train_sampling_strategy", "rows are shuffled every epoch")


def _fixed(draft: Draft) -> None:
    """What the jobs have no flag for: another value is refused."""
    fixed = {
        "lr_scheduler_type": ("linear",), "optim": ("adamw_torch", "adamw_torch_fused"), "adam_beta1": (0.9,),
        "adam_beta2": (0.999,), "adam_epsilon": (1e-8,), "max_grad_norm": (1.0,),
    }  # fmt: skip
    for name, values in fixed.items():
        if draft.value(name) not in values:
            draft.refuse(name, f"the job's is {values[0]}")
        draft.mapped("the job's own", name)


def _no_rewards(draft: Draft) -> None:
    for name in ("reward_funcs", "reward_model_name_or_path"):
        if draft.value(name):
            draft.refuse(name, f"{draft.trainer} has no rewards")
        draft.inert(name, "none")
