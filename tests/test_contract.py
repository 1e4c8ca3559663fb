"""
What we lean on in TRL, transformers, accelerate and DeepSpeed beyond their public API. When they move, this fails
first, and names what moved and where we use it. docs/architecture.md says why we lean on it.
"""

import ast
import importlib.util
import inspect
import re
from pathlib import Path

import pytest
import trl
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from packaging.version import Version
from transformers import Trainer, modeling_utils
from transformers.cache_utils import DynamicCache
from trl import GRPOTrainer
from trl.generation.vllm_generation import VLLMGeneration
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer import grpo_trainer
from trl.trainer.utils import RepeatSampler

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
    "_run_epoch": [
        "self", "model", "epoch", "train_dataloader", "steps_in_epoch", "num_update_steps_per_epoch", "trial",
        "ignore_keys_for_eval", "start_time", "resume_from_checkpoint", "epochs_trained",
        "steps_trained_in_current_epoch",
    ],
    "_save_checkpoint": ["self", "model", "trial"],
    "_save_rng_state": ["self", "output_dir"],
    "_load_rng_state": ["self", "checkpoint"],
    "_load_from_checkpoint": ["self", "resume_from_checkpoint", "model"],
    "_load_optimizer_and_scheduler": ["self", "checkpoint"],
    "_load_best_model": ["self"],
    "_push_from_checkpoint": ["self", "checkpoint_folder"],
    "_finalize_training": ["self", "trial", "num_train_samples", "start_time"],
    "_determine_best_metric": ["self", "metrics", "trial"],
    "create_accelerator_and_postprocess": ["self"],
    "train": ["self", "resume_from_checkpoint", "trial", "ignore_keys_for_eval"],
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
    "_save_checkpoint": ["create_model_card"],
    "_inner_training_loop": ["_tr_loss", "_total_loss_scalar", "_globalstep_last_logged", "_run_epoch"],
    "_run_epoch": ["_load_rng_state"],
    "_prepare_inputs": ["_generate_and_score_completions", "_step", "num_iterations", "_buffered_inputs"],
}  # fmt: skip
FUNCTIONS = {
    "trl.trainer": ["grpo_trainer"],
    "trl.trainer.utils": [
        "create_model_from_path", "disable_dropout_in_model", "get_callable_name", "get_config_model_id", "nanstd",
        "use_adapter",
    ],
    "trl.data_utils": ["is_conversational"],
    "trl.generation.vllm_generation": ["VLLMGeneration"],
    "transformers.utils": ["cached_file", "logging"],
    "transformers.trainer_pt_utils": ["AcceleratorConfig"],
    "transformers.utils.notebook": ["NotebookProgressCallback"],
    "transformers.utils.peft_utils": ["find_adapter_config_file"],
    "transformers.trainer_utils": ["PREFIX_CHECKPOINT_DIR", "TrainerMemoryTracker", "sort_checkpoints"],
    "transformers.trainer": ["DEFAULT_PROGRESS_CALLBACK", "TRAINER_STATE_NAME", "TRAINING_ARGS_NAME"],
    "transformers.trainer_callback": ["CallbackHandler"],
    "transformers.cache_utils": ["DynamicCache", "DynamicLayer", "DynamicSlidingWindowLayer"],
    "transformers.generation": ["GenerationMode"],
    "transformers.integrations": ["deepspeed"],
    "transformers.integrations.deepspeed": ["_hf_deepspeed_config_weak_ref", "unset_hf_deepspeed_config"],
    "accelerate.state": ["AcceleratorState"],
    "accelerate.commands": ["launch"],
    "accelerate.commands.launch": ["launch_command_parser", "default_config_file", "simple_launcher"],
    "accelerate.utils.launch": ["prepare_simple_launcher_cmd_env"],
    "peft.tuners.tuners_utils": ["BaseTunerLayer"],
}  # fmt: skip
PUBLIC = ("accelerate.utils", "datasets.exceptions", "vllm.lora.request")  # documented, though below the root
ROOT = Path(__file__).parents[1]
SOURCES = {path: path.read_text() for path in (ROOT / "src" / "ccpo").rglob("*.py")}


