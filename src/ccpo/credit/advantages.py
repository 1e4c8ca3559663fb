"""From reward to advantage, for the estimators that TRL does not have. `"group"` is TRL's own."""

import torch
from trl.trainer.utils import nanstd

EPS = 1e-4  # TRL's, see `GRPOTrainer._generate_and_score_completions`


def _standardize(x: torch.Tensor) -> torch.Tensor:
    return (x - x.nanmean()) / (nanstd(x) + EPS) if x.numel() > 1 else torch.zeros_like(x)


def estimate_advantages(
    reward: torch.Tensor, estimator: str, *, baseline: torch.Tensor | None = None, scale_rewards: str = "none"
) -> torch.Tensor:
    """
    Advantages of one role's rewards over the global batch.

        "group"                 A = r - mean of the prompt's group
        "reinforce++"           A = (r - mean over the batch) / (std over the batch + eps)
        "reinforce++-baseline"  a = r - mean of the prompt's group;  A = (a - mean a) / (std a + eps) over the batch
        "counterfactual"        A = R - b

    REINFORCE++: [arXiv 2501.03262](https://huggingface.co/papers/2501.03262). The std is the sample std (Bessel's
    correction) and eps is 1e-4, both as in TRL.

    Args:
        reward (`torch.Tensor` of shape `(P, N)`):
            One row per prompt: the N = G thoughts of the Thinker or the N = G·K answers of the Solver. NaN unscorable.
            For `"counterfactual"` the raw outcome R.
        estimator (`str`):
            One of the four above.
        baseline (`torch.Tensor` of shape `(P, N)`, *optional*):
            b, needed by `"counterfactual"`. NaN where unscorable.
        scale_rewards (`str`, defaults to `"none"`):
            With `"group"` as in TRL: divide by the std (+ eps) of the `"group"` or of the `"batch"`.

    Returns:
        `torch.Tensor` of shape `(P, N)`, never NaN: unscorable samples get 0. So do constant groups and groups of one
        where the group's mean is the baseline, and constant batches and batches of one with `"reinforce++"`.

    Raises:
        `ValueError`: another shape, an unknown estimator or `scale_rewards`, or `"counterfactual"` without a baseline.
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
    else:
        raise ValueError(
            "`estimator` must be 'group', 'reinforce++', 'reinforce++-baseline' or 'counterfactual', "
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
