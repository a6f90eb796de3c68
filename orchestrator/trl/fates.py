"""Fields of TRL's configs that are not carried over: those without effect here, and those that are refused.

What is in neither table is read by online.py, offline.py or shared.py; a test holds every field of every trainer
against that. Pure data.
"""

from __future__ import annotations

from collections.abc import Mapping

_LOGS = "every step is written to metrics.jsonl, and the services log as JSON lines"
_EVALUATION = "nothing is evaluated during a run; trimtab evaluate does it afterwards"
_HUB = "nothing is pushed; the model is a plain folder that can be"
_LOADING = "prompts are read whole, before the run"
_DEVICES = "how a run is spread is the orchestrator's, not the config's"
_SPEED = "how passes are carried out is the engine's and the learner's"
_VLLM = "the policy service has an engine of its own: its [engine] table"
_FILES = "of the trainer's files; a run's folder is described in docs/operations.md"
_SYNC_OFF = "sync_ref_model is off"
_ENTROPY_OFF = "use_adaptive_entropy is off"
_VESPO = "vespo's alone"
_TRL_MADE = "TRL works it out itself"
_PEFT_OFF = "use_peft is off"


def _each(reason: str, names: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), reason)


INERT: Mapping[str, str] = {
    **_each(
        _LOGS,
        "logging_strategy logging_steps logging_first_step log_on_each_node logging_nan_inf_filter "
        "include_num_input_tokens_seen log_level log_level_replica disable_tqdm report_to project trackio_space_id "
        "trackio_bucket_id trackio_static_space_id log_multimodal num_completions_to_print log_unique_prompts "
        "log_completions_hub_repo num_sample_generations",
    ),
    **_each(
        _EVALUATION,
        "eval_strategy eval_steps eval_delay per_device_eval_batch_size prediction_loss_only eval_on_start "
        "eval_do_concat_batches eval_use_gather_object eval_accumulation_steps include_for_metrics "
        "batch_eval_metrics bf16_full_eval fp16_full_eval load_best_model_at_end metric_for_best_model "
        "greater_is_better do_eval do_predict do_train num_generations_eval eval_packing dataset_test_split",
    ),
    **_each(
        _HUB,
        "push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision",
    ),
    **_each(
        _LOADING,
        "dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor "
        "dataloader_multiprocessing_context dataloader_in_order dataloader_drop_last label_names "
        "length_column_name remove_unused_columns dataset_num_proc dataset_streaming dataset_text_field data_seed "
        "ignore_data_skip",
    ),
    **_each(
        _DEVICES,
        "accelerator_config parallelism_config ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers "
        "ddp_static_graph ddp_backend ddp_timeout fsdp fsdp_config deepspeed local_rank ignore_bias_buffers "
        "ds3_gather_for_generation average_tokens_across_devices",
    ),
    **_each(
        _SPEED,
        "tf32 activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing_kwargs torch_compile "
        "torch_compile_backend torch_compile_mode use_liger_kernel liger_kernel_config use_cache "
        "torch_empty_cache_steps auto_find_batch_size enable_jit_checkpoint full_determinism debug "
        "skip_memory_metrics activation_offloading pad_to_multiple_of padding_free cache_implementation "
        "use_transformers_continuous_batching transformers_continuous_batching_config use_transformers_paged "
        "attn_implementation precompute_ref_log_probs precompute_ref_batch_size "
        "local_rollout_forward_batch_size",
    ),
    **_each(
        _VLLM,
        "use_vllm vllm_mode vllm_model_impl vllm_enable_sleep_mode vllm_server_base_url vllm_server_host "
        "vllm_server_port vllm_server_timeout vllm_group_port vllm_gpu_memory_utilization vllm_max_model_length "
        "vllm_tensor_parallel_size",
    ),
    **_each(_FILES, "save_only_model save_on_each_node restore_callback_states_from_checkpoint"),
    **_each(_SYNC_OFF, "ref_model_mixup_alpha ref_model_sync_steps"),
    **_each(_ENTROPY_OFF, "entropy_coef_min entropy_coef_max entropy_coef_delta entropy_target"),
    **_each(_VESPO, "vespo_k_pos vespo_lambda_pos vespo_k_neg vespo_lambda_neg"),
    **_each("f_divergence_type is reverse_kl", "f_alpha_divergence_coef"),
    **_each("discopop's alone", "discopop_tau"),
    **_each("packing is off", "packing_strategy"),
    **_each(
        _TRL_MADE,
        "world_size num_total_batches micro_batch_size local_batch_size batch_size local_mini_batch_size "
        "mini_batch_size",
    ),
    **_each("4-bit loading is off", "bnb_4bit_quant_type use_bnb_nested_quant bnb_4bit_quant_storage"),
    "disable_dropout": "dropout is off in every pass here",
    "cast_lm_head_to_fp32": "log-probs are taken from float32 logits in any case",
    "pad_token": "masks come from lengths, not from a pad token",
    "stop_token_id": "the model's end token ends an answer",
    "lora_task_type": "the adapter is of the model that is trained",
}
"""Field: why it changes nothing. Reported wherever a config gives it another value than TRL's default."""

REFUSED: Mapping[str, str] = {
    **_each("not supported", "optim_args optim_target_modules lr_scheduler_kwargs neftune_noise_alpha"),
    **_each(
        "a filter of sampling that the policy's engines do not share",
        "min_p generation_kwargs vllm_structured_outputs_regex",
    ),
    **_each("code from a model's repository is never run", "trust_remote_code"),
    **_each(
        "the loss has no such term", "router_aux_loss_coef center_rewards_coefficient ld_alpha loss_weights"
    ),
    **_each("the reference is frozen", "sync_ref_model"),
    **_each("there are no tools in a run", "max_tool_calling_iterations"),
    **_each("adapters are loaded as models, not named", "model_adapter_name ref_adapter_name"),
    **_each(
        "weights are trained in float32, passes run in bfloat16 or float32", "fp16 load_in_8bit load_in_4bit"
    ),
    **_each(
        "adapters are not trained in a run that is read from a config",
        "lora_target_parameters lora_modules_to_save use_rslora",
    ),
    "label_smoothing_factor": "only DPO has label_smoothing",
    "repetition_penalty": "log-probs would be those of another distribution",
    "chat_template_kwargs": "chat templates are called without arguments",
    "chat_template_path": "the model's own chat template is used: save it into the model's folder",
    "eos_token": "the tokenizer's own end token is used: save it into the model's folder",
    "dataset_kwargs": "rows are prompt and completion; nothing else is prepared",
    "mask_truncated_completions": "every completion counts in the loss",
    "top_entropy_quantile": "every token counts in the loss",
    "use_adaptive_entropy": "the entropy bonus has a fixed coefficient",
    "off_policy_mask_threshold": "no sequence is masked by its KL; importance_sampling bounds ratios",
    "vllm_importance_sampling_cap": "its new name is vllm_importance_sampling_clip_max",
    "use_weighting": "WPO's weights are not in the loss",
    "resume_from_checkpoint": "a run of TRL's cannot be continued; trimtab train --resume continues a run of its own",
    "packing": "a batch would be of packed sequences of max_length, here it is of rows: say how many, with packing off",
    "assistant_only_loss": "the loss is over the completion, the last answer",
}
"""Field: why any value but TRL's default (or an empty one) is refused."""
