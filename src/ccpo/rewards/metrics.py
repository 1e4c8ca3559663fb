"""The metrics of a batch's outcomes and ratings."""

import torch

from ..team.topology import Topology
from .evidence import TeamOutcomes, team_outcome


def _mean(mask: torch.Tensor, valid: torch.Tensor) -> float:
    return mask[valid].float().mean().item()


def is_right(outcome: torch.Tensor) -> torch.Tensor:
    """1 where an outcome is positive, 0 where it is not, and NaN where it is unscorable."""
    return (outcome > 0).to(outcome.dtype).masked_fill(outcome.isnan(), torch.nan)


def right_share(
    topology: Topology, own: dict[str, torch.Tensor], clusters: torch.Tensor | None, leaves: int
) -> torch.Tensor:
    """
    How much of the team's answer is right at each leaf: the topology's rule, applied to right (1) and wrong (0).

    Args:
        topology ([`Topology`]), own (`dict`), clusters (`torch.Tensor`, *optional*), leaves (`int`):
            as for [`~ccpo.rewards.evidence.team_outcome`].

    Returns:
        `torch.Tensor` of shape `(P, N_n)`: 0 or 1 if one text is the answer, NaN where unscorable.
    """
    right = {name: is_right(outcome) for name, outcome in own.items()}
    return team_outcome(topology, right, clusters, leaves).clamp(min=0)  # a vote in which nobody answers is wrong


def credit_metrics(outcomes: TeamOutcomes) -> dict[str, float]:
    """
    The outcome metrics of a batch.

    Args:
        outcomes ([`TeamOutcomes`]): the batch.

    Returns:
        `dict[str, float]`: `credit/joint_accuracy` and `credit/unscorable_rate`. For each role without which the team
        was run, also `credit/without_<role>_accuracy`, `credit/<role>/help_rate` and `credit/<role>/hurt_rate` (the
        shares of its scorable texts with v > 0 > b and with v < 0 < b). NaN where nothing is scorable.
    """
    topology = outcomes.topology
    share = right_share(topology, outcomes.own, outcomes.clusters, outcomes.leaves)
    metrics = {
        "credit/joint_accuracy": share[~share.isnan()].float().mean().item(),
        "credit/unscorable_rate": outcomes.team.isnan().float().mean().item(),
    }
    for role, without in outcomes.without.items():
        value = outcomes.values[role]
        b = without.nanmean(dim=-1, keepdim=True)  # (P, 1) or (P, contexts, 1)
        b = b.flatten(1).repeat_interleave(value.shape[1] // b.flatten(1).shape[1], dim=1)  # (P, N_k)
        valid = ~value.isnan() & ~b.isnan()
        right = outcomes.without_right.get(role, is_right(without))
        metrics |= {
            topology.label(f"credit/without_{role}_accuracy"): _mean(right, ~right.isnan()),
            topology.label(f"credit/{role}/help_rate"): _mean((value > 0) & (b < 0), valid),
            topology.label(f"credit/{role}/hurt_rate"): _mean((value < 0) & (b > 0), valid),
        }
    return metrics


def shares_metrics(outcome: torch.Tensor, shares: torch.Tensor, roles: tuple[str, ...]) -> dict[str, float]:
    """
    How many ratings are valid and how often they agree, over the scorable leaves.

    Args:
        outcome (`torch.Tensor` of shape `(P, N)`): outcomes, NaN where unscorable.
        shares (`torch.Tensor` of shape `(P, N, n, n)`):
            Ratings, with the axis of the rater before that of the rated role. NaN where invalid.
        roles (`tuple[str, ...]`): names of the n roles.

    Returns:
        `dict[str, float]`: `rating/<role>_valid_rate` and `rating/agreement_rate`. The latter is taken over the leaves
        that all roles rated: the share in which no two raters differ by 0.05 or more about any role. NaN if there are
        none.

    Raises:
        `ValueError`: shapes that do not fit each other, or do not fit the roles.
    """
    if shares.shape != (*outcome.shape, len(roles), len(roles)):
        raise ValueError(
            f"`shares` must have shape (P, N, n, n) = {(*outcome.shape, len(roles), len(roles))} for the roles "
            f"{list(roles)}, got {tuple(shares.shape)}."
        )
    scorable, valid = ~outcome.isnan(), ~shares.isnan().any(dim=-1)  # (P, N), (P, N, n)
    every = scorable & valid.all(dim=-1)
    spread = shares.amax(dim=-2) - shares.amin(dim=-2)  # (P, N, n), over the raters
    agree = (spread < 0.05).all(dim=-1)  # shares are 0.1 apart
    rates = {f"rating/{role}_valid_rate": _mean(valid[..., i], scorable) for i, role in enumerate(roles)}
    return {**rates, "rating/agreement_rate": _mean(agree, every)}
