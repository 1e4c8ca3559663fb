"""What we lean on in TRL and transformers beyond their public API. When they move, this fails first and names it."""

import inspect

import pytest
import trl
from packaging.version import Version
from trl import GRPOTrainer

METHODS = {
    "_generate_and_score_completions": ["self", "inputs"],
    "_calculate_rewards": ["self", "inputs", "prompts", "completions", "completion_ids_list"],
    "_generate": ["self", "prompts"],
    "_generate_single_turn": [
        "self", "prompt_ids", "images", "multimodal_fields", "num_generations", "has_tool_images",
    ],
    "_tokenize_prompts": ["self", "prompts"],
    "compute_loss": ["self", "model", "inputs", "return_outputs", "num_items_in_batch"],
    "create_optimizer": ["self", "model"],
    "create_scheduler": ["self", "num_training_steps", "optimizer"],
    "_save": ["self", "output_dir", "state_dict"],
    "save_model": ["self", "output_dir", "_internal_call"],
    "_get_output_dir": ["self", "trial"],
    "_get_train_sampler": ["self", "dataset"],
    "_save_checkpoint": ["self", "model", "trial"],
    "_save_rng_state": ["self", "output_dir"],
    "_load_rng_state": ["self", "checkpoint"],
    "_load_from_checkpoint": ["self", "resume_from_checkpoint", "model"],
    "_load_optimizer_and_scheduler": ["self", "checkpoint"],
    "_load_best_model": ["self"],
    "_push_from_checkpoint": ["self", "checkpoint_folder"],
    "_finalize_training": ["self", "trial", "num_train_samples", "start_time"],
    "_determine_best_metric": ["self", "metrics", "trial"],
}  # fmt: skip
ATTRIBUTES = {
    "__init__": [
        "rollout_func", "reward_func_names", "reward_weights", "_tokenizer", "eos_token_ids", "max_completion_length",
        "num_generations", "num_generations_eval", "temperature", "top_p", "top_k", "min_p", "repetition_penalty",
        "generation_kwargs", "generation_config", "ref_model", "aux_loss_enabled", "router_aux_loss_coef",
        "scale_rewards", "num_iterations", "_step", "_metrics", "_logs", "_pending_extra_logs", "_pending_metrics",
        "_buffered_inputs",
    ],
    "_generate_and_score_completions": [
        "_calculate_rewards", "_generate", "_logs", "num_generations", "ref_model", "_pending_extra_logs",
    ],
    "_generate": ["rollout_func", "_tokenize_prompts", "_generate_single_turn", "eos_token_ids", "_tokenizer"],
    "_generate_single_turn": ["generation_config", "generation_kwargs", "eos_token_ids", "model_wrapped"],
    "_inner_training_loop": ["_tr_loss", "_total_loss_scalar", "_globalstep_last_logged", "_run_epoch"],
    "_run_epoch": ["_load_rng_state"],
    "_prepare_inputs": ["_generate_and_score_completions", "_step", "num_iterations", "_buffered_inputs"],
}  # fmt: skip
FUNCTIONS = {
    "trl.trainer.utils": [
        "add_fused_lm_head", "create_model_from_path", "disable_dropout_in_model", "get_callable_name",
        "get_config_model_id", "nanstd", "pad",
    ],
    "trl.models": ["prepare_deepspeed", "prepare_fsdp"],
    "trl.data_utils": ["is_conversational"],
}  # fmt: skip


def test_version():
    assert Version("1.16") <= Version(trl.__version__) < Version("1.17")


@pytest.mark.parametrize("name", METHODS)
def test_method_has_the_parameters_that_we_pass(name):
    assert list(inspect.signature(getattr(GRPOTrainer, name)).parameters) == METHODS[name]


@pytest.mark.parametrize("method", ATTRIBUTES)
def test_method_reads_the_attributes_that_we_swap(method):
    source = inspect.getsource(getattr(GRPOTrainer, method))
    missing = [name for name in ATTRIBUTES[method] if f"self.{name}" not in source]
    assert not missing


@pytest.mark.parametrize("module", FUNCTIONS)
def test_function_is_there(module):
    import importlib

    missing = [name for name in FUNCTIONS[module] if not hasattr(importlib.import_module(module), name)]
    assert not missing


def test_log_probability_head_is_what_the_trainer_scores_with():
    source = inspect.getsource(GRPOTrainer._get_per_token_logps_and_entropies)
    assert "fused_lm_head=True" in source and "compute_entropy" in source
