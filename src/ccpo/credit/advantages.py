"""
Turn rewards into advantages, by which the loss weights each text.

TRL has only the estimator `"group"`; the others are here.
"""

import torch
from trl.trainer.utils import nanstd

from .groups import check_floating
from .robust import robust_advantages

EPS = 1e-4  # TRL's, see `GRPOTrainer._generate_and_score_completions`


def _standardize(x: torch.Tensor) -> torch.Tensor:
    return (x - x.nanmean()) / (nanstd(x) + EPS) if x.numel() > 1 else torch.zeros_like(x)


def estimate_advantages(
    reward: torch.Tensor,
    estimator: str,
    *,
    baseline: torch.Tensor | None = None,
    scale_rewards: str = "none",
    alpha: float = -2.0,
    c: float = 1.0,
    blocks: int = 3,
) -> torch.Tensor:
    """
    Turn the rewards of one role into advantages, over the batch of all processes.

        "group"                 A = r - mean of the prompt's group
        "reinforce++"           A = (r - mean over the batch) / (std over the batch + eps)
        "reinforce++-baseline"  a = r - mean of the prompt's group;  A = (a - mean a) / (std a + eps) over the batch
        "counterfactual"        A = R - b
        "robust"                A = (r - robust location of the prompt's group) / (std of the group + eps)

    REINFORCE++: [arXiv 2501.03262](https://huggingface.co/papers/2501.03262); `"robust"` is ARE
    ([arXiv 2603.21574](https://huggingface.co/papers/2603.21574), [`~ccpo.credit.robust_location`]). The std is the
    sample std (Bessel's correction) and eps is 1e-4, both as in TRL.

    Args:
        reward (`torch.Tensor` of shape `(P, N)`):
            The reward of each text of the role, one row per prompt. NaN where it cannot be scored. For
            `"counterfactual"`, the mean outcome of the leaves below each text.
        estimator (`str`):
            One of the five above.
        baseline (`torch.Tensor` of shape `(P, N)`, *optional*):
            b, the outcome without the role, which only `"counterfactual"` needs. NaN where it cannot be scored.
        scale_rewards (`str`, defaults to `"none"`):
            With the estimator `"group"`, as in TRL: divide by the standard deviation (+ eps) of the `"group"` or of
            the `"batch"`, or by `"none"`.
        alpha (`float`, defaults to -2.0), c (`float`, defaults to 1.0), blocks (`int`, defaults to 3):
            For `"robust"`: the shape and the scale of its weights, and the number of blocks into which the group is
            split (odd, at most N).

    Returns:
        `torch.Tensor` of shape `(P, N)`: the advantages, never NaN. Texts that cannot be scored get 0. So do groups of
        one and groups of equal rewards if the baseline is the group's mean or robust location; with `"reinforce++"`,
        batches of one or of equal rewards.

    Raises:
        `ValueError`: if a shape is wrong, if the estimator or `scale_rewards` is unknown, if `"counterfactual"` has no
        baseline, or if α, c or blocks are out of range.
    """
    if reward.ndim != 2:
        raise ValueError(f"`reward` must have shape (P, N), got {tuple(reward.shape)}.")
    if scale_rewards not in ("group", "batch", "none"):
        raise ValueError(f"`scale_rewards` must be 'group', 'batch' or 'none', got {scale_rewards!r}.")
    dtype, reward = reward.dtype, reward.double()  # a constant batch must give 0, not rounding / eps
    if estimator == "group":
        advantage = reward - reward.nanmean(dim=1, keepdim=True)
        if scale_rewards != "none":
            std = nanstd(reward, dim=1, keepdim=True) if scale_rewards == "group" else nanstd(reward)
            advantage = advantage / (std + EPS)
    elif estimator == "reinforce++":
        advantage = _standardize(reward)
    elif estimator == "reinforce++-baseline":
        advantage = _standardize(reward - reward.nanmean(dim=1, keepdim=True))
    elif estimator == "counterfactual":
        if baseline is None:
            raise ValueError(
                "`estimator='counterfactual'` needs `baseline`, the mean outcome without the role. Pass it."
            )
        if baseline.shape != reward.shape:
            raise ValueError(
                f"`baseline` must have the shape of `reward`, {tuple(reward.shape)}, got {tuple(baseline.shape)}."
            )
        advantage = reward - baseline
    elif estimator == "robust":
        advantage = robust_advantages(reward, alpha=alpha, c=c, blocks=blocks, eps=EPS)
    else:
        raise ValueError(
            "`estimator` must be 'group', 'reinforce++', 'reinforce++-baseline', 'counterfactual' or 'robust', "
            f"got {estimator!r}."
        )
    return advantage.nan_to_num(nan=0.0).to(dtype)


def correlation(x: torch.Tensor, y: torch.Tensor) -> float:
    """Pearson's correlation of two tensors of the same shape; NaN if one of them is constant."""
    x, y = x.flatten().double(), y.flatten().double()
    dx, dy = x - x.mean(), y - y.mean()
    if dx.norm() <= 1e-12 * x.norm() or dy.norm() <= 1e-12 * y.norm():  # constant but for rounding
        return float("nan")
    return (dx @ dy / (dx.norm() * dy.norm())).clamp(-1, 1).item()


def within_group_correlation(advantages: torch.Tensor, values: torch.Tensor) -> float:
    """
    How closely the advantages of a role follow the outcomes of its texts in each group: the groups' mean correlation.

        rho_p = Pearson's correlation of A_p and v_p over the prompt's texts          the mean of rho_p over p

    Credit that only weighs prompts against each other gives 1.0. A lower number means that credit changes the order
    of texts in a group, by information or by noise.

    Args:
        advantages (`torch.Tensor` of shape `(P, N)`): A, as they go to the loss.
        values (`torch.Tensor` of shape `(P, N)`): v, the mean outcome below each text, NaN where unscorable.

    Returns:
        `float`: the mean over the groups in which both vary. NaN if there is no such group.

    Raises:
        `TypeError`: if a tensor is not of floating point. `ValueError`: if the shapes are wrong or differ.
    """
    for name, x in (("advantages", advantages), ("values", values)):
        check_floating(name, x)
    if advantages.ndim != 2 or advantages.shape != values.shape:
        raise ValueError(
            f"`advantages` and `values` must have the same shape (P, N), got {tuple(advantages.shape)} and "
            f"{tuple(values.shape)}."
        )
    if values.numel() == 0:
        return float("nan")
    unknown = advantages.isnan() | values.isnan()
    deviations, varies = [], torch.tensor(True, device=values.device)
    for x in (advantages, values):
        known = x.double().masked_fill(unknown, torch.nan)
        away = (known - known.nanmean(dim=1, keepdim=True)).nan_to_num(nan=0.0)  # (P, N)
        rounding = 8 * torch.finfo(x.dtype).eps * known.nan_to_num(nan=0.0).abs().max()
        varies = varies & (away.abs().amax(dim=1) > rounding)  # (P,)
        deviations.append(away)
    a, v = (away[varies] for away in deviations)
    return ((a * v).sum(dim=1) / (a.norm(dim=1) * v.norm(dim=1))).clamp(-1, 1).mean().item()
