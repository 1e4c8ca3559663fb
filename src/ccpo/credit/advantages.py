"""From reward to advantage, for the estimators that TRL does not have. `"group"` is TRL's own."""

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
    Advantages of one role's rewards over the global batch.

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
            One row per prompt, the N_j texts of the role: a first role's G, a last role's G·K. NaN unscorable.
            For `"counterfactual"` the raw value v (R of the last role).
        estimator (`str`):
            One of the five above.
        baseline (`torch.Tensor` of shape `(P, N)`, *optional*):
            b, needed by `"counterfactual"`. NaN where unscorable.
        scale_rewards (`str`, defaults to `"none"`):
            With `"group"` as in TRL: divide by the std (+ eps) of the `"group"` or of the `"batch"`.
        alpha (`float`, defaults to -2.0), c (`float`, defaults to 1.0), blocks (`int`, defaults to 3):
            Of `"robust"`: the shape and the scale of its weights, and how many blocks the group is dealt into (odd, at
            most N).

    Returns:
        `torch.Tensor` of shape `(P, N)`, never NaN: unscorable samples get 0. So do constant groups and groups of one
        where the group's mean or robust location is the baseline, and constant batches and batches of one with
        `"reinforce++"`.

    Raises:
        `ValueError`: another shape, an unknown estimator or `scale_rewards`, `"counterfactual"` without a baseline, or
        α, c or blocks of `"robust"` out of range.
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
            raise ValueError("`estimator='counterfactual'` needs `baseline`, the solo outcomes' mean.")
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
    """Pearson's correlation of two tensors of one shape; NaN where one of them is constant (nothing to compare)."""
    x, y = x.flatten().double(), y.flatten().double()
    dx, dy = x - x.mean(), y - y.mean()
    if dx.norm() <= 1e-12 * x.norm() or dy.norm() <= 1e-12 * y.norm():  # constant but for rounding
        return float("nan")
    return (dx @ dy / (dx.norm() * dy.norm())).clamp(-1, 1).item()


def within_group_correlation(advantages: torch.Tensor, values: torch.Tensor) -> float:
    """
    How far a role's advantages follow the values of its texts inside the groups: the mean of the groups' correlations.

        rho_p = Pearson's correlation of A_p and v_p over the prompt's texts          the mean of rho_p over p

    Credit that only weighs prompts against each other leaves 1.0. What is below 1.0 is what credit adds inside a
    group, information or noise.

    Args:
        advantages (`torch.Tensor` of shape `(P, N)`): A, as they go to the loss.
        values (`torch.Tensor` of shape `(P, N)`): v, the mean outcome below each text, NaN where unscorable.

    Returns:
        `float`: over the groups in which both vary among the texts with a v. NaN where there is no such group.

    Raises:
        `TypeError`: not floating-point tensors. `ValueError`: another shape, or two.
    """
    for name, x in (("advantages", advantages), ("values", values)):
        check_floating(name, x)
    if advantages.ndim != 2 or advantages.shape != values.shape:
        raise ValueError(
            "`advantages` and `values` must have one shape (P, N), got "
            f"{tuple(advantages.shape)} and {tuple(values.shape)}."
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
