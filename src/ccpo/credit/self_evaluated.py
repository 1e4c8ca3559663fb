"""SEPO: the roles themselves rate who deserves the credit; the verifier decides whether there is credit or blame."""

from collections.abc import Sequence

import torch

from .groups import as_outcomes, check_coefficient, check_floating
from .tree import text_values


def self_evaluated_credit(
    outcome: torch.Tensor,
    thinker_share: torch.Tensor,
    solver_share: torch.Tensor,
    *,
    self_weight: float = 0.3,
    credit_coef: float = 0.2,
    blame_coef: float = 0.2,
    center: bool = True,
) -> dict[str, torch.Tensor]:
    """
    SEPO credit: Thinker and Solver rate how much each contributed, and the ratings shift the reward between them.

    The paper is [arXiv 2603.21563](https://huggingface.co/papers/2603.21563). A rating is a pair of shares that add up
    to 1. With t = (t0, 1 - t0) the Thinker's rating, s = (s0, 1 - s0) the Solver's and η = `self_weight`:

        s1 = η t0 + (1 - η) s0      s2 = η (1 - s0) + (1 - η) (1 - t0)      w_i = s_i / (s1 + s2)
        bonus_i = w_i - mean of w_i over the prompt's group  (`center`; else w_i - 0.5)
        r_i = R + credit_coef * bonus_i  if R > 0,      R - blame_coef * bonus_i  if R < 0

    An invalid rating (NaN) counts as (0.5, 0.5), as in the paper. If both ratings of an episode (one run of the team
    on one problem) are invalid, its bonus is 0 and it is left out of the group's mean. This differs from the public
    code, which gives such episodes a bonus.

    Args:
        outcome (`torch.Tensor` of shape `(P, G)` or `(P, G, K)`):
            Outcome R of each episode: +1 right, -1 wrong, NaN where it cannot be scored. If each thought has K > 1
            answers, each answer is an episode, and the Thinker's reward is the mean over them.
        thinker_share, solver_share (`torch.Tensor` of the shape of `outcome`):
            The Thinker's share of the credit (R > 0) or of the blame (R < 0), from 0 to 1, as the Thinker and the
            Solver rated it. NaN where a rating is invalid.
        self_weight (`float`, defaults to 0.3): η, the weight of a role's rating of itself.
        credit_coef (`float`, defaults to 0.2): weight of the credit. With both weights 0 this is [`shared_credit`].
        blame_coef (`float`, defaults to 0.2): weight of the blame.
        center (`bool`, defaults to `True`):
            Whether a share is compared with the mean share in the group; otherwise with 0.5.

    Returns:
        `dict[str, torch.Tensor]`: the rewards. `"thinker"` has the shape `(P, G)`, `"solver"` the shape of `outcome`.

    Raises:
        `TypeError`: if a tensor is not of floating point. `ValueError`: if a shape, share or coefficient is wrong.
    """
    check_coefficient("self_weight", self_weight, upper=1)
    check_coefficient("credit_coef", credit_coef)
    check_coefficient("blame_coef", blame_coef)
    reward = as_outcomes(outcome, "outcome")  # (P, G, K)
    for name, share in (("thinker_share", thinker_share), ("solver_share", solver_share)):
        check_floating(name, share)
        if share.shape != outcome.shape:
            raise ValueError(
                f"`{name}` must have the shape of `outcome`, {tuple(outcome.shape)}, got {tuple(share.shape)}."
            )
        if ((share < 0) | (share > 1)).any():
            raise ValueError(
                f"`{name}` must lie in [0, 1] (NaN: invalid rating), got {share[(share < 0) | (share > 1)][0]}."
            )
    t, s = thinker_share.reshape(reward.shape), solver_share.reshape(reward.shape)
    unrated = t.isnan() & s.isnan()
    t, s = t.nan_to_num(nan=0.5), s.nan_to_num(nan=0.5)
    score = {
        "thinker": self_weight * t + (1 - self_weight) * s,
        "solver": self_weight * (1 - s) + (1 - self_weight) * (1 - t),
    }
    total = score["thinker"] + score["solver"]  # 0 if η is 1 and both claim nothing, or η is 0 and both grant nothing
    credit = {}
    for role, own in score.items():
        weight = torch.where(total > 0, own / total, 0.5)
        weight = weight.masked_fill(unrated | reward.isnan(), torch.nan)
        reference = weight.flatten(1).nanmean(dim=1).view(-1, 1, 1) if center else 0.5
        bonus = (weight - reference).nan_to_num(nan=0.0)
        coef = credit_coef * (reward > 0).to(reward.dtype) - blame_coef * (reward < 0).to(reward.dtype)
        credit[role] = reward + coef * bonus  # (P, G, K), NaN where the outcome is
    return {"thinker": credit["thinker"].nanmean(dim=-1), "solver": credit["solver"].reshape(outcome.shape)}