def users_of(name: str) -> str:
    """Where we use it."""
    files = [str(path.relative_to(ROOT)) for path, text in SOURCES.items() if re.search(rf"\b{name}\b", text)]
    return f"we use it in {', '.join(sorted(files)) or 'no file'}"


def test_nothing_that_we_lean_on_is_missing_here():
    """Every method of TRL's that we call through `super()`, every import from below a package's root."""
    for path, text in SOURCES.items():
        for node in ast.walk(ast.parse(text)):
            module = getattr(node, "module", None) or ""
            if module not in PUBLIC and re.match(r"(trl|transformers|peft|accelerate|datasets|vllm)\.", module):
                unlisted = [each.name for each in node.names if each.name not in FUNCTIONS.get(module, [])]
                assert not unlisted, f"{path} imports {unlisted} from {module}"
        if path.parent.name == "training":
            unlisted = {name for name in re.findall(r"super\(\)\.(_[a-z]\w*)", text) if name not in METHODS}
            assert not unlisted, f"{path} calls {unlisted} through super()"


def test_the_page_on_architecture_says_why():
    section = (ROOT / "docs" / "architecture.md").read_text().partition("## What it leans on")[2].partition("\n## ")[0]
    names = {*METHODS, *sum(ATTRIBUTES.values(), []), *sum(FUNCTIONS.values(), [])}
    missing = sorted(name for name in names if f"`{name}`" not in section)
    assert not missing, f"not in the section: {missing}"


def test_version():
    assert Version("1.16") <= Version(trl.__version__) < Version("1.17")


@pytest.mark.parametrize("name", METHODS)
def test_method_has_the_parameters_that_we_pass(name):
    assert hasattr(GRPOTrainer, name), f"GRPOTrainer.{name} is gone: {users_of(name)}"
    found = list(inspect.signature(getattr(GRPOTrainer, name)).parameters)
    assert found == METHODS[name], f"GRPOTrainer.{name} has other parameters: {users_of(name)}"


@pytest.mark.parametrize("method", ATTRIBUTES)
def test_method_reads_the_attributes_that_we_swap(method):
    source = inspect.getsource(getattr(GRPOTrainer, method))
    missing = {name: users_of(name) for name in ATTRIBUTES[method] if f"self.{name}" not in source}
    assert not missing, f"GRPOTrainer.{method} reads these no more: {missing}"


@pytest.mark.parametrize("module", FUNCTIONS)
def test_function_is_there(module):
    if module.endswith(".notebook"):
        pytest.importorskip("IPython")

    def is_there(name):
        return hasattr(importlib.import_module(module), name) or importlib.util.find_spec(f"{module}.{name}")

    missing = {name: users_of(name) for name in FUNCTIONS[module] if not is_there(name)}
    assert not missing, f"{module} has these no more: {missing}"


def test_checkpointing_is_switched_on_by_one_of_two_names():
    """transformers 5.23 renamed it, for what it is about: activations. TRL 1.16 calls the older name."""
    model, trainer = inspect.getsource(modeling_utils), inspect.getsource(Trainer.train)
    new = "activation_checkpointing_enable" in model
    assert new or "gradient_checkpointing_enable" in model
    assert f"self.model.{'activation' if new else 'gradient'}_checkpointing_enable(" in trainer
    assert "model.gradient_checkpointing_enable(" in inspect.getsource(disable_gradient_checkpointing)


def test_gradients_are_kept_in_step_by_hand_under_deepspeed():
    assert list(inspect.signature(GradientState._set_sync_gradients).parameters) == ["self", "sync_gradients"]
    backward = inspect.getsource(Accelerator.backward)
    assert "self.deepspeed_engine_wrapped.backward(loss, sync_gradients=self.sync_gradients, **kwargs)" in backward
    assert "scale_wrt_gas" in inspect.getsource(Trainer.training_step)


def test_the_precision_of_a_process_can_be_forgotten():
    assert callable(AcceleratorState._reset_state), users_of("_reset_state")


def test_a_cache_says_what_its_layers_are():
    assert [type(layer).__name__ for layer in DynamicCache().layers] == []
    assert "layers" in inspect.getsource(DynamicCache.__init__)


