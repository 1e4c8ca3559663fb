"""Judge what a team wrote: each text that answers, and the team's answer by the rule of its topology."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ..calls import call_outcome
from ..rewards.metrics import right_share
from ..team.prompts import Prompt
from ..team.topology import Topology
from ..verifier.clusters import cluster_answers


def judge_texts(
    outcome: Callable, prompts: Sequence[Prompt], columns: Mapping[str, list], parts: Sequence[Sequence[str]]
) -> torch.Tensor:
    """
    Judge texts with one call of the outcome function.

    Args:
        outcome (`Callable`): A TRL reward function.
        prompts (`list`): The n prompts of the dataset.
        columns (`Mapping[str, list]`): The dataset's other columns.
        parts (`list[list[str]]`): Lists of texts, each with a text for every prompt.

    Returns:
        `torch.Tensor` of float64 of shape `(parts, n)`: the outcomes. NaN if a text cannot be scored.
    """
    texts: list[Any] = [text for part in parts for text in part]
    if prompts and not isinstance(prompts[0], str):
        texts = [[{"role": "assistant", "content": text}] for text in texts]
    given = {name: list(values) * len(parts) for name, values in columns.items()}
    values = call_outcome(outcome, len(texts), prompts=list(prompts) * len(parts), completions=texts, **given)
    return torch.tensor(values, dtype=torch.float64).view(len(parts), len(prompts))


def judge_team(
    topology: Topology, outcome: Callable, texts: Mapping[str, Sequence[str]], own: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """
    How much of the team's answer is right, from 0 to 1, by the rule of its topology.

    Args:
        topology ([`Topology`]): The team.
        outcome (`Callable`): The outcome function. It compares answers if the team votes.
        texts (`Mapping[str, list[str]]`): Maps each role that answers to its n texts.
        own (`Mapping[str, torch.Tensor]`): Maps each role that answers to the outcomes of these texts, `(n,)`.

    Returns:
        `torch.Tensor` of shape `(n,)`: 0 or 1 if one text is the answer. NaN if it cannot be scored.
    """
    clusters = None
    if topology.answer == "vote":
        voters = [list(said) for said in zip(*(texts[role] for role in topology.answer_roles), strict=True)]
        clusters = cluster_answers(voters, outcome).unsqueeze(1)
    return right_share(topology, {role: values.unsqueeze(1) for role, values in own.items()}, clusters, 1).flatten()
