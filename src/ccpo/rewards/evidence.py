"""What a scheme needs to see, and what it is shown: the outcomes of a batch."""

from dataclasses import dataclass, field
from functools import cached_property

import torch

from ..credit import text_values, vote_outcome
from ..team.topology import Topology


@dataclass(frozen=True)
class Evidence:
    """
    What a scheme needs beside the outcomes of what the team wrote.

    Args:
        removals (`tuple[str, ...]`): the roles without which the team is to be seen.
        ratings (`bool`, defaults to `False`): whether each role rates all.
    """

    removals: tuple[str, ...] = ()
    ratings: bool = False


@dataclass
class TeamOutcomes:
    """
    The outcomes of a global batch, by one outcome function: +1 right, -1 wrong, NaN unscorable.

    Attributes:
        topology ([`Topology`]): whose.
        branches (`tuple[int, ...]`): how many texts of each role continue one of the role before it.
        own (`dict[str, torch.Tensor]`): judged role -> the outcome of each of its texts, `(P, N_j)`.
        clusters (`torch.Tensor` of shape `(P, G, n)`, *optional*): of a vote, which answers are equal.
        without (`dict[str, torch.Tensor]`):
            Removed role -> the team's outcomes without it: `(P, S)` of each prompt, or `(P, N_(k-1), S)` from each
            context.
        shares (`torch.Tensor` of shape `(P, N_n, n, n)`, *optional*):
            Ratings of each leaf, the rater before the rated; NaN invalid.
        training (`bool`): whether this batch is trained on; a scheme learns nothing in evaluation.
    """

    topology: Topology
    branches: tuple[int, ...]
    own: dict[str, torch.Tensor]
    clusters: torch.Tensor | None = None
    without: dict[str, torch.Tensor] = field(default_factory=dict)
    shares: torch.Tensor | None = None
    training: bool = True

    @cached_property
    def team(self) -> torch.Tensor:
        """R, the outcome of the team at each leaf, `(P, N_n)`."""
        return team_outcome(self.topology, self.own, self.clusters)

    @cached_property
    def values(self) -> dict[str, torch.Tensor]:
        """Role -> the value of each of its texts, `(P, N_j)`: the mean of R over the leaves below it."""
        values = text_values(self.team, branches=self.branches)
        return dict(zip(self.topology.role_names, values, strict=True))


def at_leaves(values: torch.Tensor, leaves: int) -> torch.Tensor:
    """`(P, N_j, …)` -> `(P, N_n, …)`: what belongs to a text, for each leaf below it."""
    return values.repeat_interleave(leaves // values.shape[1], dim=1)


def team_outcome(
    topology: Topology, own: dict[str, torch.Tensor], clusters: torch.Tensor | None = None
) -> torch.Tensor:
    """
    The team's outcome at each leaf, by the topology's rule.

    Args:
        topology ([`Topology`]): has the rule, `answer`.
        own (`dict[str, torch.Tensor]`): the outcomes `(P, N_j)` of the roles of the answer.
        clusters (`torch.Tensor` of shape `(P, G, n)`, *optional*): of a vote, which answers are equal.

    Returns:
        `torch.Tensor` of shape `(P, N_n)`: NaN where an outcome that is needed is.
    """
    outcomes = [own[name] for name in topology.answer_roles]
    if topology.answer == "last":
        return outcomes[0]
    leaves = max(outcome.shape[1] for outcome in outcomes)
    together = torch.stack([at_leaves(outcome, leaves) for outcome in outcomes], dim=-1)  # (P, N_n, answers)
    return vote_outcome(together, clusters) if topology.answer == "vote" else together.mean(dim=-1)
