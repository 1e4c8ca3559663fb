"""Find the model of each agent, where it starts from, and which agents are trained."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftConfig
from torch import nn
from trl.trainer.utils import get_config_model_id

from ..generation.bases import find_base
from ..team.topology import Topology
from .config import MultiAgentGRPOConfig
from .credit_checks import check_role_kwargs
from .starts import Start, config_of_fresh, load_start, read_starts, weights_of


@dataclass(frozen=True)
class AgentModels:
    """
    The model from which each agent starts, and how TRL builds it.

    Attributes:
        topology ([`Topology`]): The team.
        args ([`MultiAgentGRPOConfig`]): The configuration.
        models (`dict[str, Any]`):
            Maps each agent to an id, a folder or an object. For a saved adapter it is the base of the adapter.
        starts (`dict[str, Start]`): Maps each agent that starts from an adapter to it.
        tokenizers (`dict[str, str]`): Maps agents whose folder names a base to that folder, which has their tokenizer.
        frozen (`tuple[str, ...]`): The agents that play and are never updated.
        given (`PeftConfig`, *optional*): `peft_config` as given to the trainer.
        peft_config (`PeftConfig`, *optional*):
            The configuration of new adapters. If none was given and agents share a base, it is that of saved adapters.
        quantization_config (*optional*): As in TRL.
    """

    topology: Topology
    args: MultiAgentGRPOConfig
    models: dict[str, Any]
    starts: dict[str, Start]
    tokenizers: dict[str, str]
    frozen: tuple[str, ...]
    given: PeftConfig | None
    peft_config: PeftConfig | None
    quantization_config: Any

    @property
    def trained(self) -> tuple[str, ...]:
        """The agents that are trained, in the order of the topology."""
        return tuple(agent for agent in self.topology.agents if agent not in self.frozen)

    def _start_of(self, agent: str) -> Start | None:
        """The adapter from which TRL builds the agent's model. On a common base it is that of an object, or any."""
        if self.args.policy_sharing == "separate":
            return self.starts.get(agent)
        starts = sorted(self.starts.values(), key=lambda start: isinstance(start.source, str))
        return next(iter(starts), None)

    def source(self, agent: str) -> dict[str, Any]:
        """
        The arguments `model`, `peft_config` and `quantization_config` of [`~trl.GRPOTrainer`] for an agent.

        A saved adapter is loaded on its base and passed as an object, as TRL expects it. If several agents have the
        same object, it is copied for all but the first.
        """
        model, first = self.models[agent], self.topology.agents[0]
        copied = agent != first and model is self.models[first] and isinstance(model, nn.Module)
        start = self._start_of(agent)
        if start is not None:
            if copied:
                start = Start(start.base, start.config, copy.deepcopy(start.source), start.name)
            model = load_start(start, self.args, self.quantization_config, self.given)
            return {"model": model, "peft_config": None, "quantization_config": None}
        plays_whole = agent in self.frozen and self.args.policy_sharing == "separate"
        return {
            "model": copy.deepcopy(model) if copied else model,
            "peft_config": None if plays_whole else copy.deepcopy(self.peft_config),  # PEFT writes a name into it
            "quantization_config": self.quantization_config,
        }

    def settings(self, agent: str) -> dict[str, Any]:
        """The arguments with which TRL builds an agent's model, as far as they differ from the common ones."""
        role = self.topology.roles_of(agent)[0]  # all roles of an agent sample at one temperature
        own: dict[str, Any] = {"temperature": self.args.for_role(role, "temperature", agent)}
        if self._start_of(agent) is not None:
            own["model_init_kwargs"] = None  # the model is already loaded
        if agent in self.frozen and self.args.policy_sharing == "separate":
            own["beta"] = 0.0  # without a loss it needs no reference model
        return own

    def saved_adapters(self) -> dict[str, tuple[PeftConfig, dict[str, torch.Tensor]]]:
        """The configuration and weights of the adapters from which agents on a common base start."""
        if self.args.policy_sharing != "adapters":
            return {}
        return {agent: (start.config, weights_of(start)) for agent, start in self.starts.items()}

    def origins(self) -> dict[str, str | None]:
        """Maps each agent to the place from which its model comes; `None` for an object without one."""
        names = {
            agent: model if isinstance(model, str) else get_config_model_id(model.config) or None
            for agent, model in self.models.items()
        }
        return names | {agent: start.origin for agent, start in self.starts.items()}


def read_models(
    model: Any, args: MultiAgentGRPOConfig, topology: Topology, peft_config: Any, quantization_config: Any
) -> AgentModels:
    """
    Read the trainer's argument `model` and what belongs to it, without loading a model.

    Args:
        model (`str`, `PreTrainedModel`, `PeftModel` or `dict` of them):
            One model for all agents, or a mapping from agents to models.
        args ([`MultiAgentGRPOConfig`]): The configuration.
        topology ([`Topology`]): The team.
        peft_config (`PeftConfig`, *optional*), quantization_config (*optional*): As in TRL.

    Raises:
        `ValueError`: If models are missing or too many, if adapters do not fit together, or if an agent cannot be
            frozen.
    """
    check_role_kwargs(args, topology)
    saved = models_by_agent(model, args.policy_sharing, topology)
    models = {agent: find_base(of_agent) for agent, of_agent in saved.items()}
    tokenizers = {agent: saved[agent] for agent, base in models.items() if base is not saved[agent]}
    starts = {}
    if not topology.is_solo or isinstance(model, str):  # with one role, TRL handles an object itself
        starts = read_starts(models, args.policy_sharing, peft_config)
    frozen = find_frozen(models, starts, topology, args, peft_config)
    fresh = [agent for agent in topology.agents if agent not in starts and agent not in frozen]
    own = peft_config
    if own is None and args.policy_sharing == "adapters":
        own = config_of_fresh(starts, fresh)
    bases = {agent: starts[agent].base if isinstance(m, str) and agent in starts else m for agent, m in models.items()}
    return AgentModels(topology, args, bases, starts, tokenizers, frozen, peft_config, own, quantization_config)


