"""ARE: a robust estimate of the group's centre, which outliers hardly move, in place of the mean."""

import torch

from .groups import check_floating

STEPS = 20  # reweighted means


def robust_location(x: torch.Tensor, *, alpha: float = -2.0, c: float = 1.0, blocks: int = 3) -> torch.Tensor:
    """
    A robust mean over the last axis, in which outliers count less: the ARE of
    [arXiv 2603.21574](https://huggingface.co/papers/2603.21574).

    The values are sorted and dealt in turn into `blocks` blocks, so that their order does not matter. The location of
    a block begins with its median and is improved by 20 weighted means. The result is the median over the blocks.

        μ <- sum_i w_i x_i / sum_i w_i          w_i = ((x_i - μ)² / (c² |α - 2|) + 1)^(α/2 - 1)

    The median of an even number of values is the mean of the middle two. On two-valued rewards the location is biased.

    Args:
        x (`torch.Tensor` of shape `(..., N)`): the values. NaN are left out, and so are blocks without a value.
        alpha (`float`, defaults to -2.0): α, from -10 to 2. With 2 all weights are 1: a block's location is its mean.
        c (`float`, defaults to 1.0): the distance, in units of x, from which on a value counts less. Above 0.
        blocks (`int`, defaults to 3): number of blocks, odd and at most N. With 1 and α = 2 the result is the mean.

    Returns:
        `torch.Tensor` of shape `(...)`. If all values are equal it is that value; if all are NaN it is NaN.

    Raises:
        `TypeError`: if `x` is not of floating point. `ValueError`: if it has no axis, or if α, c or blocks are out of
        range.
    """
    _check_location(x, alpha, c, blocks)
    values = x.double().sort(dim=-1).values  # NaN last
    rest = -values.shape[-1] % blocks
    values = torch.nn.functional.pad(values, (0, rest), value=torch.nan)
    # (..., blocks, N / blocks), value i in block i % blocks
    values = values.unflatten(-1, (-1, blocks)).transpose(-1, -2)
    location = values.nanquantile(0.5, dim=-1, keepdim=True)
    for _ in range(STEPS if alpha < 2 else 1):
        away = values - location
        log_weight = (alpha / 2 - 1) * (away**2 / (c**2 * abs(alpha - 2)) if alpha < 2 else away * 0).log1p()
        # Normalised as logarithms, so that none underflows; NaN in an empty block
        weight = log_weight.masked_fill(away.isnan(), -torch.inf).softmax(dim=-1)
        location = location + (weight * away.nan_to_num(nan=0.0)).sum(dim=-1, keepdim=True)
    return location.squeeze(-1).nanquantile(0.5, dim=-1).to(x.dtype)


def _check_location(x: torch.Tensor, alpha: float, c: float, blocks: int) -> None:
    check_floating("x", x)
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"`x` must have a last axis of at least one value, got shape {tuple(x.shape)}.")
    if not -10 <= alpha <= 2:
        raise ValueError(f"`alpha` must be between -10 and 2, got {alpha}. Use 2 for the mean.")
    if not 0 < c < float("inf"):
        raise ValueError(f"`c` must be a finite number above 0, in units of the rewards, got {c}.")
    if blocks < 1 or blocks % 2 == 0 or blocks > x.shape[-1]:
        raise ValueError(
            f"`blocks` must be odd and at most the group's size, {x.shape[-1]}, got {blocks}. Use 1 for no blocks."
        )


def robust_advantages(
    reward: torch.Tensor, *, alpha: float = -2.0, c: float = 1.0, blocks: int = 3, eps: float = 1e-4
) -> torch.Tensor:
    """
    Advantages of one role: its rewards minus the robust location of the prompt's group, divided by the group's std.

        A = (r - μ~) / (σ + eps)          μ~ = robust_location(group),  σ = the group's sample std

    Args:
        reward (`torch.Tensor` of shape `(P, N)`): one row per prompt, NaN unscorable.
        alpha (`float`), c (`float`), blocks (`int`): see [`~ccpo.credit.robust_location`].
        eps (`float`, defaults to 1e-4): TRL's.

    Returns:
        `torch.Tensor` of shape `(P, N)`, never NaN: 0 for unscorable samples, groups of one and constant groups.

    Raises:
        What [`~ccpo.credit.robust_location`] raises, and `ValueError` for another shape.
    """
    if reward.ndim != 2:
        raise ValueError(f"`reward` must have shape (P, N), got {tuple(reward.shape)}.")
    r = reward.double()
    away = r - robust_location(r, alpha=alpha, c=c, blocks=blocks).unsqueeze(-1)  # (P, N)
    known = (~r.isnan()).sum(dim=1, keepdim=True)
    var = (r - r.nanmean(dim=1, keepdim=True)).square().nansum(dim=1, keepdim=True) / (known - 1)
    return (away / (var.sqrt() + eps)).nan_to_num(nan=0.0).to(reward.dtype)
