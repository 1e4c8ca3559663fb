"""
What is needed to continue a run from a checkpoint.

A run must have the same settings as the checkpoint. Some of its state is not saved by transformers and TRL, and is
saved here.
"""

import json
from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from trl import GRPOTrainer
from trl.trainer.utils import get_callable_name

from ..team.topology import Topology
from .policies import policy_of

# Arguments that decide in which order rows come, whose turn it is, and how a generation batch is split.
_SAME_ARGUMENTS = (
    "policy_sharing",
    "advantage_estimator",
    "schedule",
    "alternate_period",
    "start_role",
    "num_generations",
    "num_solves",
    "num_solos",
    "removal",
    "skip_uninformative_solos",
    "robust_alpha",
    "robust_c",
    "robust_blocks",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "steps_per_generation",
    "num_iterations",
    "shuffle_dataset",
    "seed",
)
_SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
# Training sets the special tokens to those of the tokenizer.
_NOT_THE_MODEL = ("architectures", "dtype", "transformers_version", "use_cache", *_SPECIAL_TOKENS)


def run_settings(trainer: GRPOTrainer) -> dict[str, Any]:
    """The settings, by name, that a run must have in common with the checkpoint that it continues."""
    accelerator, dataset = trainer.accelerator, trainer.train_dataset
    backend = str(accelerator.distributed_type.value)
    if trainer.is_deepspeed_enabled:
        backend = f"{backend} ZeRO-{accelerator.state.deepspeed_plugin.zero_stage}"
    elif trainer.is_fsdp_enabled:
        backend = f"{backend}{accelerator.state.fsdp_plugin.fsdp_version}"
    return {
        **_team_settings(trainer.topology),
        "agents": list(trainer.agents),
        "trained agents": list(trainer.trained_agents),
        "role_rewards": {
            role: [[get_callable_name(function), weight] for function, weight in pairs]
            for role, pairs in trainer._role_rewards.items()
        },
        "credit": trainer._credit,
        "world_size": accelerator.num_processes,
        "backend": backend,
        "train_dataset rows": len(dataset) if hasattr(dataset, "__len__") else None,
        "reward_funcs": list(trainer.reward_func_names),
        **{
            f"{agent}'s {key}": value
            for agent in trainer.agents
            for key, value in _model_settings(trainer, agent).items()
        },
        **{name: getattr(trainer.args, name) for name in _SAME_ARGUMENTS},
    }


def _team_settings(topology: Topology) -> dict[str, Any]:
    """The settings of a team, one by one, so that a message can name the one that differs."""
    names = ("reads", "agent", "branches", "judged", "states_answer")
    return {
        "topology": topology.kind,
        "roles": list(topology.role_names),
        "answer": topology.answer,
        "answer_roles": list(topology.answer_roles),
        **{f"{role.name}'s {name}": getattr(role, name) for role in topology.roles for name in names},
        **topology.prompts,
    }


def _model_settings(trainer: GRPOTrainer, agent: str) -> dict[str, Any]:
    """The configuration of an agent's model and adapter, without the place from which they were loaded."""
    model = policy_of(trainer.accelerator.unwrap_model(trainer.model), agent)
    settings = json.loads(model.config.to_json_string(use_diff=False))
    settings = {key: value for key, value in settings.items() if key not in _NOT_THE_MODEL and key[0] != "_"}
    adapters = getattr(model, "peft_config", {})
    adapter = adapters.get(agent, adapters.get("default"))
    adapter = adapter.to_dict() if adapter is not None else {}
    tokenizer = getattr(trainer.tokenizers[agent], "tokenizer", trainer.tokenizers[agent])  # that of a processor
    settings["tokenizer"] = {name: getattr(tokenizer, name) for name in _SPECIAL_TOKENS} | {"tokens": len(tokenizer)}
    settings["adapter"] = {
        key: sorted(value) if isinstance(value, set) else value
        for key, value in adapter.items()
        if key not in ("inference_mode", "revision", "peft_version")
    }
    return settings


def run_state(trainer: GRPOTrainer) -> dict[str, Any]:
    """
    The state of this process that `Trainer` and TRL do not save.

    It is the place in the generation batch and in the schedule, the texts that are still to be trained on, metrics and
    losses that are not logged yet, and the state of the credit schemes.
    """
    batch = trainer.args.steps_per_generation * trainer.num_iterations
    groups, moments = trainer.optimizer.param_groups, trainer.optimizer.state
    return {
        "agents_with_moments": sorted(
            {g.get("agent") or "" for g in groups if any(p in moments for p in g["params"])}
        ),
        "step": trainer._step,
        "buffered_inputs": trainer._buffered_inputs if trainer._step % batch else None,  # `None`: all were used
        "metrics": _plain(trainer._metrics),
        "logs": _plain({name: values for name, values in trainer._logs.items() if name != "images"}),
        "loss": trainer._tr_loss.item(),
        "last_logged_step": trainer._globalstep_last_logged,
        "allocators": [allocator.state_dict() for allocator in trainer.allocators],
    }


def load_run_state(trainer: GRPOTrainer, state: dict[str, Any]) -> None:
    """Restore what [`run_state`] returned, after the training loop has been set up."""
    trainer._step, batches, device = state["step"], state["buffered_inputs"], trainer.accelerator.device
    trainer._buffered_inputs = batches and [
        {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
        for batch in batches
    ]
    for mode, metrics in state["metrics"].items():
        for name, values in metrics.items():
            trainer._metrics[mode][name] = values
    for name, values in state["logs"].items():
        if isinstance(values, dict):
            for column, rows in values.items():
                trainer._logs[name][column].extend(rows)
        else:
            trainer._logs[name].extend(values)
    trainer._tr_loss += state["loss"]  # the loss of steps before the checkpoint that is not logged yet
    trainer._total_loss_scalar -= state["loss"]  # `train_loss` counts only the steps of this call
    trainer._globalstep_last_logged = state["last_logged_step"]
    for allocator, values in zip(trainer.allocators, state["allocators"], strict=True):
        allocator.load_state_dict(values)


def _plain(value: Any) -> Any:
    """Turn a value into containers and scalars that `torch.load(weights_only=True)` reads; other objects into text."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | deque):
        return [_plain(item) for item in value]
    if value is None or type(value) in (bool, int, float, str):
        return value
    return value.item() if hasattr(value, "item") else str(value)
