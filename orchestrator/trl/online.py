"""GRPO, RLOO and PPO: configs to a run. Pure.

    TRL                                                 a run
    generation batch: G = per_device * steps_per_…      batch_groups = G / num_generations
    optimiser steps of one generation batch             minibatches = steps_per_generation / gradient_accumulation_steps
    num_iterations                                      epochs
    max_steps, num_train_epochs: optimiser steps        steps: generation batches

One process: several would multiply TRL's batch, which a config does not say.
"""

from __future__ import annotations

import math

from orchestrator.trl.draft import Draft
from orchestrator.trl.fates import INERT
from orchestrator.trl.shared import Around, Pace, put_checkpoints, put_model, put_name, put_optimiser

_LOSSES = ("grpo", "dr_grpo", "dapo", "cispo", "luspo", "sapo")
_MODES = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")


def convert_group(draft: Draft, around: Around) -> None:
    """GRPO or RLOO."""
    size = draft.whole("num_generations", 1)
    batch, minibatches = _generation_batch(draft, size)
    epochs = draft.whole("num_iterations", 1)
    groups = batch // size
    per_epoch = max(1, around.rows // max(1, groups)) * minibatches * epochs
    pace = Pace(updates=_updates(draft, per_epoch), per_step=minibatches * epochs)
    put_name(draft)
    put_model(draft, around)
    draft.put("steps", pace.steps, "max_steps", "num_train_epochs", remark=_whole(pace))
    draft.put("rollout.batch_groups", groups, "per_device_train_batch_size", "generation_batch_size")
    draft.put("algorithm.kind", draft.trainer)
    draft.copy("num_generations", "algorithm.num_generations")
    draft.put("algorithm.minibatches", minibatches, "steps_per_generation", "gradient_accumulation_steps")
    draft.copy("num_iterations", "algorithm.epochs")
    for name in ("beta", "epsilon", "epsilon_high"):
        if draft.value(name) is None:
            draft.inert(name, "left out")
        else:
            draft.copy(name, f"algorithm.{name}")
    if draft.trainer == "grpo":
        _grpo(draft)
    else:
        draft.copy("normalize_advantages", "algorithm.normalize_advantages")
        if draft.value("reward_clip_range"):
            bounds = draft.numbers("reward_clip_range")
            if len(bounds) != 2:
                draft.refuse("reward_clip_range", "expected two numbers")
            draft.put("algorithm.clip_scores", bounds, "reward_clip_range")
        else:
            draft.inert("reward_clip_range", "scores have no bounds")
    _importance(draft)
    put_sampling(draft, "max_completion_length")
    put_rewards(draft, around)
    put_optimiser(draft, pace)
    put_checkpoints(draft, pace, per_epoch)
    draft.copy("log_completions", "rollout.keep", remark="as Parquet")


def _generation_batch(draft: Draft, size: int) -> tuple[int, int]:
    """Completions generated at once, and optimiser steps that one pass over them takes."""
    device, accumulated = (
        draft.whole(name, 1) for name in ("per_device_train_batch_size", "gradient_accumulation_steps")
    )
    slices, batch = (
        draft.whole(name, 1) if draft.value(name) else 0
        for name in ("steps_per_generation", "generation_batch_size")
    )
    if batch and slices and batch != device * slices:
        draft.refuse(
            "generation_batch_size", f"steps_per_generation = {slices} of {device} make {device * slices}"
        )
    if batch and not slices and batch % device:
        draft.refuse(
            "generation_batch_size", f"expected a multiple of per_device_train_batch_size = {device}"
        )
    steps = slices or (max(1, batch // device) if batch else accumulated)
    whole = steps * device
    if whole % size:
        draft.refuse("num_generations", f"expected a divisor of the {whole} completions generated at once")
    if steps % accumulated:
        draft.refuse(
            "gradient_accumulation_steps",
            f"expected a divisor of the {steps} slices of a generation batch: an update takes completions of one batch",
        )
    return whole, max(1, steps // accumulated)


def _updates(draft: Draft, per_epoch: int) -> int:
    most = draft.whole("max_steps", -1)
    return most if most > 0 else math.ceil(draft.number("num_train_epochs") * per_epoch)


def _whole(pace: Pace) -> str:
    more = pace.steps * pace.per_step - pace.updates
    said = (
        f"{pace.updates} updates" if pace.per_step == 1 else f"{pace.updates} updates, {pace.per_step} a step"
    )
    return f"{said}, {more} more to end with a whole batch" if more else said


def _grpo(draft: Draft) -> None:
    loss = draft.value("loss_type")
    if loss not in _LOSSES:
        draft.refuse("loss_type", f"expected one of {', '.join(_LOSSES)}")
    draft.copy("loss_type", "algorithm.loss_type")
    scale = draft.value("scale_rewards")
    draft.put("algorithm.scale_rewards", {True: "group", False: "none"}.get(scale, scale), "scale_rewards")
    names = (
        "importance_sampling_level",
        "use_bias_correction_kl",
        "sapo_temperature_pos",
        "sapo_temperature_neg",
    )
    for name in names:
        draft.copy(name, f"algorithm.{name}")
    if draft.value("delta") is not None:
        draft.copy("delta", "algorithm.delta")
    else:
        draft.inert("delta", "the ratio has no second bound")
    if draft.number("entropy_coef") < 0:
        draft.refuse("entropy_coef", "expected 0 or more")
    draft.copy("entropy_coef", "algorithm.entropy_coefficient")
    if draft.value("multi_objective_aggregation") != "sum_then_normalize":
        draft.refuse(
            "multi_objective_aggregation", "its deviations are the batch's; a score depends on its row alone"
        )
    draft.mapped("rewards are summed by weight", "multi_objective_aggregation")


def _importance(draft: Draft) -> None:
    """TRL corrects where another engine samples; without one behaviour and learner are the same model."""
    names = [f"vllm_importance_sampling_{part}" for part in ("correction", "mode", "clip_max", "clip_min")]
    if draft.trainer != "grpo":
        draft.put("algorithm.importance_sampling.mode", "none")
        return
    correction, mode, most, least = (draft.value(name) for name in names)
    engine = draft.value("use_vllm")
    draft.inert("use_vllm", INERT["use_vllm"])
    if not engine or not correction:
        draft.put(
            "algorithm.importance_sampling.mode", "none", names[0], remark="use_vllm or the correction is off"
        )
        for name in names[1:]:
            draft.inert(name, "use_vllm or the correction is off")
        return
    if mode not in _MODES:
        draft.refuse(names[1], f"expected one of {', '.join(_MODES)}")
    draft.put("algorithm.importance_sampling.mode", mode, names[0], names[1])
    draft.put("algorithm.importance_sampling.clip_max", most, names[2])
    if least is None:
        draft.inert(names[3], "no lower bound")
    else:
        draft.put("algorithm.importance_sampling.clip_min", least, names[3])


def put_sampling(draft: Draft, length: str) -> None:
    """How completions are drawn."""
    draft.copy(length, "sampling.max_new_tokens")
    draft.copy("temperature", "sampling.temperature")
    if draft.trainer != "ppo":
        draft.copy("top_p", "sampling.top_p")
        top_k = draft.whole("top_k", -1) if draft.value("top_k") else 0
        draft.put("sampling.top_k", max(0, top_k), "top_k", remark="0 is off")
        draft.copy("shuffle_dataset", "data.shuffle")
        if draft.value("train_sampling_strategy") != "random":
            draft.refuse(
                "train_sampling_strategy", "expected random: shuffle_dataset says whether rows are shuffled"
            )
        draft.mapped("data.shuffle", "train_sampling_strategy")


def put_rewards(draft: Draft, around: Around) -> None:
    """Reward functions and models, by weight."""
    if not around.rewards:
        draft.refuse("reward_funcs", "expected at least one, here or as --reward-func")
    found = [
        {"source": source, "weight": weight}
        for source, weight in zip(around.rewards, _weights(draft, len(around.rewards)), strict=True)
    ]
    draft.put("reward_sources", found, "reward_funcs", "reward_model_name_or_path")
    draft.mapped("reward_sources.weight", "reward_weights")
    draft.put("data.prompts", around.prompts_file, "dataset_name", "dataset_config", "dataset_train_split")


def _weights(draft: Draft, count: int) -> list[float]:
    """Of so many rewards; 1 each where none are given, or wrong ones."""
    given, weights = draft.value("reward_weights"), draft.numbers("reward_weights")
    if given is not None and len(weights) != count:
        told = f"{len(weights)} for {count} reward functions" if weights else "expected a list of numbers"
        draft.refuse("reward_weights", told)
        given = None
    return [1.0] * count if given is None else weights


def convert_ppo(draft: Draft, around: Around) -> None:
    """PPO of TRL 1.12, under the preset of its numerics."""
    device, accumulated, mini = (
        draft.whole(name, 1)
        for name in ("per_device_train_batch_size", "gradient_accumulation_steps", "num_mini_batches")
    )
    batch = device * accumulated
    minibatches = _ppo_minibatches(draft, device, accumulated, mini)
    if draft.value("total_episodes"):
        whole = draft.whole("total_episodes", 1)
    else:
        whole = int(draft.number("num_train_epochs") * around.rows)
    pace = Pace(updates=math.ceil(whole / batch), per_step=1)  # TRL's schedule, too, goes by batches
    put_name(draft)
    put_model(draft, around, field="sft_model_path")
    draft.inert("model_name_or_path", "sft_model_path says it")
    draft.put(
        "steps",
        pace.steps,
        "total_episodes",
        "num_train_epochs",
        remark=f"{whole} episodes of {batch} a step",
    )
    draft.put("rollout.batch_groups", batch, "per_device_train_batch_size", "gradient_accumulation_steps")
    draft.put("algorithm.kind", "ppo")
    draft.put("algorithm.preset", "trl")
    draft.put(
        "algorithm.minibatches",
        minibatches,
        "num_mini_batches",
        remark="" if minibatches == mini else f"TRL updates once in {accumulated} micro-batches",
    )
    for name, path in {
        "num_ppo_epochs": "epochs", "cliprange": "clip_ratio", "cliprange_value": "clip_value",
        "vf_coef": "value_coefficient", "gamma": "gamma", "lam": "gae_lambda", "whiten_rewards": "whiten_rewards",
        "kl_coef": "kl.coefficient", "kl_estimator": "kl.estimator",
    }.items():  # fmt: skip
        draft.copy(name, f"algorithm.{path}")
    draft.put(
        "algorithm.missing_end_penalty", draft.value("missing_eos_penalty") or 0.0, "missing_eos_penalty"
    )
    if draft.value("stop_token") != "eos":
        draft.refuse("stop_token", "expected eos: without it TRL's answers run on past their end")
    draft.mapped("an answer ends with the end token", "stop_token")
    put_sampling(draft, "response_length")
    reward = around.rewards[0] if around.rewards else str(draft.value("reward_model_path"))
    if len(around.rewards) > 1:
        draft.refuse("reward_model_path", "PPO's value model begins as the one reward model")
    draft.put("reward_model", reward, "reward_model_path", remark="the value model begins as it, too")
    draft.inert("max_steps", "total_episodes says it")
    for name in ("reward_funcs", "reward_model_name_or_path"):
        draft.inert(name, "reward_model_path says it")
    draft.put("data.prompts", around.prompts_file, "dataset_name", "dataset_config", "dataset_train_split")
    draft.inert("train_sampling_strategy", "rows are shuffled")
    put_optimiser(draft, pace)
    put_checkpoints(draft, pace, max(1, around.rows // batch))


def _ppo_minibatches(draft: Draft, device: int, accumulated: int, mini: int) -> int:
    """Updates of an epoch: accelerate makes one in so many micro-batches, wherever TRL's minibatches end."""
    batch = device * accumulated
    if batch % mini:
        draft.refuse("num_mini_batches", f"TRL itself wants a divisor of a batch's {batch} episodes")
        return mini
    micro = mini * math.ceil(batch // mini / device)
    if micro % accumulated:
        draft.refuse(
            "num_mini_batches",
            f"an epoch's {micro} micro-batches are not a multiple of gradient_accumulation_steps = {accumulated}: "
            "TRL's updates would take parts of two epochs",
        )
    return max(1, micro // accumulated)
