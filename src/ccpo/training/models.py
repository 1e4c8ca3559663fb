"""Which model an agent has, and which agents are trained."""

from typing import Any

from torch import nn

from ..team.topology import Topology
from .config import MultiAgentGRPOConfig


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
        raise ValueError(f"`model` names {unknown}, which the topology does not have; its agents are {list(agents)}.")
    if missing := [agent for agent in agents if agent not in model]:
        raise ValueError(f"`model` has no entry for {missing}. Give one model, or one per agent.")
    if len(agents) > 1:
        first, *others = (model[agent] for agent in agents)
        same = [other is first or (isinstance(other, str) and other == first) for other in others]
        if sharing != "separate" and not all(same):
            raise ValueError(
                f"`policy_sharing={sharing!r}` has one model for all agents, but `model` gives several. Give one "
                "model, or set `policy_sharing='separate'`."
            )
        if sharing == "separate" and any(other is first for other in others) and not isinstance(first, str):
            raise ValueError(
                "`model` gives the same object to several agents with `policy_sharing='separate'`. Load it once per "
                "agent, or set `policy_sharing='shared'`."
            )
    return {agent: model[agent] for agent in agents}


def find_frozen(
    models: dict[str, Any], topology: Topology, args: MultiAgentGRPOConfig, peft_config: Any
) -> tuple[str, ...]:
    """
    The agents that play and are never updated: `trainable: false` in `role_kwargs`, or a model without a weight to
    train.

    Args:
        models (`dict`): per agent, as [`models_by_agent`] gives them.
        topology ([`Topology`]): whose agents.
        args ([`MultiAgentGRPOConfig`]): `role_kwargs`, sharing and schedule.
        peft_config (`PeftConfig`, *optional*): brings the weights to train.

    Raises:
        `ValueError`: all are frozen, one that shares its weights is, or the first block is of one.
    """
    frozen = []
    for agent in topology.agents:
        model = models.get(agent)
        says = [args.own(role, agent).get("trainable") for role in topology.roles_of(agent)]
        no_weights = (
            isinstance(model, nn.Module)
            and peft_config is None
            and not any(parameter.requires_grad for parameter in model.parameters())
        )
        if no_weights and True in says:
            raise ValueError(
                f"`role_kwargs[{agent!r}]['trainable']` is true, and its `model` is a {type(model).__name__} without "
                "a weight to train: all are frozen. Unfreeze the weights, load an adapter with `is_trainable=True`, "
                "or leave the key out."
            )
        if no_weights or False in says:
            frozen.append(agent)
    if not frozen or topology.is_solo and not frozen:
        return ()
    if len(frozen) == len(topology.agents):
        raise ValueError(
            f"All agents are frozen ({frozen}): nothing would be trained. Set `trainable` of one to true in "
            "`role_kwargs`, load an adapter with `is_trainable=True`, unfreeze weights, or pass `peft_config`."
        )
    if args.policy_sharing == "shared":
        raise ValueError(
            f"`policy_sharing='shared'` has one set of weights, and the agents {frozen} are frozen. Use 'separate' or "
            "'adapters'."
        )
    start = args.start_role
    if start is not None and start in (*frozen, *(role for agent in frozen for role in topology.roles_of(agent))):
        raise ValueError(f"`start_role={start!r}` is frozen and has no turn. Name an agent that is trained.")
    return tuple(frozen)
