"""Votes: a voter against the vote without it. The leave-one-out needs no generation."""

import torch

from .groups import check_coefficient, check_floating


def _check_votes(own: torch.Tensor, clusters: torch.Tensor) -> None:
    check_floating("own", own)
    if own.ndim != 3 or own.shape[2] == 0:
        raise ValueError(f"`own` must have shape (P, G, n) with n >= 1 voters, got {tuple(own.shape)}.")
    if clusters.dtype not in (torch.int8, torch.int16, torch.int32, torch.int64):
        raise TypeError(f"`clusters` must be a tensor of integers (-1 abstains), got {clusters.dtype}.")
    if clusters.shape != own.shape:
        raise ValueError(f"`clusters` must have the shape of `own`, {tuple(own.shape)}, got {tuple(clusters.shape)}.")
    if (clusters < -1).any():
        raise ValueError(f"`clusters` must be -1 (abstains) or a number >= 0, got {clusters.min().item()}.")


def _plurality(own: torch.Tensor, clusters: torch.Tensor) -> torch.Tensor:
    """The vote's outcome over the last axis: mean over the largest clusters, -1 if nobody answers."""
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
    The outcome of a plurality vote.

        R = mean outcome over the largest clusters          outcome of a cluster = mean of its members'

    A tie is the mean of the tied, so that the order of the voters does not matter. Nobody answers: -1.

    Args:
        own (`torch.Tensor` of shape `(P, G, n)`):
            Outcome of each voter's answer: +1 right, -1 wrong, NaN unscorable. Unscorable members are left out of
            their cluster's mean, and a cluster of nothing else is left out of the tie's.
        clusters (`torch.Tensor` of integers of shape `(P, G, n)`):
            Which voters of an episode gave equal answers: equal numbers >= 0. -1 abstains.

    Returns:
        `torch.Tensor` of shape `(P, G)`. NaN where the gold answer is unscorable (all of `own` is NaN), and where the
        largest clusters have no scorable member.

    Raises:
        `TypeError`: `own` not of floating point or `clusters` not of integers. `ValueError`: another shape, no voter,
        or a cluster below -1.
    """
    _check_votes(own, clusters)
    return _plurality(own, clusters)


def vote_credit(own: torch.Tensor, clusters: torch.Tensor, *, coef: float = 0.2, mode: str = "team") -> torch.Tensor:
    """
    Leave-one-out credit of voters (CCPO v1, [arXiv 2603.21563v1](https://huggingface.co/papers/2603.21563)).

        Delta_k = R(all) - R(all but k)
        team      r_k = R + coef * Delta_k
        marginal  r_k = Delta_k

    R is [`~ccpo.credit.vote_outcome`]. With n = 1 nobody is left without the voter, R(nobody) = -1 and Delta = R + 1:
    r = (1 + coef) R + coef, which is stock GRPO's reward times (1 + coef) once centred.

    Args:
        own (`torch.Tensor` of shape `(P, G, n)`):
            Outcome of each voter's answer: +1 right, -1 wrong, NaN unscorable. On outcomes 1 / 0 every Delta is half
            as large, as long as somebody answers without the voter (nobody is -1, the outcome of a wrong answer).
        clusters (`torch.Tensor` of integers of shape `(P, G, n)`):
            Which voters of an episode gave equal answers: equal numbers >= 0. -1 abstains; its Delta is 0.
        coef (`float`, defaults to 0.2): λ of `"team"`. With 0 every voter gets R, shared credit.
        mode (`str`, defaults to `"team"`): `"team"` or `"marginal"`.

    Returns:
        `torch.Tensor` of shape `(P, G, n)`. NaN where R, or a Delta that is needed, is unscorable.

    Raises:
        What [`~ccpo.credit.vote_outcome`] raises, and `ValueError` for an unknown `mode` or a negative `coef`.
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
