"""What a scheme asks to see, and what it is shown: the outcomes of a batch."""

import math
from dataclasses import dataclass, field
from functools import cached_property

import torch

from ..credit import text_values, vote_outcome
from ..team.topology import Topology


@dataclass(frozen=True)
class Evidence:
    """
    What a scheme needs to see beside the team's own outcomes.

    Args:
        removals (`tuple[str, ...]`): roles for which the team must also be run without that role.
        ratings (`bool`, defaults to `False`): whether every role rates every role.
    """

    removals: tuple[str, ...] = ()
    ratings: bool = False


@dataclass
class TeamOutcomes:
    """
    The outcomes of a global batch, judged by one outcome function: +1 right, -1 wrong, NaN unscorable.

    Attributes:
        topology ([`Topology`]): the team.
        branches (`tuple[int, ...]`): how many texts of each role continue one of the role before it.
        own (`dict[str, torch.Tensor]`): judged role -> the outcome of each of its texts, `(P, N_j)`.
        clusters (`torch.Tensor` of shape `(P, G, n)`, *optional*): for a vote, which answers are equal.
        without (`dict[str, torch.Tensor]`):
            Removed role -> the outcomes of the team without it: `(P, S)` if they are drawn for each prompt, or
            `(P, N_(k-1), S)` if they are drawn from each context.
        without_right (`dict[str, torch.Tensor]`):
            Removed role -> how much of the team's answer is right in those passes. If it is not given, it follows from
            `without`.
        shares (`torch.Tensor` of shape `(P, N_n, n, n)`, *optional*):
            Ratings of each leaf, with the axis of the rater before that of the rated role. NaN where invalid.
        training (`bool`): whether this batch is trained on. In evaluation, a scheme must not learn anything.
    """

    topology: Topology
    branches: tuple[int, ...]
    own: dict[str, torch.Tensor]
    clusters: torch.Tensor | None = None
    without: dict[str, torch.Tensor] = field(default_factory=dict)
    without_right: dict[str, torch.Tensor] = field(default_factory=dict)
    shares: torch.Tensor | None = None
    training: bool = True

    @property
    def leaves(self) -> int:
        """N_n, how many texts of the last role a prompt has."""
        name, own = next(iter(self.own.items()))
        return own.shape[1] * math.prod(self.branches[self.topology.role_names.index(name) + 1 :])

    @cached_property
    def team(self) -> torch.Tensor:
        """R, the outcome of the team at each leaf, `(P, N_n)`."""
        return team_outcome(self.topology, self.own, self.clusters, self.leaves)

    @cached_property
    def values(self) -> dict[str, torch.Tensor]:
        """Role -> the value of each of its texts, `(P, N_j)`: the mean of R over the leaves below it."""
        values = text_values(self.team, branches=self.branches)
        return dict(zip(self.topology.role_names, values, strict=True))


def at_leaves(values: torch.Tensor, leaves: int) -> torch.Tensor:
    """`(P, N_j, …)` -> `(P, N_n, …)`: repeat what belongs to a text for each leaf below it."""
    return values.repeat_interleave(leaves // values.shape[1], dim=1)


def team_outcome(
    topology: Topology, own: dict[str, torch.Tensor], clusters: torch.Tensor | None, leaves: int
) -> torch.Tensor:
    """
    The team's outcome at each leaf, by the topology's rule. It rests on the answering texts above the leaf, or on the
    leaf itself.

    Args:
        topology ([`Topology`]): the team. Its `answer` is the rule.
        own (`dict[str, torch.Tensor]`): the outcomes `(P, N_j)` of the roles that answer.
        clusters (`torch.Tensor` of shape `(P, G, n)`, *optional*): for a vote, which answers are equal.
        leaves (`int`): N_n, the number of texts of the last role, which need not be one that answers.

    Returns:
        `torch.Tensor` of shape `(P, N_n)`. NaN where an outcome that it needs is NaN.
    """
    outcomes = [own[name] for name in topology.answer_roles]
    if topology.answer == "last":
        return outcomes[0]
    together = torch.stack([at_leaves(outcome, leaves) for outcome in outcomes], dim=-1)  # (P, N_n, answers)
    return vote_outcome(together, clusters) if topology.answer == "vote" else together.mean(dim=-1)


def removal_outcome(topology: Topology, own: dict[str, torch.Tensor]) -> torch.Tensor:
    """
    The team's outcome in each pass without a role, by the topology's rule.

    A vote has no such passes, because each of its roles answers.

    Args:
        topology ([`Topology`]): the team. Its rule is `"last"` or `"mean"`.
        own (`dict[str, torch.Tensor]`): the outcomes of the roles that answer, all of the same shape.

    Returns:
        `torch.Tensor` of that shape. NaN where an outcome that it needs is NaN.
    """
    return torch.stack([own[name] for name in topology.answer_roles], dim=-1).mean(dim=-1)
