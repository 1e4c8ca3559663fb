"""Verdicts on what a team said: of each text that answers, and of the team by its topology's rule."""

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
    Outcomes of texts, in one call.

    Args:
        outcome (`Callable`): a TRL reward function.
        prompts (`list`): the dataset's, length n.
        columns (`Mapping[str, list]`): its other columns.
        parts (`list[list[str]]`): each has a text for every prompt.

    Returns:
        `torch.Tensor` of float64 of shape `(parts, n)`: NaN unscorable.
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
    How much of the team's answer is right, by its rule: 0 or 1 where one text is the answer.

    Args:
        topology ([`Topology`]): has the rule.
        outcome (`Callable`): in a vote, says which answers are equal.
        texts (`Mapping[str, list[str]]`): role of the answer -> its n texts.
        own (`Mapping[str, torch.Tensor]`): role of the answer -> their outcomes `(n,)`.

    Returns:
        `torch.Tensor` of shape `(n,)`: NaN unscorable.
    """
    clusters = None
    if topology.answer == "vote":
        voters = [list(said) for said in zip(*(texts[role] for role in topology.answer_roles), strict=True)]
        clusters = cluster_answers(voters, outcome).unsqueeze(1)
    return right_share(topology, {role: values.unsqueeze(1) for role, values in own.items()}, clusters, 1).flatten()
