"""Which model an agent has, from where it starts, and which agents are trained."""

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
    What each agent starts from, and how TRL is to build it.

    Attributes:
        topology ([`Topology`]), args ([`MultiAgentGRPOConfig`]): whose agents, and how they share.
        models (`dict[str, Any]`): per agent an id, a folder or an object; of a saved adapter its base.
        starts (`dict[str, Start]`): of the agents that start from an adapter.
        tokenizers (`dict[str, str]`): of the agents whose folder named a base: that folder, which has their tokenizer.
        frozen (`tuple[str, ...]`): agents that play and are never updated.
        given (`PeftConfig`, *optional*): `peft_config` as given.
        peft_config (`PeftConfig`, *optional*): of adapters that begin anew; the saved ones' where none was given and
            agents share a base.
        quantization_config (*optional*): as in TRL.
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
        """The agents that are trained, in their order."""
        return tuple(agent for agent in self.topology.agents if agent not in self.frozen)

    def _start_of(self, agent: str) -> Start | None:
        """The adapter on which TRL is to build the agent's model; on a common base that of an object, or any."""
        if self.args.policy_sharing == "separate":
            return self.starts.get(agent)
        starts = sorted(self.starts.values(), key=lambda start: isinstance(start.source, str))
        return next(iter(starts), None)

    def source(self, agent: str) -> dict[str, Any]:
        """
        An agent's `model`, `peft_config` and `quantization_config` for [`~trl.GRPOTrainer`].

        A saved adapter is loaded on its base, as an object to be trained on: TRL's own way to such a start. One object
        of several agents is copied for all but the first.
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
        """The arguments with which TRL is to build an agent's model, where they are not the common ones."""
        role = self.topology.roles_of(agent)[0]  # all roles of an agent sample at one temperature
        own: dict[str, Any] = {"temperature": self.args.for_role(role, "temperature", agent)}
        if self._start_of(agent) is not None:
            own["model_init_kwargs"] = None  # the model is there already
        if agent in self.frozen and self.args.policy_sharing == "separate":
            own["beta"] = 0.0  # no loss, no reference
        return own

    def saved_adapters(self) -> dict[str, tuple[PeftConfig, dict[str, torch.Tensor]]]:
        """Configuration and weights of the adapters from which agents on a common base start."""
        if self.args.policy_sharing != "adapters":
            return {}
        return {agent: (start.config, weights_of(start)) for agent, start in self.starts.items()}

    def origins(self) -> dict[str, str | None]:
        """Where each agent's model came from; `None` for an object from nowhere."""
        names = {
            agent: model if isinstance(model, str) else get_config_model_id(model.config) or None
            for agent, model in self.models.items()
        }
        return names | {agent: start.origin for agent, start in self.starts.items()}


def read_models(
    model: Any, args: MultiAgentGRPOConfig, topology: Topology, peft_config: Any, quantization_config: Any
) -> AgentModels:
    """
    Read what the trainer was given for models, without loading one.

    Args:
        model (`str`, `PreTrainedModel`, `PeftModel` or `dict` of them): one for all agents or one per agent.
        args ([`MultiAgentGRPOConfig`]): sharing, and what `role_kwargs` says of agents.
        topology ([`Topology`]): whose agents.
        peft_config (`PeftConfig`, *optional*), quantization_config (*optional*): as in TRL.

    Raises:
        `ValueError`: no or too many models, adapters that do not go together, or agents that cannot be frozen.
    """
    check_role_kwargs(args, topology)
    saved = models_by_agent(model, args.policy_sharing, topology)
    models = {agent: find_base(of_agent) for agent, of_agent in saved.items()}
    tokenizers = {agent: saved[agent] for agent, base in models.items() if base is not saved[agent]}
    starts = {}
    if not topology.is_solo or isinstance(model, str):  # an object is TRL's alone, as it is
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
    The model of each agent, ids and objects as given.

    Args:
        model (`str`, `PreTrainedModel` or `dict`): one for all agents or one per agent.
        sharing (`str`): `policy_sharing`.
        topology ([`Topology`]): whose agents.

    Raises:
        `ValueError`: an agent without a model, a model without an agent, or several models where one is shared.
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
    """The agents that `role_kwargs` says are not trained, whatever their models."""
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
    The agents that play and are never updated: `trainable: false` in `role_kwargs`, or a model without a weight to
    train.

    Args:
        models (`dict`): per agent, as [`models_by_agent`] gives them.
        starts (`dict[str, Start]`): of the agents that start from an adapter, which gets no other.
        topology ([`Topology`]): whose agents.
        args ([`MultiAgentGRPOConfig`]): `role_kwargs`, sharing and schedule.
        peft_config (`PeftConfig`, *optional*): brings the weights to train.

    Raises:
        `ValueError`: all are frozen, one that shares its weights is, or the first block is of one.
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
