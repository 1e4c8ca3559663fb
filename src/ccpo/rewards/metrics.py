"""What a batch's outcomes and ratings are logged as."""

from collections.abc import Sequence

import torch

from ..credit.groups import team_outcome


def credit_metrics(joint: torch.Tensor, solo: torch.Tensor | None) -> dict[str, float]:
    """
    The outcome metrics of a batch.

    Args:
        joint (`torch.Tensor` of shape `(P, G, K)`): outcomes of the team's answers, NaN unscorable.
        solo (`torch.Tensor` of shape `(P, S)`, *optional*): outcomes of the solo answers.

    Returns:
        `dict[str, float]`: `credit/joint_accuracy`, `credit/unscorable_rate`, and with solos `credit/solo_accuracy`,
        `credit/help_rate`, `credit/hurt_rate` (shares of the scorable thoughts with R > 0 > b and R < 0 < b). NaN
        where nothing is scorable.
    """

    def mean(mask: torch.Tensor, valid: torch.Tensor) -> float:
        return mask[valid].float().mean().item()

    metrics = {
        "credit/joint_accuracy": mean(joint > 0, ~joint.isnan()),
        "credit/unscorable_rate": joint.isnan().float().mean().item(),
    }
    if solo is not None:
        reward, b = team_outcome(joint), solo.nanmean(dim=1, keepdim=True)
        valid = ~reward.isnan() & ~b.isnan()
        metrics |= {
            "credit/solo_accuracy": mean(solo > 0, ~solo.isnan()),
            "credit/help_rate": mean((reward > 0) & (b < 0), valid),
            "credit/hurt_rate": mean((reward < 0) & (b > 0), valid),
        }
    return metrics


def rating_metrics(joint: torch.Tensor, thinker_share: torch.Tensor, solver_share: torch.Tensor) -> dict[str, float]:
    """
    How well the ratings went, over the scorable episodes.

    Args:
        joint (`torch.Tensor` of shape `(P, G, K)`): outcomes, NaN unscorable.
        thinker_share, solver_share (`torch.Tensor` of shape `(P, G, K)`): ratings, NaN invalid.

    Returns:
        `dict[str, float]`: `rating/<role>_valid_rate`, and `rating/agreement_rate`, the share of the episodes rated by
        both in which both chose the same pair.
    """
    scorable = ~joint.isnan()
    both = scorable & ~thinker_share.isnan() & ~solver_share.isnan()
    agree = (thinker_share - solver_share).abs() < 0.05  # pairs are 0.1 apart
    return {
        "rating/thinker_valid_rate": (~thinker_share.isnan())[scorable].float().mean().item(),
        "rating/solver_valid_rate": (~solver_share.isnan())[scorable].float().mean().item(),
        "rating/agreement_rate": agree[both].float().mean().item(),
    }


def shares_metrics(outcome: torch.Tensor, shares: torch.Tensor, roles: Sequence[str]) -> dict[str, float]:
    """
    How well the ratings of n roles went, over the scorable episodes.

    Args:
        outcome (`torch.Tensor` of shape `(P, N)`): outcomes of the leaves, NaN unscorable.
        shares (`torch.Tensor` of shape `(P, N, n, n)`): q, the rater before the rated, NaN where invalid.
        roles (`Sequence[str]`): names of the n roles.

    Returns:
        `dict[str, float]`: `rating/<role>_valid_rate`, and `rating/agreement_rate`, the share of the episodes rated by
        all in which no two raters differ by 0.05 or more about any role. NaN where there are none.

    Raises:
        `ValueError`: shapes that do not fit each other or the roles.
    """
    n = len(roles)
    if shares.shape != (*outcome.shape, n, n):
        raise ValueError(
            f"`shares` must have shape (P, N, n, n) = {(*outcome.shape, n, n)} for the roles {list(roles)}, got "
            f"{tuple(shares.shape)}."
        )
    scorable, valid = ~outcome.isnan(), ~shares.isnan().any(dim=-1)  # (P, N), (P, N, n)
    agree = ((shares.amax(dim=-2) - shares.amin(dim=-2)) < 0.05).all(dim=-1)  # shares are 0.1 apart
    rates = valid[scorable].float().mean(dim=0)  # (n,)
    return {f"rating/{role}_valid_rate": rates[i].item() for i, role in enumerate(roles)} | {
        "rating/agreement_rate": agree[scorable & valid.all(dim=-1)].float().mean().item()
    }
