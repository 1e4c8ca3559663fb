"""Votes: compare the vote with the vote without one voter. No extra text must be generated for this."""

import torch

from .groups import check_coefficient, check_floating


def _check_votes(own: torch.Tensor, clusters: torch.Tensor) -> None:
    check_floating("own", own)
    if own.ndim != 3 or own.shape[2] == 0:
        raise ValueError(f"`own` must have shape (P, G, n) with n >= 1 voters, got {tuple(own.shape)}.")
    if clusters.dtype not in (torch.int8, torch.int16, torch.int32, torch.int64):
        raise TypeError(f"`clusters` must be a tensor of integers (-1: the voter abstains), got {clusters.dtype}.")
    if clusters.shape != own.shape:
        raise ValueError(f"`clusters` must have the shape of `own`, {tuple(own.shape)}, got {tuple(clusters.shape)}.")
    if (clusters < -1).any():
        raise ValueError(f"`clusters` must be -1 (the voter abstains) or a number >= 0, got {clusters.min().item()}.")


def _plurality(own: torch.Tensor, clusters: torch.Tensor) -> torch.Tensor:
    """The outcome of a vote over the last axis: the mean over the largest clusters, or -1 if nobody answers."""
    answered = clusters >= 0  # (..., n)
    together = (clusters.unsqueeze(-1) == clusters.unsqueeze(-2)) & answered.unsqueeze(-1)  # (..., voter, member)
    size = together.sum(dim=-1)  # (..., n), 0 where the voter abstains
    members = own.unsqueeze(-2).expand(together.shape).masked_fill(~together, torch.nan)
    verdict = members.nanmean(dim=-1)  # (..., n), of the voter's cluster
    largest = answered & (size == size.amax(dim=-1, keepdim=True))
    # The largest clusters have one size, so the mean over their voters is the mean over them.
    vote = verdict.masked_fill(~largest, torch.nan).nanmean(dim=-1)
    nobody = torch.full_like(vote, -1.0).masked_fill(own.isnan().all(dim=-1), torch.nan)
    return torch.where(answered.any(dim=-1), vote, nobody)


def vote_outcome(own: torch.Tensor, clusters: torch.Tensor) -> torch.Tensor:
    """
    The outcome of a vote, in which the answer that most voters give wins.

        R = mean outcome over the largest clusters          outcome of a cluster = mean of its members'

    A cluster is the voters that gave the same answer. If several clusters are largest, the outcome is their mean, so
    that the order of the voters does not matter. If nobody answers, it is -1.

    Args:
        own (`torch.Tensor` of shape `(P, G, n)`):
            Outcome of each voter's own answer: +1 right, -1 wrong, NaN where it cannot be scored. NaN are left out of
            the means.
        clusters (`torch.Tensor` of integers of shape `(P, G, n)`):
            The number (>= 0) of each voter's cluster: voters with equal answers have equal numbers. -1 for a voter
            that abstains, which means that it gives no answer.

    Returns:
        `torch.Tensor` of shape `(P, G)`. NaN where no member of the largest clusters can be scored, e.g. because the
        reference answer cannot be read.

    Raises:
        `TypeError`: if `own` is not of floating point or `clusters` not of integers. `ValueError`: if a shape is
        wrong, if there is no voter, or if a cluster is below -1.
    """
    _check_votes(own, clusters)
    return _plurality(own, clusters)


def vote_credit(own: torch.Tensor, clusters: torch.Tensor, *, coef: float = 0.2, mode: str = "team") -> torch.Tensor:
    """
    Credit for voters: how much each changes the outcome of the vote.

        Delta_k = R(all) - R(all but k)
        team      r_k = R + coef * Delta_k
        marginal  r_k = Delta_k

    R is [`~ccpo.credit.vote_outcome`]. The scheme is of the first version of CCPO
    ([arXiv 2603.21563v1](https://huggingface.co/papers/2603.21563)). With one voter, nobody is left without it:
    R(nobody) = -1 and Delta = R + 1, so r = (1 + coef) R + coef. After the group's mean is subtracted this is GRPO's
    reward times (1 + coef).

    Args:
        own (`torch.Tensor` of shape `(P, G, n)`):
            Outcome of each voter's own answer: +1 right, -1 wrong, NaN where it cannot be scored. If outcomes were 1
            and 0, every Delta would be half as large, as long as somebody answers without the voter.
        clusters (`torch.Tensor` of integers of shape `(P, G, n)`):
            The number (>= 0) of each voter's cluster: voters with equal answers have equal numbers. -1 for a voter
            that abstains; its Delta is 0.
        coef (`float`, defaults to 0.2): λ, the weight of Delta in `"team"`. With 0 this is shared credit.
        mode (`str`, defaults to `"team"`): `"team"` or `"marginal"`, as above.

    Returns:
        `torch.Tensor` of shape `(P, G, n)`: the rewards. NaN where R or a Delta that is needed cannot be scored.

    Raises:
        As [`~ccpo.credit.vote_outcome`], and `ValueError` if `mode` is unknown or `coef` negative.
    """
    check_coefficient("coef", coef)
    if mode not in ("team", "marginal"):
        raise ValueError(f"`mode` must be 'team' or 'marginal', got {mode!r}.")
    reward = vote_outcome(own, clusters).unsqueeze(-1).expand(own.shape)  # (P, G, n)
    if mode == "team" and coef == 0:
        return reward.clone()
    voters = own.shape[-1]
    itself = torch.eye(voters, dtype=torch.bool, device=own.device)
    others = clusters.unsqueeze(-2).expand(*own.shape, voters).masked_fill(itself, -1)  # (P, G, left out, voter)
    delta = reward - _plurality(own.unsqueeze(-2).expand(others.shape), others)
    return delta if mode == "marginal" else reward + coef * delta
