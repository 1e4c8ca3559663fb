"""
vLLM engines for several agents, built with TRL's `VLLMGeneration`.

This module decides which agent uses which engine, and when an engine gets new weights.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from trl.trainer import grpo_trainer

from ..team.topology import Topology

if TYPE_CHECKING:
    from trl.generation.vllm_generation import VLLMGeneration

logger = logging.getLogger(__name__)

MAX_SEQUENCES = 1024
SERVER_KEYS = ("vllm_server_base_url", "vllm_server_host", "vllm_server_port", "vllm_group_port")


def has_engine_per_agent(args: Any, agents: tuple[str, ...]) -> bool:
    """Whether each agent has its own engine. If not, all agents take turns in one."""
    return len(agents) > 1 and args.policy_sharing == "separate" and args.vllm_engine_per_role


def engine_settings(args: Any, agent: str, topology: Topology) -> dict[str, Any]:
    """
    The settings that belong to one agent's engine: its server and ports, or its share of the GPU's memory.

    `vllm_gpu_memory_utilization` is for all engines together. Each gets an equal part unless `role_kwargs` says
    otherwise.
    """
    names = (*SERVER_KEYS, "vllm_gpu_memory_utilization")
    own = {name: args.for_agent(agent, topology.roles_of(agent), name) for name in names}
    common = {name: getattr(args, name) for name in SERVER_KEYS}
    common["vllm_gpu_memory_utilization"] = args.vllm_gpu_memory_utilization / len(topology.agents)
    return {name: common[name] if value is None else value for name, value in own.items()}


def engine_kwargs(args: Any, agent: str, topology: Topology, calls: dict[str, int]) -> dict[str, Any]:
    """
    The arguments of `VLLMGeneration` in which an agent's engine differs from TRL's, which has the rows of one role.

    `calls` maps each agent to the number of texts for each row in its largest call.
    """
    own = has_engine_per_agent(args, topology.agents)
    settings = engine_settings(args, agent, topology) if own else {}
    rows = args.per_device_train_batch_size * args.vllm_tensor_parallel_size * args.steps_per_generation  # as in TRL
    texts = calls[agent] if own else max(calls.values())
    settings = {name.removeprefix("vllm_"): value for name, value in settings.items()}
    # vLLM reserves memory by this number. It has at most 4096 tokens in a batch, and further texts wait.
    return settings | {"max_num_seqs": max(rows, min(rows * texts, MAX_SEQUENCES))}


def texts_in_a_call(topology: Topology, args: Any) -> dict[str, int]:
    """
    Maps each agent to the number of texts for each row in its largest call.

    A call has the texts of roles that write at the same time, with passes without a role and ratings. If all agents
    share a policy, it has the texts of all of them.
    """
    branches, names = topology.branches(args.num_solves), topology.role_names
    size = {name: math.prod(branches[: i + 1]) for i, name in enumerate(names)}
    group = args.num_generations
    passes = 0
    if topology.is_chain and len(names) > 1:
        passes = -(-(args.num_solos or group) // group) if args.removal == "prompt" else args.num_solos or 1
    texts: dict[str, int] = {}
    shared = args.policy_sharing == "shared"
    for agent in topology.agents:
        roles = names if shared else topology.roles_of(agent)
        levels = {topology.levels[name] for name in roles}
        # A call also has the texts that a role writes without each of the roles before it.
        removed = {
            name: passes * len([k for k in names[: names.index(name)] if topology.removable(k)]) for name in roles
        }
        largest = max(
            sum(size[name] + removed[name] for name in roles if topology.levels[name] == level) for level in levels
        )
        texts[agent] = max(largest, size[names[-1]] * len(roles) if topology.is_chain else 0)
    return texts


@contextmanager
def as_first_engine(topology: Topology, args: Any) -> Iterator[None]:
    """Let TRL build its engine with the arguments of the first agent, within this context."""
    build = grpo_trainer.VLLMGeneration
    if not topology.is_solo:
        calls = texts_in_a_call(topology, args)
        grpo_trainer.VLLMGeneration = lambda **kwargs: build(
            **{**kwargs, **engine_kwargs(args, topology.agents[0], topology, calls)}
        )
    try:
        yield
    finally:
        grpo_trainer.VLLMGeneration = build


class AgentEngines:
    """
    The engines of all agents, and which agent's weights each engine has.

    Weights are pushed to an engine when an agent is about to generate and the engine has older weights, or those of
    another agent.

    Args:
        first (`VLLMGeneration`): The engine of the first agent, which TRL has built.
        topology ([`Topology`]): The team.
        args ([`MultiAgentGRPOConfig`]): Says how engines are shared.
        tokenizers (`dict[str, PreTrainedTokenizerBase]`): Maps each agent to its tokenizer.
        policy (`Callable[[str], nn.Module]`): Returns the current model of an agent.
        is_main_process (`bool`): Whether this process logs warnings.

    Attributes:
        pushes (`dict[str, int]`): Maps each agent to the number of times its weights were pushed.
    """

    def __init__(
        self,
        first: VLLMGeneration,
        topology: Topology,
        args: Any,
        tokenizers: dict[str, Any],
        policy: Callable[[str], nn.Module],
        is_main_process: bool,
    ):
        self.args, self.topology, self.tokenizers, self.policy = args, topology, tokenizers, policy
        self.agents = topology.agents
        self.pushes = dict.fromkeys(self.agents, 0)
        self._changed = set(self.agents)  # agents whose weights have changed since they were pushed
        self._held: dict[int, str] = {}  # maps each engine to the agent whose weights it has
        self.engines = dict.fromkeys(self.agents, first)
        if has_engine_per_agent(args, self.agents):
            calls = texts_in_a_call(topology, args)
            for agent in self.agents[1:]:
                self.engines[agent] = self._build_like(first, agent, calls)
                if is_main_process:
                    self._check_log_probs(agent)
        elif args.vllm_mode == "server" and args.policy_sharing == "separate":
            dtypes = {agent: str(policy(agent).dtype) for agent in self.agents}
            if len(set(dtypes.values())) > 1:
                raise ValueError(
                    "`vllm_engine_per_role=False` sends each agent's weights to one server, in one dtype, "
                    f"but the models have {dtypes}. Load them in the same dtype."
                )

    def _build_like(self, first: VLLMGeneration, agent: str, calls: dict[str, int]) -> VLLMGeneration:
        """Build an engine with the arguments of the first one, except for those that belong to this agent."""
        kwargs = {name: getattr(first, name) for name in inspect.signature(type(first)).parameters}
        kwargs |= {"model": self.policy(agent), "processing_class": self.tokenizers[agent]}
        return type(first)(**kwargs | engine_kwargs(self.args, agent, self.topology, calls))

    def _check_log_probs(self, agent: str) -> None:
        """Warn if an agent's server returns log-probabilities of another distribution, as TRL does for its server."""
        if self.args.vllm_mode == "server" and self.args.vllm_importance_sampling_correction:
            mode = self.engines[agent].vllm_client.get_server_info()["model_config"]["logprobs_mode"]
            if mode != "processed_logprobs":
                logger.warning(
                    "The vLLM server of agent %r runs with `--logprobs-mode %s`, which makes the importance "
                    "sampling correction wrong. Restart it with `--logprobs-mode processed_logprobs`, or set "
                    "`vllm_importance_sampling_correction=False`.",
                    agent,
                    mode,
                )

    def mark_changed(self, agents: set[str] | None = None) -> None:
        """Note that an optimizer step changes the weights of these agents, by default of all."""
        self._changed |= set(self.agents) if agents is None or self.args.policy_sharing == "shared" else agents

    def prepare(self, agent: str, settings: dict[str, Any]) -> VLLMGeneration:
        """Return the agent's engine with the sampling `settings` of a role and the newest weights."""
        engine, shared = self.engines[agent], self.args.policy_sharing == "shared"
        engine.model, engine.processing_class = self.policy(agent), self.tokenizers[agent]
        vars(engine).update(settings)
        owner = self.agents[0] if shared else agent
        asleep = getattr(engine, "_llm_weights_sleeping", False)  # it has no weights then
        if asleep or self._held.get(id(engine)) != owner or owner in self._changed:
            plays_base = self.args.policy_sharing == "adapters" and agent not in engine.model.peft_config
            with (_base_alone if plays_base else _base_kept)(engine.model):
                engine.sync_weights()
            self.pushes[owner] += 1
            self._held[id(engine)] = owner
            self._changed.discard(owner)
        return engine


@contextmanager
def _base_alone(model: PeftModel) -> Iterator[None]:
    """Let TRL push the base without an adapter: within this context, PEFT adds no adapter to it."""
    vars(model).update(dict.fromkeys(("merge_adapter", "unmerge_adapter"), lambda: None))
    try:
        yield
    finally:
        del model.merge_adapter, model.unmerge_adapter


@contextmanager
def _base_kept(model: nn.Module) -> Iterator[None]:
    """
    Restore the base of an adapter exactly after a push.

    To push, TRL lets PEFT add the adapter to the base and subtract it again, which leaves rounding errors. So a copy
    of these layers is kept in the CPU's memory meanwhile. With ZeRO-3 this is not needed, because PEFT works on
    gathered copies, which are thrown away.
    """
    kept = []
    if isinstance(model, PeftModel):
        bases = [layer.get_base_layer() for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
        for parameter in {id(p): p for base in bases for p in base.parameters(recurse=False)}.values():
            if parameter.is_floating_point() and not hasattr(parameter, "ds_tensor"):
                kept.append((parameter, parameter.detach().to("cpu", copy=True)))
    yield
    for parameter, values in kept:
        parameter.data.copy_(values)