def models_by_agent(model: Any, sharing: str, topology: Topology) -> dict[str, Any]:
    """
    Map each agent to its model, an id or an object as given.

    Args:
        model (`str`, `PreTrainedModel` or `dict`): One model for all agents, or a mapping from agents to models.
        sharing (`str`): The field `policy_sharing`.
        topology ([`Topology`]): The team.

    Raises:
        `ValueError`: If an agent has no model, if a model has no agent, or if there are several models where one is
            shared.
    """
    agents = topology.agents
    if not isinstance(model, dict):
        return dict.fromkeys(agents, model)
    if unknown := sorted(set(model) - set(agents), key=str):
        raise ValueError(
            f"`model` names {unknown}, which are not agents of the topology. Its agents are {list(agents)}."
        )
    if missing := [agent for agent in agents if agent not in model]:
        raise ValueError(f"`model` has no entry for {missing}. Give one model, or one per agent.")
    if len(agents) > 1:
        first, *others = (model[agent] for agent in agents)
        same = [other is first or (isinstance(other, str) and other == first) for other in others]
        if sharing == "shared" and not all(same):
            raise ValueError(
                "`policy_sharing='shared'` uses one model for all agents, but `model` gives several. Give "
                "one model, or set `policy_sharing='separate'`."
            )
        if sharing == "separate" and any(other is first for other in others) and not isinstance(first, str):
            raise ValueError(
                "`model` gives the same object to several agents with `policy_sharing='separate'`. Load it once per "
                "agent, or set `policy_sharing='shared'`."
            )
    return {agent: model[agent] for agent in agents}


def frozen_by_role_kwargs(args: MultiAgentGRPOConfig, topology: Topology) -> tuple[str, ...]:
    """The agents with `trainable: false` in `role_kwargs`."""
    says = {agent: args.for_agent(agent, topology.roles_of(agent), "trainable") for agent in topology.agents}
    return tuple(agent for agent, trainable in says.items() if trainable is False)


def find_frozen(
    models: dict[str, Any],
    starts: dict[str, Start],
    topology: Topology,
    args: MultiAgentGRPOConfig,
    peft_config: Any,
) -> tuple[str, ...]:
    """
    Find the agents that play and are never updated.

    They have `trainable: false` in `role_kwargs`, or a model without trainable weights.

    Args:
        models (`dict`): Maps each agent to its model, from [`models_by_agent`].
        starts (`dict[str, Start]`): Maps each agent that starts from an adapter to it. It gets no other adapter.
        topology ([`Topology`]): The team.
        args ([`MultiAgentGRPOConfig`]): The configuration.
        peft_config (`PeftConfig`, *optional*): The configuration of new adapters, whose weights are trainable.

    Raises:
        `ValueError`: If all agents are frozen, if a frozen one shares its weights, or if the first turn is a frozen
            agent's.
    """
    frozen = []
    for agent, model in models.items():
        says = args.for_agent(agent, topology.roles_of(agent), "trainable")
        gets_an_adapter = agent not in starts and (peft_config is not None or args.policy_sharing == "adapters")
        if agent in starts:
            no_weights = not starts[agent].is_trainable
        else:
            whole = isinstance(model, nn.Module) and not gets_an_adapter
            no_weights = whole and not any(parameter.requires_grad for parameter in model.parameters())
        if no_weights and says is True:
            raise ValueError(
                f"`role_kwargs[{agent!r}]['trainable']` is true, but its `model`, a {type(model).__name__}, "
                "has no weight to train: all are frozen. Unfreeze the weights, load an adapter with "
                "`is_trainable=True`, or leave the key out."
            )
        if no_weights or says is False:
            frozen.append(agent)
    if not frozen:
        return ()
    if len(frozen) == len(topology.agents):
        raise ValueError(
            f"All agents are frozen ({frozen}), so nothing would be trained. Set `trainable` of one to true "
            "in `role_kwargs`, load an adapter with `is_trainable=True`, unfreeze weights, or pass "
            "`peft_config`."
        )
    if args.policy_sharing == "shared":
        raise ValueError(
            f"`policy_sharing='shared'` has the same weights for all agents, so {frozen} cannot be frozen "
            "alone. Use 'separate' or 'adapters'."
        )
    start = args.start_role
    if start is not None and start in (*frozen, *(role for agent in frozen for role in topology.roles_of(agent))):
        raise ValueError(f"`start_role={start!r}` is frozen, so it is never trained. Name an agent that is trained.")
    return tuple(frozen)