def test_the_reference_of_an_adapter_that_there_was_is_a_copy_of_it():
    """`StartReference` stands for TRL's "ref" where several agents have one; a `ref_model` goes before it."""
    assert 'model.add_adapter("ref", default_config)' in inspect.getsource(GRPOTrainer.__init__)
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    own, other = "if self.ref_model is not None:", 'adapter_name="ref" if "ref" in model.peft_config else None'
    assert source.index(own) < source.index(other)


def test_a_policy_is_made_ready_in_what_a_setup_runs():
    """`PolicySetup` is a trainer without an accelerator of its own, whose `train` stops where training would begin."""
    source = inspect.getsource(Trainer.create_accelerator_and_postprocess)
    own = ("accelerator", "gather_function", "is_deepspeed_enabled", "is_fsdp_enabled")
    assert sorted(set(re.findall(r"self\.(\w+) = ", source))) == sorted(own)
    source = inspect.getsource(Trainer.train)
    start = source.index("self._inner_training_loop")
    for step in (
        "apply_liger_kernel(",
        "_checkpointing_enable(",
        "align_special_tokens(",
        "activate_neftune(",
    ):
        assert source.index(step) < start
    assert "self.neftune_hook_handle = " in source


def test_log_probability_head_is_what_the_trainer_scores_with():
    source = inspect.getsource(GRPOTrainer._get_per_token_logps_and_entropies)
    assert "fused_lm_head=True" in source and "compute_entropy" in source


def test_engine_keeps_its_arguments_and_reads_them_when_it_generates():
    """`AgentEngines` builds an engine like another from these, and sets the role's before it generates."""
    init, generate = inspect.getsource(VLLMGeneration.__init__), inspect.getsource(VLLMGeneration.generate)
    names = list(inspect.signature(VLLMGeneration).parameters)
    assert not [name for name in names if f"self.{name} = {name}" not in init and name != "generation_kwargs"]
    for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_completion_length"):
        assert f"self.{name}" in generate
    assert "self.generation_kwargs" in generate and "_llm_weights_sleeping" in generate
    init = inspect.getsource(GRPOTrainer.__init__)  # `as_first_engine` takes the place of the name that it calls
    assert "self.vllm_generation = VLLMGeneration(" in init and GRPOTrainer.__init__.__globals__ is vars(grpo_trainer)
    source = inspect.getsource(GRPOTrainer._generate_single_turn)
    assert "self.state.global_step != self._last_loaded_step" in source and "self.vllm_generation.generate" in source


def test_checkpoint_is_saved_in_the_order_that_we_rest_on():
    """Models, RNG state (ours with it), the Trainer's state, the push, and only then the deletion of old ones."""
    source = inspect.getsource(Trainer._save_checkpoint)
    steps = ("save_model(", "_save_rng_state(", "save_to_json(", "_push_from_checkpoint(", "rotate_checkpoints(")
    places = [source.index(step) for step in steps]
    assert places == sorted(places)


def test_sampler_draws_each_epoch_from_one_generator():
    sampler = RepeatSampler(range(9), mini_repeat_count=1, seed=0)
    assert list(sampler) != list(sampler)
    assert hasattr(sampler, "generator")


def test_zero3_has_what_we_reset():
    """Its gradients, and the order in which it fetches weights."""
    zero = pytest.importorskip("deepspeed.runtime.zero")
    source = inspect.getsource(zero.stage3)
    assert "grad_partitions_flat_buffer" in source and "self.parameter_offload = " in source
    assert "self.param_coordinator = " in inspect.getsource(zero.parameter_offload.DeepSpeedZeRoOffload)
    coordinator = zero.partitioned_param_coordinator.PartitionedParameterCoordinator
    assert hasattr(coordinator, "is_invalid_trace") and hasattr(coordinator, "_invalidate_trace")


def test_models_name_their_tied_weights_and_their_sharding():
    from transformers.distributed import fsdp

    assert "all_tied_weights_keys" in inspect.getsource(modeling_utils)
    assert "_is_fsdp_managed_module" in inspect.getsource(fsdp.is_fsdp_managed_module)
