"""SEPO: both roles rate who deserves the credit, anchored to the verifier."""

import torch

from .groups import as_outcomes, check_coefficient, check_floating


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
    SEPO credit ([arXiv 2603.21563](https://huggingface.co/papers/2603.21563)).

    With t = (t0, 1 - t0) the Thinker's pair, s = (s0, 1 - s0) the Solver's and η = `self_weight`:

        s1 = η t0 + (1 - η) s0      s2 = η (1 - s0) + (1 - η) (1 - t0)      w_i = s_i / (s1 + s2)
        bonus_i = w_i - mean of w_i over the prompt's group  (`center`; else w_i - 0.5)
        r_i = R + credit_coef * bonus_i  if R > 0,      R - blame_coef * bonus_i  if R < 0

    A rating that is invalid (NaN) counts as (0.5, 0.5), as published. Where both ratings of an episode are invalid,
    its bonus is 0 and it is left out of the group's mean (the public code gives such episodes a bonus: deviation,
    ours).

    Args:
        outcome (`torch.Tensor` of shape `(P, G)` or `(P, G, K)`):
            Outcome R of each episode, NaN unscorable. With K > 1 each answer is an episode and the Thinker's reward
            is the mean over the K episodes of its thought.
        thinker_share, solver_share (`torch.Tensor` of the shape of `outcome`):
            The Thinker's share of the credit (R > 0) or blame (R < 0) as the Thinker / the Solver rated it, in [0, 1];
            NaN = invalid.
        self_weight (`float`, defaults to 0.3): η, the weight of a role's opinion of itself.
        credit_coef (`float`, defaults to 0.2): λ. With both coefficients 0 this is [`shared_credit`].
        blame_coef (`float`, defaults to 0.2): μ.
        center (`bool`, defaults to `True`): whether the group's mean is the reference, else 0.5.

    Returns:
        `dict[str, torch.Tensor]`: `"thinker"` of shape `(P, G)`, `"solver"` of the shape of `outcome`.

    Raises:
        `TypeError`: not a floating-point tensor. `ValueError`: a shape, share or coefficient that cannot be right.
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
                f"`{name}` must lie in [0, 1] (NaN = invalid), got {share[(share < 0) | (share > 1)][0]}."
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
