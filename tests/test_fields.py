"""Every field of GRPOConfig: honoured for each role, refused by its name, or without effect in stock TRL, too."""

import dataclasses

import pytest
from trl import GRPOConfig

from ccpo import CounterfactualCredit, MultiAgentGRPOTrainer

# Read by the one training loop, optimizer, loss, log or process group, which all roles go through.
FOR_ALL = """
    output_dir per_device_train_batch_size num_train_epochs max_steps lr_scheduler_type lr_scheduler_kwargs
    warmup_steps optim optim_args weight_decay adam_beta1 adam_beta2 adam_epsilon optim_target_modules
    gradient_accumulation_steps max_grad_norm bf16 fp16 tf32 torch_compile torch_compile_backend torch_compile_mode
    torch_empty_cache_steps auto_find_batch_size logging_strategy logging_steps logging_first_step log_on_each_node
    logging_nan_inf_filter remove_unused_columns log_level log_level_replica disable_tqdm report_to run_name
    project trackio_space_id trackio_bucket_id trackio_static_space_id eval_strategy eval_steps eval_delay
    per_device_eval_batch_size eval_on_start save_only_model save_strategy save_steps save_on_each_node
    save_total_limit push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision
    load_best_model_at_end metric_for_best_model greater_is_better ignore_data_skip
    restore_callback_states_from_checkpoint full_determinism seed data_seed use_cpu accelerator_config
    parallelism_config dataloader_drop_last dataloader_num_workers dataloader_pin_memory
    dataloader_persistent_workers dataloader_prefetch_factor dataloader_multiprocessing_context dataloader_in_order
    ddp_bucket_cap_mb ddp_broadcast_buffers ddp_backend ddp_timeout deepspeed debug skip_memory_metrics
    resume_from_checkpoint local_rank num_generations num_generations_eval shuffle_dataset pad_to_multiple_of
    generation_batch_size steps_per_generation num_iterations epsilon delta epsilon_high sapo_temperature_neg
    sapo_temperature_pos vespo_k_pos vespo_lambda_pos vespo_k_neg vespo_lambda_neg importance_sampling_level
    reward_weights multi_objective_aggregation scale_rewards loss_type mask_truncated_completions
    top_entropy_quantile entropy_coef off_policy_mask_threshold use_bias_correction_kl
    vllm_importance_sampling_correction vllm_importance_sampling_mode vllm_importance_sampling_clip_max
    vllm_importance_sampling_clip_min vllm_importance_sampling_cap log_completions num_completions_to_print
    log_unique_prompts log_completions_hub_repo ds3_gather_for_generation
""".split()

# Done to each role's model as to the one of a stock trainer: tests/test_several_models.py compares the two.
FOR_EACH_MODEL = """
    activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing gradient_checkpointing_kwargs
    use_liger_kernel liger_kernel_config use_cache neftune_noise_alpha bf16_full_eval fp16_full_eval
    model_init_kwargs trust_remote_code router_aux_loss_coef disable_dropout cast_lm_head_to_fp32 beta
""".split()

# Used when each role generates; those in ROLE_KEYS can be set for one role.
FOR_EACH_ROLE = """
    learning_rate max_completion_length temperature top_p top_k min_p generation_kwargs chat_template_kwargs
    repetition_penalty cache_implementation use_vllm vllm_mode vllm_model_impl vllm_server_base_url
    vllm_server_host vllm_server_port vllm_server_timeout vllm_group_port vllm_gpu_memory_utilization
    vllm_max_model_length vllm_tensor_parallel_size use_transformers_continuous_batching
    transformers_continuous_batching_config use_transformers_paged
""".split()

# Refused with several roles: the setting with which it is, and the message. The others of a line go with it.
REFUSED = {
    "enable_jit_checkpoint": ({"enable_jit_checkpoint": True}, "`enable_jit_checkpoint=True` saves inside a step"),
    "sync_ref_model": ({"sync_ref_model": True, "beta": 0.1}, "`sync_ref_model=True` needs `policy_sharing='shared'`"),
    "use_adaptive_entropy": ({"use_adaptive_entropy": True}, "`use_adaptive_entropy=True` is not .* `use_adaptive_en"),
    "fsdp": ({"fsdp": True, "fsdp_config": {"version": 1}}, "FSDP1 flattens .* Use FSDP2: `fsdp_version: 2`"),
    "vllm_enable_sleep_mode": (
        {"use_vllm": True, "vllm_enable_sleep_mode": True},
        "`vllm_enable_sleep_mode=True` allows only one vLLM engine per process.* Set `vllm_engine_per_role=False`",
    ),
    "vllm_structured_outputs_regex": (
        {"use_vllm": True, "vllm_structured_outputs_regex": "[ab]+", "rates": True},
        "would also be forced on the ratings",
    ),
    "ddp_find_unused_parameters": ({"ddp_find_unused_parameters": False}, "=False` does not go with DDP"),
    "ddp_static_graph": ({"ddp_static_graph": True}, "=True` does not go with DDP"),
    **{
        f"optim {name}": ({"optim": name}, f"`optim='{name}'` is not supported with several roles")
        for name in ("galore_adamw_layerwise", "apollo_adamw_layerwise", "lomo", "adalomo")
    },
    "optim schedule_free_adamw": (
        {"optim": "schedule_free_adamw"},
        "`optim='schedule_free_adamw'` does not go with `schedule='alternate'`",
    ),
}
WITH_A_REFUSED_ONE = """
    fsdp_config ref_model_mixup_alpha ref_model_sync_steps entropy_coef_min entropy_coef_max entropy_coef_delta
    entropy_target
""".split()

# Stock TRL's GRPO does not read these either, or only of what several roles refuse (images, tools).
WITHOUT_EFFECT = """
    average_tokens_across_devices label_smoothing_factor include_num_input_tokens_seen prediction_loss_only
    eval_do_concat_batches eval_use_gather_object eval_accumulation_steps include_for_metrics batch_eval_metrics
    label_names train_sampling_strategy length_column_name do_train do_eval do_predict max_tool_calling_iterations
    log_multimodal
""".split()


def test_every_field_has_its_place():
    refused = [name for name in REFUSED if " " not in name]
    placed = [*FOR_ALL, *FOR_EACH_MODEL, *FOR_EACH_ROLE, *refused, *WITH_A_REFUSED_ONE, *WITHOUT_EFFECT]
    fields = {field.name for field in dataclasses.fields(GRPOConfig)}
    assert not fields - set(placed), f"TRL has new fields: decide for each role what becomes of {fields - set(placed)}"
    assert not set(placed) - fields, f"TRL no longer has {set(placed) - fields}"
    assert len(placed) == len(set(placed))


@pytest.mark.parametrize("name", REFUSED)
def test_a_field_is_refused_by_its_name(name, model_dirs, chat_dataset, make_config, outcome, monkeypatch):
    settings, message = REFUSED[name]
    credit, settings = CounterfactualCredit(outcome), dict(settings)
    if settings.pop("rates", False):
        from ccpo import SelfEvaluatedCredit

        credit = SelfEvaluatedCredit(outcome)
    args = make_config(**settings)
    if name.startswith("ddp"):
        monkeypatch.setattr(type(args), "world_size", property(lambda self: 2))
    with pytest.raises(ValueError, match=message):
        MultiAgentGRPOTrainer(model_dirs["qwen3"], credit, args, chat_dataset)
