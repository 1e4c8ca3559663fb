"""Write `team.json`: the topology with its prompts, the sampling of each role, and how answers are found."""

import json
from pathlib import Path
from typing import Any

from ..evaluation.loading import TEAM_FILE
from ..team.answers import reader_of
from ..team.topology import Topology
from .numbers import SAMPLING
from .sampling_mixin import stops_of


def generator_options(args: Any, role: str, agent: str) -> dict[str, Any]:
    """
    The sampling of a role in training, as arguments of [`TransformersGenerator`].

    Args:
        args ([`MultiAgentGRPOConfig`]): The configuration.
        role (`str`): The role.
        agent (`str`): The agent that plays the role.
    """
    sampling = args.sampling_of(role, agent)
    if args.use_vllm:  # transformers does not know vLLM's other options
        stops = list(stops_of(sampling)) or None
        sampling = {name: sampling[name] for name in (*SAMPLING, "max_new_tokens")} | {"stop_strings": stops}
    options = {name: sampling.pop(name) for name in ("max_new_tokens", "temperature", "top_p", "top_k")}
    options["generation_kwargs"] = {name: value for name, value in sampling.items() if value is not None}
    return options | {"chat_template_kwargs": args.chat_template_kwargs, "prefix_caching": args.prefix_caching}


def write_team(folder: Path, topology: Topology, args: Any, outcome: Any) -> None:
    """
    Write `team.json`: the topology, and under `run` what is needed to use the team as in training.

    Args:
        folder (`Path`): The folder that holds the agents' folders.
        topology ([`Topology`]): The team.
        args ([`MultiAgentGRPOConfig`]): The configuration, which has the sampling of each role.
        outcome (`Callable`): The outcome function, which may have a pattern that finds answers.
    """
    sampling = {role: generator_options(args, role, topology.agent_of(role)) for role in topology.role_names}
    run = {"sampling": sampling, "answer_pattern": reader_of(outcome).pattern}
    content = json.dumps({**topology.to_dict(), "run": run}, indent=2) + "\n"
    (folder / TEAM_FILE).write_text(content, encoding="utf-8")
