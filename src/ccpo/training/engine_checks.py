"""Checks of generation settings and of vLLM's engines, before a model loads."""

import os
from typing import Any

from transformers import AutoConfig
from trl.trainer.utils import get_config_model_id

from ..rewards import CreditAllocator
from ..team.topology import Topology
from .config import MultiAgentGRPOConfig
from .engines import engine_settings, has_engine_per_agent
from .sampling_mixin import stops_of


def check_drawing(args: MultiAgentGRPOConfig, topology: Topology) -> None:
    """Raise a `ValueError` if prefix caching or stop strings are used with a setting that does not support them."""
    plugin = args.deepspeed_plugin  # from `args.deepspeed` or from `accelerate launch`
    sharded = args.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    for field, wrong, why in (
        (
            "gradient_checkpointing=True",
            args.gradient_checkpointing,
            "does not keep the keys and values that the cache needs",
        ),
        (
            "ZeRO-3",
            plugin is not None and plugin.zero_stage == 3,
            "gathers the weights in every pass, and caching adds passes",
        ),
        ("FSDP", sharded, "gathers the weights in every pass, and caching adds passes"),
    ):
        if args.prefix_caching and wrong:
            raise ValueError(
                f"`prefix_caching=True` does not work with {field}, which {why}. Set `prefix_caching=False`, "
                "or switch the other off."
            )
    for role in topology.role_names if args.use_transformers_continuous_batching else ():
        if stops := stops_of(args.for_role(role, "generation_kwargs", topology.agent_of(role))):
            raise ValueError(
                f"`generation_kwargs` of role {role!r} has the stop strings {list(stops)}, which "
                "transformers' continuous batching does not support. Leave them out, or set "
                "`use_transformers_continuous_batching` to False."
            )


def check_engines(
    models: dict[str, Any],
    args: MultiAgentGRPOConfig,
    topology: Topology,
    allocators: list[CreditAllocator],
    peft_config: Any,
) -> None:
    """Raise a `ValueError` if the vLLM engines cannot be built, or if two agents would use the same server."""
    agents = topology.agents
    for agent, model in models.items():
        if not isinstance(model, str) and not get_config_model_id(model.config):
            raise ValueError(
                f"`use_vllm=True` needs an id or a folder from which vLLM loads the model of agent {agent!r}, "
                "but the model was made in memory. Save it with save_pretrained and pass the folder, or set "
                "`use_vllm=False`."
            )
    given = {name: [key for key in keys if key.startswith("vllm_")] for name, keys in (args.role_kwargs or {}).items()}
    if not has_engine_per_agent(args, agents) and any(given.values()):
        raise ValueError(
            f"`role_kwargs` sets {given}, but all agents use one vLLM engine. Set the common arguments "
            "instead, or use `policy_sharing='separate'` and `vllm_engine_per_role=True`."
        )
    if args.vllm_structured_outputs_regex is not None and any(
        a.evidence(topology, topology.role_names).ratings for a in allocators
    ):
        raise ValueError(
            f"`vllm_structured_outputs_regex={args.vllm_structured_outputs_regex!r}` would also be forced on "
            "the ratings (in which roles judge each other). Leave it out, or use a credit without ratings."
        )
    if args.policy_sharing == "adapters" and getattr(peft_config, "modules_to_save", None):
        raise ValueError(
            f"`use_vllm=True` cannot load `modules_to_save={peft_config.modules_to_save}` of several adapters "
            "into vLLM. Set it to None, or use `policy_sharing='separate'`."
        )
    if has_engine_per_agent(args, agents):
        if args.vllm_mode == "colocate" and args.vllm_enable_sleep_mode:
            raise ValueError(
                "`vllm_enable_sleep_mode=True` allows only one vLLM engine per process, but every agent has "
                "one. Set `vllm_engine_per_role=False` or `vllm_enable_sleep_mode=False`."
            )
        settings = {agent: engine_settings(args, agent, topology) for agent in agents}
        shares = {agent: values["vllm_gpu_memory_utilization"] for agent, values in settings.items()}
        if args.vllm_mode == "colocate" and sum(shares.values()) > 1:
            raise ValueError(
                f"`vllm_gpu_memory_utilization` of the agents' engines is {shares}. Together this is more "
                "than the whole GPU. Lower the values in `role_kwargs`, or leave them out to share "
                "`vllm_gpu_memory_utilization` equally."
            )
        dialled = {
            agent: values["vllm_server_base_url"]
            or f"http://{values['vllm_server_host']}:{values['vllm_server_port']}"
            for agent, values in settings.items()
        }
        ports = {agent: values["vllm_group_port"] for agent, values in settings.items()}
        for what, values in (("server", dialled), ("group port (`vllm_group_port`)", ports)):
            if args.vllm_mode == "server" and len(set(values.values())) < len(agents):
                raise ValueError(
                    f"`vllm_mode='server'` needs a different {what} for each agent, got {values}. Set them in "
                    "`role_kwargs`, or set `vllm_engine_per_role=False`."
                )
    elif args.policy_sharing == "separate":
        configs = {agent: _engine_config(model, args) for agent, model in models.items()}
        first = configs[agents[0]]
        for agent, config in configs.items():
            if differ := [name for name in first if first[name] != config.get(name)]:
                raise ValueError(
                    "`vllm_engine_per_role=False` loads each agent's weights into one engine in turn, but "
                    f"the models of {agents[0]!r} and {agent!r} differ in {differ}. Set "
                    "`vllm_engine_per_role=True`."
                )


def _engine_config(model: Any, args: MultiAgentGRPOConfig) -> dict[str, Any]:
    """The parts of a model's configuration on which the structure of an engine depends."""
    if isinstance(model, str):
        revision = (args.model_init_kwargs or {}).get("revision")
        model = AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=args.trust_remote_code)
    config = getattr(model, "config", model)
    ignored = ("_name_or_path", "name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache")
    return {name: value for name, value in config.to_dict().items() if name not in ignored}