def chain_self_evaluated_credit(
    outcome: torch.Tensor,
    shares: torch.Tensor,
    *,
    branches: Sequence[int],
    self_weight: float = 0.3,
    credit_coef: float = 0.2,
    blame_coef: float = 0.2,
    center: bool = True,
) -> tuple[torch.Tensor, ...]:
    """
    SEPO credit for a chain of n roles. With two roles it is exactly [`self_evaluated_credit`].

    Role i rates role j of each episode (a leaf) with q_ij; with η = `self_weight`:

        s_j = η q_jj + (1 - η) mean over i≠j of q_ij          w_j = s_j / Σ s    (1/n if Σ s is 0)
        bonus_j = w_j - mean of w_j over the prompt's group  (`center`; else w_j - 1/n)
        r_j = R + credit_coef * bonus_j  if R > 0,      R - blame_coef * bonus_j  if R < 0

    A rating with an invalid entry (NaN) counts as 0.5 for all roles. If all ratings of an episode are invalid, its
    bonus is 0 and it is left out of the group's mean. A text's reward is the mean over the leaves below it.

    Args:
        outcome (`torch.Tensor` of shape `(P, N_n)`):
            R of each episode: +1 right, -1 wrong, NaN where it cannot be scored.
        shares (`torch.Tensor` of shape `(P, N_n, n, n)`):
            q_ij, the share from 0 to 1 that role i gives role j. NaN where invalid. For two roles the pairs (q, 1 -
            q).
        branches (`Sequence[int]` of length n >= 2):
            (1, b_2, …, b_n): how many texts of each role continue one text of the role before it.
        self_weight (`float`, defaults to 0.3): η, the weight of a role's rating of itself.
        credit_coef (`float`, defaults to 0.2): weight of the credit. With both weights 0 this is shared credit.
        blame_coef (`float`, defaults to 0.2): weight of the blame.
        center (`bool`, defaults to `True`):
            Whether a share is compared with the mean share in the group; otherwise with 1/n.

    Returns:
        `tuple[torch.Tensor, ...]`: for each role j its rewards, shape `(P, N_j)`. NaN if no leaf below can be scored.

    Raises:
        `TypeError`: if a tensor is not of floating point. `ValueError`: if a shape, share or coefficient is wrong.
    """
    check_coefficient("self_weight", self_weight, upper=1)
    check_coefficient("credit_coef", credit_coef)
    check_coefficient("blame_coef", blame_coef)
    text_values(outcome, branches=branches)  # checks both
    _check_shares(shares, outcome, len(branches))
    weight = _weights(shares, self_weight).masked_fill(outcome.isnan().unsqueeze(-1), torch.nan)  # (P, N_n, n)
    reference = weight.nanmean(dim=1, keepdim=True) if center else 1 / len(branches)
    bonus = (weight - reference).nan_to_num(nan=0.0)
    coef = credit_coef * (outcome > 0).to(outcome.dtype) - blame_coef * (outcome < 0).to(outcome.dtype)
    rewards = (outcome + coef * bonus[..., j] for j in range(len(branches)))  # per leaf
    return tuple(text_values(reward, branches=branches)[j] for j, reward in enumerate(rewards))


def _check_shares(shares: torch.Tensor, outcome: torch.Tensor, n: int) -> None:
    check_floating("shares", shares)
    if n < 2:
        raise ValueError(
            f"`branches` must have at least two numbers, one per role, got {n}. One role has nobody to share "
            "credit with."
        )
    if shares.shape != (*outcome.shape, n, n):
        raise ValueError(
            f"`shares` must have shape (P, N, n, n) = {(*outcome.shape, n, n)}, got {tuple(shares.shape)}."
        )
    outside = shares[(shares < 0) | (shares > 1)]
    if outside.numel():
        raise ValueError(f"`shares` must lie in [0, 1] (NaN: invalid rating), got {outside[0]}.")


def _weights(shares: torch.Tensor, self_weight: float) -> torch.Tensor:
    """w of shape (P, N, n); NaN where all raters are invalid."""
    n = shares.shape[-1]
    invalid = shares.isnan().any(dim=-1, keepdim=True)  # (P, N, rater, 1)
    shares = shares.masked_fill(invalid, 0.5)
    itself = torch.eye(n, dtype=torch.bool, device=shares.device)
    others = shares.masked_fill(itself, 0.0).sum(dim=-2) / (n - 1)  # (P, N, rated)
    score = self_weight * shares.diagonal(dim1=-2, dim2=-1) + (1 - self_weight) * others
    total = score.sum(dim=-1, keepdim=True)
    weight = torch.where(total > 0, score / total, 1 / n)
    return weight.masked_fill(invalid.squeeze(-1).all(dim=-1, keepdim=True), torch.nan)
